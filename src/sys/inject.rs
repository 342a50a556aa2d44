//! Faults put in on purpose: a page table in front of another that refuses, is beaten to it, runs out of memory, and
//! delivers messages late or twice, as the kernel may. The library is correct all the same.
//!
//! What is not put in, because nothing survives it by design: a zap that fails (an entry that stays would show a freed
//! block), a revocation that fails (the range would be somebody else's), a wake that wakes nobody, a message
//! lost for good, and an event held back (the caller of mremap sleeps until it is read).

use nix::errno::Errno;

use super::memory::DeviceMemory;
use super::{
    Calls, Delivery, Filled, Last, MESSAGES_PER_READ, Mended, Message, Outcome, PageTable, Present, Protection,
    RawFault, Resolver, Revoked, Rights, Scan, Span, Ticket, Tid, Verdict,
};
use crate::error::Result;
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering};
use crate::units::Addr;

/// How often each fault is put in, in parts per million of the calls that it can befall.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Injection {
    /// Where the numbers come from. Which thread meets which of them is left to the scheduler.
    pub seed: u64,
    /// EAGAIN, and nothing done, to any change of an entry. A call that protects many ranges in one go, such as
    /// [`Mapping::take_dirty`](crate::Mapping::take_dirty), needs all of them to succeed at once.
    pub again_ppm: u32,
    /// An entry is put there and nobody woken, and the answer is EEXIST: another thread was first.
    pub exist_ppm: u32,
    /// ENOMEM, and nothing done, to an install, a poisoning, or a re-point.
    pub nomem_ppm: u32,
    /// The first half of a range of several pages is protected or installed, then EAGAIN.
    pub partial_ppm: u32,
    /// A fault's message is delivered by one of the next reads. One that was late may find its page punched meanwhile, and
    /// put a block under it for nobody, as one that a worker is slow to serve.
    pub delay_ppm: u32,
    /// A fault's message is delivered twice, half of the time by a later read.
    pub duplicate_ppm: u32,
    /// Of the threads, these look awake in each of their faults, to whoever asks, as one does that the kernel does not let sleep.
    pub awake_ppm: u32,
}

/// An entry that another thread's fault might have put there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// The device page that the range points at.
    Page(Protection),
    Zeros,
    Poison,
}

/// Messages held back at most.
const HELD_MAX: usize = 64;
/// Reads that a message is held back for at most.
const READS_MAX: u64 = 8;
/// The smallest huge page: ranges made of these may have to be cut between them.
const HUGE_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy)]
enum What {
    Again,
    Exist,
    Nomem,
    Partial,
    Delay,
    Duplicate,
}

const NAMES: [&str; 6] = ["again", "exist", "nomem", "partial", "delay", "duplicate"];

/// A message that has been read and not been delivered.
struct Late {
    fault: RawFault,
    /// How often its thread had run.
    runs: u64,
    /// Reads to go.
    reads: u64,
}

/// A page table with faults put in.
pub(crate) struct Injecting {
    table: Arc<dyn PageTable>,
    /// Of asynchronous mappings: whoever installs there notes that it has, so nobody else's entry can be put there.
    notes_installs: bool,
    injection: Injection,
    /// Shared with the page table of asynchronous mappings.
    drawn: Arc<AtomicU64>,
    /// Those of every page table of the pager.
    counts: Arc<[AtomicU64; NAMES.len()]>,
    /// Messages held back, oldest first, one or two a thread. Taken by whoever reads, which is done under it: a leaf.
    late: Mutex<Vec<Late>>,
    /// Somebody reads on until there is nothing more, to know what a thread is in. Then nothing is held back: the kernel has a message
    /// to read before its thread sleeps.
    reading_all: AtomicBool,
}

impl Injecting {
    pub(crate) fn new(table: Arc<dyn PageTable>, injection: Injection) -> Self {
        Self::with(table, injection, Arc::default())
    }

    /// The same for another page table of the pager.
    pub(crate) fn beside(&self, table: Arc<dyn PageTable>) -> Self {
        Self::with(table, self.injection, self.counts.clone())
    }

    fn with(table: Arc<dyn PageTable>, injection: Injection, counts: Arc<[AtomicU64; NAMES.len()]>) -> Self {
        let (drawn, late, reading_all) = (Arc::default(), Mutex::default(), AtomicBool::new(false));
        Self { table, notes_installs: false, injection, drawn, counts, late, reading_all }
    }

