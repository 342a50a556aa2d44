//! Serving one fault: look, decide and install under one shared hold of L2; where something must be
//! prepared first, prepare it with no lock held and look again.
//!
//! Takes no L1. What was seen before a preparation is a hint and nothing else: every round decides
//! anew, so there is no way from a look-up to an install that does not hold the lock all along.
//!
//! ```text
//! fault on page X                                   punch of page X
//!   L2 shared: X is a hole, a store: Allocate
//!   unlock
//!   take a block, zero it
//!                                                     (or truncate, or another fault on X)
//!   L2 exclusive: still a hole? publish, zap zeros
//!   unlock
//!                                                     L2 exclusive: publish the hole, zap
//!                                                     unlock, free the block
//!   re-point X's address to the block: installs
//!     nothing, so a stale address is harmless
//!   L2 shared: X is a hole again: Allocate. Once more.
//! ```

mod broken;
mod fault_around;
pub(crate) mod populate;
mod prepare;
mod refuse;

use nix::errno::Errno;

use crate::address::core::{Age, Core, Deferred, Patience};
use crate::address::regions::Region;
use crate::blocks::store::Wanted;
use crate::inode::Inode;
use crate::inode::grace::Grace;
use crate::options::Resolve;
use crate::policy::{Access, Backing, Decision, Fault, FaultKind, PageState, View, decide};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::{Claim, Shared, Window};
use crate::sync::{self, Arc};
use crate::sys::{Outcome, Protection, RawFault, Tid};
use crate::units::{Addr, PageIndex, PageRange};
use fault_around::{Answer, reach, reach_of_store, to_be_armed};
pub(crate) use prepare::give_up_ranges;
use prepare::{Prepared, prepare};
use refuse::{end_in_sigbus, given_up, lost_page, unknown_address};

/// What became of one look at a fault.
pub(crate) enum Attempt {
    /// Answered, and its thread woken.
    Done,
    /// A lock was taken, or something has to be prepared first; only with [`Patience::Try`].
    Busy,
    /// The kernel refuses for the moment: an event is unread.
    Again,
    /// The kernel has no memory for an entry.
    NoMemory,
    /// Something has to be put in place first.
    Prepare(Preparation),
    /// The thread resolves its own faults, and is to take a SIGBUS.
    Sigbus,
}

/// What keeps a decision from being acted upon, as it shows only then.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    /// The page is to be poisoned, and something is in the way.
    InTheWay,
    /// No page is free for a store.
    NoPage,
}

/// What became of a worker's turn at a fault.
pub(crate) enum Served {
    /// Answered.
    Done,
    /// The thread waits for the answer, and is to take a SIGBUS.
    Sigbus,
    /// To be queued up again.
    Again(Deferred),
}

/// What has to be put in place, and for whom. A hint: by the time it is, the file may be another.
pub(crate) struct Preparation {
    inode: Arc<Inode>,
    window: Arc<Window>,
    page: PageIndex,
    what: Prepare,
}

enum Prepare {
    /// Point these pages elsewhere; the first of them at this.
    Repoint(PageRange, Backing),
    /// Put blocks under these pages, of which the first is the one that is stored to.
    Allocate(PageRange, Wanted),
    /// Make these pages written; likewise.
    Convert(PageRange),
    /// Keep the blocks that these pages have.
    Keep(PageRange),
    /// Take zeros back that loads have left in holes.
    TakeZerosBack,
    /// Make the page ready to be present, where that was refused before, or where it is poisoned for the sake of one thread.
    MakeReady,
    /// Poison what is at this address, whatever is in the way.
    Poison(Addr),
}

/// Rounds that a fault gets before it makes room for others and queues up again.
const ROUNDS_PER_TURN: u32 = 16;
/// How long a worker leaves a fault alone that the kernel refuses for the moment.
const BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);
/// Turns that end for lack of memory or address ranges after which a fault ends in SIGBUS: about a second.
const SHORTAGES_MAX: u32 = 1_000;
/// How many of them are over soon, and how long a worker waits after each of the others.
const SHORTAGES_SOON: u32 = 50;
const SHORTAGE_BACK_OFF: std::time::Duration = std::time::Duration::from_millis(1);

