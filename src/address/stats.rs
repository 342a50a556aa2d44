//! What a pager has done, in numbers. Counters are relaxed: each is exact, but two of them
//! may be of slightly different moments.

use std::time::Duration;

use crate::policy::{Access, FaultKind};
use crate::sync::{Ordering, Tally};
use crate::sys::{Calls, RawFault};

/// The kinds of fault that are counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(usize)]
pub enum Kind {
    /// A load with no entry, where the device has no page in its page cache: holes.
    MissingLoad,
    /// A store with no entry, likewise.
    MissingStore,
    /// A load with no entry, the device's page being there.
    MinorLoad,
    /// A store with no entry, likewise.
    MinorStore,
    /// A store to a write-protected entry.
    WriteProtect,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 5] =
        [Kind::MissingLoad, Kind::MissingStore, Kind::MinorLoad, Kind::MinorStore, Kind::WriteProtect];

    /// The kind's name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::MissingLoad => "missing, load",
            Kind::MissingStore => "missing, store",
            Kind::MinorLoad => "minor, load",
            Kind::MinorStore => "minor, store",
            Kind::WriteProtect => "write-protect",
        }
    }

    pub(crate) fn of(fault: &RawFault) -> Self {
        match (fault.kind, fault.access) {
            (FaultKind::WriteProtect, _) => Kind::WriteProtect,
            (FaultKind::Missing, Access::Load) => Kind::MissingLoad,
            (FaultKind::Missing, Access::Store) => Kind::MissingStore,
            (FaultKind::Minor, Access::Load) => Kind::MinorLoad,
            (FaultKind::Minor, Access::Store) => Kind::MinorStore,
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(crate) struct Counters {
            pub(crate) faults: [Tally; 5],
            $(pub(crate) $name: Tally,)*
        }

        /// What a pager has done so far.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Stats {
            /// Fault messages read, by [`Kind`].
            pub faults: [u64; 5],
            $($(#[$doc])* pub $name: u64,)*
            /// System calls made for them.
            pub calls: Calls,
            /// Faults handed to the workers and not taken up yet.
            pub queued: u64,
            /// Address ranges (VMAs) that the mappings take now.
            pub address_ranges: u64,
        }

        impl Counters {
            /// All but the faults, by name.
            pub(crate) fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }

            pub(crate) fn snapshot(&self) -> Stats {
                Stats {
                    faults: std::array::from_fn(|kind| self.faults[kind].load(Ordering::Relaxed)),
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    ..Stats::default()
                }
            }
        }
    };
}

counters! {
    /// Blocks installed, writable or not.
    installs,
    /// Faults answered by installing blocks: one, or several that follow each other.
    runs,
    /// Pages of zeros installed.
    zeros,
    /// Faults answered by opening write-protected entries for stores: one, or several that follow each other.
    unprotects,
    /// Holes that a store has filled.
    allocations,
    /// Holes of files with windows in which pages were put ahead of the accesses that are expected there: zeros for loads; pages of the
    /// file's, with asynchronous tracking.
    ahead,
    /// Unwritten pages that a store has made written.
    conversions,
    /// Faults answered by a wake alone: what they were about was gone, or another thread was first.
    retries,
    /// Faults past the end of the file, or of stores that found the volume full.
    sigbus,
    /// Address ranges pointed elsewhere.
    repoints,
    /// Faults that the very thread has resolved that had them.
    in_thread,
    /// Faults that the reader, or a thread that resolves its own, handed to a worker.
    handed_over,
    /// Times that a fault was looked at again because something had to be prepared or was busy.
    rounds,
    /// Stores served though their threads were not seen asleep: they had been woken before, to no avail.
    insistent,
    /// Stores without a block that no signal could end: their page was poisoned for a moment. Loads by the CPU do not notice.
    poisoned,
    /// Times that invalidations were asked to leave a page alone for a while.
    graces,
    /// Faults at addresses that the pager does not know: the application moved a mapping.
    unknown_addresses,
    /// Address ranges given up because the process was running out of them.
    evictions,
    /// Faults that ended in SIGBUS because the process had no address range, or the kernel no memory, left for them.
    shortages,
    /// Faults that found the device without the page that a file has there.
    lost_pages,
}

impl Counters {
    pub(crate) fn add(&self, counter: &Tally) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, kind: Kind) {
        self.add(&self.faults[kind as usize]);
    }
}

