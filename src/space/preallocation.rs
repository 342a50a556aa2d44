//! Blocks put under holes that nobody has asked for: ahead of a store, or for a load where zeros of nobody's must not be left
//! ([`super::open`]). They are in the file. As long as nobody has asked they are remembered, and given back when the mapping goes, the
//! file is truncated, or the volume runs full, as XFS does with what it has preallocated.
//!
//! | files of | are remembered | installed |
//! |---|---|---|
//! | single blocks | here, as ranges | zeroed, writable and dirty |
//! | windows | in the page's word: `Loaded`, `Ahead` | write-protected, or by the kernel; whether they are dirty is in the page table |
//!
//! Whether a page has been stored to cannot be known once stores get through: that a stream has gone on behind it proves nothing.
//! But a page that shows a byte has been stored to. One that shows none is taken out of every mapping and looked at again, all
//! under one exclusive hold: a page of nothing but zeros is a hole again, which reads the same.
//!
//! ```text
//! given back                                        store to X, which the kernel lets through
//!   L2 exclusive
//!     X shows zeros
//!                                                     lands: nobody is told
//!     every mapping is told of what is present;
//!     X is zapped
//!                                                     faults, and waits for L2
//!     X shows a byte: written. Or zeros: a hole
//!   unlock
//! ```

use std::collections::BTreeMap;

use super::{Change, Shared, State, Window};
use crate::blocks::store::Store;
use crate::sabotage::Rule;
use crate::sync::Arc;
use crate::units::{PageIndex, PageRange};

/// Pages that are looked at under one hold of L2: it keeps faults out.
const LOOK_PAGES: u64 = 1024;

/// Pages with blocks that nobody has asked for: ranges that do not overlap, by where they begin, with where they end.
#[derive(Default)]
pub(super) struct Preallocation(BTreeMap<PageIndex, PageIndex>);

impl Preallocation {
    /// What is remembered of `range`, in order.
    fn within(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let before = self.0.range(..range.start).next_back();
        let inside = self.0.range(range.start..range.end.max(range.start));
        let parts = before.into_iter().chain(inside);
        parts.map(move |(start, end)| PageRange::new(*start, *end).intersect(range)).filter(|part| !part.is_empty())
    }

    /// Forgets `range`.
    pub(super) fn remove(&mut self, range: PageRange) {
        let parts: Vec<PageRange> = self.within(range).collect();
        for part in parts {
            let (start, end) = self
                .0
                .range(..=part.start)
                .next_back()
                .map(|(start, end)| (*start, *end))
                .unwrap_or((part.start, part.end));
            self.0.remove(&start);
            if start < part.start {
                self.0.insert(start, part.start);
            }
            if part.end < end {
                self.0.insert(part.end, end);
            }
        }
    }

    fn insert(&mut self, range: PageRange) {
        self.remove(range);
        if !range.is_empty() {
            self.0.insert(range.start, range.end);
        }
    }
}

impl State {
    /// The first pages of `range` that nobody has asked for: of a file with windows, `most` and a few more at most.
    fn first_preallocated(&self, range: PageRange, most: u64) -> Option<PageRange> {
        match self.extents.windows() {
            None => self.preallocated.within(range).next(),
            Some(places) => places.first_preallocated(range, most),
        }
    }

    /// All of them, in order.
    fn preallocated_within(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let mut left = range;
        std::iter::from_fn(move || {
            let part = self.first_preallocated(left, u64::MAX)?;
            left.start = part.end;
            Some(part)
        })
    }

    /// The pages of `range` that have bytes of their own, all of them zeros. One that cannot be read is none.
    fn zeros_in(&self, store: &Store, range: PageRange) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for extent in self.extents.within(range).filter(|extent| extent.written) {
            let blocks = (0..extent.run.blocks).filter(|n| store.is_zero(extent.run.start.plus(*n)));
            for page in blocks.map(|n| extent.page.plus(n)) {
                match runs.last_mut() {
                    Some(run) if run.end == page => run.end = page.plus(1),
                    _ => runs.push(PageRange::one(page)),
                }
            }
        }
        runs
    }

    fn keep(&mut self, range: PageRange) {
        match self.extents.windows_mut() {
            None => self.preallocated.remove(range),
            Some(places) => places.keep(range),
        }
    }
}

