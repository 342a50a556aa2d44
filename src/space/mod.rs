//! L2: what a file is made of right now, and the two guards through which page tables change.
//!
//! Faults hold it shared ([`Shared`]): they look, and install what they saw. Everything that changes
//! size or extents holds it exclusively ([`Change`]): it publishes, zaps and forgets as one step. It
//! plays the part of the kernel's `mapping->invalidate_lock` (`XFS_MMAPLOCK` in the thread).
//!
//! # Lock order, for the whole crate
//!
//! ```text
//! L1 Inode::change          control calls, exclusively; File::read_at, shared. Never a fault.
//!  └─ Core::regions         faults, shared; map, unmap and re-point, exclusively. The kernel's mmap_lock.
//!      └─ L2 Space::state   faults, shared; whoever publishes, exclusively. The kernel's invalidate_lock.
//!          └─ leaves        Inode::grace, Inode::starved, Store::allocator, Userfault::templates, statistics.
//!                           Nothing is taken under a leaf; the allocator is never taken under L2.
//! ```
//!
//! The reader thread only ever tries. A re-point waits for the reader to read its event, so it holds
//! `regions` and nothing below. No lock but L1 is held while a user's buffer is touched.

pub(crate) mod dirty;
pub(crate) mod extents;

use nix::errno::Errno;

use crate::policy::{Backing, View};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::sync::{Arc, AtomicBool, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::sys::{Outcome, PageTable, Protection};
use crate::units::{Addr, BlockIndex, PageIndex, PageRange, PageSize};
use crate::volume::store::Store;
use dirty::DirtyBits;
use extents::{Extent, ExtentMap, Run};

/// A mapping as the file sees it: where to zap.
pub(crate) struct Window {
    table: Arc<dyn PageTable>,
    base: Addr,
    /// The pages of the file that it shows.
    pages: PageRange,
    page: PageSize,
    /// Pages stored to through this mapping, counted from its start.
    dirty: DirtyBits,
    /// Set when the application has moved a part of the range away: none of it is ours to unmap.
    lost: AtomicBool,
    /// Cleared under L2 held exclusively, before the address range is given back or condemned: whoever
    /// holds L2 shared and finds it set may install.
    alive: AtomicBool,
}

impl Window {
    pub(crate) fn new(table: Arc<dyn PageTable>, base: Addr, pages: PageRange, page: PageSize) -> Result<Self, Errno> {
        let dirty = DirtyBits::new(pages.pages())?;
        Ok(Self { table, base, pages, page, dirty, lost: AtomicBool::new(false), alive: AtomicBool::new(true) })
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
    fn own(&self, range: PageRange) -> PageRange {
        let cut = range.intersect(self.pages);
        let start = cut.start.0.saturating_sub(self.pages.start.0);
        PageRange::at(PageIndex(start), cut.pages())
    }

    pub(crate) fn mark_dirty(&self, page: PageIndex) {
        self.dirty.mark(PageIndex(page.0 - self.pages.start.0));
    }

    /// What to poison for an access at `at`: a base page where zeros are backed, a whole one on the device.
    fn poisoned_range(&self, at: Addr, backing: Backing) -> (Addr, u64) {
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
        self.pages.start.plus(self.dirty.next_marked(own).0)
    }

    /// Takes the entries of `range` away. Always safe: the next access faults.
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
    }
}

struct State {
    i_size: u64,
    extents: ExtentMap,
    windows: Vec<Arc<Window>>,
}

/// Size, extents and mappings of one file, under L2.
pub(crate) struct Space {
    page: PageSize,
    /// **L2.** Shared by the reader (which only tries) and the workers, over "decide and install";
    /// exclusive by control operations, by a fault that publishes a block, and by unmap, over "publish,
    /// zap, forget". Under it: no I/O, no waiting for another thread, no re-point, no touch of mapped
    /// memory or of a user's buffer, no allocator. Guarded by `tests/races.rs` (rules 1 and 2) and
    /// `tests/deadlocks.rs` (rules 4 and 5).
    state: RwLock<State>,
}

impl Space {
    pub(crate) fn new(page: PageSize) -> Self {
        let state = State { i_size: 0, extents: ExtentMap::default(), windows: Vec::new() };
        Self { page, state: RwLock::new(state) }
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        self.hold(self.state.read())
    }

    /// Only if nobody holds the lock exclusively or waits to: for the reader thread.
    pub(crate) fn try_shared(&self) -> Option<Shared<'_>> {
        self.state.try_read().map(|state| self.hold(state))
    }

    fn hold<'a>(&'a self, state: RwLockReadGuard<'a, State>) -> Shared<'a> {
        Shared { page: self.page, state: Some(state) }
    }

    pub(crate) fn change(&self) -> Change<'_> {
        Change { page: self.page, state: self.state.write(), pending: Pending::default() }
    }

    /// A guard that guards nothing, for broken rules.
    pub(crate) fn unguarded(&self) -> Shared<'_> {
        Shared { page: self.page, state: None }
    }

    /// Zaps without publishing anything: what an invalidation in the wrong order begins with.
    pub(crate) fn zap_too_early(&self, range: PageRange) {
        let state = self.state.write();
        state.windows.iter().for_each(|window| window.zap(range));
    }
}

