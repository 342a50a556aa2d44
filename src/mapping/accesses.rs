//! What threads do with mapped memory through the library: single accesses, and system calls whose buffer lies there.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::{BusError, Mapping};
use crate::error::{Error, Result};
use crate::pager::budget;
use crate::sys::{Access, access, passing};
use crate::units::Addr;

/// How much of a mapping is put in place for one system call, where that cannot fault, and how often.
const POPULATE_BYTES: u64 = 1 << 20;
const POPULATE_TRIES: u32 = 64;
/// Tries with all of them, before it is one page at a time.
const POPULATE_TRIES_WHOLE: u32 = 16;

/// Single accesses by the CPU through the mapping, which fault as any others do; a SIGBUS is caught and
/// returned. The first one installs a SIGBUS handler for the process, which passes on everything else
/// to the handler that was there before.
impl Mapping {
    /// The address of `len` bytes from `offset` on.
    fn inside(&self, offset: u64, len: u64) -> Result<usize> {
        self.home.check()?;
        if self.window.is_lost() {
            return Err(Error::MappingLost { addr: self.window.base().0 });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(Error::OutsideMapping { offset, len, mapping_bytes: self.len() });
        }
        Ok(self.window.base().0 + offset as usize)
    }

    pub(crate) fn checked(&self, offset: u64, len: u64) -> Result<usize> {
        let at = self.inside(offset, len)?;
        access::enable().map_err(|errno| Error::system("sigaction", errno))?;
        Ok(at)
    }

    /// The same for bytes that are stored to.
    pub(crate) fn checked_for_stores(&self, offset: u64, len: u64) -> Result<usize> {
        let at = self.checked(offset, len)?;
        self.check_writable(offset, len)?;
        Ok(at)
    }

    /// A store to a read-only mapping would be a SIGSEGV, which nobody catches.
    pub(super) fn check_writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.window.options.read_only { Err(Error::ReadOnlyMapping { offset, len }) } else { Ok(()) }
    }

    fn word_for_stores(&self, offset: u64) -> Result<usize> {
        let at = self.word(offset)?;
        self.check_writable(offset, 8)?;
        Ok(at)
    }

    fn word(&self, offset: u64) -> Result<usize> {
        if !offset.is_multiple_of(8) {
            return Err(Error::Misaligned { offset, len: 8, page_bytes: 8 });
        }
        self.checked(offset, 8)
    }

    fn bus_error(&self, addr: usize) -> Error {
        let at = Addr(addr);
        if self.window.contains(at) && self.window.was_short_of(self.window.page_at(at)) {
            return Error::address_ranges(self.window.page_at(at), budget::total());
        }
        Error::Bus(BusError { addr, offset: addr.wrapping_sub(self.window.base().0) as u64 })
    }

    /// Loads the aligned word at `offset`.
    ///
    /// # Errors
    /// [`Error::Bus`], [`Error::OutsideMapping`], [`Error::Misaligned`] unless `offset` is a multiple of 8.
    pub fn load(&self, offset: u64) -> Result<u64> {
        access::load(self.word(offset)?).map_err(|addr| self.bus_error(addr))
    }

    /// Stores the aligned word at `offset`.
    ///
    /// # Errors
    /// As [`Mapping::load`]; [`Error::ReadOnlyMapping`].
    pub fn store(&self, offset: u64, value: u64) -> Result<()> {
        access::store(self.word_for_stores(offset)?, value).map_err(|addr| self.bus_error(addr))
    }

    /// Stores `new` at the aligned `offset` if `expected` is there, atomically. What was there before.
    ///
    /// # Errors
    /// As [`Mapping::store`].
    pub fn compare_exchange(&self, offset: u64, expected: u64, new: u64) -> Result<u64> {
        access::exchange(self.word_for_stores(offset)?, expected, new).map_err(|addr| self.bus_error(addr))
    }

    /// Copies out of the mapping, byte by byte as the CPU likes.
    ///
    /// # Errors
    /// [`Error::Bus`], after the bytes before it have been copied; [`Error::OutsideMapping`].
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let at = self.checked(offset, into.len() as u64)?;
        access::copy_out(at, into).map_err(|addr| self.bus_error(addr))
    }

    /// Copies into the mapping.
    ///
    /// # Errors
    /// As [`Mapping::copy_out`]; [`Error::ReadOnlyMapping`].
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> Result<()> {
        let at = self.checked_for_stores(offset, from.len() as u64)?;
        access::copy_in(at, from).map_err(|addr| self.bus_error(addr))
    }
}

/// System calls whose buffer lies in the mapping: the faults come from inside the kernel. Where the pager does not
/// serve those ([`Pager::serves_kernel_faults`](crate::Pager::serves_kernel_faults)), a page that has not been touched yet
/// ends the call as the end of the file does. No SIGBUS comes of them, and no handler is installed. Where threads resolve their own
/// faults ([`Resolve::FaultingThread`](crate::Resolve::FaultingThread)) the pages are put in place first, 1 MiB of them at most.
impl Mapping {
    /// Makes a system call with its pages in place, where nobody serves faults from inside of it. A punch may take them
    /// away in between: then again.
    fn installed(
        &self,
        offset: u64,
        len: u64,
        access: Access,
        call: impl Fn(usize) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        if !self.window.is_direct() || len == 0 {
            return call(len as usize);
        }
        // What is put in place for nothing costs blocks. A call may do less than it is asked.
        let mut len = len.min(POPULATE_BYTES);
        for tries in 0..POPULATE_TRIES {
            if tries == POPULATE_TRIES_WHOLE {
                // Where address ranges are short, the range of one page is given up for that of the next.
                let page = self.inode.page().bytes();
                len = len.min(page - offset % page);
            }
            // What is not to be had is the kernel's to say.
            let _ = self.populate(offset..offset + len, access);
            match call(len as usize) {
                Err(Errno::EFAULT) => {}
                done => return done,
            }
        }
        Err(Errno::EFAULT)
    }

    /// read(2), once: up to `len` bytes from the descriptor straight into the mapping from `offset` on. How many were
    /// read: 0 at the end of what is read, and fewer than `len` also where the mapping met the end of its file. Blocks as
    /// long as the descriptor does, and for faults.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`], [`Error::MappingLost`]; [`Error::ReadOnlyMapping`]; [`Error::System`] when the call fails: with `EFAULT` at a page past
    /// the end of the file, at a hole for which there is no block, and after the end of the pager. What lies before
    /// it may have been transferred even so: that is up to the kind of descriptor.
    pub fn read_from(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
        let at = self.inside(offset, len)?;
        self.check_writable(offset, len)?;
        self.installed(offset, len, Access::Store, |len| access::read_into(fd, at, len))
            .map_err(|errno| Error::system("read", errno))
    }

    /// write(2), once: up to `len` bytes of the mapping from `offset` on straight to the descriptor. How many were
    /// written; fewer than `len` also where the mapping met the end of its file. Blocks as long as the descriptor does,
    /// and for faults.
    ///
    /// # Errors
    /// As [`Mapping::read_from`].
    pub fn write_to(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
        let at = self.inside(offset, len)?;
        let write = |len| passing::outlast(at, len, || access::write_from(fd, at, len));
        self.installed(offset, len, Access::Load, write).map_err(|errno| Error::system("write", errno))
    }
}
