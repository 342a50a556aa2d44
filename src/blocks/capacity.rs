//! What a volume of windows counts: the pages that files may have, and device offsets that are nobody's yet.
//!
//! Its device is sparse: it has far more offsets than pages, and an offset costs nothing until a page is there. So a page needs no
//! block that is free, but a place (an offset that is its file's alone) and a number: one of the pages that the volume may have.

use std::collections::BTreeMap;

use crate::blocks::Run;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::units::BlockIndex;

/// What zeros that have been loaded from holes may take, in bytes, before some are taken back.
const ZEROS_BYTES: u64 = 64 << 20;
/// There is room when one page of so many is free.
const ROOM_PART: u64 = 8;

pub(crate) struct Capacity {
    /// The pages that files may have.
    total: u64,
    /// Of these, those that no file has and nobody has reserved.
    free: AtomicU64,
    /// Pages of zeros that loads have left in holes, beside the others: a hole is to be read of a volume that is full, too. And those that
    /// loads have taken.
    zeros: AtomicU64,
    zeros_max: AtomicU64,
    /// Pages of files that nobody has asked for: loads have taken them, or they were taken ahead of stores.
    preallocated: AtomicU64,
    /// There were too few once, and there has been no room since. A hint.
    short: AtomicBool,
    /// Windows begin at multiples of so many pages, in the file and on the device, and are no shorter.
    granule: u64,
    /// A leaf, for the time of a look-up. Never under L2.
    offsets: Mutex<Offsets>,
}

/// Device offsets in units of pages. Those that come back are handed out again to who wants exactly as many: windows grow by
/// doubling, so there are few sizes.
struct Offsets {
    next: u64,
    end: u64,
    back: BTreeMap<u64, Vec<BlockIndex>>,
}

impl Offsets {
    /// From those that nobody has had.
    fn fresh(&mut self, pages: u64) -> Option<Run> {
        let end = self.next.checked_add(pages).filter(|end| *end <= self.end)?;
        let start = BlockIndex(self.next);
        self.next = end;
        Some(Run { start, blocks: pages })
    }

    /// Of those that have come back in longer runs, when there are no others: from the shortest that will do.
    fn part(&mut self, pages: u64) -> Option<Run> {
        let longer = self.back.range_mut(pages + 1..).find(|(_, starts)| !starts.is_empty());
        let (blocks, start) = longer.and_then(|(blocks, starts)| Some((*blocks, starts.pop()?)))?;
        self.back.entry(blocks - pages).or_default().push(start.plus(pages));
        Some(Run { start, blocks: pages })
    }
}

impl Capacity {
    /// For `pages` pages on a device with `span` places.
    pub(crate) fn new(pages: u64, span: u64, granule: u64, page_bytes: u64) -> Self {
        // The first are nobody's: the kernel zeroes a part of a file's first page the slow way.
        let offsets = Offsets { next: granule, end: span / granule * granule, back: BTreeMap::new() };
        let zeros_max = AtomicU64::new((ZEROS_BYTES / page_bytes).clamp(1, (span / 4).max(1)));
        Self {
            total: pages,
            free: AtomicU64::new(pages),
            zeros: AtomicU64::new(0),
            zeros_max,
            preallocated: AtomicU64::new(0),
            short: AtomicBool::new(false),
            granule,
            offsets: Mutex::new(offsets),
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Acquire)
    }

    pub(crate) fn granule(&self) -> u64 {
        self.granule
    }

    /// All or nothing; whether there were as many. Allocates nothing and waits for nobody.
    pub(crate) fn take(&self, pages: u64) -> bool {
        let mut free = self.free.load(Ordering::Acquire);
        while free >= pages {
            match self.free.compare_exchange(free, free - pages, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => free = now,
            }
        }
        false
    }

    /// # Panics
    /// If there are more than there can be: somebody has given back what was not his.
    pub(crate) fn give(&self, pages: u64) {
        let before = self.free.fetch_add(pages, Ordering::AcqRel);
        assert!(before + pages <= self.total, "{before} pages are free, and {pages} of {} come back", self.total);
    }

    pub(crate) fn add_zeros(&self, pages: u64) {
        self.zeros.fetch_add(pages, Ordering::Relaxed);
    }

