//! Faults that end in SIGBUS for another reason than the end of the file: no block, no page, nobody's address.

use super::{Attempt, Hindrance, SHORTAGES_MAX, Served};
use crate::address::core::{Age, Core, Deferred};
use crate::inode::Inode;
use crate::inode::grace::Grace;
use crate::policy::{Access, Backing, PageState, View};
use crate::space::{Shared, Window};
use crate::sync::{self, Arc};
use crate::sys::{Delivery, Outcome, RawFault};
use crate::units::{Addr, PageIndex};

/// How long a page stays poisoned for a thread of another process.
const FOREIGN_GRACE: std::time::Duration = std::time::Duration::from_millis(1);

/// The device has no page where the file has a block, and has one of zeros now: the file says that there is one, and
/// nobody but the application can have taken it away. Under the guard that the block was looked up under: it is nobody else's meanwhile.
///
/// ```text
/// this fault                                        another fault on the page
///   L2 shared
///   CONTINUE: no page                                 L2 shared
///   fallocate: a page of zeros                        CONTINUE: installed
///   CONTINUE: installed                               a store
///                                                     fallocate, if it saw none: leaves the page
/// ```
pub(super) fn refilled(core: &Core, inode: &Inode, view: &View) -> bool {
    let PageState::Written(block) = view.state else { return false };
    let refilled = inode.store.refill(block);
    // With windows a page may be written and not there yet: whoever has made it so is about to install it.
    if refilled && inode.store.capacity().is_none() {
        core.stats.add(&core.stats.lost_pages);
    }
    refilled
}

/// The device has no page where the file has a block, or something else is mapped at the
/// address: somebody has changed the device, or the mapping, behind our back. SIGBUS rather than a guess.
pub(super) fn lost_page(
    core: &Core,
    raw: &RawFault,
    window: &Window,
    view: &View,
    shared: &Shared<'_>,
) -> Result<Attempt, Hindrance> {
    core.stats.add(&core.stats.lost_pages);
    if window.is_direct() {
        return Ok(Attempt::Sigbus);
    }
    match shared.poison(window, raw.addr, view.backing) {
        Ok(Outcome::Installed) => {}
        // The marker of an entry that was write-protected, most likely. The thread would fault again, for ever.
        Ok(Outcome::AlreadyPresent) => return Err(Hindrance::InTheWay),
        Ok(Outcome::Gone) | Err(_) => core.wake(raw),
        Ok(Outcome::Retry) => return Ok(Attempt::Again),
    }
    Ok(Attempt::Done)
}

/// A fault at an address that belongs to no region. Its mapping has just been unmapped, and the access is to
/// end in SIGSEGV, or to be somebody else's; or the application has moved a part of a mapping, which is about
/// to be revoked. Nothing is done to the address: it may be another pager's by now.
pub(super) fn unknown_address(core: &Core, raw: &RawFault) -> Attempt {
    if core.table.refuse_own(raw.addr) {
        return Attempt::Done;
    }
    core.stats.add(&core.stats.unknown_addresses);
    core.wake(raw);
    Attempt::Done
}

/// A fault of a mapping that has been given up, and whose addresses the kernel had no room to take out of service.
pub(super) fn given_up(core: &Core, raw: &RawFault, window: &Window, backing: Backing) -> Attempt {
    if window.is_direct() {
        return Attempt::Sigbus;
    }
    if window.poison(raw.addr, backing) != Ok(Outcome::Installed) {
        core.wake(raw);
    }
    Attempt::Done
}

