//! What the threads of one pager share.

use nix::errno::Errno;

use crate::address::budget::Share;
use crate::address::regions::Regions;
use crate::address::starvation::{Starvation, Unserved};
use crate::address::stats::{Counters, Kind, Latencies};
use crate::error::{Error, Result};
use crate::options::Resolve;
use crate::probe::{Event, Point, Probe};
use crate::sabotage::{Rule, Switches};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, Queue, RwLock, RwLockReadGuard, Tally};
use crate::sys::fork::Home;
use crate::sys::{Calls, MESSAGES_PER_READ, Message, PageTable, RawFault, Ticket, Tid, process};
use crate::units::{Addr, PageIndex};

/// Whether locks that are taken are waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// The reader, which must keep reading, and a signal handler.
    Try,
    /// A worker.
    Wait,
}

/// Work for a worker.
pub(crate) enum Job {
    Fault(Deferred),
    /// The application has moved this many bytes, from and to.
    Moved(Addr, Addr, u64),
    /// Another pager of the process needs address ranges, and this one has the most.
    GiveUpRanges,
    /// The pager ends: revoke every mapping.
    Revoke,
    Stop,
}

/// A fault that the reader has not answered at once.
#[derive(Clone, Copy)]
pub(crate) struct Deferred {
    pub(crate) fault: RawFault,
    /// The number of its message.
    pub(crate) message: u64,
    /// Whether its thread keeps losing the page to invalidations.
    pub(crate) starving: bool,
    /// How many turns in the queue have ended for lack of memory.
    pub(crate) shortages: u32,
    /// When its message was read; for the latencies.
    pub(crate) read_at: Option<std::time::Instant>,
    /// Its thread has been woken before instead of served, and has faulted again: it waits, awake as it may look.
    pub(crate) insists: bool,
    /// Its thread was to resolve it, and waits for the answer to this.
    pub(crate) ticket: Option<Ticket>,
    /// What the page table had said of pages that go when its thread was last known to wait: [`PageTable::goings`].
    pub(crate) heard: u64,
}

impl Deferred {
    /// In which way its thread waits.
    pub(crate) fn way(&self) -> Resolve {
        if self.ticket.is_some() { Resolve::FaultingThread } else { Resolve::PagerThread }
    }
}

const LATEST_SLOTS: usize = 256;
/// Bits of a slot of `latest` that hold the number of the message; those above hold the thread's id.
const NUMBER_BITS: u32 = 40;
/// What the messages read so far say of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Age {
    /// It is its thread's last message.
    Last,
    /// Its thread has made the very access again since, at the same address: what is true of its last message is of this.
    Again,
    /// Its thread has faulted anew since.
    Stale,
    /// Another thread with the same slot has faulted since.
    Unknown,
}

/// A thread that has been sent a SIGBUS.
pub(crate) struct Signalled {
    tid: Tid,
    /// How often it had run before the signal was sent.
    runs: u64,
}

/// The reader, kept from reading: what it has read is numbered.
pub(crate) struct Reading<'a>(MutexGuard<'a, Vec<Signalled>>);

impl Reading<'_> {
    /// The thread has been sent a SIGBUS: until it has run, its messages are of a fault that it is about to leave.
    /// `runs` is how often it had run before that.
    pub(crate) fn signalled(&mut self, tid: Tid, runs: Option<u64>) {
        // Where the kernel does not tell, a second message for the same store may end in a second signal.
        self.0.extend(runs.map(|runs| Signalled { tid, runs }));
    }
}

