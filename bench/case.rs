//! What can be measured, and what comes of it: the words that the bench and its processes speak.

use serde::{Deserialize, Serialize};

/// How the CPUs are given out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Regime {
    /// All threads on one CPU.
    Pinned,
    /// As the scheduler likes.
    Free,
    /// The threads that fault on one CPU, those of the contender on another.
    Apart,
}

impl Regime {
    /// Those that everything is measured in.
    pub(crate) const ALL: [Regime; 2] = [Regime::Pinned, Regime::Free];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Regime::Pinned => "pinned",
            Regime::Free => "free",
            Regime::Apart => "apart",
        }
    }
}

/// Who answers a fault of the library's mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Resolve {
    PagerThread,
    FaultingThread,
}

/// How it learns of stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tracking {
    Exact,
    Coarse,
    Asynchronous,
    Off,
}

/// The library's options for one mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    pub(crate) resolve: Resolve,
    pub(crate) tracking: Tracking,
    /// Bytes at most that one fault installs; 0 is the page itself, `None` what the library does unless told.
    pub(crate) around: Option<u64>,
    /// Whether the reader stays awake.
    pub(crate) busy: bool,
    /// Whether the file has windows.
    pub(crate) windows: bool,
}

impl Options {
    pub(crate) const DEFAULT: Options =
        Options { resolve: Resolve::PagerThread, tracking: Tracking::Exact, around: None, busy: false, windows: false };

    pub(crate) fn one_page(self) -> Self {
        Self { around: Some(0), ..self }
    }

    pub(crate) fn around(self, bytes: u64) -> Self {
        Self { around: Some(bytes), ..self }
    }

    pub(crate) fn busy(self) -> Self {
        Self { busy: true, ..self }
    }

    pub(crate) fn in_windows(self) -> Self {
        Self { windows: true, ..self }
    }

    pub(crate) fn in_faulting_thread(self) -> Self {
        Self { resolve: Resolve::FaultingThread, ..self }
    }

    pub(crate) fn tracking(self, tracking: Tracking) -> Self {
        Self { tracking, ..self }
    }

    fn name(self) -> String {
        let mut name = String::from("daxpager");
        if self.resolve == Resolve::FaultingThread {
            name.push_str(", in thread");
        }
        match self.tracking {
            Tracking::Exact => {}
            Tracking::Coarse => name.push_str(", coarse"),
            Tracking::Asynchronous => name.push_str(", async"),
            Tracking::Off => name.push_str(", untracked"),
        }
        match self.around {
            None => {}
            Some(0) => name.push_str(", 1 page"),
            Some(bytes) => name.push_str(&format!(", {} KiB", bytes >> 10)),
        }
        if self.windows {
            name.push_str(", windows");
        }
        if self.busy {
            name.push_str(", awake");
        }
        name
    }
}

/// Whoever has the pages put in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// mmap of a memfd, with the kernel's default fault-around.
    Kernel,
    /// The same without.
    KernelOnePage,
    /// The same, protected against stores, which the kernel lets through and notes (`WP_ASYNC`).
    KernelAsync,
    /// Registered for missing and write-protect faults, and armed: the kernel installs what is there, protected.
    KernelArmed,
    /// One thread: poll, read, one ioctl.
    BareLoop,
    /// A signal handler: one ioctl.
    BareHandler,
    Dax(Options),
    /// A program of somebody else's: its name, and where it is.
    Other(String, String),
}

impl Contender {
    pub(crate) fn name(&self) -> String {
        match self {
            Contender::Kernel => "kernel".into(),
            Contender::KernelOnePage => "kernel, 1 page".into(),
            Contender::KernelAsync => "kernel, WP_ASYNC".into(),
            Contender::KernelArmed => "kernel, armed".into(),
            Contender::BareLoop => "bare loop".into(),
            Contender::BareHandler => "bare handler".into(),
            Contender::Dax(options) => options.name(),
            Contender::Other(name, _) => name.clone(),
        }
    }
}

