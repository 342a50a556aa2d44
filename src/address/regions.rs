//! The pager's map of the address space: which region shows which file, and what its parts point at.

use std::collections::BTreeMap;

use crate::address::advised::Advised;
use crate::address::budget::Share;
use crate::address::layout::Layout;
use crate::inode::Inode;
use crate::policy::Backing;
use crate::space::Window;
use crate::sync::Arc;
use crate::units::{Addr, PageIndex, PageRange};

/// A mapping as the pager sees it.
pub(crate) struct Region {
    pub(crate) inode: Arc<Inode>,
    pub(crate) window: Arc<Window>,
    pub(crate) layout: Layout,
    /// What the embedder has said of how it will be accessed.
    pub(crate) advised: Advised,
    /// Where the next eviction begins.
    cursor: PageIndex,
}

impl Region {
    pub(crate) fn new(inode: Arc<Inode>, window: Arc<Window>) -> Self {
        let (layout, cursor) = (Layout::new(window.pages()), window.pages().start);
        Self { inode, window, layout, advised: Advised::default(), cursor }
    }

    /// The piece with which the next eviction begins: round and round, so that what has just been put
    /// right is given up last.
    pub(crate) fn eviction_cursor(&self) -> PageIndex {
        self.layout.piece(self.cursor).start
    }

    pub(crate) fn evicted_up_to(&mut self, end: PageIndex) {
        let pages = self.window.pages();
        self.cursor = if end < pages.end { end } else { pages.start };
    }
}

/// Regions by address. They never overlap.
pub(crate) struct Regions {
    by_addr: BTreeMap<usize, Region>,
    /// The address ranges that all of them take.
    share: Arc<Share>,
}

impl Regions {
    /// None yet, whose address ranges will count as `share`.
    pub(crate) fn new(share: Arc<Share>) -> Self {
        Self { by_addr: BTreeMap::new(), share }
    }

    pub(crate) fn find(&self, at: Addr) -> Option<&Region> {
        let (_, region) = self.by_addr.range(..=at.0).next_back()?;
        (at.since(region.window.base()) < region.window.bytes()).then_some(region)
    }

    /// The region of `window`, unless it is gone, or another is at its address by now.
    pub(crate) fn of(&mut self, window: &Arc<Window>) -> Option<&mut Region> {
        let region = self.by_addr.get_mut(&window.base().0)?;
        Arc::ptr_eq(&region.window, window).then_some(region)
    }

    pub(crate) fn insert(&mut self, region: Region) {
        self.share.count(0, region.layout.pieces());
        self.by_addr.insert(region.window.base().0, region);
    }

    /// The last region that has a part of a range.
    pub(crate) fn overlapping(&self, at: Addr, bytes: u64) -> Option<&Region> {
        let (_, region) = self.by_addr.range(..at.plus(bytes).0).next_back()?;
        (region.window.base().plus(region.window.bytes()) > at).then_some(region)
    }

    /// Takes a region out, if it is not gone already.
    pub(crate) fn remove(&mut self, window: &Arc<Window>) {
        let Some(pieces) = self.of(window).map(|region| region.layout.pieces()) else { return };
        self.share.count(pieces, 0);
        self.by_addr.remove(&window.base().0);
    }

    /// All of them, by address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.by_addr.values()
    }

    pub(crate) fn first(&self) -> Option<&Region> {
        self.by_addr.values().next()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_addr.len()
    }

    /// Records that a range of a window points at `first` and what follows.
    pub(crate) fn repointed(&mut self, window: &Arc<Window>, range: PageRange, first: Backing) {
        let Some(region) = self.of(window) else { return };
        let before = region.layout.pieces();
        region.layout.set(range, first);
        let now = region.layout.pieces();
        self.share.count(before, now);
    }

    /// Address ranges that all regions take together.
    pub(crate) fn pieces(&self) -> u64 {
        self.share.pieces()
    }

    /// The region that takes the most address ranges.
    pub(crate) fn most_pieces(&mut self) -> Option<&mut Region> {
        // What shows windows shows them for good.
        let pointed = self.by_addr.values_mut().filter(|region| region.inode.store.capacity().is_none());
        pointed.max_by_key(|region| region.layout.pieces())
    }
}
