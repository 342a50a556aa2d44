//! Which faults of a mapping follow each other: how many pages the next one is worth.
//!
//! A stream is the page at which its next fault is expected, and how many pages the last one was given. A fault that is
//! expected gets eight times as many as the one before it in its stream, one that is not gets one page: so
//! random faults cost what they did without, and a sequential reader is at 2 MiB after three faults. Hints
//! and nothing else: what is installed is decided under the file's lock, page by page, and a lost update costs a
//! fault or two. So there is no lock here, nothing from the heap, and no order among the updates.

use crate::sync::{Ordering, Tally};
use crate::sys::Tid;
use crate::units::PageIndex;

/// Threads have a group by their ids, so that two of them which fault at the same time rarely write to one cache
/// line. A stream that goes on in another thread begins anew.
const GROUPS: usize = 8;
/// A fault that nobody expected begins a stream in one of these: random faults take places away from each other alone.
const NEW: usize = 2;
/// A stream that has been met a second time moves on to one of these.
const KNOWN: usize = 5;
/// The growth of a window from one fault of a stream to the next, as a power of two.
const GROWTH: u32 = 3;
/// Pages that a stream may skip: others have had entries already. None for one that is not known yet.
const SLACK: u64 = 16;

const PAGE_BITS: u32 = 52;
const NOWHERE: u64 = u64::MAX;

/// One cache line.
#[repr(align(64))]
struct Group {
    /// The expected page in the lower bits, the logarithm of the window in the upper ones.
    places: [Tally; NEW + KNOWN],
    /// Which places are taken next.
    turn: Tally,
}

/// See the module.
pub(crate) struct Streams([Group; GROUPS]);

/// A fault's place among the streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    group: usize,
    /// None for a fault that nobody expected.
    found: Option<usize>,
    /// The logarithm of the window that the fault is worth.
    order: u32,
}

impl Place {
    /// How many pages the fault is worth: a power of two.
    pub(crate) fn pages(&self) -> u64 {
        1 << self.order
    }
}

impl Default for Streams {
    fn default() -> Self {
        let group = |_| Group { places: std::array::from_fn(|_| Tally::new(NOWHERE)), turn: Tally::new(0) };
        Self(std::array::from_fn(group))
    }
}

impl Streams {
    /// What a fault of a thread on `page` is worth, of at most `largest` pages. Changes nothing.
    pub(crate) fn find(&self, tid: Tid, page: PageIndex, largest: u64) -> Place {
        let group = tid.0 as usize % GROUPS;
        for (index, place) in self.0[group].places.iter().enumerate() {
            let word = place.load(Ordering::Relaxed);
            let (expected, order) = (word & ((1 << PAGE_BITS) - 1), (word >> PAGE_BITS) as u32);
            let slack = if order > 0 { SLACK } else { 0 };
            if page.0.checked_sub(expected).is_some_and(|skipped| skipped <= slack) {
                let order = (order + GROWTH).min(largest.ilog2());
                return Place { group, found: Some(index), order };
            }
        }
        Place { group, found: None, order: 0 }
    }

    /// The fault has been answered; the next of its stream is expected at `next`.
    pub(crate) fn expect(&self, place: Place, next: PageIndex) {
        let Group { places, turn } = &self.0[place.group];
        let turned = || turn.fetch_add(1, Ordering::Relaxed) as usize;
        let index = match place.found {
            None => turned() % NEW,
            Some(index) if index < NEW => {
                places[index].store(NOWHERE, Ordering::Relaxed);
                NEW + turned() % KNOWN
            }
            Some(index) => index,
        };
        let word = u64::from(place.order) << PAGE_BITS | next.0 & ((1 << PAGE_BITS) - 1);
        places[index].store(word, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: u64 = 512;

    /// The windows of a row of faults, each of which gets what it is worth.
    fn windows(streams: &Streams, tid: Tid, pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let window = |page| {
            let place = streams.find(tid, PageIndex(page), LARGEST);
            streams.expect(place, PageIndex(page + place.pages()));
            place.pages()
        };
        pages.into_iter().map(window).collect()
    }

    #[test]
    fn grows_to_the_largest_and_shrinks_at_once() {
        let streams = Streams::default();
        assert_eq!(windows(&streams, Tid(1), [0, 1, 9, 73, 585]), [1, 8, 64, 512, 512]);
        assert_eq!(windows(&streams, Tid(1), [9000, 7000, 8000, 7003]), [1, 1, 1, 1]);
        assert_eq!(windows(&streams, Tid(1), [1097]), [512], "the stream goes on where it was");
    }

    #[test]
    fn two_streams_grow_side_by_side_and_survive_random_faults() {
        let streams = Streams::default();
        let (mut first, mut second) = (0, 100_000);
        for round in 0..6 {
            for next in [&mut first, &mut second] {
                let got = windows(&streams, Tid(3), [*next])[0];
                assert_eq!(got, [1, 8, 64, 512, 512, 512][round], "round {round}");
                *next += got;
            }
            if round > 0 {
                let random = (0..9).map(|i| (1 << 30) + 4097 * i + round as u64);
                assert_eq!(windows(&streams, Tid(3), random), [1; 9]);
            }
        }
    }

    #[test]
    fn a_known_stream_skips_pages_that_others_have_installed() {
        let streams = Streams::default();
        assert_eq!(windows(&streams, Tid(1), [0, 2]), [1, 1], "a stride is not a stream");
        assert_eq!(windows(&streams, Tid(1), [3, 11 + SLACK]), [8, 64]);
    }

    #[test]
    fn stays_within_what_the_mapping_allows() {
        let streams = Streams::default();
        for (page, pages) in [(0, 1), (1, 4), (5, 4), (9, 4)] {
            let place = streams.find(Tid(1), PageIndex(page), 4);
            assert_eq!(place.pages(), pages);
            streams.expect(place, PageIndex(page + pages));
        }
        assert_eq!(std::mem::size_of::<Group>(), 64, "a cache line");
    }
}