/// L2 held shared: look, decide, install.
pub(crate) struct Shared<'a> {
    page: PageSize,
    /// `None` only from [`Space::unguarded`].
    state: Option<RwLockReadGuard<'a, State>>,
}

impl Shared<'_> {
    fn state(&self) -> &State {
        self.state.as_ref().expect("nothing is looked up through a guard that holds nothing")
    }

    pub(crate) fn size(&self) -> u64 {
        self.state().i_size
    }

    pub(crate) fn extents(&self) -> &ExtentMap {
        &self.state().extents
    }

    pub(crate) fn view(&self, page: PageIndex, backing: Backing) -> View {
        let state = self.state();
        View { page, eof: self.page.ceil(state.i_size), state: state.extents.state(page), backing }
    }

    /// Installs the page's block. `mark` sets the dirty bit first, as a writable entry must have it.
    pub(crate) fn install(
        &self,
        window: &Window,
        page: PageIndex,
        protection: Protection,
        mark: bool,
    ) -> Result<Outcome, Errno> {
        if mark {
            window.mark_dirty(page);
        }
        window.table.install(window.addr_of(page), self.page.bytes(), protection)
    }

    pub(crate) fn install_zeros(&self, window: &Window, at: Addr) -> Result<Outcome, Errno> {
        window.table.install_zeros(at.align_down(window.table.base_page()))
    }

    pub(crate) fn unprotect(&self, window: &Window, page: PageIndex, mark: bool) -> Result<Outcome, Errno> {
        if mark {
            window.mark_dirty(page);
        }
        window.table.unprotect(window.addr_of(page), self.page.bytes())
    }

    /// Poisons the page that `at` lies in.
    pub(crate) fn poison(&self, window: &Window, at: Addr, backing: Backing) -> Result<Outcome, Errno> {
        let (at, bytes) = window.poisoned_range(at, backing);
        window.table.poison(at, bytes)
    }

    /// Poisons a page past the end. What may be in the way there is a write-protect marker that a zap has
    /// left, or the poison of another thread's fault. Nowhere else: clearing a marker makes an
    /// entry writable where there is one.
    pub(crate) fn poison_past_end(&self, window: &Window, at: Addr, backing: Backing) -> Result<Outcome, Errno> {
        let (at, bytes) = window.poisoned_range(at, backing);
        match window.table.poison(at, bytes)? {
            Outcome::AlreadyPresent => window.table.poison_over_marker(at, bytes),
            other => Ok(other),
        }
    }
}

/// What a change has recorded to be done at its commit.
#[derive(Default)]
struct Pending {
    zap: Vec<PageRange>,
    forget: Vec<PageRange>,
    zero: Vec<(BlockIndex, std::ops::Range<u64>)>,
    /// Blocks to copy, from and to, once no store reaches the old ones.
    copy: Vec<(Run, BlockIndex)>,
    free: Vec<Run>,
}

/// L2 held exclusively. Everything recorded here takes effect in [`Change::commit`], in the one
/// order that is safe: publish, zap, forget, zero or copy; unlock; free.
#[must_use = "a change that is not committed leaves entries that nothing stands behind"]
pub(crate) struct Change<'a> {
    page: PageSize,
    state: RwLockWriteGuard<'a, State>,
    pending: Pending,
}

