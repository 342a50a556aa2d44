//! A device, its blocks, and who may have them. Knows nothing of files.

pub(crate) mod allocator;
pub(crate) mod device;
pub(crate) mod store;
