//! What a file is made of that has windows: device offsets of its own, page N at place N. Where a page lies is known
//! beforehand, so all that there is to know of it is one small word.
//!
//! | word | the device has the page | the file says | counts |
//! |---|---|---|---|
//! | `Hole` | no | a hole | as nothing |
//! | `Zeros` | yes, zeros: a load has left them | a hole | beside the capacity |
//! | `Unwritten` | no, or zeros | unwritten | as a page of the file |
//! | `Written` | yes, or is about to: who has made it so installs it under the same hold | written | as a page of the file |
//! | `Loaded` | the same: a load has taken it, beside a mapping that lets stores through | written | the same, and with the zeros |
//! | `Ahead` | the same: taken ahead of stores | written | the same |
//!
//! Nobody has asked for the last two: whether they have been stored to shows when somebody looks ([`super::preallocation`]).
//!
//! A word changes towards `Written` under L2 held shared, by compare-and-swap, as nothing is taken away by that: of two stores to one hole
//! one takes the page, and both install it. Every other change is made under L2 held exclusively.

use std::ops::ControlFlow;

use nix::errno::Errno;

use super::extents::Extent;
use crate::blocks::Run;
use crate::blocks::capacity::Capacity;
use crate::policy::PageState;
use crate::sync::{Arc, Ordering, Tally, step};
use crate::sys::memory::SparseWords;
use crate::units::{BlockIndex, PageIndex, PageRange};

/// What is known of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    Hole = 0,
    Zeros = 1,
    Unwritten = 2,
    Written = 3,
    Loaded = 4,
    Ahead = 5,
}

/// Bits of a page in a word, and pages in a word.
const BITS: u64 = 4;
const PER_WORD: u64 = 64 / BITS;
/// A word in which every page is in the state with number 1; times a number, in that one.
const EACH: u64 = 0x1111_1111_1111_1111;

/// The bits of so many pages of a word, from one on.
fn mask(from: u64, pages: u64) -> u64 {
    (if pages == PER_WORD { u64::MAX } else { (1 << (pages * BITS)) - 1 }) << (from * BITS)
}

impl Known {
    fn of(bits: u64) -> Self {
        match bits & 0xf {
            0 => Known::Hole,
            1 => Known::Zeros,
            2 => Known::Unwritten,
            4 => Known::Loaded,
            5 => Known::Ahead,
            _ => Known::Written,
        }
    }

    /// Whether it counts with the zeros that loads have left.
    fn is_of_a_load(self) -> bool {
        matches!(self, Known::Zeros | Known::Loaded)
    }

    /// Whether it is the file's, and nobody has asked for it.
    fn is_preallocated(self) -> bool {
        matches!(self, Known::Loaded | Known::Ahead)
    }

    /// Whether the file says that the page has bytes; `None` if it is a hole to it.
    fn written(self) -> Option<bool> {
        match self {
            Known::Hole | Known::Zeros => None,
            Known::Unwritten => Some(false),
            Known::Written | Known::Loaded | Known::Ahead => Some(true),
        }
    }
}

/// One window: pages whose places follow each other.
pub(crate) struct Stretch {
    pages: PageRange,
    start: BlockIndex,
    /// [`BITS`] a page.
    words: SparseWords,
    /// One bit for each word that may have something in it.
    summary: SparseWords,
    /// No bit of a word of `summary` from here on has ever been set: a window may be far longer than what is in it.
    used: Tally,
}

impl Stretch {
    pub(crate) fn new(pages: PageRange, start: BlockIndex) -> Result<Self, Errno> {
        let words = pages.pages().div_ceil(PER_WORD);
        Ok(Self {
            pages,
            start,
            words: SparseWords::new(words as usize)?,
            summary: SparseWords::new(words.div_ceil(64) as usize)?,
            used: Tally::new(0),
        })
    }

    /// All of its places.
    pub(crate) fn run(&self) -> Run {
        Run { start: self.start, blocks: self.pages.pages() }
    }

    fn places(&self, range: PageRange) -> Run {
        Run { start: self.start.plus(range.start.0 - self.pages.start.0), blocks: range.pages() }
    }

    fn get(&self, page: PageIndex) -> Known {
        let own = page.0 - self.pages.start.0;
        let word = self.words.get((own / PER_WORD) as usize).load(Ordering::Acquire);
        Known::of(word >> (own % PER_WORD * BITS))
    }

