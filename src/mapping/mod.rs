//! Mappings as the embedder sees them.

pub(crate) mod accesses;
pub(crate) mod advice;
mod asynchronous;
mod by_table;
mod map;

use std::ops::Range;

use crate::address::core::Core;
use crate::error::{Error, Result};
use crate::inode::InUse;
use crate::inode::control::COPY_BYTES;
use crate::options::Tracking;
#[cfg(feature = "inside")]
use crate::policy::Backing;
use crate::policy::PageState;
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::{Change, Window};
use crate::sync::{self, Arc};
use crate::sys::Outcome;
use crate::sys::access::buffer;
use crate::sys::fork::{Home, Kept};
use crate::units::{PageIndex, PageRange};

/// Pages whose dirty bits are taken in one hold of the file's lock.
const COLLECT_PAGES: u64 = 4096;
/// How often protecting is tried while the kernel refuses.
const PROTECT_TRIES: u32 = 1000;

/// A range of a file in the address space. Dropping it unmaps it.
///
/// The memory behind [`Mapping::as_ptr`] is shared with every other mapping of the file and with
/// `read_at` and `write_at`; who loads and stores through it does so with atomic or volatile accesses,
/// or keeps other threads away. It ends where the file ends: an access to a page wholly past that is a SIGBUS,
/// also in the middle of an algorithm if another thread truncates the file.
/// [`Mapping::read_at`], [`Mapping::write_at`] and the single accesses below give an error instead.
///
/// In a child process (fork(2)) there is no such range. Calls answer [`Error::Forked`] there, [`Mapping::as_ptr`] is an address at which
/// something else may be, and dropping it does nothing.
pub struct Mapping {
    home: Home,
    core: Kept<Arc<Core>>,
    inode: Kept<InUse>,
    window: Kept<Arc<Window>>,
}

impl Mapping {
    pub(crate) fn new(home: Home, core: Arc<Core>, inode: InUse, window: Arc<Window>) -> Self {
        Self { home, core: home.keep(core), inode: home.keep(inode), window: home.keep(window) }
    }

    /// Where the mapping begins. Valid for loads and stores of [`Mapping::len`] bytes while the mapping
    /// lives, as far as the file reaches; aligned to the volume's page size. In child processes
    /// it is not mapped.
    ///
    /// The address range stays the pager's. `madvise(MADV_DONTNEED)` on it is harmless. `MADV_REMOVE` makes zeros of the pages
    /// that have blocks if the device is a memfd, and loses them otherwise: see [`Device::open`](crate::Device::open). Moving a part of it
    /// (mremap(2)) is noticed, and ends the mapping. Unmapping a part, or mapping something else over it, is
    /// not noticed: a later punch or truncate would take away what is mapped there then. mprotect(2) lasts until the address is next
    /// pointed elsewhere, and is no protection: [`MapOptions::read_only`](crate::MapOptions::read_only) is.
    ///
    /// mlock(2) and its like harm nothing, and are not free:
    ///
    /// | call | written pages | holes, with windows | holes, with single blocks | past the end |
    /// |---|---|---|---|---|
    /// | mlock | locked | zeros are locked | each gets a block, and is dirty | `ENOMEM` |
    /// | mlock2 with `MLOCK_ONFAULT` | locked | nothing happens | nothing happens | nothing happens |
    /// | mlockall with `MCL_CURRENT` | locked | zeros are locked | each gets a block, and is dirty | nothing happens |
    /// | `MADV_POPULATE_READ` | installed | zeros are installed | zeros are installed | `EHWPOISON` |
    /// | `MADV_POPULATE_WRITE` | installed, dirty | each gets a page, and is dirty | each gets a block, and is dirty | `EHWPOISON` |
    ///
    /// Of a file with windows that has a mapping with [`Tracking::Asynchronous`] or [`Tracking::Off`], what loads a hole takes a page, here as
    /// well. Otherwise in a mapping for loads only no hole gets a block, and `MADV_POPULATE_WRITE` is `EINVAL`. Where threads resolve their own faults
    /// nobody serves these calls: mlock is `ENOMEM`, the two `MADV_POPULATE_` are `EFAULT`, the others do nothing, and no hole gets a
    /// block. A lock is gone where the address is next pointed elsewhere: with single blocks where a hole has got a block, or a range was
    /// given up; with windows where a part is armed.
    /// `EHWPOISON`, where the kernel's own mmap says `EFAULT`, is what a page past the end is to the kernel: poisoned by
    /// `UFFDIO_POISON`, so that an access is a SIGBUS with nobody asked. [`Mapping::populate`] has none of these surprises.
    ///
    /// Other processes and debuggers: process_vm_readv(2) and process_vm_writev(2) are served as a system call of the owner is, and
    /// wait while the owner is stopped; `/proc/PID/mem` and ptrace(2), and so gdb, see what is installed and get `EIO` for the rest at
    /// once. Nobody hangs.
    ///
    /// As the memory of a virtual machine: a guest's access past the end is a SIGBUS of the vCPU's thread with `si_code`
    /// `BUS_MCEERR_AR`, as for memory that is broken, and KVM_RUN ends with `EINTR`. A monitor that tells its guest of such memory,
    /// or forgets the page for good, is to look whether the address is past the end of the file first. Once the
    /// file has grown the same access works.
    pub fn as_ptr(&self) -> *mut u8 {
        self.window.base().0 as *mut u8
    }

