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
//!          └─ leaves        Window::again, Inode::grace, Store::allocator, Core::numbering, Userfault::templates and ::moves.
//!                           Nothing is taken under a leaf; the allocator is never taken under L2.
//! ```
//!
//! The reader thread only ever tries. A re-point waits for the reader to read its event, so it holds
//! `regions` and nothing below. No lock but L1 is held while a user's buffer is touched.

mod armed;
mod asynchronous;
mod change;
#[cfg(feature = "shuttle")]
mod check;
mod dirty;
pub(crate) mod extents;
mod open;
pub(crate) mod places;
mod preallocation;
mod shown;
pub(crate) mod streams;
mod window;

use nix::errno::Errno;

use crate::blocks::store::Store;
use crate::policy::{Access, Backing, FaultKind, PageState, View};
use crate::sync::{Arc, Held, Ordering, RwLock, RwLockReadGuard, Tally};
use crate::sys::{Filled, Outcome, Protection};
use crate::units::{Addr, PageIndex, PageRange, PageSize};
pub(crate) use change::Change;
use change::Pending;
use extents::Extents;
pub(crate) use places::{Claim, Stretch};
use places::{Known, Places};
use preallocation::Preallocation;
use shown::Shown;
pub(crate) use window::Window;

struct State {
    i_size: u64,
    extents: Extents,
    windows: Shown,
    /// How many of these let stores through to what is present; see [`open`].
    open: usize,
    /// How many of those keep no record of them.
    untracked: usize,
    /// Pages with blocks that nobody has asked for; see [`preallocation`]. All of them are written.
    preallocated: Preallocation,
    /// Ranges of windows that have been punched and could not be armed again yet, and pages that are poisoned for the sake of one
    /// thread; see [`armed`].
    unarmed: Arc<Tally>,
}

/// Size, extents and mappings of one file, under L2.
pub(crate) struct Space {
    /// The file's number, for observers.
    number: u64,
    page: PageSize,
    /// **L2.** Shared by the reader (which only tries) and the workers, over "decide and install";
    /// exclusive by control operations, by a fault that publishes a block, and by unmap, over "publish,
    /// zap, forget". Under it: no I/O, no waiting for another thread, no re-point, no touch of mapped
    /// memory or of a user's buffer, no allocator. Two exceptions wait for a thread that needs
    /// nothing of ours: `resolve::refuse`, some ten milliseconds at most, for one to take its SIGBUS; `Core::give_up`, about a second
    /// at most, for one whose mremap has been read of to run again. Guarded by `tests/races.rs` (rules 1 and 2) and
    /// `tests/deadlocks.rs` (rules 4 and 5).
    state: RwLock<State>,
}

impl Space {
    pub(crate) fn new(store: &Store, number: u64) -> Self {
        let page = store.page;
        let state = State {
            i_size: 0,
            extents: Extents::new(store),
            windows: Shown::default(),
            open: 0,
            untracked: 0,
            preallocated: Preallocation::default(),
            unarmed: Arc::new(Tally::new(0)),
        };
        Self { number, page, state: RwLock::new(state) }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// How L2 is held at this moment. Never waits.
    pub(crate) fn held(&self) -> Held {
        Held::of(&self.state)
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        self.hold(self.state.read(), true)
    }

    /// Only if nobody holds the lock exclusively or waits to: for the reader thread.
    pub(crate) fn try_shared(&self) -> Option<Shared<'_>> {
        self.state.try_read().map(|state| self.hold(state, false))
    }

    fn hold<'a>(&'a self, state: RwLockReadGuard<'a, State>, waits: bool) -> Shared<'a> {
        Shared { page: self.page, state: Some(state), waits }
    }

