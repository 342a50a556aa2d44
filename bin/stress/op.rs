//! What threads do, by name, and how often it was done.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::OperationCount;

macro_rules! ops {
    ($($name:ident = $text:literal,)*) => {
        /// One kind of operation.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub(crate) enum Op { $($name,)* }

        impl Op {
            pub(crate) const ALL: &[Op] = &[$(Op::$name,)*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }
    };
}

ops! {
    Load = "load",
    Store = "store",
    Exchange = "compare-and-swap",
    CopyOut = "memcpy out",
    CopyIn = "memcpy in",
    SysIn = "read(2) into",
    SysOut = "write(2) from",
    MapRead = "Mapping::read_at",
    MapWrite = "Mapping::write_at",
    Raw = "process_vm_readv",
    Populate = "populate",
    Advise = "advise",
    Truncate = "truncate",
    Punch = "punch hole",
    ZeroRange = "zero range",
    Allocate = "allocate",
    FileRead = "File::read_at",
    FileWrite = "File::write_at",
    FileReadMapped = "read_at, mapped buffer",
    FileWriteMapped = "write_at, mapped buffer",
    Churn = "create, write, remove",
    Inspect = "extents, list",
    Map = "map",
    Unmap = "unmap",
    TakeDirty = "take dirty",
}

impl Op {
    pub(crate) fn is_invalidation(self) -> bool {
        matches!(self, Op::Truncate | Op::Punch | Op::ZeroRange | Op::FileWrite | Op::Churn | Op::Unmap)
    }

    pub(crate) fn is_access(self) -> bool {
        (self as usize) < Op::Truncate as usize
    }
}

/// Counts of one kind of operation.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
    longest_ns: AtomicU64,
    /// Whose it was, or nearly the same long one's.
    longest_thread: AtomicU64,
}

/// Counts of all kinds, shared by all threads.
pub(crate) struct Tallies(Vec<Tally>);

impl Default for Tallies {
    fn default() -> Self {
        Self(Op::ALL.iter().map(|_| Tally::default()).collect())
    }
}

impl Tallies {
    pub(crate) fn count(&self, op: Op, thread: u8, refused: bool, ns: u64) {
        let tally = &self.0[op as usize];
        tally.done.fetch_add(1, Ordering::Relaxed);
        if tally.longest_ns.fetch_max(ns, Ordering::Relaxed) < ns {
            tally.longest_thread.store(u64::from(thread), Ordering::Relaxed);
        }
        if refused {
            tally.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn sum(&self, of: impl Fn(Op) -> bool) -> u64 {
        let done = |op: &&Op| self.0[**op as usize].done.load(Ordering::Relaxed);
        Op::ALL.iter().filter(|op| of(**op)).map(|op| done(&op)).sum()
    }

    pub(crate) fn counts(&self) -> Vec<OperationCount> {
        let count = |op: &Op| {
            let tally = &self.0[*op as usize];
            OperationCount {
                name: op.name().to_owned(),
                done: tally.done.load(Ordering::Relaxed),
                refused: tally.refused.load(Ordering::Relaxed),
                longest_ns: tally.longest_ns.load(Ordering::Relaxed),
                longest_thread: tally.longest_thread.load(Ordering::Relaxed).to_string(),
            }
        };
        Op::ALL.iter().map(count).filter(|count| count.done > 0).collect()
    }
}
