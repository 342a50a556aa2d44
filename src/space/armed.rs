//! The parts of a window in which the kernel installs what is present: *armed* ([`Present::Installed`](crate::sys::Present)).
//!
//! There every page has an entry, or a marker in its place, and what the kernel installs over a marker is write-protected: the first store
//! is a fault of ours. A page with neither would be installed writable: a store to it would go unnoticed, and be lost where the file says
//! hole or unwritten. So
//!
//! > a page of an armed part that has no entry and no marker is written and dirty, or it is not present, and stays so until it is armed.
//!
//! | what leaves neither | why that is so |
//! |---|---|
//! | a zap of a writable entry | it is written and dirty, and stays so |
//! | a punch of a page | armed again under the same hold ([`Window::arm_again`]) |
//! | poison that is lifted | armed again under the same hold; while the page is not present, or by installing over it |
//!
//! Whoever clears a dirty bit otherwise write-protects the page: where there is no entry that leaves a marker.
//!
//! The kernel refuses to arm while a re-point is under way, and a change does not wait for the pager's reader. So what could not be armed is
//! remembered, and whoever is about to make such a page present arms it first ([`Change::arm_what_is_left`]).

use std::time::Duration;

use nix::errno::Errno;

use super::dirty::DirtyBits;
use super::{Change, Shared, Space, Window};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, Tally, back_off};
use crate::sys::{Outcome, Protection};
use crate::units::{PageIndex, PageRange, PageSize, TABLE_BYTES};

/// What is armed at once at most; at least it is what one table is for. 3 us for each 2 MiB, while nothing else is pointed elsewhere and no fault is answered.
const MOST_BYTES: u64 = 32 << 20;
/// How many first loads that belong to no stream a window serves before it is armed where they are: less is not worth a re-point. Models
/// have no time for that.
const STRAYS: u64 = if cfg!(feature = "shuttle") { 0 } else { 8 };
/// How often, and how long apart, it is tried to write-protect pages while the kernel refuses.
const TRIES: u32 = 4;
const BACK_OFF: Duration = Duration::from_micros(20);

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
    /// A part of an asynchronous window is about to be armed, and may not be yet. Set under L2, so that whoever holds it exclusively
    /// knows; cleared when it is, or is not to be.
    arming: AtomicBool,
    /// A page past the end has been poisoned once.
    poisoned_past_end: AtomicBool,
    /// What the kernel has refused to arm again. Changed under L2 held exclusively. A leaf, for the time of a look.
    left: Mutex<Vec<PageRange>>,
    /// How many such ranges there are in all windows of the file.
    all_left: Arc<Tally>,
}

/// Pages of a chunk.
fn chunk_of(page: PageSize) -> u64 {
    page.pages_in(TABLE_BYTES).max(1)
}

impl Armed {
    pub(super) fn new(pages: PageRange, page: PageSize, all_left: Arc<Tally>) -> Result<Self, Errno> {
        let chunk = chunk_of(page);
        Ok(Self {
            chunk,
            chunks: DirtyBits::new(pages.end.0.div_ceil(chunk) - pages.start.0 / chunk)?,
            pages: Tally::new(0),
            strays: Tally::new(0),
            refused: AtomicBool::new(false),
            arming: AtomicBool::new(false),
            poisoned_past_end: AtomicBool::new(false),
            left: Mutex::new(Vec::new()),
            all_left,
        })
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if self.all_left.load(Ordering::Relaxed) > 0 {
            self.all_left.fetch_sub(self.left.lock().len() as u64, Ordering::Relaxed);
        }
    }
}

impl Window {
    /// Whether a part of it may be armed that is not.
    pub(crate) fn may_be_armed(&self) -> bool {
        self.armed.as_ref().is_some_and(|armed| !armed.refused.load(Ordering::Relaxed))
    }

    pub(crate) fn has_armed_parts(&self) -> bool {
        self.armed_pages() > 0
    }

