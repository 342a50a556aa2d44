//! Changes: L2 held exclusively, and the one order in which things are made visible.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use nix::errno::Errno;

use super::State;
use super::extents::{Extent, Extents};
use super::places::{Known, Stretch};
use super::shown::Shown;
use super::window::Window;
use crate::blocks::Run;
use crate::blocks::store::Store;
use crate::error::{Error, Result};
use crate::policy::{Backing, PageState};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::sync::{Arc, Ordering, RwLockWriteGuard};
use crate::sys::Outcome;
use crate::units::{Addr, BlockIndex, PageIndex, PageRange};

/// What a change has recorded to be done at its commit.
#[derive(Default)]
pub(super) struct Pending {
    zap: Vec<PageRange>,
    forget: Vec<PageRange>,
    zero: Vec<(PageIndex, BlockIndex, std::ops::Range<u64>)>,
    /// Blocks to copy, from and to, once no store reaches the old ones.
    copy: Vec<(Extent, BlockIndex)>,
    /// Pages of a file with windows to take out of the device, and where they lie.
    punch: Vec<(PageRange, Vec<Run>)>,
    free: Vec<Run>,
    /// Windows that nothing shows any more.
    places: Vec<Run>,
}

/// L2 held exclusively. Everything recorded here takes effect in [`Change::commit`], in the one
/// order that is safe: publish, zap, forget, zero or copy; unlock; free.
#[must_use = "a change that is not committed leaves entries that nothing stands behind"]
pub(crate) struct Change<'a> {
    /// The file's number, for observers.
    pub(super) file: u64,
    pub(super) state: RwLockWriteGuard<'a, State>,
    pub(super) pending: Pending,
}