    /// The mapping's length in bytes, which may be more or less than the file's.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        self.window.bytes()
    }

    /// Where in the file the mapping begins, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.inode.page().offset_of(self.window.pages().start)
    }

    /// The bytes of the file that an access to `len` bytes of the mapping from `offset` on means.
    fn file_range(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        self.home.check()?;
        self.core.check_alive()?;
        if self.window.is_lost() {
            return Err(Error::MappingLost { addr: self.window.base().0 });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(self.file_offset() + offset..self.file_offset() + end),
            _ => Err(Error::OutsideMapping { offset, len, mapping_bytes: self.len() }),
        }
    }

    fn check_end(&self, size: u64, range: PageRange) -> Result<()> {
        let eof = self.inode.page().ceil(size);
        if range.end <= eof {
            return Ok(());
        }
        Err(Error::PastEnd { page: range.start.max(eof).0, file_bytes: size })
    }

    /// Loads what the mapping shows, without a fault: an error where a load would be a SIGBUS. Other than
    /// [`File::read_at`](crate::File::read_at) it reads to the end of the last page. The buffer may lie in a mapping.
    ///
    /// A word that is stored at that moment may be read half old and half new: [`Mapping::load`] is whole.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`]; [`Error::PastEnd`] and [`Error::DeviceLost`], after the bytes before that page have been read;
    /// [`Error::PagerGone`]; [`Error::MappingLost`]; [`Error::BadBuffer`] as [`File::read_at`](crate::File::read_at).
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.file_range(offset, into.len() as u64)?;
        let page = self.inode.page();
        let mut bounce = vec![0; COPY_BYTES.min(into.len() as u64) as usize];
        let mut at = bytes.start;
        while at < bytes.end {
            let chunk = at..bytes.end.min((at / COPY_BYTES + 1) * COPY_BYTES);
            let copy = &mut bounce[..(chunk.end - chunk.start) as usize];
            let shared = self.inode.space.shared();
            // What lies before the end of the file is still read.
            let end = chunk.end.min(page.offset_of(page.ceil(shared.size())).max(at));
            let valid = (end - at) as usize;
            self.inode.copy_out(&shared, at..end, &mut copy[..valid])?;
            let past_end = self.check_end(shared.size(), page.touched(&chunk));
            drop(shared);
            let user = &mut into[(at - bytes.start) as usize..][..valid];
            buffer::give(user, &copy[..valid]).map_err(|addr| Error::BadBuffer { addr })?;
            past_end?;
            at = chunk.end;
        }
        Ok(())
    }

    /// Stores as the mapping would, without a fault: an error where a store would be a SIGBUS. The size of
    /// the file stays, and the pages are dirty in this mapping. The buffer may lie in a mapping.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`]; [`Error::ReadOnlyMapping`]; [`Error::PastEnd`], [`Error::NoSpace`], [`Error::DeviceMemory`],
    /// [`Error::DeviceLost`] and [`Error::Limit`], after the bytes before that page have been written; [`Error::PagerGone`];
    /// [`Error::MappingLost`]; [`Error::BadBuffer`] as [`File::write_at`](crate::File::write_at).
    pub fn write_at(&self, from: &[u8], offset: u64) -> Result<()> {
        let bytes = self.file_range(offset, from.len() as u64)?;
        self.check_writable(offset, from.len() as u64)?;
        buffer::check(from).map_err(|addr| Error::BadBuffer { addr })?;
        let page = self.inode.page();
        let mut bounce = vec![0; page.bytes().min(from.len() as u64) as usize];
        let mut done = 0;
        for (index, part) in page.slices(bytes) {
            let len = (part.end - part.start) as usize;
            let copy = &mut bounce[..len];
            buffer::take(copy, &from[done..done + len]).map_err(|addr| Error::BadBuffer { addr })?;
            self.write_page(index, part, copy)?;
            done += len;
        }
        Ok(())
    }

    /// Stores to one page. Where it has no written block, the block is published with the bytes in it, as
    /// one step: a thread that punches the page in a loop cannot come in between.
    fn write_page(&self, index: PageIndex, part: Range<u64>, bytes: &[u8]) -> Result<()> {
        let start = self.inode.page().offset_of(index);
        let hole = {
            let shared = self.inode.space.shared();
            self.check_end(shared.size(), PageRange::one(index))?;
            let range = start + part.start..start + part.end;
            if self.inode.write_written(&shared, range, bytes)? {
                self.window.mark_dirty(index);
                return Ok(());
            }
            shared.extents().state(index) == PageState::Hole
        };
        // For a page that has a block one more than needed, unless it is punched meanwhile: so it may be none.
        let (mut reserved, wanted) = match self.inode.store.reserve(1) {
            Ok(reserved) => (reserved, None),
            Err(error) if hole => return Err(error),
            Err(error) => (self.inode.store.reserve(0)?, Some(error)),
        };
        let is_ready = |change: &Change<'_>| change.make_ready(PageRange::one(index));
        let mut change = self.inode.change_when(|| self.inode.space.change(), is_ready)?;
        self.check_end(change.size(), PageRange::one(index))?;
        if let Some(error) = wanted
            && change.extents().state(index) == PageState::Hole
        {
            return Err(error);
        }
        self.window.mark_dirty(index);
        let written = self.inode.write_page(&mut change, index, part, bytes, &mut reserved);
        change.commit(&self.inode.store);
        written
    }

    /// The ranges stored to through this mapping since the last call, in bytes from the mapping's
    /// start, in order; whole pages. From now on the next store to each of them is noticed again. A
    /// store that completed before the call is in the ranges or in those of an earlier call; one that runs beside it is in
    /// these or the next. Pages that have been punched or truncated away are not dirty any more; those that have been zeroed, wholly or in
    /// part, stay so. A page of zeros whose block [`Tracking::Coarse`](crate::Tracking::Coarse) has given back before it was
    /// ever reported is not, even if zeros were stored there.
    ///
    /// With [`Tracking::Asynchronous`](crate::Tracking::Asynchronous) a store is reported once, unless its page's entry is taken away at
    /// that very moment. Otherwise it is at least once: of several threads that stored to a page at one time, or of one that a signal has
    /// made fault twice, a message may be read when the page has been taken already. It opens the page for stores once more, and what is open
    /// counts as stored to.
    ///
    /// The kernel's counterpart is `dax_writeback_mapping_range`, and the mkwrite faults before it.
    ///
    /// # Errors
    /// [`Error::NotTracked`]; [`Error::PagerGone`]; [`Error::MappingLost`]; [`Error::System`] when the kernel refuses to protect pages for
    /// a long time: they stay dirty then.
    pub fn take_dirty(&self) -> Result<Vec<Range<u64>>> {
        self.file_range(0, 0)?;
        if self.window.options.tracking == Tracking::Off {
            return Err(Error::NotTracked { addr: self.window.base().0 });
        }
        let page = self.inode.page();
        let all = self.window.pages();
        let mut dirty: Vec<Range<u64>> = Vec::new();
        let mut at = all.start;
        while at < all.end {
            let chunk = PageRange::at(at, COLLECT_PAGES).intersect(all);
            let collected = match self.window.is_asynchronous() {
                true => self.collect_asynchronously(chunk),
                false => self.collect(chunk),
            };
            let runs = collected.inspect_err(|_| self.mark_again(&dirty))?;
            for run in runs {
                let start = page.bytes_of(run.start.0 - all.start.0);
                let end = start + page.bytes_of(run.pages());
                match dirty.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => dirty.push(start..end),
                }
            }
            at = self.window.next_marked(chunk.end);
        }
        Ok(dirty)
    }

    /// Marks what has been collected already: a call that fails has taken nothing.
    fn mark_again(&self, dirty: &[Range<u64>]) {
        let page = self.inode.page();
        let _shared = self.inode.space.shared();
        for pages in dirty.iter().map(|range| page.touched(range)) {
            let first = self.window.pages().start;
            PageRange::at(first.plus(pages.start.0), pages.pages())
                .iter()
                .for_each(|page| self.window.mark_dirty(page));
        }
    }

    /// Takes the dirty bits of a range and protects its pages, as one step.
    ///
    /// ```text
    /// collect                                           store
    ///   L2 exclusive
    ///     forget: the page is clean
    ///                                                     lands in the old, writable entry: it came
    ///                                                     before the caller looks at the bytes
    ///     protect
    ///                                                     faults: mkwrite waits for L2,
    ///   unlock                                            marks the page dirty again
    /// ```
    fn collect(&self, range: PageRange) -> Result<Vec<PageRange>> {
        for _ in 0..PROTECT_TRIES {
            // Before L2, as everywhere: keeps our own re-points away, during which the kernel refuses.
            let regions = self.core.regions.read();
            let mut change = self.inode.space.change();
            if !self.window.is_alive() {
                return Err(self.core.gone());
            }
            let runs = change.marked(&self.window, range);
            if runs.is_empty() {
                change.commit(&self.inode.store);
                return Ok(runs);
            }
            if self.inode.broken(Rule::ForgetBeforeProtect) {
                let _ = runs.iter().try_for_each(|run| change.protect(&self.window, *run).map(drop));
                change.commit(&self.inode.store);
                drop(regions);
                self.inode.probe(Point::Collecting, range.start, None);
                self.inode.space.change().forget_in(&self.window, range);
                return Ok(runs);
            }
            change.forget_in(&self.window, range);
            // Who has been told of them has looked: they are not taken back with the mark of a later store.
            runs.iter().for_each(|run| change.keep(*run));
            let protected = runs.iter().all(|run| self.protect(&change, *run));
            if !protected {
                runs.iter().for_each(|run| change.mark_in(&self.window, *run));
            }
            change.commit(&self.inode.store);
            drop(regions);
            if protected {
                return Ok(runs);
            }
            sync::back_off(std::time::Duration::from_micros(100));
        }
        Err(Error::system("ioctl(UFFDIO_WRITEPROTECT)", nix::errno::Errno::EAGAIN))
    }

    /// `false` while the kernel refuses.
    fn protect(&self, change: &Change<'_>, run: PageRange) -> bool {
        match change.protect(&self.window, run) {
            Ok(Outcome::Installed | Outcome::AlreadyPresent) => true,
            Ok(Outcome::Retry) => false,
            // A part of the run is not registered any more, or this kernel takes one address range at a time.
            Ok(Outcome::Gone) | Err(_) => {
                run.iter().all(|page| match change.protect(&self.window, PageRange::one(page)) {
                    Ok(Outcome::Retry) => false,
                    Ok(Outcome::Installed | Outcome::AlreadyPresent | Outcome::Gone) => true,
                    // Where the kernel installs what is present there has to be a marker.
                    Err(_) => !self.window.has_armed_parts(),
                })
            }
        }
    }

    /// How the page at `offset` bytes of the mapping is mapped. For tests and demonstrations.
    #[cfg(feature = "inside")]
    #[doc(hidden)]
    pub fn backing_at(&self, offset: u64) -> Option<Backing> {
        if !self.home.is_here() || offset >= self.len() {
            return None;
        }
        let regions = self.core.regions.read();
        let at = self.window.base().plus(offset);
        let region = regions.find(at).filter(|region| Arc::ptr_eq(&region.window, &self.window))?;
        Some(region.layout.backing(self.window.page_at(at)))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return;
        }
        self.core.unmap(&mut self.window, &self.inode);
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping")
            .field("addr", &self.window.base())
            .field("len", &self.len())
            .field("file_offset", &self.file_offset())
            .finish()
    }
}
