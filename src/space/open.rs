//! Mappings of files with windows that let stores through to what is present, and nobody is told: those that are not tracked
//! (`Tracking::Off`), where the kernel installs it by itself, and those that the kernel tracks (`Tracking::Asynchronous`).
//!
//! A store to a page that is present in the device and that the file calls a hole, or unwritten, would be lost: it reads as zeros, and is
//! taken back. So, while a file has such a mapping,
//!
//! > what is present in its windows is written.
//!
//! | what would leave a page that is not | and so |
//! |---|---|
//! | loads before the mapping was there | [`Change::add_window`] takes those zeros out of the device |
//! | a load of a hole, in any mapping | takes a page, as a store does: the fault table ([`View::open`](crate::policy::View)). It is taken back as zeros are ([`super::preallocation`]), unless somebody keeps no record of stores |
//! | a write that the device refuses halfway | what it has left is written: `Inode::keep_what_is_there` |
//!
//! ```text
//! a load of X, by a tracked mapping                 an open mapping is made
//!   L2 shared: no mapping is open
//!   X is a hole: zeros installed, protected
//!   unlock
//!                                                     L2 exclusive: one is open now
//!                                                     X is punched, in every mapping
//!                                                     unlock. Now somebody has its address
//!                                                     store to X: faults, takes a page
//! ```

use super::extents::Extent;
use super::{Change, State, Window};
use crate::blocks::store::Store;
use crate::sabotage::Rule;
use crate::sync::Arc;
use crate::sys::Protection;
use crate::units::{PageIndex, PageRange};

impl State {
    /// Whether some mapping lets stores through to what is present.
    pub(super) fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Whether some mapping does, and keeps no record of them: stores cannot be kept out of what is present there.
    pub(super) fn is_untracked(&self) -> bool {
        self.untracked > 0
    }
}

impl Window {
    /// How a page is installed here for which a load, or a store, would have it installed like that.
    pub(super) fn protection(&self, protection: Protection) -> Protection {
        if self.is_open() { Protection::Writable } else { protection }
    }
}

impl Change<'_> {
    /// Whether some mapping lets stores through to what is present.
    pub(crate) fn is_open(&self) -> bool {
        self.state.is_open()
    }

    /// Before anybody has its address.
    pub(crate) fn add_window(&mut self, store: &Store, window: Arc<Window>) {
        if window.lets_stores_through() && !store.broken(Rule::PresentIsWritten) {
            self.state.open += 1;
            if window.is_open() {
                self.state.untracked += 1;
                self.keep(PageRange::from(PageIndex(0)));
            }
            let pages = window.pages();
            self.take_zeros_back(pages, false);
            let unwritten: Vec<Extent> = self.extents().within(pages).filter(|extent| !extent.written).collect();
            unwritten.into_iter().for_each(|extent| self.unwrite(extent));
        }
        self.state.windows.insert(window);
    }
}
