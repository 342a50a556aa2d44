//! A file as everybody shares it: its place on the volume, its locks, its space.

pub(crate) mod control;
pub(crate) mod grace;

use std::ops::Deref;

use nix::errno::Errno;

use crate::blocks::store::{Preallocates, Store, Wanted};
use crate::error::{Error, Result};
use crate::inode::grace::Grace;
use crate::policy::PageState;
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::extents::Extent;
use crate::space::{Change, Space, Stretch};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, RwLock, Tally, back_off};
use crate::units::{BlockIndex, PageIndex, PageRange, PageSize};

/// Fewer places than this at which neighbouring pages lie apart are not worth moving blocks for.
const GATHER_BREAKS: usize = 2;
/// How long a change waits before it asks again for what the kernel has refused, and how often it does.
const REFUSED_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);
const REFUSALS_MAX: u32 = 5_000;
/// How often it is tried to keep stores out of pages that nobody has asked for: a re-point may be under way.
const OUT_TRIES: u32 = 50;
/// Zeros that are taken back under one hold of L2, or a few more: it keeps faults out.
const ZEROS_AT_ONCE: u64 = 256;

/// A file that somebody has: by its name, a handle or a mapping. When the last of these goes, its blocks are free: the kernel's iput and
/// evict_inode. Who serves a late fault of it has the inode alone, and keeps no block from anybody.
pub(crate) struct InUse(Arc<Inode>);

pub(crate) struct Inode {
    /// How many [`InUse`] there are.
    users: AtomicU64,
    pub(crate) store: Arc<Store>,
    /// **L1.** Exclusive by every control operation from beginning to end: one change at a time; shared by
    /// `File::read_at`, which so sees none half done. Never taken in a fault, so a control call may touch a
    /// user's buffer under it, even one that lies in a mapping of this file (`tests/deadlocks.rs`). The
    /// kernel's i_rwsem.
    pub(crate) change: RwLock<()>,
    pub(crate) space: Space,
    /// The thread that keeps losing a page to invalidations. A leaf: for the time of a copy. Whoever
    /// answers a fault only tries it (`tests/progress.rs`).
    grace: Mutex<Option<Grace>>,
    /// The page from which zeros are taken back next.
    zeros_cursor: Tally,
    /// Whether it has been mapped: the volume knows then that it may have zeros.
    has_been_mapped: AtomicBool,
}

impl Inode {
    pub(crate) fn create(store: Arc<Store>) -> InUse {
        let space = Space::new(&store, store.next_number());
        let (users, change, grace) = (AtomicU64::new(1), RwLock::new(()), Mutex::new(None));
        let (zeros_cursor, has_been_mapped) = (Tally::new(0), AtomicBool::new(false));
        InUse(Arc::new(Self { users, store, change, space, grace, zeros_cursor, has_been_mapped }))
    }

    pub(crate) fn page(&self) -> PageSize {
        self.store.page
    }

    /// See [`File::number`](crate::File::number).
    pub(crate) fn number(&self) -> u64 {
        self.space.number()
    }

    /// Tells the volume's observer.
    #[inline]
    pub(crate) fn probe(&self, point: Point, page: PageIndex, block: Option<BlockIndex>) {
        self.store.probe(point, self.number(), page, block);
    }

    #[inline]
    pub(crate) fn broken(&self, rule: Rule) -> bool {
        self.store.broken(rule)
    }

    /// Gives all pages of `range` places, where files have windows.
    ///
    /// # Errors
    /// [`Error::NoPlaces`](crate::Error::NoPlaces), and that of mmap(2) for what is to be known of the pages.
    pub(crate) fn have_places(&self, range: PageRange) -> Result<()> {
        let Some(capacity) = self.store.capacity() else { return Ok(()) };
        loop {
            let gap = self.space.shared().extents().windows().and_then(|places| places.gap(range));
            let Some(gap) = gap else { return Ok(()) };
            let some = [gap.wanted, gap.exact]
                .into_iter()
                .find_map(|pages| Some((pages, capacity.take_places(pages.pages())?)));
            let (pages, run) = some.ok_or(Error::NoPlaces { pages: gap.exact.pages() })?;
            let stretch = Stretch::new(pages, run.start).map_err(|errno| {
                capacity.give_places(run);
                Error::system("mmap", errno)
            })?;
            let mut change = self.space.change();
            let back = change.add_stretch(stretch);
            change.commit(&self.store);
            if let Some(stretch) = back {
                capacity.give_places(stretch.run());
            }
        }
    }

    /// The same for pages that are to have blocks, all of them.
    ///
    /// # Errors
    /// The same, and [`Error::NoSpace`](crate::Error::NoSpace) for more than the volume may ever have: before anything is looked at page by page.
    pub(crate) fn have_places_for_blocks(&self, range: PageRange) -> Result<()> {
        if let Some(capacity) = self.store.capacity() {
            let wanted = self.space.shared().holes_at_most(range);
            if wanted > capacity.total() {
                return Err(Error::NoSpace { wanted, free: capacity.free() });
            }
        }
        self.have_places(range)
    }

