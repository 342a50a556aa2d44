//! Which threads keep faulting on one page: the promise of progress.
//!
//! A fault is answered, and before its thread has run again an invalidation has taken the page
//! away. Nothing is wrong with that once or ten times; but against a thread that punches in a
//! tight loop it can go on for ever, because waking the thread takes longer than punching. The kernel of
//! the thread had a limit there (one retry, then SIGBUS). Here the invalidations are slowed instead: a
//! thread that faults on the same page again and again, on nothing else in between, is granted a grace in
//! which they leave the page alone, longer each time.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};
use crate::sys::Tid;
use crate::units::Addr;

const SLOTS: usize = 64;
/// Faults in a row on one page that are nobody's business: missing, zeros, write-protected, and some bad luck.
const PATIENCE: u64 = 8;
/// How many graces of one length come before it is doubled.
const STEP: u64 = 4;
const SHORTEST: Duration = Duration::from_micros(50);
/// Doubled so often at most: 6.4 ms, more than a time slice.
const DOUBLINGS: u64 = 7;

/// One slot a thread, by its id; threads that share one reset each other, and lose nothing but patience.
pub(crate) struct Losers {
    /// Page address in the upper bits, how often in a row in the lower twelve.
    slots: [AtomicU64; SLOTS],
}

impl Default for Losers {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

const COUNT: u64 = 0xfff;

impl Losers {
    /// Notes that a fault of `tid` at `at` has been answered; the grace that its page deserves.
    pub(crate) fn answered(&self, tid: Tid, at: Addr) -> Option<Duration> {
        let slot = &self.slots[tid.0 as usize % SLOTS];
        let page = at.0 as u64 & !COUNT;
        let old = slot.load(Ordering::Relaxed);
        let count = if old & !COUNT == page { (old & COUNT) + 1 } else { 1 };
        // From the longest grace it begins anew: the page may just be in demand.
        let count = if count > PATIENCE + STEP * (DOUBLINGS + 1) { 1 } else { count };
        slot.store(page | count, Ordering::Relaxed);
        let doublings = count.checked_sub(PATIENCE)? / STEP;
        Some(SHORTEST * (1 << doublings.min(DOUBLINGS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_grows_for_one_page_and_ends_with_another() {
        let losers = Losers::default();
        let (tid, page, other) = (Tid(7), Addr(0x7000), Addr(0x8000));
        let graces: Vec<_> = (0..40).map(|_| losers.answered(tid, page)).collect();
        assert_eq!(graces[..7], [None; 7]);
        assert_eq!(graces[7], Some(SHORTEST));
        assert_eq!(graces[7 + 4], Some(SHORTEST * 2));
        assert!(graces.iter().flatten().max().unwrap() == &(SHORTEST * 128));
        assert_eq!(losers.answered(tid, other), None);
        assert_eq!(losers.answered(tid, page), None);
    }
}
