//! Fault-around: how many of the pages behind a fault its answer is for as well.
//!
//! The answer is an install, or an unprotect, of a block: `Written`, before the end, under an address that points at it.
//! All of that holds for the next page too if it lies in the same extent, before the end, and in the same piece of
//! the mapping's layout: one look at three borders is the same decision for each page. It is made, and
//! acted upon, under the one hold of L2 that the fault itself is decided under, so a truncate or a punch comes
//! before all of it or after all of it.

use nix::errno::Errno;

use super::refuse::refilled;
use crate::address::advised::Pattern;
use crate::address::core::Core;
use crate::address::regions::Region;
use crate::inode::Inode;
use crate::options::{Resolve, Tracking};
use crate::policy::{Access, Backing, Decision, Fault, FaultKind, View, decide};
use crate::space::streams::Place;
use crate::space::{Shared, Window};
use crate::sync::Ordering;
use crate::sys::{Filled, Outcome, Protection, RawFault, Tid};
use crate::units::{PageIndex, PageRange};

/// The pages that one answer is for, the one that has faulted first.
#[derive(Clone, Copy)]
pub(super) struct Reach {
    pub(super) pages: PageRange,
    /// Around a hole that is taken: the pages of which the holes are taken ahead. None of them is installed for the fault.
    ahead: PageRange,
    /// Where the fault belongs among the streams; none for one that is none of theirs.
    place: Option<Place>,
}

impl Reach {
    /// One page, whatever there was before.
    pub(super) fn one(page: PageIndex) -> Self {
        Self { pages: PageRange::one(page), ahead: PageRange::at(page, 0), place: None }
    }

    /// How many pages there are up to the end of what is taken ahead.
    fn behind(&self) -> u64 {
        if self.ahead.is_empty() { 0 } else { self.ahead.end.0.saturating_sub(self.pages.start.0 + 1) }
    }

    /// A load of a hole is answered, if it has been.
    pub(super) fn holes_answered(&self, window: &Window, installed: &Result<Outcome, Errno>) {
        if *installed == Ok(Outcome::Installed) {
            self.answered(window, 1 + self.behind());
        }
    }

    /// The fault is answered, with so many pages: the next of its stream is expected behind them, or behind
    /// the entry that was in the way.
    pub(super) fn answered(&self, window: &Window, pages: u64) {
        if let Some(place) = self.place {
            window.streams.expect(place, self.pages.start.plus(pages));
        }
    }
}

/// How far the answer to a fault reaches, under the guard that it was decided under.
pub(super) fn reach(region: &Region, shared: &Shared<'_>, view: &View, decision: Decision, raw: &RawFault) -> Reach {
    let page = view.page;
    let window = &*region.window;
    let largest = window.largest_run();
    let in_place = matches!(view.backing, Backing::Own(_) | Backing::Armed(_));
    let takes_holes = match decision {
        Decision::InstallZeros => in_place && shared.is_hole(page),
        Decision::Take => window.is_asynchronous(),
        _ => false,
    };
    if largest > 1 && takes_holes {
        return reach_of_holes(region, shared, view, raw);
    }
    if largest == 1 || !takes_neighbours(window, decision) || window.is_the_kernels_record(page, view.backing) {
        return Reach::one(page);
    }
    let (wanted, place) = worth(region, page, raw.tid, largest);
    let pages = if wanted == 1 { PageRange::one(page) } else { alike(region, shared, view, wanted) };
    debug_assert!(pages.iter().skip(1).all(|next| is_alike(region, shared, decision, next)));
    Reach { pages, place, ..Reach::one(page) }
}

