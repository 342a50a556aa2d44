//! A device's blocks, handed out and taken back. What files and faults share of a volume.

use std::time::Duration;

use crate::blocks::Run;
use crate::blocks::allocator::Allocator;
use crate::blocks::capacity::Capacity;
use crate::error::{Error, Result};
use crate::options::Allocation;
use crate::probe::{Event, Point, Probe};
use crate::sabotage::{Rule, Switches};
use crate::sync::{self, Arc, AtomicU64, Mutex, Ordering, Weak};
use crate::sys::fork::Kept;
use crate::sys::memory::DeviceMemory;
use crate::units::{BlockIndex, PageIndex, PageSize};

/// How often, and how long apart, blocks in transit are waited for.
const TRANSIT_TRIES: u32 = 10_000;
const TRANSIT_BACK_OFF: Duration = Duration::from_micros(50);

/// What is preallocated for a store is no more than one of so many blocks that are free.
const PREALLOCATED_PART: u64 = 4;

/// Bytes of the device that are punched by one call.
const PUNCH_BYTES: u64 = 256 << 20;
/// Bytes of device memory that the kernel is asked for at once: many small blocks, or a huge one.
const POPULATE_BYTES: u64 = 2 << 20;

/// Which of the pages of a hole somebody wants blocks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// The first: the others are likely to be next, and their blocks are given back if they are not.
    First,
    All,
}

/// A file that may have pages which nobody has asked for.
pub(crate) trait Preallocates: Send + Sync {
    /// Frees the blocks that nobody has stored to. Whether there were any that were remembered.
    fn give_all_back(&self) -> bool;

    /// Takes back zeros that loads have left in holes, until `enough` says so. It goes on where it has stopped the last time.
    fn take_zeros_back(&self, enough: &dyn Fn() -> bool);
}

/// Where the pages of files lie. See [`Allocation`].
enum Way {
    /// Taken by whoever allocates or frees, for the time of a map look-up. Never with a file's
    /// lock (L2) held: `space::Change::commit` frees after it has dropped it.
    Blocks(Box<Mutex<Allocator>>),
    Windows(Arc<Capacity>),
}

/// Places that a device of windows has for each page that it may hold, at least.
const PLACES_A_PAGE: u64 = 4;
/// Windows begin at multiples of so many pages: what one entry of the level above covers on most machines.
const GRANULE_PAGES: u64 = 512;

pub(crate) struct Store {
    pub(crate) memory: Kept<Arc<DeviceMemory>>,
    pub(crate) page: PageSize,
    pub(crate) switches: Switches,
    way: Way,
    /// Why it is not the way that was asked for.
    why_not: Option<&'static str>,
    /// Reservations, and changes that have taken blocks away and not freed them yet: they may all be free in
    /// a moment. Raised before the blocks can be missed, lowered when they are published or free.
    in_transit: AtomicU64,
    /// How often blocks have been freed.
    frees: AtomicU64,
    /// Files that may have blocks which nobody has asked for. A leaf.
    preallocated: Mutex<Vec<Weak<dyn Preallocates>>>,
    /// Files with windows that have been mapped: loads may have left zeros in their holes. In the order in which they are
    /// asked for some, the next one first. A leaf.
    mapped: Mutex<std::collections::VecDeque<Weak<dyn Preallocates>>>,
    /// Who takes zeros back has it: one at a time suffices. No lock is taken under it but those of the files.
    taking_back: Mutex<()>,
    /// Blocks whose memory the kernel is asked for at once.
    populate_blocks: u64,
    /// One bit for each so many: the device has memory there.
    populated: Vec<AtomicU64>,
    files_made: AtomicU64,
    /// What is present of a file may be installed by the kernel: files have windows, and no page is present that nobody has asked for.
    may_arm: bool,
    probe: Option<Arc<dyn Probe>>,
}

