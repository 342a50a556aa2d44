//! The oracle: what may be read, where SIGBUS is right, and which pages are dirty. It knows only what operations
//! threads have begun and ended, and the tickets that they drew then; nothing of the pager's own doing.
//!
//! An operation draws a ticket before it begins, tells the oracle what it may do, acts, draws
//! another ticket and tells what it has done. What it may have done counts from its first ticket
//! on, what it has certainly done from its second. No lock of the oracle is held while the pager is called.

pub(crate) mod dirty;
pub(crate) mod history;
mod kind;
pub(crate) mod sizes;
pub(crate) mod trace;
mod verdict;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use history::{Event, History, Judgement, UNDER_WAY, Wrong};
pub(crate) use kind::{Evidence, Kind};
use sizes::Sizes;
use trace::{End, Entry, Trace, What};

use crate::op::{Op, Tallies};
use crate::outcome::Violation;
use crate::word::{Origin, SLOTS, THREADS_MAX};

/// One page of a file.
pub(crate) struct Page {
    slots: [History; SLOTS],
    pub(crate) trace: Trace,
    /// Invalidations that have begun.
    generation: u16,
    /// Those that have not ended, and the latest end of the others.
    invalidations: u32,
    invalidated: u64,
}

/// One file.
pub(crate) struct FileRecord {
    /// Held by whoever changes the size: one at a time, so that sizes are known exactly.
    pub(crate) turn: Mutex<()>,
    /// Held by whoever uses page 0 as a buffer; before `turn`.
    pub(crate) buffer: Mutex<()>,
    sizes: Mutex<Sizes>,
    pages: Vec<Mutex<Page>>,
}

/// What an operation may do to one watched word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    Nothing,
    Zero,
    Store(u64),
}

/// What is known of a whole run. Shared by all threads.
pub(crate) struct Oracle {
    clock: AtomicU64,
    pub(crate) start: Instant,
    /// For each thread a ticket before the beginning of what it does now.
    active: Vec<AtomicU64>,
    pub(crate) files: Vec<FileRecord>,
    pub(crate) page_bytes: u64,
    /// Stores may find the volume full.
    pub(crate) overcommitted: bool,
    /// The process is short of address ranges now and then, and an access may end in SIGBUS for that.
    pub(crate) scarce: bool,
    /// Page 0 of every file is a buffer for others' bytes, and not judged.
    pub(crate) buffer_pages: bool,
    pub(crate) judged: AtomicU64,
    pub(crate) unjudged: AtomicU64,
    pub(crate) parts: AtomicU64,
    pub(crate) tallies: Tallies,
    /// How what is mapped at an address was made, or was last: its end, and the words for it.
    manners: Mutex<BTreeMap<u64, (u64, String)>>,
    pub(crate) stop: AtomicBool,
    violations: Mutex<Vec<Violation>>,
    pub(crate) violation_count: AtomicU64,
}

/// A thread that has panicked has been reported: what it held is still as good as it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Page {
    fn new() -> Self {
        Self {
            slots: std::array::from_fn(|_| History::new()),
            trace: Trace::default(),
            generation: 0,
            invalidations: 0,
            invalidated: 0,
        }
    }

    /// Whether an invalidation that has not ended before `ticket` may have made the page clean.
    fn invalidated_since(&self, ticket: u64) -> bool {
        self.invalidations > 0 || self.invalidated > ticket
    }
}

impl FileRecord {
    fn new(pages: u64) -> Self {
        Self {
            turn: Mutex::new(()),
            buffer: Mutex::new(()),
            sizes: Mutex::new(Sizes::new()),
            pages: (0..pages).map(|_| Mutex::new(Page::new())).collect(),
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(crate) fn page(&self, page: u64) -> MutexGuard<'_, Page> {
        lock(&self.pages[page as usize])
    }

    pub(crate) fn size_now(&self) -> u64 {
        lock(&self.sizes).now()
    }

    pub(crate) fn sizes_between(&self, begin: u64, end: u64) -> RangeInclusive<u64> {
        lock(&self.sizes).between(begin, end)
    }
}

impl Oracle {
    pub(crate) fn new(files: usize, pages: u64, page_bytes: u64) -> Self {
        Self {
            clock: AtomicU64::new(1),
            start: Instant::now(),
            active: (0..THREADS_MAX).map(|_| AtomicU64::new(UNDER_WAY)).collect(),
            files: (0..files).map(|_| FileRecord::new(pages)).collect(),
            page_bytes,
            overcommitted: false,
            scarce: false,
            buffer_pages: false,
            judged: AtomicU64::new(0),
            unjudged: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            tallies: Tallies::default(),
            manners: Mutex::default(),
            stop: AtomicBool::new(false),
            violations: Mutex::new(Vec::new()),
            violation_count: AtomicU64::new(0),
        }
    }

