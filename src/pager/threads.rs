//! The pager's threads: one reader, some workers. None of them ever touches mapped memory, and none
//! runs a signal handler of the application.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::pager::core::{CONDEMN_BACK_OFF, Core, Handed, Job};
use crate::pager::stats::Kind;
use crate::policy::Fault;
use crate::probe::Point;
use crate::resolve::{Attempt, Patience, attempt, resolve};
use crate::sabotage::Rule;
use crate::sync;
use crate::sys::{MESSAGES_PER_READ, Message, RawFault, process};
use crate::units::Addr;

/// The reader: waits for messages, answers what it can at once, hands the rest to the workers. Ends
/// when the pager is told to or a thread of it has panicked; either way every mapping is condemned first.
pub(super) fn reader(core: &Core) {
    process::block_all_signals();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(core))) {
        core.fail(format!("its reader panicked: {}", message_of(&*panic)));
    }
    condemn(core);
}

fn serve(core: &Core) {
    let mut messages = Vec::with_capacity(MESSAGES_PER_READ);
    loop {
        core.table.wait();
        if core.is_stopping() {
            return;
        }
        messages.clear();
        if let Err(errno) = core.table.read(&mut messages) {
            panic!("read from the userfaultfd failed: {errno}");
        }
        for message in &messages {
            match *message {
                Message::Fault(fault) => serve_fault(core, fault),
                Message::Moved { from, to, bytes } => moved(core, from, to, bytes),
            }
        }
    }
}

fn serve_fault(core: &Core, fault: RawFault) {
    let kind = kind_of(&fault);
    core.stats.fault(kind);
    let read_at = core.latencies.is_some().then(Instant::now);
    core.tell(Point::FaultRead, &fault);
    let answer = if core.reader_answers { attempt(core, &fault, patience(core)) } else { Attempt::Busy };
    match answer {
        Attempt::Done => record(core, kind, read_at),
        Attempt::Busy | Attempt::Again | Attempt::Prepare(_) => {
            core.stats.add(&core.stats.handed_over);
            core.queue.push(Job::Fault(Handed { fault, turns: 0, read_at }));
        }
    }
}

fn kind_of(fault: &RawFault) -> Kind {
    Kind::of(Fault { access: fault.access, kind: fault.kind })
}

fn record(core: &Core, kind: Kind, read_at: Option<Instant>) {
    if let (Some(latencies), Some(read_at)) = (&core.latencies, read_at) {
        latencies.record(kind, read_at.elapsed());
    }
}

/// The reader tries and never waits: somebody who holds a lock may be waiting for it to read (rule 5).
fn patience(core: &Core) -> Patience {
    if core.switches.broken(Rule::ReaderNeverBlocks) { Patience::Wait } else { Patience::Try }
}

/// The pager's own re-points are no news; anything else is the application moving a mapping of ours.
fn moved(core: &Core, from: Addr, to: Addr, bytes: u64) {
    if core.repointing.load(sync::Ordering::Acquire) != to.0 as u64 {
        core.queue.push(Job::Moved(from, to, bytes));
    }
}

/// Ends every mapping in SIGBUS. Goes on reading meanwhile: whoever holds the lock that is
/// wanted may be a worker that waits for its event to be read, and then for its turn.
fn condemn(core: &Core) {
    let mut messages = Vec::with_capacity(MESSAGES_PER_READ);
    while !core.try_condemn() {
        messages.clear();
        // Faults read here are woken when their mapping is condemned. An error ends nothing: the
        // mappings must still be condemned.
        let _ = core.table.read(&mut messages);
        sync::back_off(CONDEMN_BACK_OFF);
    }
}

/// A worker: serves what the reader has handed over, and may wait for locks.
pub(super) fn worker(core: &Core) {
    process::block_all_signals();
    loop {
        let served = match core.queue.pop() {
            Job::Stop => return,
            Job::Fault(handed) => catch_unwind(AssertUnwindSafe(|| serve_handed(core, handed))),
            Job::Moved(from, to, bytes) => catch_unwind(AssertUnwindSafe(|| core.lose(from, to, bytes))),
        };
        if let Err(panic) = served {
            core.fail(format!("a worker panicked: {}", message_of(&*panic)));
        }
    }
}

fn serve_handed(core: &Core, handed: Handed) {
    core.tell(Point::FaultTaken, &handed.fault);
    match resolve(core, handed) {
        None => record(core, kind_of(&handed.fault), handed.read_at),
        Some(again) => core.queue.push(Job::Fault(again)),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