/// Serves a fault to its end, or as far as one turn goes.
pub(crate) fn resolve(core: &Core, mut deferred: Deferred) -> Served {
    let mut raw = deferred.fault;
    if deferred.starving {
        grant_grace(core, &raw);
    }
    for _ in 0..ROUNDS_PER_TURN {
        core.stats.add(&core.stats.rounds);
        let need = match attempt(core, &raw, Patience::Wait, deferred.way(), deferred.heard) {
            Attempt::Done => return Served::Done,
            Attempt::Sigbus => return Served::Sigbus,
            Attempt::Prepare(need) => need,
            Attempt::NoMemory if deferred.shortages >= SHORTAGES_MAX => {
                core.stats.add(&core.stats.shortages);
                return end_in_sigbus(core, deferred);
            }
            Attempt::NoMemory => return short_of_memory(deferred),
            // An event is unread: by the application's doing, as our own re-points hold `regions`.
            Attempt::Again | Attempt::Busy => break,
        };
        if need.takes_a_block() && deferred.ticket.is_none() {
            let age = core.age(&deferred);
            // Its thread has been woken and has faulted anew, and that message is served in its turn. Nobody is
            // woken for this one: each thread that waits for the page would send another, faster
            // than one worker takes them up.
            if age == Age::Stale {
                return Served::Done;
            }
            // Of several threads that stored to this page the first answer has woken all, and the page may have been
            // punched since: no block for nobody. Woken all the same, as it may be about to fall asleep; but only
            // once, as it may be one that the kernel does not let sleep.
            if !core.table.may_wait(raw.tid) && !core.insists(&mut deferred) {
                if age != Age::Again {
                    core.wake(&raw);
                }
                return Served::Done;
            }
            // It waits: not to be asked again, or a puncher of other pages would have it asked for ever.
            deferred.heard = u64::MAX;
        }
        match prepare(core, &need) {
            Prepared::Ready => {}
            Prepared::NoBlock(_) => return end_in_sigbus(core, deferred),
            // To try again would not help.
            Prepared::Lost(_) => return end_in_sigbus(core, Deferred { shortages: SHORTAGES_MAX, ..deferred }),
            Prepared::NoMemory if deferred.shortages >= SHORTAGES_MAX => {
                core.stats.add(&core.stats.shortages);
                need.window.set_short_of(need.page);
                return end_in_sigbus(core, deferred);
            }
            Prepared::NoMemory => return short_of_memory(deferred),
        }
        if let Prepare::Poison(_) = need.what {
            // That is the answer.
            core.wake(&raw);
            return Served::Done;
        }
        need.inode.probe(Point::Prepared, need.page, None);
        if let Some(decision) = need.stale_decision(&raw) {
            return match broken::act_unguarded(core, &raw, &need.window, &need.inode, need.page, decision) {
                Ok(Attempt::Done) => Served::Done,
                _ => Served::Again(deferred),
            };
        }
        if need.takes_a_block() {
            // The zeros that a write-protect fault was about have been zapped: it is a missing one now, and
            // need not be woken to fault again as such.
            raw.kind = FaultKind::Missing;
        }
    }
    sync::back_off(BACK_OFF);
    Served::Again(deferred)
}

fn short_of_memory(deferred: Deferred) -> Served {
    back_off_from_shortage(deferred.shortages);
    Served::Again(Deferred { shortages: deferred.shortages + 1, ..deferred })
}

/// Leaves a fault, or a call, alone that has found no memory or address range so many times before.
fn back_off_from_shortage(shortages: u32) {
    sync::back_off(if shortages < SHORTAGES_SOON { BACK_OFF } else { SHORTAGE_BACK_OFF });
}

/// Has invalidations of the page wait until the thread has had its turn. Before the fault is
/// answered, with no lock held: how often a thread has run is a question to the kernel.
fn grant_grace(core: &Core, raw: &RawFault) {
    let found = {
        let regions = core.regions.read();
        regions.find(raw.addr).map(|region| (region.inode.clone(), region.window.clone()))
    };
    if let Some((inode, window)) = found
        && let Some(grace) = Grace::new(&window.table, raw.tid, window.page_at(raw.addr))
    {
        core.stats.add(&core.stats.graces);
        inode.grant(grace);
    }
}

