//! How long a file may have been at some moment. Its changes do not overlap: the harness makes one at a time.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::history::UNDER_WAY;

struct Change {
    bytes: u64,
    begin: u64,
    end: u64,
}

/// The sizes of one file that still matter, oldest first.
pub(crate) struct Sizes {
    changes: VecDeque<Change>,
}

impl Sizes {
    pub(crate) fn new() -> Self {
        Self { changes: VecDeque::from([Change { bytes: 0, begin: 0, end: 0 }]) }
    }

    pub(crate) fn begin(&mut self, bytes: u64, begin: u64, horizon: u64) {
        while self.changes.get(1).is_some_and(|second| second.end < horizon) {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { bytes, begin, end: UNDER_WAY });
    }

    /// The last change has ended, with effect or without.
    pub(crate) fn end(&mut self, end: u64, done: bool) {
        if !done {
            self.changes.pop_back();
        } else if let Some(last) = self.changes.back_mut() {
            last.end = end;
        }
    }

    /// The size, if nothing changes it now.
    pub(crate) fn now(&self) -> u64 {
        self.changes.back().map_or(0, |last| last.bytes)
    }

    /// The smallest and the largest that it may have had between two moments.
    pub(crate) fn between(&self, begin: u64, end: u64) -> RangeInclusive<u64> {
        let before = self.changes.iter().rfind(|change| change.end < begin);
        let beside = self.changes.iter().filter(|change| change.end >= begin && change.begin < end);
        let mut sizes = before.into_iter().chain(beside).map(|change| change.bytes);
        let first = sizes.next().unwrap_or(0);
        let (least, most) = sizes.fold((first, first), |(least, most), bytes| (least.min(bytes), most.max(bytes)));
        least..=most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_counts_from_the_beginning_of_its_change_and_until_the_end_of_the_next() {
        let mut sizes = Sizes::new();
        sizes.begin(100, 10, 0);
        assert_eq!((sizes.between(5, 8), sizes.between(5, 12)), (0..=0, 0..=100));
        sizes.end(14, true);
        assert_eq!((sizes.between(12, 13), sizes.between(15, 16), sizes.now()), (0..=100, 100..=100, 100));
        sizes.begin(50, 20, 0);
        assert_eq!((sizes.between(15, 18), sizes.between(15, 22)), (100..=100, 50..=100));
        sizes.end(24, false);
        assert_eq!((sizes.between(22, 30), sizes.now()), (100..=100, 100));
    }

    #[test]
    fn what_no_access_can_see_is_forgotten() {
        let mut sizes = Sizes::new();
        for at in 1..1000u64 {
            sizes.begin(at, 10 * at, (10 * at).saturating_sub(15));
            sizes.end(10 * at + 5, true);
        }
        assert!(sizes.changes.len() < 6);
        assert_eq!(sizes.between(9_998, 9_999), 999..=999);
    }
}
