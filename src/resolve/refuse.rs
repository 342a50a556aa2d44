//! Faults that end in SIGBUS for another reason than the end of the file: no block, no page, nobody's address.

use super::{Attempt, TURNS_WITHOUT_MEMORY, wake};
use crate::pager::core::{Core, Handed};
use crate::policy::{FaultKind, PageState, View};
use crate::space::{Shared, Window};
use crate::sys::{Delivery, Outcome, RawFault};
use crate::units::{PageIndex, PageRange};
use crate::volume::grace::Grace;

/// The device has no page where the file has a block, or something else is mapped at the
/// address: somebody has changed the device, or the mapping, behind our back. SIGBUS rather than a guess.
pub(super) fn lost_page(core: &Core, raw: &RawFault, window: &Window, view: &View, shared: &Shared<'_>) -> Attempt {
    core.stats.add(&core.stats.lost_pages);
    match shared.poison(window, raw.addr, view.backing) {
        Ok(Outcome::Installed) => {}
        Ok(Outcome::AlreadyPresent | Outcome::Gone) | Err(_) => wake(core, raw),
        Ok(Outcome::Retry) => return Attempt::Again,
    }
    Attempt::Done
}

/// A fault at an address that belongs to no region. The application has moved a part of a mapping, or
/// the mapping has just been unmapped. Never zeros that were not there: SIGBUS, or the access
/// repeated and a SIGSEGV.
pub(super) fn stranger(core: &Core, raw: &RawFault) -> Attempt {
    core.stats.add(&core.stats.strangers);
    if raw.kind == FaultKind::WriteProtect {
        // The entry came along when the range was moved, and is zapped when the mapping is given up.
        wake(core, raw);
        return Attempt::Done;
    }
    let huge = 2 << 20;
    for bytes in [core.table.base_page(), huge] {
        let at = raw.addr.align_down(bytes);
        let poisoned = match core.table.poison(at, bytes) {
            // There is no entry, or the access had not faulted: a write-protect marker.
            Ok(Outcome::AlreadyPresent) => core.table.poison_over_marker(at, bytes),
            other => other,
        };
        match poisoned {
            Ok(Outcome::Installed) => return Attempt::Done,
            Ok(Outcome::Retry) => return Attempt::Again,
            Ok(Outcome::AlreadyPresent | Outcome::Gone) => break,
            Err(_) => {}
        }
    }
    wake(core, raw);
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
/// - with the reader kept from reading until the thread has run: a message that is unread then vanishes.
pub(super) fn end_in_sigbus(core: &Core, handed: Handed) -> Option<Handed> {
    let raw = &handed.fault;
    let regions = core.regions.read();
    let Some(region) = regions.find(raw.addr) else {
        wake(core, raw);
        return None;
    };
    let (inode, window) = (&region.inode, &region.window);
    let page = window.page_at(raw.addr);
    let change = inode.space.change();
    let no_block = change.extents().state(page) == PageState::Hole || handed.turns >= TURNS_WITHOUT_MEMORY;
    let past_end = page >= inode.page().ceil(change.size());
    let delivery = if no_block && !past_end && window.is_alive() { send(core, &handed) } else { Delivery::Awake };
    if delivery == Delivery::Unreachable {
        change.poison_for_a_moment(window, page, raw.addr, region.layout.backing(page));
    }
    change.commit(&inode.store);
    let (inode, window) = (inode.clone(), window.clone());
    drop(regions);
    match delivery {
        Delivery::Sent => {}
        // A block has come since, or the file has ended, or the thread has left the fault: the access, if
        // there is one, repeats, and finds out.
        Delivery::Awake => wake(core, raw),
        Delivery::Unreachable => {
            let grace = Grace::new(&core.table, raw.tid, page);
            wake(core, raw);
            grace.inspect(Grace::wait);
            // It has had its SIGBUS or EFAULT, or has faulted anew: the hole reads as zeros again.
            let change = inode.space.change();
            if window.is_alive() {
                window.zap(PageRange::one(page));
            }
            change.commit(&inode.store);
        }
    }
    None
}

/// Sends the thread its SIGBUS if this is its last message, and waits until it has taken it.
fn send(core: &Core, handed: &Handed) -> Delivery {
    let raw = &handed.fault;
    let _reading = core.hold_reading();
    if core.is_stale(handed) {
        return Delivery::Awake;
    }
    let grace = Grace::new(&core.table, raw.tid, PageIndex(0));
    let delivery = core.table.raise_sigbus(raw.tid, raw.addr);
    if delivery != Delivery::Awake {
        core.stats.add(&core.stats.sigbus);
    }
    if delivery == Delivery::Sent {
        grace.inspect(Grace::wait);
    }
    delivery
}
