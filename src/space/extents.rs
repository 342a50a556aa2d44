//! A file's block mapping: runs of pages on runs of blocks, with holes between. Plain data.
//!
//! There are two ways to keep it ([`Allocation`](crate::Allocation)), and one way to ask: [`Extents`].

use std::collections::BTreeMap;

use super::places::Places;
use crate::blocks::Run;
use crate::blocks::store::{Reservation, Store};
use crate::policy::PageState;
use crate::units::{BlockIndex, PageIndex, PageRange};

/// Consecutive pages on consecutive blocks, all in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) page: PageIndex,
    pub(crate) run: Run,
    pub(crate) written: bool,
}

impl Extent {
    pub(crate) fn range(&self) -> PageRange {
        PageRange::at(self.page, self.run.blocks)
    }

    /// The part of the extent that lies within `range`; the two must overlap.
    fn part(&self, range: PageRange) -> Extent {
        let cut = self.range().intersect(range);
        let skipped = cut.start.0 - self.page.0;
        let run = Run { start: self.run.start.plus(skipped), blocks: cut.pages() };
        Extent { page: cut.start, run, written: self.written }
    }

    fn block_of(&self, page: PageIndex) -> BlockIndex {
        self.run.start.plus(page.0 - self.page.0)
    }

    /// Whether `next` is the next page and lies elsewhere, so that one address range cannot show both.
    pub(crate) fn is_torn_from(&self, next: &Extent) -> bool {
        self.range().end == next.page && self.run.start.plus(self.run.blocks) != next.run.start
    }

    /// Whether `next` goes on exactly where this one ends.
    pub(super) fn is_continued_by(&self, next: &Extent) -> bool {
        self.range().end == next.page
            && self.run.start.plus(self.run.blocks) == next.run.start
            && self.written == next.written
    }
}

/// What a file is made of.
pub(crate) enum Extents {
    /// Of single blocks: any page on any block.
    Blocks(ExtentMap),
    /// Of windows: each page has its place.
    Windows(Places),
}

impl Extents {
    pub(crate) fn new(store: &Store) -> Self {
        match store.capacity() {
            None => Extents::Blocks(ExtentMap::default()),
            Some(capacity) => Extents::Windows(Places::new(capacity.clone())),
        }
    }

    pub(crate) fn windows(&self) -> Option<&Places> {
        match self {
            Extents::Blocks(_) => None,
            Extents::Windows(places) => Some(places),
        }
    }

    pub(super) fn windows_mut(&mut self) -> Option<&mut Places> {
        match self {
            Extents::Blocks(_) => None,
            Extents::Windows(places) => Some(places),
        }
    }

    pub(crate) fn state(&self, page: PageIndex) -> PageState {
        match self {
            Extents::Blocks(map) => map.state(page),
            Extents::Windows(places) => places.state(page),
        }
    }

    /// The extent from `page` on, up to `end` at most. Allocates nothing.
    pub(crate) fn run_from(&self, page: PageIndex, end: PageIndex) -> Option<Extent> {
        match self {
            Extents::Blocks(map) => map.find(page).map(|extent| extent.part(PageRange::new(page, end))),
            Extents::Windows(places) => places.run_from(page, end),
        }
    }

    /// The pages from `page` on, which is in a hole, that are in that hole, up to `end`.
    pub(crate) fn hole_from(&self, page: PageIndex, end: PageIndex) -> PageRange {
        match self {
            Extents::Blocks(map) => map.hole_around(page).intersect(PageRange::new(page, end)),
            Extents::Windows(places) => {
                let range = PageRange::new(page, end);
                PageRange::new(page, places.first_owned(range).unwrap_or(end))
            }
        }
    }

    /// The pages around `page` that are pointed at what it is pointed at, all at once.
    pub(crate) fn together_with(&self, page: PageIndex) -> PageRange {
        match self {
            Extents::Blocks(map) => map.find(page).map_or_else(|| map.hole_around(page), Extent::range),
            // Each points at its place, always.
            Extents::Windows(_) => PageRange::one(page),
        }
    }

