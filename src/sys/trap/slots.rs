//! Where a fault waits that its own thread cannot resolve: a fixed number of places for the whole process, in
//! memory that is never freed, so that a handler needs nothing to be kept alive for it while it sleeps.

use crate::sync::plain::{AtomicU32, AtomicUsize, Ordering};
use crate::sys::fork::PerProcess;
use crate::sys::{Access, FaultKind, Message, RawFault, Ticket, Tid, Verdict};
use crate::units::Addr;

/// Threads that can wait at once. More repeat their access until there is room.
const SLOTS: usize = 256;

/// The lower bits of a slot's word: what it is used for. Above them is a number that is another each time it is.
const STATE_BITS: u32 = 3;
const FREE: u32 = 0;
const CLAIMED: u32 = 1;
/// The fault is there, and nobody has read it.
const POSTED: u32 = 2;
/// The pager has read it.
const TAKEN: u32 = 3;
const REPEAT: u32 = 4;
const SIGBUS: u32 = 5;

/// `word` is what the thread sleeps on. The other fields are written by the thread between CLAIMED and POSTED, and
/// read by the pager between POSTED and its answer.
struct Slot {
    word: AtomicU32,
    owner: AtomicUsize,
    addr: AtomicUsize,
    /// 1 for a store, 2 for a write-protect fault.
    what: AtomicU32,
    tid: AtomicU32,
}

type Pool = [Slot; SLOTS];

/// A child process has slots of its own: nobody will ever leave those that were taken when it was forked.
static POOL: PerProcess<Pool> = PerProcess::new(|| {
    std::array::from_fn(|_| Slot {
        word: AtomicU32::new(FREE),
        owner: AtomicUsize::new(0),
        addr: AtomicUsize::new(0),
        what: AtomicU32::new(0),
        tid: AtomicU32::new(0),
    })
});

fn pool() -> &'static Pool {
    POOL.get_or_make().expect("who has slots read has a page table, and it a home")
}

/// Makes the slots of this process: [`post`] may not.
pub(super) fn make() {
    pool();
}

fn state(word: u32) -> u32 {
    word & ((1 << STATE_BITS) - 1)
}

fn with_state(word: u32, state: u32) -> u32 {
    word >> STATE_BITS << STATE_BITS | state
}

/// A slot that the calling thread waits at.
pub(super) struct Posted {
    slot: &'static Slot,
    word: u32,
}

