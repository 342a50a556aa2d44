//! Which pages `take_dirty` must give, and which it must not.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{Access, Evidence, Kind, Oracle, lock};
use crate::manner::{Manner, Surplus};
use crate::op::Op;

/// Which pages may be collected besides those that must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// Any before the end.
    None,
    /// Those that something has stored to, or tried to, through the mapping at any time. A thread may be woken, store and be
    /// gone, and a message of its served after that.
    Ever,
    /// Those that something has stored to, or tried to, since the last collection began.
    SinceCollected,
}

impl Limit {
    /// `late` says that addresses are used again while there are messages: a late one may be served in a mapping that it is
    /// not about, whoever resolves the faults of that.
    pub(crate) fn of(manner: Manner, late: bool) -> Self {
        match manner.surplus() {
            Surplus::Neighbours | Surplus::Lost => Limit::None,
            Surplus::Nothing if late => Limit::None,
            // The thread is in its fault until it is answered.
            Surplus::Nothing if manner.is_direct() => Limit::SinceCollected,
            Surplus::Nothing => Limit::Ever,
        }
    }
}

/// Stores to one page that may have had effect or not.
#[derive(Default)]
struct Attempts {
    any: bool,
    under_way: u32,
    /// The latest end of one.
    ended: u64,
}

/// The stores through one mapping that are to be collected.
pub(crate) struct DirtyRecord {
    /// For each page the tickets of a store since it was last collected: of the first that has ended, or the first that
    /// began after the last collection.
    stores: Vec<Mutex<Option<(u64, u64)>>>,
    first_page: u64,
    limit: Limit,
    attempts: Vec<Mutex<Attempts>>,
    /// Held by whoever collects: one at a time.
    pub(crate) turn: Mutex<()>,
    /// The ticket at the end of the last collection.
    collected: AtomicU64,
    /// The ticket at its beginning.
    began: AtomicU64,
}

impl DirtyRecord {
    pub(crate) fn new(pages: Range<u64>, limit: Limit) -> Self {
        let count = pages.end - pages.start;
        Self {
            stores: (0..count).map(|_| Mutex::new(None)).collect(),
            first_page: pages.start,
            limit,
            attempts: (0..count).map(|_| Mutex::default()).collect(),
            turn: Mutex::new(()),
            collected: AtomicU64::new(0),
            began: AtomicU64::new(0),
        }
    }

    fn attempts(&self, pages: Range<u64>) -> impl Iterator<Item = MutexGuard<'_, Attempts>> {
        pages.map(|page| lock(&self.attempts[(page - self.first_page) as usize]))
    }

    /// Something that may store to pages of the file is about to begin.
    pub(crate) fn attempt(&self, pages: Range<u64>) {
        self.attempts(pages).for_each(|mut attempts| {
            attempts.any = true;
            attempts.under_way += 1;
        });
    }

    /// It has ended, whatever came of it.
    pub(crate) fn attempted(&self, pages: Range<u64>, end: u64) {
        self.attempts(pages).for_each(|mut attempts| {
            attempts.under_way -= 1;
            attempts.ended = attempts.ended.max(end);
        });
    }

    /// Whether a page of the file may be collected by what follows a collection that began at `before`.
    fn may_be_dirty(&self, page: u64, before: u64) -> bool {
        let attempts = lock(&self.attempts[(page - self.first_page) as usize]);
        match self.limit {
            Limit::None => true,
            Limit::Ever => attempts.any,
            Limit::SinceCollected => attempts.under_way > 0 || attempts.ended > before,
        }
    }

    /// A store to a page of the mapping has ended.
    pub(crate) fn stored(&self, oracle: &Oracle, access: &Access, span: (u64, u64)) {
        let (begin, end) = span;
        let mut store = lock(&self.stores[(access.page - self.first_page) as usize]);
        let collected = self.collected.load(Ordering::SeqCst);
        let page = |ticket| oracle.files[access.file as usize].page(access.page).invalidated_since(ticket);
        // One that says nothing any more makes room.
        if store.is_none_or(|(earlier, _)| earlier <= collected || page(earlier)) {
            *store = Some((begin, end));
        }
    }

    /// Judges what was collected between two tickets, in pages of the mapping.
    ///
    /// A store that ended before this collection began, and began after the last one had ended, has
    /// made the page dirty; unless an invalidation that ended later has taken the page away.
    pub(crate) fn judge(&self, oracle: &Oracle, mapped: &Mapped, collected: &[Range<u64>], span: (u64, u64)) {
        let before = self.collected.swap(span.1, Ordering::SeqCst);
        let began = self.began.swap(span.0, Ordering::SeqCst);
        for page in 0..self.stores.len() as u64 {
            let mut store = lock(&self.stores[page as usize]);
            if collected.iter().any(|range| range.contains(&page)) {
                judge_inside(oracle, mapped, mapped.first_page + page, span);
                self.judge_stored(oracle, mapped, mapped.first_page + page, (began, span.1));
                if store.is_some_and(|(begin, _)| begin < span.1) {
                    *store = None;
                }
                continue;
            }
            let Some((begin, end)) = *store else { continue };
            let in_file = mapped.first_page + page;
            if begin > before && end < span.0 {
                let excused = oracle.files[mapped.file as usize].page(in_file).invalidated_since(begin);
                *store = None;
                if !excused {
                    let access = Access {
                        op: Op::TakeDirty,
                        thread: mapped.thread,
                        file: mapped.file,
                        page: in_file,
                        address: None,
                    };
                    let expected = format!("page {in_file}: stored to between tickets {begin} and {end}");
                    let found = format!("not in what was collected between {} and {}", span.0, span.1);
                    oracle.report(&access, Kind::Dirty, Evidence::Text { expected, found });
                }
            } else if end < span.0 {
                // Beside the last collection, which may have had it.
                *store = None;
            }
        }
    }

    /// A page that nothing has stored to is not dirty, but for what the mapping's options allow.
    fn judge_stored(&self, oracle: &Oracle, mapped: &Mapped, page: u64, since: (u64, u64)) {
        if !oracle.is_judged(page) || self.may_be_dirty(page, since.0) {
            return;
        }
        let access = Access { op: Op::TakeDirty, thread: mapped.thread, file: mapped.file, page, address: None };
        let expected = "no page that nothing has stored to".to_owned();
        let found = format!("page {page} collected, between tickets {} and {}", since.0, since.1);
        oracle.report(&access, Kind::Dirty, Evidence::Text { expected, found });
    }
}

/// A page that was past the end all the while is not dirty.
fn judge_inside(oracle: &Oracle, mapped: &Mapped, page: u64, span: (u64, u64)) {
    let sizes = oracle.files[mapped.file as usize].sizes_between(span.0, span.1);
    if page < sizes.end().div_ceil(oracle.page_bytes) {
        return;
    }
    let access = Access { op: Op::TakeDirty, thread: mapped.thread, file: mapped.file, page, address: None };
    let expected = format!("no page past the end: a file of {} to {} bytes", sizes.start(), sizes.end());
    let found = format!("page {page} collected between tickets {} and {}", span.0, span.1);
    oracle.report(&access, Kind::Dirty, Evidence::Text { expected, found });
}

/// Whose mapping it is of which, for reports.
pub(crate) struct Mapped {
    pub(crate) file: u8,
    pub(crate) first_page: u64,
    pub(crate) thread: u8,
}
