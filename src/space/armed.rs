//! The parts of a window in which the kernel installs what is present: *armed* ([`Present::Installed`](crate::sys::Present)).
//!
//! There every page has an entry, or a marker in its place, and what the kernel installs over a marker is write-protected: the first store
//! is a fault of ours. A page with neither would be installed writable, and a store to it go unnoticed. So
//!
//! > a page of an armed part that has no entry and no marker is marked dirty, or not present, and L2 is held exclusively.
//!
//! | what leaves neither | why that is so |
//! |---|---|
//! | a zap of a writable entry | it is dirty, and stays so |
//! | a punch of one | it is forgotten, and armed again under the same hold ([`Window::forget`]) |
//! | poison that is lifted | armed again under the same hold; while the page is not present, or by installing over it |
//!
//! Whoever clears a dirty bit otherwise write-protects the page: where there is no entry that leaves a marker.

use std::time::Duration;

use nix::errno::Errno;

use super::Window;
use super::dirty::DirtyBits;
use crate::sync::{AtomicBool, Ordering, Tally, back_off};
use crate::sys::{Outcome, Protection};
use crate::units::{PageIndex, PageRange, PageSize};

/// What is armed at once at least: what one page of the page table's lowest level is for.
const CHUNK_BYTES: u64 = 2 << 20;
/// And at most: 3 us for each 2 MiB, while nothing else is pointed elsewhere and no fault is answered.
const MOST_BYTES: u64 = 32 << 20;
/// How many first loads that belong to no stream a window serves before it is armed where they are: less is not worth a re-point. Models
/// have no time for that.
const STRAYS: u64 = if cfg!(feature = "shuttle") { 0 } else { 8 };
/// How often, and how long apart, it is tried to write-protect pages while the kernel refuses: about a second.
const TRIES: u32 = 10_000;
const BACK_OFF: Duration = Duration::from_micros(100);

/// Which parts of a window are armed.
pub(super) struct Armed {
    /// Pages of a chunk.
    chunk: u64,
    /// One bit for each chunk of the file that the window shows a part of: it is armed, or is about to be.
    chunks: DirtyBits,
    /// How many pages are.
    pages: Tally,
    /// First loads so far that belonged to no stream.
    strays: Tally,
    /// The kernel has refused once: nothing else is armed.
    refused: AtomicBool,
    /// A page past the end has been poisoned once.
    poisoned_past_end: AtomicBool,
}

impl Armed {
    pub(super) fn new(pages: PageRange, page: PageSize) -> Result<Self, Errno> {
        let chunk = page.pages_in(CHUNK_BYTES).max(1);
        Ok(Self {
            chunk,
            chunks: DirtyBits::new(pages.end.0.div_ceil(chunk) - pages.start.0 / chunk)?,
            pages: Tally::new(0),
            strays: Tally::new(0),
            refused: AtomicBool::new(false),
            poisoned_past_end: AtomicBool::new(false),
        })
    }
}