impl Change<'_> {
    pub(crate) fn size(&self) -> u64 {
        self.state.i_size
    }

    pub(crate) fn extents(&self) -> &Extents {
        &self.state.extents
    }

    /// Shrinks or grows the file. The caller zaps.
    pub(crate) fn set_size(&mut self, bytes: u64) {
        self.state.i_size = bytes;
    }

    /// Takes the blocks of `range` away: zapped and forgotten, then freed.
    pub(crate) fn unmap(&mut self, range: PageRange) {
        let gone = self.take_out(range);
        self.state.preallocated.remove(range);
        self.pending.free.extend(gone.iter().map(|extent| extent.run));
        self.pending.forget.push(range);
    }

    /// The same for pages of zeros that nobody has asked for. Of single blocks they were marked dirty when they were installed, stored to or
    /// not. With windows only those are that have been stored to, and stay so: they may have shown other bytes since they were asked about.
    pub(super) fn give_back(&mut self, range: PageRange) {
        if self.state.extents.windows().is_none() {
            return self.unmap(range);
        }
        let gone = self.take_out(range);
        self.pending.free.extend(gone.iter().map(|extent| extent.run));
    }

    /// Takes `range` out of the file and of every mapping; of a file with windows, out of the device, which takes the entries with it. The
    /// extents that were there stay the caller's.
    fn take_out(&mut self, range: PageRange) -> Vec<Extent> {
        let (gone, there) = self.state.extents.take_out(range);
        if self.state.extents.windows().is_none() {
            self.zap(range);
        } else if !there.is_empty() {
            // Where no page is, no entry is either.
            self.pending.punch.push((range, there));
        }
        gone
    }

    /// Takes all blocks of the file away, and it gets no others: nobody has it any more, and all of it is past its end.
    pub(crate) fn evict(&mut self) {
        self.set_size(0);
        self.unmap(PageRange::from(PageIndex(0)));
        if let Some(places) = self.state.extents.windows_mut() {
            self.pending.places = places.take_all();
        }
    }

    /// Gives the file a window. It comes back if another has been there first.
    pub(crate) fn add_stretch(&mut self, stretch: Stretch) -> Option<Stretch> {
        match self.state.extents.windows_mut() {
            Some(places) => places.add(stretch),
            None => Some(stretch),
        }
    }

    /// Makes pages unwritten that were written: they read as zeros from now on, and keep their blocks.
    pub(crate) fn unwrite(&mut self, extent: Extent) {
        self.take_out(extent.range());
        self.put(Extent { written: false, ..extent });
    }

    /// Takes back the zeros that loads have left in `zeros`, as far as they are still there, or `blindly` what is there.
    ///
    /// ```text
    /// zeros are taken back                              a store to one of them
    ///   L2 shared: X is zeros
    ///   unlock
    ///                                                     L2 shared: X is taken, written
    ///                                                     unprotected: the store lands
    ///   L2 exclusive: X is written: stays
    /// ```
    pub(crate) fn take_zeros_back(&mut self, zeros: PageRange, blindly: bool) {
        if blindly {
            return self.unmap(zeros);
        }
        let mut at = zeros.start;
        loop {
            let rest = PageRange::new(at, zeros.end);
            let next = self.state.extents.windows().and_then(|places| places.first_zeros(rest, rest.pages()));
            let Some(run) = next else { return };
            self.take_out(run);
            at = run.end;
        }
    }

    /// Pages have got blocks with bytes, or written ones: what showed zeros there goes. Of a file with windows it shows the very page.
    pub(crate) fn zap_zeros(&mut self, range: PageRange) {
        if self.state.extents.windows().is_none() {
            self.zap(range);
        }
    }

    /// Puts blocks, or another state, under `extent`'s pages. Blocks that go by this stay the caller's.
    pub(crate) fn put(&mut self, extent: Extent) -> Vec<Extent> {
        if extent.written {
            self.state.are_present(extent.range());
        }
        self.state.extents.replace(extent)
    }

    /// Moves an extent's bytes to other blocks: zapped, copied, then the old ones freed.
    pub(crate) fn relocate(&mut self, old: Extent, to: BlockIndex) {
        let run = Run { start: to, blocks: old.run.blocks };
        self.state.extents.replace(Extent { run, ..old });
        if old.written {
            self.pending.copy.push((old, to));
        }
        self.zap(old.range());
        self.pending.free.push(old.run);
    }

    /// Takes the entries of `range` away from every mapping.
    pub(crate) fn zap(&mut self, range: PageRange) {
        match self.pending.zap.last_mut() {
            _ if range.is_empty() => {}
            // Page after page of a write: one call for all.
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.pending.zap.push(range),
        }
    }

    /// Takes a page out of every mapping now: until the change is committed nobody stores there by an instruction. Where the kernel installs
    /// it by itself it is protected. `false` if that is refused for the moment.
    pub(crate) fn keep_out_of(&self, page: PageIndex) -> bool {
        self.state.windows.over(PageRange::one(page)).all(|window| window.keep_stores_out(PageRange::one(page)))
    }

    /// Zeroes a part of a written page once it is zapped, so that no store slips in behind.
    pub(crate) fn zero(&mut self, page: PageIndex, block: BlockIndex, part: std::ops::Range<u64>) {
        if !part.is_empty() {
            self.pending.zero.push((page, block, part));
        }
    }

    /// No install reaches the window any more once this is committed, and no thread resolves a fault of it by itself.
    pub(crate) fn remove_window(&mut self, window: &Arc<Window>) {
        window.alive.store(false, Ordering::Relaxed);
        if self.state.windows.remove(window) && window.lets_stores_through() {
            self.state.open = self.state.open.saturating_sub(1);
            self.state.untracked = self.state.untracked.saturating_sub(usize::from(window.is_open()));
        }
        window.table.unwatch(window.base());
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
        window.table.protect(window.span(range))
    }

    /// Poisons a page inside the file, which nobody else can fault on while L2 is held exclusively. It ends with the next
    /// zap.
    pub(crate) fn poison(&self, window: &Window, page: PageIndex, at: Addr, backing: Backing) {
        window.zap(PageRange::one(page));
        window.set_poisoned();
        let armed = window.is_armed(page);
        if armed && self.state.extents.state(page) != PageState::Hole {
            // The kernel may put an entry there between marker and poison, and make it writable: to be counted as stored to.
            window.mark_dirty(page);
        }
        if window.poison(at, backing) != Ok(Outcome::Installed) && armed {
            window.arm_again(PageRange::one(page));
        }
    }

    /// Whether the device may have a page of a file with windows.
    fn may_be_there(&self, page: PageIndex) -> bool {
        self.state.extents.windows().is_some_and(|places| places.known(page) != Known::Hole)
    }

    /// A page that the file does not know of is taken out of the device, with the entries that there may be.
    pub(crate) fn take_from_device(&mut self, page: PageIndex, place: Run) {
        self.pending.punch.push((PageRange::one(page), vec![place]));
    }

    /// The zeros that a load has left in a page go at once.
    fn take_zeros_out(&mut self, store: &Store, page: PageIndex) {
        if self.state.extents.windows().is_none_or(|places| places.known(page) != Known::Zeros) {
            return;
        }
        let one = PageRange::one(page);
        let (_, there) = self.state.extents.take_out(one);
        self.state.windows.over(one).for_each(|window| window.goes_with_the_page(one));
        there.into_iter().for_each(|run| store.punch(run));
        self.state.windows.over(one).for_each(|window| window.settle_punched(one));
        self.state.windows.over(one).for_each(|window| window.arm_again(one));
    }

    /// Poisons a hole for the sake of one thread. The zeros that a load may have left there go first: from then on it is absent, and the
    /// kernel installs nothing there by itself.
    pub(crate) fn poison_for_one(
        &mut self,
        store: &Store,
        window: &Window,
        page: PageIndex,
        at: Addr,
        backing: Backing,
    ) {
        self.take_zeros_out(store, page);
        window.poisoned_for_one.lock().push(page);
        self.state.unarmed.fetch_add(1, Ordering::Relaxed);
        self.poison(window, page, at, backing);
    }

    /// Takes that away, if nobody has yet. `false` if the kernel refuses for the moment.
    pub(crate) fn lift_poison(&self, window: &Window, page: PageIndex) -> bool {
        let times = window.poisoned_for_one.lock().iter().filter(|poisoned| **poisoned == page).count();
        if times == 0 {
            return true;
        }
        if window.is_alive() && !window.lift_poison(page, self.may_be_there(page)) {
            return false;
        }
        window.poisoned_for_one.lock().retain(|poisoned| *poisoned != page);
        self.state.unarmed.fetch_sub(times as u64, Ordering::Relaxed);
        true
    }

    /// Pages of a file with windows are about to have bytes: where one is poisoned that is over. Of single blocks a zap sees to that when
    /// they are there.
    pub(super) fn lift_poison_before_bytes(&self, range: PageRange) -> bool {
        if self.state.extents.windows().is_none() || self.state.unarmed.load(Ordering::Relaxed) == 0 {
            return true;
        }
        self.state.windows.over(range).all(|window| {
            let poisoned = window.poisoned_for_one.lock().clone();
            poisoned.iter().filter(|page| range.contains(**page)).all(|page| self.lift_poison(window, *page))
        })
    }

    /// Pages past the end are about to be present: where they are poisoned, the poison goes while they are not.
    pub(crate) fn lift_poison_past_end(&self, range: PageRange) {
        let poisoned = self.state.windows.over(range).filter(|window| window.is_poisoned_past_end());
        poisoned.for_each(|window| window.zap(range));
    }

    /// [`Change::try_commit`] of a change in which nothing is zeroed or copied: so nothing can fail.
    pub(crate) fn commit(self, store: &Store) {
        debug_assert!(
            self.pending.zero.is_empty() && self.pending.copy.is_empty(),
            "what can fail is committed as such"
        );
        let _ = self.try_commit(store);
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
    /// another file would have the block while an entry still reaches it (rule 2). An observer that panics is heard to its
    /// end when all of this is done.
    ///
    /// # Errors
    /// The device has refused to zero or copy something: the first refusal. All else is done. A block that could not be copied
    /// stays where it was. A page that is lost stays lost. One whose bytes are there and could not be zeroed in
    /// part is a hole now.
    pub(crate) fn try_commit(self, store: &Store) -> Result<()> {
        let Change { file, mut state, mut pending, .. } = self;
        let places = std::mem::take(&mut pending.places);
        let ranges = pending.zap.iter().chain(pending.punch.iter().map(|(range, _)| range));
        let first = ranges.map(|range| range.start).min().unwrap_or(PageIndex(0));
        let block = pending.free.first().map(|run| run.start);
        let mut told = Told::default();
        let mut tell = |point: Point| told.catch(|| store.probe(point, file, first, block));
        tell(Point::Published);
        // Before the lock is dropped: from then on somebody may see that the blocks are gone from here.
        let transit = (!pending.free.is_empty() || !pending.zero.is_empty()).then(|| store.transit());
        if store.broken(Rule::ZapBeforeFree) {
            store.free(&std::mem::take(&mut pending.free));
            tell(Point::Freed);
        }
        let mut done = Ok(());
        if store.broken(Rule::InvalidateUnderLock) {
            let windows = state.windows.clone();
            drop(state);
            tell(Point::Published);
            pending.invalidate(&windows, store);
            let _ = pending.zero.iter().try_for_each(|(_, block, part)| store.zero(*block, part.clone()));
            let _ = pending.copy.iter().try_for_each(|(from, to)| store.copy(from.run, *to));
        } else {
            if !store.broken(Rule::PublishBeforeZap) {
                pending.invalidate(&state.windows, store);
                done = pending.fill(&mut state, store);
            }
            // Handed over to whoever waits: a fault that competes with a loop of punches gets its turn.
            RwLockWriteGuard::unlock_fair(state);
        }
        tell(Point::Invalidated);
        store.free(&pending.free);
        if let Some(capacity) = store.capacity() {
            places.into_iter().for_each(|run| {
                // What the file did not know of: huge folios that the system gives by now, which make pages present that nobody has written.
                if store.is_present_anywhere(run) {
                    store.punch(run);
                }
                capacity.give_places(run);
            });
        }
        drop(transit);
        tell(Point::Freed);
        told.resume();
        done
    }
}

