//! The primitives of the schedule checker, in the shape of those in `real`. A library built with them runs inside
//! a `shuttle` execution and nowhere else: all threads are coroutines of one.
//!
//! The reader-writer lock is not shuttle's own, whose readers overtake a waiting writer: parking_lot's do not, and a
//! deadlock through a writer that waits between two readers would go unseen.

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64};
pub(crate) use shuttle::thread;

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) use std::sync::RwLockReadGuard as RwLockPeek;

use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};

/// A lock without poisoning.
pub(crate) struct Mutex<T> {
    /// What threads wait for.
    turn: shuttle::sync::Mutex<()>,
    /// Never waited for: whoever has the turn finds it free.
    value: std::sync::Mutex<T>,
}

/// See [`Mutex`]. The value goes first, so that it is free when the turn is.
pub(crate) struct MutexGuard<'a, T> {
    /// `None` only while a [`Condvar`] has it.
    value: Option<std::sync::MutexGuard<'a, T>>,
    turn: Option<shuttle::sync::MutexGuard<'a, ()>>,
    of: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    #[track_caller]
    pub(crate) fn new(value: T) -> Self {
        Self { turn: shuttle::sync::Mutex::new(()), value: std::sync::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.having(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        use std::sync::TryLockError;
        match self.turn.try_lock() {
            Ok(turn) => Some(self.having(turn)),
            Err(TryLockError::Poisoned(error)) => Some(self.having(error.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn having<'a>(&'a self, turn: shuttle::sync::MutexGuard<'a, ()>) -> MutexGuard<'a, T> {
        let value = self.peek().expect("whoever has the turn has the value");
        MutexGuard { value: Some(value), turn: Some(turn), of: self }
    }

    /// The value, if nobody has the lock: for looks between two steps of a schedule, which are no steps themselves.
    pub(crate) fn peek(&self) -> Option<std::sync::MutexGuard<'_, T>> {
        use std::sync::TryLockError;
        match self.value.try_lock() {
            Ok(value) => Some(value),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.try_lock().is_none()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("a guard is whole unless it waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("a guard is whole unless it waits")
    }
}

/// Waits until it is told. Never wakes for nothing.
pub(crate) struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    #[track_caller]
    pub(crate) fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.value = None;
        let turn = guard.turn.take().expect("a guard is whole unless it waits");
        *guard = guard.of.having(self.0.wait(turn).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// More readers than there will ever be.
const READERS_MAX: usize = 1 << 16;

/// A reader-writer lock that is handed over in the order in which it was asked for, so that a waiting writer keeps new
/// readers out, as parking_lot's does.
pub(crate) struct RwLock<T> {
    permits: BatchSemaphore,
    /// Never waited for: whoever has the permits finds it free.
    value: std::sync::RwLock<T>,
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { permits: BatchSemaphore::new(READERS_MAX, Fairness::StrictlyFair), value: std::sync::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let permits = Permits::wait(&self.permits, 1);
        self.reading(permits)
    }

    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let permits = Permits::take(&self.permits, 1)?;
        Some(self.reading(permits))
    }

    fn reading<'a>(&'a self, permits: Permits<'a>) -> RwLockReadGuard<'a, T> {
        let value = self.peek().expect("a reader has a permit, so there is no writer");
        RwLockReadGuard { value, _permits: permits }
    }

    /// The value, if nobody has the lock exclusively. See [`Mutex::peek`].
    pub(crate) fn peek(&self) -> Option<RwLockPeek<'_, T>> {
        use std::sync::TryLockError;
        match self.value.try_read() {
            Ok(value) => Some(value),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        use std::sync::TryLockError;
        let permits = Permits::wait(&self.permits, READERS_MAX);
        let value = match self.value.try_write() {
            Ok(value) => value,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => unreachable!("a writer has all permits"),
        };
        RwLockWriteGuard { value, _permits: permits }
    }

    pub(crate) fn is_locked(&self) -> bool {
        self.permits.available_permits() < READERS_MAX
    }

    pub(crate) fn is_locked_exclusive(&self) -> bool {
        self.permits.available_permits() == 0
    }
}

struct Permits<'a> {
    of: &'a BatchSemaphore,
    count: usize,
}

impl<'a> Permits<'a> {
    fn wait(of: &'a BatchSemaphore, count: usize) -> Self {
        of.acquire_blocking(count).expect("the lock is never closed");
        Self { of, count }
    }

    fn take(of: &'a BatchSemaphore, count: usize) -> Option<Self> {
        of.try_acquire(count).ok()?;
        Some(Self { of, count })
    }
}

impl Drop for Permits<'_> {
    fn drop(&mut self) {
        self.of.release(self.count);
    }
}

/// See [`RwLock`]. The value goes first, so that it is free when the permits are.
pub(crate) struct RwLockReadGuard<'a, T> {
    value: std::sync::RwLockReadGuard<'a, T>,
    _permits: Permits<'a>,
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// See [`RwLockReadGuard`].
pub(crate) struct RwLockWriteGuard<'a, T> {
    value: std::sync::RwLockWriteGuard<'a, T>,
    _permits: Permits<'a>,
}

impl<T> RwLockWriteGuard<'_, T> {
    pub(crate) fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").finish_non_exhaustive()
    }
}

/// See the one in `real`.
pub(crate) struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    pushed: Condvar,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { items: Mutex::new(VecDeque::new()), pushed: Condvar::new() }
    }

    pub(crate) fn push(&self, item: T) {
        self.items.lock().push_back(item);
        self.pushed.notify_one();
    }

    pub(crate) fn pop(&self) -> T {
        let mut items = self.items.lock();
        loop {
            match items.pop_front() {
                Some(item) => return item,
                None => self.pushed.wait(&mut items),
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.items.lock().len()
    }
}

/// More would make schedules longer, and show nothing that two do not.
pub(crate) const TRIES: u32 = 2;

/// See `real`.
pub(crate) fn pause() {
    thread::yield_now();
}

/// There is no time here: everybody else may run.
pub(crate) fn back_off(_: Duration) {
    thread::yield_now();
}

/// Over when it has been asked for some times: who asks lets others run in between.
pub(crate) struct Deadline(AtomicU32);

/// Enough for any thread to run that a scheduler does not keep from running on purpose.
const ASKED_MAX: u32 = 30;

impl Deadline {
    pub(crate) fn after(_: Duration) -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= ASKED_MAX
    }
}

/// Something that other threads see, and may come before or after.
pub(crate) fn step() {
    thread::sleep(Duration::ZERO);
}