impl Store {
    pub(crate) fn new(memory: Kept<Arc<DeviceMemory>>, allocation: Allocation, probe: Option<Arc<dyn Probe>>) -> Self {
        let page = PageSize::new(memory.block_bytes());
        let blocks = page.pages_in(memory.len_bytes());
        let (way, why_not) = Self::way(&memory, page, allocation, blocks);
        let populate_blocks = page.pages_in(POPULATE_BYTES).max(1);
        let chunks = blocks.div_ceil(populate_blocks);
        let may_arm = matches!(way, Way::Windows(_)) && !memory.may_get_huge_folios();
        Self {
            memory,
            page,
            switches: Switches::default(),
            way,
            why_not,
            mapped: Mutex::default(),
            taking_back: Mutex::new(()),
            in_transit: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            preallocated: Mutex::new(Vec::new()),
            populate_blocks,
            populated: (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            files_made: AtomicU64::new(0),
            may_arm,
            probe,
        }
    }

    #[inline]
    pub(crate) fn broken(&self, rule: Rule) -> bool {
        self.switches.broken(rule)
    }

    #[inline]
    pub(crate) fn probe(&self, point: Point, file: u64, page: PageIndex, block: Option<BlockIndex>) {
        if let Some(probe) = &self.probe {
            let _insisting = self.memory.home().insist();
            probe.at(Event { point, file: Some(file), page, block });
        }
    }

    /// Windows where they are wanted and the device has room for them; and why not, if they are wanted and it has none. The device is as
    /// long from now on as it is to be.
    fn way(memory: &DeviceMemory, page: PageSize, wanted: Allocation, blocks: u64) -> (Way, Option<&'static str>) {
        let why_not = match wanted {
            Allocation::Blocks => None,
            Allocation::Windows if memory.is_huge() || !memory.is_private() => {
                Some("the device is a file with a name: windows need one that nobody else can open")
            }
            Allocation::Windows => {
                let places = page.pages_in(memory.stretch());
                if places / PLACES_A_PAGE >= blocks {
                    let granule = GRANULE_PAGES.min((places / 8).next_power_of_two() / 2).max(1);
                    return (Way::Windows(Arc::new(Capacity::new(blocks, places, granule, page.bytes()))), None);
                }
                Some("the process may not make a file that is long enough (RLIMIT_FSIZE)")
            }
        };
        memory.settle();
        (Way::Blocks(Box::new(Mutex::new(Allocator::new(blocks)))), why_not)
    }

    /// Whether what is present of a file may be installed by the kernel.
    pub(crate) fn may_arm(&self) -> bool {
        self.may_arm
    }

    /// What counts the pages of files that have windows; none where they have single blocks.
    pub(crate) fn capacity(&self) -> Option<&Arc<Capacity>> {
        match &self.way {
            Way::Blocks(_) => None,
            Way::Windows(capacity) => Some(capacity),
        }
    }

    fn allocator(&self) -> Option<&Mutex<Allocator>> {
        match &self.way {
            Way::Blocks(allocator) => Some(allocator),
            Way::Windows(_) => None,
        }
    }

    /// Which way it is, and why not the one that was asked for.
    pub(crate) fn allocation(&self) -> (Allocation, Option<&'static str>) {
        match &self.way {
            Way::Blocks(_) => (Allocation::Blocks, self.why_not),
            Way::Windows(_) => (Allocation::Windows, self.why_not),
        }
    }

    /// The allocator, if there is one and nobody has its lock. For the schedule checker's invariants.
    #[cfg(feature = "shuttle")]
    pub(crate) fn peek(&self) -> Option<impl std::ops::Deref<Target = Allocator> + '_> {
        self.allocator()?.peek()
    }

