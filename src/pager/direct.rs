//! Faults resolved by the threads that have them: the pager's other way in, through the same look-up, the same
//! decision and the same guard. A signal handler runs this, so it only tries, as the reader does; and what
//! has to be prepared or waited for goes to the workers, while the thread waits for their answer.

use crate::address::core::{Core, Deferred, Job, Patience};
use crate::address::stats::Kind;
use crate::error::Result;
use crate::options::{MapOptions, Resolve, Tracking};
use crate::pager::Pager;
use crate::pager::threads::{caught, record};
use crate::probe::Point;
use crate::resolve::{Attempt, attempt};
use crate::sync::Arc;
use crate::sys::{MESSAGES_PER_READ, Message, PageTable, RawFault, Resolver, Verdict, process};

impl Resolver for Core {
    fn resolve(&self, fault: &RawFault) -> Option<Verdict> {
        let started = self.latencies.is_some().then(std::time::Instant::now);
        let looked = caught(|| {
            self.tell(Point::FaultTaken, fault, Patience::Try);
            attempt(self, fault, Patience::Try, Resolve::FaultingThread, u64::MAX)
        });
        let verdict = match looked {
            Ok(Attempt::Done) => Verdict::Repeat,
            Ok(Attempt::Sigbus) => Verdict::Sigbus,
            Ok(Attempt::Again | Attempt::Busy | Attempt::NoMemory | Attempt::Prepare(_)) => {
                return None;
            }
            Err(panic) => {
                // The mapping is revoked soon, and the thread is dismissed then.
                self.fail(format!("a thread that resolved its own fault panicked: {panic}"));
                return None;
            }
        };
        let kind = Kind::of(fault);
        self.stats.fault(kind);
        self.stats.add(&self.stats.in_thread);
        record(self, kind, started);
        Some(verdict)
    }
}

/// The thread that takes what faulting threads have posted to the workers, and reads the events of their page table.
/// It never waits for a lock, like the reader.
fn dispatcher(core: &Core, table: &dyn PageTable) {
    process::block_all_signals();
    let mut messages = Vec::with_capacity(MESSAGES_PER_READ);
    while !core.is_revoked() {
        if let Err(panic) = caught(|| carry(core, table, &mut messages)) {
            core.fail(format!("its dispatcher panicked: {panic}"));
        }
    }
    // Nothing is watched any more, so nobody posts.
    table.dismiss();
}

fn carry(core: &Core, table: &dyn PageTable, messages: &mut Vec<Message>) {
    table.wait();
    messages.clear();
    table.read(messages).unwrap_or_else(|errno| panic!("read from the userfaultfd failed: {errno}"));
    for message in messages.drain(..) {
        match message {
            Message::Posted(fault, ticket) => {
                let starving = core.starvation.is_starving(fault.tid, fault.addr);
                let deferred = core.deferred(fault, 0);
                // It waits until it is answered.
                core.hand_over(Deferred { ticket: Some(ticket), starving, heard: u64::MAX, ..deferred });
            }
            Message::Moved { from, to, bytes } => core.queue.push(Job::Moved(from, to, bytes)),
            Message::Fault(fault) => unreachable!("{fault:?} is its own thread's to resolve"),
        }
    }
}

impl Pager {
    /// The page table for a mapping with these options. The first mapping whose threads resolve their own faults opens
    /// another userfaultfd, and starts a thread; the first whose stores the kernel tracks opens one more beside the one that it would have.
    pub(crate) fn table_for(&self, options: &MapOptions) -> Result<Arc<dyn PageTable>> {
        let table = match options.resolve {
            Resolve::PagerThread => self.core.table.clone(),
            Resolve::FaultingThread => self.direct_table()?,
        };
        match options.tracking {
            Tracking::Exact | Tracking::Coarse | Tracking::Off => Ok(table),
            Tracking::Asynchronous => table.asynchronous(),
        }
    }

    fn direct_table(&self) -> Result<Arc<dyn PageTable>> {
        let mut dispatcher_thread = self.dispatcher.lock();
        if let Some(table) = self.core.direct() {
            return Ok(table);
        }
        let table = (self.open_direct)()?;
        let own = table.clone();
        *dispatcher_thread = Some(self.spawn("dispatcher", move |core| dispatcher(core, &*own))?);
        self.core.set_direct(table.clone());
        Ok(table)
    }
}