    pub(crate) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A thread begins something: its first ticket.
    pub(crate) fn begin(&self, thread: u8) -> u64 {
        self.active[thread as usize].store(self.clock.load(Ordering::SeqCst), Ordering::SeqCst);
        self.tick()
    }

    /// What the thread began has been judged.
    pub(crate) fn leave(&self, thread: u8) {
        self.active[thread as usize].store(UNDER_WAY, Ordering::SeqCst);
    }

    /// Everything that is under way, or yet to begin, began after this.
    fn horizon(&self) -> u64 {
        let now = self.clock.load(Ordering::SeqCst);
        self.active.iter().map(|ticket| ticket.load(Ordering::SeqCst)).fold(now, u64::min)
    }

    pub(crate) fn is_judged(&self, page: u64) -> bool {
        !(self.buffer_pages && page == 0)
    }

    /// The next word that `thread` is to store there.
    pub(crate) fn word(&self, file: u8, page: u64, slot: usize, thread: u8, sequence: u32) -> u64 {
        let generation = self.files[file as usize].page(page).generation;
        let (page, slot) = (page as u16, slot as u8);
        Origin { file, page, slot, thread, generation: generation & 0x1ff, sequence }.encode()
    }

    /// Tells that a store of one word begins, or of several that are copied.
    pub(crate) fn store_begins(&self, file: u8, page: u64, slot: usize, value: u64, begin: u64, copied: bool) {
        if !self.is_judged(page) {
            return;
        }
        let horizon = self.horizon();
        let event = Event { value, begin, end: UNDER_WAY, certain: false, copied, mixed: false, zeroes: false };
        self.files[file as usize].page(page).slots[slot].begin(event, horizon);
    }

    /// Tells that it has ended: stored, perhaps stored, or certainly not.
    pub(crate) fn store_ends(&self, file: u8, page: u64, slot: usize, begin: u64, end: u64, done: Option<bool>) {
        let mut page = self.files[file as usize].page(page);
        match done {
            Some(certain) => page.slots[slot].end(begin, end, certain),
            None => page.slots[slot].cancel(begin),
        }
    }

    /// Tells that an operation on many pages begins: `effect` of each watched word of each page, by its byte in the file.
    pub(crate) fn change_begins(&self, change: &Change, begin: u64, effect: impl Fn(u64, usize) -> Effect) {
        let Change { op, thread, file, .. } = *change;
        let horizon = self.horizon();
        let ns = self.ns();
        for index in change.pages.clone() {
            let mut page = self.files[file as usize].page(index);
            page.generation = page.generation.wrapping_add(1);
            page.invalidations += 1;
            page.trace.push(Entry {
                ticket: begin,
                began: begin,
                ns,
                thread,
                what: What::Begun(op),
                slot: None,
                value: None,
            });
            for slot in 0..SLOTS {
                let (value, zeroes) = match effect(index, slot) {
                    Effect::Nothing => continue,
                    Effect::Zero => (0, true),
                    Effect::Store(value) => (value, false),
                };
                // By the kernel, which writes and zeroes byte by byte perhaps.
                let event = Event { value, begin, end: UNDER_WAY, certain: false, copied: true, mixed: false, zeroes };
                page.slots[slot].begin(event, horizon);
            }
        }
    }

    /// Tells that it has ended. `certain` says of a byte whether what was to happen there has certainly happened; `done` is
    /// false if nothing has.
    pub(crate) fn change_ends(
        &self,
        change: &Change,
        span: (u64, u64),
        done: bool,
        certain: impl Fn(u64, usize) -> bool,
    ) {
        let Change { op, thread, file, .. } = *change;
        let (begin, end) = span;
        let ns = self.ns();
        for index in change.pages.clone() {
            let mut page = self.files[file as usize].page(index);
            page.invalidations -= 1;
            page.invalidated = page.invalidated.max(end);
            let what = What::Ended(op, if done { End::Done } else { End::Refused });
            page.trace.push(Entry { ticket: end, began: begin, ns, thread, what, slot: None, value: None });
            for slot in 0..SLOTS {
                if done {
                    page.slots[slot].end(begin, end, certain(index, slot));
                } else {
                    page.slots[slot].cancel(begin);
                }
            }
        }
    }

