//! The one place that picks synchronisation primitives. Nothing else imports `std::sync` locks,
//! `parking_lot` or `crossbeam`, so that a schedule checker can be put underneath: with the feature
//! `shuttle` every lock, every wait and every atomic that something is decided by is shuttle's, and each is
//! a point at which the checker may let another thread run.
//!
//! [`Tally`] is not: numbers that nobody decides by, and that only one thread touches, would make schedules
//! longer and not richer.

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
/// Of the process and not of one run of a model, so that it is no point of schedule there: for what all pagers share.
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
