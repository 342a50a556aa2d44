//! Blocks put under holes ahead of a store: they are in the file, zeroed, installed writable and dirty, and nobody has
//! asked for them. As long as that is so they are remembered, and given back when the mapping goes, the
//! file is truncated, or the volume runs full, as XFS does with what it has allocated ahead.
//!
//! Whether a page has been stored to cannot be known once it is writable. So it is zapped from every mapping first, and
//! then looked at, all under one exclusive hold: a page of nothing but zeros is a hole again, which reads the same.

use super::{Change, Shared};
use crate::units::PageRange;
use crate::volume::store::Store;

/// Ranges remembered for one file: streams that store into holes at the same time. Of more, the oldest is kept for good.
const STREAMS: usize = 16;

impl Shared<'_> {
    pub(crate) fn is_ahead(&self, range: PageRange) -> bool {
        self.state().ahead.iter().any(|ahead| !ahead.intersect(range).is_empty())
    }

    pub(crate) fn has_ahead(&self) -> bool {
        !self.state().ahead.is_empty()
    }

    /// How many pages of `range` may be holes by the time that somebody fills them who holds L1: those that are, and those that
    /// become holes again if what was allocated ahead is given back, which takes no L1. Too many where ranges
    /// overlap, never too few.
    pub(crate) fn holes_at_most(&self, range: PageRange) -> u64 {
        let holes = |range| self.extents().holes(range).iter().map(PageRange::pages).sum::<u64>();
        let ahead = self.state().ahead.iter().map(|ahead| ahead.intersect(range)).filter(|part| !part.is_empty());
        holes(range) + ahead.map(|part| part.pages() - holes(part)).sum::<u64>()
    }
}

impl Change<'_> {
    /// Blocks have been put under `filled`, of which only the first page is known to be stored to. The run that ends where
    /// this one begins has been stored to from one end to the other.
    pub(crate) fn put_ahead(&mut self, filled: PageRange) {
        let ahead = &mut self.state.ahead;
        ahead.retain(|range| range.end != filled.start);
        if filled.pages() > 1 {
            if ahead.len() == STREAMS {
                ahead.remove(0);
            }
            ahead.push(PageRange::new(filled.start.plus(1), filled.end));
        }
    }

    /// Somebody has asked for blocks under `range`: they stay.
    pub(crate) fn keep(&mut self, range: PageRange) {
        let ahead = &mut self.state.ahead;
        for index in (0..ahead.len()).rev() {
            let had = ahead[index];
            if !had.intersect(range).is_empty() {
                let before = PageRange::new(had.start, range.start.min(had.end));
                let after = PageRange::new(range.end.max(had.start), had.end);
                ahead.swap_remove(index);
                ahead.extend([before, after].into_iter().filter(|part| !part.is_empty()));
            }
        }
    }

    /// Takes away the blocks that nobody has stored to.
    pub(crate) fn give_back_ahead(&mut self, store: &Store) {
        for range in std::mem::take(&mut self.state.ahead) {
            // Before it is looked at, and with faults kept out: no store slips in behind.
            self.state.windows.iter().for_each(|window| window.zap(range));
            let written: Vec<_> = self.state.extents.within(range).filter(|extent| extent.written).collect();
            for extent in written {
                let blocks = (0..extent.run.blocks).filter(|n| store.is_zero(extent.run.start.plus(*n)));
                let mut runs: Vec<PageRange> = Vec::new();
                for page in blocks.map(|n| extent.page.plus(n)) {
                    match runs.last_mut() {
                        Some(run) if run.end == page => run.end = page.plus(1),
                        _ => runs.push(PageRange::one(page)),
                    }
                }
                runs.into_iter().for_each(|run: PageRange| self.unmap(run));
            }
        }
    }
}