    /// The extents within `range`, cut at its ends, in order.
    pub(crate) fn within(&self, range: PageRange) -> Box<dyn Iterator<Item = Extent> + '_> {
        match self {
            Extents::Blocks(map) => Box::new(map.within(range)),
            Extents::Windows(places) => Box::new(places.within(range).into_iter()),
        }
    }

    /// The holes within `range`, in order.
    pub(crate) fn holes(&self, range: PageRange) -> Vec<PageRange> {
        let mut holes = Vec::new();
        let mut at = range.start;
        for extent in self.within(range) {
            if at < extent.page {
                holes.push(PageRange::new(at, extent.page));
            }
            at = extent.range().end;
        }
        if at < range.end {
            holes.push(PageRange::new(at, range.end));
        }
        holes
    }

    /// Takes every page of `range` away: the extents that were there, and where, of windows, the device may have pages.
    pub(crate) fn take_out(&mut self, range: PageRange) -> (Vec<Extent>, Vec<Run>) {
        match self {
            Extents::Blocks(map) => (map.remove(range), Vec::new()),
            Extents::Windows(places) => places.take_out(range),
        }
    }

    /// Puts blocks, or another state, under pages; the extents that were there.
    pub(crate) fn replace(&mut self, extent: Extent) -> Vec<Extent> {
        match self {
            Extents::Blocks(map) => map.replace(extent),
            Extents::Windows(places) => places.replace(extent),
        }
    }

    /// One to `want` blocks that follow each other for `page` and what follows it, of those that are reserved. Which, it is the page that
    /// says where it has a place.
    ///
    /// # Panics
    /// If too few are reserved, or the page was to be given a place and has none.
    pub(crate) fn take(&self, reserved: &mut Reservation, page: PageIndex, want: u64) -> Run {
        match self {
            Extents::Blocks(_) => reserved.take(want),
            Extents::Windows(places) => {
                let run = places.place(page, want).expect("pages get places before they are written");
                reserved.take_pages(run.blocks);
                run
            }
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        match self {
            Extents::Blocks(map) => map.blocks(),
            Extents::Windows(places) => places.blocks(),
        }
    }
}

/// Extents by their first page. They never overlap, and neighbours that continue each other are one.
#[derive(Default, Debug)]
pub(crate) struct ExtentMap {
    by_page: BTreeMap<u64, Extent>,
}

impl ExtentMap {
    /// The extent that holds `page`.
    pub(crate) fn find(&self, page: PageIndex) -> Option<&Extent> {
        let (_, extent) = self.by_page.range(..=page.0).next_back()?;
        extent.range().contains(page).then_some(extent)
    }

    pub(crate) fn state(&self, page: PageIndex) -> PageState {
        match self.find(page) {
            None => PageState::Hole,
            Some(extent) if extent.written => PageState::Written(extent.block_of(page)),
            Some(extent) => PageState::Unwritten(extent.block_of(page)),
        }
    }

    /// The extents within `range`, cut at its ends, in order.
    pub(crate) fn within(&self, range: PageRange) -> impl Iterator<Item = Extent> {
        let first = self.find(range.start).map_or(range.start, |extent| extent.page);
        let past = if range.is_empty() { first } else { range.end };
        self.by_page.range(first.0..past.0).map(move |(_, extent)| extent.part(range))
    }

    /// The hole that holds `page`, which has no block.
    pub(crate) fn hole_around(&self, page: PageIndex) -> PageRange {
        let before = self.by_page.range(..page.0).next_back();
        let after = self.by_page.range(page.0..).next();
        let start = before.map_or(PageIndex(0), |(_, extent)| extent.range().end);
        let end = after.map_or(PageIndex(u64::MAX), |(start, _)| PageIndex(*start));
        PageRange::new(start, end)
    }

