//! Made-up outcomes, and a directory for files, for the tests of the reports.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::outcome::{
    FaultKind, LongestWait, OperationCount, Outcome, PageEvent, PageLook, PageMap, PageRow, Sample, Violation,
};

/// An outcome with something of everything.
pub(crate) fn rich() -> Outcome {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let counts = |list: &[(&str, u64)]| list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    Outcome {
        verdict: "violation".to_owned(),
        version: "0.1.0".to_owned(),
        kernel: "6.12.48-generic".to_owned(),
        cpus: 2,
        seed: 11_529_215_046_068_469_760,
        scenario: "mixed <b> & not".to_owned(),
        options: pairs(&[
            ("threads", "6 (2 load, 2 store, 1 truncate, 1 punch)"),
            ("files", "3"),
            ("pages of a file", "64"),
            ("mappings of a file", "2"),
            ("workers of the pager", "2"),
            ("blocks", "120, fewer than pages"),
            ("page shares", "70 % in 8 hot pages"),
        ]),
        sabotage: vec!["no check after install".to_owned()],
        inject: vec!["EAGAIN 1 in 64".to_owned()],
        again: "daxpager-stress --seed 11529215046068469760 --scenario mixed --seconds 60".to_owned(),
        seconds: 59.48,
        ended_by: None,
        rounds: 12,
        operations: operations(),
        faults: vec![
            faults("missing, load", 182_345, 4_100.0),
            faults("missing, store", 98_211, 6_300.0),
            faults("minor, load", 45_020, 2_200.0),
            faults("write-protect", 1_204, 38_000.0),
            FaultKind { name: "minor, store".to_owned(), ..FaultKind::default() },
        ],
        counters: counts(&[("installs", 280_112), ("zeros", 31_204), ("retries", 1_502), ("graces", 3), ("lost", 0)]),
        calls: counts(&[("read", 301_222), ("UFFDIO_CONTINUE", 280_112), ("UFFDIO_WAKE", 1_502), ("mmap", 44)]),
        judged: 1_893_223_120,
        unjudged: 1_204,
        parts: 31,
        compared_at_rest: 1_179_648,
        longest_wait: Some(LongestWait { ns: 48_213_000, operation: "truncate".into(), thread: "truncate 0".into() }),
        samples: samples(),
        map: Some(map()),
        violations: (0..5).map(violation).collect(),
        violation_count: 21,
    }
}

/// Outcomes with nothing, or nearly nothing, in them.
pub(crate) fn degenerate() -> Vec<Outcome> {
    let sample = |seconds| Sample { seconds, accesses: 5, violations: 1, ..Sample::default() };
    let empty = Outcome::default();
    let one = Outcome {
        verdict: "ok".to_owned(),
        samples: vec![sample(0.0)],
        faults: vec![FaultKind { name: "minor, load".to_owned(), ..FaultKind::default() }],
        operations: vec![OperationCount {
            name: "load".to_owned(),
            done: 3,
            refused: 0,
            longest_ns: 0,
            longest_thread: String::new(),
        }],
        map: Some(PageMap::default()),
        ..Outcome::default()
    };
    let cell = PageRow { page: u64::MAX, looks: vec![PageLook::Sigbus] };
    let odd = Outcome {
        verdict: "ok".to_owned(),
        seconds: f64::NAN,
        cpus: 1,
        samples: vec![sample(1.0), sample(1.0), sample(0.5), sample(f64::INFINITY)],
        faults: vec![FaultKind { faults: 1, histogram: vec![(u64::MAX, 1), (0, u64::MAX)], ..FaultKind::default() }],
        map: Some(PageMap { times: vec![0.0], rows: vec![cell], mark: Some((1, 0)), ..PageMap::default() }),
        violations: vec![Violation { address: None, events: Vec::new(), pager: None, ..violation(1) }],
        ..Outcome::default()
    };
    vec![empty, one, odd]
}

fn operations() -> Vec<OperationCount> {
    let operation = |name: &str, done, refused, longest_ns| OperationCount {
        name: name.into(),
        done,
        refused,
        longest_ns,
        longest_thread: "3".into(),
    };
    vec![
        operation("load", 1_204_332_101, 20_331, 12_300_000),
        operation("store", 688_891_019, 10_221, 18_123_456),
        operation("truncate", 402_112, 0, 48_213_000),
        operation("punch", 399_801, 3, 9_912_000),
        operation("fsync", 0, 0, 0),
    ]
}