pub(crate) struct Core {
    pub(crate) home: Home,
    pub(crate) table: Arc<dyn PageTable>,
    /// Set once, when the first mapping wants it. A leaf, for the time of a copy.
    direct: Mutex<Option<Arc<dyn PageTable>>>,
    /// The map of the address space; the kernel's mmap_lock. Shared by the reader (which only tries)
    /// and the workers, for as long as they look at a region and install in it; exclusive by map, unmap and
    /// re-point. Held exclusively while a re-point waits for the reader to read its event: installs would
    /// be refused meanwhile anyhow. L2 is taken under it, never the other way round. No user's buffer
    /// and no mapped memory is touched under it. Guarded by `tests/lifecycle.rs` and `tests/deadlocks.rs`.
    pub(crate) regions: RwLock<Regions>,
    pub(crate) queue: Queue<Job>,
    pub(crate) stats: Counters,
    pub(crate) latencies: Option<Latencies>,
    pub(crate) starvation: Starvation,
    unserved: Unserved,
    /// Rules broken on purpose that are the pager's own, not a volume's.
    pub(crate) switches: Switches,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    /// Off in tests that park a fault in a worker: then the reader hands every fault over.
    pub(crate) reader_answers: bool,
    /// How long the reader asks for messages before it falls asleep.
    pub(crate) busy_poll: Option<std::time::Duration>,
    /// Address ranges that the mappings may take together before some are given up.
    pub(crate) address_ranges_max: u64,
    /// Those that the mappings of all pagers of the process may take before somebody gives some up.
    pub(crate) process_ranges_max: u64,
    /// Those that the mappings take.
    pub(crate) share: Arc<Share>,
    /// Whether blocks may be moved together then.
    pub(crate) gathers: bool,
    /// The number of the next message, and for each thread, by its id, of its last one: what was
    /// read before that is of a fault that it has left. Written by the reader alone.
    messages: AtomicU64,
    latest: [AtomicU64; LATEST_SLOTS],
    /// What those last messages are of; written first. Exact under `numbering`, a hint otherwise.
    latest_access: [Tally; LATEST_SLOTS],
    /// The threads that have been sent a SIGBUS and have not been seen to run since. Held while messages are
    /// read and numbered, and while a thread is sent a SIGBUS, which may take 5 ms. A leaf; never held by
    /// anybody who waits for the reader. Guarded by `tests/full_volume.rs`.
    pub(crate) numbering: Mutex<Vec<Signalled>>,
    /// See [`Core::heard`]. Written by the reader alone.
    heard: Tally,
    /// Set once, when the pager is to end; the reader looks after every wake-up.
    stopping: AtomicBool,
    /// Set when every mapping has been revoked.
    pub(crate) revoked: AtomicBool,
    /// Why the pager ended before it was told to. A leaf.
    pub(crate) failure: Mutex<Option<String>>,
}

fn slot_of(tid: Tid, number: u64) -> u64 {
    u64::from(tid.0) << NUMBER_BITS | number & ((1 << NUMBER_BITS) - 1)
}

