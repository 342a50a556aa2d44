//! What threads do with mapped memory through the library: single accesses, and system calls whose buffer lies there.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::Mapping;
use crate::address::budget;
use crate::error::{BusError, Error, Result};
use crate::sys::{Access, Part, access, passing};
use crate::units::Addr;

/// How much of a mapping is put in place for one system call, where that cannot fault, and how often.
const POPULATE_BYTES: u64 = 1 << 20;
const POPULATE_TRIES: u32 = 64;
/// Tries with all of them, before it is one page at a time.
const POPULATE_TRIES_WHOLE: u32 = 16;
/// How many bytes are copied before it is asked again whether a SIGBUS can be caught.
const COPY_AT_ONCE: usize = 1 << 20;

impl Mapping {
    /// Whether `len` bytes from `offset` on can be asked for.
    fn inside(&self, offset: u64, len: u64) -> Result<()> {
        self.home.check()?;
        if self.window.is_lost() {
            return Err(Error::MappingLost { addr: self.window.base().0 });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(Error::OutsideMapping { offset, len, mapping_bytes: self.len() });
        }
        Ok(())
    }

    /// The addresses of `len` bytes from `offset` on, to be accessed by an instruction or a system call.
    fn part(&self, offset: u64, len: u64) -> Result<Part<'_>> {
        let outside = || Error::OutsideMapping { offset, len, mapping_bytes: self.len() };
        self.window.place.part(offset, len).ok_or_else(outside)
    }

    /// A store to a read-only mapping would be a SIGSEGV, which nobody catches.
    pub(super) fn check_writable(&self, offset: u64, len: u64) -> Result<()> {
        if self.window.options.read_only { Err(Error::ReadOnlyMapping { offset, len }) } else { Ok(()) }
    }

    fn word_for_stores(&self, offset: u64) -> Result<()> {
        self.word(offset)?;
        self.check_writable(offset, 8)
    }

    fn word(&self, offset: u64) -> Result<()> {
        if !offset.is_multiple_of(8) {
            return Err(Error::Misaligned { offset, len: 8, page_bytes: 8 });
        }
        self.inside(offset, 8)
    }

    /// What a SIGBUS at `addr` means that an access to this mapping has ended in.
    fn bus_error(&self, addr: usize) -> Error {
        let at = Addr(addr);
        if !self.window.contains(at) {
            return Error::BadBuffer { addr };
        }
        // Given up while the access was under way.
        if self.window.is_lost() {
            return Error::MappingLost { addr: self.window.base().0 };
        }
        if self.window.was_short_of(self.window.page_at(at)) {
            return budget::shortage(self.window.page_at(at));
        }
        Error::Bus(BusError { addr, offset: at.since(self.window.base()) })
    }
}

/// How an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    /// By an instruction, which faults as any other does; a SIGBUS is caught.
    Cpu,
    /// As the extents say, with no fault: a SIGBUS would not be caught.
    Table,
}