/// How far it is worth to take holes ahead: behind a fault of a stream; and where the kernel takes the stores to them by itself, all
/// around one where so much has been stored to already that the rest is likely to be.
fn reach_of_holes(region: &Region, shared: &Shared<'_>, view: &View, raw: &RawFault) -> Reach {
    let (page, window) = (view.page, &*region.window);
    if region.advised.at(page) == Some(Pattern::Random) {
        return Reach::one(page);
    }
    let (wanted, place) = worth(region, page, raw.tid, window.largest_run());
    let chunk = window.chunk_of(page);
    let is_dense = || raw.access == Access::Store && shared.stored_in(chunk) >= dense(window);
    let ahead = match wanted {
        1 if is_dense() => chunk,
        wanted => PageRange::at(page.plus(1), wanted - 1),
    };
    let eof = region.inode.page().ceil(shared.size());
    let ahead = ahead.intersect(region.layout.piece(page)).intersect(window.pages());
    Reach { pages: PageRange::one(page), ahead: ahead.intersect(PageRange::new(PageIndex(0), eof)), place }
}

/// How many pages of a chunk have been stored to when the rest is taken ahead. Of stores to one page in 64, in any order, eight reach a
/// chunk, and then it would be for nothing. A hand-over costs more than some pages do that are given back later.
fn dense(window: &Window) -> u64 {
    match (cfg!(feature = "shuttle"), window.options.resolve) {
        (true, _) => 1,
        (false, Resolve::PagerThread) => 10,
        (false, Resolve::FaultingThread) => 24,
    }
}

/// What is to be armed before a load of a page is answered that is present in its place, and belongs to no stream.
pub(super) fn to_be_armed(
    region: &Region,
    view: &View,
    kind: FaultKind,
    decision: Decision,
    tid: Tid,
) -> Option<(PageRange, Backing)> {
    let (window, page) = (&*region.window, view.page);
    // Of a fault in a signal handler the kind is not known, but what the file says is.
    let is_load_of_what_is_there = kind == FaultKind::Minor && decision == Decision::InstallReadOnly;
    let is_told = match view.backing {
        Backing::Own(_) => true,
        Backing::Armed(_) => !window.is_armed(page),
        Backing::Zeros | Backing::Block(_) | Backing::Open(_) => false,
    };
    if !is_load_of_what_is_there || !window.may_be_armed() || !is_told {
        return None;
    }
    let largest = window.largest_run();
    let advised = region.advised.at(page);
    let is_stream = match advised {
        Some(Pattern::Random) => false,
        Some(Pattern::Sequential) => true,
        // The first page of many, perhaps.
        None => largest > 1 && (window.begins_a_chunk(page) || window.streams.find(tid, page, largest).pages() > 1),
    };
    if is_stream {
        return None;
    }
    let range = window.to_be_armed(page, region.layout.piece(page), advised == Some(Pattern::Random))?;
    Some((range, region.layout.to_be_armed(range.start)?))
}

/// How many pages a fault is worth: what has been advised, or what the faults before it suggest.
fn worth(region: &Region, page: PageIndex, tid: Tid, largest: u64) -> (u64, Option<Place>) {
    match region.advised.at(page) {
        Some(Pattern::Random) => (1, None),
        Some(Pattern::Sequential) => (to_border(page, 1 << largest.ilog2()), None),
        None => {
            let place = region.window.streams.find(tid, page, largest);
            (to_border(page, place.pages()), Some(place))
        }
    }
}

/// How many pages there are from `page` to the next multiple of `pages`, which is a power of two: windows are aligned, so that
/// streams which began at different pages meet at borders.
fn to_border(page: PageIndex, pages: u64) -> u64 {
    pages - (page.0 & (pages - 1))
}

/// Whether the pages behind may be answered too. A page that is writable is not noticed when it is stored to: under
/// exact tracking a store is for its own page alone, and under asynchronous tracking its neighbours are write-protected.
fn takes_neighbours(window: &Window, decision: Decision) -> bool {
    match (decision, window.options.tracking) {
        (Decision::InstallReadOnly, _) => true,
        (Decision::InstallWritable | Decision::Unprotect, Tracking::Coarse | Tracking::Off) => true,
        (Decision::InstallWritable, Tracking::Asynchronous) => true,
        (Decision::Unprotect, Tracking::Asynchronous) => false,
        (Decision::InstallWritable | Decision::Unprotect, Tracking::Exact) => false,
        (Decision::Sigbus | Decision::InstallZeros | Decision::Take | Decision::Retry, _) => false,
        (Decision::Repoint(_) | Decision::Allocate | Decision::Convert(_), _) => false,
    }
}