/// What is done to the pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    RandomRead,
    RandomWrite,
    SequentialRead,
    SequentialWrite,
    /// Each page mapped, and protected against stores; stored to in random order.
    WriteAfterProtect,
    /// A store to each page of a file that is all hole, in order.
    HoleWrite,
    /// The same in random order.
    RandomHoleWrite,
    /// A load of each page of a file that is all hole, in random order.
    RandomHoleRead,
    /// The same in order.
    HoleRead,
    /// A store to one page in each so many of a file that is all hole, in random order.
    SparseHoleWrite {
        apart: u64,
    },
    /// Random pages of a file that has many more.
    SparseRead {
        file_pages: u64,
    },
    /// Every page stored to: which ones are they? And protect them again.
    Collect,
    /// Every page mapped: taken away by a hole punch.
    Punch,
    /// The same, each page by a punch of its own, and the memory goes back.
    PunchPages,
    /// The same, by punches of so many pages.
    PunchRuns {
        run: u64,
    },
    /// A page written by a call, and punched where a mapping shows it, while there are so many of four pages each: of parts of one file,
    /// or each of a file of its own.
    PunchAmong {
        mappings: u64,
        own_files: bool,
    },
    /// Each page by a call of its own: read_at, and pread(2).
    ReadCalls,
    /// Likewise: write_at over what is there, and pwrite(2).
    WriteCalls,
    /// Every page mapped: taken away by a truncate.
    Truncate,
    /// Random pages of a file of so many extents, address ranges being in place.
    Extents {
        extents: u64,
        blocks: u64,
    },
    /// A terabyte mapped, and then `pages` of it loaded.
    MapSparse,
    /// A load of one page in each 2 MiB of holes, in order.
    HoleReadFar,
    /// Every page stored to in random order, and then loaded.
    StoreThenLoad,
    /// Every page written by a call, and loaded once.
    WriteThenLoad,
    /// So many files as there are pages: created, listed and removed; each hundredth has a page.
    ManyFiles,
    /// Sequential read of huge pages; of small ones by the kernel.
    HugeRead,
    /// Random read while another thread punches elsewhere in the file.
    ReadBesidePuncher,
}

impl Work {
    /// Those that every contender does.
    pub(crate) const PATTERNS: [Work; 6] = [
        Work::RandomRead,
        Work::RandomWrite,
        Work::SequentialRead,
        Work::SequentialWrite,
        Work::WriteAfterProtect,
        Work::HoleWrite,
    ];

    pub(crate) fn name(self) -> String {
        match self {
            Work::RandomRead => "random read".into(),
            Work::RandomWrite => "random write".into(),
            Work::SequentialRead => "sequential read".into(),
            Work::SequentialWrite => "sequential write".into(),
            Work::WriteAfterProtect => "write after protect".into(),
            Work::HoleWrite => "hole write".into(),
            Work::RandomHoleWrite => "random hole write".into(),
            Work::RandomHoleRead => "random hole read".into(),
            Work::HoleRead => "hole read".into(),
            Work::SparseHoleWrite { apart } => format!("random hole write, one page in {apart}"),
            Work::SparseRead { file_pages } => format!("random read of a file of {} MiB", file_pages >> 8),
            Work::Collect => "collect dirty pages".into(),
            Work::Punch => "punch mapped pages".into(),
            Work::ReadCalls => "read calls of a page".into(),
            Work::WriteCalls => "write calls of a page".into(),
            Work::PunchPages => "punch mapped pages, one by one".into(),
            Work::PunchRuns { run } => format!("punch mapped pages, {run} at a time"),
            Work::PunchAmong { mappings, own_files: false } => format!("write and punch among {mappings} mappings"),
            Work::PunchAmong { mappings, own_files: true } => format!("write and punch among {mappings} mapped files"),
            Work::Truncate => "truncate mapped pages".into(),
            Work::Extents { extents, .. } => format!("random read, {extents} extents"),
            Work::MapSparse => "map 1 TiB".into(),
            Work::HoleReadFar => "hole read, one page in each 2 MiB".into(),
            Work::StoreThenLoad => "random hole write, then random read".into(),
            Work::WriteThenLoad => "write calls, then sequential read".into(),
            Work::ManyFiles => "many files".into(),
            Work::HugeRead => "sequential read of huge pages".into(),
            Work::ReadBesidePuncher => "random read beside a puncher".into(),
        }
    }

