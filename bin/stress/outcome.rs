//! What a run has found and counted: the one thing that the table, the JSON file and the HTML page are made from.

use serde::Serialize;

/// Everything about one run.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// "ok", or "violation".
    pub(crate) verdict: String,
    pub(crate) version: String,
    /// The kernel's release, and how many CPUs the run may use.
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) seed: u64,
    pub(crate) scenario: String,
    /// What the seed drew: name and value, in the order in which they are printed.
    pub(crate) options: Vec<(String, String)>,
    /// Broken rules, and faults put in.
    pub(crate) sabotage: Vec<String>,
    pub(crate) inject: Vec<String>,
    /// The command that runs it again.
    pub(crate) again: String,
    pub(crate) seconds: f64,
    /// The signal that ended it early.
    pub(crate) ended_by: Option<&'static str>,
    /// Rounds, each of which ended with everything at rest and compared with the device.
    pub(crate) rounds: u64,
    /// Operations by kind, each with what became of it.
    pub(crate) operations: Vec<OperationCount>,
    pub(crate) faults: Vec<FaultKind>,
    /// The pager's counters: installs, retries and so on.
    pub(crate) counters: Vec<(String, u64)>,
    /// System calls of the pager, by name.
    pub(crate) calls: Vec<(String, u64)>,
    /// Values judged by the oracle; and those left unjudged because its memory is bounded.
    pub(crate) judged: u64,
    pub(crate) unjudged: u64,
    /// Words that were parts of a copy, and allowed for that.
    pub(crate) parts: u64,
    /// Comparisons of single words at rest.
    pub(crate) compared_at_rest: u64,
    pub(crate) longest_wait: Option<LongestWait>,
    pub(crate) samples: Vec<Sample>,
    /// Pages over time: around the first violation, or of one file if there was none.
    pub(crate) map: Option<PageMap>,
    /// At most 16; `violation_count` has all of them.
    pub(crate) violations: Vec<Violation>,
    pub(crate) violation_count: u64,
}

#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct OperationCount {
    pub(crate) name: String,
    pub(crate) done: u64,
    /// Ended in SIGBUS, EFAULT or an error that was allowed.
    pub(crate) refused: u64,
    pub(crate) longest_ns: u64,
    pub(crate) longest_thread: String,
}

/// One kind of fault: how many, and how long from the message to the answer.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct FaultKind {
    pub(crate) name: String,
    pub(crate) faults: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
    /// Upper border in nanoseconds and count of each bucket that is not empty, in order.
    pub(crate) histogram: Vec<(u64, u64)>,
}

/// The single operation that took longest.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct LongestWait {
    pub(crate) ns: u64,
    pub(crate) operation: String,
    pub(crate) thread: String,
}

/// One moment of a run; counts are since its start.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) accesses: u64,
    pub(crate) invalidations: u64,
    pub(crate) faults: u64,
    pub(crate) retries: u64,
    pub(crate) violations: u64,
}

/// What a page is, as seen from outside.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PageLook {
    Hole,
    Clean,
    Dirty,
    Sigbus,
}

/// Pages over time.
#[derive(Serialize, Clone, Debug, Default)]
pub(crate) struct PageMap {
    pub(crate) file: String,
    /// Seconds since the start of the run, one for each column.
    pub(crate) times: Vec<f64>,
    /// One row for each page; as many looks as there are times.
    pub(crate) rows: Vec<PageRow>,
    /// The violation, as (page, index into `times`).
    pub(crate) mark: Option<(u64, usize)>,
}

#[derive(Serialize, Clone, Debug)]
pub(crate) struct PageRow {
    pub(crate) page: u64,
    pub(crate) looks: Vec<PageLook>,
}

/// Something that must not be.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Violation {
    /// One of the oracle's names: foreign, stale, lost, torn, sigbus, no-sigbus, dirty, blocks, hang, ...
    pub(crate) kind: String,
    /// One sentence.
    pub(crate) what: String,
    pub(crate) seconds: f64,
    /// Operations of all threads until then.
    pub(crate) operations: u64,
    pub(crate) operation: String,
    pub(crate) thread: String,
    pub(crate) file: String,
    pub(crate) page: u64,
    pub(crate) address: Option<u64>,
    /// How the mapping there was made.
    pub(crate) mapping: Option<String>,
    /// In words, and as the bytes in memory.
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) found_bytes: String,
    /// The page's last events from all threads, oldest first.
    pub(crate) events: Vec<PageEvent>,
    /// The pager's state, if a thread hangs.
    pub(crate) pager: Option<String>,
}

#[derive(Serialize, Clone, Debug)]
pub(crate) struct PageEvent {
    /// Its place in the order of all events.
    pub(crate) ticket: u64,
    pub(crate) seconds: f64,
    pub(crate) thread: String,
    pub(crate) what: String,
}