    /// Of a thread the same each time.
    fn looks_awake(&self, tid: Tid) -> bool {
        let drawn = (u64::from(tid.0) ^ self.injection.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        drawn % 1_000_000 < u64::from(self.injection.awake_ppm)
    }

    /// What has been put in so far, by name.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        NAMES.into_iter().zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed))).collect()
    }

    /// The next number: splitmix64.
    fn draw(&self) -> u64 {
        let step = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut bits = self.injection.seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Whether to put a fault in here. Counted by [`Injecting::count`] once it is.
    fn strikes(&self, what: What) -> bool {
        let Injection { again_ppm, exist_ppm, nomem_ppm, partial_ppm, delay_ppm, duplicate_ppm, .. } = self.injection;
        let ppm = [again_ppm, exist_ppm, nomem_ppm, partial_ppm, delay_ppm, duplicate_ppm][what as usize];
        ppm > 0 && self.draw() % 1_000_000 < u64::from(ppm)
    }

    fn count(&self, what: What) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self) -> Option<Outcome> {
        self.strikes(What::Again).then(|| {
            self.count(What::Again);
            Outcome::Retry
        })
    }

    fn short_of_memory(&self) -> Result<(), Errno> {
        if !self.strikes(What::Nomem) {
            return Ok(());
        }
        self.count(What::Nomem);
        Err(Errno::ENOMEM)
    }

    /// Puts an entry there, or has something come in between.
    fn put(&self, span: Span<'_>, entry: Entry) -> Result<Outcome, Errno> {
        if let Some(refused) = self.refuse() {
            return Ok(refused);
        }
        self.short_of_memory()?;
        let noted = self.notes_installs && matches!(entry, Entry::Page(..));
        if noted || !self.strikes(What::Exist) {
            return match entry {
                Entry::Page(protection) => self.table.install(span, protection),
                Entry::Zeros => self.table.install_zeros(span, Protection::ReadOnly),
                Entry::Poison => self.table.poison(span),
            };
        }
        match self.table.put_quietly(span, entry)? {
            Outcome::Installed => {
                self.count(What::Exist);
                Ok(Outcome::AlreadyPresent)
            }
            other => Ok(other),
        }
    }

    /// The bytes of a page of a range. What may be huge pages is taken for them.
    fn unit(&self, span: Span<'_>) -> u64 {
        let unit = 1 << (span.at().0 as u64 | span.bytes()).trailing_zeros();
        if unit < HUGE_BYTES { self.base_page() } else { unit }
    }

    /// Where to cut a range in two, if it is of several pages.
    fn half<'a>(&self, span: Span<'a>) -> Option<Span<'a>> {
        let unit = self.unit(span);
        Some(span.bytes() / unit / 2 * unit).filter(|half| *half > 0).map(|half| span.at_most(half))
    }

    /// Fills a run of pages, or, now and then, the first half of it: as if the page in the middle had an entry.
    fn in_part<'a>(&self, span: Span<'a>, fill: impl Fn(Span<'a>) -> Result<Filled, Errno>) -> Result<Filled, Errno> {
        match self.half(span) {
            Some(half) if self.strikes(What::Partial) => {
                self.count(What::Partial);
                fill(half)
            }
            _ => fill(span),
        }
    }
}

/// Messages.
impl Injecting {
    /// Holds a message back, if its thread can be watched: once that has run it may have left the fault, and
    /// the kernel takes back a message that is unread then.
    fn hold(&self, late: &mut Vec<Late>, fault: RawFault, what: What) -> bool {
        let runs = if late.len() < HELD_MAX { self.table.runs(fault.tid) } else { None };
        let Some(runs) = runs else { return false };
        late.push(Late { fault, runs, reads: 1 + self.draw() % READS_MAX });
        self.count(what);
        true
    }

    /// Delivers a message that has just been read, or holds it back, or both.
    fn take_in(&self, late: &mut Vec<Late>, into: &mut Vec<Message>, fault: RawFault) {
        // The thread has left the fault that it has sent an earlier message of.
        self.take_back(late, |earlier| earlier.fault.tid == fault.tid);
        let may_hold = !self.reading_all.load(Ordering::Relaxed);
        if may_hold && self.strikes(What::Delay) && self.hold(late, fault, What::Delay) {
            return;
        }
        into.push(Message::Fault(fault));
        if !may_hold || !self.strikes(What::Duplicate) {
            return;
        }
        if self.draw().is_multiple_of(2) {
            self.hold(late, fault, What::Duplicate);
        } else {
            into.push(Message::Fault(fault));
            self.count(What::Duplicate);
        }
    }

