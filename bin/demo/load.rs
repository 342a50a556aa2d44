//! The load: threads that store, load, truncate and punch, all at once, on two files that trade a few blocks.
//!
//! Every word stored says which file, page, thread and store it is of. A loaded word is therefore zero or
//! tells where it belongs, and a block that reached the wrong file, or the wrong page, is seen at once.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use daxpager::{Error, File, Mapping, Pager};

use crate::live::Live;
use crate::machine::page_bytes;
use crate::stage::Actor;
use crate::tally::Tally;

/// Pages of each file that are stored to, truncated and punched.
pub(crate) const ARENA_PAGES: u64 = 96;
/// Blocks for the pages of both files, and for those that a truncate or a punch has taken away and not freed yet:
/// a store always finds one. They are traded all the same, as the block freed last is handed out first.
pub(crate) const SPARE_BLOCKS: u64 = ARENA_PAGES * 5 / 2;
const WRITERS: u64 = 2;
const READERS: u64 = 2;
/// Between two truncates, and between two punches: without it there would be next to nothing to take away.
const TRUNCATE_PAUSE: Duration = Duration::from_millis(5);
const PUNCH_PAUSE: Duration = Duration::from_micros(100);
/// Pages that one punch may touch.
const PUNCH_PAGES: u64 = 3;
/// A reader looks at a page of the imported content so often.
const CONTENT_EVERY: u64 = 64;

/// The words of a page.
pub(crate) fn words_of_page() -> u64 {
    page_bytes() / 8
}

/// A file under load: an arena of pages, from page `first` on, of which the lower half is never truncated away.
pub(crate) struct Target {
    id: u64,
    pub(crate) name: &'static str,
    pub(crate) file: File,
    first: u64,
    /// One mapping that is stored to, and one that is not: an invalidation must find both.
    maps: [Mapping; 2],
    /// Hashes of the pages before the arena.
    content: Vec<u64>,
}

impl Target {
    pub(crate) fn new(pager: &Pager, id: u64, name: &'static str, file: &File) -> Result<Self, Error> {
        let first = file.len().div_ceil(page_bytes());
        let bytes = (first + ARENA_PAGES) * page_bytes();
        file.truncate(bytes)?;
        let map = || pager.map(file, 0..bytes);
        let hash = |page| {
            let mut bytes = vec![0; page_bytes() as usize];
            file.read_at(&mut bytes, page * page_bytes())?;
            Ok(hash_of(&bytes))
        };
        let content = (0..first).map(hash).collect::<Result<_, Error>>()?;
        Ok(Self { id, name, file: file.clone(), first, maps: [map()?, map()?], content })
    }

    /// The pages that are stored to.
    fn arena(&self) -> Range<u64> {
        self.first..self.first + ARENA_PAGES
    }

    /// The end of the file is never below this page.
    fn floor(&self) -> u64 {
        self.first + ARENA_PAGES / 2
    }

    fn word(&self, page: u64, thread: u64, sequence: u64) -> u64 {
        self.id << 56 | page << 28 | thread << 24 | sequence & 0xff_ffff
    }

    /// Whether a word was stored to this page of this file, or never.
    fn owns(&self, word: u64, page: u64) -> bool {
        word == 0 || word & !0xfff_ffff == self.word(page, 0, 0)
    }

    /// Fills the arena with words and reads them back, by mapping and by read; what differs first.
    pub(crate) fn fill_and_compare(&self) -> Result<Option<String>, Error> {
        self.file.truncate((self.first + ARENA_PAGES) * page_bytes())?;
        let words = || self.arena().flat_map(|page| (0..words_of_page()).map(move |slot| (page, slot)));
        // Before: what the load has left is read the same by every way, and belongs there.
        for (page, slot) in words() {
            let seen = self.by_every_way(page * page_bytes() + slot * 8)?;
            if seen != [seen[0]; 3] || !self.owns(seen[0], page) {
                return Ok(Some(format!("{}, page {page}, word {slot}, after the load: {seen:x?}", self.name)));
            }
        }
        for (page, slot) in words() {
            self.maps[0].store(page * page_bytes() + slot * 8, self.word(page, 0, slot))?;
        }
        for (page, slot) in words() {
            let (seen, want) = (self.by_every_way(page * page_bytes() + slot * 8)?, self.word(page, 0, slot));
            if seen != [want; 3] {
                return Ok(Some(format!("{}, page {page}, word {slot}: {seen:x?}, stored {want:x}", self.name)));
            }
        }
        Ok(None)
    }