impl Stats {
    /// Fault messages of one kind.
    pub fn faults_of(&self, kind: Kind) -> u64 {
        self.faults[kind as usize]
    }

    /// Fault messages of all kinds.
    pub fn all_faults(&self) -> u64 {
        self.faults.iter().sum()
    }
}

/// Sub-buckets for each power of two: a bucket is at most an eighth wide of what it counts.
const FINE: usize = 8;
const BUCKETS: usize = 64 * FINE;

/// How long faults took from the read of their message to their answer, one histogram a kind.
/// Recording is one relaxed add: any thread may do it at any time.
pub(crate) struct Latencies {
    counts: Vec<[Tally; BUCKETS]>,
    max_ns: [Tally; 5],
}

fn bucket_of(ns: u64) -> usize {
    let ns = ns.max(FINE as u64);
    let power = 63 - ns.leading_zeros() as usize;
    let fine = (ns >> (power - 3)) as usize % FINE;
    power * FINE + fine
}

/// The largest value that falls into a bucket.
fn bucket_top(bucket: usize) -> u64 {
    let (power, fine) = (bucket / FINE, (bucket % FINE) as u64);
    ((FINE as u64 + fine + 1) << (power - 3)) - 1
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let counts = Kind::ALL.iter().map(|_| std::array::from_fn(|_| Tally::new(0))).collect();
        Self { counts, max_ns: Default::default() }
    }

    pub(crate) fn record(&self, kind: Kind, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[kind as usize][bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns[kind as usize].fetch_max(ns, Ordering::Relaxed);
    }

    fn counts(&self, kind: Kind) -> Vec<u64> {
        self.counts[kind as usize].iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// The largest time of each bucket that is not empty, in nanoseconds, and how many faults are in it.
    pub(crate) fn histogram(&self, kind: Kind) -> Vec<(u64, u64)> {
        let counts = self.counts(kind).into_iter().enumerate();
        counts.filter(|(_, count)| *count > 0).map(|(bucket, count)| (bucket_top(bucket), count)).collect()
    }

    pub(crate) fn summary(&self, kind: Kind) -> LatencySummary {
        let counts = self.counts(kind);
        let faults: u64 = counts.iter().sum();
        let max_ns = self.max_ns[kind as usize].load(Ordering::Relaxed);
        let quantile = |share: f64| {
            let rank = (faults as f64 * share).ceil() as u64;
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank.max(1)
            });
            bucket.map_or(0, |bucket| bucket_top(bucket).min(max_ns))
        };
        LatencySummary { faults, p50_ns: quantile(0.5), p99_ns: quantile(0.99), p999_ns: quantile(0.999), max_ns }
    }
}

/// How long one kind of fault took, from the read of its message to its answer. Quantiles are
/// exact to an eighth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct LatencySummary {
    /// Faults measured.
    pub faults: u64,
    /// The median in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1000 took no longer.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_it_says() {
        for ns in (8..5_000u64).chain([1 << 20, (1 << 20) + 1, u64::MAX / 2]) {
            let bucket = bucket_of(ns);
            assert!(ns <= bucket_top(bucket), "{ns} in {bucket}");
            assert!(bucket == 3 * FINE || ns > bucket_top(bucket - 1), "{ns} in {bucket}");
            assert!((bucket_top(bucket) as f64) < ns as f64 * 1.126);
        }
    }

    #[test]
    fn quantiles_of_known_values() {
        let latencies = Latencies::new();
        for ns in 1..=1000u64 {
            latencies.record(Kind::MinorLoad, Duration::from_nanos(ns * 100));
        }
        let summary = latencies.summary(Kind::MinorLoad);
        assert_eq!((summary.faults, summary.max_ns), (1000, 100_000));
        assert!((50_000..=56_250).contains(&summary.p50_ns), "{summary:?}");
        assert!((99_000..=100_000).contains(&summary.p99_ns), "{summary:?}");
        assert_eq!(latencies.summary(Kind::MissingLoad), LatencySummary::default());
    }

    #[test]
    fn a_histogram_has_every_fault_under_its_border() {
        let latencies = Latencies::new();
        for ns in [3, 9, 9, 1_000, 1_001, 70_000] {
            latencies.record(Kind::WriteProtect, Duration::from_nanos(ns));
        }
        assert_eq!(latencies.histogram(Kind::WriteProtect), [(8, 1), (9, 2), (1_023, 2), (73_727, 1)]);
        assert_eq!(latencies.histogram(Kind::MinorLoad), []);
    }
}
