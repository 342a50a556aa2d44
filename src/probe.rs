//! Named points in the life of a fault and of an invalidation, at which an observer is told what
//! is going on, and may hold the thread there. Tests park threads at them, the demo narrates them.

use crate::units::{BlockIndex, PageIndex};

/// Where a thread is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Point {
    /// A fault has arrived in the reader. No lock is held.
    FaultRead,
    /// A worker has taken a fault up. No lock is held.
    FaultTaken,
    /// The size has been looked at, too early (only with a broken rule). No file's lock is held.
    SizeSeen,
    /// The fault has been looked up and decided; the file's lock is held shared (unless a broken rule has dropped it).
    Decided,
    /// What the fault needs has been prepared, a block or a re-pointed range. No lock is held, and
    /// everything will be looked up again.
    Prepared,
    /// A block for a hole has been allocated and zeroed, and nobody else knows it. No lock is held.
    Allocated,
    /// A range is about to be re-pointed. The pager's map of regions is held exclusively, no file's lock.
    Repointing,
    /// The fault has been answered, and its thread woken. The file's lock is still held shared.
    Answered,
    /// A control operation is about to take the file's lock exclusively.
    BeforeInvalidate,
    /// Zeros that loads have left in holes have been found, and are about to be taken back. No lock is held; they are looked for again.
    BeforeZerosGo,
    /// A control operation has published the new size and extents, and not zapped yet. The lock is held exclusively.
    Published,
    /// A control operation has zapped and dropped the lock; the blocks it took away are not free yet.
    Invalidated,
    /// The blocks are free, and may belong to somebody else already.
    Freed,
    /// Dirty pages have been protected and not been forgotten (only with a broken rule). No lock is held.
    Collecting,
    /// A mapping is about to be unmapped. No lock is held.
    BeforeUnmap,
    /// A mapping has been unmapped; the pager's map of regions is still held exclusively.
    Unmapped,
}

/// What an observer is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where the thread is.
    pub point: Point,
    /// The file concerned, as [`File::number`](crate::File::number) gives it; `None` where the thread does not
    /// wait to find out.
    pub file: Option<u64>,
    /// The page concerned, counted in its file; the first one of a range.
    pub page: PageIndex,
    /// The block concerned, if there is one.
    pub block: Option<BlockIndex>,
}

/// Told at every [`Point`]. Called by the pager's own threads and by whoever calls the library,
/// some with locks held: it must not call the library back, and must not touch mapped memory.
///
/// Of mappings with [`Resolve::FaultingThread`](crate::Resolve::FaultingThread) it is also called by the thread that has the fault,
/// inside a signal handler with every signal blocked: there it must not allocate, wait for a lock that the interrupted code
/// may hold, or print.
///
/// A panic in a thread of the pager, or in a handler, ends the pager: every mapping is a SIGBUS from then on. A panic in a call
/// of the library passes to the caller once the call has done what keeps others safe. One that forks must not return
/// in the child, which is ended (SIGABRT).
pub trait Probe: Send + Sync {
    /// The thread is at `event.point`, and stays there until this returns.
    fn at(&self, event: Event);
}