/// Puts a fault where `owner` finds it. `None` if every slot is taken.
pub(super) fn post(owner: usize, fault: &RawFault) -> Option<Posted> {
    // Threads begin at different places, so that they rarely meet.
    let first = fault.tid.0 as usize;
    let pool = POOL.get()?;
    (0..SLOTS).map(|step| &pool[(first + step) % SLOTS]).find_map(|slot| {
        let seen = slot.word.load(Ordering::Relaxed);
        let claimed = with_state(seen.wrapping_add(1 << STATE_BITS), CLAIMED);
        let free = state(seen) == FREE;
        if !free || slot.word.compare_exchange(seen, claimed, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        slot.owner.store(owner, Ordering::Relaxed);
        slot.addr.store(fault.addr.0, Ordering::Relaxed);
        slot.tid.store(fault.tid.0, Ordering::Relaxed);
        let store = u32::from(fault.access == Access::Store);
        let mkwrite = u32::from(fault.kind == FaultKind::WriteProtect) << 1;
        slot.what.store(store | mkwrite, Ordering::Relaxed);
        slot.word.store(with_state(claimed, POSTED), Ordering::Release);
        Some(Posted { slot, word: claimed })
    })
}

impl Posted {
    /// Sleeps until the pager has answered.
    pub(super) fn wait(self) -> Verdict {
        loop {
            let word = self.slot.word.load(Ordering::Acquire);
            let verdict = match state(word) {
                REPEAT => Verdict::Repeat,
                SIGBUS => Verdict::Sigbus,
                _ => {
                    sleep_while(&self.slot.word, word);
                    continue;
                }
            };
            self.slot.word.store(with_state(self.word, FREE), Ordering::Release);
            return verdict;
        }
    }
}

/// The faults that have been posted for `owner` and not been read, at most `room` of them.
pub(in crate::sys) fn take_posted(owner: usize, room: usize) -> impl Iterator<Item = Message> {
    let posted = pool().iter().enumerate().filter_map(move |(index, slot)| {
        let word = slot.word.load(Ordering::Acquire);
        if state(word) != POSTED || slot.owner.load(Ordering::Relaxed) != owner {
            return None;
        }
        let taken = with_state(word, TAKEN);
        slot.word.compare_exchange(word, taken, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let what = slot.what.load(Ordering::Relaxed);
        let fault = RawFault {
            addr: Addr(slot.addr.load(Ordering::Relaxed)),
            access: if what & 1 != 0 { Access::Store } else { Access::Load },
            kind: if what & 2 != 0 { FaultKind::WriteProtect } else { FaultKind::Minor },
            tid: Tid(slot.tid.load(Ordering::Relaxed)),
        };
        Some(Message::Posted(fault, Ticket((index as u64) << 32 | u64::from(taken))))
    });
    posted.take(room)
}

/// Answers a fault that has been read, and wakes its thread. A second answer is none.
pub(in crate::sys) fn answer(ticket: Ticket, verdict: Verdict) {
    let slot = &pool()[(ticket.0 >> 32) as usize % SLOTS];
    give(slot, ticket.0 as u32, verdict);
}

fn give(slot: &Slot, word: u32, verdict: Verdict) {
    let answered = with_state(word, if verdict == Verdict::Repeat { REPEAT } else { SIGBUS });
    if slot.word.compare_exchange(word, answered, Ordering::Release, Ordering::Relaxed).is_ok() {
        wake(&slot.word);
    }
}

/// Has every thread that waits for `owner` repeat its access: nobody will answer any more, and none will post.
pub(in crate::sys) fn dismiss(owner: usize) {
    for slot in pool() {
        let word = slot.word.load(Ordering::Acquire);
        if matches!(state(word), POSTED | TAKEN) && slot.owner.load(Ordering::Relaxed) == owner {
            give(slot, word, Verdict::Repeat);
        }
    }
}

fn sleep_while(word: &AtomicU32, seen: u32) {
    let (op, forever) = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, std::ptr::null::<libc::timespec>());
    // SAFETY: an aligned word, borrowed as long as the call; the kernel only compares it. Whatever it answers, `Posted::wait` looks again.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, seen, forever) };
}

fn wake(word: &AtomicU32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: an aligned word, borrowed as long as the call, of which the kernel uses the address alone.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(addr: usize) -> RawFault {
        RawFault { addr: Addr(addr), access: Access::Store, kind: FaultKind::WriteProtect, tid: Tid(7) }
    }

    /// Each owner reads its own, once; the answer reaches its thread and no later one in the same slot.
    #[test]
    fn an_answer_is_for_one_fault() {
        make();
        let (ours, others) = (usize::MAX, usize::MAX - 1);
        let posted = post(ours, &fault(0x1000)).unwrap();
        assert!(take_posted(others, 9).next().is_none());
        let [Message::Posted(read, ticket)] = take_posted(ours, 9).collect::<Vec<_>>()[..] else { panic!("not one") };
        assert_eq!(read, fault(0x1000));
        assert!(take_posted(ours, 9).next().is_none());
        answer(ticket, Verdict::Sigbus);
        assert_eq!(posted.wait(), Verdict::Sigbus);
        let again = post(ours, &fault(0x2000)).unwrap();
        answer(ticket, Verdict::Sigbus);
        dismiss(others);
        assert_eq!(state(again.slot.word.load(Ordering::Relaxed)), POSTED);
        dismiss(ours);
        assert_eq!(again.wait(), Verdict::Repeat);
    }

    #[test]
    fn a_thread_sleeps_until_it_is_answered() {
        make();
        let ours = usize::MAX - 2;
        let waiting = std::thread::spawn(move || post(ours, &fault(0x3000)).unwrap().wait());
        let ticket = loop {
            match take_posted(ours, 9).next() {
                Some(Message::Posted(_, ticket)) => break ticket,
                _ => std::thread::yield_now(),
            }
        };
        answer(ticket, Verdict::Repeat);
        assert_eq!(waiting.join().unwrap(), Verdict::Repeat);
    }
}