    /// A number that no file of the volume has had: from 1 up.
    pub(crate) fn next_number(&self) -> u64 {
        self.files_made.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Free blocks, and all blocks.
    pub(crate) fn usage(&self) -> (u64, u64) {
        match &self.way {
            Way::Blocks(allocator) => {
                let allocator = allocator.lock();
                (allocator.free_blocks(), allocator.total_blocks())
            }
            Way::Windows(capacity) => (capacity.free(), capacity.total()),
        }
    }

    /// Pages have come free again: whoever found none asks once more.
    pub(crate) fn has_freed(&self) {
        self.frees.fetch_add(1, Ordering::AcqRel);
    }

    /// Loads may leave zeros in the holes of a file from now on.
    pub(crate) fn leaves_zeros(&self, who: &Arc<dyn Preallocates>) {
        let mut mapped = self.mapped.lock();
        mapped.retain(|known| known.strong_count() > 0);
        mapped.push_back(Arc::downgrade(who));
    }

    /// Takes zeros back that loads have left in holes, until there are few enough. The caller holds no L2.
    pub(crate) fn take_zeros_back(&self) {
        let Way::Windows(capacity) = &self.way else { return };
        let _one = self.taking_back.lock();
        let enough = || capacity.zeros() <= capacity.enough_zeros();
        let files = self.mapped.lock().len();
        for _ in 0..files {
            if enough() {
                return;
            }
            let next = {
                let mut mapped = self.mapped.lock();
                let next = mapped.pop_front();
                mapped.extend(next.clone());
                next
            };
            if let Some(file) = next.and_then(|next| next.upgrade()) {
                file.take_zeros_back(&enough);
            }
        }
    }

    /// Runs of `want` blocks in all, with memory behind them, whatever they hold. All or nothing.
    ///
    /// Blocks that are on their way are waited for, a second or so at most: a volume is not full while a
    /// punch that has been seen has yet to free its blocks. Their holders wait for nobody who allocates.
    ///
    /// Blocks that other files have preallocated for stores are given back first: the caller holds no L2.
    pub(crate) fn reserve(self: &Arc<Self>, want: u64) -> Result<Reservation> {
        self.reserve_counted(|| want)
    }

    /// The same for a number that may be another at the next try.
    pub(crate) fn reserve_counted(self: &Arc<Self>, want: impl Fn() -> u64) -> Result<Reservation> {
        self.until_space(|| self.try_reserve(want()))
    }

    /// One run of one to `want` blocks that follow each other, likewise. If only the first is wanted, the run is a small part
    /// of what is free at most.
    pub(crate) fn reserve_run(self: &Arc<Self>, want: u64, wanted: Wanted) -> Result<Reservation> {
        self.until_space(|| {
            let Some(allocator) = self.allocator() else { return self.try_reserve(1) };
            let mut held = Reservation::new(self);
            {
                let mut allocator = allocator.lock();
                let free = allocator.free_blocks();
                let want = if wanted == Wanted::First { want.min(1 + free / PREALLOCATED_PART) } else { want };
                let (run, fresh) = allocator.take_run(want).ok_or(Error::NoSpace { wanted: 1, free })?;
                held.push(run);
                held.fresh = fresh;
            }
            let run = held.runs[0];
            self.populate(run)?;
            Ok(held)
        })
    }

    fn until_space(&self, reserve: impl Fn() -> Result<Reservation>) -> Result<Reservation> {
        for _ in 0..TRANSIT_TRIES {
            let frees = self.frees.load(Ordering::Acquire);
            match reserve() {
                Err(Error::NoSpace { .. }) if self.give_back_preallocated() => {}
                Err(Error::NoSpace { .. }) if self.in_transit() || frees != self.frees.load(Ordering::Acquire) => {
                    sync::back_off(TRANSIT_BACK_OFF);
                }
                other => return other,
            }
        }
        reserve()
    }

    /// A file is about to have blocks that nobody has asked for.
    pub(crate) fn preallocates(&self, who: &Arc<dyn Preallocates>) {
        let mut preallocated = self.preallocated.lock();
        if !preallocated.iter().any(|known| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(who))) {
            preallocated.retain(|known| known.strong_count() > 0);
            preallocated.push(Arc::downgrade(who));
        }
    }

    /// Has all files give back what they have preallocated; whether there was any. Who runs short meanwhile, and finds
    /// that nobody is known, waits for this one.
    fn give_back_preallocated(&self) -> bool {
        let _transit = self.transit();
        let known: Vec<_> = match &self.way {
            Way::Blocks(_) => std::mem::take(&mut *self.preallocated.lock()),
            Way::Windows(capacity) if capacity.preallocated() == 0 => return false,
            Way::Windows(capacity) => {
                capacity.set_short();
                self.mapped.lock().iter().cloned().collect()
            }
        };
        // All of them: no short cut.
        known.iter().filter_map(Weak::upgrade).filter(|who| who.give_all_back()).count() > 0
    }

    fn in_transit(&self) -> bool {
        self.in_transit.load(Ordering::Acquire) > 0
    }

