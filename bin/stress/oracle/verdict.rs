//! Violations, put into words.

use std::sync::atomic::Ordering;

use super::kind::{Evidence, Kind};
use super::{Access, Oracle, lock};
use crate::op::Op;
use crate::outcome::{PageEvent, Violation};
use crate::word::{CHURN, SLOT_OFFSETS, describe};

/// Violations that are kept in full.
const KEPT: usize = 16;

impl Oracle {
    /// Reports a violation, and has everybody stop.
    pub(crate) fn report(&self, access: &Access, kind: Kind, evidence: Evidence) {
        let violation = self.violation(access, kind, evidence);
        self.keep(violation);
    }

    pub(crate) fn keep(&self, violation: Violation) {
        self.violation_count.fetch_add(1, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
        let mut kept = lock(&self.violations);
        if kept.len() < KEPT {
            kept.push(violation);
        }
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        lock(&self.violations).clone()
    }

    pub(crate) fn violation(&self, access: &Access, kind: Kind, evidence: Evidence) -> Violation {
        let (what, expected, found, bytes) = match evidence {
            Evidence::Word { slot, value, allowed, span } => {
                let told = |value: &u64| format!("{} ({})", describe(*value), bytes_of(*value));
                let expected: Vec<String> = allowed.iter().map(told).collect();
                let what = format!(
                    "{}: byte {} of the page, between tickets {} and {}",
                    kind.sentence(),
                    SLOT_OFFSETS[slot],
                    span.0,
                    span.1
                );
                (what, expected.join("; or "), describe(value), bytes_of(value))
            }
            Evidence::Size { sizes, span } => {
                let what = format!("{}: between tickets {} and {}", kind.sentence(), span.0, span.1);
                let size = match (sizes.start(), sizes.end()) {
                    (least, most) if least == most => format!("a file of {least} bytes"),
                    (least, most) => format!("a file of {least} to {most} bytes"),
                };
                let (expected, found) = match kind {
                    Kind::NoSigbus => ("SIGBUS", "no SIGBUS"),
                    _ => ("no SIGBUS", "SIGBUS"),
                };
                (
                    what,
                    format!("{expected}: {size}"),
                    format!("{found} at byte {}", access.page * self.page_bytes),
                    String::new(),
                )
            }
            Evidence::Text { expected, found } => (kind.sentence().to_owned(), expected, found, String::new()),
        };
        Violation {
            kind: kind.name().to_owned(),
            what,
            seconds: self.start.elapsed().as_secs_f64(),
            operations: self.tallies.sum(|_| true),
            operation: access.op.name().to_owned(),
            thread: thread_name(access.thread),
            file: self.file_name(access.file),
            page: access.page,
            address: access.address,
            mapping: access.address.and_then(|address| self.manner_at(address)),
            expected,
            found,
            found_bytes: bytes,
            events: self.events(access.file, access.page),
            pager: None,
        }
    }

    fn file_name(&self, file: u8) -> String {
        match file {
            CHURN => "a file that comes and goes".to_owned(),
            file if usize::from(file) < self.files.len() => format!("file-{file}"),
            _ => "the volume".to_owned(),
        }
    }

    /// The page's last events from all threads, in order.
    pub(crate) fn events(&self, file: u8, page: u64) -> Vec<PageEvent> {
        let Some(record) = self.files.get(file as usize).filter(|record| page < record.pages()) else {
            return Vec::new();
        };
        let entries = record.page(page).trace.in_order();
        entries.iter().map(|entry| entry.tell(thread_name)).collect()
    }

    /// A violation that is about no page in particular.
    pub(crate) fn report_text(&self, kind: Kind, op: Op, thread: u8, expected: &str, found: String) {
        let access = Access { op, thread, file: u8::MAX, page: 0, address: None };
        self.report(&access, kind, Evidence::Text { expected: expected.to_owned(), found });
    }
}

pub(crate) fn thread_name(thread: u8) -> String {
    format!("thread {thread}")
}

/// The bytes in memory.
fn bytes_of(value: u64) -> String {
    let bytes: Vec<String> = value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}
