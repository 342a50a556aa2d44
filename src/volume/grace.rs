//! How an invalidation lets a thread run that keeps losing its page to it.

use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::sync::{self, Arc};
use crate::sys::{PageTable, Tid};
use crate::units::{PageIndex, PageRange};

/// An invalidation waits so long at most: the thread may be stopped, or starved by others. A few time slices.
const LONGEST: Duration = Duration::from_millis(10);

/// A thread that has been woken, and is to repeat its access before its page is taken away again.
pub(crate) struct Grace {
    /// Not to be kept alive by a file: it may belong to a pager that is gone by now.
    table: Weak<dyn PageTable>,
    tid: Tid,
    page: PageIndex,
    /// How often the thread had run when it was about to be woken.
    runs: u64,
    until: Instant,
}

impl Grace {
    /// To be made before the thread is woken. `None` where it cannot be told whether a thread has run.
    pub(crate) fn new(table: &Arc<dyn PageTable>, tid: Tid, page: PageIndex) -> Option<Self> {
        let runs = table.runs(tid)?;
        Some(Self { table: Arc::downgrade(table), tid, page, runs, until: Instant::now() + LONGEST })
    }

    pub(crate) fn concerns(&self, range: PageRange) -> bool {
        range.contains(self.page)
    }

    /// Waits until the thread has run, is gone, or time is up.
    pub(crate) fn wait(&self) {
        while let Some(table) = self.table.upgrade()
            && table.runs(self.tid) == Some(self.runs)
            && Instant::now() < self.until
        {
            sync::thread::yield_now();
        }
    }
}
