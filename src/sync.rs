//! The one place that picks synchronisation primitives. Nothing else imports `std::sync` locks,
//! `parking_lot` or `crossbeam`, so that a schedule checker can be put underneath.
//!
//! The locks are parking_lot's: no poisoning (a panicking control call must not take the file
//! with it), and fairness. A thread that punches in a loop hands the lock over with
//! [`RwLockWriteGuard::unlock_fair`], so that a fault waiting for it gets its turn.

#[allow(unused_imports, reason = "Condvar is for the fake page table")]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::thread;

use std::time::Duration;

/// An unbounded queue from the reader to the workers: `push` never waits.
pub(crate) struct Queue<T> {
    tx: crossbeam::channel::Sender<T>,
    rx: crossbeam::channel::Receiver<T>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let (tx, rx) = crossbeam::channel::unbounded();
        Self { tx, rx }
    }

    pub(crate) fn push(&self, item: T) {
        // Both ends live in this struct: the channel cannot be disconnected.
        let _ = self.tx.send(item);
    }

    /// Waits for an item.
    pub(crate) fn pop(&self) -> T {
        match self.rx.recv() {
            Ok(item) => item,
            Err(_) => unreachable!("the queue owns a sender"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rx.len()
    }
}

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

/// Gives other threads `time` to run. Only for back-off: nothing may depend on its length.
pub(crate) fn back_off(time: Duration) {
    thread::sleep(time);
}
