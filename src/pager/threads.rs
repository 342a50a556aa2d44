//! The pager's threads: one reader, some workers. None of them ever touches mapped memory, and none
//! runs a signal handler of the application.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use nix::errno::Errno;

use crate::address::core::{Core, Deferred, Job, Patience};
use crate::address::stats::Kind;
use crate::options::Resolve;
use crate::probe::Point;
use crate::resolve::{Attempt, Served, attempt, give_up_ranges, resolve};
use crate::sabotage::Rule;
use crate::sync::Deadline;
use crate::sys::{MESSAGES_PER_READ, Message, RawFault, Verdict, process};

/// The reader: waits for messages, answers what it can at once, hands the rest to the workers. When the pager is
/// told to end, or a thread of it has panicked, it has a worker revoke every mapping, and goes
/// on reading until that is done.
pub(super) fn reader(core: &Core) {
    process::block_all_signals();
    let mut messages = Vec::with_capacity(MESSAGES_PER_READ);
    let mut told = false;
    while !core.is_revoked() {
        if let Err(panic) = caught(|| serve(core, &mut messages)) {
            core.fail(format!("its reader panicked: {panic}"));
        }
        if core.is_stopping() && !told {
            told = true;
            core.queue.push(Job::Revoke);
        }
    }
}

/// Serves what has arrived. A pager that is ending serves on: the mappings are not revoked yet.
fn serve(core: &Core, messages: &mut Vec<Message>) {
    // What a panic has left of the last read is not served again: its threads are woken when their
    // mappings are revoked.
    let first =
        next_messages(core, messages).unwrap_or_else(|errno| panic!("read from the userfaultfd failed: {errno}"));
    for (number, message) in (first..).zip(messages) {
        match *message {
            Message::Fault(fault) => serve_fault(core, fault, number),
            // The application's doing. It waits for nobody: its event has just been read.
            Message::Moved { from, to, bytes } => core.queue.push(Job::Moved(from, to, bytes)),
            Message::Posted(fault, _) => unreachable!("{fault:?} is posted to the dispatcher"),
        }
    }
}

/// Waits for messages: awake for a while, if the pager is to, and then asleep.
fn next_messages(core: &Core, messages: &mut Vec<Message>) -> Result<u64, Errno> {
    if let Some(time) = core.busy_poll {
        let deadline = Deadline::after(time);
        while !deadline.is_over() && !core.is_stopping() {
            let first = core.read(messages)?;
            if !messages.is_empty() {
                return Ok(first);
            }
            std::hint::spin_loop();
        }
    }
    core.table.wait();
    core.read(messages)
}

fn serve_fault(core: &Core, fault: RawFault, message: u64) {
    let kind = Kind::of(&fault);
    core.stats.fault(kind);
    let read_at = core.latencies.is_some().then(Instant::now);
    core.tell(Point::FaultRead, &fault, Patience::Try);
    let starving = core.starvation.is_starving(fault.tid, fault.addr);
    let answer = match core.reader_answers && !starving {
        true => attempt(core, &fault, patience(core), Resolve::PagerThread, core.heard()),
        false => Attempt::Busy,
    };
    match answer {
        Attempt::Done => record(core, kind, read_at),
        Attempt::Busy | Attempt::Again | Attempt::NoMemory | Attempt::Prepare(_) => {
            core.hand_over(Deferred { starving, read_at, ..core.deferred(fault, message) });
        }
        Attempt::Sigbus => unreachable!("only a thread that resolves its own faults is told so"),
    }
}

pub(super) fn record(core: &Core, kind: Kind, read_at: Option<Instant>) {
    if let (Some(latencies), Some(read_at)) = (&core.latencies, read_at) {
        latencies.record(kind, read_at.elapsed());
    }
}

/// The reader tries and never waits: somebody who holds a lock may be waiting for it to read (rule 5).
fn patience(core: &Core) -> Patience {
    if core.switches.broken(Rule::ReaderNeverBlocks) { Patience::Wait } else { Patience::Try }
}

/// A worker: serves what the reader has handed over, and may wait for locks.
pub(super) fn worker(core: &Core) {
    process::block_all_signals();
    loop {
        let served = match core.queue.pop() {
            Job::Stop => return,
            Job::Fault(deferred) => caught(|| serve_handed(core, deferred)),
            Job::Moved(from, to, bytes) => caught(|| core.lose(from, to, bytes)),
            Job::GiveUpRanges => caught(|| give_up_ranges(core)),
            Job::Revoke => {
                // Goes on where a panic, or a lack of address ranges, has interrupted it: nothing else ends the reader.
                while !core.is_revoked() {
                    let _ = caught(|| core.revoke());
                }
                Ok(())
            }
        };
        if let Err(panic) = served {
            // The fault's thread is woken when its mapping is revoked.
            core.fail(format!("a worker panicked: {panic}"));
        }
    }
}

fn serve_handed(core: &Core, deferred: Deferred) {
    core.tell(Point::FaultTaken, &deferred.fault, Patience::Wait);
    let verdict = match resolve(core, deferred) {
        Served::Done => Verdict::Repeat,
        Served::Sigbus => Verdict::Sigbus,
        Served::Again(again) => return core.queue.push(Job::Fault(again)),
    };
    record(core, Kind::of(&deferred.fault), deferred.read_at);
    if let (Some(ticket), Some(direct)) = (deferred.ticket, core.direct()) {
        core.stats.fault(Kind::of(&deferred.fault));
        direct.answer(ticket, verdict);
    }
}

/// Does something that may panic, in a thread that others wait for. The error is what the panic says.
pub(super) fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = message_of(&*panic);
        // What it carries may panic again when it is dropped, and so on: that is nobody's to see.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
        text
    })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