/// Single accesses by the CPU through the mapping, which fault as any others do; a SIGBUS is caught and
/// returned. The first one installs a SIGBUS handler for the process, which passes on everything else
/// to the handler that was there before.
///
/// **Where a SIGBUS can not be caught**, because the thread blocks it or the application has put in another handler since, the access
/// is made as [`Mapping::read_at`] and [`Mapping::write_at`] make theirs, without a fault, and with the same result; it then waits for changes of
/// the file that are being published. Each call asks the kernel how that is: two system calls, some 0.25 µs. To ask
/// once for many accesses: [`Mapping::accesses`].
impl Mapping {
    /// The same accesses, of this thread, without asking each time whether a SIGBUS can be caught: a load of a page that is in place
    /// takes a few nanoseconds.
    ///
    /// While the value lives the thread is to leave SIGBUS as it is in its mask, and the process its handler. Otherwise an
    /// access to a page that is not to be had ends as one through [`Mapping::as_ptr`] does.
    ///
    /// # Errors
    /// [`Error::System`] when the handler cannot be installed.
    pub fn accesses(&self) -> Result<Accesses<'_>> {
        let by = if self.window.place.is_real() {
            access::enable().map_err(|errno| Error::system("sigaction", errno))?;
            if access::catches() { By::Cpu } else { By::Table }
        } else {
            By::Table
        };
        Ok(Accesses { map: self, by, _of_this_thread: PhantomData })
    }

    /// Loads the aligned word at `offset`.
    ///
    /// # Errors
    /// [`Error::Bus`], [`Error::OutsideMapping`], [`Error::Misaligned`] unless `offset` is a multiple of 8.
    pub fn load(&self, offset: u64) -> Result<u64> {
        self.accesses()?.load(offset)
    }

    /// Stores the aligned word at `offset`.
    ///
    /// # Errors
    /// As [`Mapping::load`]; [`Error::ReadOnlyMapping`].
    pub fn store(&self, offset: u64, value: u64) -> Result<()> {
        self.accesses()?.store(offset, value)
    }

    /// Stores `new` at the aligned `offset` if `expected` is there, atomically. What was there before.
    ///
    /// # Errors
    /// As [`Mapping::store`].
    pub fn compare_exchange(&self, offset: u64, expected: u64, new: u64) -> Result<u64> {
        self.accesses()?.compare_exchange(offset, expected, new)
    }

    /// Copies out of the mapping, byte by byte as the CPU likes.
    ///
    /// # Errors
    /// [`Error::Bus`], after the bytes before it have been copied; [`Error::OutsideMapping`]; [`Error::BadBuffer`] when the
    /// buffer itself lies in another mapping, and is not to be had.
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.inside(offset, into.len() as u64)?;
        let mut at = offset;
        for piece in into.chunks_mut(COPY_AT_ONCE) {
            self.accesses()?.copy_out(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies into the mapping.
    ///
    /// # Errors
    /// As [`Mapping::copy_out`]; [`Error::ReadOnlyMapping`].
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.inside(offset, from.len() as u64)?;
        self.check_writable(offset, from.len() as u64)?;
        let mut at = offset;
        for piece in from.chunks(COPY_AT_ONCE) {
            self.accesses()?.copy_in(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Single accesses to a [`Mapping`] by one thread: [`Mapping::accesses`].
#[derive(Clone, Copy)]
pub struct Accesses<'a> {
    map: &'a Mapping,
    by: By,
    /// A mask of signals is a thread's.
    _of_this_thread: PhantomData<*const ()>,
}

impl Accesses<'_> {
    /// As [`Mapping::load`].
    ///
    /// # Errors
    /// As [`Mapping::load`].
    pub fn load(&self, offset: u64) -> Result<u64> {
        self.map.word(offset)?;
        match self.by {
            By::Cpu => access::load(self.map.part(offset, 8)?).map_err(|addr| self.map.bus_error(addr)),
            By::Table => self.map.load_by_table(offset),
        }
    }

    /// As [`Mapping::store`].
    ///
    /// # Errors
    /// As [`Mapping::store`].
    pub fn store(&self, offset: u64, value: u64) -> Result<()> {
        self.map.word_for_stores(offset)?;
        match self.by {
            By::Cpu => access::store(self.map.part(offset, 8)?, value).map_err(|addr| self.map.bus_error(addr)),
            By::Table => self.map.store_by_table(offset, value),
        }
    }

    /// As [`Mapping::compare_exchange`].
    ///
    /// # Errors
    /// As [`Mapping::store`].
    pub fn compare_exchange(&self, offset: u64, expected: u64, new: u64) -> Result<u64> {
        self.map.word_for_stores(offset)?;
        match self.by {
            By::Cpu => {
                access::exchange(self.map.part(offset, 8)?, expected, new).map_err(|addr| self.map.bus_error(addr))
            }
            By::Table => self.map.exchange_by_table(offset, expected, new),
        }
    }

    /// As [`Mapping::copy_out`].
    ///
    /// # Errors
    /// As [`Mapping::copy_out`].
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.map.inside(offset, into.len() as u64)?;
        match self.by {
            By::Cpu => {
                let part = self.map.part(offset, into.len() as u64)?;
                access::copy_out(part, into).map_err(|addr| self.map.bus_error(addr))
            }
            By::Table => self.map.copy_out_by_table(offset, into),
        }
    }

    /// As [`Mapping::copy_in`].
    ///
    /// # Errors
    /// As [`Mapping::copy_in`].
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.map.inside(offset, from.len() as u64)?;
        self.map.check_writable(offset, from.len() as u64)?;
        match self.by {
            By::Cpu => {
                let part = self.map.part(offset, from.len() as u64)?;
                access::copy_in(part, from).map_err(|addr| self.map.bus_error(addr))
            }
            By::Table => self.map.copy_in_by_table(offset, from),
        }
    }
}

