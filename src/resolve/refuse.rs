//! Faults that end in SIGBUS for another reason than the end of the file: no block, no page, nobody's address.

use super::{Attempt, TURNS_WITHOUT_MEMORY, wake};
use crate::pager::core::{Core, Handed};
use crate::policy::{PageState, View};
use crate::space::{Shared, Window};
use crate::sys::{Delivery, Outcome, RawFault};
use crate::units::PageRange;
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
    let huge = 2 << 20;
    for bytes in [core.table.base_page(), huge] {
        match core.table.poison(raw.addr.align_down(bytes), bytes) {
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
/// A message does not prove that its thread is in that fault still. It may have been woken, by zeros that
/// another thread loaded on the same page, and its second message may have been answered by a SIGBUS
/// already: then one more would hit it in the middle of something else. So a signal is sent only if this is
/// the thread's last message, and with L2 held exclusively: nobody answers faults on the file
/// meanwhile, and as long as the page is a hole no store to it gets through.
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
    let mut poisoned = false;
    // Otherwise a block has come since, or the file has ended: the access repeats, and finds out.
    if no_block && !past_end && !core.is_stale(&handed) && window.is_alive() {
        core.stats.add(&core.stats.sigbus);
        match core.table.raise_sigbus(raw.tid, raw.addr) {
            Delivery::Sent | Delivery::Awake => {}
            Delivery::Unreachable => {
                change.poison_for_a_moment(window, page, raw.addr, region.layout.backing(page));
                poisoned = true;
            }
        }
    }
    change.commit(&inode.store);
    let (inode, window) = (inode.clone(), window.clone());
    drop(regions);
    // After a signal too: a thread that did not take it must not sleep on.
    wake(core, raw);
    if poisoned {
        let _ = Grace::new(&core.table, raw.tid, page).map(|grace| grace.wait());
        // It has had its SIGBUS or EFAULT, or has faulted anew: the hole reads as zeros again.
        let change = inode.space.change();
        if window.is_alive() {
            window.zap(PageRange::one(page));
        }
        change.commit(&inode.store);
    }
    None
}
