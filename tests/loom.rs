//! The handshakes that the core is made of, each alone and run to the end by the checker loom: every schedule, and
//! every value that the memory model lets a relaxed load see. Small copies, unlike the models of `tests/model`: what is
//! checked is the idea. Each has a test that leaves one step out, and must fail.

#[path = "common/guard.rs"]
mod guard;

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex, RwLock};
use loom::thread;

/// Runs every schedule: as many as there are. The checker sees a hang in one of them.
fn every_schedule(body: impl Fn() + Sync + Send + 'static) {
    guard::allow(std::time::Duration::from_secs(3600));
    loom::model(body);
}

/// A flag that is waited for: an eventfd, or the wait queue of a fault.
struct Flag {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn new() -> Self {
        Self { set: Mutex::new(false), changed: Condvar::new() }
    }

    fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Waits until it is set, and takes it back.
    fn take(&self) {
        let mut set = self.set.lock().unwrap();
        while !*set {
            set = self.changed.wait(set).unwrap();
        }
        *set = false;
    }
}

/// Where a fault lets go of the file's lock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LetsGo {
    AfterInstalling,
    BeforeInstalling,
}

const NO_BLOCK: usize = 0;
const BLOCK: usize = 1;

/// A fault looks a page up and installs it, while the page is punched and its block freed. Nobody who
/// finds the block free may find it mapped.
fn guard(lets_go: LetsGo) {
    every_schedule(move || {
        let extent = Arc::new(RwLock::new(BLOCK));
        let entry = Arc::new(AtomicUsize::new(NO_BLOCK));
        let free = Arc::new(AtomicBool::new(false));
        let fault = thread::spawn({
            let (extent, entry) = (extent.clone(), entry.clone());
            move || {
                let guard = extent.read().unwrap();
                let block = *guard;
                if lets_go == LetsGo::BeforeInstalling {
                    drop(guard);
                    entry.store(block, Ordering::Relaxed);
                } else {
                    entry.store(block, Ordering::Relaxed);
                    drop(guard);
                }
            }
        });
        let puncher = thread::spawn({
            let (extent, entry, free) = (extent.clone(), entry.clone(), free.clone());
            move || {
                let mut guard = extent.write().unwrap();
                *guard = NO_BLOCK;
                entry.store(NO_BLOCK, Ordering::Relaxed);
                drop(guard);
                free.store(true, Ordering::Release);
            }
        });
        if free.load(Ordering::Acquire) {
            assert_eq!(entry.load(Ordering::Relaxed), NO_BLOCK, "a free block is mapped");
        }
        fault.join().unwrap();
        puncher.join().unwrap();
        assert_eq!(entry.load(Ordering::Relaxed), NO_BLOCK, "a free block is mapped");
    });
}

#[test]
fn what_is_installed_under_the_guard_is_zapped() {
    guard(LetsGo::AfterInstalling);
}

#[test]
#[should_panic(expected = "a free block is mapped")]
fn what_is_installed_after_the_guard_is_not() {
    guard(LetsGo::BeforeInstalling);
}

/// Work for a worker.
enum Job {
    Fault,
    Stop,
}

struct Queue {
    jobs: Mutex<VecDeque<Job>>,
    pushed: Condvar,
}

impl Queue {
    fn new() -> Self {
        Self { jobs: Mutex::new(VecDeque::new()), pushed: Condvar::new() }
    }

    fn push(&self, job: Job) {
        self.jobs.lock().unwrap().push_back(job);
        self.pushed.notify_one();
    }

    fn pop(&self) -> Job {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            match jobs.pop_front() {
                Some(job) => return job,
                None => jobs = self.pushed.wait(jobs).unwrap(),
            }
        }
    }
}

/// When the workers are told to stop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stops {
    Behind,
    InFront,
}

