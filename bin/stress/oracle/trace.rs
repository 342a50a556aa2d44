//! The last events of a page, from all threads and the pager itself.

use std::collections::VecDeque;

use daxpager::probe::Point;

use crate::op::Op;
use crate::outcome::{PageEvent, PageLook};
use crate::word::describe;

/// How many events of a page are kept.
pub(crate) const EVENTS: usize = 64;
/// The thread of an event that the pager, or a control call on its way, has told.
pub(crate) const PAGER: u8 = u8::MAX;

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Done,
    /// SIGBUS, EFAULT, or an error.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// It has just begun. Only of operations that take many steps.
    Begun(Op),
    Ended(Op, End),
    Point(Point),
}

/// One event of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) ticket: u64,
    /// The ticket of the operation's beginning.
    pub(crate) began: u64,
    pub(crate) ns: u64,
    pub(crate) thread: u8,
    pub(crate) what: What,
    /// The watched word, if it was about a single one.
    pub(crate) slot: Option<u8>,
    /// The word loaded or stored; of a [`What::Point`] the block, if there is one.
    pub(crate) value: Option<u64>,
}

/// A ring of events, and what the page looks like after them.
pub(crate) struct Trace {
    entries: VecDeque<Entry>,
    pub(crate) look: PageLook,
}

impl Default for Trace {
    fn default() -> Self {
        // All of it now: events are noted in signal handlers, too, where nothing may be allocated.
        Self { entries: VecDeque::with_capacity(EVENTS), look: PageLook::Hole }
    }
}

impl Trace {
    pub(crate) fn push(&mut self, entry: Entry) {
        if self.entries.len() == EVENTS {
            self.entries.pop_front();
        }
        self.look = entry.look(self.look);
        self.entries.push_back(entry);
    }

    /// The events in the order of their tickets.
    pub(crate) fn in_order(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.entries.iter().copied().collect();
        entries.sort_by_key(|entry| entry.ticket);
        entries
    }
}

impl Entry {
    pub(crate) fn tell(&self, thread_name: impl Fn(u8) -> String) -> PageEvent {
        let what = match self.what {
            What::Begun(op) => format!("{} begins", op.name()),
            What::Ended(op, end) => self.tell_end(op, end),
            What::Point(point) => match self.value {
                Some(block) => format!("{point:?}, block {block}"),
                None => format!("{point:?}"),
            },
        };
        let thread = if self.thread == PAGER { "pager".to_owned() } else { thread_name(self.thread) };
        PageEvent { ticket: self.ticket, seconds: self.ns as f64 / 1e9, thread, what }
    }

    fn tell_end(&self, op: Op, end: End) -> String {
        let word = self.slot.map_or(String::new(), |slot| format!(" word {slot}"));
        let value = self.value.map_or(String::new(), |value| format!(": {}", describe(value)));
        let end = if end == End::Refused { ", refused" } else { "" };
        format!("{}{word}{value}{end} (from {})", op.name(), self.began)
    }

    /// What the page looks like after this, if it tells.
    pub(crate) fn look(&self, before: PageLook) -> PageLook {
        let What::Ended(op, end) = self.what else { return before };
        match (op, end) {
            (Op::Store | Op::Exchange | Op::CopyIn | Op::SysIn | Op::MapWrite, End::Done) => PageLook::Dirty,
            (op, End::Refused) if op.is_access() => PageLook::Sigbus,
            (Op::Truncate | Op::Punch | Op::ZeroRange, End::Done) => PageLook::Hole,
            (Op::TakeDirty | Op::FileWrite, End::Done) => PageLook::Clean,
            (Op::Load | Op::CopyOut, End::Done) if self.value.is_some_and(|value| value != 0) => match before {
                PageLook::Dirty => PageLook::Dirty,
                _ => PageLook::Clean,
            },
            (Op::Load, End::Done) if before == PageLook::Sigbus => PageLook::Hole,
            _ => before,
        }
    }
}
