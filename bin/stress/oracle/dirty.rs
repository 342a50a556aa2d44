//! Which pages `take_dirty` must give.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Access, Evidence, Kind, Oracle, lock};
use crate::op::Op;

/// The stores through one mapping that are to be collected.
pub(crate) struct DirtyRecord {
    /// For each page the tickets of a store since it was last collected: of the first that has ended, or the first that
    /// began after the last collection.
    stores: Vec<Mutex<Option<(u64, u64)>>>,
    /// Held by whoever collects: one at a time.
    pub(crate) turn: Mutex<()>,
    /// The ticket at the end of the last collection.
    collected: AtomicU64,
}

impl DirtyRecord {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            stores: (0..pages).map(|_| Mutex::new(None)).collect(),
            turn: Mutex::new(()),
            collected: AtomicU64::new(0),
        }
    }

    /// A store to a page of the mapping has ended.
    pub(crate) fn stored(&self, oracle: &Oracle, access: &Access, first_page: u64, span: (u64, u64)) {
        let (begin, end) = span;
        let mut store = lock(&self.stores[(access.page - first_page) as usize]);
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
        for page in 0..self.stores.len() as u64 {
            let mut store = lock(&self.stores[page as usize]);
            if collected.iter().any(|range| range.contains(&page)) {
                judge_inside(oracle, mapped, mapped.first_page + page, span);
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
