//! What each part of a mapping points at. Plain data: its lock is the pager's map of regions.

use std::collections::BTreeMap;

use crate::policy::Backing;
use crate::units::{PageIndex, PageRange};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    pages: u64,
    backing: Backing,
}

/// The pieces of one mapping, each an address range of its own to the kernel (a VMA), by page of the file.
/// Neighbours that continue each other are one, here as there.
#[derive(Debug)]
pub(crate) struct Layout {
    pages: PageRange,
    pieces: BTreeMap<u64, Piece>,
}

impl Backing {
    /// What the page `pages` further on points at, if the piece goes on.
    pub(crate) fn plus(self, pages: u64) -> Backing {
        match self {
            Backing::Zeros => Backing::Zeros,
            Backing::Block(block) => Backing::Block(block.plus(pages)),
            Backing::Own(block) => Backing::Own(block.plus(pages)),
            Backing::Armed(block) => Backing::Armed(block.plus(pages)),
            Backing::Open(block) => Backing::Open(block.plus(pages)),
        }
    }
}

impl Layout {
    /// All zeros, as reserved.
    pub(crate) fn new(pages: PageRange) -> Self {
        let all = Piece { pages: pages.pages(), backing: Backing::Zeros };
        Self { pages, pieces: BTreeMap::from([(pages.start.0, all)]) }
    }

    /// How many address ranges the mapping takes.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.len() as u64
    }

    fn piece_at(&self, page: PageIndex) -> (PageRange, Backing) {
        let (start, piece) =
            self.pieces.range(..=page.0).next_back().expect("the pieces cover every page of the mapping");
        (PageRange::at(PageIndex(*start), piece.pages), piece.backing)
    }

    pub(crate) fn backing(&self, page: PageIndex) -> Backing {
        let (range, backing) = self.piece_at(page);
        backing.plus(page.0 - range.start.0)
    }

    /// What `page` is to point at when it is armed. Nothing if it does not show its own place, where the window may be told of each entry.
    pub(crate) fn to_be_armed(&self, page: PageIndex) -> Option<Backing> {
        match self.backing(page) {
            Backing::Own(place) | Backing::Armed(place) => Some(Backing::Armed(place)),
            Backing::Zeros | Backing::Block(_) | Backing::Open(_) => None,
        }
    }

    /// The piece that holds `page`: up to its end, each page points at what follows.
    pub(crate) fn piece(&self, page: PageIndex) -> PageRange {
        self.piece_at(page).0
    }

    /// Of `range`, which is to point at `first` and what follows, the part around `page` that points
    /// elsewhere: as large as possible, so that the neighbours need no re-pointing of their own,
    /// and no larger, so that no entry is lost that is right.
    pub(crate) fn wrong_around(&self, page: PageIndex, range: PageRange, first: Backing) -> PageRange {
        let range = range.intersect(self.pages);
        let right = |piece: PageRange, backing: Backing| {
            let at = piece.start.max(range.start);
            backing.plus(at.0 - piece.start.0) == first.plus(at.0 - range.start.0)
        };
        let (mut start, mut end) = (page, page.plus(1));
        while end < range.end {
            let (piece, backing) = self.piece_at(end);
            if right(piece, backing) {
                break;
            }
            end = piece.end.min(range.end);
        }
        while start > range.start {
            let (piece, backing) = self.piece_at(PageIndex(start.0 - 1));
            if right(piece, backing) {
                break;
            }
            start = piece.start.max(range.start);
        }
        PageRange::new(start, end)
    }

    /// Records that `range` points at `first` and what follows.
    pub(crate) fn set(&mut self, range: PageRange, first: Backing) {
        debug_assert!(range.intersect(self.pages) == range && !range.is_empty());
        self.split(range.start);
        self.split(range.end);
        let inner: Vec<u64> = self.pieces.range(range.start.0..range.end.0).map(|(start, _)| *start).collect();
        for start in inner {
            self.pieces.remove(&start);
        }
        self.pieces.insert(range.start.0, Piece { pages: range.pages(), backing: first });
        self.join(range.end);
        self.join(range.start);
    }

    fn split(&mut self, page: PageIndex) {
        if !self.pages.contains(page) {
            return;
        }
        let (range, backing) = self.piece_at(page);
        if range.start < page {
            let before = page.0 - range.start.0;
            self.pieces.insert(range.start.0, Piece { pages: before, backing });
            let rest = Piece { pages: range.pages() - before, backing: backing.plus(before) };
            self.pieces.insert(page.0, rest);
        }
    }

    /// Joins the piece that begins at `page` to the one before, if it continues it.
    fn join(&mut self, page: PageIndex) {
        let Some(&piece) = self.pieces.get(&page.0) else { return };
        let Some((start, before)) = self.pieces.range_mut(..page.0).next_back() else { return };
        if before.backing.plus(page.0 - start) == piece.backing {
            before.pages += piece.pages;
            self.pieces.remove(&page.0);
        }
    }

    /// The smallest range from page `from` on that holds `count` pieces, or what there is up to the end.
    pub(crate) fn span(&self, from: PageIndex, count: usize) -> PageRange {
        let mut span = PageRange::new(from, from);
        for (start, piece) in self.pieces.range(from.0..).take(count) {
            span.end = PageIndex(start + piece.pages);
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockIndex;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_an_array(sets in proptest::collection::vec((0..60u64, 1..20u64, 0..4u64), 1..40), probe in 0..64u64) {
            let pages = PageRange::at(PageIndex(100), 64);
            let mut layout = Layout::new(pages);
            let mut model = [Backing::Zeros; 64];
            for (page, count, what) in sets {
                let count = count.min(64 - page);
                let range = PageRange::at(PageIndex(100 + page), count);
                // three families of blocks that continue each other, and zeros
                let first = if what == 0 { Backing::Zeros } else { Backing::Block(BlockIndex(what * 1000 + page)) };
                layout.set(range, first);
                for i in 0..count {
                    model[(page + i) as usize] = first.plus(i);
                }
                for (i, expected) in model.iter().enumerate() {
                    prop_assert_eq!(layout.backing(PageIndex(100 + i as u64)), *expected);
                }
                let borders = (1..64).filter(|i| model[*i] != model[*i - 1].plus(1)).count() as u64;
                prop_assert_eq!(layout.pieces(), borders + 1);
            }
            // From any page, the part to re-point stops exactly where the neighbours are right.
            let first = Backing::Block(BlockIndex(1000));
            let page = PageIndex(100 + probe);
            let right = |i: u64| model[i as usize] == first.plus(i);
            if !right(probe) {
                let wrong = layout.wrong_around(page, pages, first);
                prop_assert!(wrong.iter().all(|at| !right(at.0 - 100)));
                prop_assert!(wrong.start == pages.start || right(wrong.start.0 - 101));
                prop_assert!(wrong.end == pages.end || right(wrong.end.0 - 100));
            }
        }
    }
}
