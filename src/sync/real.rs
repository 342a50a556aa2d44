//! The primitives that the library runs on.
//!
//! The locks are parking_lot's: no poisoning (a panicking control call must not take the file
//! with it), and fairness. A thread that punches in a loop hands the lock over with
//! [`RwLockWriteGuard::unlock_fair`], so that a fault waiting for it gets its turn.

#[cfg(feature = "fake")]
pub(crate) use parking_lot::Condvar;
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};
pub(crate) use std::thread;

use std::time::{Duration, Instant};

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

/// How often something is tried that will be free in a moment: some tens of microseconds in all.
pub(crate) const TRIES: u32 = 192;

/// Between two tries.
pub(crate) fn pause() {
    (0..16).for_each(|_| std::hint::spin_loop());
}

/// Gives other threads `time` to run. Only for back-off: nothing may depend on its length.
pub(crate) fn back_off(time: Duration) {
    thread::sleep(time);
}

/// When to stop waiting for something that may never come.
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// Never, if the clock does not go so far.
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now().checked_add(time))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }
}

/// Something that other threads see, and may come before or after. Only the schedule checker has to be told.
#[inline]
pub(crate) fn step() {}
