//! Threads in a fault: how they fall asleep, and who wakes them.

use super::direct::Direct;
use super::entries::{Look, Op};
use super::space::Backing;
use super::{FakeFault, Shared, State};
use crate::sync::thread;
use crate::sys::{Access, RawFault, Tid};
use crate::units::Addr;

/// A thread in a fault.
pub(super) struct Sleeper {
    pub(super) fault: RawFault,
    /// Its message has been read, and is not delivered again.
    pub(super) read: bool,
    /// It is on its way out, so its message, if unread, is gone.
    pub(super) woken: bool,
    /// It does not sleep: its thread looks awake, and tries its fault again and again.
    pub(super) restless: bool,
}

impl Sleeper {
    pub(super) fn is_asleep(&self) -> bool {
        !self.woken && !self.restless
    }
}

/// A thread that has accessed something.
#[derive(Default)]
pub(super) struct Thread {
    /// The address of a SIGBUS that it has not taken yet.
    pub(super) signal: Option<usize>,
    /// How often it has run again after a fault.
    pub(super) runs: u64,
}

impl State {
    pub(super) fn tid(&mut self) -> Tid {
        let next = Tid(self.tids.len() as u32 + 1);
        let tid = *self.tids.entry(thread::current().id()).or_insert(next);
        self.threads.entry(tid).or_default();
        tid
    }

    pub(super) fn is_readable(&self) -> bool {
        let posted = self.direct.as_ref().is_some_and(Direct::is_readable);
        posted
            || self.events_read < self.events_queued
            || self.sleepers.values().any(|sleeper| !sleeper.read && !sleeper.woken)
    }

    /// Queues a fault, unless it is over already. `None` if the range is not any more what it was.
    pub(super) fn fall_asleep(&mut self, fault: RawFault, seen: &Backing, restless: bool) -> Option<u64> {
        let at = fault.addr.0;
        // The kernel keeps the VMA from changing between its look at the entry and its last one.
        let same = self.space.backing(at).is_some_and(|backing| backing.is(seen));
        if !same || !self.space.must_wait(at, fault.kind) {
            return None;
        }
        let number = self.next_sleeper;
        self.next_sleeper += 1;
        self.sleepers.insert(number, Sleeper { fault, read: false, woken: false, restless });
        Some(number)
    }
}

impl Shared {
    /// ```text
    /// a thread that accesses                            the pager
    ///   look: no entry
    ///                                                     may install, poison or zap
    ///   queue the message, look again, sleep
    ///                                                     read, answer, wake
    ///   repeat the access
    /// ```
    pub(super) fn access(&self, at: usize, op: Op, restless: bool) -> Result<u64, FakeFault> {
        assert!(at.is_multiple_of(8), "{at:#x} is no aligned word");
        let (tid, direct) = {
            let mut state = self.state.lock();
            (state.tid(), state.direct.is_some())
        };
        let access = if op.is_store() { Access::Store } else { Access::Load };
        loop {
            let look = {
                let mut state = self.state.lock();
                if let Some(addr) = state.threads.get_mut(&tid).and_then(|thread| thread.signal.take()) {
                    return Err(FakeFault::Bus { addr });
                }
                let look = state.space.access(at, op);
                let passes = access == Access::Load && state.passing.iter().any(|range| range.contains(&at));
                if passes && matches!(look, Look::Bus) {
                    drop(state);
                    thread::yield_now();
                    continue;
                }
                look
            };
            match look {
                Look::Done(value) => return Ok(value),
                Look::Bus => return Err(FakeFault::Bus { addr: at }),
                Look::Segv => return Err(FakeFault::Segv { addr: at }),
                Look::Fault(kind, _) if direct => {
                    self.resolve_directly(RawFault { addr: Addr(at), access, kind, tid })?
                }
                Look::Fault(kind, seen) => self.sleep(RawFault { addr: Addr(at), access, kind, tid }, &seen, restless),
            }
        }
    }

    fn sleep(&self, fault: RawFault, seen: &Backing, restless: bool) {
        let hook = self.before_sleep.lock().clone();
        if let Some(hook) = hook {
            hook(fault.addr.0);
        }
        let mut state = self.state.lock();
        let Some(number) = state.fall_asleep(fault, seen, restless) else { return };
        self.readable.notify_all();
        if restless {
            // It has run all the time. Its message is taken back, unless it has been read.
            drop(state);
            thread::yield_now();
            self.state.lock().sleepers.remove(&number);
            return;
        }
        while state.sleepers.get(&number).is_some_and(|sleeper| !sleeper.woken) {
            self.woken.wait(&mut state);
        }
        state.sleepers.remove(&number);
        if let Some(thread) = state.threads.get_mut(&fault.tid) {
            thread.runs += 1;
        }
    }

    pub(super) fn wake_range(&self, at: Addr, bytes: u64) {
        let mut state = self.state.lock();
        let range = at.0..at.plus(bytes).0;
        for sleeper in state.sleepers.values_mut().filter(|sleeper| range.contains(&sleeper.fault.addr.0)) {
            sleeper.woken = true;
        }
        self.woken.notify_all();
    }
}
