//! Windows: mappings as their file sees them.

use nix::errno::Errno;

use super::armed::Armed;
use super::asynchronous::mapped_bits;
use super::dirty::DirtyBits;
use super::streams::Streams;
use crate::options::{MapOptions, Resolve};
use crate::policy::Backing;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Tally};
use crate::sys::{Outcome, PageTable, Place, Rights, Span};
use crate::units::{Addr, PageIndex, PageRange, PageSize};

/// A mapping as the file sees it: where to zap.
pub(crate) struct Window {
    /// The page table that the range is registered with.
    pub(crate) table: Arc<dyn PageTable>,
    pub(crate) options: MapOptions,
    /// Its addresses.
    pub(crate) place: Place,
    /// The pages of the file that it shows.
    pub(super) pages: PageRange,
    pub(super) page: PageSize,
    /// The sequential streams of faults among the last ones.
    pub(crate) streams: Streams,
    /// Pages stored to through this mapping, counted from its start.
    pub(super) dirty: DirtyBits,
    /// See [`super::asynchronous`].
    pub(super) mapped: Option<DirtyBits>,
    /// Of a file with windows, where the kernel installs what is present.
    pub(super) armed: Option<Armed>,
    /// The kernel lets stores through to what is present in its places, and nobody is told; see [`super::open`].
    lets_stores_through: bool,
    /// One install at a time of pages that had an entry before, from the look whether it was written to up to the note of the new
    /// one: of two that both saw a marker, one would not know what became of the other's entry. A leaf, for two ioctls.
    pub(super) again: Mutex<()>,
    /// Set when the mapping has been given up: calls say so, and touch nothing. Before anything is done to its addresses.
    lost: AtomicBool,
    /// The page, and 1, whose last fault ended in SIGBUS for lack of address ranges; 0 when there was room again.
    short_of: AtomicU64,
    /// When pages that it shows have last been taken out of the device, as its page table counts. Changed under L2 held exclusively.
    gone: Tally,
    /// A page inside the file has been poisoned once: the device had failed there.
    poisoned: AtomicBool,
    /// The pages that are poisoned at this moment for the sake of one thread each. Changed under L2 held exclusively. A leaf, for the time
    /// of a look; who may not wait tries it.
    pub(super) poisoned_for_one: Mutex<Vec<PageIndex>>,
    /// Cleared under L2 held exclusively, before the address range is given back or revoked: whoever
    /// holds L2 shared and finds it set may install.
    pub(super) alive: AtomicBool,
}

impl Window {
    pub(crate) fn new(
        table: Arc<dyn PageTable>,
        options: MapOptions,
        place: Place,
        pages: PageRange,
        page: PageSize,
    ) -> Result<Self, Errno> {
        let dirty = DirtyBits::new(pages.pages())?;
        let mapped = mapped_bits(options.tracking, pages.pages())?;
        Ok(Self {
            armed: None,
            lets_stores_through: false,
            table,
            options,
            place,
            pages,
            page,
            streams: Streams::default(),
            dirty,
            mapped,
            again: Mutex::new(()),
            lost: AtomicBool::new(false),
            short_of: AtomicU64::new(0),
            gone: Tally::new(0),
            poisoned: AtomicBool::new(false),
            poisoned_for_one: Mutex::new(Vec::new()),
            alive: AtomicBool::new(true),
        })
    }

    /// The same, parts of which may be armed.
    pub(crate) fn with_armed_parts(self, unarmed: Arc<Tally>) -> Result<Self, Errno> {
        Ok(Self { armed: Some(Armed::new(self.pages, self.page, unarmed)?), ..self })
    }

    /// The same, that lets stores through to what is present.
    pub(crate) fn letting_stores_through(self) -> Self {
        Self { lets_stores_through: true, ..self }
    }

    /// Whether the kernel lets stores through to what is present in its places.
    pub(crate) fn lets_stores_through(&self) -> bool {
        self.lets_stores_through
    }

    /// Whether it does, and keeps no record of them.
    pub(crate) fn is_open(&self) -> bool {
        self.lets_stores_through && !self.is_asynchronous()
    }

    pub(crate) fn base(&self) -> Addr {
        self.place.at()
    }

    pub(crate) fn pages(&self) -> PageRange {
        self.pages
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.place.bytes()
    }

    pub(crate) fn contains(&self, at: Addr) -> bool {
        (self.base()..self.base().plus(self.bytes())).contains(&at)
    }

    pub(crate) fn rights(&self) -> Rights {
        Rights::of(&self.options)
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

    /// A fault on the page has ended in SIGBUS because the process has no address range left.
    pub(crate) fn set_short_of(&self, page: PageIndex) {
        self.short_of.store(page.0 + 1, Ordering::Relaxed);
    }

    /// An address range was to be had.
    pub(crate) fn set_room(&self) {
        self.short_of.store(0, Ordering::Relaxed);
    }

    /// Whether that is why the last fault on the page ended in SIGBUS.
    pub(crate) fn was_short_of(&self, page: PageIndex) -> bool {
        self.short_of.load(Ordering::Relaxed) == page.0 + 1
    }

    /// The page of the file that an address of the window shows.
    pub(crate) fn page_at(&self, at: Addr) -> PageIndex {
        self.pages.start.plus(self.page.page_of(at.since(self.base())).0)
    }

    pub(crate) fn addr_of(&self, page: PageIndex) -> Addr {
        self.base().plus(self.page.bytes_of(page.0 - self.pages.start.0))
    }

    /// The addresses of those pages of `range` that it shows.
    pub(crate) fn span(&self, range: PageRange) -> Span<'_> {
        self.own_span(self.own(range))
    }