/// From the page of `view`, which is written and points at its block, the pages of which the same is true, `wanted` at most.
pub(super) fn alike(region: &Region, shared: &Shared<'_>, view: &View, wanted: u64) -> PageRange {
    let far = view.page.plus(wanted);
    let Some(extent) = shared.extents().run_from(view.page, far) else { return PageRange::one(view.page) };
    // The size is asked of this guard, even where a broken rule has a view of another.
    let eof = region.inode.page().ceil(shared.size());
    let end = extent.range().end.min(eof).min(region.layout.piece(view.page).end);
    PageRange::at(view.page, wanted).intersect(region.window.pages()).intersect(PageRange::new(view.page, end))
}

/// The pages that a store to `page`, which has no block or an unwritten one, prepares: under coarse tracking as many as
/// will be installed.
pub(super) fn reach_of_store(region: &Region, shared: &Shared<'_>, page: PageIndex, tid: Option<Tid>) -> PageRange {
    let window = &*region.window;
    let largest = window.largest_run();
    let takes_ahead = matches!(window.options.tracking, Tracking::Coarse | Tracking::Off);
    let Some(tid) = tid.filter(|_| takes_ahead) else { return PageRange::one(page) };
    if largest == 1 {
        return PageRange::one(page);
    }
    let (wanted, _) = worth(region, page, tid, largest);
    let far = page.plus(wanted);
    let same = match shared.extents().run_from(page, far) {
        Some(unwritten) => unwritten.range(),
        None => shared.extents().hole_from(page, far),
    };
    let eof = region.inode.page().ceil(shared.size());
    same.intersect(window.pages()).intersect(PageRange::new(page, eof))
}

/// What [`alike`] is to be sure of, asked the long way.
fn is_alike(region: &Region, shared: &Shared<'_>, decision: Decision, page: PageIndex) -> bool {
    let view = shared.view(page, region.layout.backing(page));
    let fault = match decision {
        Decision::InstallWritable => Fault { access: Access::Store, kind: FaultKind::Minor },
        Decision::Unprotect => Fault { access: Access::Store, kind: FaultKind::WriteProtect },
        _ => Fault { access: Access::Load, kind: FaultKind::Minor },
    };
    decide(fault, &view) == decision
}

/// What was decided, and of what.
pub(super) struct Answer<'a> {
    pub(super) window: &'a Window,
    pub(super) inode: &'a Inode,
    pub(super) view: View,
    pub(super) kind: FaultKind,
    pub(super) decision: Decision,
    pub(super) reach: Reach,
}

