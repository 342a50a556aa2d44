//! The threads of a mix, and what they share: each operation draws its tickets, says in public what it does
//! and since when, and is counted.

mod access;
mod advance;
mod change;
mod remap;
pub(crate) mod rest;

use std::io::{PipeReader, PipeWriter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use daxpager::Error;
use fastrand::Rng;
use nix::sys::pthread::{Pthread, pthread_self};
use nix::sys::signal::SigSet;

use crate::op::Op;
use crate::oracle::trace::{End, Entry, What};
use crate::oracle::{Access, Kind, Oracle};
use crate::word::{SLOT_OFFSETS, THREADS_MAX, WORD, slots_in};
use crate::world::{Mapped, World};

/// The thread that compares everything at rest.
pub(crate) const REST: u8 = THREADS_MAX as u8 - 1;
/// Sequence numbers go from 1 to this.
const SEQUENCES: u32 = (1 << 24) - 1;

/// What one thread is doing, for whoever watches. Each field is true at some moment of the operation.
pub(crate) struct Beat {
    pub(crate) id: u8,
    pub(crate) role: &'static str,
    /// Nanoseconds since the start of the run, or 0 between operations.
    pub(crate) since_ns: AtomicU64,
    pub(crate) op: AtomicU64,
    pub(crate) file: AtomicU64,
    pub(crate) page: AtomicU64,
    pub(crate) address: AtomicU64,
    /// The kernel's number of the thread; 0 before it runs and after it has ended.
    pub(crate) tid: AtomicU64,
    /// For signals to it.
    pub(crate) pthread: AtomicU64,
}

impl Beat {
    fn new(id: u8, role: &'static str) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            id,
            role,
            since_ns: zero(),
            op: zero(),
            file: zero(),
            page: zero(),
            address: zero(),
            tid: zero(),
            pthread: zero(),
        }
    }

    pub(crate) fn access(&self) -> Access {
        let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let op = Op::ALL[get(&self.op) as usize % Op::ALL.len()];
        let address = Some(get(&self.address)).filter(|address| *address != 0);
        Access { op, thread: self.id, file: get(&self.file) as u8, page: get(&self.page), address }
    }
}

/// A thread at work.
pub(crate) struct Hand {
    id: u8,
    world: Arc<World>,
    oracle: Arc<Oracle>,
    rng: Rng,
    sequence: u32,
    beat: Arc<Beat>,
    pipe: (PipeReader, PipeWriter),
    /// Whether the thread blocks every signal.
    masked: bool,
    /// Mappings that may be gone by now.
    seen: Vec<(std::sync::Weak<Mapped>, u64)>,
}

/// A thread, and what it is doing.
pub(crate) struct Worker {
    pub(crate) beat: Arc<Beat>,
    pub(crate) thread: thread::JoinHandle<()>,
}

/// Starts the threads of a mix. They end when the oracle says stop, or `stop` does.
pub(crate) fn start(
    world: &Arc<World>,
    round: u64,
    stop: &Arc<std::sync::atomic::AtomicBool>,
) -> anyhow::Result<Vec<Worker>> {
    let mix = &world.mix;
    let roles = [
        ("access", mix.accessors, Hand::access as fn(&mut Hand)),
        ("change", mix.changers, Hand::change),
        ("remap", mix.remappers, Hand::remap),
        ("collect", mix.collectors, Hand::collect),
    ];
    let mut workers = Vec::new();
    for (role, count, step) in roles {
        for _ in 0..count {
            let id = workers.len() as u8;
            let stop = stop.clone();
            workers.push(spawn(world, id, role, round, move |hand| {
                while !stop.load(Ordering::Relaxed) && !hand.oracle.stop.load(Ordering::Relaxed) {
                    step(hand);
                }
            })?);
        }
    }
    Ok(workers)
}

/// Starts one thread.
pub(crate) fn spawn(
    world: &Arc<World>,
    id: u8,
    role: &'static str,
    round: u64,
    body: impl FnOnce(&mut Hand) + Send + 'static,
) -> anyhow::Result<Worker> {
    let beat = Arc::new(Beat::new(id, role));
    let seed = world.mix.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round << 8 ^ u64::from(id);
    let masked = world.masked && id != REST && id % 2 == 1;
    let mut hand = Hand {
        id,
        masked,
        oracle: world.oracle.clone(),
        world: world.clone(),
        rng: Rng::with_seed(seed),
        sequence: (round as u32).wrapping_mul(1 << 18) % SEQUENCES,
        beat: beat.clone(),
        pipe: std::io::pipe()?,
        seen: Vec::new(),
    };
    let thread = thread::Builder::new().name(format!("{role}-{id}")).spawn(move || {
        if masked {
            SigSet::all().thread_block().expect("every signal there is");
        }
        // Whoever sees the one sees the other.
        // With musl it is a pointer.
        hand.beat.pthread.store(pthread_self() as u64, Ordering::SeqCst);
        hand.beat.tid.store(nix::unistd::gettid().as_raw() as u64, Ordering::SeqCst);
        body(&mut hand);
        hand.beat.tid.store(0, Ordering::SeqCst);
    })?;
    Ok(Worker { beat, thread })
}

