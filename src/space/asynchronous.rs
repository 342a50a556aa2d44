//! Windows whose stores nobody is told of (`Tracking::Asynchronous`): the page table is the record of what has been
//! stored to, and is read before anything of it is lost.
//!
//! An entry of such a window is write-protected when it is put there for a load, and the kernel lifts the protection
//! at the first store. So what is in the page table is dirty if it is writable. What has been taken out of it is
//! dirty unless a marker has stayed, as one does where a write-protected entry was zapped: to the kernel, taking
//! the entry and leaving the marker are one step. Where there is neither there may never have been an entry, so
//! that is remembered here, a bit a page.

use nix::errno::Errno;

use super::dirty::DirtyBits;
use super::{Change, Shared, State, Window};
use crate::options::Tracking;
use crate::policy::Backing;
use crate::sync::MutexGuard;
use crate::sys::{Protection, Scan};
use crate::units::{Addr, PageIndex, PageRange};

/// Pages counted from the start of a window.
type Own = PageRange;

/// What was known of pages before they were installed.
pub(super) struct Before<'a> {
    range: Own,
    /// Those that had had an entry, since we have last zapped them.
    known: Vec<Own>,
    /// Of these, those of which no marker says that they were write-protected to the end. Whoever installs them finds that their
    /// entry is gone, and nobody here has taken it: the application has, or the kernel, short of memory.
    lost: Vec<Own>,
    /// Held while `lost` may be of use: see [`Window::again`].
    _turn: Option<MutexGuard<'a, ()>>,
}

/// The pages that may have had an entry since we have last zapped them; `None` if stores are noticed anyhow.
pub(super) fn mapped_bits(tracking: Tracking, pages: u64) -> Result<Option<DirtyBits>, Errno> {
    match tracking {
        Tracking::Asynchronous => DirtyBits::new(pages).map(Some),
        Tracking::Exact | Tracking::Coarse | Tracking::Off => Ok(None),
    }
}

impl Window {
    /// Whether stores to its device pages are found out when somebody asks, and not before.
    pub(crate) fn is_asynchronous(&self) -> bool {
        self.mapped.is_some()
    }

    /// Whether the page table may be the only record of stores to a page of `range`. While nothing is installed.
    pub(crate) fn may_have_unread(&self, range: PageRange) -> bool {
        self.mapped.as_ref().is_some_and(|mapped| !mapped.marked(self.own(range)).is_empty())
    }

    /// The pages of `range` that `scan` means.
    fn scan(&self, scan: Scan, range: Own, mut each: impl FnMut(Own)) -> Result<(), Errno> {
        if range.is_empty() {
            return Ok(());
        }
        let own = |at: Addr, bytes: u64| {
            PageRange::at(PageIndex(self.page.page_of(at.since(self.base())).0), self.page.pages_in(bytes))
        };
        self.table.scan(scan, self.own_span(range), &mut |at, bytes| each(own(at, bytes)))
    }