    /// The name that other people's programs are given.
    pub(crate) fn word(self) -> Option<&'static str> {
        Some(match self {
            Work::RandomRead => "random-read",
            Work::RandomWrite => "random-write",
            Work::SequentialRead => "sequential-read",
            Work::SequentialWrite => "sequential-write",
            Work::WriteAfterProtect => "write-after-protect",
            Work::HoleWrite => "hole-write",
            _ => return None,
        })
    }

    pub(crate) fn is_store(self) -> bool {
        use Work::*;
        matches!(
            self,
            RandomWrite | SequentialWrite | WriteAfterProtect | HoleWrite | RandomHoleWrite | SparseHoleWrite { .. }
        )
    }

    /// Whether the file is all hole.
    pub(crate) fn is_hole(self) -> bool {
        use Work::*;
        matches!(self, HoleWrite | RandomHoleWrite | RandomHoleRead | HoleRead | SparseHoleWrite { .. })
    }

    pub(crate) fn is_random(self) -> bool {
        use Work::*;
        !matches!(self, SequentialRead | SequentialWrite | HoleWrite | HoleRead | HugeRead)
    }
}

/// One thing to be measured, in a process of its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) work: Work,
    pub(crate) threads: usize,
    pub(crate) regime: Regime,
    /// Pages that are touched.
    pub(crate) pages: u64,
    pub(crate) contender: Contender,
}

impl Case {
    /// The pages that its file has.
    pub(crate) fn file_pages(&self) -> u64 {
        match self.work {
            Work::SparseRead { file_pages } => file_pages,
            Work::SparseHoleWrite { apart } => self.pages * apart,
            _ => self.pages,
        }
    }
}

/// What one process has measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    /// The median of its laps.
    pub(crate) ns_per_page: f64,
    pub(crate) laps: u64,
    /// Pages that were touched in the laps that were counted.
    pub(crate) pages: u64,
    /// Faults that the contender was asked about.
    pub(crate) faults: u64,
    /// System calls that it made for them.
    pub(crate) calls: u64,
    /// Context switches of the process of its own will, and others.
    pub(crate) switches: u64,
    pub(crate) preemptions: u64,
    /// How long each access took: nanoseconds and how many.
    pub(crate) latency: Vec<(u64, u64)>,
    /// What else there is to say, by name.
    pub(crate) figures: std::collections::BTreeMap<String, f64>,
}

impl Sample {
    /// All context switches. A thread that has woken another is often preempted by it, and one that found a message waiting
    /// has not waited: either kind alone says little.
    pub(crate) fn all_switches(&self) -> u64 {
        self.switches + self.preemptions
    }

    /// The latency that a share of the accesses did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        quantile(&self.latency, share)
    }
}

pub(crate) fn quantile(latency: &[(u64, u64)], share: f64) -> Option<f64> {
    let all: u64 = latency.iter().map(|(_, count)| count).sum();
    let rank = ((all as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    let bucket = latency.iter().find(|(_, count)| {
        seen += count;
        seen >= rank
    });
    bucket.map(|(ns, _)| *ns as f64)
}

/// What came of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Measured(Sample),
    /// The contender cannot do this.
    NotAvailable(String),
    /// This machine cannot.
    Skipped(String),
}

impl Outcome {
    pub(crate) fn sample(&self) -> Option<&Sample> {
        match self {
            Outcome::Measured(sample) => Some(sample),
            Outcome::NotAvailable(_) | Outcome::Skipped(_) => None,
        }
    }
}
