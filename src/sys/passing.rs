//! Poison that passes. Where no signal ends a store without a block (a system call's; a thread that cannot be asked about), its page is
//! poisoned for a moment. That is meant for the store: a load by the CPU that meets the poison is repeated by the handler, until
//! it is gone. A handler runs after the fault, so it must also know of poison that has gone since.
//!
//! ```text
//! worker                                            load
//!   begin: the range is listed
//!   poison
//!                                                     SIGBUS
//!   zap
//!   end: counted, then not listed any more
//!                                                     handler: not listed. Has one ended since this very load was
//!                                                     last repeated? Then it was that one's: repeat
//! ```
//!
//! A SIGBUS is the load's own if no range is listed there and none has ended since the handler looked last, for the same load: past the
//! end of a file that costs one repetition more, and only where poison has ever passed.

use nix::errno::Errno;

use super::fork::PerProcess;
use super::{Access, Addr, Part, access, trap};
use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering, sleep, yield_now};

/// Ranges at a time: no more than there are workers, most of the time. Who finds no room waits.
const LISTED_MAX: usize = 64;
const COUNTS: usize = 256;
/// Ranges in the same 2 MiB are counted together.
const GRANULE_BITS: u32 = 21;

/// What has been poisoned in this process. A forked child has nothing of it: nobody would ever end what was listed when it was
/// forked.
static LISTS: PerProcess<Lists> = PerProcess::new(|| Lists {
    listed: [const { AtomicUsize::new(0) }; LISTED_MAX],
    ended: [const { AtomicU64::new(0) }; COUNTS],
    repeated: [const { AtomicU64::new(0) }; COUNTS],
    ended_in_all: AtomicU64::new(0),
});

struct Lists {
    /// Each a start, aligned to its size, and the binary logarithm of the size in the lowest bits; 0 is free.
    listed: [AtomicUsize; LISTED_MAX],
    /// How many have ended, by address.
    ended: [AtomicU64; COUNTS],
    /// What was repeated last, by thread: a digest of the thread, the access and the count at the time.
    repeated: [AtomicU64; COUNTS],
    /// How many have ended anywhere.
    ended_in_all: AtomicU64,
}

fn lists() -> &'static Lists {
    LISTS.get_or_make().expect("who poisons has a page table, and it a home")
}

/// How often a system call is repeated that may have met such poison, each time after this long: for a second or so.
const CALLS_MAX: u32 = 10_000;
const PAUSE: std::time::Duration = std::time::Duration::from_micros(100);

fn entry_of(at: Addr, bytes: u64) -> usize {
    debug_assert!(bytes.is_power_of_two() && (at.0 as u64).is_multiple_of(bytes) && bytes > 63);
    at.0 | bytes.trailing_zeros() as usize
}

impl Lists {
    fn ended(&self, addr: usize) -> &AtomicU64 {
        &self.ended[(addr >> GRANULE_BITS) % COUNTS]
    }

    fn is_listed(&self, addr: usize) -> bool {
        self.listed.iter().any(|slot| {
            let entry = slot.load(Ordering::SeqCst);
            let bits = entry % 64;
            entry != 0 && addr >> bits == entry >> bits
        })
    }
}

/// The range may be poisoned from now on.
pub(super) fn begin(at: Addr, bytes: u64) {
    // Where it cannot be had, loads are hit as they would be without it.
    let _ = access::enable();
    let entry = entry_of(at, bytes);
    let lists = lists();
    while !lists.listed.iter().any(|slot| slot.compare_exchange(0, entry, Ordering::SeqCst, Ordering::Relaxed).is_ok())
    {
        yield_now();
    }
}