/// Looks at a fault once, and answers it if nothing has to be prepared. `way` is how its thread waits, and `heard` what the page
/// table said of pages that go when it was known to.
pub(crate) fn attempt(core: &Core, raw: &RawFault, patience: Patience, way: Resolve, heard: u64) -> Attempt {
    let Some(regions) = core.try_regions(patience) else { return Attempt::Busy };
    let Some(region) = regions.find(raw.addr) else {
        return unknown_address(core, raw);
    };
    let (inode, window) = (&*region.inode, &*region.window);
    if window.options.resolve != way {
        // Late: its mapping has gone, and the one at its address now takes its faults in the other way. An answer meant for
        // threads that wait in this one would be for nobody there.
        return unknown_address(core, raw);
    }
    let page = window.page_at(raw.addr);
    let size_seen = broken::size_before_lock(inode, page);
    let Some(shared) = lock_space(inode, patience) else { return Attempt::Busy };
    if !window.is_alive() {
        return given_up(core, raw, window, region.layout.backing(page));
    }
    let mut view = shared.view(page, region.layout.backing(page));
    if let Some(size) = size_seen {
        view.eof = inode.page().ceil(size);
    }
    let decision = decide_for(inode, window, Fault { access: raw.access, kind: raw.kind }, &view);
    let armed = || to_be_armed(region, &view, raw.kind, decision, raw.tid);
    let what = need(region, &shared, &view, decision, raw.access, Some(raw.tid), heard);
    if let Some(what) = what.or_else(|| armed().map(|(range, first)| Prepare::Repoint(range, first))) {
        if patience == Patience::Try {
            return Attempt::Busy;
        }
        let (inode, window) = (region.inode.clone(), region.window.clone());
        return Attempt::Prepare(Preparation { inode, window, page, what });
    }
    let reach = reach(region, &shared, &view, decision, raw);
    if broken::lets_go(inode) {
        let (inode, window) = (region.inode.clone(), region.window.clone());
        drop(shared);
        drop(regions);
        tell_decided(&inode, &view);
        let answer = Answer { window: &window, inode: &inode, view, kind: raw.kind, decision, reach };
        return act(core, raw, &answer, &inode.space.unguarded()).unwrap_or(Attempt::Busy);
    }
    tell_decided(inode, &view);
    match act(core, raw, &Answer { window, inode, view, kind: raw.kind, decision, reach }, &shared) {
        Ok(done) => done,
        Err(_) if patience == Patience::Try => Attempt::Busy,
        Err(hindrance) => {
            let (inode, window) = (region.inode.clone(), region.window.clone());
            let what = match hindrance {
                Hindrance::InTheWay => Prepare::Poison(raw.addr),
                Hindrance::NoPage => Prepare::Allocate(PageRange::one(page), Wanted::First),
            };
            Attempt::Prepare(Preparation { inode, window, page, what })
        }
    }
}

fn tell_decided(inode: &Inode, view: &View) {
    let block = match view.state {
        PageState::Written(block) | PageState::Unwritten(block) => Some(block),
        PageState::Hole => None,
    };
    inode.probe(Point::Decided, view.page, block);
}

fn lock_space(inode: &Inode, patience: Patience) -> Option<Shared<'_>> {
    match patience {
        Patience::Wait => Some(inode.space.shared()),
        // A change holds it for some microseconds, most of the time; a hand-over takes two wake-ups. Tried for a moment and no
        // longer: whoever holds it may be waiting for this thread, or need its CPU.
        Patience::Try => (0..sync::TRIES).find_map(|round| {
            if round > 0 {
                sync::pause();
            }
            inode.space.try_shared()
        }),
    }
}

/// The fault table, as it is for a mapping of this kind.
fn decide_for(inode: &Inode, window: &Window, fault: Fault, view: &View) -> Decision {
    let decision = match decide(fault, view) {
        // The kernel lets the store through. Unprotected for a message that its thread has left behind, the page would be dirty
        // though nobody has stored to it.
        Decision::Unprotect if window.is_asynchronous() => Decision::Retry,
        decision => decision,
    };
    broken::decision(inode, fault, decision)
}

/// What has to be put in place before the decision can be acted upon, for a fault of `tid` that is known to have waited when the
/// page table said `heard`.
fn need(
    region: &Region,
    shared: &Shared<'_>,
    view: &View,
    decision: Decision,
    access: Access,
    tid: Option<Tid>,
    heard: u64,
) -> Option<Prepare> {
    let (store, page) = (&region.inode.store, view.page);
    if let Some(places) = shared.extents().windows()
        && view.backing == Backing::Zeros
        && decision != Decision::Sigbus
    {
        // A re-point has failed in such a way that zeros are there.
        let run = places.place(page, 1)?;
        let place = if region.window.is_open() { Backing::Open(run.start) } else { Backing::Own(run.start) };
        return Some(Prepare::Repoint(PageRange::one(page), place));
    }
    let to = match decision {
        Decision::InstallZeros | Decision::Take if shared.is_left_unarmed(page) => return Some(Prepare::MakeReady),
        Decision::Take if shared.is_poisoned_for_one(page) => return Some(Prepare::MakeReady),
        Decision::InstallZeros | Decision::Take if access == Access::Load && shared.has_too_many_zeros(store, page) => {
            return Some(Prepare::TakeZerosBack);
        }
        // Another thread's store to the page may have woken this one, and the page may have gone since: no page for nobody. Asked
        // whether it waits, as before a block is allocated.
        Decision::Take if shared.is_hole(page) && region.window.has_lost_pages_since(heard) => {
            return Some(Prepare::Allocate(PageRange::one(page), Wanted::First));
        }
        Decision::Repoint(to) => to,
        Decision::Allocate => return Some(Prepare::Allocate(reach_of_store(region, shared, page, tid), Wanted::First)),
        Decision::Convert(_) => return Some(Prepare::Convert(reach_of_store(region, shared, page, tid))),
        Decision::Sigbus
        | Decision::InstallZeros
        | Decision::InstallReadOnly
        | Decision::InstallWritable
        | Decision::Take
        | Decision::Unprotect
        | Decision::Retry => return None,
    };
    // As much as belongs together, so that the neighbours need no re-pointing of their own.
    let range = shared.extents().together_with(page).intersect(region.window.pages());
    let first = match to {
        Backing::Zeros | Backing::Own(_) | Backing::Armed(_) | Backing::Open(_) => to,
        Backing::Block(block) => Backing::Block(crate::units::BlockIndex(block.0 - (page.0 - range.start.0))),
    };
    let wrong = region.layout.wrong_around(page, range, first);
    Some(Prepare::Repoint(wrong, first.plus(wrong.start.0 - range.start.0)))
}

