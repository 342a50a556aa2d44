//! Which pages of a mapping have been stored to: one bit each, in memory that is only there where
//! bits have been set, and never from the heap.

use nix::errno::Errno;

use crate::sync::Ordering;
use crate::sys::memory::SparseWords;
use crate::units::PageIndex;
use crate::units::PageRange;

/// Bits are set under the file's lock held shared, and taken or forgotten under it held exclusively.
pub(crate) struct DirtyBits {
    /// One bit a page.
    bits: SparseWords,
    /// One bit a word of `bits`.
    summary: SparseWords,
    words: u64,
}

impl DirtyBits {
    pub(crate) fn new(pages: u64) -> Result<Self, Errno> {
        let words = pages.div_ceil(64);
        Ok(Self {
            bits: SparseWords::new(words as usize)?,
            summary: SparseWords::new(words.div_ceil(64) as usize)?,
            words,
        })
    }

    /// Pages are counted from the start of the mapping.
    /// Whether the page was marked before is returned.
    pub(crate) fn mark(&self, page: PageIndex) -> bool {
        let (word, bit) = (page.0 / 64, 1 << (page.0 % 64));
        let had = self.bits.get(word as usize).fetch_or(bit, Ordering::Relaxed);
        self.summary.get((word / 64) as usize).fetch_or(1 << (word % 64), Ordering::Relaxed);
        had & bit != 0
    }

    /// Marks every page of a range.
    pub(crate) fn mark_range(&self, range: PageRange) {
        let mut at = range.start;
        while at < range.end {
            let word = PageRange::at(PageIndex(at.0 / 64 * 64), 64);
            let cut = word.intersect(PageRange::new(at, range.end));
            let ones = if cut.pages() == 64 { u64::MAX } else { (1 << cut.pages()) - 1 };
            self.bits.get((at.0 / 64) as usize).fetch_or(ones << (at.0 % 64), Ordering::Relaxed);
            self.summary.get((at.0 / 64 / 64) as usize).fetch_or(1 << (at.0 / 64 % 64), Ordering::Relaxed);
            at = word.end;
        }
    }

    /// Calls `each` for every word of `range` that has bits set: its index, and a mask of the bits within the range.
    fn for_words(&self, range: PageRange, mut each: impl FnMut(u64, u64)) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start.0 / 64, ((range.end.0 - 1) / 64).min(self.words - 1));
        for group in first / 64..=last / 64 {
            let mut set = self.summary.get(group as usize).load(Ordering::Relaxed);
            while set != 0 {
                let word = group * 64 + u64::from(set.trailing_zeros());
                set &= set - 1;
                if (first..=last).contains(&word) {
                    let from = PageIndex(word * 64);
                    let cut = PageRange::at(from, 64).intersect(range);
                    let ones = if cut.pages() == 64 { u64::MAX } else { (1 << cut.pages()) - 1 };
                    each(word, ones << (cut.start.0 - from.0));
                }
            }
        }
    }

    fn clear(&self, word: u64, mask: u64) -> u64 {
        let had = self.bits.get(word as usize).fetch_and(!mask, Ordering::Relaxed);
        if had & !mask == 0 {
            self.summary.get((word / 64) as usize).fetch_and(!(1 << (word % 64)), Ordering::Relaxed);
        }
        had & mask
    }

    /// Clears the bits of a range.
    pub(crate) fn forget(&self, range: PageRange) {
        self.for_words(range, |word, mask| {
            self.clear(word, mask);
        });
    }

    /// The first page from `page` on that may be marked; past the end if there is none.
    pub(crate) fn next_marked(&self, page: PageIndex) -> PageIndex {
        let groups = self.words.div_ceil(64);
        let first = page.0 / 64 / 64;
        let set = (first..groups).find(|group| self.summary.get(*group as usize).load(Ordering::Relaxed) != 0);
        match set {
            Some(group) => page.max(PageIndex(group * 64 * 64)),
            None => PageIndex(self.words * 64).max(page),
        }
    }

    /// Whether any page of a range is marked. Allocates nothing.
    pub(crate) fn has_marked(&self, range: PageRange) -> bool {
        let mut any = false;
        self.for_words(range, |word, mask| any |= self.bits.get(word as usize).load(Ordering::Relaxed) & mask != 0);
        any
    }

    /// The pages of a range that are marked, as runs, in order. They stay marked.
    pub(crate) fn marked(&self, range: PageRange) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        self.for_words(range, |word, mask| {
            let mut set = self.bits.get(word as usize).load(Ordering::Relaxed) & mask;
            while set != 0 {
                // As many as follow each other, at once.
                let first = set.trailing_zeros();
                let count = (set >> first).trailing_ones();
                set &= (u64::MAX << first).checked_shl(count).unwrap_or(0);
                let found = PageRange::at(PageIndex(word * 64 + u64::from(first)), u64::from(count));
                match runs.last_mut() {
                    Some(run) if run.end == found.start => run.end = found.end,
                    _ => runs.push(found),
                }
            }
        });
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_set(
            mut pages in proptest::collection::btree_set(0..9000u64, 0..60),
            run in (0..8600u64, 0..400u64),
            forget in (0..9000u64, 0..300u64),
        ) {
            let bits = DirtyBits::new(9000).unwrap();
            for page in &pages {
                bits.mark(PageIndex(*page));
            }
            bits.mark_range(PageRange::at(PageIndex(run.0), run.1));
            pages.extend(run.0..run.0 + run.1);
            let all = PageRange::at(PageIndex(0), 9000);
            let got = |range| bits.marked(range).iter().flat_map(|run| run.iter()).map(|page| page.0).collect::<Vec<_>>();
            prop_assert_eq!(got(all), pages.iter().copied().collect::<Vec<_>>());
            let gone = PageRange::at(PageIndex(forget.0), forget.1);
            bits.forget(gone);
            let left: Vec<u64> = pages.iter().copied().filter(|page| !gone.contains(PageIndex(*page))).collect();
            prop_assert_eq!(got(all), left);
            prop_assert_eq!(got(gone), Vec::<u64>::new());
        }
    }
}
