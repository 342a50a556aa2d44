//! A device, its blocks, and who may have them. Knows nothing of files.

pub(crate) mod allocator;
pub(crate) mod capacity;
pub(crate) mod device;
pub(crate) mod store;

use crate::units::BlockIndex;

/// Consecutive blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) start: BlockIndex,
    pub(crate) blocks: u64,
}