    /// How many pages are armed, or are about to be.
    pub(crate) fn armed_pages(&self) -> u64 {
        self.armed.as_ref().map_or(0, |armed| armed.pages.load(Ordering::Relaxed))
    }

    /// Whether a page is the first of a chunk, or of the window: where a reader of all of it begins.
    pub(crate) fn begins_a_chunk(&self, page: PageIndex) -> bool {
        let chunk = self.armed.as_ref().map_or(1, |armed| armed.chunk);
        page == self.pages.start || page.0.is_multiple_of(chunk)
    }

    /// The pages of the chunk that a page lies in.
    pub(crate) fn chunk_of(&self, page: PageIndex) -> PageRange {
        self.around(page, chunk_of(self.page))
    }

    /// The range of so many pages, aligned like that, that a page lies in.
    fn around(&self, page: PageIndex, pages: u64) -> PageRange {
        PageRange::at(PageIndex(page.0 / pages * pages), pages)
    }

    /// A page that is present has been loaded for the first time, in no stream: what is to be armed for it, of `piece`, which shows its
    /// places in a row. The more is armed the more is armed at once: random loads of a large file are over with it soon. `expected` says
    /// that it has been advised: then the first is enough.
    pub(crate) fn to_be_armed(&self, page: PageIndex, piece: PageRange, expected: bool) -> Option<PageRange> {
        let armed = self.armed.as_ref()?;
        let strays = armed.strays.fetch_add(1, Ordering::Relaxed);
        if !expected {
            strays.checked_sub(STRAYS)?;
        }
        let most = self.page.pages_in(MOST_BYTES).max(armed.chunk);
        let pages = armed.pages.load(Ordering::Relaxed).clamp(armed.chunk, most);
        let pages = 1 << pages.ilog2();
        let around = |pages| self.around(page, pages).intersect(piece).intersect(self.pages);
        // Once each: where a piece has been armed and is told of again, a part of it may have been armed anew.
        let is_armed_in_part = armed.chunks.has_marked(self.chunks_of(armed, around(pages)));
        Some(around(if is_armed_in_part { armed.chunk } else { pages }))
    }

    /// The part of `range` around `page` that is not armed; nothing if the page is. With `regions` held exclusively.
    pub(crate) fn unarmed_around(&self, page: PageIndex, range: PageRange) -> Option<PageRange> {
        let parts = self.armed_parts(range);
        if parts.iter().any(|part| part.contains(page)) {
            return None;
        }
        let start = parts.iter().map(|part| part.end).filter(|end| *end <= page).max().unwrap_or(range.start);
        let end = parts.iter().map(|part| part.start).find(|start| *start > page).unwrap_or(range.end);
        Some(PageRange::new(start, end))
    }

    /// A range is about to be armed. With `regions` held exclusively; of an asynchronous window under L2 as well.
    pub(crate) fn set_armed(&self, range: PageRange) {
        let Some(armed) = &self.armed else { return };
        armed.pages.fetch_add(range.pages(), Ordering::Relaxed);
        armed.chunks.mark_range(self.chunks_of(armed, range));
    }

    /// It could not be. With `regions` held exclusively since, and L2.
    pub(crate) fn set_unarmed(&self, range: PageRange) {
        let Some(armed) = &self.armed else { return };
        armed.chunks.forget(self.chunks_of(armed, range));
        armed.pages.fetch_sub(range.pages(), Ordering::Relaxed);
        self.forget_mapped(range);
    }

    /// A part is about to be armed. Under L2, and with `regions` held exclusively.
    pub(super) fn begin_arming(&self) {
        self.armed.iter().for_each(|armed| armed.arming.store(true, Ordering::Release));
    }

    /// It is, or is not to be.
    pub(crate) fn end_arming(&self) {
        self.armed.iter().for_each(|armed| armed.arming.store(false, Ordering::Release));
    }