/// Ends the fault of a store for which there is no block, or of an access for which the kernel has no
/// memory: SIGBUS for that thread, and for no other. The hole stays readable as zeros.
///
/// A message does not prove that its thread is in that fault still. It may have been woken by zeros that
/// another thread loaded on the same page, and fault again; then there is a second message for one
/// store, and a SIGBUS for each would be one too many, for whatever the thread does by then. So a signal is sent
/// only for the thread's last message, and
///
/// - with L2 held exclusively: nobody answers faults on the file meanwhile, and as long as the page is a
///   hole no store to it gets through;
/// - with everything read that was unread, and the reader kept from reading: what comes of the thread before it
///   has run is of the same store, and only woken for.
pub(super) fn end_in_sigbus(core: &Core, mut deferred: Deferred) -> Served {
    let raw = &{ deferred.fault };
    if deferred.ticket.is_some() {
        if deferred.shortages < SHORTAGES_MAX && has_a_block_by_now(core, raw) {
            return Served::Done;
        }
        core.stats.add(&core.stats.sigbus);
        return Served::Sigbus;
    }
    let age = core.age(&deferred);
    if age == Age::Stale {
        // As in `resolve`: the thread's next message is served in its turn.
        return Served::Done;
    }
    let regions = core.regions.read();
    let Some(region) = regions.find(raw.addr) else {
        core.wake(raw);
        return Served::Done;
    };
    let (inode, window) = (&region.inode, &region.window);
    let page = window.page_at(raw.addr);
    let mut change = inode.space.change();
    let no_block = change.extents().state(page) == PageState::Hole || deferred.shortages >= SHORTAGES_MAX;
    let past_end = page >= inode.page().ceil(change.size());
    let refused = no_block && !past_end && window.is_alive();
    let delivery = match if refused { send(core, &deferred) } else { Some(Delivery::Awake) } {
        // It has been woken before, to no avail: the kernel does not let it sleep, and a signal would not end its fault.
        Some(Delivery::Awake) if refused && core.insists(&mut deferred) => Some(Delivery::Unreachable),
        delivery => delivery,
    };
    let (mut grace, mut passing) = (None, None);
    if delivery == Some(Delivery::Unreachable) {
        core.stats.add(&core.stats.sigbus);
        core.stats.add(&core.stats.poisoned);
        // Before the thread is woken, which poisoning does.
        grace = Grace::new(&window.table, raw.tid, page);
        // Zapped again below, as soon as the thread has run.
        passing = (raw.access == Access::Store).then(|| Passing::begin(window, page, inode.page().bytes()));
        change.poison_for_one(&inode.store, window, page, raw.addr, region.layout.backing(page));
    }
    change.commit(&inode.store);
    let (inode, window) = (inode.clone(), window.clone());
    drop(regions);
    match delivery {
        None | Some(Delivery::Sent) => {}
        // A block has come since, or the file has ended, or the thread has left the fault: the access, if
        // there is one, repeats, and finds out. As in `resolve`, one that has been repeated is its last message's business.
        Some(Delivery::Awake) if age == Age::Again => {}
        Some(Delivery::Awake) => core.wake(raw),
        Some(Delivery::Unreachable) => {
            core.wake(raw);
            match grace {
                Some(grace) => grace.wait(),
                // A thread of another process: it cannot be told when that has run.
                None => sync::back_off(FOREIGN_GRACE),
            }
            // It has had its SIGBUS or EFAULT, or has faulted anew: the hole reads as zeros again. Our own re-points, during which the
            // kernel refuses, are kept away meanwhile; for one by the application it is waited.
            let regions = core.regions.read();
            let lifted = inode.change_when(|| inode.space.change(), |change| change.lift_poison(&window, page));
            // By a kernel that goes on refusing it is not: the page stays poisoned until it is zapped.
            if let Ok(change) = lifted {
                change.commit(&inode.store);
            }
            drop(regions);
        }
    }
    drop(passing);
    Served::Done
}

/// Whether another store has given the page the last block that there was: the thread repeats its access.
fn has_a_block_by_now(core: &Core, raw: &RawFault) -> bool {
    let regions = core.regions.read();
    let Some(region) = regions.find(raw.addr) else { return false };
    let page = region.window.page_at(raw.addr);
    !region.inode.space.shared().is_hole(page)
}

/// A page is poisoned for one thread's sake: from before that until after the zap, loads that meet the poison are repeated.
struct Passing {
    window: Arc<Window>,
    at: Addr,
    bytes: u64,
}

impl Passing {
    fn begin(window: &Arc<Window>, page: PageIndex, bytes: u64) -> Self {
        let at = window.addr_of(page);
        window.table.begin_passing(at, bytes);
        Self { window: window.clone(), at, bytes }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.window.table.end_passing(self.at, self.bytes);
    }
}

/// Sends the thread its SIGBUS if it sleeps in the very fault that this message is of. `None` if it has sent another
/// message since, which is served in its turn.
///
/// ```text
/// worker                                            thread
///   has its message of a store to A                   sleeps in the store; is woken, and done with it
///                                                     sleeps in a load of B: another message, unread
///   A is a hole again, and there is no block
///   sees it asleep, and how often it has run
///   reads all that is unread: the load of B
///   not its last message: no SIGBUS
/// ```
fn send(core: &Core, deferred: &Deferred) -> Option<Delivery> {
    let raw = &deferred.fault;
    let mut reading = core.hold_reading();
    let outlook = core.table.outlook(raw.tid);
    if outlook == Delivery::Awake {
        return Some(Delivery::Awake);
    }
    let runs = core.table.runs(raw.tid);
    core.read_everything(&mut reading);
    match core.age(deferred) {
        Age::Last | Age::Again => {}
        Age::Stale => return None,
        Age::Unknown => return Some(Delivery::Unreachable),
    }
    let delivery = match outlook {
        Delivery::Sent if core.table.runs(raw.tid) == runs => core.table.raise_sigbus(raw.tid, raw.addr),
        Delivery::Sent | Delivery::Awake => Delivery::Awake,
        // It may not even sleep there, so how often it has run says nothing.
        Delivery::Unreachable => Delivery::Unreachable,
    };
    if delivery == Delivery::Sent {
        core.stats.add(&core.stats.sigbus);
        reading.signalled(raw.tid, runs);
    }
    Some(delivery)
}
