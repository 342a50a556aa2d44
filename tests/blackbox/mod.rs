//! What the test files share: a volume with two pagers on it, and comparisons that say where they fail.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(unused_imports, reason = "every test file uses a part of it")]

pub(crate) mod child;
pub(crate) mod forking;
#[path = "../common/guard.rs"]
pub(crate) mod guard;
pub(crate) mod park;
pub(crate) mod raw;
#[path = "../../bin/common/scarce.rs"]
pub(crate) mod scarce;

use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use daxpager::{Allocation, BusError, Device, Error, ExtentInfo, ExtentKind, File, Mapping, Pager, Result, Volume};

pub(crate) use guard::{at_end, join as join_thread, join_scoped as join, until};
pub(crate) use park::{Park, Trap};

/// What every block of a [`Rig`]'s device is full of before the test begins.
pub(crate) const SOIL: u8 = 0xa5;

/// A volume whose every block holds old bytes, and two pagers, so that mappings of
/// one file do not all hang on the same userfaultfd.
pub(crate) struct Rig {
    pub(crate) volume: Volume,
    pub(crate) pager: Pager,
    pub(crate) other: Pager,
    pub(crate) park: Arc<Park>,
    /// The page size in bytes.
    pub(crate) page: u64,
    /// The volume's blocks.
    pub(crate) blocks: u64,
    _last_words: [Arc<dyn Fn() -> String + Send + Sync>; 2],
}

/// Where the pages of files lie in this test program.
fn allocation() -> Allocation {
    if env!("CARGO_CRATE_NAME").ends_with("single_blocks") { Allocation::Blocks } else { Allocation::Windows }
}

impl Rig {
    pub(crate) fn new(blocks: u64) -> Self {
        Self::with_reader(blocks, true)
    }

    /// Where a store into a hole is handed to a worker, which puts a block under it.
    pub(crate) fn on_single_blocks(blocks: u64) -> Self {
        Self::build(blocks, true, Allocation::Blocks)
    }

    /// The same; unless `reader_answers`, the first pager has its workers answer every fault.
    pub(crate) fn with_reader(blocks: u64, reader_answers: bool) -> Self {
        Self::build(blocks, reader_answers, allocation())
    }

    fn build(blocks: u64, reader_answers: bool, allocation: Allocation) -> Self {
        let park = Park::new();
        let page = host_page();
        let device = Device::memfd("test", blocks * page).unwrap();
        let volume = Volume::format_observed(device, allocation, park.clone());
        assert_eq!(volume.allocation(), (allocation, None));
        let pager = Pager::builder().probe(park.clone()).reader_answers(reader_answers).start().unwrap();
        let other = Pager::builder().probe(park.clone()).thread_name("oth").start().unwrap();
        let rig = Self {
            _last_words: [guard::last_words(pager.describer()), guard::last_words(other.describer())],
            pager,
            other,
            park,
            page,
            blocks,
            volume,
        };
        assert_eq!(rig.volume.block_bytes(), page);
        rig.soil();
        rig
    }

    /// Fills every free block with old bytes and gives it back.
    pub(crate) fn soil(&self) {
        let free = self.volume.free_blocks();
        let soil = self.file("soil");
        soil.write_at(&vec![SOIL; (free * self.page) as usize], 0).unwrap();
        assert_eq!(self.volume.free_blocks(), 0);
        drop(soil);
        self.volume.remove("soil").unwrap();
        assert_eq!(self.volume.free_blocks(), free);
    }

    pub(crate) fn file(&self, name: &str) -> File {
        self.volume.create(name).unwrap()
    }

    /// A file of `pages` whole pages of [`pattern`], all written.
    pub(crate) fn written(&self, name: &str, pages: u64) -> File {
        let file = self.file(name);
        file.write_at(&pattern(pages * self.page, 1), 0).unwrap();
        file
    }

    /// A rig with a written file of `pages`, mapped as a whole.
    pub(crate) fn mapped(blocks: u64, pages: u64) -> (Self, File, [Mapping; 3]) {
        let rig = Self::new(blocks);
        let file = rig.written("a", pages);
        let maps = rig.maps(&file, pages);
        (rig, file, maps)
    }

    /// A rig with a file of eight pages, of which the first four are written and page 6 is unwritten; two more are mapped.
    pub(crate) fn mapped_of_each_kind(blocks: u64) -> (Self, File, [Mapping; 3]) {
        let rig = Self::new(blocks);
        let file = rig.written("a", 4);
        file.truncate(8 * rig.page).unwrap();
        file.allocate(6 * rig.page, rig.page, false).unwrap();
        let maps = rig.maps(&file, 10);
        (rig, file, maps)
    }