    /// Pages of `range` that had an entry, and have none any more though nobody here has zapped it, or has zapped it just now:
    /// of those whose entry was write-protected still, a marker tells.
    fn lost(&self, mapped: &DirtyBits, range: Own) -> Vec<Own> {
        let runs = mapped.marked(range);
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return runs };
        let mut lost = Vec::new();
        let hull = PageRange::new(first.start, last.end);
        match self.scan(Scan::Absent, hull, |absent| lost.extend(mapped.marked(absent))) {
            Ok(()) => lost,
            // The kernel does not say: rather too many than one too few.
            Err(_) => runs,
        }
    }

    /// Looks at pages before they are installed. `None` if that takes a lock and an allocation, and who asks is in a signal
    /// handler.
    pub(super) fn before_install(&self, range: PageRange, protection: Protection, waits: bool) -> Option<Before<'_>> {
        let range = self.own(range);
        let nothing = Before { range, known: Vec::new(), lost: Vec::new(), _turn: None };
        let Some(mapped) = &self.mapped else { return Some(nothing) };
        if !waits && self.is_direct() {
            return (!mapped.has_marked(range)).then_some(nothing);
        }
        let known = mapped.marked(range);
        // A writable entry is a record.
        if known.is_empty() || protection == Protection::Writable {
            return Some(Before { known, ..nothing });
        }
        let turn = self.again.lock();
        let mut clean = Vec::new();
        let scanned = self.scan(Scan::Marked, range, |run| clean.push(run));
        let was_clean = |page| scanned.is_ok() && clean.iter().any(|run: &Own| run.contains(page));
        let pages = known.iter().flat_map(|run| run.iter()).filter(|page| !was_clean(*page));
        let lost = pages.map(PageRange::one).collect();
        Some(Before { range, known, lost, _turn: Some(turn) })
    }

    /// Notes that so many pages, from the first, have been installed: whoever has installed the next notes that. Under the
    /// same hold of L2, so that nobody collects in between.
    ///
    /// ```text
    /// a fault on X                                      another on X
    ///   no bit                                            no bit
    ///   installs
    ///                     (stored to; the application takes the entry away)
    ///                                                     installs, write-protected
    ///   sets the bit                                      finds the bit set: both have installed, so
    ///                                                     the entry was lost in between: dirty
    /// ```
    pub(super) fn after_install(&self, before: &Before<'_>, pages: u64) {
        let Some(mapped) = &self.mapped else { return };
        let done = PageRange::at(before.range.start, pages).intersect(before.range);
        for page in done.iter() {
            if mapped.mark(page) && !before.known.iter().any(|run| run.contains(page)) {
                self.dirty.mark(page);
            }
        }
        // Of those behind, the entry may be there still.
        before.lost.iter().for_each(|run| self.dirty.mark_range(run.intersect(done)));
    }

    pub(super) fn mark_lost(&self, lost: &[Own]) {
        lost.iter().for_each(|run| self.dirty.mark_range(*run));
    }

    /// After `range` has been zapped, with installs kept out since before: what had been stored to is marked.
    ///
    /// ```text
    /// zap                                               store
    ///   takes the entry, leaves a marker if it
    ///   was write-protected: one step
    ///                                                     before: has made the entry writable. No marker
    ///                                                     after: finds no entry, faults, waits
    ///   no entry, no marker: dirty
    /// ```
    ///
    /// Looked at before the zap, a store in between would be lost.
    pub(super) fn settle(&self, range: PageRange) {
        let Some(mapped) = &self.mapped else { return };
        let parts = self.armed_parts(range).into_iter();
        // These are present still, and may have an entry again at any time.
        let armed: Vec<Own> = parts.flat_map(|part| mapped.marked(self.own(part))).collect();
        self.settle_punched(range);
        armed.into_iter().for_each(|run| mapped.mark_range(run));
    }

    /// After `range` has been punched: the same, and nothing of it is present.
    pub(super) fn settle_punched(&self, range: PageRange) {
        let Some(mapped) = &self.mapped else { return };
        let own = self.own(range);
        self.mark_lost(&self.lost(mapped, own));
        mapped.forget(own);
    }

    /// A page is present from now on, or about to be. Where the kernel installs it by itself it may have an entry, and nobody here is told
    /// when it gets one. Allocates nothing.
    pub(super) fn is_present(&self, page: PageIndex) {
        if let Some(mapped) = &self.mapped
            && self.is_armed(page)
        {
            mapped.mark(self.own(PageRange::one(page)).start);
        }
    }

    /// Nothing of `range` has an entry.
    pub(super) fn forget_mapped(&self, range: PageRange) {
        self.mapped.iter().for_each(|mapped| mapped.forget(self.own(range)));
    }

    /// Marks the pages of `range` dirty that may have an entry in an armed part.
    pub(super) fn mark_present_dirty(&self, range: PageRange) {
        self.mapped.iter().for_each(|mapped| self.mark_lost(&mapped.marked(self.own(range))));
    }

    /// Whether the kernel installs what is present there by itself, and is the record of it. Under L2.
    pub(crate) fn is_the_kernels_record(&self, page: PageIndex, backing: Backing) -> bool {
        self.is_asynchronous() && matches!(backing, Backing::Armed(_)) && self.is_armed(page)
    }

    /// Takes what has been stored to of pages of which nobody but us installs any. With L2 held exclusively.
    fn take_told(&self, mapped: &DirtyBits, range: Own, runs: &mut Vec<Own>) -> Result<(), Errno> {
        self.scan(Scan::TakeWritten, range, |run| runs.push(run))?;
        let lost = self.lost(mapped, range);
        lost.iter().for_each(|run| mapped.forget(*run));
        runs.extend(lost);
        Ok(())
    }

    /// Runs of pages of the file, in `range`, with neither.
    pub(super) fn without_entry_or_marker(&self, range: PageRange) -> Vec<PageRange> {
        let mut runs = Vec::new();
        // Where the kernel does not say, nothing is known to be without.
        let _ = self.scan(Scan::Absent, self.own(range), |run| runs.push(self.in_file(run)));
        runs
    }

    /// The first page of the file from `page` on that may be dirty without a mark.
    pub(super) fn next_mapped(&self, page: PageIndex) -> Option<PageIndex> {
        let own = PageIndex(page.0.saturating_sub(self.pages.start.0));
        self.mapped.as_ref().map(|mapped| self.pages.start.plus(mapped.next_marked(own).0))
    }
}