    /// Takes every page of `range` away; the extents that were there.
    pub(crate) fn remove(&mut self, range: PageRange) -> Vec<Extent> {
        let cut: Vec<Extent> = self.within(range).collect();
        let (Some(first), Some(last)) = (cut.first(), cut.last()) else { return cut };
        let before = self.find(first.page).copied();
        let after = self.find(PageIndex(last.range().end.0 - 1)).copied();
        let keys: Vec<u64> = self.by_page.range(..range.end.0).rev().map(|(key, _)| *key).take(cut.len()).collect();
        for key in keys {
            self.by_page.remove(&key);
        }
        if let Some(extent) = before.filter(|extent| extent.page < range.start) {
            self.put(extent.part(PageRange::new(extent.page, range.start)));
        }
        if let Some(extent) = after.filter(|extent| extent.range().end > range.end) {
            self.put(extent.part(PageRange::new(range.end, extent.range().end)));
        }
        cut
    }

    /// Adds an extent where there is a hole, and joins it with neighbours that it continues.
    pub(crate) fn insert(&mut self, mut extent: Extent) {
        debug_assert!(self.within(extent.range()).next().is_none(), "{extent:?} is taken");
        if let Some((_, before)) = self.by_page.range(..extent.page.0).next_back()
            && before.is_continued_by(&extent)
        {
            extent.run = Run { start: before.run.start, blocks: before.run.blocks + extent.run.blocks };
            extent.page = before.page;
        }
        if let Some(after) = self.by_page.get(&extent.range().end.0)
            && extent.is_continued_by(after)
        {
            let after = *after;
            self.by_page.remove(&after.page.0);
            extent.run.blocks += after.run.blocks;
        }
        self.put(extent);
    }

    /// Puts other blocks under pages that have some, in the state given.
    pub(crate) fn replace(&mut self, extent: Extent) -> Vec<Extent> {
        let old = self.remove(extent.range());
        self.insert(extent);
        old
    }

    fn put(&mut self, extent: Extent) {
        self.by_page.insert(extent.page.0, extent);
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.by_page.values().map(|extent| extent.run.blocks).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put { page: u64, pages: u64, written: bool },
        Take { page: u64, pages: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..40u64, 1..12u64, any::<bool>(), any::<bool>()).prop_map(|(page, pages, written, put)| {
            if put { Step::Put { page, pages, written } } else { Step::Take { page, pages } }
        });
        proptest::collection::vec(step, 1..40)
    }

    proptest! {
        /// Beside the map, an array of what every page ought to be.
        #[test]
        fn agrees_with_an_array(steps in steps()) {
            let mut map = ExtentMap::default();
            let mut model = [PageState::Hole; 64];
            let mut next_block = 0;
            for step in steps {
                match step {
                    Step::Put { page, pages, written } => {
                        // every other run continues the block numbers, so that joins happen
                        let start = BlockIndex(next_block);
                        next_block += pages + page % 2;
                        map.replace(Extent { page: PageIndex(page), run: Run { start, blocks: pages }, written });
                        for i in 0..pages {
                            let block = start.plus(i);
                            model[(page + i) as usize] =
                                if written { PageState::Written(block) } else { PageState::Unwritten(block) };
                        }
                    }
                    Step::Take { page, pages } => {
                        let range = PageRange::at(PageIndex(page), pages);
                        let taken: u64 = map.remove(range).iter().map(|extent| extent.run.blocks).sum();
                        let had = model[page as usize..(page + pages) as usize].iter()
                            .filter(|state| **state != PageState::Hole).count();
                        prop_assert_eq!(taken, had as u64);
                        model[page as usize..(page + pages) as usize].fill(PageState::Hole);
                    }
                }
                for (page, expected) in model.iter().enumerate() {
                    prop_assert_eq!(map.state(PageIndex(page as u64)), *expected);
                }
                let extents: Vec<_> = map.within(PageRange::from(PageIndex(0))).collect();
                for pair in extents.windows(2) {
                    prop_assert!(pair[0].range().end <= pair[1].page);
                    prop_assert!(!pair[0].is_continued_by(&pair[1]), "neighbours not joined: {:?}", pair);
                }
                let all = PageRange::at(PageIndex(0), 64);
                let owned: u64 = map.within(all).map(|extent| extent.run.blocks).sum();
                prop_assert_eq!(owned, map.blocks());
            }
        }
    }
}
