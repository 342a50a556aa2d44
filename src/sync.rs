//! The one place that picks synchronisation primitives. Nothing else imports those of `std`,
//! `parking_lot` or `crossbeam` (`tests/sources.rs`), so that a schedule checker can be put underneath: with the feature
//! `shuttle` every lock, every wait and every atomic that something is decided by is shuttle's, and each is
//! a point at which the checker may let another thread run.
//!
//! [`Tally`] is not: numbers that nobody decides by, and that only one thread touches, would make schedules
//! longer and not richer. Nor is what is in [`plain`], nor the locks of the process:
//!
//! | plain in | because | what stands for the checker |
//! |---|---|---|
//! | `sys/access/`, `sys/sent.rs`, `sys/passing.rs` | runs in a signal handler, which may interrupt any two instructions and may wait for no checker; the model has no signals | words that are set once, or counters in one order (SeqCst); the tables in these files say which comes first |
//! | `sys/trap/` | likewise. The model's threads that resolve their own faults (`sys/fake`) have the checker's locks in its place | tests beside changes, in `make miri` too, with Miri's weak memory |
//! | `sys/fork.rs` | statics that are there before and after a fork, in a process that may have one thread of many; no step waits | `tests/forks.rs`, Miri |
//! | `sys/userfault/` | the kernel's page table: a model has the fake one | leaves, held for the time of a push or a look; the stress harness |
//! | `sys/memory/` | the words of the fake device and the bits of dirty pages: thousands of points of schedule with nothing decided in between | [`step`] before each access to the device; bits are set under L2 shared and taken under it exclusively, and that lock is the checker's |
//! | `sys/place.rs`, `pager/budget.rs` | what all pagers of the process share (`ProcessMutex`, `ProcessRwLock`), while each run of a model is a world of its own | leaves, and hints: nothing is lost by an answer that is late |
//! | `sys/process.rs` | waits for what the kernel says of a thread, 5 ms at most | the fake page table answers such questions itself |

#[cfg(feature = "shuttle")]
mod model;
#[cfg(not(feature = "shuttle"))]
mod real;

#[cfg(feature = "shuttle")]
use model as chosen;
#[cfg(not(feature = "shuttle"))]
use real as chosen;

#[cfg(feature = "fake")]
pub(crate) use chosen::Condvar;
pub(crate) use chosen::{
    AtomicBool, AtomicU64, Deadline, Mutex, MutexGuard, Queue, RwLock, RwLockReadGuard, RwLockWriteGuard, TRIES,
    back_off, pause, step, thread,
};
#[cfg(feature = "shuttle")]
pub(crate) use model::RwLockPeek;

/// Never a checker's: for signal handlers, and for what they share with others. The table above says who may, and why.
pub(crate) mod plain {
    pub(crate) use crossbeam::utils::CachePadded;
    #[cfg(feature = "fake")]
    pub(crate) use std::sync::atomic::fence;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
    pub(crate) use std::thread::{sleep, yield_now};
}

/// Of the process and not of one run of a model, so that it is no point of schedule there: for what all pagers share, and for what only the
/// kernel's page table has.
pub(crate) use parking_lot::{Mutex as ProcessMutex, RwLock as ProcessRwLock};
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::Weak;
pub(crate) use std::sync::atomic::{AtomicU64 as Tally, Ordering};

/// How a lock is held at one moment, which may be over by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Held {
    Free,
    Shared,
    Exclusively,
}

impl Held {
    /// Asks, and never waits.
    pub(crate) fn of<T>(lock: &RwLock<T>) -> Self {
        match (lock.is_locked_exclusive(), lock.is_locked()) {
            (true, _) => Held::Exclusively,
            (false, true) => Held::Shared,
            (false, false) => Held::Free,
        }
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Held::Free => "free",
            Held::Shared => "held shared",
            Held::Exclusively => "held exclusively",
        })
    }
}
