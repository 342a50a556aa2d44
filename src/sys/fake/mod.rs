//! A page table without a kernel: the same trait, the same answers, no system call.
//!
//! The core runs on it unchanged, under a schedule checker and under Miri too. It does what the
//! kernel was measured to do, pleasant or not; `sys::conformance` compares the two. Threads
//! access it through [`FakePageTable::load`] and its siblings, and sleep there as they would in a fault.

#![forbid(unsafe_code)]

mod asynchronous;
mod direct;
mod entries;
mod space;
mod table;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Calls, Message, PageTable, Tid};
use crate::sync::{Arc, Condvar, Mutex, thread};
use crate::units::Addr;
use direct::Direct;
use entries::Op;
use space::{BasePage, Space};
use threads::{Sleeper, Thread};

/// That of x86-64.
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
    /// Another half of the address space, at higher addresses, with a page table and a channel of its own: the ranges whose
    /// faults their own threads resolve.
    direct: Arc<Shared>,
}

/// Where that half begins.
const DIRECT: usize = 1 << 44;

impl FakePageTable {
    /// An empty address space with base pages of 4 KiB.
    #[expect(clippy::new_without_default, reason = "an address space is no neutral value")]
    pub fn new() -> Self {
        Self::with_base_page(BASE_PAGE)
    }

    /// An empty address space with base pages of `bytes` bytes, as aarch64 has of 4, 16 or 64 KiB.
    ///
    /// # Panics
    /// If `bytes` is no power of two, or less than 4096.
    pub fn with_base_page(bytes: u64) -> Self {
        assert!(bytes.is_power_of_two() && bytes >= BASE_PAGE, "{bytes} is no page size");
        let of = |state| Shared {
            base_page: bytes,
            state: Mutex::new(state),
            readable: Condvar::new(),
            woken: Condvar::new(),
            event_read: Condvar::new(),
            before_sleep: Mutex::new(None),
        };
        let base = BasePage(bytes);
        let shared = State { space: Space::new(space::FIRST, base), ..State::default() };
        let direct = State { space: Space::new(DIRECT, base), direct: Some(Direct::default()), ..State::default() };
        Self { shared: Arc::new(of(shared)), direct: Arc::new(of(direct)) }
    }

    fn half(&self, at: usize) -> &Shared {
        if at < DIRECT { &self.shared } else { &self.direct }
    }

    pub(crate) fn table(&self) -> Arc<dyn PageTable> {
        self.shared.clone()
    }

    pub(crate) fn direct_table(&self) -> Arc<dyn PageTable> {
        self.direct.clone()
    }

    /// Loads an aligned word. Faults, and waits for the pager, as a load by the CPU would.
    ///
    /// # Errors
    /// The signal in which the access ended.
    pub fn load(&self, at: usize) -> Result<u64, FakeFault> {
        self.half(at).access(at, Op::Load, false)
    }

    /// Stores an aligned word.
    ///
    /// # Errors
    /// As [`FakePageTable::load`].
    pub fn store(&self, at: usize, value: u64) -> Result<(), FakeFault> {
        self.half(at).access(at, Op::Store(value), false).map(drop)
    }

    /// Stores an aligned word as a system call does while its thread's signal flag is up: it does not sleep in its fault, is not
    /// taken out of it by a signal, and tries again and again until the fault is answered. (There the end of a poisoned page is EFAULT.)
    ///
    /// # Errors
    /// As [`FakePageTable::load`].
    pub fn store_restlessly(&self, at: usize, value: u64) -> Result<(), FakeFault> {
        self.half(at).access(at, Op::Store(value), true).map(drop)
    }

    /// Stores `new` in an aligned word if `expected` is there; what was there before.
    ///
    /// # Errors
    /// As [`FakePageTable::load`].
    pub fn compare_exchange(&self, at: usize, expected: u64, new: u64) -> Result<u64, FakeFault> {
        self.half(at).access(at, Op::CompareExchange(expected, new), false)
    }

    /// Whether there is an entry, so that a load would not fault. A marker is none, and neither is poison.
    pub fn is_mapped(&self, at: usize) -> bool {
        self.half(at).state.lock().space.is_present(at)
    }

    /// Every entry of the page table, by address.
    pub fn entries(&self) -> Vec<FakeEntry> {
        [&self.shared, &self.direct].iter().flat_map(|half| half.state.lock().space.entries()).collect()
    }

    /// For looks between two steps of a schedule.
    #[cfg(feature = "shuttle")]
    pub(crate) fn glimpse(&self) -> Glimpse {
        Glimpse([Arc::downgrade(&self.shared), Arc::downgrade(&self.direct)])
    }

    /// Has every thread that has looked and found no entry call `act`, with the address, before it queues its
    /// message and falls asleep: a place to hold it in.
    pub fn before_sleep(&self, act: impl Fn(usize) + Send + Sync + 'static) {
        *self.shared.before_sleep.lock() = Some(Arc::new(act));
    }

    /// How many threads are asleep in a fault.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().sleepers.values().filter(|sleeper| sleeper.is_asleep()).count()
    }

    /// How many signals were sent to threads that were in no fault by then: with a kernel they would have hit
    /// whatever the thread was doing. Here the thread's next access ends in it. A thread that has ended counts too.
    pub fn stray_signals(&self) -> u64 {
        self.shared.state.lock().strays
    }

    /// Moves a whole range elsewhere, as mremap(2) by the application does, and waits for the pager to have read of
    /// it. Entries and registration go along. The new address; none if nothing is mapped at some page of the range.
    pub fn move_away(&self, at: usize, bytes: u64) -> Option<usize> {
        self.half(at).move_away(Addr(at), bytes).map(|to| to.0)
    }

    /// How many answers to faults have been refused because the thread of an event had not run again.
    pub fn refused(&self) -> u64 {
        self.shared.state.lock().refused + self.direct.state.lock().refused
    }
}

/// A page table that is looked at without a lock, as long as it is there.
#[cfg(feature = "shuttle")]
pub(crate) struct Glimpse([crate::sync::Weak<Shared>; 2]);

#[cfg(feature = "shuttle")]
impl Glimpse {
    /// Every entry but those that the application has moved away, which no invalidation finds. None while somebody is at
    /// it: what is wrong then is wrong still when it is looked at again.
    pub(crate) fn entries(&self) -> Option<Vec<FakeEntry>> {
        let mut entries = Vec::new();
        for half in &self.0 {
            entries.extend(half.upgrade()?.state.peek()?.space.entries_in_place());
        }
        Some(entries)
    }
}

impl std::fmt::Debug for FakePageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakePageTable").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    space: Space,
    /// By number, which is the order in which their messages are read.
    sleepers: BTreeMap<u64, Sleeper>,
    next_sleeper: u64,
    /// What is unread; those of our own re-points say nothing.
    events: VecDeque<Option<Message>>,
    events_queued: u64,
    events_read: u64,
    /// Re-points whose thread has not run again since its event was queued: `mmap_changing`.
    changing: u32,
    kicked: bool,
    tids: HashMap<thread::ThreadId, Tid>,
    threads: HashMap<Tid, Thread>,
    strays: u64,
    /// Ranges whose poison is meant for one store: a load that meets it is repeated.
    passing: Vec<std::ops::Range<usize>>,
    /// Only in the half whose faults their own threads resolve.
    direct: Option<Direct>,
    refused: u64,
    calls: Calls,
    /// How often pages have gone that it shows.
    goings: u64,
}

/// Called with an address.
type Hook = Arc<dyn Fn(usize) + Send + Sync>;

struct Shared {
    base_page: u64,
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