impl Answer<'_> {
    /// Takes holes around the page that has faulted, whose thread still waits: it finds them there. How far the answer reaches with that.
    pub(super) fn take_ahead(&self, core: &Core, shared: &Shared<'_>, access: Access) -> Reach {
        let Answer { window, inode, ref view, reach, .. } = *self;
        if reach.ahead.is_empty() {
            return reach;
        }
        let (taken, end) = shared.take_ahead(&inode.store, window, reach.ahead, view.backing, access);
        core.stats.ahead.fetch_add(taken, Ordering::Relaxed);
        Reach { ahead: PageRange::new(reach.ahead.start, end), ..reach }
    }

    /// Installs the page that has faulted, and those behind it that the answer reaches. What is in the way of those is no
    /// business of the fault's: it is answered if its own page is.
    pub(super) fn install(
        &self,
        core: &Core,
        shared: &Shared<'_>,
        protection: Protection,
        mark: bool,
    ) -> Result<Outcome, Errno> {
        let (window, pages) = (self.window, self.reach.pages);
        if protection == Protection::Writable && window.is_asynchronous() {
            return self.install_for_store(core, shared, mark);
        }
        if pages.pages() > 1 {
            match shared.install_run(window, pages, protection, mark) {
                Ok(Filled::Bytes(bytes)) => {
                    let done = self.counted(core, bytes);
                    self.reach.answered(window, done);
                    return Ok(Outcome::Installed);
                }
                // These are of the page itself.
                Ok(Filled::Nothing(outcome @ (Outcome::AlreadyPresent | Outcome::Retry))) => return Ok(outcome),
                // This may be of a neighbour: the application has unmapped it, or the kernel has an address range of its own there.
                Ok(Filled::Nothing(Outcome::Gone | Outcome::Installed)) | Err(_) => {}
            }
        }
        self.install_own(core, shared, protection, mark, 0)
    }

    /// Installs the page that has faulted; so many behind it have been.
    fn install_own(
        &self,
        core: &Core,
        shared: &Shared<'_>,
        protection: Protection,
        mark: bool,
        behind: u64,
    ) -> Result<Outcome, Errno> {
        let page = self.reach.pages.start;
        if let Backing::Own(_) | Backing::Armed(_) | Backing::Open(_) = self.view.backing {
            let place = (page, self.view.backing);
            let outcome = shared.install_in_place(self.window, place, self.kind, protection, mark)?;
            return Ok(self.installed_own(core, outcome, behind));
        }
        let mut installed = shared.install(self.window, page, protection, mark);
        if installed == Err(Errno::EFAULT) && refilled(core, self.inode, &self.view) {
            installed = shared.install(self.window, page, protection, mark);
        }
        Ok(self.installed_own(core, installed?, behind))
    }

    fn installed_own(&self, core: &Core, outcome: Outcome, behind: u64) -> Outcome {
        if outcome == Outcome::Installed {
            core.stats.add(&core.stats.installs);
            self.reach.answered(self.window, 1 + behind.max(self.reach.behind()));
        }
        outcome
    }

    /// The pages of a run that has been installed, counted.
    fn counted(&self, core: &Core, bytes: u64) -> u64 {
        let done = self.inode.page().pages_in(bytes);
        core.stats.installs.fetch_add(done, Ordering::Relaxed);
        done
    }

    /// Installs the page that has faulted for its store, and those behind it write-protected: the kernel lets the first
    /// store to each through, and that costs a fraction of a fault. They go first: the thread runs on when its own page is there.
    fn install_for_store(&self, core: &Core, shared: &Shared<'_>, mark: bool) -> Result<Outcome, Errno> {
        let behind = PageRange::new(self.reach.pages.start.plus(1), self.reach.pages.end);
        let mut done = 0;
        if !behind.is_empty() {
            match shared.install_run(self.window, behind, Protection::ReadOnly, false) {
                Ok(Filled::Bytes(bytes)) => done = self.counted(core, bytes),
                // Of all pages alike, or for a worker to do.
                Ok(Filled::Nothing(Outcome::Retry)) => return Ok(Outcome::Retry),
                Ok(Filled::Nothing(_)) | Err(_) => {}
            }
        }
        self.install_own(core, shared, Protection::Writable, mark, done)
    }

    /// Lets stores through to the page that has faulted and those behind it that the answer reaches.
    ///
    /// Several are not unprotected but zapped and installed anew: an entry that is unprotected takes a fault more, inside
    /// the kernel, before the first store gets through, which costs three times as much as a new one. Who faults
    /// on one of them in between is woken by the install, or answered after it; nothing in it depends on the
    /// entries that were there.
    pub(super) fn unprotect(&self, core: &Core, shared: &Shared<'_>, mark: bool) -> Result<Outcome, Errno> {
        let (window, pages) = (self.window, self.reach.pages);
        if pages.pages() > 1 {
            window.drop_entries(pages);
            return self.install(core, shared, Protection::Writable, mark);
        }
        let outcome = shared.unprotect(window, pages, mark)?;
        if outcome == Outcome::Installed {
            self.reach.answered(window, 1);
        }
        Ok(outcome)
    }
}
