//! What the process's addresses show: the map of regions, and what the threads of one pager share.

pub(crate) mod advised;
pub(crate) mod budget;
pub(crate) mod core;
pub(crate) mod layout;
pub(crate) mod regions;
pub(crate) mod starvation;
pub(crate) mod stats;