/// What observers have panicked with. It is thrown on when nothing is left half done.
#[derive(Default)]
struct Told(Option<Box<dyn Any + Send>>);

impl Told {
    fn catch(&mut self, tell: impl FnOnce()) {
        // A schedule checker ends threads by unwinding them.
        if cfg!(feature = "shuttle") {
            return tell();
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(tell)) {
            self.0.get_or_insert(panic);
        }
    }

    fn resume(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}

impl Pending {
    /// Zaps, punches and forgets. What a punch takes out of the device, the kernel takes out of every page table in the same step.
    fn invalidate(&self, windows: &Shown, store: &Store) {
        self.zap.iter().for_each(|range| windows.over(*range).for_each(|window| window.zap(*range)));
        for (range, _) in &self.punch {
            windows.over(*range).for_each(|window| window.goes_with_the_page(*range));
        }
        self.punch.iter().flat_map(|(_, runs)| runs).for_each(|run| store.punch(*run));
        for (range, _) in &self.punch {
            windows.over(*range).for_each(|window| window.settle_punched(*range));
            if !store.broken(Rule::ArmWhatIsPunched) {
                windows.over(*range).for_each(|window| window.arm_again(*range));
            }
        }
        for range in &self.forget {
            windows.over(*range).for_each(|window| window.dirty.forget(window.own(*range)));
        }
    }