    /// Delivers what has been held back for long enough, as far as there is room.
    fn deliver(&self, late: &mut Vec<Late>, into: &mut Vec<Message>) {
        late.iter_mut().for_each(|message| message.reads = message.reads.saturating_sub(1));
        self.take_back(late, |message| self.table.runs(message.fault.tid) != Some(message.runs));
        late.retain(|message| {
            let due = message.reads == 0 && into.len() < MESSAGES_PER_READ;
            if due {
                into.push(Message::Fault(message.fault));
            }
            !due
        });
    }

    /// Drops messages, as the kernel does when a thread leaves its fault. A thread may have run without leaving it, on its way
    /// to sleep: so it is woken, and sends another message if it must.
    fn take_back(&self, late: &mut Vec<Late>, over: impl Fn(&Late) -> bool) {
        let bytes = self.base_page();
        late.retain(|message| {
            let over = over(message);
            if over {
                self.table.wake(message.fault.addr.align_down(bytes), bytes);
            }
            !over
        });
    }
}

impl PageTable for Injecting {
    fn base_page(&self) -> u64 {
        self.table.base_page()
    }

    fn serves_kernel_faults(&self) -> bool {
        self.table.serves_kernel_faults()
    }

    fn check_huge(&self) -> Result<()> {
        self.table.check_huge()
    }