    pub(crate) fn change(&self) -> Change<'_> {
        Change { file: self.number, state: self.state.write(), pending: Pending::default() }
    }

    /// A guard that guards nothing, for broken rules.
    pub(crate) fn unguarded(&self) -> Shared<'_> {
        Shared { page: self.page, state: None, waits: true }
    }

    /// Zaps without publishing anything: what an invalidation in the wrong order begins with.
    pub(crate) fn zap_too_early(&self, range: PageRange) {
        let state = self.state.write();
        state.windows.over(range).for_each(|window| window.zap(range));
    }
}

/// L2 held shared: look, decide, install.
pub(crate) struct Shared<'a> {
    page: PageSize,
    /// `None` only from [`Space::unguarded`].
    state: Option<RwLockReadGuard<'a, State>>,
    /// Whether its holder may wait for locks, and allocate.
    waits: bool,
}

impl Shared<'_> {
    fn state(&self) -> &State {
        self.state.as_ref().expect("nothing is looked up through a guard that holds nothing")
    }

    pub(crate) fn size(&self) -> u64 {
        self.state().i_size
    }

    pub(crate) fn extents(&self) -> &Extents {
        &self.state().extents
    }

    pub(crate) fn view(&self, page: PageIndex, backing: Backing) -> View {
        let state = self.state();
        let open = state.is_open();
        View { page, eof: self.page.ceil(state.i_size), state: state.extents.state(page), backing, open }
    }

    /// Installs the page's block. `mark` sets the dirty bit first, as a writable entry must have it unless it is the record
    /// itself (see [`asynchronous`]). Also
    /// [`Outcome::Retry`] if that takes somebody who waits.
    pub(crate) fn install(
        &self,
        window: &Window,
        page: PageIndex,
        protection: Protection,
        mark: bool,
    ) -> Result<Outcome, Errno> {
        let protection = window.protection(protection);
        if mark {
            window.mark_writable(PageRange::one(page));
        }
        let Some(before) = window.before_install(PageRange::one(page), protection, self.waits) else {
            return Ok(Outcome::Retry);
        };
        let outcome = window.table.install(window.span(PageRange::one(page)), protection)?;
        if outcome == Outcome::Installed {
            window.after_install(&before, 1);
        }
        Ok(outcome)
    }

    /// Installs the blocks of several pages, which this guard has been asked about one by one or as one extent. `mark`
    /// as above: a page that is not reached, because one before it has an entry, is marked even so.
    pub(crate) fn install_run(
        &self,
        window: &Window,
        pages: PageRange,
        protection: Protection,
        mark: bool,
    ) -> Result<Filled, Errno> {
        let protection = window.protection(protection);
        if mark {
            window.mark_writable(pages);
        }
        let Some(before) = window.before_install(pages, protection, self.waits) else {
            return Ok(Filled::Nothing(Outcome::Retry));
        };
        let filled = window.table.install_run(window.span(pages), protection)?;
        if let Filled::Bytes(bytes) = filled {
            // Of a page that is there in part, too.
            window.after_install(&before, self.page.ceil(bytes).0);
        }
        Ok(filled)
    }

    pub(crate) fn install_zeros(&self, window: &Window, at: Addr) -> Result<Outcome, Errno> {
        window.table.install_zeros(window.span_at(at, Backing::Zeros), Protection::ReadOnly)
    }

    /// Installs a page in its place, of a file with windows, for a fault of that kind: with the bytes that are there, or zeros.
    /// `mark` as above.
    ///
    /// ```text
    /// a store into a hole                               another, of the same page
    ///   L2 shared
    ///   the page is taken: written
    ///                                                     L2 shared
    ///                                                     written; the device has no page yet: COPY makes
    ///                                                     one of zeros, installed
    ///   COPY: there is one. CONTINUE: installed
    /// ```
    pub(crate) fn install_in_place(
        &self,
        window: &Window,
        (page, backing): (PageIndex, Backing),
        kind: FaultKind,
        protection: Protection,
        mark: bool,
    ) -> Result<Outcome, Errno> {
        let protection = window.protection(protection);
        if mark {
            window.mark_writable(PageRange::one(page));
        }
        let span = window.span(PageRange::one(page));
        let zeros = || window.table.make_present(span, protection);
        if window.is_the_kernels_record(page, backing) {
            // What is present the kernel installs, and is the record of it from the beginning to the end: to install it here, write-protected,
            // would wipe out what it knows.
            return zeros();
        }
        let Some(before) = window.before_install(PageRange::one(page), protection, self.waits) else {
            return Ok(Outcome::Retry);
        };
        let there = || window.table.install(span, protection);
        let installed = match kind {
            FaultKind::Missing => match zeros()? {
                Outcome::AlreadyPresent => there(),
                other => Ok(other),
            },
            FaultKind::Minor | FaultKind::WriteProtect => match there() {
                Err(Errno::EFAULT) => zeros(),
                other => other,
            },
        };
        if installed == Ok(Outcome::Installed) {
            window.after_install(&before, 1);
        }
        match installed {
            // There was a page, and there is none: the application takes it away all the time.
            Err(Errno::EFAULT) => Ok(Outcome::Retry),
            Ok(Outcome::AlreadyPresent) if kind == FaultKind::WriteProtect => window.table.unprotect(span),
            other => other,
        }
    }

    /// Installs zeros in a hole, or an unwritten page, of a file with windows: write-protected, and one page for all mappings.
    pub(crate) fn install_zeros_in_place(
        &self,
        window: &Window,
        (page, backing): (PageIndex, Backing),
        kind: FaultKind,
    ) -> Result<Outcome, Errno> {
        let was_there = self.windows().is_none_or(|places| places.note_zeros(page));
        let kind = if was_there { kind } else { FaultKind::Missing };
        self.install_in_place(window, (page, backing), kind, Protection::ReadOnly, false)
    }

    fn windows(&self) -> Option<&Places> {
        self.state.as_ref().and_then(|state| state.extents.windows())
    }

    /// Whether the file says that a page is a hole.
    pub(crate) fn is_hole(&self, page: PageIndex) -> bool {
        self.extents().state(page) == PageState::Hole
    }

    /// Whether loads have left so many zeros in holes of the volume that some are to be taken back first.
    pub(crate) fn has_too_many_zeros(&self, store: &Store, page: PageIndex) -> bool {
        let in_hole = || self.extents().windows().is_some_and(|places| places.known(page) == Known::Hole);
        store.capacity().is_some_and(|capacity| capacity.has_too_many_zeros()) && in_hole()
    }

    /// Takes a page for a store to a hole, or makes an unwritten one written, of a file with windows. To be installed under this
    /// guard, which keeps it what it is.
    ///
    /// A page that a load takes is nobody's still, and taken back as zeros are, as long as stores to it can be kept out.
    pub(crate) fn claim(&self, store: &Store, page: PageIndex, access: Access) -> Claim {
        // Of a guard that guards nothing nothing is known: what was decided is done.
        let Some(places) = self.windows() else { return Claim::Written };
        // What the loser of two has taken is on its way back.
        let _transit = store.transit();
        let is_of_a_load = access == Access::Load && !self.state().is_untracked();
        let claim = places.claim(page, if is_of_a_load { Known::Loaded } else { Known::Written });
        match claim {
            Claim::Taken { .. } => self.state().are_present(PageRange::one(page)),
            Claim::Written => store.has_freed(),
            Claim::NoSpace => {}
        }
        claim
    }

    /// How many pages of `range` are known to have been stored to.
    pub(crate) fn stored_in(&self, range: PageRange) -> u64 {
        self.windows().map_or(0, |places| places.written_in(range))
    }

    /// Takes the holes of `range` ahead of the accesses that are expected there, and installs them write-protected: in an asynchronous
    /// window the kernel lets the first store to each through, and records it. For loads, where the first store is a fault in every mapping,
    /// zeros are left in them. As far as there are pages to spare, and of loads within the budget of zeros; a page that cannot be installed
    /// is so by its first fault. Returns how many have been, and up to which page there is nothing left to take.
    ///
    /// None while some mapping of the file has pages that could not be armed, or that are poisoned for one thread: who makes such a page
    /// present sees to that first ([`Change::make_ready`]).
    ///
    /// ```text
    /// taken ahead: X is a hole                          store to X
    ///   L2 shared
    ///   X is taken                                        L2 shared
    ///                                                     X is written, and the device has none yet: COPY
    ///                                                     makes one of zeros, installed for stores
    ///   COPY: there is one. Goes on behind it
    /// ```
    pub(crate) fn take_ahead(
        &self,
        store: &Store,
        window: &Window,
        range: PageRange,
        backing: Backing,
        access: Access,
    ) -> (u64, PageIndex) {
        let is_free = |state: &State| !state.is_untracked() && state.unarmed.load(Ordering::Relaxed) == 0;
        let Some(places) = self.windows().filter(|_| is_free(self.state())) else {
            return (0, range.start);
        };
        let to = match access {
            Access::Load if self.state().is_open() => Known::Loaded,
            Access::Load => Known::Zeros,
            Access::Store => Known::Ahead,
        };
        // Zeros count beside the capacity: who finds that short is not to wait for them.
        let _transit = (to != Known::Zeros).then(|| store.transit());
        let mut done = 0;
        let (end, gave_back) = places.take_ahead(range, to, |run| {
            self.state().are_present(run);
            let (pages, goes_on) = self.make_present(window, run, backing);
            done += pages;
            goes_on
        });
        if gave_back {
            store.has_freed();
        }
        (done, end)
    }

    /// Makes pages present and installs them, write-protected, as far as nothing is in the way that lasts: how many, and whether that is
    /// all of them, but for those that others have been first with.
    fn make_present(&self, window: &Window, pages: PageRange, backing: Backing) -> (u64, bool) {
        let (mut at, mut done) = (pages.start, 0);
        while at < pages.end {
            let rest = PageRange::new(at, pages.end);
            let is_ours = !window.is_the_kernels_record(at, backing);
            let before = is_ours.then(|| window.before_install(rest, Protection::ReadOnly, self.waits));
            if matches!(before, Some(None)) {
                return (done, false);
            }
            match window.table.make_run_present(window.span(rest), Protection::ReadOnly) {
                Ok(Filled::Bytes(bytes)) => {
                    let pages = self.page.ceil(bytes).0;
                    before.iter().flatten().for_each(|before| window.after_install(before, pages));
                    (at, done) = (at.plus(pages), done + pages);
                }
                // A store to that very page has been first.
                Ok(Filled::Nothing(Outcome::AlreadyPresent)) => at = at.plus(1),
                Ok(Filled::Nothing(Outcome::Retry | Outcome::Gone | Outcome::Installed)) | Err(_) => {
                    return (done, false);
                }
            }
        }
        (done, true)
    }

    pub(crate) fn unprotect(&self, window: &Window, pages: PageRange, mark: bool) -> Result<Outcome, Errno> {
        if mark {
            window.mark_writable(pages);
        }
        window.table.unprotect(window.span(pages))
    }

    /// Poisons the page that `at` lies in.
    pub(crate) fn poison(&self, window: &Window, at: Addr, backing: Backing) -> Result<Outcome, Errno> {
        window.set_poisoned();
        window.table.poison(window.span_at(at, backing))
    }

    /// Poisons a page past the end. What may be in the way there is a write-protect marker that a zap has
    /// left, or the poison of another thread's fault. Nowhere else: clearing a marker makes an
    /// entry writable where there is one.
    pub(crate) fn poison_past_end(&self, window: &Window, at: Addr, backing: Backing) -> Result<Outcome, Errno> {
        window.set_poisoned_past_end();
        window.poison(at, backing)
    }
}
