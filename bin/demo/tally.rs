//! What the load counts.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// What the threads have done and seen.
#[derive(Default)]
pub(crate) struct Tally {
    /// Loads of zero, and of words stored before.
    pub(crate) zeros: AtomicU64,
    pub(crate) words: AtomicU64,
    pub(crate) stores: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    /// Loads and stores above the floor that ended in SIGBUS: the end of the file was lower.
    pub(crate) past_end: AtomicU64,
    /// Content pages compared.
    pub(crate) content: AtomicU64,
    /// The first word of somebody else's.
    pub(crate) foreign: OnceLock<String>,
    /// The first call that failed as it must not.
    pub(crate) failure: OnceLock<String>,
}