impl Preparation {
    fn takes_a_block(&self) -> bool {
        matches!(self.what, Prepare::Allocate(..) | Prepare::Convert(_))
    }
}

/// Does what was decided, under the guard it was decided under.
fn act(core: &Core, raw: &RawFault, answer: &Answer<'_>, shared: &Shared<'_>) -> Result<Attempt, Hindrance> {
    let Answer { window, inode, ref view, decision, .. } = *answer;
    let page = view.page;
    let stats = &core.stats;
    let mark = !inode.broken(Rule::MarkDirty);
    if window.is_direct() && decision == Decision::Sigbus {
        // No poison: the thread asks each time.
        stats.add(&stats.sigbus);
        return Ok(Attempt::Sigbus);
    }
    let (outcome, counter) = match decision {
        Decision::Sigbus => (shared.poison_past_end(window, raw.addr, view.backing), &stats.sigbus),
        Decision::InstallZeros => match view.backing {
            Backing::Own(_) | Backing::Armed(_) | Backing::Open(_) => {
                let reach = answer.take_ahead(core, shared, Access::Load);
                let installed = shared.install_zeros_in_place(window, (page, view.backing), raw.kind);
                reach.holes_answered(window, &installed);
                (installed, &stats.zeros)
            }
            Backing::Zeros | Backing::Block(_) => (shared.install_zeros(window, raw.addr), &stats.zeros),
        },
        Decision::Take => {
            let (protection, mark) = (Protection::of(raw.access), mark && raw.access == Access::Store);
            match shared.claim(&inode.store, page, raw.access) {
                Claim::NoSpace => return Err(Hindrance::NoPage),
                Claim::Taken { was_there } => {
                    stats.add(&stats.allocations);
                    let reach = answer.take_ahead(core, shared, raw.access);
                    let kind = if was_there { raw.kind } else { FaultKind::Missing };
                    let answer = Answer { kind, reach, ..*answer };
                    (answer.install(core, shared, protection, mark), &stats.runs)
                }
                Claim::Written => (answer.install(core, shared, protection, mark), &stats.runs),
            }
        }
        Decision::InstallReadOnly => (answer.install(core, shared, Protection::ReadOnly, false), &stats.runs),
        Decision::InstallWritable => (answer.install(core, shared, Protection::Writable, mark), &stats.runs),
        Decision::Unprotect => (answer.unprotect(core, shared, mark), &stats.unprotects),
        // It looks again. What it finds then is true then.
        Decision::Retry => (Ok(Outcome::Installed), &stats.retries),
        Decision::Repoint(_) | Decision::Allocate | Decision::Convert(_) => {
            unreachable!("{decision:?} is prepared, not acted upon")
        }
    };
    // An install wakes whoever waits for the page. Everything else that ends a fault ends in a wake of ours (rule 6).
    let (attempt, wake) = match outcome {
        Ok(Outcome::Installed) => {
            stats.add(counter);
            (Attempt::Done, decision == Decision::Retry && !inode.broken(Rule::WakeOnRetry))
        }
        Ok(Outcome::AlreadyPresent) => {
            // Another thread's fault was first. The kernel has woken nobody, and the thread may be
            // asleep on an entry that is there.
            stats.add(&stats.retries);
            (Attempt::Done, !inode.broken(Rule::WakeAfterEexist))
        }
        Ok(Outcome::Gone) => (Attempt::Done, true),
        Ok(Outcome::Retry) => (Attempt::Again, false),
        Err(Errno::ENOMEM) => (Attempt::NoMemory, false),
        Err(_) => (lost_page(core, raw, window, view, shared)?, false),
    };
    if wake && !window.is_direct() {
        core.wake(raw);
    }
    if matches!(attempt, Attempt::Done) {
        inode.probe(Point::Answered, page, None);
    }
    Ok(attempt)
}
