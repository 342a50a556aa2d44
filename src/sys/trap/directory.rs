//! The watched ranges by address. Handlers look, and wait for nobody: not for a lock, whose holder may not run while the
//! handler does (real-time threads), or is not there any more (a forked child).
//!
//! What a handler sees is a map that nobody changes any more. Whoever changes it puts another one in its place, and
//! frees the old one once no look-up can have it: look-ups are counted in one of two counters, and the writer has each
//! of them run empty once, while new look-ups go to the other.
//!
//! ```text
//! handler                                           watch, unwatch
//!   which counter, count in
//!   load the pointer
//!                                                     put the new map in place
//!                                                     new look-ups: the other counter; wait for this one
//!   look, clone, count out
//!                                                     the same once more: a handler may have chosen its
//!                                                     counter before, and counted in after, the first time
//!                                                     free the old map
//! ```

use std::collections::BTreeMap;

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::Watched;
use crate::sync::Arc;
use crate::sync::plain::{AtomicPtr, AtomicUsize, CachePadded, Mutex, MutexGuard, Ordering, PoisonError, yield_now};
use crate::sys::Tid;
use crate::sys::fork::PerProcess;
use crate::units::Addr;

pub(super) type Directory = BTreeMap<usize, Arc<Watched>>;

pub(super) const COPIES: usize = 8;

/// One of the copies. A child process has its own. Each has entries of its own: a handler counts itself in where few others do.
#[derive(Default)]
struct Copy {
    /// Null as long as it is empty.
    map: AtomicPtr<Directory>,
    /// Which counter new look-ups take: the lowest bit.
    turn: AtomicUsize,
    /// Look-ups under way.
    looking: [AtomicUsize; 2],
}

/// The watched ranges, several times over, so that threads that fault side by side share no cache line.
static DIRECTORY: PerProcess<[CachePadded<Copy>; COPIES]> = PerProcess::new(Default::default);

/// Held by whoever changes the directory, with signals blocked, so that no handler runs in a thread that holds it. A leaf; no
/// handler takes it.
static CHANGING: PerProcess<Mutex<()>> = PerProcess::new(Default::default);

/// Who has this holds [`CHANGING`].
struct Changing(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Changing {
    fn begin() -> Self {
        let changing = CHANGING.get_or_make().expect(HOME);
        Self(changing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

const HOME: &str = "who watches a range has a page table, and it a home";

impl Copy {
    fn look(&self, at: Addr) -> Option<Arc<Watched>> {
        // In one order with what `replace` does: either the writer sees the count, or this sees the new map.
        let counter = &self.looking[self.turn.load(Ordering::SeqCst) & 1];
        counter.fetch_add(1, Ordering::SeqCst);
        // SAFETY: null, or made by `Box::into_raw` in `replace`, and not freed as long as the look-up is counted.
        let map = unsafe { self.map.load(Ordering::SeqCst).as_ref() };
        let found = map.and_then(|map| {
            let (base, watched) = map.range(..=at.0).next_back()?;
            (at.since(Addr(*base)) < watched.bytes).then(|| watched.clone())
        });
        counter.fetch_sub(1, Ordering::SeqCst);
        found
    }

    /// Puts `map` in place of the one that is there, and frees that.
    fn replace(&self, map: Directory, _: &Changing) {
        let old = self.map.swap(Box::into_raw(Box::new(map)), Ordering::SeqCst);
        for _ in 0..2 {
            let before = self.turn.fetch_add(1, Ordering::SeqCst) & 1;
            // For look-ups alone, which wait for nothing.
            while self.looking[before].load(Ordering::SeqCst) != 0 {
                yield_now();
            }
        }
        if !old.is_null() {
            // SAFETY: made by `Box::into_raw` above, and taken out of the only place that has it. No look-up uses it any more (the loop), and
            // no other writer (`Changing`).
            drop(unsafe { Box::from_raw(old) });
        }
    }

    fn present(&self, _: &Changing) -> Directory {
        // SAFETY: as in `look`; `replace` alone frees it, and has the lock for that, which the caller has.
        unsafe { self.map.load(Ordering::SeqCst).as_ref() }.cloned().unwrap_or_default()
    }
}

/// Changes each copy.
pub(super) fn change_all(mut change: impl FnMut(&mut Directory)) {
    // Miri has no signals, and knows no call about them.
    let before = (!cfg!(miri)).then(|| {
        let mut before = SigSet::empty();
        // Fails only for a bad `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
        before
    });
    {
        let changing = Changing::begin();
        for copy in DIRECTORY.get_or_make().expect(HOME) {
            let mut map = copy.present(&changing);
            change(&mut map);
            copy.replace(map, &changing);
        }
    }
    if let Some(before) = before {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    }
}

/// Whose range it is.
pub(super) fn find(at: Addr, thread: Tid) -> Option<Arc<Watched>> {
    DIRECTORY.get()?[thread.0 as usize % COPIES].look(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::plain::AtomicBool;
    use crate::sys::trap::Kick;
    use crate::sys::{RawFault, Resolver, Verdict};

    struct Nobody;

    impl Kick for Nobody {
        fn kick(&self) {}
    }

    impl Resolver for Nobody {
        fn resolve(&self, _: &RawFault) -> Option<Verdict> {
            None
        }
    }

    /// Ranges that come and go, looked up meanwhile: one that stays is always found, and nothing is used after it was freed.
    #[test]
    fn look_ups_beside_changes_find_what_is_there() {
        const STAYS: usize = 1 << 60;
        let rounds = if cfg!(miri) { 20 } else { 500 };
        let watched =
            |owner| Arc::new(Watched { bytes: 4096, owner, kick: Arc::new(Nobody), resolver: Arc::new(Nobody) });
        change_all(|map| drop(map.insert(STAYS, watched(7))));
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            for thread in 0..2 {
                let done = &done;
                s.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let found = find(Addr(STAYS + 4095), Tid(thread * 8)).expect("it is there all the time");
                        assert_eq!(found.owner, 7);
                        assert!(find(Addr(STAYS + 4096), Tid(thread * 8)).is_none_or(|other| other.owner == 8));
                    }
                });
            }
            for _ in 0..rounds {
                change_all(|map| drop(map.insert(STAYS + 4096, watched(8))));
                change_all(|map| drop(map.remove(&(STAYS + 4096))));
            }
            done.store(true, Ordering::Relaxed);
        });
        change_all(|map| drop(map.remove(&STAYS)));
        assert!(find(Addr(STAYS), Tid(0)).is_none());
    }
}