    /// A mapping of the file is about to be made: loads may leave zeros in its holes.
    pub(crate) fn is_mapped(inode: &Arc<Self>) {
        if inode.store.capacity().is_some() && !inode.has_been_mapped.swap(true, Ordering::AcqRel) {
            inode.store.leaves_zeros(&(Arc::clone(inode) as Arc<dyn Preallocates>));
        }
    }

    /// Begins an invalidation of `range` on behalf of a control call, which holds L1. Waits for
    /// faults in flight, and for the grace that a losing fault has been given.
    pub(crate) fn invalidate(&self, range: PageRange) -> Change<'_> {
        self.honour_grace(range);
        if self.broken(Rule::PublishBeforeZap) {
            self.space.zap_too_early(range);
        }
        self.probe(Point::BeforeInvalidate, range.start, None);
        self.space.change()
    }

    /// Holds L2 for a change when `is_ready` says so, and lets go of it for a moment when not: while the kernel refuses something for the
    /// sake of an mremap whose event is unread.
    ///
    /// # Errors
    /// [`Error::System`] after about a second.
    pub(crate) fn change_when<'a>(
        &'a self,
        begin: impl FnOnce() -> Change<'a>,
        is_ready: impl Fn(&Change<'_>) -> bool,
    ) -> Result<Change<'a>> {
        let mut change = begin();
        for _ in 0..REFUSALS_MAX {
            if is_ready(&change) {
                return Ok(change);
            }
            change.commit(&self.store);
            back_off(REFUSED_BACK_OFF);
            change = self.space.change();
        }
        change.commit(&self.store);
        Err(Error::system("ioctl(UFFDIO_WRITEPROTECT)", Errno::EAGAIN))
    }

    /// Has the next invalidation of a page wait until a thread has run. Given up where another grant is
    /// being made: the thread will be back.
    pub(crate) fn grant(&self, grace: Grace) {
        if let Some(mut slot) = self.grace.try_lock() {
            *slot = Some(grace);
        }
    }

    /// The grace that the next invalidation may wait for, as text. Never waits.
    pub(crate) fn describe_grace(&self) -> String {
        match self.grace.try_lock() {
            Some(slot) => slot.as_ref().map_or_else(|| "none".to_owned(), Grace::describe),
            None => "being granted or honoured".to_owned(),
        }
    }

    /// Waits for the thread that has been granted a grace on `range`. No lock but L1 is held.
    fn honour_grace(&self, range: PageRange) {
        let taken = {
            let mut slot = self.grace.lock();
            slot.take_if(|grace| grace.concerns(range))
        };
        if let Some(grace) = taken {
            grace.wait();
        }
    }

    /// Puts zeroed blocks under a hole that begins at the first of `pages`, for a store that found one: under as many pages
    /// as there are free blocks that follow each other, and under one at least. Another fault may have been
    /// first: then its block stays, with what has been stored in it since.
    ///
    /// # Errors
    /// [`Error::NoSpace`](crate::Error::NoSpace), and those of a write to the device.
    pub(crate) fn fill_hole(inode: &Arc<Self>, pages: PageRange, wanted: Wanted) -> Result<()> {
        if inode.store.capacity().is_some() {
            // The fault takes one itself when it looks again; here it is waited for.
            return inode.store.reserve(1).map(drop);
        }
        let page = pages.start;
        let preallocated = wanted == Wanted::First && pages.pages() > 1;
        let mut reserved = inode.store.reserve_run(pages.pages(), wanted)?;
        let run = reserved.runs().next().expect("one block at least was reserved");
        // Zeroed before anybody can see it, and outside the lock: nobody else knows it (rule 3).
        if !inode.broken(Rule::ZeroNewBlock) && !reserved.is_fresh() {
            inode.store.zero_run(run)?;
        }
        inode.probe(Point::Allocated, page, Some(run.start));
        let mut change = inode.space.change();
        let eof = inode.page().ceil(change.size());
        match change.extents().state(page) {
            PageState::Hole if page < eof => {
                let hole = change.extents().hole_from(page, eof);
                let run = reserved.take(hole.intersect(PageRange::at(page, run.blocks)).pages());
                let filled = PageRange::at(page, run.blocks);
                change.put(Extent { page, run, written: true });
                match wanted {
                    Wanted::First => change.put_preallocated(filled),
                    Wanted::All => change.keep(filled),
                }
                if !inode.broken(Rule::ZapZerosOnAllocate) {
                    change.zap(filled);
                }
            }
            PageState::Written(block) if inode.broken(Rule::LoserLeavesBlock) => drop(inode.store.zero_block(block)),
            PageState::Hole | PageState::Unwritten(_) | PageState::Written(_) => {}
        }
        change.commit(&inode.store);
        if preallocated {
            // Whoever runs short asks those who are known. Who does so in between finds the reservation, which is in transit
            // up to here, and asks again.
            inode.store.preallocates(&(Arc::clone(inode) as Arc<dyn Preallocates>));
        }
        drop(reserved);
        Ok(())
    }

    /// Makes unwritten pages written from the first of `pages` on, for a store to it. The blocks are in the file already, so they
    /// are zeroed under the lock: zeroed outside, the loser of two faults would wipe what the winner has stored.
    ///
    /// # Errors
    /// As those of a write to the device: then the pages stay unwritten.
    pub(crate) fn convert(&self, pages: PageRange) -> Result<()> {
        let mut change = self.space.change();
        let first = change.extents().within(pages).next();
        if let Some(extent) = first.filter(|extent| extent.page == pages.start && !extent.written) {
            let zeroed = if self.broken(Rule::ZeroUnwritten) { Ok(()) } else { self.store.zero_run(extent.run) };
            if zeroed.is_err() {
                change.commit(&self.store);
                return zeroed;
            }
            change.put(Extent { written: true, ..extent });
            change.zap(extent.range());
        }
        change.commit(&self.store);
        Ok(())
    }

    /// Keeps blocks that were preallocated for a store: they are asked for now.
    pub(crate) fn keep(&self, pages: PageRange) {
        let mut change = self.space.change();
        change.keep(pages);
        change.commit(&self.store);
    }

    /// Frees the blocks that were preallocated for a store and that none has reached. Whether some were remembered. Some pages
    /// at a time: faults get their turn.
    pub(crate) fn give_back_preallocated(&self, within: PageRange) -> bool {
        let next = |from| self.space.shared().next_preallocated(PageRange::new(from, within.end));
        let mut at = next(within.start);
        let any = at.is_some();
        while let Some(range) = at {
            self.probe(Point::BeforeZerosGo, range.start, None);
            self.give_back(range);
            at = next(range.end);
        }
        any
    }

    /// The same under one hold of L2. Where stores cannot be kept out they are the file's for good: a volume that is short must not ask for
    /// ever.
    fn give_back(&self, range: PageRange) {
        // Who finds none meanwhile waits for these.
        let _transit = self.store.transit();
        for _ in 0..OUT_TRIES {
            let mut change = self.space.change();
            let done = change.give_back_preallocated(&self.store, range);
            change.commit(&self.store);
            if done {
                return;
            }
            back_off(REFUSED_BACK_OFF);
        }
        self.keep(range);
    }

    /// Moves the blocks of `range` together, so that one address range shows them. A change of the
    /// block mapping like any other: zapped first, copied when no store can reach the old blocks, freed last.
    /// Does nothing where there is no room.
    pub(crate) fn gather(&self, range: PageRange) {
        let (breaks, pages) = {
            let shared = self.space.shared();
            let extents: Vec<Extent> = shared.extents().within(range).collect();
            let breaks = extents.windows(2).filter(|pair| pair[0].is_torn_from(&pair[1])).count();
            (breaks, extents.iter().map(|extent| extent.run.blocks).sum::<u64>())
        };
        if breaks < GATHER_BREAKS {
            return;
        }
        let Some(mut room) = self.store.reserve_together(pages) else { return };
        let mut change = self.space.change();
        let old: Vec<Extent> = change.extents().within(range).collect();
        // Faults may have filled holes since: then the room does not suffice, and is given back.
        if old.iter().map(|extent| extent.run.blocks).sum::<u64>() <= pages {
            for extent in old {
                let to = room.take(extent.run.blocks);
                change.relocate(extent, to.start);
            }
        }
        // What cannot be copied stays where it is.
        let _ = change.try_commit(&self.store);
    }

    /// Zeroes a part of the page if it has bytes of its own.
    pub(crate) fn zero_part(&self, change: &mut Change<'_>, page: PageIndex, part: std::ops::Range<u64>) {
        if let PageState::Written(block) = change.extents().state(page) {
            change.zero(page, block, part);
        }
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        self.0.users.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl Deref for InUse {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        // No name, no handle, no mapping: nothing can reach the blocks.
        let mut change = self.0.space.change();
        change.evict();
        change.commit(&self.0.store);
    }
}

impl Preallocates for Inode {
    fn give_all_back(&self) -> bool {
        self.give_back_preallocated(PageRange::from(PageIndex(0)))
    }

    /// Round and round: what has been left longest goes first, as far as a file was read from its start to its end.
    fn take_zeros_back(&self, enough: &dyn Fn() -> bool) {
        let all = PageRange::from(PageIndex(0));
        let from = PageIndex(self.zeros_cursor.load(Ordering::Relaxed));
        for part in [PageRange::new(from, all.end), PageRange::new(all.start, from)] {
            let mut left = part;
            while !enough() {
                let next = {
                    let shared = self.space.shared();
                    shared.extents().windows().and_then(|places| places.first_of_loads(left, ZEROS_AT_ONCE))
                };
                let Some(zeros) = next else { break };
                self.probe(Point::BeforeZerosGo, zeros.start, None);
                let mut change = self.space.change();
                change.take_zeros_back(zeros, self.broken(Rule::LookAgainAtZeros));
                change.commit(&self.store);
                if self.space.shared().is_preallocated(zeros) {
                    self.give_back(zeros);
                }
                left.start = zeros.end;
                self.zeros_cursor.store(zeros.end.0, Ordering::Relaxed);
            }
        }
    }
}
