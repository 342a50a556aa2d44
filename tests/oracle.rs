//! The kernel as oracle. Random sequences of stores, loads, truncates, punches, zero ranges,
//! allocations, reads and writes at odd offsets run on a file of ours and on a real one (ext4 or XFS) under
//! the kernel's own mmap. After every step the sizes are equal, the bytes by read and by load, and the
//! pages that are a SIGBUS. proptest shrinks what is not.
//!
//! Past the end, within the last page, the kernel is no oracle: writeback clears those bytes at
//! a moment of its own choice. There, and everywhere else too, a plain array says what ought to be.
//!
//! Populating and advising change nothing that is compared; what has been stored through the first mapping must be among its
//! dirty ranges, under each kind of tracking.
//!
//! `DAXPAGER_ORACLE_STEPS` says how many steps, 5,000 unless set, or 20,000 with `DAXPAGER_LONG=1`; `DAXPAGER_ORACLE_DIR` where the real
//! file is put, if the build directory is on neither ext4 nor XFS.

#[path = "common/guard.rs"]
mod guard;
#[path = "common/kernel.rs"]
mod kernel;

use std::collections::BTreeSet;
use std::sync::Arc;

use daxpager::fake::FakePageTable;
use daxpager::{
    Access, Advice, Allocation, Device, Error, File, MapOptions, Mapping, Pager, Resolve, Tracking, Volume,
};
use kernel::RealFile;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

const PAGE: u64 = 4096;
/// Pages of the file that are mapped; sizes reach a little further.
const PAGES: u64 = 10;
const STEPS_A_CASE: usize = 80;

/// One step. Offsets and lengths are bytes.
#[derive(Clone, Debug)]
enum Step {
    Store { mapping: usize, offset: u64, len: usize, byte: u8 },
    Load { mapping: usize, page: u64 },
    Truncate(u64),
    Punch(u64, u64),
    Zero(u64, u64, bool),
    Allocate(u64, u64, bool),
    Write { offset: u64, len: usize, byte: u8 },
    MappedWrite { offset: u64, len: usize, byte: u8 },
    Collect,
    Populate { mapping: usize, page: u64, pages: u64, access: Access },
    Advise { mapping: usize, page: u64, pages: u64, advice: Advice },
}

/// Offsets that like page borders, one to either side of them, and words.
fn offset() -> impl Strategy<Value = u64> {
    let near = (0..=PAGES, -3i64..=3).prop_map(|(page, by)| (page * PAGE).saturating_add_signed(by));
    prop_oneof![3 => near, 2 => 0..PAGES * PAGE, 1 => (0..=PAGES).prop_map(|page| page * PAGE)]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 1..64u64, 2 => 1..3 * PAGE, 1 => (1..4u64).prop_map(|pages| pages * PAGE), 1 => Just(1u64)]
}

fn advice() -> impl Strategy<Value = Advice> {
    let all = [Advice::Normal, Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed];
    proptest::sample::select(all.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2usize, offset(), 1..40usize, any::<u8>())
            .prop_map(|(mapping, offset, len, byte)| Step::Store { mapping, offset, len, byte }),
        2 => (0..2usize, 0..PAGES).prop_map(|(mapping, page)| Step::Load { mapping, page }),
        3 => offset().prop_map(Step::Truncate),
        3 => (offset(), len()).prop_map(|(offset, len)| Step::Punch(offset, len)),
        2 => (offset(), len(), any::<bool>()).prop_map(|(offset, len, keep)| Step::Zero(offset, len, keep)),
        2 => (offset(), len(), any::<bool>()).prop_map(|(offset, len, keep)| Step::Allocate(offset, len, keep)),
        3 => (offset(), 1..9000usize, any::<u8>()).prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        1 => (offset(), 1..5000usize, any::<u8>()).prop_map(|(offset, len, byte)| Step::MappedWrite { offset, len, byte }),
        1 => Just(Step::Collect),
        1 => (0..2usize, 0..PAGES, 0..PAGES, prop_oneof![Just(Access::Load), Just(Access::Store)])
            .prop_map(|(mapping, page, pages, access)| Step::Populate { mapping, page, pages, access }),
        1 => (0..2usize, 0..PAGES, 0..PAGES, advice())
            .prop_map(|(mapping, page, pages, advice)| Step::Advise { mapping, page, pages, advice }),
    ]
}