    /// The same of the window's own pages.
    pub(super) fn own_span(&self, own: PageRange) -> Span<'_> {
        self.place.span(self.base().plus(self.page.bytes_of(own.start.0)), self.page.bytes_of(own.pages()))
    }

    /// A range of the file as a range of the window's own pages.
    pub(super) fn own(&self, range: PageRange) -> PageRange {
        let cut = range.intersect(self.pages);
        let start = cut.start.0.saturating_sub(self.pages.start.0);
        PageRange::at(PageIndex(start), cut.pages())
    }

    /// Some of the window's own pages as a range of the file.
    pub(super) fn in_file(&self, own: PageRange) -> PageRange {
        PageRange::at(self.pages.start.plus(own.start.0), own.pages())
    }

    pub(crate) fn mark_dirty(&self, page: PageIndex) {
        self.dirty.mark(PageIndex(page.0 - self.pages.start.0));
    }

    pub(crate) fn mark_dirty_range(&self, range: PageRange) {
        self.dirty.mark_range(self.own(range));
    }

    /// Marks pages whose entries are about to become writable. Not where the entry is the record: the mark would outlast
    /// an install that finds an entry there already, for a store that has been reported.
    pub(super) fn mark_writable(&self, range: PageRange) {
        if !self.is_asynchronous() && !self.is_open() {
            self.mark_dirty_range(range);
        }
    }

    /// The most pages that one fault installs.
    pub(crate) fn largest_run(&self) -> u64 {
        self.page.pages_in(self.options.fault_around).max(1)
    }

    /// Poisons what an access at `at` finds, whatever marker is in the way. Only where no entry can be: past the end, in a mapping
    /// that has been given up, or under L2 held exclusively. Clearing a marker makes an entry writable where there is one.
    pub(crate) fn poison(&self, at: Addr, backing: Backing) -> Result<Outcome, Errno> {
        let span = self.span_at(at, backing);
        match self.table.poison(span)? {
            Outcome::AlreadyPresent => self.table.poison_over_marker(span),
            other => Ok(other),
        }
    }

    /// What an access at `at` finds: a base page where zeros are backed, a whole one on the device.
    pub(crate) fn span_at(&self, at: Addr, backing: Backing) -> Span<'_> {
        let bytes = match backing {
            Backing::Zeros => self.table.base_page(),
            Backing::Block(_) | Backing::Own(_) | Backing::Armed(_) | Backing::Open(_) => self.page.bytes(),
        };
        self.place.span(at.align_down(bytes), bytes)
    }

    /// The first page of the file from `page` on that may be marked dirty here: stretches of clean
    /// pages are skipped by the thousand.
    pub(crate) fn next_marked(&self, page: PageIndex) -> PageIndex {
        let own = PageIndex(page.0.saturating_sub(self.pages.start.0));
        let marked = self.pages.start.plus(self.dirty.next_marked(own).0);
        self.next_mapped(page).map_or(marked, |mapped| mapped.min(marked))
    }

    /// The pages of `range` are about to be taken out of the device. The kernel takes their entries in the same step.
    pub(super) fn goes_with_the_page(&self, range: PageRange) {
        let span = self.span(range);
        if span.bytes() > 0 {
            if self.poisoned.load(Ordering::Relaxed) {
                // A punch leaves it.
                self.zap(range);
            }
            self.gone.store(self.table.page_goes(span), Ordering::Relaxed);
        }
    }

    /// A page inside the file is about to be poisoned. Under L2.
    pub(crate) fn set_poisoned(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Whether pages have been taken out of the device since the page table said `heard`. Under L2.
    pub(crate) fn has_lost_pages_since(&self, heard: u64) -> bool {
        self.gone.load(Ordering::Relaxed) > heard
    }

    /// Takes the entries of `range` away. Always safe: the next access faults. Of an asynchronous window only
    /// while nothing can be installed: with L2 held exclusively.
    ///
    /// # Panics
    /// When the kernel refuses. An entry that stays would show a freed block, so the
    /// caller must not go on to free it.
    pub(crate) fn zap(&self, range: PageRange) {
        self.keep_stores_out(range);
    }

    /// The same, and whether the next store to each page is a fault, even where the kernel installs by itself what is present: `false` if
    /// it refuses that for the moment.
    pub(super) fn keep_stores_out(&self, range: PageRange) -> bool {
        if self.span(range).bytes() == 0 {
            return true;
        }
        // So that markers stay. Without one the page is dirty.
        let marked = self.is_asynchronous() || self.dirty_and_armed(range).into_iter().all(|run| self.protect_now(run));
        self.drop_entries(range);
        // Before anything is put in the place of what was taken away: that tells what had been stored to.
        self.settle(range);
        if self.has_poison() {
            self.arm_again(range);
        }
        marked
    }

    /// Whether there may be poison in an armed part: what is zapped then has neither entry nor marker.
    pub(crate) fn has_poison(&self) -> bool {
        self.has_armed_parts() && (self.is_poisoned_past_end() || self.poisoned.load(Ordering::Relaxed))
    }

    /// Takes the entries of pages away that are dirty, or are installed again under the same hold.
    pub(crate) fn drop_entries(&self, range: PageRange) {
        let span = self.span(range);
        if let Err(errno) = self.table.zap(span) {
            panic!("zap of {} bytes at {:?} failed: {errno}", span.bytes(), span.at());
        }
    }
}