    fn note(&self, word: u64) {
        let summary = self.summary.get((word / 64) as usize);
        if summary.load(Ordering::Relaxed) & 1 << (word % 64) == 0 {
            summary.fetch_or(1 << (word % 64), Ordering::Relaxed);
            self.used.fetch_max(word / 64 + 1, Ordering::Relaxed);
        }
    }

    /// Makes `to` of a page, unless `from` says otherwise of what it is; what it was.
    fn change(&self, page: PageIndex, to: Known, from: impl Fn(Known) -> bool) -> Result<Known, Known> {
        let own = page.0 - self.pages.start.0;
        let (index, shift) = (own / PER_WORD, own % PER_WORD * BITS);
        let word = self.words.get(index as usize);
        self.note(index);
        step();
        let mut old = word.load(Ordering::Acquire);
        loop {
            let was = Known::of(old >> shift);
            if !from(was) {
                return Err(was);
            }
            let new = old & !(0xf << shift) | (to as u64) << shift;
            match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(was),
                Err(now) => old = now,
            }
        }
    }

    /// Calls `each` for the words of `range`, all of which lies here, that may have something in them, until it says that it has seen
    /// enough: index, the pages that are meant, and what is in it.
    fn for_words(
        &self,
        range: PageRange,
        mut each: impl FnMut(u64, PageRange, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        let own = PageRange::at(PageIndex(range.start.0 - self.pages.start.0), range.pages());
        let (first, last) = (own.start.0 / PER_WORD, (own.end.0 - 1) / PER_WORD);
        for group in first / 64..(last / 64 + 1).min(self.used.load(Ordering::Relaxed)) {
            let mut set = self.summary.get(group as usize).load(Ordering::Relaxed);
            while set != 0 {
                let index = group * 64 + u64::from(set.trailing_zeros());
                set &= set - 1;
                if (first..=last).contains(&index) {
                    let pages = PageRange::at(PageIndex(index * PER_WORD), PER_WORD).intersect(own);
                    let word = self.words.get(index as usize).load(Ordering::Acquire);
                    each(index, PageRange::at(self.pages.start.plus(pages.start.0), pages.pages()), word)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Calls `each` for runs of pages in `range` that are in one state, in order, but for holes, until it says that it has seen enough.
    /// Neighbouring runs may be in the same.
    fn for_runs_until(
        &self,
        range: PageRange,
        mut each: impl FnMut(PageRange, Known) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.for_words(range, |index, pages, word| {
            let first = Known::of(word);
            if word == first as u64 * EACH {
                return if first == Known::Hole { ControlFlow::Continue(()) } else { each(pages, first) };
            }
            let base = self.pages.start.0 + index * PER_WORD;
            pages.iter().try_for_each(|page| match Known::of(word >> ((page.0 - base) * BITS)) {
                Known::Hole => ControlFlow::Continue(()),
                known => each(PageRange::one(page), known),
            })
        })
    }

    /// The same for all of them.
    fn for_runs(&self, range: PageRange, mut each: impl FnMut(PageRange, Known)) {
        let _ = self.for_runs_until(range, |pages, known| {
            each(pages, known);
            ControlFlow::Continue(())
        });
    }

    /// Makes holes of all pages of `range`, under L2 held exclusively: words in which there is nothing are left alone.
    fn clear(&self, range: PageRange) {
        let _ = self.for_words(range, |index, pages, word| {
            let from = pages.start.0 - self.pages.start.0 - index * PER_WORD;
            let rest = word & !mask(from, pages.pages());
            self.words.get(index as usize).store(rest, Ordering::Release);
            if rest == 0 {
                self.summary.get((index / 64) as usize).fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
            }
            ControlFlow::Continue(())
        });
    }

    /// Makes `to` of all pages of `range`, under L2 held exclusively.
    fn set(&self, range: PageRange, to: Known) {
        let mut at = range.start;
        while at < range.end {
            let own = at.0 - self.pages.start.0;
            let (index, from) = (own / PER_WORD, own % PER_WORD);
            let pages = (PER_WORD - from).min(range.end.0 - at.0);
            let mask = mask(from, pages);
            let word = self.words.get(index as usize);
            let old = word.load(Ordering::Relaxed);
            let new = old & !mask | (to as u64 * EACH) & mask;
            if new != old {
                word.store(new, Ordering::Release);
                self.note(index);
            }
            at = at.plus(pages);
        }
    }
}

/// Adds an extent behind others, and joins it with the last if it continues that.
fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.is_continued_by(&extent) => last.run.blocks += extent.run.blocks,
        _ => extents.push(extent),
    }
}

/// What came of the wish to have a page for a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// It is written from now on, and was not before. Whether the device may have had the page, of zeros.
    Taken { was_there: bool },
    /// Another store was first.
    Written,
    /// It is a hole, and no page is free.
    NoSpace,
}

/// Pages that have no places yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    /// What is to get some.
    pub(crate) wanted: PageRange,
    /// What has to.
    pub(crate) exact: PageRange,
}