/// What the mapping ought to show: the bytes of every page that begins before the end, and zeros behind it.
struct Model {
    bytes: Vec<u8>,
    size: u64,
}

impl Model {
    fn new() -> Self {
        Self { bytes: vec![0; ((PAGES + 8) * PAGE) as usize], size: 0 }
    }

    fn zero(&mut self, from: u64, to: u64) {
        let end = (to as usize).min(self.bytes.len());
        if (from as usize) < end {
            self.bytes[from as usize..end].fill(0);
        }
    }

    fn grow(&mut self, size: u64) {
        if size > self.size {
            self.zero(self.size, u64::MAX >> 1);
            self.size = size;
        }
    }

    /// Pages that are no SIGBUS, in bytes.
    fn mapped(&self) -> u64 {
        self.size.next_multiple_of(PAGE)
    }

    fn write(&mut self, offset: u64, len: usize, byte: u8) {
        self.bytes[offset as usize..][..len].fill(byte);
    }
}

/// How the CPU gets at a mapping: the real one, or the fake page table's.
trait Cpu {
    fn copy_out(&self, map: &Mapping, offset: u64, into: &mut [u8]) -> bool;
    fn copy_in(&self, map: &Mapping, offset: u64, from: &[u8]) -> bool;
}

struct RealCpu;

