//! The address ranges (VMAs) of the process, which all its pagers share: `vm.max_map_count` is a limit of the
//! process, and a quarter of it is the application's.

use super::core::{Core, Job};
use crate::error::Error;
use crate::sync::{Arc, AtomicBool, Ordering, ProcessMutex, Tally, Weak};
use crate::sys::fork::PerProcess;
use crate::sys::process;
use crate::units::PageIndex;

/// All pagers of the process: a forked child has none of its parent's, nor its locks.
static EVERYBODY: PerProcess<Everybody> = PerProcess::new(Everybody::default);

#[derive(Default)]
struct Everybody {
    /// What the mappings of all pagers take together. A hint: it is looked at beside changes.
    total: Tally,
    /// Every pager. A leaf, for the time of a look; nothing is asked of a pager under it. Guarded by `tests/scarce.rs`.
    pagers: ProcessMutex<Vec<Weak<Core>>>,
}

fn everybody() -> &'static Everybody {
    EVERYBODY.get_or_make().expect("a pager has a home")
}

/// The address ranges that the mappings of one pager take.
#[derive(Default)]
pub(crate) struct Share {
    pieces: Tally,
    /// Set while another pager has asked for some of them, and no worker has taken that up.
    asked: AtomicBool,
}

impl Share {
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// Counts a mapping's ranges: so many there were, so many there are. With `regions` held exclusively.
    pub(crate) fn count(&self, before: u64, now: u64) {
        for counter in [&self.pieces, &everybody().total] {
            counter.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// A worker has taken up what another pager had asked for.
    pub(crate) fn heard(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        everybody().total.fetch_sub(self.pieces(), Ordering::Relaxed);
    }
}

/// What the mappings of all pagers of the process take.
pub(crate) fn total() -> u64 {
    everybody().total.load(Ordering::Relaxed)
}

/// The error for a page whose address cannot be pointed at its block.
pub(crate) fn shortage(page: PageIndex) -> Error {
    Error::AddressRanges { page: page.0, taken: total(), max: process::max_map_count() }
}

/// Makes a pager known to the others.
pub(crate) fn join(core: &Arc<Core>) {
    // Pagers under a schedule checker are each in a world of their own.
    if cfg!(feature = "shuttle") {
        return;
    }
    let mut pagers = everybody().pagers.lock();
    pagers.retain(|pager| pager.strong_count() > 0);
    pagers.push(Arc::downgrade(core));
}

/// Whether the pager has to give up some of its own address ranges before it takes `more`. If the process has too many, and
/// another pager has more of them, that one is asked instead: its workers do it in a moment, and the quarter that is the
/// application's bears the difference.
pub(crate) fn is_crowded(core: &Core, more: u64) -> bool {
    if core.share.pieces() + more > core.address_ranges_max {
        return true;
    }
    if total() + more <= core.process_ranges_max {
        return false;
    }
    let pagers: Vec<Arc<Core>> = everybody().pagers.lock().iter().filter_map(Weak::upgrade).collect();
    let largest = pagers.iter().max_by_key(|pager| pager.share.pieces());
    match largest.filter(|largest| largest.share.pieces() > core.share.pieces()) {
        Some(largest) => {
            if !largest.share.asked.swap(true, Ordering::Relaxed) {
                largest.queue.push(Job::GiveUpRanges);
            }
            false
        }
        None => true,
    }
}