    fn asynchronous(self: Arc<Self>) -> Result<Arc<dyn PageTable>> {
        let table = self.table.clone().asynchronous()?;
        let (drawn, counts) = (self.drawn.clone(), self.counts.clone());
        // Messages are read, and held back, through the other.
        let (notes_installs, injection) = (true, self.injection);
        let (late, reading_all) = (Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { table, notes_installs, injection, drawn, counts, late, reading_all }))
    }

    fn scan(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        if matches!(scan, Scan::TakeWritten | Scan::TakeAll) && self.refuse().is_some() {
            return Err(Errno::EAGAIN);
        }
        self.table.scan(scan, span, each)
    }

    fn has_real_addresses(&self) -> bool {
        self.table.has_real_addresses()
    }

    fn reserve(&self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno> {
        self.table.reserve(bytes, align, rights)
    }

    fn point_at_device(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        self.short_of_memory()?;
        self.table.point_at_device(span, device, offset, rights)
    }

    fn show(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        self.table.show(span, device, offset, rights, present)
    }

    fn point_in_place(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        self.short_of_memory()?;
        self.table.point_in_place(span, device, offset, rights, present)
    }

    fn page_goes(&self, span: Span<'_>) -> u64 {
        self.table.page_goes(span)
    }

    fn goings(&self) -> u64 {
        self.table.goings()
    }

    fn point_at_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.short_of_memory()?;
        self.table.point_at_zeros(span, rights)
    }

    fn join_to_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.short_of_memory()?;
        self.table.join_to_zeros(span, rights)
    }

    fn revoke_moved(&self, at: Addr, bytes: u64) -> Option<Revoked> {
        self.table.revoke_moved(at, bytes)
    }

    fn mend(&self, span: Span<'_>, rights: Rights) -> Result<Mended, Errno> {
        self.table.mend(span, rights)
    }

    fn revoke(&self, span: Span<'_>) -> Revoked {
        self.table.revoke(span)
    }

    fn unmap(&self, last: Last<'_>) {
        self.table.unmap(last);
    }

    fn install(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.put(span, Entry::Page(protection))
    }

    fn install_run(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        if let Some(refused) = self.refuse() {
            return Ok(Filled::Nothing(refused));
        }
        self.short_of_memory()?;
        let page = span.at_most(self.unit(span));
        if !self.notes_installs
            && self.strikes(What::Exist)
            && self.table.put_quietly(page, Entry::Page(protection))? == Outcome::Installed
        {
            self.count(What::Exist);
            return Ok(Filled::Nothing(Outcome::AlreadyPresent));
        }
        self.in_part(span, |span| self.table.install_run(span, protection))
    }

    fn install_zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        if protection == Protection::ReadOnly {
            return self.put(span, Entry::Zeros);
        }
        if let Some(refused) = self.refuse() {
            return Ok(refused);
        }
        self.short_of_memory()?;
        self.table.install_zeros(span, protection)
    }

    fn make_present(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        if !self.notes_installs {
            return self.install_zeros(span, protection);
        }
        if let Some(refused) = self.refuse() {
            return Ok(refused);
        }
        self.short_of_memory()?;
        self.table.make_present(span, protection)
    }

    fn make_run_present(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        if let Some(refused) = self.refuse() {
            return Ok(Filled::Nothing(refused));
        }
        self.short_of_memory()?;
        self.in_part(span, |span| self.table.make_run_present(span, protection))
    }

    fn be_told(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.short_of_memory()?;
        self.table.be_told(span, rights)
    }

    fn poison(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.put(span, Entry::Poison)
    }

    fn put_quietly(&self, span: Span<'_>, entry: Entry) -> Result<Outcome, Errno> {
        self.table.put_quietly(span, entry)
    }

    fn refuse_own(&self, at: Addr) -> bool {
        self.table.refuse_own(at)
    }

    fn unprotect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.refuse().map_or_else(|| self.table.unprotect(span), Ok)
    }

    fn clear_markers(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.refuse().map_or_else(|| self.table.clear_markers(span), Ok)
    }

    fn protect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        if let Some(refused) = self.refuse() {
            return Ok(refused);
        }
        match self.half(span) {
            Some(half) if self.strikes(What::Partial) => {
                let outcome = self.table.protect(half)?;
                if outcome != Outcome::Installed {
                    return Ok(outcome);
                }
                self.count(What::Partial);
                Ok(Outcome::Retry)
            }
            _ => self.table.protect(span),
        }
    }

    fn zap(&self, span: Span<'_>) -> Result<(), Errno> {
        self.table.zap(span)
    }

    fn wake(&self, at: Addr, bytes: u64) {
        self.table.wake(at, bytes);
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        self.table.raise_sigbus(tid, at)
    }

    fn begin_passing(&self, at: Addr, bytes: u64) {
        self.table.begin_passing(at, bytes);
    }

    fn end_passing(&self, at: Addr, bytes: u64) {
        self.table.end_passing(at, bytes);
    }

    fn outlook(&self, tid: Tid) -> Delivery {
        let outlook = if self.looks_awake(tid) { Delivery::Awake } else { self.table.outlook(tid) };
        if outlook != Delivery::Awake {
            // Who asks reads on until there is nothing more: nothing is held back from that.
            let mut late = self.late.lock();
            late.iter_mut().for_each(|message| message.reads = 0);
            self.reading_all.store(true, Ordering::Relaxed);
        }
        outlook
    }

    fn may_wait(&self, tid: Tid) -> bool {
        !self.looks_awake(tid) && self.table.may_wait(tid)
    }

    fn runs(&self, tid: Tid) -> Option<u64> {
        self.table.runs(tid)
    }

    fn wait(&self) {
        self.table.wait();
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        let mut late = self.late.lock();
        let mut fresh = Vec::with_capacity(MESSAGES_PER_READ);
        self.table.read(&mut fresh)?;
        for message in fresh {
            match message {
                Message::Fault(fault) => self.take_in(&mut late, into, fault),
                Message::Moved { .. } | Message::Posted(..) => into.push(message),
            }
        }
        self.deliver(&mut late, into);
        if into.is_empty() {
            self.reading_all.store(false, Ordering::Relaxed);
        }
        if !late.is_empty() {
            // Nothing else may ever wake the reader.
            self.table.kick();
        }
        Ok(())
    }

    fn kick(&self) {
        self.table.kick();
    }

    fn watch(&self, at: Addr, bytes: u64, resolver: Arc<dyn Resolver>) {
        self.table.watch(at, bytes, resolver);
    }

    fn unwatch(&self, at: Addr) {
        self.table.unwatch(at);
    }

    fn answer(&self, ticket: Ticket, verdict: Verdict) {
        self.table.answer(ticket, verdict);
    }

    fn dismiss(&self) {
        self.table.dismiss();
    }

    fn calls(&self) -> Calls {
        self.table.calls()
    }
}