impl std::fmt::Debug for Accesses<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accesses").field("map", &self.map).field("by", &self.by).finish()
    }
}

/// System calls whose buffer lies in the mapping: the faults come from inside the kernel. Where the pager does not
/// serve those ([`Pager::serves_kernel_faults`](crate::Pager::serves_kernel_faults)), a page that has not been touched yet
/// ends the call as the end of the file does. No SIGBUS comes of them, and no handler is installed. A descriptor that was opened with
/// `O_DIRECT` is refused: the kernel would have the device read into the very pages, or write from them, also after a punch has given
/// their blocks to another file. Where threads resolve their own
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
                // Lost meanwhile: the range is still the mapping's, but nothing will be there any more.
                Err(Errno::EFAULT) if self.window.is_lost() => return Err(Errno::EFAULT),
                Err(Errno::EFAULT) => {}
                done => return done,
            }
        }
        Err(Errno::EFAULT)
    }

    /// The addresses for a system call with a buffer there.
    fn buffer(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Part<'_>> {
        self.inside(offset, len)?;
        if !self.window.place.is_real() {
            return Err(Error::system("read or write", Errno::EFAULT));
        }
        match access::is_direct_io(fd) {
            Ok(true) => Err(Error::DirectIo),
            Ok(false) => self.part(offset, len),
            Err(errno) => Err(Error::system("fcntl", errno)),
        }
    }

    fn call_failed(&self, call: &'static str, errno: Errno) -> Error {
        match self.window.is_lost() {
            true => Error::MappingLost { addr: self.window.base().0 },
            false => Error::system(call, errno),
        }
    }

    /// read(2), once: up to `len` bytes from the descriptor straight into the mapping from `offset` on. How many were
    /// read: 0 at the end of what is read, and fewer than `len` also where the mapping met the end of its file. Blocks as
    /// long as the descriptor does, and for faults.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`], [`Error::MappingLost`]; [`Error::ReadOnlyMapping`]; [`Error::DirectIo`]; [`Error::System`] when the call fails: with `EFAULT` at a page past
    /// the end of the file, at a hole for which there is no block, and after the end of the pager. What lies before
    /// it may have been transferred even so: that is up to the kind of descriptor.
    pub fn read_from(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
        let part = self.buffer(fd, offset, len)?;
        self.check_writable(offset, len)?;
        self.installed(offset, len, Access::Store, |len| access::read_into(fd, part.at_most(len)))
            .map_err(|errno| self.call_failed("read", errno))
    }

    /// write(2), once: up to `len` bytes of the mapping from `offset` on straight to the descriptor. How many were
    /// written; fewer than `len` also where the mapping met the end of its file. Blocks as long as the descriptor does,
    /// and for faults.
    ///
    /// # Errors
    /// As [`Mapping::read_from`].
    pub fn write_to(&self, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<usize> {
        let part = self.buffer(fd, offset, len)?;
        let write = |len| passing::outlast(part.at_most(len), |part| access::write_from(fd, part));
        self.installed(offset, len, Access::Load, write).map_err(|errno| self.call_failed("write", errno))
    }
}
