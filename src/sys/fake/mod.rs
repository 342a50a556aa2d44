//! A page table without a kernel: the same trait, the same answers, no system call.
//!
//! The core runs on it unchanged, under a schedule checker and under Miri too. It does what the
//! kernel was measured to do, pleasant or not; `sys::conformance` compares the two. Threads
//! access it through [`FakePageTable::load`] and its siblings, and sleep there as they would in a fault.

#![forbid(unsafe_code)]

mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use nix::errno::Errno;

use super::memory::DeviceMemory;
use super::{Access, Calls, Delivery, MESSAGES_PER_READ, Message, Outcome, PageTable, Protection, RawFault, Tid};
use crate::error::Result;
use crate::sync::{Arc, Condvar, Mutex, thread};
use crate::units::Addr;
use space::{Answer, Backing, Look, Op, Space};

const BASE_PAGE: u64 = 4096;

/// An access that ended in a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FakeFault {
    /// SIGBUS, with its `si_addr`.
    Bus {
        /// The faulting address.
        addr: usize,
    },
    /// SIGSEGV: nothing is mapped there.
    Segv {
        /// The faulting address.
        addr: usize,
    },
}

/// An entry of the page table: a load does not fault there. A marker is none, and neither is poison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FakeEntry {
    /// The address of the base page.
    pub addr: usize,
    /// What it maps: this byte of the device and what follows; or zeros of its own.
    pub device_offset: Option<u64>,
    /// Whether a store does not fault there either.
    pub writable: bool,
}

/// A fake address space with its page table. Clones are the same one.
#[derive(Clone)]
pub struct FakePageTable {
    shared: Arc<Shared>,
}

impl FakePageTable {
    /// An empty address space.
    #[expect(clippy::new_without_default, reason = "an address space is no neutral value")]
    pub fn new() -> Self {
        let shared = Shared {
            state: Mutex::new(State::default()),
            readable: Condvar::new(),
            woken: Condvar::new(),
            event_read: Condvar::new(),
            before_sleep: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn table(&self) -> Arc<dyn PageTable> {
        self.shared.clone()
    }

    /// Loads an aligned word. Faults, and waits for the pager, as a load by the CPU would.
    ///
    /// # Errors
    /// The signal in which the access ended.
    pub fn load(&self, at: usize) -> Result<u64, FakeFault> {
        self.shared.access(at, Op::Load)
    }

    /// Stores an aligned word.
    ///
    /// # Errors
    /// As [`FakePageTable::load`].
    pub fn store(&self, at: usize, value: u64) -> Result<(), FakeFault> {
        self.shared.access(at, Op::Store(value)).map(drop)
    }

    /// Stores `new` in an aligned word if `expected` is there; what was there before.
    ///
    /// # Errors
    /// As [`FakePageTable::load`].
    pub fn compare_exchange(&self, at: usize, expected: u64, new: u64) -> Result<u64, FakeFault> {
        self.shared.access(at, Op::CompareExchange(expected, new))
    }

    /// Whether there is an entry, so that a load would not fault. A marker is none, and neither is poison.
    pub fn is_mapped(&self, at: usize) -> bool {
        self.shared.state.lock().space.is_present(at)
    }

    /// Every entry of the page table, by address.
    pub fn entries(&self) -> Vec<FakeEntry> {
        self.shared.state.lock().space.entries()
    }

    /// Has every thread that has looked and found no entry call `act`, with the address, before it queues its
    /// message and falls asleep: a place to hold it in.
    pub fn before_sleep(&self, act: impl Fn(usize) + Send + Sync + 'static) {
        *self.shared.before_sleep.lock() = Some(Arc::new(act));
    }

    /// How many threads are asleep in a fault.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().sleepers.values().filter(|sleeper| !sleeper.woken).count()
    }

    /// How many signals were sent to threads that were in no fault by then: with a kernel they would have hit
    /// whatever the thread was doing. Here the thread's next access ends in it. A thread that has ended counts too.
    pub fn stray_signals(&self) -> u64 {
        self.shared.state.lock().strays
    }
}

impl std::fmt::Debug for FakePageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakePageTable").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// A thread in a fault.
struct Sleeper {
    fault: RawFault,
    /// Its message has been read, and is not delivered again.
    read: bool,
    /// It is on its way out, so its message, if unread, is gone.
    woken: bool,
}

/// A thread that has accessed something.
#[derive(Default)]
struct Thread {
    /// The address of a SIGBUS that it has not taken yet.
    signal: Option<usize>,
    /// How often it has run again after a fault.
    runs: u64,
}

#[derive(Default)]
struct State {
    space: Space,
    /// By number, which is the order in which their messages are read.
    sleepers: BTreeMap<u64, Sleeper>,
    next_sleeper: u64,
    events_queued: u64,
    events_read: u64,
    /// Re-points whose thread has not run again since its event was queued: `mmap_changing`.
    changing: u32,
    kicked: bool,
    tids: HashMap<thread::ThreadId, Tid>,
    threads: HashMap<Tid, Thread>,
    strays: u64,
    calls: Calls,
}

/// Called with an address.
type Hook = Arc<dyn Fn(usize) + Send + Sync>;

struct Shared {
    /// See [`FakePageTable::before_sleep`]. A leaf, for the time of a copy.
    before_sleep: Mutex<Option<Hook>>,
    /// Taken for one step at a time and never held over a wait: a leaf.
    state: Mutex<State>,
    /// For [`PageTable::wait`]: a message has arrived, or a kick.
    readable: Condvar,
    /// For threads in a fault: some of them are woken.
    woken: Condvar,
    /// For threads that re-point: some events have been read.
    event_read: Condvar,
}

impl State {
    fn tid(&mut self) -> Tid {
        let next = Tid(self.tids.len() as u32 + 1);
        let tid = *self.tids.entry(thread::current().id()).or_insert(next);
        self.threads.entry(tid).or_default();
        tid
    }

