//! Changes: L2 held exclusively, and the one order in which things are made visible.

use nix::errno::Errno;

use super::State;
use super::extents::{Extent, ExtentMap, Run};
use super::window::Window;
use crate::policy::Backing;
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::sync::{Arc, Ordering, RwLockWriteGuard};
use crate::sys::Outcome;
use crate::units::{Addr, BlockIndex, PageIndex, PageRange, PageSize};
use crate::volume::store::Store;

/// What a change has recorded to be done at its commit.
#[derive(Default)]
pub(super) struct Pending {
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
    /// The file's number, for observers.
    pub(super) file: u64,
    pub(super) page: PageSize,
    pub(super) state: RwLockWriteGuard<'a, State>,
    pub(super) pending: Pending,
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
        self.state.ahead.remove(range);
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
        window.mark_dirty_range(range);
    }

    /// Write-protects `range` in `window`, so that the next store to each page is noticed.
    pub(crate) fn protect(&self, window: &Window, range: PageRange) -> Result<Outcome, Errno> {
        window.table.protect(window.addr_of(range.start), self.page.bytes_of(range.pages()))
    }

    /// Poisons a page inside the file, which nobody else can fault on while L2 is held exclusively. It ends with the next
    /// zap.
    pub(crate) fn poison(&self, window: &Window, page: PageIndex, at: Addr, backing: Backing) {
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
        let Change { file, state, mut pending, .. } = self;
        let first = pending.zap.iter().map(|range| range.start).min().unwrap_or(PageIndex(0));
        let block = pending.free.first().map(|run| run.start);
        let tell = |point: Point| store.probe(point, file, first, block);
        tell(Point::Published);
        // Before the lock is dropped: from then on somebody may see that the blocks are gone from here.
        let transit = (!pending.free.is_empty()).then(|| store.transit());
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
        drop(transit);
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