impl Core {
    pub(crate) fn new(
        home: Home,
        table: Arc<dyn PageTable>,
        address_ranges_max: Option<u64>,
        latencies: bool,
        probe: Option<Arc<dyn Probe>>,
    ) -> Self {
        let process_ranges_max = process::max_map_count() / 4 * 3;
        let share = Arc::new(Share::default());
        Self {
            home,
            table,
            direct: Mutex::new(None),
            regions: RwLock::new(Regions::new(share.clone())),
            queue: Queue::new(),
            stats: Counters::default(),
            latencies: latencies.then(Latencies::new),
            starvation: Starvation::default(),
            unserved: Unserved::default(),
            switches: Switches::default(),
            probe,
            reader_answers: true,
            busy_poll: None,
            address_ranges_max: address_ranges_max.unwrap_or(process_ranges_max),
            process_ranges_max,
            share,
            gathers: false,
            messages: AtomicU64::new(0),
            numbering: Mutex::new(Vec::new()),
            latest: std::array::from_fn(|_| AtomicU64::new(0)),
            latest_access: std::array::from_fn(|_| Tally::new(0)),
            heard: Tally::new(0),
            stopping: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    /// The map of regions; none if it is taken, and `patience` is not to wait for it.
    pub(crate) fn try_regions(&self, patience: Patience) -> Option<RwLockReadGuard<'_, Regions>> {
        match patience {
            Patience::Wait => Some(self.regions.read()),
            Patience::Try => self.regions.try_read(),
        }
    }

    /// The page table of mappings whose faults their own threads resolve, if there are any.
    pub(crate) fn direct(&self) -> Option<Arc<dyn PageTable>> {
        self.direct.lock().clone()
    }

    pub(crate) fn set_direct(&self, table: Arc<dyn PageTable>) {
        *self.direct.lock() = Some(table);
    }

    /// Has both readers look around.
    pub(crate) fn kick(&self) {
        self.table.kick();
        if let Some(direct) = self.direct() {
            direct.kick();
        }
    }

    /// How often each system call has been made. Never waits.
    pub(crate) fn calls(&self) -> Calls {
        let direct = self.direct.try_lock().and_then(|direct| direct.as_ref().map(|table| table.calls()));
        self.table.calls().plus(&direct.unwrap_or_default())
    }

    /// Reads what has arrived in place of what `messages` holds, and gives every message a number; that of the
    /// first. For the reader alone.
    ///
    /// A thread that has been sent its SIGBUS may have another message here, of the same store: it was woken
    /// before, by zeros for somebody else's load, and had faulted again. The message is unread until the thread
    /// runs and takes it back. So as long as it was not seen to have run before the read, it is only woken:
    /// if it has run just now, and faults anew, it sends another message.
    pub(crate) fn read(&self, messages: &mut Vec<Message>) -> Result<u64, Errno> {
        let mut numbering = self.numbering.lock();
        let heard = self.table.goings();
        let (first, _) = self.read_under(&mut numbering, messages)?;
        self.heard.store(heard, Ordering::Relaxed);
        Ok(first)
    }

    /// The same; also how many messages have been read, with those that threads are only woken for.
    fn read_under(&self, signalled: &mut Vec<Signalled>, messages: &mut Vec<Message>) -> Result<(u64, usize), Errno> {
        messages.clear();
        signalled.retain(|thread| self.table.runs(thread.tid) == Some(thread.runs));
        self.table.read(messages)?;
        let read = messages.len();
        messages.retain(|message| match message {
            Message::Fault(fault) if signalled.iter().any(|thread| thread.tid == fault.tid) => {
                self.wake(fault);
                false
            }
            Message::Fault(_) | Message::Moved { .. } | Message::Posted(..) => true,
        });
        let first = self.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
        for (number, message) in (first..).zip(messages) {
            if let Message::Fault(fault) = message {
                let slot = fault.tid.0 as usize % LATEST_SLOTS;
                self.latest_access[slot].store(fault.access_key(), Ordering::Release);
                self.latest[slot].store(slot_of(fault.tid, number), Ordering::Release);
            }
        }
        Ok((first, read))
    }

    /// Reads in the reader's stead all that is unread, for the workers to serve: from then on the last message that is
    /// known of a thread is of the fault that it sleeps in, if it has not run meanwhile.
    pub(crate) fn read_everything(&self, reading: &mut Reading<'_>) {
        let mut messages = Vec::with_capacity(MESSAGES_PER_READ);
        loop {
            let heard = self.table.goings();
            // An error is the reader's to find, too.
            let Ok((first, read)) = self.read_under(&mut reading.0, &mut messages) else { return };
            for (number, message) in (first..).zip(&messages) {
                self.hand_on(*message, number, heard);
            }
            // Not "none is left to serve": behind one that its thread is only woken for there may be another, in the other userfaultfd.
            if read == 0 {
                return;
            }
        }
    }

    /// Hands a message to the workers that nobody has looked at.
    fn hand_on(&self, message: Message, number: u64, heard: u64) {
        match message {
            Message::Fault(fault) => {
                self.stats.fault(Kind::of(&fault));
                self.hand_over(Deferred { heard, ..self.deferred(fault, number) });
            }
            Message::Moved { from, to, bytes } => self.queue.push(Job::Moved(from, to, bytes)),
            Message::Posted(fault, _) => unreachable!("{fault:?} is posted to the dispatcher"),
        }
    }

    /// What the page table had said of pages that go before the reader read last: whoever has sent one of those messages waited then.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// A fault for the workers, that has been read just now.
    pub(crate) fn deferred(&self, fault: RawFault, message: u64) -> Deferred {
        let read_at = self.latencies.is_some().then(std::time::Instant::now);
        let heard = self.heard();
        Deferred { fault, message, starving: false, shortages: 0, read_at, insists: false, ticket: None, heard }
    }

    pub(crate) fn hand_over(&self, deferred: Deferred) {
        self.stats.add(&self.stats.handed_over);
        self.queue.push(Job::Fault(deferred));
    }

    pub(crate) fn hold_reading(&self) -> Reading<'_> {
        Reading(self.numbering.lock())
    }