    fn try_reserve(self: &Arc<Self>, want: u64) -> Result<Reservation> {
        let mut held = Reservation::new(self);
        let allocator = match &self.way {
            Way::Blocks(allocator) => allocator,
            Way::Windows(capacity) => {
                if want > 0 {
                    held.count();
                }
                if !capacity.take(want) {
                    return Err(Error::NoSpace { wanted: want, free: capacity.free() });
                }
                held.pages = want;
                return Ok(held);
            }
        };
        {
            let mut allocator = allocator.lock();
            let free = allocator.free_blocks();
            if free < want {
                return Err(Error::NoSpace { wanted: want, free });
            }
            let mut left = want;
            while left > 0 {
                let run = allocator.take(left).expect("enough blocks were free, under this lock");
                left -= run.blocks;
                held.push(run);
            }
        }
        // From here on an error gives them back: `Reservation` frees what it still holds.
        for run in &held.runs {
            self.populate(*run)?;
        }
        // Taken from the front.
        held.runs.reverse();
        Ok(held)
    }

    /// Blocks are on their way from a file to the allocator, until the transit is dropped.
    pub(crate) fn transit(&self) -> Transit<'_> {
        self.in_transit.fetch_add(1, Ordering::AcqRel);
        Transit(self)
    }

    /// One run of `want` blocks, with memory behind it; none where the free blocks lie too far apart.
    pub(crate) fn reserve_together(self: &Arc<Self>, want: u64) -> Option<Reservation> {
        let mut held = Reservation::new(self);
        held.push(self.allocator()?.lock().take_together(want)?);
        let run = held.runs[0];
        self.populate(run).ok()?;
        Some(held)
    }

    /// Makes sure the device has memory for a run, so that a write to it finds it.
    fn populate(&self, run: Run) -> Result<()> {
        let total = self.page.pages_in(self.memory.len_bytes());
        let at_once = self.populate_blocks;
        let first = run.start.0 / at_once;
        let last = (run.start.0 + run.blocks - 1) / at_once;
        for chunk in first..=last {
            let (word, bit) = (&self.populated[(chunk / 64) as usize], 1u64 << (chunk % 64));
            if word.load(Ordering::Acquire) & bit != 0 {
                continue;
            }
            let start = BlockIndex(chunk * at_once);
            let blocks = at_once.min(total - start.0);
            if self.populate_blocks(start, blocks).is_ok() {
                word.fetch_or(bit, Ordering::Release);
                continue;
            }
            // Memory is short: only what is needed, and not remembered.
            let from = run.start.0.max(start.0);
            let to = (run.start.0 + run.blocks).min(start.0 + blocks);
            self.populate_blocks(BlockIndex(from), to - from)?;
        }
        Ok(())
    }

    fn populate_blocks(&self, start: BlockIndex, blocks: u64) -> Result<()> {
        self.memory
            .populate(self.page.device_offset(start), self.page.bytes_of(blocks))
            .map_err(|errno| Error::DeviceMemory { block: start.0, errno: errno as i32 })
    }

    /// Has the device have a page again for a block that it has lost, if that can only be one of zeros: on a device that nobody else
    /// can open it is the application that has taken it away (`MADV_REMOVE`). What is there meanwhile stays.
    pub(crate) fn refill(&self, block: BlockIndex) -> bool {
        self.memory.is_private() && self.populate_blocks(block, 1).is_ok()
    }

    /// The error for a block that the device has lost.
    pub(crate) fn lost(&self, block: BlockIndex) -> Error {
        self.memory.lost(self.page.device_offset(block))
    }

    /// Takes blocks back. The caller has seen to it that no page table holds them.
    pub(crate) fn free(&self, runs: &[Run]) {
        if runs.is_empty() {
            return;
        }
        match &self.way {
            Way::Blocks(allocator) => {
                let mut allocator = allocator.lock();
                runs.iter().for_each(|run| allocator.give(*run));
            }
            Way::Windows(capacity) => capacity.give(runs.iter().map(|run| run.blocks).sum()),
        }
        self.has_freed();
    }

    /// Takes the pages of a run out of the device, with every entry for them. What is there again later is zeros.
    ///
    /// # Panics
    /// When the kernel refuses. An entry that stays would show what is to be gone, so the caller must not go on.
    pub(crate) fn punch(&self, run: Run) {
        let (start, bytes) = (self.page.device_offset(run.start), self.page.bytes_of(run.blocks));
        // Piece by piece: the device's own lock is held meanwhile, and changes of other files wait for it.
        for done in (0..bytes).step_by(PUNCH_BYTES as usize) {
            let (offset, piece) = (start + done, (bytes - done).min(PUNCH_BYTES));
            if let Err(errno) = self.memory.punch(offset, piece) {
                panic!("punch of {piece} bytes at {offset} of the device failed: {errno}");
            }
        }
    }

    /// Whether the device has any page of a run.
    pub(crate) fn is_present_anywhere(&self, run: Run) -> bool {
        self.memory.is_anything_in(self.page.device_offset(run.start), self.page.bytes_of(run.blocks))
    }

    /// Zeroes a part of a block.
    pub(crate) fn zero(&self, block: BlockIndex, part: std::ops::Range<u64>) -> Result<()> {
        self.memory.zero(self.page.device_offset(block) + part.start, part.end - part.start)
    }

    pub(crate) fn zero_run(&self, run: Run) -> Result<()> {
        self.memory.zero(self.page.device_offset(run.start), self.page.bytes_of(run.blocks))
    }

    /// Whether a block holds nothing but zeros.
    pub(crate) fn is_zero(&self, block: BlockIndex) -> bool {
        self.memory.is_zero(self.page.device_offset(block), self.page.bytes())
    }

    /// Copies blocks that no mapped store can reach.
    pub(crate) fn copy(&self, from: Run, to: BlockIndex) -> Result<()> {
        let (from_byte, to_byte) = (self.page.device_offset(from.start), self.page.device_offset(to));
        self.memory.copy(from_byte, to_byte, self.page.bytes_of(from.blocks))
    }

    pub(crate) fn zero_block(&self, block: BlockIndex) -> Result<()> {
        self.zero(block, 0..self.page.bytes())
    }
}