    pub(crate) fn size_begins(&self, file: u8, bytes: u64, begin: u64) {
        let horizon = self.horizon();
        lock(&self.files[file as usize].sizes).begin(bytes, begin, horizon);
    }

    pub(crate) fn size_ends(&self, file: u8, end: u64, done: bool) {
        lock(&self.files[file as usize].sizes).end(end, done);
    }

    /// Tells how the mapping at some addresses has been made.
    pub(crate) fn mapped(&self, at: Range<u64>, manner: String) {
        lock(&self.manners).insert(at.start, (at.end, manner));
    }

    fn manner_at(&self, address: u64) -> Option<String> {
        let manners = lock(&self.manners);
        let (_, (end, manner)) = manners.range(..=address).next_back()?;
        (address < *end).then(|| manner.clone())
    }

    /// Adds an access to the trace of its page.
    pub(crate) fn note(&self, file: u8, page: u64, entry: Entry) {
        self.files[file as usize].page(page).trace.push(entry);
    }

    /// Judges a value that was loaded between two tickets.
    pub(crate) fn judge(&self, access: &Access, slot: usize, value: u64, span: (u64, u64)) {
        if !self.is_judged(access.page) {
            return;
        }
        self.judged.fetch_add(1, Ordering::Relaxed);
        let page = self.files[access.file as usize].page(access.page);
        let (kind, allowed) = match page.slots[slot].judge(value, span.0, span.1) {
            Judgement::Allowed => return,
            Judgement::Unjudged => {
                self.unjudged.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Judgement::Wrong(wrong, allowed) => (wrong, allowed),
        };
        // The kernel copies as it likes: from a byte between two words its parts cut words, of the library's own calls too.
        let in_pieces = !matches!(access.op, Op::Load | Op::Exchange);
        if kind != Wrong::Stale && value != 0 && page.slots[slot].may_be_torn(value, span.0, span.1, in_pieces) {
            self.parts.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let here = (access.file, access.page, slot);
        let kind = match (kind, Origin::decode(value)) {
            (Wrong::Lost, _) => Kind::Lost,
            (_, None) => Kind::Torn,
            (_, Some(origin)) if (origin.file, u64::from(origin.page), usize::from(origin.slot)) != here => {
                Kind::Foreign
            }
            (Wrong::Stale | Wrong::Unknown, Some(_)) => Kind::Stale,
        };
        drop(page);
        self.report(access, kind, Evidence::Word { slot, value, allowed, span });
    }

    /// An access to a page went through: some part of the page must have been in the file meanwhile.
    pub(crate) fn present(&self, access: &Access, span: (u64, u64)) {
        let sizes = self.files[access.file as usize].sizes_between(span.0, span.1);
        if access.page >= sizes.end().div_ceil(self.page_bytes) {
            self.report(access, Kind::NoSigbus, Evidence::Size { sizes, span });
        }
    }

    /// An access to a page ended in SIGBUS, or a system call at it in EFAULT: it must have been outside of the
    /// file at some moment, or the volume full and the access one that is refused then.
    pub(crate) fn absent(&self, access: &Access, span: (u64, u64), refused_if_full: bool) {
        let sizes = self.files[access.file as usize].sizes_between(span.0, span.1);
        let outside = access.page >= sizes.start().div_ceil(self.page_bytes);
        let full = self.overcommitted && refused_if_full;
        if !outside && !full && !self.scarce {
            self.report(access, Kind::Sigbus, Evidence::Size { sizes, span });
        }
    }
}

/// Who accesses what: for reports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) op: Op,
    pub(crate) thread: u8,
    pub(crate) file: u8,
    pub(crate) page: u64,
    pub(crate) address: Option<u64>,
}

/// Who changes which pages: for the oracle's records.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) op: Op,
    pub(crate) thread: u8,
    pub(crate) file: u8,
    /// Pages of which any watched word may change.
    pub(crate) pages: Range<u64>,
}