    fn is_readable(&self) -> bool {
        self.events_read < self.events_queued || self.sleepers.values().any(|sleeper| !sleeper.read && !sleeper.woken)
    }

    /// Queues a fault, unless it is over already. `None` if the range is not any more what it was.
    fn fall_asleep(&mut self, fault: RawFault, seen: &Backing) -> Option<u64> {
        let at = fault.addr.0;
        // The kernel keeps the VMA from changing between its look at the entry and its last one.
        let same = self.space.backing(at).is_some_and(|backing| backing.is(seen));
        if !same || !self.space.must_wait(at, fault.kind) {
            return None;
        }
        let number = self.next_sleeper;
        self.next_sleeper += 1;
        self.sleepers.insert(number, Sleeper { fault, read: false, woken: false });
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
    fn access(&self, at: usize, op: Op) -> Result<u64, FakeFault> {
        assert!(at.is_multiple_of(8), "{at:#x} is no aligned word");
        let tid = self.state.lock().tid();
        let access = if op.is_store() { Access::Store } else { Access::Load };
        loop {
            let look = {
                let mut state = self.state.lock();
                if let Some(addr) = state.threads.get_mut(&tid).and_then(|thread| thread.signal.take()) {
                    return Err(FakeFault::Bus { addr });
                }
                state.space.access(at, op)
            };
            match look {
                Look::Done(value) => return Ok(value),
                Look::Bus => return Err(FakeFault::Bus { addr: at }),
                Look::Segv => return Err(FakeFault::Segv { addr: at }),
                Look::Fault(kind, seen) => self.sleep(RawFault { addr: Addr(at), access, kind, tid }, &seen),
            }
        }
    }

    fn sleep(&self, fault: RawFault, seen: &Backing) {
        let hook = self.before_sleep.lock().clone();
        if let Some(hook) = hook {
            hook(fault.addr.0);
        }
        let mut state = self.state.lock();
        let Some(number) = state.fall_asleep(fault, seen) else { return };
        self.readable.notify_all();
        while state.sleepers.get(&number).is_some_and(|sleeper| !sleeper.woken) {
            self.woken.wait(&mut state);
        }
        state.sleepers.remove(&number);
        if let Some(thread) = state.threads.get_mut(&fault.tid) {
            thread.runs += 1;
        }
    }

    fn wake_range(&self, at: Addr, bytes: u64) {
        let mut state = self.state.lock();
        let range = at.0..at.plus(bytes).0;
        for sleeper in state.sleepers.values_mut().filter(|sleeper| range.contains(&sleeper.fault.addr.0)) {
            sleeper.woken = true;
        }
        self.woken.notify_all();
    }

    /// One ioctl: refused while an event is under way, and followed by a wake of what it has done.
    fn ioctl(&self, at: Addr, act: impl FnOnce(&mut Space) -> Answer) -> Result<Outcome, Errno> {
        let (answer, done) = {
            let mut state = self.state.lock();
            state.calls.installs += 1;
            if state.changing > 0 {
                return Ok(Outcome::Retry);
            }
            act(&mut state.space)
        };
        // The kernel has let go of the page table by now: a zap, and a new fault, may come first.
        if done > 0 {
            self.wake_range(at, done);
        }
        answer
    }

    fn point(&self, at: Addr, bytes: u64, backing: Backing) {
        let mut state = self.state.lock();
        state.calls.repoints += 1;
        state.changing += 1;
        state.space.replace(at, bytes, backing);
        state.events_queued += 1;
        let number = state.events_queued;
        self.readable.notify_all();
        while state.events_read < number {
            self.event_read.wait(&mut state);
        }
        // Not by the reader: until this thread has run again, everything is refused.
        state.changing -= 1;
    }
}

impl PageTable for Shared {
    fn base_page(&self) -> u64 {
        BASE_PAGE
    }

    fn serves_kernel_faults(&self) -> bool {
        true
    }

