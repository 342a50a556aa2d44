//! Which threads keep faulting on one page: the promise of progress.
//!
//! A fault is answered, and before its thread has run again an invalidation has taken the page
//! away. Nothing is wrong with that once or ten times; but against a thread that punches in a
//! tight loop it can go on for ever, because waking a thread takes longer than punching. The kernel of
//! the mail thread had a limit there (one retry, then SIGBUS). Here the invalidations wait instead: when a
//! thread faults on the same page again and again, and on nothing else in between, the next
//! invalidation of that page first lets the thread run (`Inode::honour_grace`).

use crate::sync::{Ordering, Tally};
use crate::sys::Tid;
use crate::units::Addr;

const SLOTS: usize = 64;
/// Faults in a row on one page that are nobody's business: missing, zeros, write-protected, and some bad luck.
const PATIENCE: u64 = 6;

/// One slot a thread, by its id; threads that share one reset each other, and lose nothing but patience.
pub(crate) struct Losers {
    /// Page address in the upper bits, how often in a row in the lower twelve.
    slots: [Tally; SLOTS],
}

impl Default for Losers {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Tally::new(0)) }
    }
}

const COUNT: u64 = 0xfff;

impl Losers {
    /// Notes a look at a fault of `tid` at `at`; whether it may be losing.
    pub(crate) fn is_losing(&self, tid: Tid, at: Addr) -> bool {
        let slot = &self.slots[tid.0 as usize % SLOTS];
        let page = at.0 as u64 & !COUNT;
        let old = slot.load(Ordering::Relaxed);
        let count = if old & !COUNT == page { (old & COUNT) + 1 } else { 1 };
        // After a grace patience begins anew: the page may just be in demand.
        let losing = count > PATIENCE;
        slot.store(page | if losing { 0 } else { count }, Ordering::Relaxed);
        losing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_for_one_page_and_ends_with_another() {
        let losers = Losers::default();
        let (tid, page, other) = (Tid(7), Addr(0x7000), Addr(0x8000));
        let losing: Vec<_> = (0..14).map(|_| losers.is_losing(tid, page)).collect();
        let at: Vec<_> = losing.iter().enumerate().filter(|(_, losing)| **losing).map(|(at, _)| at).collect();
        assert_eq!(at, [6, 13]);
        assert!(!losers.is_losing(tid, other));
        assert!(!losers.is_losing(tid, page));
    }
}
