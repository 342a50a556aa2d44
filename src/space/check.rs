//! What holds of one file between any two steps of a schedule: its mappings show what it is made of. For the schedule
//! checker alone, which looks without a lock and is no step itself.

use super::places::Known;
use super::{Space, State, Window};
use crate::policy::PageState;
use crate::sync::RwLockPeek;
use crate::sys::fake::FakeEntry;
use crate::units::{Addr, BlockIndex, PageIndex, PageRange, PageSize};

/// A file as it is between two steps.
pub(crate) struct Glimpse<'a> {
    page: PageSize,
    state: RwLockPeek<'a, State>,
}

impl Space {
    /// None while somebody holds L2 exclusively: from publish to zap page tables may lag behind.
    pub(crate) fn peek(&self) -> Option<Glimpse<'_>> {
        Some(Glimpse { page: self.page, state: self.state.peek()? })
    }
}

impl Glimpse<'_> {
    /// Whether a mapping of this file has the address.
    pub(crate) fn shows(&self, addr: usize) -> bool {
        let own = |window: &Window| window.base().0..window.base().plus(window.bytes()).0;
        self.state.windows.all().any(|window| own(window).contains(&addr))
    }

    /// The blocks that the file owns.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let all = PageRange::from(PageIndex(0));
        self.state.extents.within(all).flat_map(|extent| (0..extent.run.blocks).map(move |i| extent.run.start.plus(i)))
    }

    /// A page that the device has, as `is_there` says, though the file knows of none in that place. Of single blocks nobody can tell.
    pub(crate) fn stranger(&self, is_there: impl Fn(u64) -> bool) -> Option<PageIndex> {
        let places = self.state.extents.windows()?;
        places.windows(PageRange::from(PageIndex(0))).find_map(|(pages, start)| {
            let unknown = |page: &PageIndex| {
                let place = start.plus(page.0 - pages.start.0);
                places.known(*page) == Known::Hole && is_there(self.page.device_offset(place))
            };
            pages.iter().find(unknown)
        })
    }

    /// Every entry of every mapping is backed by the extents, and a page to which a store would go unnoticed is dirty.
    pub(crate) fn check(&self, entries: &[FakeEntry]) -> Result<(), String> {
        let eof = self.page.ceil(self.state.i_size);
        for window in self.state.windows.all() {
            let own = window.base().0..window.base().plus(window.bytes()).0;
            for entry in entries.iter().filter(|entry| own.contains(&entry.addr)) {
                self.check_entry(window, eof, entry)?;
            }
            let past_end = PageRange::new(eof.max(window.pages.start), window.pages.end.max(eof));
            if !window.dirty.marked(window.own(past_end)).is_empty() {
                return Err(format!("a page past the end, which is page {}, is dirty", eof.0));
            }
            if window.may_have_unread(past_end) {
                return Err(format!("a page past the end, which is page {}, may have been stored to", eof.0));
            }
        }
        Ok(())
    }

    /// Whether a byte of the device is that of the page's own place.
    fn is_own(&self, page: PageIndex, within: u64, offset: u64) -> bool {
        let place = self.state.extents.windows().and_then(|places| places.place(page, 1));
        place.is_some_and(|run| self.page.device_offset(run.start) + within == offset)
    }

    fn check_entry(&self, window: &Window, eof: PageIndex, entry: &FakeEntry) -> Result<(), String> {
        let at = Addr(entry.addr);
        let page = window.page_at(at);
        let state = self.state.extents.state(page);
        let wrong = |what: &str| Err(format!("page {} is {state:?}, and {what}: {entry:?}", page.0));
        if page >= eof {
            return wrong("an entry is past the end");
        }
        let within = at.since(window.addr_of(page));
        match (state, entry.device_offset) {
            (PageState::Written(block), Some(offset)) if self.page.device_offset(block) + within == offset => {}
            (PageState::Written(_), Some(_)) => return wrong("an entry names another block"),
            (PageState::Hole | PageState::Unwritten(_), None) => {}
            // In its place, zeros that a load has left: a store would be noticed.
            (PageState::Hole | PageState::Unwritten(_), Some(offset)) if self.is_own(page, within, offset) => {
                if entry.writable {
                    return wrong("a store to it would go unnoticed");
                }
            }
            (PageState::Hole | PageState::Unwritten(_), Some(_)) => return wrong("an entry names a block"),
            (PageState::Written(_), None) => return wrong("an entry shows zeros"),
        }
        let marked = !window.dirty.marked(window.own(PageRange::one(page))).is_empty();
        // Of an asynchronous window the entry itself is the record.
        if entry.writable && !marked && !window.is_asynchronous() && !window.is_open() {
            return wrong("a store to it would go unnoticed");
        }
        Ok(())
    }
}
