//! Windows: mappings as their file sees them.

use nix::errno::Errno;

use super::asynchronous::mapped_bits;
use super::dirty::DirtyBits;
use super::streams::Streams;
use crate::mapping::options::{MapOptions, Resolve};
use crate::policy::Backing;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering};
use crate::sys::{PageTable, Rights};
use crate::units::{Addr, PageIndex, PageRange, PageSize};

/// A mapping as the file sees it: where to zap.
pub(crate) struct Window {
    /// The page table that the range is registered with.
    pub(crate) table: Arc<dyn PageTable>,
    pub(crate) options: MapOptions,
    pub(super) base: Addr,
    /// The pages of the file that it shows.
    pub(super) pages: PageRange,
    pub(super) page: PageSize,
    /// The sequential streams of faults among the last ones.
    pub(crate) streams: Streams,
    /// Pages stored to through this mapping, counted from its start.
    pub(super) dirty: DirtyBits,
    /// See [`super::asynchronous`].
    pub(super) mapped: Option<DirtyBits>,
    /// One install at a time of pages that had an entry before, from the look whether it was written to up to the note of the new
    /// one: of two that both saw a marker, one would not know what became of the other's entry. A leaf, for two ioctls.
    pub(super) again: Mutex<()>,
    /// Set when the application has moved a part of the range away: none of it is ours to unmap.
    lost: AtomicBool,
    /// Cleared under L2 held exclusively, before the address range is given back or condemned: whoever
    /// holds L2 shared and finds it set may install.
    pub(super) alive: AtomicBool,
}

impl Window {
    pub(crate) fn new(
        table: Arc<dyn PageTable>,
        options: MapOptions,
        base: Addr,
        pages: PageRange,
        page: PageSize,
    ) -> Result<Self, Errno> {
        let dirty = DirtyBits::new(pages.pages())?;
        let mapped = mapped_bits(options.tracking, pages.pages())?;
        let (lost, alive) = (AtomicBool::new(false), AtomicBool::new(true));
        let streams = Streams::default();
        Ok(Self { table, options, base, pages, page, streams, dirty, mapped, again: Mutex::new(()), lost, alive })
    }

    pub(crate) fn base(&self) -> Addr {
        self.base
    }

    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.page.bytes_of(self.pages.pages())
    }

    pub(crate) fn rights(&self) -> Rights {
        Rights::of(self.options.read_only)
    }

    /// Whether threads resolve their own faults here.
    pub(crate) fn is_direct(&self) -> bool {
        self.options.resolve == Resolve::FaultingThread
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    /// The page of the file that an address of the window shows.
    pub(crate) fn page_at(&self, at: Addr) -> PageIndex {
        self.pages.start.plus(self.page.page_of(at.since(self.base)).0)
    }

    pub(crate) fn addr_of(&self, page: PageIndex) -> Addr {
        self.base.plus(self.page.bytes_of(page.0 - self.pages.start.0))
    }

    /// A range of the file as a range of the window's own pages.
    pub(super) fn own(&self, range: PageRange) -> PageRange {
        let cut = range.intersect(self.pages);
        let start = cut.start.0.saturating_sub(self.pages.start.0);
        PageRange::at(PageIndex(start), cut.pages())
    }

    pub(crate) fn mark_dirty(&self, page: PageIndex) {
        self.dirty.mark(PageIndex(page.0 - self.pages.start.0));
    }

    pub(crate) fn mark_dirty_range(&self, range: PageRange) {
        self.dirty.mark_range(self.own(range));
    }

    /// The most pages that one fault installs.
    pub(crate) fn largest_run(&self) -> u64 {
        self.page.pages_in(self.options.fault_around).max(1)
    }

    /// What to poison for an access at `at`: a base page where zeros are backed, a whole one on the device.
    pub(super) fn poisoned_range(&self, at: Addr, backing: Backing) -> (Addr, u64) {
        let bytes = match backing {
            Backing::Zeros => self.table.base_page(),
            Backing::Block(_) => self.page.bytes(),
        };
        (at.align_down(bytes), bytes)
    }

    /// The first page of the file from `page` on that may be marked dirty here: stretches of clean
    /// pages are skipped by the thousand.
    pub(crate) fn next_marked(&self, page: PageIndex) -> PageIndex {
        let own = PageIndex(page.0.saturating_sub(self.pages.start.0));
        let marked = self.pages.start.plus(self.dirty.next_marked(own).0);
        self.next_mapped(page).map_or(marked, |mapped| mapped.min(marked))
    }

    /// Takes the entries of `range` away. Always safe: the next access faults. Of an asynchronous window only
    /// while nothing can be installed: with L2 held exclusively.
    ///
    /// # Panics
    /// When the kernel refuses. An entry that stays would show a freed block, so the
    /// caller must not go on to free it.
    pub(crate) fn zap(&self, range: PageRange) {
        let cut = range.intersect(self.pages);
        if cut.is_empty() {
            return;
        }
        let (at, bytes) = (self.addr_of(cut.start), self.page.bytes_of(cut.pages()));
        if let Err(errno) = self.table.zap(at, bytes) {
            panic!("zap of {bytes} bytes at {at:?} failed: {errno}");
        }
        self.settle(cut);
    }
}