impl Window {
    /// Whether a part of it may be armed that is not.
    pub(crate) fn may_be_armed(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| !armed.refused.load(Ordering::Relaxed))
    }

    pub(crate) fn has_armed_parts(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| armed.pages.load(Ordering::Relaxed) > 0)
    }

    /// Whether a page is the first of a chunk, or of the window: where a reader of all of it begins.
    pub(crate) fn begins_a_chunk(&self, page: PageIndex) -> bool {
        let chunk = self.armed.as_ref().map_or(1, |armed| armed.chunk);
        page == self.pages.start || page.0.is_multiple_of(chunk)
    }

    /// A page that is present has been loaded for the first time, in no stream: what is to be armed for it, of `piece`, which shows its
    /// places in a row. The more is armed the more is armed at once: random loads of a large file are over with it soon.
    pub(crate) fn to_be_armed(&self, page: PageIndex, piece: PageRange) -> Option<PageRange> {
        let armed = self.armed.as_ref()?;
        if armed.strays.fetch_add(1, Ordering::Relaxed) < STRAYS {
            return None;
        }
        let most = self.page.pages_in(MOST_BYTES).max(armed.chunk);
        let pages = armed.pages.load(Ordering::Relaxed).clamp(armed.chunk, most);
        let pages = 1 << pages.ilog2();
        let all = PageRange::at(PageIndex(page.0 / pages * pages), pages);
        Some(all.intersect(piece).intersect(self.pages))
    }

    /// A range is about to be armed. With `regions` held exclusively.
    pub(crate) fn set_armed(&self, range: PageRange) {
        let Some(armed) = &self.armed else { return };
        armed.pages.fetch_add(range.pages(), Ordering::Relaxed);
        armed.chunks.mark_range(self.chunks_of(armed, range));
    }

    /// The kernel has no room for arming.
    pub(crate) fn set_not_to_be_armed(&self) {
        self.armed.iter().for_each(|armed| armed.refused.store(true, Ordering::Relaxed));
    }

    /// A page past the end is about to be poisoned.
    pub(super) fn set_poisoned_past_end(&self) {
        self.armed.iter().for_each(|armed| armed.poisoned_past_end.store(true, Ordering::Relaxed));
    }

    pub(super) fn is_poisoned_past_end(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| armed.poisoned_past_end.load(Ordering::Relaxed))
    }

    /// Whether a page lies in an armed part.
    pub(super) fn is_armed(&self, page: PageIndex) -> bool {
        !self.armed_parts(PageRange::one(page)).is_empty()
    }

    fn chunks_of(&self, armed: &Armed, range: PageRange) -> PageRange {
        let first = self.pages.start.0 / armed.chunk;
        let of = |page: u64| PageIndex(page - first);
        PageRange::new(of(range.start.0 / armed.chunk), of(range.end.0.div_ceil(armed.chunk)))
    }

    /// The parts of `range` that are armed, or are about to be.
    fn armed_parts(&self, range: PageRange) -> Vec<PageRange> {
        let range = range.intersect(self.pages);
        let Some(armed) = self.armed.as_ref().filter(|armed| armed.pages.load(Ordering::Relaxed) > 0) else {
            return Vec::new();
        };
        if range.is_empty() {
            return Vec::new();
        }
        let first = self.pages.start.0 / armed.chunk;
        let page = |chunk: PageIndex| PageIndex((chunk.0 + first) * armed.chunk);
        let runs = armed.chunks.marked(self.chunks_of(armed, range)).into_iter();
        runs.map(|run| PageRange::new(page(run.start), page(run.end)).intersect(range)).collect()
    }

    /// The pages of `range` that are dirty and lie in armed parts: their entries may be writable.
    pub(super) fn dirty_and_armed(&self, range: PageRange) -> Vec<PageRange> {
        let parts = self.armed_parts(range).into_iter();
        let pages = |own: PageRange| PageRange::at(self.pages.start.plus(own.start.0), own.pages());
        parts.flat_map(|part| self.dirty.marked(self.own(part))).map(pages).collect()
    }

    /// Has the next store to every page of `range` that lies in an armed part be noticed, whatever is there. What the kernel does not
    /// let be protected counts as stored to.
    pub(super) fn arm_again(&self, range: PageRange) {
        self.armed_parts(range).into_iter().for_each(|part| self.protect_surely(part));
    }

    /// With L2 held: nothing is installed meanwhile but by the kernel, or it is marked dirty.
    ///
    /// Waits where the kernel refuses: the event of a re-point is unread, or its thread has not run again. Neither needs a lock that is
    /// held here.
    pub(super) fn protect_surely(&self, range: PageRange) {
        for _ in 0..TRIES {
            match self.table.protect(self.span(range)) {
                Ok(Outcome::Installed | Outcome::AlreadyPresent) => return,
                Ok(Outcome::Retry) => back_off(BACK_OFF),
                // A part is the application's, or gone: page by page then.
                Ok(Outcome::Gone) | Err(_) if range.pages() > 1 => {
                    return range.iter().for_each(|page| self.protect_surely(PageRange::one(page)));
                }
                Ok(Outcome::Gone) => return,
                Err(_) => break,
            }
        }
        self.mark_dirty_range(range);
    }

    /// The pages of `range` have been taken out of the device: they are not dirty any more, and armed again. With L2 held exclusively, so that
    /// none of them is present before that.
    ///
    /// ```text
    /// a punch of X, which is dirty                      a store to X, later
    ///   L2 exclusive
    ///   punch: page and entry go, and no marker stays
    ///   forget: X is clean
    ///   protect: a marker
    ///   unlock
    ///              (write_at makes X present)
    ///                                                     the kernel finds the marker: installed, protected
    ///                                                     the store faults: X is dirty
    /// ```
    pub(super) fn forget(&self, range: PageRange, arms: bool) {
        let runs = self.dirty_and_armed(range);
        self.dirty.forget(self.own(range));
        if arms {
            runs.into_iter().for_each(|run| self.protect_surely(run));
        }
    }

    /// Takes the poison of one page away that has been put there for the sake of one thread. With L2 held exclusively.
    /// `is_there` says whether the page may be present: then the kernel would install it, and is not to do so before there is a marker.
    pub(super) fn lift_poison(&self, page: PageIndex, is_there: bool) {
        let one = PageRange::one(page);
        if is_there && self.is_armed(page) {
            for _ in 0..TRIES {
                match self.table.install(self.span(one), Protection::ReadOnly) {
                    // In the place of the poison; or somebody's store has put an entry there, and marked it.
                    Ok(Outcome::Installed | Outcome::AlreadyPresent | Outcome::Gone) => return,
                    Ok(Outcome::Retry) => back_off(BACK_OFF),
                    Err(_) => break,
                }
            }
        }
        self.zap(one);
    }
}