    /// Zeroes and copies, and puts right what has been published where that fails.
    fn fill(&mut self, state: &mut State, store: &Store) -> Result<()> {
        let mut done = Ok(());
        for (page, block, part) in std::mem::take(&mut self.zero) {
            let zeroed = store.zero(block, part);
            if matches!(zeroed, Err(Error::DeviceLost { .. }) | Ok(())) {
                // Lost: nothing of it can be seen, now or later.
                done = done.and(zeroed);
                continue;
            }
            // What should read as zeros would be seen again.
            let gone = PageRange::one(page);
            let (blocks, there) = state.extents.take_out(gone);
            there.into_iter().for_each(|run| store.punch(run));
            self.free.extend(blocks.iter().map(|extent| extent.run));
            for window in state.windows.over(gone) {
                window.zap(gone);
                window.settle_punched(gone);
                window.arm_again(gone);
                window.dirty.forget(window.own(gone));
            }
            done = done.and(zeroed);
        }
        for (old, to) in std::mem::take(&mut self.copy) {
            let copied = store.copy(old.run, to);
            if copied.is_err() {
                // Zapped as it is, and not freed yet: nobody has seen it elsewhere.
                state.extents.replace(old);
                let new = Run { start: to, blocks: old.run.blocks };
                self.free.iter_mut().filter(|run| **run == old.run).for_each(|run| *run = new);
            }
            done = done.and(copied);
        }
        done
    }
}
