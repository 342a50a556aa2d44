//! What an embedder can choose for each mapping.

use crate::units::LARGEST_WINDOW;

/// In which thread the faults of a mapping are resolved. The decisions and the locks are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum Resolve {
    /// In a thread of the pager, while the faulting thread sleeps: two context switches a fault. Serves
    /// faults from inside system calls too.
    #[default]
    PagerThread,
}

/// How stores through a mapping are noticed, for [`Mapping::take_dirty`](crate::Mapping::take_dirty).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum Tracking {
    /// Page by page: the first store to each page is a fault.
    #[default]
    Exact,
    /// The neighbours that are installed along with a page that is stored to are writable as well, and reported
    /// as dirty as well: never too few pages, sometimes too many, and far fewer faults.
    Coarse,
}

/// How a mapping is to be. For [`Pager::map_with`](crate::Pager::map_with).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOptions {
    pub(crate) resolve: Resolve,
    pub(crate) tracking: Tracking,
    /// In bytes.
    pub(crate) fault_around: u64,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self { resolve: Resolve::default(), tracking: Tracking::default(), fault_around: LARGEST_WINDOW }
    }
}

impl MapOptions {
    /// Resolved by the pager's threads, tracked exactly, with fault-around.
    pub fn new() -> Self {
        Self::default()
    }

    /// In which thread faults are resolved.
    pub fn resolve(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        self
    }

    /// How stores are noticed.
    pub fn tracking(mut self, tracking: Tracking) -> Self {
        self.tracking = tracking;
        self
    }

    /// How many bytes one fault may install at most, when the faults before it were sequential: 2 MiB unless set,
    /// and no more than that. Anything up to the size of a page turns fault-around off.
    pub fn fault_around(mut self, bytes: u64) -> Self {
        self.fault_around = bytes.min(LARGEST_WINDOW);
        self
    }
}