impl Change<'_> {
    pub(crate) fn size(&self) -> u64 {
        self.state.i_size
    }

    pub(crate) fn extents(&self) -> &ExtentMap {
        &self.state.extents
    }

    /// Shrinks or grows the file. The caller zaps.
    pub(crate) fn set_size(&mut self, bytes: u64) {
        self.state.i_size = bytes;
    }

    /// Takes the blocks of `range` away: zapped and forgotten, then freed.
    pub(crate) fn unmap(&mut self, range: PageRange) {
        let gone = self.state.extents.remove(range);
        self.pending.free.extend(gone.iter().map(|extent| extent.run));
        self.zap(range);
        self.pending.forget.push(range);
    }

    /// Puts blocks, or another state, under `extent`'s pages. Blocks that go by this stay the caller's.
    pub(crate) fn put(&mut self, extent: Extent) -> Vec<Extent> {
        self.state.extents.replace(extent)
    }

    /// Moves an extent's bytes to other blocks: zapped, copied, then the old ones freed.
    pub(crate) fn relocate(&mut self, old: Extent, to: BlockIndex) {
        let run = Run { start: to, blocks: old.run.blocks };
        self.state.extents.replace(Extent { run, ..old });
        if old.written {
            self.pending.copy.push((old.run, to));
        }
        self.zap(old.range());
        self.pending.free.push(old.run);
    }

    /// Takes the entries of `range` away from every mapping.
    pub(crate) fn zap(&mut self, range: PageRange) {
        if !range.is_empty() {
            self.pending.zap.push(range);
        }
    }

    /// Zeroes a part of a written page once it is zapped, so that no store slips in behind.
    pub(crate) fn zero(&mut self, block: BlockIndex, part: std::ops::Range<u64>) {
        if !part.is_empty() {
            self.pending.zero.push((block, part));
        }
    }

    pub(crate) fn add_window(&mut self, window: Arc<Window>) {
        self.state.windows.push(window);
    }

    /// No install reaches the window any more once this is committed.
    pub(crate) fn remove_window(&mut self, window: &Arc<Window>) {
        window.alive.store(false, Ordering::Relaxed);
        self.state.windows.retain(|other| !Arc::ptr_eq(other, window));
    }

    /// Pages of `range` marked dirty in `window`, as ranges of the file. They stay marked.
    pub(crate) fn marked(&self, window: &Window, range: PageRange) -> Vec<PageRange> {
        let first = window.pages.start;
        let runs = window.dirty.marked(window.own(range));
        runs.iter().map(|run| PageRange::at(first.plus(run.start.0), run.pages())).collect()
    }

    pub(crate) fn forget_in(&self, window: &Window, range: PageRange) {
        window.dirty.forget(window.own(range));
    }

    pub(crate) fn mark_in(&self, window: &Window, range: PageRange) {
        range.iter().for_each(|page| window.mark_dirty(page));
    }

    /// Write-protects `range` in `window`, so that the next store to each page is noticed.
    pub(crate) fn protect(&self, window: &Window, range: PageRange) -> Result<Outcome, Errno> {
        window.table.protect(window.addr_of(range.start), self.page.bytes_of(range.pages()))
    }

    /// Poisons a page inside the file, which nobody else can fault on while L2 is held exclusively. The
    /// caller zaps it again as soon as the thread it is meant for has run.
    pub(crate) fn poison_for_a_moment(&self, window: &Window, page: PageIndex, at: Addr, backing: Backing) {
        window.zap(PageRange::one(page));
        let (at, bytes) = window.poisoned_range(at, backing);
        if let Ok(Outcome::AlreadyPresent) = window.table.poison(at, bytes) {
            let _ = window.table.poison_over_marker(at, bytes);
        }
    }

    /// Publishes, zaps, forgets, and zeroes or copies, as one step, then frees what was taken away.
    ///
    /// ```text
    /// invalidation                                fault
    ///   L2 exclusive
    ///     publish size and extents
    ///     zap                                       L2 shared (waits)
    ///   unlock
    ///                                               sees the new extents: installs those
    ///   free the blocks
    /// ```
    ///
    /// Zapped first, a fault between zap and publish would install the old block again; freed first,
    /// another file would have the block while an entry still reaches it (rule 2).
    pub(crate) fn commit(self, store: &Store) {
        let Change { state, mut pending, .. } = self;
        let first = pending.zap.iter().map(|range| range.start).min().unwrap_or(PageIndex(0));
        let block = pending.free.first().map(|run| run.start);
        let tell = |point: Point| store.probe(point, first, block);
        tell(Point::Published);
        if store.broken(Rule::ZapBeforeFree) {
            store.free(&std::mem::take(&mut pending.free));
            tell(Point::Freed);
        }
        if store.broken(Rule::InvalidateUnderLock) {
            let windows = state.windows.clone();
            drop(state);
            tell(Point::Published);
            pending.apply(&windows, store);
        } else {
            if !store.broken(Rule::PublishBeforeZap) {
                pending.apply(&state.windows, store);
            }
            // Handed over to whoever waits: a fault that competes with a loop of punches gets its turn.
            RwLockWriteGuard::unlock_fair(state);
        }
        tell(Point::Invalidated);
        store.free(&pending.free);
        tell(Point::Freed);
    }
}

impl Pending {
    /// Everything but the freeing.
    fn apply(&self, windows: &[Arc<Window>], store: &Store) {
        for window in windows {
            self.zap.iter().for_each(|range| window.zap(*range));
            for range in &self.forget {
                window.dirty.forget(window.own(*range));
            }
        }
        for (block, part) in &self.zero {
            store.zero(*block, part.clone());
        }
        for (from, to) in &self.copy {
            store.copy(*from, *to);
        }
    }
}