/// The windows of one file.
pub(crate) struct Places {
    capacity: Arc<Capacity>,
    /// In order. They do not overlap.
    stretches: Vec<Stretch>,
    /// Pages that count as the file's.
    owned: Tally,
}

impl Places {
    pub(crate) fn new(capacity: Arc<Capacity>) -> Self {
        Self { capacity, stretches: Vec::new(), owned: Tally::new(0) }
    }

    /// So many pages are `to` from now on that were `was`, to the volume.
    fn count(&self, was: Known, to: Known, pages: u64) {
        match (was.is_of_a_load(), to.is_of_a_load()) {
            (false, true) => self.capacity.add_zeros(pages),
            (true, false) => self.capacity.remove_zeros(pages),
            (true, true) | (false, false) => {}
        }
        match (was.is_preallocated(), to.is_preallocated()) {
            (false, true) => self.capacity.add_preallocated(pages),
            (true, false) => self.capacity.remove_preallocated(pages),
            (true, true) | (false, false) => {}
        }
    }

    fn stretch(&self, page: PageIndex) -> Option<&Stretch> {
        let after = self.stretches.partition_point(|stretch| stretch.pages.start <= page);
        self.stretches[..after].last().filter(|stretch| stretch.pages.contains(page))
    }

    /// The windows that have a part of `range`, with that part.
    fn parts(&self, range: PageRange) -> impl Iterator<Item = (&Stretch, PageRange)> {
        let first = self.stretches.partition_point(|stretch| stretch.pages.end <= range.start);
        let rest = self.stretches[first..].iter();
        rest.map(move |stretch| (stretch, stretch.pages.intersect(range))).take_while(|(_, part)| !part.is_empty())
    }

    /// Where a page lies, and how many of the `want` from it on lie behind it. `None` if it has no place.
    pub(crate) fn place(&self, page: PageIndex, want: u64) -> Option<Run> {
        let stretch = self.stretch(page)?;
        Some(stretch.places(PageRange::at(page, want).intersect(stretch.pages)))
    }

    /// The pages of `range` that have places, with where those begin.
    pub(crate) fn windows(&self, range: PageRange) -> impl Iterator<Item = (PageRange, BlockIndex)> {
        self.parts(range).map(|(stretch, part)| (part, stretch.places(part).start))
    }

    /// The first pages of `range` without places, and what is to get some with them: those around them, as many as the file has
    /// already, so that one that grows, upwards or downwards, has a handful of windows.
    pub(crate) fn gap(&self, range: PageRange) -> Option<Gap> {
        let mut at = range.start;
        for (_, part) in self.parts(range) {
            if at < part.start {
                break;
            }
            at = part.end;
        }
        if at >= range.end {
            return None;
        }
        let granule = self.capacity.granule();
        let before = self.stretches.iter().rev().map(|stretch| stretch.pages.end).find(|end| *end <= at);
        let next = self.stretches.iter().map(|stretch| stretch.pages.start).find(|start| *start > at);
        let has: u64 = self.stretches.iter().map(|stretch| stretch.pages.pages()).sum();
        let start = at.0 / granule * granule;
        let up_to = |end: u64| next.map_or(u64::MAX, |next| next.0).min(end.div_ceil(granule).saturating_mul(granule));
        let exact = PageRange::new(PageIndex(start), PageIndex(up_to(range.end.0)));
        let end = up_to(range.end.0.max(start.saturating_add(has)));
        // Cut off by what is there: downwards then.
        let down = match end.saturating_sub(start) < has {
            true => end.saturating_sub(has) / granule * granule,
            false => start,
        };
        let start = down.max(before.map_or(0, |before| before.0)).min(start);
        Some(Gap { wanted: PageRange::new(PageIndex(start), PageIndex(end)), exact })
    }