    /// Three mappings of the file's first `pages` pages: two of one pager, one of the other.
    pub(crate) fn maps(&self, file: &File, pages: u64) -> [Mapping; 3] {
        let range = 0..pages * self.page;
        [
            self.pager.map(file, range.clone()).unwrap(),
            self.other.map(file, range.clone()).unwrap(),
            self.pager.map(file, range).unwrap(),
        ]
    }

    /// Every block is owned by one of the files that are there, and all the others are free. A worker whose fault somebody else has
    /// answered may have a block in its hand for a moment.
    #[track_caller]
    pub(crate) fn assert_blocks_add_up(&self) {
        until("every block is free or in a file", || {
            let owned: u64 = self.volume.list().iter().map(|file| file.blocks).sum();
            (self.volume.used_blocks() == owned && self.volume.free_blocks() == self.blocks - owned).then_some(())
        });
    }
}

/// The machine's page size.
pub(crate) fn host_page() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64
}

/// Bytes that are never zero and never [`SOIL`], and differ from page to page.
pub(crate) fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let byte = |at: u64| 1 + ((at * 7 + at / 4096 * 13 + seed * 31) % 160) as u8;
    (0..len).map(byte).collect()
}

pub(crate) fn zeros(len: u64) -> Vec<u8> {
    vec![0; len as usize]
}

/// What the CPU loads through the mapping.
#[track_caller]
pub(crate) fn seen(map: &Mapping, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    map.copy_out(offset, &mut bytes).unwrap();
    bytes
}

/// What `read_at` reads; all of the range must lie within the file.
#[track_caller]
pub(crate) fn read(file: &File, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    assert_eq!(file.read_at(&mut bytes, offset).unwrap() as u64, len, "a short read at {offset}");
    bytes
}

/// A load whose value is of no interest.
#[track_caller]
pub(crate) fn touch(map: &Mapping, offset: u64) {
    map.load(offset).unwrap();
}

/// A write that is complete.
#[track_caller]
pub(crate) fn put(file: &File, bytes: &[u8], offset: u64) {
    assert_eq!(file.write_at(bytes, offset), Ok(bytes.len()));
}

#[track_caller]
pub(crate) fn assert_bytes(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    if let Some(at) = got.iter().zip(want).position(|(got, want)| got != want) {
        let differ = got.iter().zip(want).filter(|(got, want)| got != want).count();
        panic!("{what}: byte {at} is {:#x}, not {:#x}; {differ} of {} differ", got[at], want[at], got.len());
    }
}

/// The file, read and through every mapping of its start, shows `want` from `offset` on.
#[track_caller]
pub(crate) fn assert_everywhere(file: &File, maps: &[Mapping], offset: u64, want: &[u8]) {
    assert_bytes(&read(file, offset, want.len() as u64), want, &format!("read_at from {offset}"));
    assert_in_maps(maps, offset, want);
}

/// Every mapping of the file's start shows `want` from `offset` on, by loads and by `Mapping::read_at`.
#[track_caller]
pub(crate) fn assert_in_maps(maps: &[Mapping], offset: u64, want: &[u8]) {
    for (index, map) in maps.iter().enumerate() {
        let len = want.len() as u64;
        assert_bytes(&seen(map, offset, len), want, &format!("loads through mapping {index} from {offset}"));
        let mut bytes = vec![0xee; want.len()];
        map.read_at(&mut bytes, offset).unwrap();
        assert_bytes(&bytes, want, &format!("Mapping::read_at of mapping {index} from {offset}"));
    }
}

/// The access ended in SIGBUS at exactly that byte of the mapping.
#[track_caller]
pub(crate) fn assert_bus<T: std::fmt::Debug + PartialEq>(result: Result<T>, map: &Mapping, offset: u64) {
    let addr = map.as_ptr() as usize + offset as usize;
    assert_eq!(result, Err(Error::Bus(BusError { addr, offset })));
}

/// Loads, stores and read-modify-writes at `offset` are all SIGBUS.
#[track_caller]
pub(crate) fn assert_all_bus(map: &Mapping, offset: u64) {
    assert_bus(map.load(offset), map, offset);
    assert_bus(map.store(offset, 1), map, offset);
    assert_bus(map.compare_exchange(offset, 0, 1), map, offset);
}

/// An extent list in pages, to be compared with.
pub(crate) fn kinds(file: &File, page: u64) -> Vec<(ExtentKind, u64, u64)> {
    file.extents().iter().map(|info| (info.kind, info.offset / page, info.len.div_ceil(page))).collect()
}

/// Watches a thread that must not get any further for as long as it would take to: whether it finished. Has
/// no bearing on a correct library, however short; a broken one needs it to be caught.
pub(crate) fn give_a_chance<T>(thread: &ScopedJoinHandle<'_, T>) -> bool {
    let since = Instant::now();
    while !thread.is_finished() && since.elapsed() < Duration::from_millis(20) {
        thread::yield_now();
    }
    thread.is_finished()
}
