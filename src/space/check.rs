//! What the schedule checker asks at any moment: whether page tables show what the extents say.

use super::{Shared, Space, Window};
use crate::policy::PageState;
use crate::sys::fake::{FakeEntry, FakePageTable};
use crate::units::{Addr, PageRange};
use crate::volume::store::Store;

impl Space {
    /// The invariant that L2 is there for: whoever holds it shared finds every entry of every mapping backed by the
    /// extents, and every block that is mapped owned.
    pub(crate) fn check(&self, fake: &FakePageTable, store: &Store) -> Result<(), String> {
        let shared = self.shared();
        let entries = fake.entries();
        for window in &shared.state().windows {
            let own = window.base().0..window.base().plus(window.bytes()).0;
            for entry in entries.iter().filter(|entry| own.contains(&entry.addr)) {
                shared.check_entry(window, entry, store)?;
            }
            let eof = shared.page.ceil(shared.size());
            let past_end = PageRange::new(eof.max(window.pages.start), window.pages.end.max(eof));
            if !window.dirty.marked(window.own(past_end)).is_empty() {
                return Err(format!("a page past the end, which is page {}, is dirty", eof.0));
            }
        }
        Ok(())
    }
}

impl Shared<'_> {
    fn check_entry(&self, window: &Window, entry: &FakeEntry, store: &Store) -> Result<(), String> {
        let at = Addr(entry.addr);
        let page = window.page_at(at);
        let state = self.extents().state(page);
        let wrong = |what: &str| Err(format!("page {} is {state:?}, and {what}: {entry:?}", page.0));
        if page >= self.page.ceil(self.size()) {
            return wrong("an entry is past the end");
        }
        let within = at.since(window.addr_of(page));
        match (state, entry.device_offset) {
            (PageState::Written(block), Some(offset)) => {
                if self.page.device_offset(block) + within != offset {
                    return wrong("an entry names another block");
                }
                if store.is_free(block) {
                    return wrong("its block is free");
                }
            }
            (PageState::Hole | PageState::Unwritten(_), None) => {}
            (PageState::Hole | PageState::Unwritten(_), Some(_)) => return wrong("an entry names a block"),
            (PageState::Written(_), None) => return wrong("an entry shows zeros"),
        }
        let marked = !window.dirty.marked(window.own(PageRange::one(page))).is_empty();
        if entry.writable && !marked {
            return wrong("a store to it would go unnoticed");
        }
        Ok(())
    }
}