    fn by_every_way(&self, offset: u64) -> Result<[u64; 3], Error> {
        let mut read = [0; 8];
        self.file.read_at(&mut read, offset)?;
        Ok([self.maps[0].load(offset)?, self.maps[1].load(offset)?, u64::from_ne_bytes(read)])
    }
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// What every thread of the load has.
struct Shared {
    targets: [Target; 2],
    tally: Tally,
    stop: AtomicBool,
}

/// Runs the load for `seconds`. `Err` if a thread is stuck; then nothing must be dropped.
pub(crate) fn run(pager: &Pager, targets: [Target; 2], seconds: u64) -> anyhow::Result<([Target; 2], Tally)> {
    let shared = Arc::new(Shared { targets, tally: Tally::default(), stop: AtomicBool::new(false) });
    let mut threads = Vec::new();
    let mut start = |name: String, seed: u64, body: fn(&Shared, &mut Random) -> Result<(), Error>| {
        let shared = shared.clone();
        let job = move || {
            let mut random = Random { state: seed, seed, turns: 0 };
            while !shared.stop.load(Ordering::Relaxed) {
                random.turns += 1;
                if let Err(error) = body(&shared, &mut random) {
                    let _ = shared.tally.failure.set(error.to_string());
                }
            }
        };
        Actor::start(&name, job).map(|actor| threads.push(actor))
    };
    for writer in 1..=WRITERS {
        start(format!("writer {writer}"), writer, write)?;
    }
    for reader in 1..=READERS {
        start(format!("reader {reader}"), WRITERS + reader, read)?;
    }
    start("truncater".to_owned(), 11, truncate)?;
    start("puncher".to_owned(), 12, punch)?;
    Live::new(pager, seconds).watch(&shared.tally)?;
    shared.stop.store(true, Ordering::Relaxed);
    threads.into_iter().try_for_each(Actor::wait)?;
    // The threads have sent that they are done, and let go of this a moment later.
    let mut shared = shared;
    loop {
        match Arc::try_unwrap(shared) {
            Ok(Shared { targets, tally, .. }) => return Ok((targets, tally)),
            Err(still) => shared = still,
        }
        std::thread::yield_now();
    }
}

/// Stores one word. Past the end it is a SIGBUS.
fn write(shared: &Shared, random: &mut Random) -> Result<(), Error> {
    let (target, tally) = (random.pick(&shared.targets), &shared.tally);
    let (page, slot) = (random.within(target.arena()), random.within(0..words_of_page()));
    let word = target.word(page, random.seed, random.turns);
    match target.maps[0].store(page * page_bytes() + slot * 8, word) {
        Ok(()) => add(&tally.stores),
        Err(Error::Bus(_)) if page >= target.floor() => add(&tally.past_end),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Loads one word, or a page of the content, and looks whose it is.
fn read(shared: &Shared, random: &mut Random) -> Result<(), Error> {
    let (target, tally) = (random.pick(&shared.targets), &shared.tally);
    let map = random.pick(&target.maps);
    if random.turns.is_multiple_of(CONTENT_EVERY) && !target.content.is_empty() {
        let page = random.within(0..target.content.len() as u64);
        let mut bytes = vec![0; page_bytes() as usize];
        map.copy_out(page * page_bytes(), &mut bytes)?;
        add(&tally.content);
        if hash_of(&bytes) != target.content[page as usize] {
            let _ = tally.foreign.set(format!("{}: page {page} of its content has changed", target.name));
        }
        return Ok(());
    }
    let (page, slot) = (random.within(target.arena()), random.within(0..words_of_page()));
    match map.load(page * page_bytes() + slot * 8) {
        Ok(0) => add(&tally.zeros),
        Ok(word) if target.owns(word, page) => add(&tally.words),
        Ok(word) => {
            let _ = tally.foreign.set(format!("{}, page {page}, word {slot}: {word:#x}", target.name));
        }
        Err(Error::Bus(_)) if page >= target.floor() => add(&tally.past_end),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Cuts a file somewhere in the upper half of its arena, or makes it whole again.
fn truncate(shared: &Shared, random: &mut Random) -> Result<(), Error> {
    let target = random.pick(&shared.targets);
    let end = target.arena().end * words_of_page();
    let words = if random.within(0..2) == 0 { end } else { random.within(target.floor() * words_of_page()..end) };
    target.file.truncate(words * 8)?;
    add(&shared.tally.invalidations);
    std::thread::sleep(TRUNCATE_PAUSE);
    Ok(())
}

/// Punches a few pages, seldom at their borders. Whole words, so that no reader sees half of one.
fn punch(shared: &Shared, random: &mut Random) -> Result<(), Error> {
    let target = random.pick(&shared.targets);
    let arena = target.arena();
    let from = random.within(arena.start * words_of_page()..arena.end * words_of_page());
    let words = random.within(1..PUNCH_PAGES * words_of_page()).min(arena.end * words_of_page() - from);
    target.file.punch_hole(from * 8, words * 8)?;
    add(&shared.tally.invalidations);
    std::thread::sleep(PUNCH_PAUSE);
    Ok(())
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A thread's own dice (xorshift), and how often it has done its work.
struct Random {
    state: u64,
    seed: u64,
    turns: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[(self.next() % of.len() as u64) as usize]
    }
}