    /// Adds a window; gives it back if another has been there first.
    pub(crate) fn add(&mut self, stretch: Stretch) -> Option<Stretch> {
        if self.parts(stretch.pages).next().is_some() {
            return Some(stretch);
        }
        let at = self.stretches.partition_point(|other| other.pages.start < stretch.pages.start);
        self.stretches.insert(at, stretch);
        None
    }

    /// Gives all windows up. Nothing is left in them.
    pub(crate) fn take_all(&mut self) -> Vec<Run> {
        debug_assert_eq!(self.blocks(), 0, "what is given up is empty");
        self.stretches.drain(..).map(|stretch| stretch.run()).collect()
    }

    pub(crate) fn known(&self, page: PageIndex) -> Known {
        self.stretch(page).map_or(Known::Hole, |stretch| stretch.get(page))
    }

    pub(crate) fn state(&self, page: PageIndex) -> PageState {
        let Some(stretch) = self.stretch(page) else { return PageState::Hole };
        let block = || stretch.places(PageRange::one(page)).start;
        match stretch.get(page).written() {
            None => PageState::Hole,
            Some(false) => PageState::Unwritten(block()),
            Some(true) => PageState::Written(block()),
        }
    }

    /// Takes a page for a store, or, as [`Known::Loaded`], for a load, under L2 held shared. Who comes second gives back what it has taken.
    pub(crate) fn claim(&self, page: PageIndex, to: Known) -> Claim {
        let Some(stretch) = self.stretch(page) else { return Claim::NoSpace };
        let is_hole = |known: Known| known.written().is_none();
        if stretch.get(page) == Known::Unwritten {
            return match stretch.change(page, Known::Written, |known| known == Known::Unwritten) {
                Ok(_) => Claim::Taken { was_there: true },
                Err(_) => Claim::Written,
            };
        }
        if !self.capacity.take(1) {
            // Not if another has been first with the last one.
            return if is_hole(stretch.get(page)) { Claim::NoSpace } else { Claim::Written };
        }
        // Before anybody can take it off.
        self.count(Known::Hole, to, 1);
        match stretch.change(page, to, is_hole) {
            Ok(was) => {
                self.owned.fetch_add(1, Ordering::Relaxed);
                self.count(was, Known::Hole, 1);
                Claim::Taken { was_there: was == Known::Zeros }
            }
            Err(_) => {
                self.count(to, Known::Hole, 1);
                self.capacity.give(1);
                Claim::Written
            }
        }
    }

    /// Takes the holes of `range` ahead of the accesses that are expected there, as [`Known::Ahead`] or [`Known::Loaded`], or leaves
    /// [`Known::Zeros`] in them, under L2 held shared, as far as the volume has pages to spare, or room for zeros, and calls `each` for each
    /// run until that says that it is of no use. How far it has come, and whether something has been given back. Allocates nothing.
    pub(crate) fn take_ahead(
        &self,
        range: PageRange,
        to: Known,
        mut each: impl FnMut(PageRange) -> bool,
    ) -> (PageIndex, bool) {
        let Some(stretch) = self.stretch(range.start) else { return (range.start, false) };
        let range = range.intersect(stretch.pages);
        let (mut at, mut gave_back) = (range.start, false);
        while at < range.end {
            let hole = |page: &PageIndex| stretch.get(*page) == Known::Hole;
            let pages = PageRange::new(at, range.end).iter().take_while(hole).count() as u64;
            if pages == 0 {
                at = at.plus(1);
                continue;
            }
            let pages = self.room_ahead(pages, to);
            if pages == 0 {
                break;
            }
            let is_hole = |known| known == Known::Hole;
            let run = PageRange::at(at, pages);
            let taken = run.iter().take_while(|page| stretch.change(*page, to, is_hole).is_ok()).count() as u64;
            self.count(to, Known::Hole, pages - taken);
            if to.written().is_some() {
                self.owned.fetch_add(taken, Ordering::Relaxed);
                self.capacity.give(pages - taken);
                gave_back |= taken < pages;
            }
            let goes_on = taken == 0 || each(PageRange::at(at, taken));
            at = at.plus(taken.max(1));
            if !goes_on {
                break;
            }
        }
        (at, gave_back)
    }