    /// Whoever serves faults is told from now on of what is present, and absent, wherever the kernel installs it by itself and keeps the only
    /// record of stores. Under L2 held exclusively. `false` if that cannot be had for the moment, or at all.
    ///
    /// The entries, and the layout, stay what they are: a page that the layout calls armed and that is not is the pager's to install.
    /// It is armed anew by a re-point, when loads that belong to no stream want it.
    pub(super) fn be_told(&self) -> bool {
        let Some(armed) = self.armed.as_ref().filter(|_| self.is_asynchronous()) else { return !self.is_open() };
        if armed.arming.load(Ordering::Acquire) {
            return false;
        }
        let all_told = self.armed_parts(self.pages).into_iter().all(|part| {
            let told = self.table.be_told(self.span(part), self.rights()).is_ok();
            if told {
                armed.chunks.forget(self.chunks_of(armed, part));
            }
            told
        });
        if all_told {
            armed.pages.store(0, Ordering::Relaxed);
        }
        all_told
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

    /// Whether a page lies in an armed part. Allocates nothing.
    pub(crate) fn is_armed(&self, page: PageIndex) -> bool {
        let one = PageRange::one(page);
        let armed = self.armed.as_ref().filter(|armed| armed.pages.load(Ordering::Relaxed) > 0);
        self.pages.contains(page) && armed.is_some_and(|armed| armed.chunks.has_marked(self.chunks_of(armed, one)))
    }

    fn chunks_of(&self, armed: &Armed, range: PageRange) -> PageRange {
        let first = self.pages.start.0 / armed.chunk;
        let of = |page: u64| PageIndex(page - first);
        PageRange::new(of(range.start.0 / armed.chunk), of(range.end.0.div_ceil(armed.chunk)))
    }

    /// The parts of `range` that are armed, or are about to be.
    pub(super) fn armed_parts(&self, range: PageRange) -> Vec<PageRange> {
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
        parts.flat_map(|part| self.dirty.marked(self.own(part))).map(|own| self.in_file(own)).collect()
    }

    /// Has the next store to every page of `range` that lies in an armed part be noticed. With L2 held exclusively and the pages absent: they
    /// have been punched, or were poisoned. Of a page that is not dirty as well: the kernel may be about to install it when it is punched,
    /// and takes entry and marker then.
    ///
    /// ```text
    /// a punch of X, which is dirty                      a store to X, later
    ///   L2 exclusive
    ///   punch: page and entry go, and no marker stays
    ///   protect: a marker
    ///   forget: X is clean
    ///   unlock
    ///              (write_at makes X present)
    ///                                                     the kernel finds the marker: installed, protected
    ///                                                     the store faults: X is dirty
    /// ```
    ///
    /// Of an asynchronous window the entries are the record of what has been stored to, and a page that is not armed counts as stored to as
    /// soon as it is loaded: too many, and never too few. So only pages without an entry are protected, and a refusal is no harm.
    pub(super) fn arm_again(&self, range: PageRange) {
        let parts = self.armed_parts(range).into_iter();
        if !self.is_asynchronous() {
            return parts.for_each(|part| self.arm_or_leave(part));
        }
        parts.flat_map(|part| self.without_entry_or_marker(part)).for_each(|run| {
            // Those that are present: they may have had an entry since it was looked what has been stored to.
            self.mark_present_dirty(run);
            let _ = self.protect_now(run);
        });
    }

    fn arm_or_leave(&self, range: PageRange) {
        if !self.protect_now(range)
            && let Some(armed) = &self.armed
        {
            armed.left.lock().push(range);
            armed.all_left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Write-protects pages, with or without an entry; `false` if the kernel refuses for the moment: the event of a re-point is unread, or
    /// its thread has not run again.
    pub(super) fn protect_now(&self, range: PageRange) -> bool {
        for _ in 0..TRIES {
            match self.table.protect(self.span(range)) {
                Ok(Outcome::Installed | Outcome::AlreadyPresent) => return true,
                Ok(Outcome::Retry) => back_off(BACK_OFF),
                // A part is the application's, or gone: page by page then.
                Ok(Outcome::Gone) | Err(_) if range.pages() > 1 => {
                    return range.iter().all(|page| self.protect_now(PageRange::one(page)));
                }
                Ok(Outcome::Gone) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Arms what has been left, until that is refused. Whether nothing of `range` is left.
    fn arm_what_is_left(&self, range: PageRange) -> bool {
        let Some(armed) = &self.armed else { return true };
        let left = std::mem::take(&mut *armed.left.lock());
        let done = left.iter().take_while(|part| self.protect_now(**part)).count();
        armed.all_left.fetch_sub(done as u64, Ordering::Relaxed);
        let rest = &left[done..];
        armed.left.lock().extend_from_slice(rest);
        rest.iter().all(|part| part.intersect(range).is_empty())
    }

    /// Whether a page is among what has been left. Never waits; where it cannot be told it may be.
    fn has_left(&self, page: PageIndex) -> bool {
        let Some(armed) = &self.armed else { return false };
        armed.left.try_lock().is_none_or(|left| left.iter().any(|part| part.contains(page)))
    }

    /// Takes the poison of one page away that has been put there for the sake of one thread. With L2 held exclusively.
    /// `is_there` says whether the page may be present: then the kernel would install it, and is not to do so before there is a marker.
    /// `false` if the kernel refuses for the moment.
    pub(super) fn lift_poison(&self, page: PageIndex, is_there: bool) -> bool {
        let one = PageRange::one(page);
        if is_there && self.is_armed(page) {
            match self.table.install(self.span(one), Protection::ReadOnly) {
                // In the place of the poison.
                Ok(Outcome::Installed | Outcome::Gone) => return true,
                Ok(Outcome::AlreadyPresent) => return self.is_asynchronous() || self.protect_now(one),
                Ok(Outcome::Retry) => return false,
                // It is not.
                Err(_) => {}
            }
        }
        self.zap(one);
        true
    }
}

impl Space {
    /// What windows of the file count in what could not be armed.
    pub(crate) fn unarmed(&self) -> Arc<Tally> {
        self.state.read().unarmed.clone()
    }
}

impl Shared<'_> {
    /// Whether a page must not be made present before it is armed again in some mapping.
    pub(crate) fn is_left_unarmed(&self, page: PageIndex) -> bool {
        let state = self.state();
        state.unarmed.load(Ordering::Relaxed) > 0
            && state.windows.over(PageRange::one(page)).any(|window| window.has_left(page))
    }

    /// Whether some mapping has a page poisoned for the sake of one thread: a store to it through another is to end that. Never waits; where
    /// it cannot be told it may be.
    pub(crate) fn is_poisoned_for_one(&self, page: PageIndex) -> bool {
        let state = self.state();
        let is_poisoned =
            |window: &Arc<Window>| window.poisoned_for_one.try_lock().is_none_or(|pages| pages.contains(&page));
        state.unarmed.load(Ordering::Relaxed) > 0 && state.windows.over(PageRange::one(page)).any(is_poisoned)
    }
}

impl Change<'_> {
    /// Makes everything ready for pages of a file with windows that are about to be present: what is poisoned of them is so no longer, and
    /// what could not be armed when it was punched is. `false` if the kernel refuses that for the moment.
    pub(crate) fn make_ready(&self, range: PageRange) -> bool {
        self.lift_poison_before_bytes(range) && self.arm_what_is_left(range)
    }

    fn arm_what_is_left(&self, range: PageRange) -> bool {
        let all = |window: &Arc<Window>| window.arm_what_is_left(range);
        self.state.unarmed.load(Ordering::Relaxed) == 0 || self.state.windows.all().all(all)
    }
}