/// The reader hands a fault over to two workers, and these are told to stop: the fault is served once, if it
/// is in the queue before that. (With two faults there are too many schedules to see the end of.)
fn queue(stops: Stops) {
    every_schedule(move || {
        let queue = Arc::new(Queue::new());
        let served = Arc::new(AtomicUsize::new(0));
        let worker = || {
            let (queue, served) = (queue.clone(), served.clone());
            thread::spawn(move || {
                while let Job::Fault = queue.pop() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let workers = [worker(), worker()];
        let stop = || (0..2).for_each(|_| queue.push(Job::Stop));
        if stops == Stops::InFront {
            stop();
        }
        queue.push(Job::Fault);
        if stops == Stops::Behind {
            stop();
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(served.load(Ordering::Relaxed), 1, "not served once");
    });
}

#[test]
fn a_fault_handed_over_is_served_once() {
    queue(Stops::Behind);
}

#[test]
#[should_panic(expected = "not served once")]
fn a_fault_behind_the_stops_is_not_served() {
    queue(Stops::InFront);
}

/// A pager is told to end: the reader notices, a worker revokes the mappings, the reader notices that and ends. `kicks`:
/// whether the worker wakes the reader when it is done.
fn shutdown(kicks: bool) {
    every_schedule(move || {
        let kicked = Arc::new(Flag::new());
        let revoke = Arc::new(Flag::new());
        let stopping = Arc::new(AtomicBool::new(false));
        let revoked = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (kicked, revoke) = (kicked.clone(), revoke.clone());
            let (stopping, revoked) = (stopping.clone(), revoked.clone());
            move || {
                let mut told = false;
                while !revoked.load(Ordering::Acquire) {
                    kicked.take();
                    if stopping.load(Ordering::Acquire) && !told {
                        told = true;
                        revoke.set();
                    }
                }
            }
        });
        let worker = thread::spawn({
            let kicked = kicked.clone();
            let revoked = revoked.clone();
            move || {
                revoke.take();
                revoked.store(true, Ordering::Release);
                if kicks {
                    kicked.set();
                }
            }
        });
        stopping.store(true, Ordering::Release);
        kicked.set();
        reader.join().unwrap();
        worker.join().unwrap();
        assert!(revoked.load(Ordering::Acquire));
    });
}

#[test]
fn a_pager_that_is_told_to_end_does() {
    shutdown(true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_reader_that_is_not_woken_at_the_end_waits_for_ever() {
    shutdown(false);
}

/// Two faults on one page. The first one's answer makes an entry, and wakes whoever it sees waiting; the second
/// thread is just falling asleep, and neither need see the other. Its own message is answered by EEXIST then:
/// what ends its sleep is the wake that follows.
///
/// ```text
/// worker of the first fault          second thread                  worker of the second fault
///   make the entry                     queue up
///   anybody queued? Not seen           an entry? Not seen
///                                      sleep                          EEXIST. Wake
/// ```
fn eexist(wakes: bool) {
    every_schedule(move || {
        let entry = Arc::new(AtomicUsize::new(NO_BLOCK));
        let queued = Arc::new(AtomicBool::new(false));
        let woken = Arc::new(Flag::new());
        let message = Arc::new(Flag::new());
        let first = thread::spawn({
            let (entry, queued, woken) = (entry.clone(), queued.clone(), woken.clone());
            move || {
                let made = entry.compare_exchange(NO_BLOCK, BLOCK, Ordering::Relaxed, Ordering::Relaxed).is_ok();
                if made && queued.load(Ordering::Relaxed) {
                    woken.set();
                }
            }
        });
        let second = thread::spawn({
            let (entry, woken, message) = (entry.clone(), woken.clone(), message.clone());
            move || {
                message.take();
                let made = entry.compare_exchange(NO_BLOCK, BLOCK, Ordering::Relaxed, Ordering::Relaxed).is_ok();
                if made || wakes {
                    woken.set();
                }
            }
        });
        queued.store(true, Ordering::Relaxed);
        message.set();
        if entry.load(Ordering::Relaxed) == NO_BLOCK {
            woken.take();
        }
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_wake_after_eexist_ends_every_sleep() {
    eexist(true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_it_a_thread_sleeps_for_ever() {
    eexist(false);
}