    /// Counts pages that are about to be `to`, and takes them where that counts as the file's: how many of those that are wanted.
    fn room_ahead(&self, wanted: u64, to: Known) -> u64 {
        let wanted = if to.is_of_a_load() { wanted.min(self.capacity.room_for_zeros()) } else { wanted };
        let pages = if to.written().is_some() { self.capacity.take_ahead(wanted) } else { wanted };
        self.count(Known::Hole, to, pages);
        pages
    }

    /// How many pages of `range` are known to have been stored to, or written. Allocates nothing.
    pub(crate) fn written_in(&self, range: PageRange) -> u64 {
        let mut written = 0;
        for (stretch, part) in self.parts(range) {
            let _ = stretch.for_words(part, |index, pages, word| {
                let other = word ^ (Known::Written as u64 * EACH);
                let other = other | other >> 1 | other >> 2 | other >> 3;
                let from = pages.start.0 - stretch.pages.start.0 - index * PER_WORD;
                written += u64::from((!other & EACH & mask(from, pages.pages())).count_ones());
                ControlFlow::Continue(())
            });
        }
        written
    }

    /// How many pages of `range` are the file's for good. In one look at each: beside it a hole may be taken.
    pub(crate) fn asked_for_in(&self, range: PageRange) -> u64 {
        let mut pages = 0;
        for (stretch, part) in self.parts(range) {
            let is_one = |known: Known| known.written().is_some() && !known.is_preallocated();
            stretch.for_runs(part, |run, known| pages += if is_one(known) { run.pages() } else { 0 });
        }
        pages
    }

    /// The first run of pages in `range` that nobody has asked for, of `most` and a few more at most.
    pub(crate) fn first_preallocated(&self, range: PageRange, most: u64) -> Option<PageRange> {
        if self.capacity.preallocated() == 0 {
            return None;
        }
        self.first_run(range, most, Known::is_preallocated)
    }

    /// Somebody has asked for what is preallocated in `range`, or has stored to it. Under L2 held exclusively.
    pub(crate) fn keep(&mut self, range: PageRange) {
        let mut left = range;
        while let Some(run) = self.first_preallocated(left, u64::MAX) {
            self.discount(run);
            self.parts(run).for_each(|(stretch, part)| stretch.set(part, Known::Written));
            left.start = run.end;
        }
    }

    /// A load is about to leave zeros in a page, under L2 held shared. Whether the device may have had the page already.
    pub(crate) fn note_zeros(&self, page: PageIndex) -> bool {
        let Some(stretch) = self.stretch(page) else { return true };
        if stretch.get(page) != Known::Hole {
            return true;
        }
        // Before anybody can take them off.
        self.count(Known::Hole, Known::Zeros, 1);
        let was_hole = stretch.change(page, Known::Zeros, |known| known == Known::Hole).is_ok();
        if !was_hole {
            self.count(Known::Zeros, Known::Hole, 1);
        }
        !was_hole
    }

    /// The first run of zeros in `range` that loads have left in holes, of `most` pages and a few more at most.
    pub(crate) fn first_zeros(&self, range: PageRange, most: u64) -> Option<PageRange> {
        self.first_run(range, most, |known| known == Known::Zeros)
    }

    /// The first run in `range` of what loads have taken or left, likewise.
    pub(crate) fn first_of_loads(&self, range: PageRange, most: u64) -> Option<PageRange> {
        self.first_run(range, most, Known::is_of_a_load)
    }

    fn first_run(&self, range: PageRange, most: u64, is_one: impl Fn(Known) -> bool) -> Option<PageRange> {
        self.parts(range).find_map(|(stretch, part)| {
            let mut found: Option<PageRange> = None;
            let _ = stretch.for_runs_until(part, |pages, known| {
                match &mut found {
                    None if is_one(known) => found = Some(pages),
                    None => {}
                    Some(run) if is_one(known) && run.end == pages.start && run.pages() < most => run.end = pages.end,
                    Some(_) => return ControlFlow::Break(()),
                }
                ControlFlow::Continue(())
            });
            found
        })
    }

