//! How an invalidation lets a thread run that keeps losing its page to it.

use std::time::Duration;

use crate::sync::{self, Arc, Deadline, Weak};
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
    until: Deadline,
}

impl Grace {
    /// To be made before the thread is woken. `None` where it cannot be told whether a thread has run.
    pub(crate) fn new(table: &Arc<dyn PageTable>, tid: Tid, page: PageIndex) -> Option<Self> {
        let runs = table.runs(tid)?;
        Some(Self { table: Arc::downgrade(table), tid, page, runs, until: Deadline::after(LONGEST) })
    }

    pub(crate) fn concerns(&self, range: PageRange) -> bool {
        range.contains(self.page)
    }

    pub(crate) fn describe(&self) -> String {
        let over = if self.until.is_over() { ", over" } else { "" };
        format!("for thread {} on page {}{over}", self.tid.0, self.page.0)
    }

    /// Waits until the thread has run, is gone, or time is up.
    pub(crate) fn wait(&self) {
        while let Some(table) = self.table.upgrade()
            && table.runs(self.tid) == Some(self.runs)
            && !self.until.is_over()
        {
            sync::thread::yield_now();
        }
    }
}

#[cfg(all(test, feature = "fake", not(feature = "shuttle")))]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::sys::fake::FakePageTable;
    use crate::sys::{Message, Protection, Rights, Span};

    /// A thread sleeps in a fault. The grace ends when it has run, and not before.
    #[test]
    fn ends_when_the_thread_has_run() {
        let fake = FakePageTable::new();
        let table = fake.table();
        let base = table.reserve(table.base_page(), table.base_page(), Rights::LOAD_STORE).unwrap();
        let load = std::thread::spawn(move || fake.load(base.0));
        let mut messages = Vec::new();
        while messages.is_empty() {
            table.wait();
            table.read(&mut messages).unwrap();
        }
        let Message::Fault(fault) = messages[0] else { panic!("{messages:?}") };
        let grace = Grace::new(&table, fault.tid, PageIndex(3)).unwrap();
        assert!(grace.concerns(PageRange::at(PageIndex(2), 2)) && !grace.concerns(PageRange::one(PageIndex(2))));
        assert_eq!(table.runs(fault.tid), Some(grace.runs));
        assert!(table.install_zeros(Span::made_up(base, table.base_page()), Protection::ReadOnly).is_ok());
        grace.wait();
        let until = Instant::now() + Duration::from_secs(10);
        while table.runs(fault.tid) == Some(grace.runs) {
            assert!(Instant::now() < until, "the thread never ran");
        }
        grace.wait();
        assert_eq!(load.join().unwrap(), Ok(0));
    }
}