/// The poison has been zapped.
pub(super) fn end(at: Addr, bytes: u64) {
    let lists = lists();
    lists.ended(at.0).fetch_add(1, Ordering::SeqCst);
    lists.ended_in_all.fetch_add(1, Ordering::SeqCst);
    let entry = entry_of(at, bytes);
    // Of two that are the same either is as good.
    let _ =
        lists.listed.iter().any(|slot| slot.compare_exchange(entry, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok());
}

/// Whether the thread was in a load when the kernel raised its SIGBUS at `addr`, and is to repeat it: it has met, or may have met,
/// poison that was not meant for it. In a signal handler: it takes no lock and allocates nothing.
pub(super) fn is_to_be_repeated(addr: usize, context: &libc::ucontext_t) -> bool {
    // The list first: what has left it has been counted.
    let Some(lists) = LISTS.get() else { return false };
    let listed = lists.is_listed(addr);
    let count = lists.ended(addr).load(Ordering::SeqCst);
    if (!listed && count == 0) || trap::access(addr, context) != Some(Access::Load) {
        return false;
    }
    if listed {
        yield_now();
    }
    let thread = nix::unistd::gettid().as_raw() as u64;
    let digest = [thread, addr as u64, count].iter().fold(0x9e37_79b9_7f4a_7c15_u64, |digest, word| {
        (digest ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    });
    // Of two threads with the same slot each may have the other repeat once more than it need, and no longer than they take turns to the very
    // instruction. Broken memory, which has the same code as poison, ends the same way: it is repeated while the range is listed, and once.
    let before = lists.repeated[thread as usize % COUNTS].swap(digest, Ordering::SeqCst);
    listed || before != digest
}

/// Makes a system call that loads from a part of a mapping, and has done nothing when it fails with EFAULT: again as long as it may have met
/// poison that was not meant for it.
pub(crate) fn outlast<T>(part: Part<'_>, call: impl Fn(Part<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    outlast_at(part.at(), part.bytes(), || call(part))
}

fn outlast_at<T>(at: usize, bytes: usize, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    let lists = lists();
    let meets = || {
        lists.listed.iter().map(|slot| slot.load(Ordering::SeqCst)).filter(|entry| *entry != 0).any(|entry| {
            let start = entry >> (entry % 64) << (entry % 64);
            start < at.saturating_add(bytes) && at < start + (1 << (entry % 64))
        })
    };
    for _ in 0..CALLS_MAX {
        let before = lists.ended_in_all.load(Ordering::SeqCst);
        match call() {
            // The list first, as above.
            Err(Errno::EFAULT) if meets() || lists.ended_in_all.load(Ordering::SeqCst) != before => sleep(PAUSE),
            done => return done,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "assembler")]
    fn a_range_is_listed_until_it_has_ended() {
        // Addresses that no mapping of this program has.
        let (page, huge) = (Addr(0x7000), Addr(0x60_0000));
        let before = lists().ended(page.0).load(Ordering::SeqCst);
        begin(page, 4096);
        begin(page, 4096);
        begin(huge, 2 << 20);
        assert!(
            lists().is_listed(0x7000)
                && lists().is_listed(0x7fff)
                && !lists().is_listed(0x6fff)
                && !lists().is_listed(0x8000)
        );
        assert!(lists().is_listed(0x60_0000) && lists().is_listed(0x7f_ffff) && !lists().is_listed(0x80_0000));
        end(page, 4096);
        assert!(lists().is_listed(0x7000), "the other one");
        end(page, 4096);
        end(huge, 2 << 20);
        assert!(!lists().is_listed(0x7000) && !lists().is_listed(0x60_0000));
        assert_eq!(lists().ended(page.0).load(Ordering::SeqCst), before + 2);
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembler")]
    fn a_call_that_meets_poison_is_made_again_when_it_has_passed() {
        let page = Addr(0x7000_0000);
        begin(page, 4096);
        let calls = AtomicU64::new(0);
        let call = || match calls.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Errno::EFAULT),
            // It passes during the call, which fails nevertheless.
            1 => {
                end(page, 4096);
                Err(Errno::EFAULT)
            }
            _ => Ok(8),
        };
        assert_eq!(outlast_at(page.0 + 4088, 16, call), Ok(8));
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }
}