    /// The first page of `range` that is no hole.
    pub(crate) fn first_owned(&self, range: PageRange) -> Option<PageIndex> {
        self.parts(range).find_map(|(stretch, part)| {
            let mut found = None;
            let _ = stretch.for_runs_until(part, |pages, known| match known.written() {
                None => ControlFlow::Continue(()),
                Some(_) => {
                    found = Some(pages.start);
                    ControlFlow::Break(())
                }
            });
            found
        })
    }

    /// The extent from `page` on, up to `end` at most. Allocates nothing.
    pub(crate) fn run_from(&self, page: PageIndex, end: PageIndex) -> Option<Extent> {
        let stretch = self.stretch(page)?;
        let written = stretch.get(page).written()?;
        let range = PageRange::new(page, end).intersect(stretch.pages);
        let mut to = page;
        let _ = stretch.for_runs_until(range, |pages, known| {
            if pages.start != to || known.written() != Some(written) {
                return ControlFlow::Break(());
            }
            to = pages.end;
            ControlFlow::Continue(())
        });
        let range = PageRange::new(page, to);
        Some(Extent { page, run: stretch.places(range), written })
    }

    /// The extents within `range`, cut at its ends, in order.
    pub(crate) fn within(&self, range: PageRange) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for (stretch, part) in self.parts(range) {
            stretch.for_runs(part, |pages, known| {
                let Some(written) = known.written() else { return };
                push(&mut extents, Extent { page: pages.start, run: stretch.places(pages), written });
            });
        }
        extents
    }

    /// Makes a hole of `range`, under L2 held exclusively: the extents that were there, and where pages lie that may be there.
    pub(crate) fn take_out(&mut self, range: PageRange) -> (Vec<Extent>, Vec<Run>) {
        let (mut gone, mut there) = (Vec::new(), Vec::new());
        let mut owned = 0;
        self.discount(range);
        for (stretch, part) in self.parts(range) {
            let mut hull: Option<PageRange> = None;
            stretch.for_runs(part, |pages, known| {
                hull = Some(PageRange::new(hull.map_or(pages.start, |hull| hull.start), pages.end));
                if let Some(written) = known.written() {
                    owned += pages.pages();
                    push(&mut gone, Extent { page: pages.start, run: stretch.places(pages), written });
                }
            });
            if let Some(hull) = hull {
                stretch.clear(hull);
                there.push(stretch.places(hull));
            }
        }
        self.owned.fetch_sub(owned, Ordering::Relaxed);
        (gone, there)
    }

    /// Pages of `range` are about to be something else, whatever they are.
    fn discount(&self, range: PageRange) {
        for (stretch, part) in self.parts(range) {
            stretch.for_runs(part, |pages, known| self.count(known, Known::Hole, pages.pages()));
        }
    }

    /// Makes pages written or unwritten, in their places, under L2 held exclusively; the extents that were there.
    pub(crate) fn replace(&mut self, extent: Extent) -> Vec<Extent> {
        let range = extent.range();
        // Neighbours may lie in two windows, one behind the other on the device as well.
        debug_assert!(
            self.windows(range).all(|(part, start)| start == extent.run.start.plus(part.start.0 - range.start.0)),
            "a page lies in its place"
        );
        let old = self.within(range);
        self.discount(range);
        let to = if extent.written { Known::Written } else { Known::Unwritten };
        self.parts(range).for_each(|(stretch, part)| stretch.set(part, to));
        let had: u64 = old.iter().map(|extent| extent.run.blocks).sum();
        self.owned.fetch_add(range.pages() - had, Ordering::Relaxed);
        old
    }

    /// The pages that count as the file's.
    pub(crate) fn blocks(&self) -> u64 {
        self.owned.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 10_000;

    /// Windows of pages 0 to 40, 64 to 96 and 96 to 128; the places of the last two follow each other.
    fn places() -> Places {
        let capacity = Arc::new(Capacity::new(PAGES, 4096, 8, 4096));
        let mut places = Places::new(capacity);
        let stretch = |start: u64, end: u64, place| {
            Stretch::new(PageRange::new(PageIndex(start), PageIndex(end)), BlockIndex(place)).unwrap()
        };
        assert!(places.add(stretch(64, 96, 800)).is_none());
        assert!(places.add(stretch(96, 128, 832)).is_none());
        assert!(places.add(stretch(0, 40, 8)).is_none());
        assert!(places.add(stretch(32, 64, 400)).is_some(), "page 32 has a place");
        places
    }

    #[test]
    fn a_gap_is_filled_with_as_much_as_there_is() {
        let range = |start, end| PageRange::new(PageIndex(start), PageIndex(end));
        let mut places = places();
        let gap = |places: &Places, asked| places.gap(asked).map(|gap| (gap.wanted, gap.exact));
        assert_eq!(gap(&places, range(3, 40)), None);
        assert_eq!(gap(&places, range(39, 41)), Some((range(40, 64), range(40, 48))), "up to the next window");
        assert_eq!(gap(&places, range(50, 51)), Some((range(40, 64), range(48, 56))), "and down to the one before");
        assert_eq!(gap(&places, range(100, 300)), Some((range(128, 304), range(128, 304))));
        assert_eq!(gap(&places, range(128, 129)), Some((range(128, 232), range(128, 136))), "as many as all before");
        assert_eq!(gap(&places, range(1000, 1001)), Some((range(1000, 1104), range(1000, 1008))));
        assert_eq!(places.take_all().len(), 3);
        assert_eq!(gap(&places, range(5, 6)), Some((range(0, 8), range(0, 8))));
        let last = PageIndex(u64::MAX / 4096);
        assert!(places.gap(PageRange::one(last)).is_some_and(|gap| gap.exact.contains(last)));
    }

    #[test]
    fn of_two_claims_one_takes_the_page() {
        let places = places();
        let capacity = &places.capacity;
        let claim = |places: &Places, page| places.claim(PageIndex(page), Known::Written);
        assert_eq!(claim(&places, 50), Claim::NoSpace, "no place");
        assert!(capacity.take(PAGES));
        assert_eq!(claim(&places, 5), Claim::NoSpace);
        capacity.give(PAGES);
        places.note_zeros(PageIndex(5));
        assert_eq!((places.known(PageIndex(5)), capacity.zeros()), (Known::Zeros, 1));
        assert_eq!(claim(&places, 5), Claim::Taken { was_there: true });
        assert_eq!((places.blocks(), capacity.zeros(), capacity.free()), (1, 0, PAGES - 1));
        assert_eq!(claim(&places, 5), Claim::Written);
        assert_eq!((places.blocks(), capacity.free()), (1, PAGES - 1), "what the loser had taken is given back");
        assert!(capacity.take(PAGES - 1));
        assert_eq!(claim(&places, 5), Claim::Written, "though none is free");
        places.note_zeros(PageIndex(5));
        assert_eq!(places.known(PageIndex(5)), Known::Written, "a late load takes nothing away");
    }

    proptest! {
        /// Beside the windows, an array of what every page ought to be.
        #[test]
        fn agrees_with_an_array(steps in proptest::collection::vec((0..8u8, 0..128u64, 1..40u64), 1..40)) {
            let mut places = places();
            let has_place = |page: u64| page < 40 || (64..128).contains(&page);
            let mut model = [Known::Hole; 128];
            for (what, page, pages) in steps {
                let end = (page..(page + pages).min(128)).find(|page| !has_place(*page)).unwrap_or((page + pages).min(128));
                let range = PageRange::new(PageIndex(page), PageIndex(end));
                if range.is_empty() {
                    continue;
                }
                let of_model = &mut model[page as usize..end as usize];
                match what {
                    0 | 1 => {
                        let mut at = range.start;
                        while at < range.end {
                            let run = places.place(at, range.end.0 - at.0).unwrap();
                            prop_assert!(run.blocks > 0);
                            places.replace(Extent { page: at, run, written: what == 0 });
                            at = at.plus(run.blocks);
                        }
                        of_model.fill(if what == 0 { Known::Written } else { Known::Unwritten });
                    }
                    2 => {
                        let had = of_model.iter().filter(|known| known.written().is_some()).count() as u64;
                        let known = of_model.iter().filter(|known| **known != Known::Hole).count() as u64;
                        let (gone, there) = places.take_out(range);
                        prop_assert_eq!(gone.iter().map(|extent| extent.run.blocks).sum::<u64>(), had);
                        prop_assert!(there.iter().map(|run| run.blocks).sum::<u64>() >= known);
                        of_model.fill(Known::Hole);
                    }
                    3 => {
                        range.iter().for_each(|page| _ = places.note_zeros(page));
                        of_model.iter_mut().filter(|known| **known == Known::Hole).for_each(|known| *known = Known::Zeros);
                    }
                    4 => {
                        for page in range.iter() {
                            prop_assert!(places.claim(page, Known::Written) != Claim::NoSpace);
                        }
                        let asked = |known: &Known| !known.is_preallocated();
                        of_model.iter_mut().filter(|known| asked(known)).for_each(|known| *known = Known::Written);
                    }
                    5 => {
                        range.iter().for_each(|page| _ = places.claim(page, Known::Loaded));
                        for known in of_model.iter_mut() {
                            *known = match *known {
                                Known::Hole | Known::Zeros => Known::Loaded,
                                Known::Unwritten => Known::Written,
                                other => other,
                            };
                        }
                    }
                    6 => {
                        let mut taken = Vec::new();
                        let to = [Known::Ahead, Known::Loaded, Known::Zeros][pages as usize % 3];
                        let take = |run: PageRange| {
                            taken.extend(run.iter());
                            true
                        };
                        let (end, _) = places.take_ahead(range, to, take);
                        prop_assert_eq!(end, range.intersect(places.stretch(range.start).unwrap().pages).end);
                        let first = places.stretch(range.start).unwrap().pages;
                        for (page, known) in range.iter().zip(of_model).filter(|(page, _)| first.contains(*page)) {
                            prop_assert_eq!(taken.contains(&page), *known == Known::Hole);
                            *known = if *known == Known::Hole { to } else { *known };
                        }
                    }
                    _ => {
                        places.keep(range);
                        let kept = of_model.iter_mut().filter(|known| known.is_preallocated());
                        kept.for_each(|known| *known = Known::Written);
                    }
                }
                for (page, expected) in model.iter().enumerate() {
                    prop_assert_eq!(places.known(PageIndex(page as u64)), *expected);
                }
                let owned = model.iter().filter(|known| known.written().is_some()).count() as u64;
                prop_assert_eq!(places.blocks(), owned);
                let count = |is_one: fn(Known) -> bool| model.iter().filter(|known| is_one(**known)).count() as u64;
                prop_assert_eq!(places.capacity.zeros(), count(Known::is_of_a_load));
                prop_assert_eq!(places.capacity.preallocated(), count(Known::is_preallocated));
                let own = model[page as usize..end as usize].iter().filter(|known| **known == Known::Written);
                prop_assert_eq!(places.written_in(range), own.count() as u64);
                let first = model.iter().position(|known| known.is_preallocated()).map(|page| PageIndex(page as u64));
                prop_assert_eq!(places.first_preallocated(PageRange::from(PageIndex(0)), 1).map(|run| run.start), first);
                let extents = places.within(PageRange::from(PageIndex(0)));
                prop_assert_eq!(extents.iter().map(|extent| extent.run.blocks).sum::<u64>(), owned);
                for extent in &extents {
                    let run = places.run_from(extent.page, PageIndex(128)).unwrap();
                    prop_assert_eq!((run.page, run.run.start, run.written), (extent.page, extent.run.start, extent.written));
                    let border = extent.page < PageIndex(96) && extent.range().end > PageIndex(96);
                    prop_assert_eq!(run.range().end, if border { PageIndex(96) } else { extent.range().end });
                    // As it stands, over both windows.
                    let preallocated = places.first_preallocated(extent.range(), 1).is_some();
                    if !preallocated {
                        places.replace(*extent);
                    }
                }
                let first = model.iter().position(|known| known.written().is_some()).map(|page| PageIndex(page as u64));
                prop_assert_eq!(places.first_owned(PageRange::from(PageIndex(0))), first);
                for pair in extents.windows(2) {
                    prop_assert!(!pair[0].is_continued_by(&pair[1]), "neighbours not joined: {:?}", pair);
                }
                let first = model.iter().position(|known| *known == Known::Zeros).map(|page| PageIndex(page as u64));
                prop_assert_eq!(places.first_zeros(PageRange::from(PageIndex(0)), 1).map(|run| run.start), first);
            }
        }
    }
}