fn unless_bus(result: Result<(), Error>) -> bool {
    match result {
        Ok(()) => true,
        Err(Error::Bus(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

impl Cpu for RealCpu {
    fn copy_out(&self, map: &Mapping, offset: u64, into: &mut [u8]) -> bool {
        unless_bus(map.copy_out(offset, into))
    }
    fn copy_in(&self, map: &Mapping, offset: u64, from: &[u8]) -> bool {
        unless_bus(map.copy_in(offset, from))
    }
}

/// The fake page table knows whole words.
struct FakeCpu(FakePageTable);

impl FakeCpu {
    /// The words that a range of the mapping touches: address, and the bytes of each that are meant.
    fn words(map: &Mapping, offset: u64, len: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
        let (from, to) = (offset, offset + len as u64);
        let base = map.as_ptr() as usize;
        (from / 8..to.div_ceil(8)).map(move |word| {
            let start = word * 8;
            let part = from.saturating_sub(start) as usize..(to - start).min(8) as usize;
            (base + start as usize, part)
        })
    }
}

impl Cpu for FakeCpu {
    fn copy_out(&self, map: &Mapping, offset: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        for (at, part) in Self::words(map, offset, into.len()) {
            let Ok(word) = self.0.load(at) else { return false };
            into[done..done + part.len()].copy_from_slice(&word.to_ne_bytes()[part.clone()]);
            done += part.len();
        }
        true
    }

    fn copy_in(&self, map: &Mapping, offset: u64, from: &[u8]) -> bool {
        let mut done = 0;
        for (at, part) in Self::words(map, offset, from.len()) {
            let mut old = 0u64;
            // A store like any other, of a part of a word.
            loop {
                let mut bytes = old.to_ne_bytes();
                bytes[part.clone()].copy_from_slice(&from[done..done + part.len()]);
                match self.0.compare_exchange(at, old, u64::from_ne_bytes(bytes)) {
                    Ok(found) if found == old => break,
                    Ok(found) => old = found,
                    Err(_) => return false,
                }
            }
            done += part.len();
        }
        true
    }
}

/// The same file three times: ours, the kernel's, and an array.
struct Trio<'a> {
    cpu: &'a dyn Cpu,
    ours: File,
    /// The whole file, and it from page 3 on.
    maps: [Arc<Mapping>; 2],
    real: &'a RealFile,
    model: Model,
    /// Pages stored to through the first mapping since its dirty ranges were taken, and not taken away since.
    stored: BTreeSet<u64>,
}

macro_rules! agree {
    ($what:expr, $ours:expr, $expected:expr) => {{
        let (ours, expected) = (&$ours, &$expected);
        if ours != expected {
            return Err(TestCaseError::fail(format!("{}: ours {ours:?}, expected {expected:?}", $what)));
        }
    }};
}

/// The first byte in which two slices differ.
fn difference(ours: &[u8], expected: &[u8]) -> Option<(usize, u8, u8)> {
    (0..ours.len()).find(|at| ours[*at] != expected[*at]).map(|at| (at, ours[at], expected[at]))
}

impl Trio<'_> {
    fn map_base(&self, mapping: usize) -> u64 {
        self.maps[mapping].file_offset()
    }

    /// Forgets what has been stored to pages that a step may take away.
    fn forget_stored(&mut self, step: &Step) {
        let (offset, len) = match *step {
            Step::Truncate(size) => {
                // Pages of zeros may have been given back.
                let zeros = |page: u64| {
                    self.model.bytes[(page * PAGE) as usize..][..PAGE as usize].iter().all(|byte| *byte == 0)
                };
                self.stored.retain(|page| page * PAGE < size && !zeros(*page));
                return;
            }
            Step::Punch(offset, len) | Step::Zero(offset, len, _) => (offset, len),
            _ => return,
        };
        self.stored.retain(|page| (page + 1) * PAGE <= offset || page * PAGE >= offset + len);
    }

    fn collect(&mut self) -> Result<(), TestCaseError> {
        let taken = self.maps[0].take_dirty().unwrap();
        let is_taken = |page: &&u64| taken.iter().any(|range| range.contains(&(**page * PAGE)));
        let lost: Vec<_> = self.stored.iter().filter(|page| !is_taken(page)).collect();
        agree!("pages stored to and not dirty", lost, Vec::<&u64>::new());
        self.stored.clear();
        Ok(())
    }

    /// A range of pages of a mapping, in bytes from its start.
    fn pages_of(&self, mapping: usize, page: u64, pages: u64) -> std::ops::Range<u64> {
        let len = self.maps[mapping].len();
        (page * PAGE).min(len)..((page + pages) * PAGE).min(len)
    }

    fn populate(&mut self, mapping: usize, range: std::ops::Range<u64>, access: Access) -> Result<(), TestCaseError> {
        let base = self.map_base(mapping);
        let (start, end) = (base + range.start, base + range.end);
        let valid = end.min(self.model.mapped()).max(start);
        match self.maps[mapping].populate(range, access) {
            Ok(()) => agree!("populated", end, valid),
            Err(Error::PastEnd { page, .. }) => agree!("the first page past the end", page * PAGE, valid),
            Err(error) => return Err(TestCaseError::fail(format!("populate: {error}"))),
        }
        if mapping == 0 && access == Access::Store {
            self.stored.extend(start / PAGE..valid / PAGE);
        }
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.forget_stored(step);
        match *step {
            Step::Populate { mapping, page, pages, access } => {
                return self.populate(mapping, self.pages_of(mapping, page, pages), access);
            }
            Step::Advise { mapping, page, pages, advice } => {
                self.maps[mapping].advise(self.pages_of(mapping, page, pages), advice).unwrap();
                return Ok(());
            }
            Step::Collect => return self.collect(),
            _ => {}
        }
        self.change(step)
    }

    fn change(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let model = &mut self.model;
        match *step {
            Step::Store { mapping, offset, len, byte } => return self.store(mapping, offset, len, byte),
            Step::Load { mapping, page } => return self.load(mapping, page),
            Step::Truncate(size) => {
                self.ours.truncate(size).unwrap();
                self.real.truncate(size);
                model.zero(size.min(model.size), u64::MAX >> 1);
                model.size = size;
            }
            Step::Punch(offset, len) => {
                self.ours.punch_hole(offset, len).unwrap();
                self.real.punch_hole(offset, len);
                model.zero(offset, offset + len);
            }
            Step::Zero(offset, len, keep) => {
                self.ours.zero_range(offset, len, keep).unwrap();
                self.real.zero_range(offset, len, keep);
                model.zero(offset, offset + len);
                if !keep {
                    model.grow(offset + len);
                }
            }
            Step::Allocate(offset, len, keep) => {
                self.ours.allocate(offset, len, keep).unwrap();
                self.real.allocate(offset, len, keep);
                if !keep {
                    model.grow(offset + len);
                }
            }
            Step::Write { offset, len, byte } => {
                self.ours.write_at(&vec![byte; len], offset).unwrap();
                self.real.write_at(&vec![byte; len], offset);
                model.grow(offset + len as u64);
                model.write(offset, len, byte);
            }
            Step::MappedWrite { offset, len, byte } => return self.mapped_write(offset, len, byte),
            Step::Collect | Step::Populate { .. } | Step::Advise { .. } => unreachable!("no change"),
        }
        Ok(())
    }

    fn note_stored(&mut self, offset: u64, len: usize) {
        if len > 0 {
            self.stored.extend(offset / PAGE..(offset + len as u64).div_ceil(PAGE));
        }
    }

    /// What of a range of the mapping lies in pages that are no SIGBUS.
    fn valid(&self, offset: u64, len: usize) -> usize {
        (self.model.mapped().saturating_sub(offset) as usize).min(len)
    }

    fn store(&mut self, mapping: usize, offset: u64, len: usize, byte: u8) -> Result<(), TestCaseError> {
        let base = self.map_base(mapping);
        let offset = offset.max(base);
        let len = len.min(((PAGES * PAGE).saturating_sub(offset)) as usize);
        if len == 0 {
            return Ok(());
        }
        let bytes = vec![byte; len];
        let valid = self.valid(offset, len);
        let ours = self.cpu.copy_in(&self.maps[mapping], offset - base, &bytes);
        agree!(format!("store at {offset}: no SIGBUS"), ours, valid == len);
        let real = self.real.store(offset, &bytes);
        agree!(format!("the kernel's store at {offset}: no SIGBUS"), real, valid == len);
        self.model.write(offset, valid, byte);
        if mapping == 0 {
            self.note_stored(offset, valid);
        }
        Ok(())
    }

    fn load(&mut self, mapping: usize, page: u64) -> Result<(), TestCaseError> {
        let base = self.map_base(mapping);
        let offset = (page * PAGE).max(base);
        let mut bytes = vec![0xee; PAGE as usize];
        let ours = self.cpu.copy_out(&self.maps[mapping], offset - base, &mut bytes);
        agree!(format!("load of page {page}: no SIGBUS"), ours, offset < self.model.mapped());
        Ok(())
    }

    /// `Mapping::write_at`: stores without a fault. The kernel does it with stores.
    fn mapped_write(&mut self, offset: u64, len: usize, byte: u8) -> Result<(), TestCaseError> {
        let len = len.min(((PAGES * PAGE).saturating_sub(offset)) as usize);
        if len == 0 {
            return Ok(());
        }
        let bytes = vec![byte; len];
        let valid = self.valid(offset, len);
        let written = self.maps[0].write_at(&bytes, offset);
        match &written {
            Ok(()) => agree!("write_at through the mapping", valid, len),
            Err(Error::PastEnd { page, .. }) => {
                agree!("the first page past the end", *page, (offset + valid as u64) / PAGE);
            }
            Err(error) => return Err(TestCaseError::fail(format!("write_at through the mapping: {error}"))),
        }
        self.real.store(offset, &bytes);
        self.model.write(offset, valid, byte);
        self.note_stored(offset, valid);
        Ok(())
    }

    /// Sizes, bytes and SIGBUS pages.
    fn compare(&self) -> Result<(), TestCaseError> {
        let size = self.model.size;
        agree!("size", self.ours.len(), size);
        agree!("the kernel's size", self.real.len(), size);
        let mut ours = vec![0xee; size as usize + 7];
        agree!("bytes read", self.ours.read_at(&mut ours, 0).unwrap() as u64, size);
        let expected = &self.model.bytes[..size as usize];
        agree!("read_at, first difference", difference(&ours[..size as usize], expected), None);
        agree!("the kernel's read, first difference", difference(&self.real.read(size), expected), None);
        for mapping in 0..2 {
            let base = self.map_base(mapping);
            for page in base / PAGE..PAGES {
                self.compare_page(mapping, page, page * PAGE - base)?;
            }
        }
        Ok(())
    }

    fn compare_page(&self, mapping: usize, page: u64, offset: u64) -> Result<(), TestCaseError> {
        let mut ours = vec![0xee; PAGE as usize];
        let mapped = self.cpu.copy_out(&self.maps[mapping], offset, &mut ours);
        let start = (page * PAGE) as usize;
        agree!(format!("page {page} of mapping {mapping}: no SIGBUS"), mapped, page * PAGE < self.model.mapped());
        if mapped {
            // The whole page, what lies past the end of the file too.
            let expected = &self.model.bytes[start..start + PAGE as usize];
            agree!(format!("page {page} of mapping {mapping}, first difference"), difference(&ours, expected), None);
        }
        if mapping == 0 {
            let real = self.real.load(page * PAGE);
            agree!(format!("page {page} in the kernel's mapping: no SIGBUS"), real.is_some(), mapped);
            let within = (self.model.size.saturating_sub(page * PAGE)).min(PAGE) as usize;
            if let Some(real) = real {
                agree!(format!("page {page}, the kernel's"), difference(&real[..within], &ours[..within]), None);
            }
        }
        Ok(())
    }
}

fn steps_wanted() -> u64 {
    let wanted = std::env::var("DAXPAGER_ORACLE_STEPS").ok();
    wanted.map_or(guard::repeats(5_000, 20_000), |text| text.parse().expect("a number of steps"))
}

fn run(cpu: &dyn Cpu, volume: &Volume, pager: &Pager, options: &MapOptions, name: &str) {
    run_steps(steps_wanted(), cpu, volume, pager, options, name);
}

/// The same with as many steps in CI as elsewhere.
fn run_short(cpu: &dyn Cpu, volume: &Volume, pager: &Pager, options: &MapOptions, name: &str) {
    run_steps(steps_wanted().min(5_000), cpu, volume, pager, options, name);
}

fn run_steps(wanted: u64, cpu: &dyn Cpu, volume: &Volume, pager: &Pager, options: &MapOptions, name: &str) {
    let real = RealFile::new(name, PAGES * PAGE);
    let config = Config { cases: 20, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let steps = proptest::collection::vec(step(), 1..2 * STEPS_A_CASE);
    let done = std::cell::Cell::new(0u64);
    let case = |steps: Vec<Step>| {
        let _ = volume.remove("oracle");
        let ours = volume.create("oracle").unwrap();
        real.truncate(0);
        let whole = Arc::new(pager.map_with(&ours, 0..PAGES * PAGE, options).unwrap());
        let part = Arc::new(pager.map_with(&ours, 3 * PAGE..PAGES * PAGE, options).unwrap());
        let mut trio =
            Trio { cpu, ours, maps: [whole, part], real: &real, model: Model::new(), stored: BTreeSet::new() };
        for step in &steps {
            trio.apply(step)?;
            trio.compare()?;
            done.set(done.get() + 1);
        }
        Ok(())
    };
    while done.get() < wanted {
        TestRunner::new(config.clone()).run(&steps, case).unwrap_or_else(|error| panic!("{error}"));
    }
    volume.remove("oracle").unwrap();
    assert_eq!(volume.used_blocks(), 0, "blocks are lost");
    println!("{} steps agree with the kernel's {}: {:?}", done.get(), real.file_system(), pager.stats());
}

#[test]
fn agrees_with_the_kernel() {
    let volume = Volume::format(Device::memfd("oracle", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new(), "real");
}

/// The same with neighbours that are writable, and runs of blocks allocated ahead.
#[test]
fn agrees_with_the_kernel_under_coarse_tracking() {
    let volume = Volume::format(Device::memfd("oracle", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new().tracking(Tracking::Coarse), "coarse");
    let stats = pager.stats();
    assert!(stats.installs > stats.runs + stats.runs / 8, "hardly any neighbours: {stats:?}");
}

/// The same with so few address ranges that mappings are given up and blocks moved together all the time.
#[test]
fn agrees_with_the_kernel_when_address_ranges_are_short() {
    let volume = Volume::format_with(Device::memfd("oracle", 64 * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(1).gather_blocks().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new(), "short");
    assert!(pager.stats().evictions > 0, "address ranges were never short");
}

/// The same on the fake page table: the core is the very same.
#[test]
fn agrees_with_the_kernel_on_the_fake_page_table() {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(64 * PAGE, PAGE).unwrap());
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    run(&FakeCpu(fake), &volume, &pager, &MapOptions::new(), "fake");
}

/// The same where the threads resolve their own faults.
#[test]
fn agrees_with_the_kernel_in_the_faulting_thread() {
    let volume = Volume::format(Device::memfd("oracle", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new().resolve(Resolve::FaultingThread), "direct");
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}

/// And on the fake page table.
#[test]
fn agrees_with_the_kernel_in_the_faulting_thread_of_the_fake() {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(64 * PAGE, PAGE).unwrap());
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    run(&FakeCpu(fake), &volume, &pager, &MapOptions::new().resolve(Resolve::FaultingThread), "fake-direct");
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}

/// The same with stores that the kernel lets through by itself.
#[test]
fn agrees_with_the_kernel_when_it_tracks_stores_itself() {
    let volume = Volume::format(Device::memfd("oracle", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new().tracking(Tracking::Asynchronous), "asynchronous");
}

/// With too few address ranges besides.
#[test]
fn agrees_with_the_kernel_when_it_tracks_stores_itself_and_ranges_are_given_up() {
    let volume = Volume::format_with(Device::memfd("oracle", 64 * PAGE).unwrap(), Allocation::Blocks);
    let pager = Pager::builder().address_ranges_max(1).gather_blocks().start().unwrap();
    run(&RealCpu, &volume, &pager, &MapOptions::new().tracking(Tracking::Asynchronous), "asynchronous-short");
    assert!(pager.stats().evictions > 0, "address ranges were never short");
}

/// On the fake page table.
#[test]
fn agrees_with_the_kernel_when_the_fake_tracks_stores() {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(64 * PAGE, PAGE).unwrap());
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    run(&FakeCpu(fake), &volume, &pager, &MapOptions::new().tracking(Tracking::Asynchronous), "asynchronous-fake");
}

/// And where the threads resolve what faults are left, on both.
#[test]
fn agrees_with_the_kernel_when_it_tracks_the_stores_of_faulting_threads() {
    let options = MapOptions::new().resolve(Resolve::FaultingThread).tracking(Tracking::Asynchronous);
    let volume = Volume::format(Device::memfd("oracle", 64 * PAGE).unwrap());
    let pager = Pager::builder().start().unwrap();
    run(&RealCpu, &volume, &pager, &options, "asynchronous-direct");
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(64 * PAGE, PAGE).unwrap());
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    run(&FakeCpu(fake), &volume, &pager, &options, "asynchronous-fake-direct");
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}

/// Volumes of files with windows.
fn windows() -> Volume {
    let volume = Volume::format_with(Device::memfd("oracle", 64 * PAGE).unwrap(), Allocation::Windows);
    assert_eq!(volume.allocation(), (Allocation::Windows, None));
    volume
}

fn windows_on_the_fake() -> Volume {
    Volume::format_with(Device::sparse_heap(64 * PAGE, 1024 * PAGE, PAGE).unwrap(), Allocation::Windows)
}

/// Files with windows: a page is where it is, and what is taken away is out of the device.
#[test]
fn agrees_with_the_kernel_in_windows() {
    let volume = windows();
    let pager = Pager::builder().start().unwrap();
    run_short(&RealCpu, &volume, &pager, &MapOptions::new(), "windows");
    assert_eq!(volume.resident_bytes(), 0, "memory is left behind");
}

#[test]
fn agrees_with_the_kernel_in_windows_in_the_faulting_thread() {
    let volume = windows();
    let pager = Pager::builder().start().unwrap();
    run_short(&RealCpu, &volume, &pager, &MapOptions::new().resolve(Resolve::FaultingThread), "windows-direct");
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}

#[test]
fn agrees_with_the_kernel_in_windows_on_the_fake_page_table() {
    let fake = FakePageTable::new();
    let volume = windows_on_the_fake();
    let pager = Pager::builder().start_on_fake(&fake).unwrap();
    run_short(&FakeCpu(fake.clone()), &volume, &pager, &MapOptions::new(), "windows-fake");
    run_short(
        &FakeCpu(fake),
        &volume,
        &pager,
        &MapOptions::new().resolve(Resolve::FaultingThread),
        "windows-fake-direct",
    );
    assert!(pager.stats().in_thread > 0, "no fault was resolved in its own thread");
}
