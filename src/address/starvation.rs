//! Which threads keep faulting on one page: the promise of progress.
//!
//! A fault is answered, and before its thread has run again an invalidation has taken the page
//! away. Nothing is wrong with that once or ten times; but against a thread that punches in a
//! tight loop it can go on for ever, because waking a thread takes longer than punching. The kernel of
//! the mail thread had a limit there (one retry, then SIGBUS). Here the invalidations wait instead: when a
//! thread faults on the same page again and again, and on nothing else in between, the next
//! invalidation of that page first lets the thread run (`Inode::honour_grace`).

use std::collections::VecDeque;

use crate::sync::{Mutex, Ordering, Tally};
use crate::sys::{RawFault, Tid};
use crate::units::Addr;

const SLOTS: usize = 64;
/// Faults in a row on one page that are nobody's business: missing, zeros, write-protected, and some bad luck.
const PATIENCE: u64 = 6;

/// One slot a thread, by its id; threads that share one reset each other, and lose nothing but patience.
pub(crate) struct Starvation {
    /// Page address in the upper bits, how often in a row in the lower twelve.
    slots: [Tally; SLOTS],
}

impl Default for Starvation {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Tally::new(0)) }
    }
}

const COUNT: u64 = 0xfff;

impl Starvation {
    /// Notes a look at a fault of `tid` at `at`; whether it may be losing.
    pub(crate) fn is_starving(&self, tid: Tid, at: Addr) -> bool {
        let slot = &self.slots[tid.0 as usize % SLOTS];
        let page = at.0 as u64 & !COUNT;
        let old = slot.load(Ordering::Relaxed);
        let count = if old & !COUNT == page { (old & COUNT) + 1 } else { 1 };
        // After a grace patience begins anew: the page may just be in demand.
        let starving = count > PATIENCE;
        slot.store(page | if starving { 0 } else { count }, Ordering::Relaxed);
        starving
    }
}

/// How many threads are remembered that were woken unserved. Fewer under Miri, which takes a minute to go through them for each.
const UNSERVED_MAX: usize = if cfg!(miri) { 32 } else { 1024 };

/// Threads whose store was woken instead of served, as they were not seen asleep.
///
/// The kernel does not always let a thread sleep in a fault: with its signal flag up, the fault of a system call is tried
/// again and again. Nothing in /proc shows the flag (after a stop, a freeze, a signal that another thread took), so such a thread
/// looks awake, and a wake does nothing for it. Who makes the very access again has not left it.
#[derive(Default)]
pub(crate) struct Unserved {
    /// At most one for each thread, oldest first. Taken by workers, for a moment: a leaf.
    woken: Mutex<VecDeque<Woken>>,
}

struct Woken {
    tid: Tid,
    access: u64,
    /// The number of the first message that may come after the wake.
    next: u64,
}

impl Unserved {
    /// Whether the thread of message `message` has been woken before from this very access and has made it again since. If
    /// not, it is about to be woken, and messages from number `next` on count as again.
    pub(crate) fn insists(&self, fault: &RawFault, message: u64, next: u64) -> bool {
        let (tid, access) = (fault.tid, fault.access_key());
        let mut woken = self.woken.lock();
        if let Some(at) = woken.iter().position(|woken| woken.tid == tid) {
            let same = woken[at].access == access;
            if same && message < woken[at].next {
                return false;
            }
            woken.remove(at);
            if same {
                return true;
            }
        }
        if woken.len() == UNSERVED_MAX {
            woken.pop_front();
        }
        woken.push_back(Woken { tid, access, next });
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Access, FaultKind};

    #[test]
    fn patience_is_for_one_page_and_ends_with_another() {
        let starvation = Starvation::default();
        let (tid, page, other) = (Tid(7), Addr(0x7000), Addr(0x8000));
        let starving: Vec<_> = (0..14).map(|_| starvation.is_starving(tid, page)).collect();
        let at: Vec<_> = starving.iter().enumerate().filter(|(_, starving)| **starving).map(|(at, _)| at).collect();
        assert_eq!(at, [6, 13]);
        assert!(!starvation.is_starving(tid, other));
        assert!(!starvation.is_starving(tid, page));
    }

    #[test]
    fn who_is_woken_unserved_insists_by_making_the_access_again() {
        let unserved = Unserved::default();
        let store =
            |tid, at| RawFault { addr: Addr(at), access: Access::Store, kind: FaultKind::Missing, tid: Tid(tid) };
        assert!(!unserved.insists(&store(1, 0x7000), 3, 10));
        // Read before it was woken.
        assert!(!unserved.insists(&store(1, 0x7000), 9, 12));
        assert!(!unserved.insists(&store(2, 0x7000), 11, 12), "another thread");
        assert!(unserved.insists(&store(1, 0x7000), 10, 12));
        // That was served. It begins anew, and so it does with another address.
        assert!(!unserved.insists(&store(1, 0x7000), 13, 14));
        assert!(!unserved.insists(&store(1, 0x7008), 15, 16));
        assert!(!unserved.insists(&store(1, 0x7000), 17, 18));
    }

    #[test]
    fn no_more_threads_are_remembered_than_there_is_room_for() {
        let unserved = Unserved::default();
        let store = |tid| RawFault { addr: Addr(0), access: Access::Store, kind: FaultKind::Missing, tid: Tid(tid) };
        assert!((0..=UNSERVED_MAX as u32).all(|tid| !unserved.insists(&store(tid), 0, 1)));
        assert!(unserved.insists(&store(1), 1, 2) && !unserved.insists(&store(0), 1, 2));
    }
}
