//! What the schedule checker asks at any moment: whether page tables show what the extents say.

use super::{Shared, Space, Window};
use crate::policy::PageState;
use crate::sys::fake::{FakeEntry, FakePageTable};
use crate::units::{Addr, PageIndex, PageRange};
use crate::volume::store::Store;

impl Space {
    /// The invariant that L2 is there for: whoever holds it shared finds every entry of every mapping backed by the
    /// extents, every block that is mapped owned, and no block of this file in anybody else's mapping.
    pub(crate) fn check(&self, fake: &FakePageTable, store: &Store) -> Result<(), String> {
        let shared = self.shared();
        let entries = fake.entries();
        shared.check_others(&entries)?;
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
    /// There is one device in a model, so a block is known by where it lies.
    fn check_others(&self, entries: &[FakeEntry]) -> Result<(), String> {
        let state = self.state();
        let ours = |addr| {
            state.windows.iter().any(|window| {
                (window.base().0..).contains(&addr) && { Addr(addr).since(window.base()) < window.bytes() }
            })
        };
        let all = PageRange::from(PageIndex(0));
        let owned = |offset| {
            let block = self.page.page_of(offset).0;
            state
                .extents
                .within(all)
                .any(|extent| (extent.run.start.0..).take(extent.run.blocks as usize).any(|own| own == block))
        };
        match entries.iter().find(|entry| !ours(entry.addr) && entry.device_offset.is_some_and(owned)) {
            Some(entry) => Err(format!("a block of this file is mapped for another: {entry:?}")),
            None => Ok(()),
        }
    }

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