    /// What the messages read so far say of a fault.
    pub(crate) fn age(&self, deferred: &Deferred) -> Age {
        let tid = deferred.fault.tid;
        let index = tid.0 as usize % LATEST_SLOTS;
        let slot = self.latest[index].load(Ordering::Acquire);
        let again = || self.latest_access[index].load(Ordering::Acquire) == deferred.fault.access_key();
        match slot == slot_of(tid, deferred.message) {
            true => Age::Last,
            false if slot >> NUMBER_BITS != u64::from(tid.0) => Age::Unknown,
            false if again() => Age::Again,
            false => Age::Stale,
        }
    }

    /// Whether a thread that is not seen asleep in a store waits all the same: it has been woken from this very access before and
    /// has made it again. Otherwise it is noted that it is about to be woken.
    pub(crate) fn insists(&self, deferred: &mut Deferred) -> bool {
        if self.switches.broken(Rule::ServeWhoInsists) {
            return false;
        }
        if !deferred.insists {
            let next = self.messages.load(Ordering::Relaxed);
            deferred.insists = self.unserved.insists(&deferred.fault, deferred.message, next);
            if deferred.insists {
                self.stats.add(&self.stats.insistent);
            }
        }
        deferred.insists
    }

    /// Wakes the thread of a fault, and whoever else waits for the same base page.
    pub(crate) fn wake(&self, fault: &RawFault) {
        // A waiter's key is the address it faulted at, so its base page suffices.
        let bytes = self.table.base_page();
        self.table.wake(fault.addr.align_down(bytes), bytes);
    }

    /// Tells the pager's observer of a fault, with no lock held while it looks. Who does not wait does not find
    /// out which page of which file it is if the region is busy: then it is the largest there is, of none.
    pub(crate) fn tell(&self, point: Point, fault: &RawFault, patience: Patience) {
        let Some(probe) = &self.probe else { return };
        let regions = self.try_regions(patience);
        let found = regions.and_then(|regions| {
            let region = regions.find(fault.addr)?;
            Some((region.inode.number(), region.window.page_at(fault.addr)))
        });
        let page = found.map_or(PageIndex(u64::MAX), |(_, page)| page);
        let _insisting = self.home.insist();
        probe.at(Event { point, file: found.map(|(file, _)| file), page, block: None });
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Has the reader end the pager: revoke every mapping, then itself.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.kick();
    }

    /// A thread of the pager has panicked: the pager ends, and says why from now on.
    pub(crate) fn fail(&self, reason: String) {
        self.failure.lock().get_or_insert(reason);
        self.stop();
    }

    /// The error that calls get from a pager that has ended.
    pub(crate) fn gone(&self) -> Error {
        let reason = self.failure.lock().clone();
        Error::PagerGone { reason: reason.unwrap_or_else(|| "it has been shut down".to_owned()) }
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.is_stopping() { Err(self.gone()) } else { Ok(()) }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }
}