impl Shared<'_> {
    pub(crate) fn is_preallocated(&self, range: PageRange) -> bool {
        self.state().first_preallocated(range, 1).is_some()
    }

    /// The next pages of `range` to be given back under one hold of the lock.
    pub(crate) fn next_preallocated(&self, range: PageRange) -> Option<PageRange> {
        let first = self.state().first_preallocated(range, 1)?;
        Some(PageRange::at(first.start, LOOK_PAGES).intersect(range))
    }

    /// Of a file with windows, the pages that nobody has asked for and that show nothing but zeros: as good as holes. In order.
    pub(crate) fn as_good_as_holes(&self, store: &Store) -> Vec<PageRange> {
        let state = self.state();
        if state.extents.windows().is_none() {
            return Vec::new();
        }
        let parts = state.preallocated_within(PageRange::from(PageIndex(0)));
        parts.flat_map(|part| state.zeros_in(store, part)).collect()
    }

    /// How many pages of `range` may be holes by the time that somebody fills them who holds L1: those that are, and those that
    /// become holes again if what was preallocated is given back, which takes no L1.
    pub(crate) fn holes_at_most(&self, range: PageRange) -> u64 {
        if let Some(places) = self.extents().windows() {
            return range.pages() - places.asked_for_in(range);
        }
        let holes: u64 = self.extents().holes(range).iter().map(PageRange::pages).sum();
        let preallocated: u64 = self.state().preallocated.within(range).map(|part| part.pages()).sum();
        holes + preallocated
    }
}

impl Change<'_> {
    /// Blocks have been put under `filled`, of which only the first page is known to be stored to.
    pub(crate) fn put_preallocated(&mut self, filled: PageRange) {
        self.state.preallocated.remove(filled);
        self.state.preallocated.insert(PageRange::new(filled.start.plus(1), filled.end));
    }

    /// Somebody has asked for blocks under `range`: they stay.
    pub(crate) fn keep(&mut self, range: PageRange) {
        self.state.keep(range);
    }

    /// Takes away the blocks of `range` that nobody has stored to, and forgets the others. `false` if stores cannot be kept out for
    /// the moment: then nothing has changed.
    pub(crate) fn give_back_preallocated(&mut self, store: &Store, range: PageRange) -> bool {
        let parts: Vec<PageRange> = self.state.preallocated_within(range).collect();
        let zeros: Vec<PageRange> = parts.into_iter().flat_map(|part| self.state.zeros_in(store, part)).collect();
        let are_kept_out = store.broken(Rule::KeepStoresOut);
        if !zeros.is_empty() && !are_kept_out && !self.state.windows.over(range).all(|window| window.be_told()) {
            return false;
        }
        self.keep(range);
        for zeros in zeros {
            // Before it is looked at, and with faults kept out: no store slips in behind. Where that is refused they stay.
            let keep_out = |window: &Arc<Window>| window.keep_stores_out(zeros);
            if !are_kept_out && !self.state.windows.over(zeros).all(keep_out) {
                continue;
            }
            for gone in self.state.zeros_in(store, zeros) {
                self.give_back(gone);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The same as a set of pages.
        #[test]
        fn ranges_are_a_set_of_pages(steps in proptest::collection::vec((any::<bool>(), 0..60u64, 0..20u64), 1..60)) {
            let mut preallocated = Preallocation::default();
            let mut model = std::collections::BTreeSet::new();
            for (put, start, pages) in steps {
                let range = PageRange::at(PageIndex(start), pages);
                if put {
                    preallocated.insert(range);
                    model.extend(range.iter());
                } else {
                    preallocated.remove(range);
                    range.iter().for_each(|page| _ = model.remove(&page));
                }
                for from in [0, start, start + pages / 2] {
                    let asked = PageRange::at(PageIndex(from), 30);
                    let got: Vec<_> = preallocated.within(asked).flat_map(PageRange::iter).collect();
                    let want: Vec<_> = model.iter().copied().filter(|page| asked.contains(*page)).collect();
                    prop_assert_eq!(got, want);
                }
            }
        }
    }
}