/// Faults around `median` nanoseconds, with a tail.
fn faults(name: &str, count: u64, median: f64) -> FaultKind {
    let mut histogram = Vec::new();
    for power in 7..27u32 {
        for fine in 0..8u64 {
            let top = ((9 + fine) << (power - 3)) - 1;
            let distance = (top as f64 / median).log10();
            let share =
                (-distance * distance * 8.0).exp() + if distance > 0.0 { 0.002 * 10f64.powf(-distance) } else { 0.0 };
            let here = (share * count as f64 / 12.0) as u64;
            if here > 0 {
                histogram.push((top, here));
            }
        }
    }
    let [p50_ns, p99_ns, p999_ns] = [1.0, 6.0, 30.0].map(|factor| (median * factor) as u64);
    let max_ns = histogram.last().map_or(0, |(top, _)| *top);
    let faults = histogram.iter().map(|(_, count)| count).sum();
    FaultKind { name: name.to_owned(), faults, p50_ns, p99_ns, p999_ns, max_ns, histogram }
}

fn samples() -> Vec<Sample> {
    let mut sample = Sample::default();
    let mut list = vec![sample.clone()];
    for index in 1..=236u64 {
        let wobble = ((index * 7_919) % 101) + if index % 40 == 0 { 0 } else { 200 };
        sample.seconds = index as f64 * 0.252;
        sample.accesses += wobble * 31_000;
        sample.invalidations += wobble * 13;
        sample.faults += wobble * 5;
        sample.retries += (index * 31) % 17;
        sample.violations += if index == 230 { 21 } else { 0 };
        list.push(sample.clone());
    }
    list
}

/// A file that grows and is cut, around a violation; the moments near it are microseconds apart.
fn map() -> PageMap {
    let times = (0..200).map(|index| 57.894_120 + f64::from(index - 150) * 3.7e-6).collect();
    let look = |page: u64, column: u64| match (page * 37 + column / (5 + page % 9) * 11) % 10 {
        _ if column > 150 && column < 165 && page > 20 => PageLook::Sigbus,
        _ if page > 24 + column / 16 => PageLook::Sigbus,
        0..=2 => PageLook::Hole,
        3..=6 => PageLook::Clean,
        _ => PageLook::Dirty,
    };
    let rows = (0..32).map(|page| PageRow { page, looks: (0..200).map(|column| look(page, column)).collect() });
    PageMap { file: "file1".to_owned(), times, rows: rows.collect(), mark: Some((17, 150)) }
}

fn violation(index: u64) -> Violation {
    let event = |number: u64| PageEvent {
        ticket: 1_893_001_220 + number * 3,
        seconds: 57.893_9 + number as f64 * 2.4e-5,
        thread: ["store 0", "punch 0", "load 1", "pager"][number as usize % 4].to_owned(),
        what: ["store begins", "punch 16..20 begins", "load begins", "install of block 93"][number as usize % 4]
            .to_owned(),
    };
    Violation {
        kind: if index == 0 { "foreign" } else { "stale" }.to_owned(),
        what: "A load has seen a word that belongs to another file, in a page that had been punched.".to_owned(),
        seconds: 57.894_120 + index as f64 * 1.3e-5,
        operations: 1_893_002_111 + index,
        operation: "load of 8 bytes".to_owned(),
        thread: format!("load {index}"),
        file: "file1".to_owned(),
        page: 17,
        address: Some(0x7f3a_9c01_1008),
        mapping: Some("faulting, exact, fault-around off".to_owned()),
        expected: "zero, or one of 3 words stored since the punch of ticket 1893001100".to_owned(),
        found: "the word of file2, page 3, store 88211".to_owned(),
        found_bytes: "02 00 03 00 93 58 01 00  |.....X..|".to_owned(),
        events: (0..9).map(event).collect(),
        pager: (index == 0)
            .then(|| "queue: 3 faults\n  0x7f3a9c011000 missing, load, waiting 5.2 s\nworkers: 2, idle".to_owned()),
    }
}

/// A directory that goes away with its files.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("daxpager-report-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of its files, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