/// For signals to a thread that has not ended.
pub(crate) fn pthread_of(beat: &Beat) -> Option<Pthread> {
    (beat.tid.load(Ordering::SeqCst) != 0).then(|| beat.pthread.load(Ordering::SeqCst) as Pthread)
}

/// A watched word within some bytes of a file.
#[derive(Clone, Copy)]
struct Watched {
    page: u64,
    slot: usize,
    /// Its first byte, from the first of those bytes.
    at: usize,
}

impl Hand {
    fn page_bytes(&self) -> u64 {
        self.oracle.page_bytes
    }

    /// Draws an operation by weight.
    fn draw(&mut self, weights: &[(Op, u32)]) -> Op {
        let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(0..total.max(1));
        for (op, weight) in weights {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *op,
            }
        }
        weights[0].0
    }

    fn pause(&mut self, us_max: u64) {
        if us_max > 0 {
            thread::sleep(Duration::from_micros(self.rng.u64(0..=us_max)));
        }
    }

    fn word(&mut self, file: u8, page: u64, slot: usize) -> u64 {
        self.sequence = self.sequence % SEQUENCES + 1;
        self.oracle.word(file, page, slot, self.id, self.sequence)
    }

    /// Begins an operation: its first ticket.
    fn begin(&mut self, access: &Access) -> u64 {
        let beat = &self.beat;
        beat.op.store(access.op as u64, Ordering::Relaxed);
        beat.file.store(u64::from(access.file), Ordering::Relaxed);
        beat.page.store(access.page, Ordering::Relaxed);
        beat.address.store(access.address.unwrap_or(0), Ordering::Relaxed);
        let begin = self.oracle.begin(self.id);
        self.beat.since_ns.store(self.oracle.ns().max(1), Ordering::Release);
        begin
    }

    /// It has ended: its second ticket.
    fn end(&mut self, access: &Access, begin: u64, refused: bool) -> (u64, u64) {
        let end = self.oracle.tick();
        let since = self.beat.since_ns.swap(0, Ordering::AcqRel);
        self.oracle.tallies.count(access.op, self.id, refused, self.oracle.ns().saturating_sub(since));
        (begin, end)
    }

    /// It has been judged.
    fn leave(&self) {
        self.oracle.leave(self.id);
    }

    /// Adds what was done to the trace of a page.
    fn note(&self, access: &Access, span: (u64, u64), slot: Option<usize>, value: Option<u64>, end: End) {
        let what = What::Ended(access.op, end);
        let slot = slot.map(|slot| slot as u8);
        let entry = Entry { ticket: span.1, began: span.0, ns: self.oracle.ns(), thread: self.id, what, slot, value };
        self.oracle.note(access.file, access.page, entry);
    }

    /// The watched words that lie wholly in some bytes of a file.
    fn watched(&self, bytes: std::ops::Range<u64>) -> Vec<Watched> {
        let size = self.page_bytes();
        let mut found = Vec::new();
        for page in bytes.start / size..bytes.end.div_ceil(size) {
            let start = page * size;
            let part = bytes.start.saturating_sub(start)..(bytes.end - start).min(size);
            for slot in slots_in(part) {
                found.push(Watched { page, slot, at: (start + SLOT_OFFSETS[slot] - bytes.start) as usize });
            }
        }
        found
    }

    /// New words for all watched ones of some bytes, and the bytes.
    fn fill(&mut self, file: u8, bytes: std::ops::Range<u64>) -> (Vec<(Watched, u64)>, Vec<u8>) {
        let mut buffer = vec![0; (bytes.end - bytes.start) as usize];
        let mut words = Vec::new();
        for watched in self.watched(bytes) {
            let word = self.word(file, watched.page, watched.slot);
            buffer[watched.at..watched.at + WORD as usize].copy_from_slice(&word.to_le_bytes());
            words.push((watched, word));
        }
        (words, buffer)
    }

    /// An error that a call has given: allowed where a volume may be full, a violation anywhere else.
    fn failed(&self, access: &Access, error: &Error) {
        let full = matches!(error, Error::NoSpace { .. }) && self.oracle.overcommitted;
        let scarce = self.oracle.scarce && names_a_shortage(error);
        if !full && !scarce {
            let (expected, found) = ("no error".to_owned(), error.to_string());
            self.oracle.report(access, Kind::Error, crate::oracle::Evidence::Text { expected, found });
        }
    }
}

/// Of address ranges: by the variant's name, or by what mmap(2) and mremap(2) say.
pub(crate) fn names_a_shortage(error: &Error) -> bool {
    let enomem = nix::errno::Errno::ENOMEM as i32;
    matches!(error, Error::System { errno, .. } if *errno == enomem) || format!("{error:?}").contains("AddressRanges")
}

fn word_at(buffer: &[u8], at: usize) -> u64 {
    let mut word = [0; WORD as usize];
    word.copy_from_slice(&buffer[at..at + WORD as usize]);
    u64::from_le_bytes(word)
}