/// See [`Store::transit`].
pub(crate) struct Transit<'a>(&'a Store);

impl Drop for Transit<'_> {
    fn drop(&mut self) {
        self.0.in_transit.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Blocks that have been allocated and belong to no file yet. What is not taken is freed.
pub(crate) struct Reservation {
    store: Arc<Store>,
    /// In reverse order: the next one is the last.
    runs: Vec<Run>,
    /// Where files have windows: how many pages, wherever they will lie.
    pages: u64,
    counted: bool,
    /// None of the blocks has been anybody's: the device has zeros there, and the kernel has the work of them.
    fresh: bool,
}

impl Reservation {
    /// An empty one. In transit only once it has blocks, so that two that find none do not wait for each other.
    fn new(store: &Arc<Store>) -> Self {
        Self { store: store.clone(), runs: Vec::new(), pages: 0, counted: false, fresh: false }
    }

    fn count(&mut self) {
        if !self.counted {
            self.counted = true;
            self.store.in_transit.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// `pages` of those that are reserved are a file's from now on, in the places that it has for them.
    ///
    /// # Panics
    /// When they are not: the caller reserved too few.
    pub(crate) fn take_pages(&mut self, pages: u64) {
        self.pages = self.pages.checked_sub(pages).expect("a reservation covers what is taken from it");
    }

    /// Under the allocator's lock: whoever misses the block finds it in transit.
    fn push(&mut self, run: Run) {
        self.count();
        self.runs.push(run);
    }

    /// Gives back what was taken last: it is the next one again.
    pub(crate) fn put_back(&mut self, run: Run) {
        match self.store.way {
            Way::Blocks(_) => self.runs.push(run),
            Way::Windows(_) => self.pages += run.blocks,
        }
    }

    /// Takes one to `want` consecutive blocks.
    ///
    /// # Panics
    /// When none is left: the caller reserved too few.
    pub(crate) fn take(&mut self, want: u64) -> Run {
        let run = self.runs.last_mut().expect("a reservation covers what is taken from it");
        if run.blocks <= want {
            let all = *run;
            self.runs.pop();
            return all;
        }
        let part = Run { start: run.start, blocks: want };
        run.start = run.start.plus(want);
        run.blocks -= want;
        part
    }

    /// Whether the blocks are zeros already, since nobody has had them. Never on a device that others can open: they may have
    /// written there, and what is missing there later is told from what was never there by its having been written.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh && self.store.memory.is_private()
    }

    /// What is left, next first.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().rev().copied()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // The next to be taken is freed last, so that it is the next one handed out.
        self.store.free(&self.runs);
        if let (Way::Windows(capacity), 1..) = (&self.store.way, self.pages) {
            capacity.give(self.pages);
            self.store.has_freed();
        }
        if self.counted {
            self.store.in_transit.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