    pub(crate) fn remove_zeros(&self, pages: u64) {
        self.zeros.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Takes pages ahead of accesses that are expected, as many as there are of those that are wanted: how many. None after the volume has
    /// been short, until there is room again: what was taken ahead then would be given back at once. The caller counts them.
    pub(crate) fn take_ahead(&self, wanted: u64) -> u64 {
        if self.short.load(Ordering::Relaxed) {
            if self.free() < self.total / ROOM_PART {
                return 0;
            }
            self.short.store(false, Ordering::Relaxed);
        }
        let pages = wanted.min(self.free());
        if self.take(pages) { pages } else { 0 }
    }

    /// Somebody has found too few pages.
    pub(crate) fn set_short(&self) {
        self.short.store(true, Ordering::Relaxed);
    }

    pub(crate) fn add_preallocated(&self, pages: u64) {
        self.preallocated.fetch_add(pages, Ordering::AcqRel);
    }

    pub(crate) fn remove_preallocated(&self, pages: u64) {
        self.preallocated.fetch_sub(pages, Ordering::AcqRel);
    }

    pub(crate) fn preallocated(&self) -> u64 {
        self.preallocated.load(Ordering::Acquire)
    }

    pub(crate) fn zeros(&self) -> u64 {
        self.zeros.load(Ordering::Relaxed)
    }

    /// Whether zeros have to be taken back before more are left anywhere.
    pub(crate) fn has_too_many_zeros(&self) -> bool {
        self.room_for_zeros() == 0
    }

    /// How many may be left before that.
    pub(crate) fn room_for_zeros(&self) -> u64 {
        self.zeros_max.load(Ordering::Relaxed).saturating_sub(self.zeros())
    }

    /// How many zeros are left when enough have been taken back.
    pub(crate) fn enough_zeros(&self) -> u64 {
        self.zeros_max.load(Ordering::Relaxed) * 7 / 8
    }

    pub(crate) fn set_zeros_max(&self, pages: u64) {
        self.zeros_max.store(pages.max(1), Ordering::Relaxed);
    }

    /// Places for `pages` pages, a multiple of the granule. `None` if the device has no such offsets left.
    pub(crate) fn take_places(&self, pages: u64) -> Option<Run> {
        debug_assert!(pages > 0 && pages.is_multiple_of(self.granule));
        let mut offsets = self.offsets.lock();
        if let Some(start) = offsets.back.get_mut(&pages).and_then(Vec::pop) {
            return Some(Run { start, blocks: pages });
        }
        offsets.fresh(pages).or_else(|| offsets.part(pages))
    }

    /// Takes places back that no mapping shows, with no page there.
    pub(crate) fn give_places(&self, run: Run) {
        self.offsets.lock().back.entry(run.blocks).or_default().push(run.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_all_or_nothing() {
        let capacity = Capacity::new(10, 1000, 8, 4096);
        assert!(capacity.take(7));
        assert!(!capacity.take(4));
        assert!(capacity.take(3) && capacity.take(0) && !capacity.take(1));
        capacity.give(10);
        assert_eq!(capacity.free(), 10);
    }

    #[test]
    #[should_panic(expected = "come back")]
    fn more_than_all_panics() {
        let capacity = Capacity::new(10, 1000, 8, 4096);
        capacity.take(2);
        capacity.give(3);
    }

    #[test]
    fn places_are_each_ones_own() {
        let capacity = Capacity::new(10, 50, 8, 4096);
        let first = capacity.take_places(8).unwrap();
        let second = capacity.take_places(16).unwrap();
        assert_eq!((first.start, second.start), (BlockIndex(8), BlockIndex(16)), "the first granule is nobody's");
        assert_eq!(capacity.take_places(24), None, "no more than whole granules");
        capacity.give_places(first);
        assert_eq!(capacity.take_places(16).unwrap().start, BlockIndex(32));
        assert_eq!(capacity.take_places(8), Some(first), "what has come back");
        assert_eq!(capacity.take_places(8), None);
        capacity.give_places(second);
        assert_eq!(capacity.take_places(8), Some(Run { start: BlockIndex(16), blocks: 8 }), "a part of what has");
        assert_eq!(capacity.take_places(8), Some(Run { start: BlockIndex(24), blocks: 8 }));
        assert_eq!(capacity.take_places(8), None);
    }

    #[test]
    fn nothing_is_taken_ahead_after_it_was_short_until_there_is_room() {
        let capacity = Capacity::new(16, 64, 8, 4096);
        assert_eq!((capacity.take_ahead(10), capacity.free()), (10, 6));
        assert_eq!(capacity.take_ahead(10), 6, "what there is");
        assert_eq!(capacity.take_ahead(1), 0);
        capacity.set_short();
        capacity.give(1);
        assert_eq!(capacity.take_ahead(1), 0);
        capacity.give(2);
        assert_eq!(capacity.take_ahead(1), 1);
    }

    #[test]
    fn zeros_are_counted_beside() {
        let capacity = Capacity::new(10, 64, 8, 4096);
        capacity.add_zeros(15);
        assert!(!capacity.has_too_many_zeros());
        capacity.add_zeros(1);
        assert!(capacity.has_too_many_zeros() && capacity.free() == 10);
        capacity.remove_zeros(2);
        assert_eq!((capacity.zeros(), capacity.enough_zeros()), (14, 14));
    }
}