    fn check_huge(&self) -> Result<()> {
        Ok(())
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<Addr, Errno> {
        self.state.lock().space.reserve(bytes, align.max(BASE_PAGE))
    }

    fn point_at_device(&self, at: Addr, bytes: u64, device: &Arc<DeviceMemory>, offset: u64) -> Result<(), Errno> {
        if offset.checked_add(bytes).is_none_or(|end| end > device.len_bytes()) {
            return Err(Errno::EFAULT);
        }
        self.point(at, bytes, Backing::Device(device.clone(), offset));
        Ok(())
    }

    fn point_at_zeros(&self, at: Addr, bytes: u64) -> Result<(), Errno> {
        self.point(at, bytes, Backing::Zeros);
        Ok(())
    }

    fn mend(&self, _: Addr, _: u64) -> Result<bool, Errno> {
        // A re-point that fails has changed nothing here.
        Ok(false)
    }

    fn condemn(&self, at: Addr, bytes: u64) -> bool {
        self.state.lock().space.replace(at, bytes, Backing::Condemned);
        self.wake(at, bytes);
        true
    }

    fn unmap(&self, at: Addr, bytes: u64) {
        self.state.lock().space.unmap(at, bytes);
        self.wake(at, bytes);
    }

    fn install(&self, at: Addr, bytes: u64, protection: Protection) -> Result<Outcome, Errno> {
        self.ioctl(at, |space| space.install(at, bytes, protection == Protection::ReadOnly))
    }

    fn install_zeros(&self, at: Addr) -> Result<Outcome, Errno> {
        self.ioctl(at, |space| space.install_zeros(at))
    }

    fn poison(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.ioctl(at, |space| space.poison(at, bytes))
    }

    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, at: Addr, entry: super::inject::Entry) -> Result<Outcome, Errno> {
        use super::inject::Entry;
        // Only what is reported as done is woken.
        self.ioctl(at, |space| match entry {
            Entry::Page(bytes, protection) => (space.install(at, bytes, protection == Protection::ReadOnly).0, 0),
            Entry::Zeros => (space.install_zeros(at).0, 0),
            Entry::Poison(bytes) => (space.poison(at, bytes).0, 0),
        })
    }

    fn refuse_own(&self, _: Addr) -> bool {
        false
    }

    fn unprotect(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.ioctl(at, |space| space.write_protect(at, bytes, false))
    }

    fn clear_markers(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.ioctl(at, |space| (space.write_protect(at, bytes, false).0, 0))
    }

    fn protect(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        // As it wakes nobody, nothing of it is reported as done.
        self.ioctl(at, |space| (space.write_protect(at, bytes, true).0, 0))
    }

    fn zap(&self, at: Addr, bytes: u64) -> Result<(), Errno> {
        let mut state = self.state.lock();
        state.calls.zaps += 1;
        state.space.zap(at, bytes);
        Ok(())
    }

    fn wake(&self, at: Addr, bytes: u64) {
        self.state.lock().calls.wakes += 1;
        self.wake_range(at, bytes);
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(thread) = state.threads.get_mut(&tid) else { return Delivery::Unreachable };
        let asleep = state.sleepers.values_mut().find(|sleeper| sleeper.fault.tid == tid && !sleeper.woken);
        let Some(sleeper) = asleep else { return Delivery::Awake };
        sleeper.woken = true;
        if sleeper.fault.addr != at {
            state.strays += 1;
        }
        // A signal that is pending already is not queued twice.
        thread.signal.get_or_insert(at.0);
        self.woken.notify_all();
        Delivery::Sent
    }

    fn outlook(&self, tid: Tid) -> Delivery {
        if self.may_wait(tid) { Delivery::Sent } else { Delivery::Awake }
    }

    fn may_wait(&self, tid: Tid) -> bool {
        self.state.lock().sleepers.values().any(|sleeper| sleeper.fault.tid == tid && !sleeper.woken)
    }

    fn runs(&self, tid: Tid) -> Option<u64> {
        self.state.lock().threads.get(&tid).map(|thread| thread.runs)
    }

    fn wait(&self) {
        let mut state = self.state.lock();
        state.calls.polls += 1;
        while !state.kicked && !state.is_readable() {
            self.readable.wait(&mut state);
        }
        state.kicked = false;
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.calls.reads += 1;
        let mut room = MESSAGES_PER_READ;
        // Faults before events, whatever came first.
        let unread = state.sleepers.values_mut().filter(|sleeper| !sleeper.read && !sleeper.woken);
        for sleeper in unread.take(room) {
            sleeper.read = true;
            into.push(Message::Fault(sleeper.fault));
            room -= 1;
        }
        // All of them are of our own re-points, which are not reported.
        let events = (state.events_queued - state.events_read).min(room as u64);
        state.events_read += events;
        if events > 0 {
            self.event_read.notify_all();
        }
        Ok(())
    }

    fn kick(&self) {
        self.state.lock().kicked = true;
        self.readable.notify_all();
    }

    fn calls(&self) -> Calls {
        self.state.lock().calls
    }
}