impl State {
    /// Pages are present from now on, or about to be, in the places of a file with windows.
    pub(super) fn are_present(&self, pages: PageRange) {
        if self.is_open() {
            let asynchronous = self.windows.over(pages).filter(|window| window.is_asynchronous());
            asynchronous.for_each(|window| pages.iter().for_each(|page| window.is_present(page)));
        }
    }
}

impl Shared<'_> {
    /// A part of an asynchronous window is about to be armed: what is present of it may have an entry from now on. Who makes other pages
    /// present sees that it is.
    pub(crate) fn is_about_to_be_armed(&self, window: &Window, range: PageRange) {
        window.begin_arming();
        window.set_armed(range);
        let written = self.extents().within(range).filter(|extent| extent.written);
        written.flat_map(|extent| extent.range().iter()).for_each(|page| window.is_present(page));
    }
}

impl Change<'_> {
    /// Takes the pages of `range` that have been stored to through an asynchronous window, as ranges of the file in
    /// order, and has the next store to each recorded again.
    ///
    /// # Errors
    /// What the kernel said; nothing is taken then.
    pub(crate) fn take_written(&mut self, window: &Window, range: PageRange) -> Result<Vec<PageRange>, Errno> {
        let Some(mapped) = &window.mapped else { return Ok(Vec::new()) };
        let own = window.own(range);
        let mut runs = window.dirty.marked(own);
        window.dirty.forget(own);
        // One step for each page: a store to it comes before, and is reported, or after, and is recorded anew.
        let (mut told, mut taken) = (own.start, Ok(()));
        for part in window.armed_parts(range).into_iter().map(|part| window.own(part)) {
            taken = taken.and_then(|()| window.take_told(mapped, PageRange::new(told, part.start), &mut runs));
            // Of a page that is not present there is nothing to know.
            let mut take = |run| runs.extend(mapped.marked(run));
            taken = taken.and_then(|()| window.scan(Scan::TakeAll, part, &mut take));
            told = part.end;
        }
        taken = taken.and_then(|()| window.take_told(mapped, PageRange::new(told, own.end), &mut runs));
        if let Err(errno) = taken {
            window.mark_lost(&runs);
            // Of what has been taken, and got markers, before the kernel had no memory for others, nothing is told.
            window.armed_parts(range).into_iter().for_each(|part| window.mark_present_dirty(part));
            return Err(errno);
        }
        let is_joined = runs.windows(2).all(|pair| pair[0].end < pair[1].start);
        if !is_joined {
            runs = joined(runs);
        }
        let first = window.pages.start;
        runs.iter_mut().for_each(|run| *run = PageRange::at(first.plus(run.start.0), run.pages()));
        // Nobody has to look at them to know that they have been stored to.
        runs.iter().for_each(|run| self.keep(*run));
        Ok(runs)
    }
}

/// Ranges in order, none of which touches the next.
fn joined(mut runs: Vec<Own>) -> Vec<Own> {
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|next, run| {
        let touches = next.start <= run.end;
        if touches {
            run.end = run.end.max(next.end);
        }
        touches
    });
    runs
}
