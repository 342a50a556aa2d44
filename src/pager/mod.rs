//! Pagers: the left-hand door. Messages come in, and are answered or handed on. Knows no extents.

mod describe;
mod direct;
mod ends;
mod threads;

use std::time::Duration;

use crate::address::budget;
use crate::address::core::{Core, Job};
use crate::address::stats::{Kind, LatencySummary, Stats};
use crate::error::{Error, Result};
use crate::options::MapOptions;
use crate::probe::Probe;
use crate::sync::{Arc, Mutex, thread};
use crate::sys::PageTable;
use crate::sys::fork::{Home, Kept};
#[cfg(feature = "sabotage")]
use crate::sys::inject::{Injecting, Injection};
use crate::sys::limits::{self, Wanted};
use crate::sys::userfault::Userfault;

/// Serves the faults of any number of mappings of any number of files, with threads of its own.
///
/// Dropping it, or [`Pager::shutdown`], ends all mappings: accesses to them are a SIGBUS from then
/// on, and calls an error. The same happens if one of its threads panics.
///
/// In a child process (fork(2)) there are no such threads. Calls answer [`Error::Forked`] there; those that cannot give an error
/// give zeros or nothing; and dropping it does nothing. A child may start a pager of its own. Every
/// descriptor is close-on-exec.
pub struct Pager {
    pub(crate) home: Home,
    pub(crate) core: Kept<Arc<Core>>,
    reader: Kept<Mutex<Option<thread::JoinHandle<()>>>>,
    workers: Kept<Mutex<Vec<thread::JoinHandle<()>>>>,
    /// Started with the first mapping whose threads resolve their own faults. Held while the page table for them is
    /// opened, by `map_with` alone; under no other lock.
    dispatcher: Kept<Mutex<Option<thread::JoinHandle<()>>>>,
    open_direct: Kept<OpenDirect>,
    thread_name: String,
    #[cfg(feature = "sabotage")]
    injecting: Kept<Option<Arc<Injecting>>>,
}

/// Opens the page table of mappings whose faults their own threads resolve.
type OpenDirect = Box<dyn Fn() -> Result<Arc<dyn PageTable>> + Send + Sync>;

/// How a pager is to be. Made by [`Pager::builder`].
#[derive(Clone)]
pub struct PagerBuilder {
    workers: usize,
    thread_name: String,
    need_kernel_faults: bool,
    latencies: bool,
    address_ranges_max: Option<u64>,
    gathers: bool,
    probe: Option<Arc<dyn Probe>>,
    reader_answers: bool,
    busy_poll: Option<Duration>,
    prepared: Vec<MapOptions>,
    #[cfg(feature = "sabotage")]
    injection: Option<Injection>,
}

impl PagerBuilder {
    /// How many threads serve the faults that the reader cannot answer at once: those that allocate,
    /// that re-point an address range, or that meet a change of the file. 1 to 1024; 2 unless set.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// What the threads are called: `NAME-reader` and `NAME-worker-N`, cut by the kernel to 15 bytes.
    /// "dax" unless set. There must be no NUL in it.
    pub fn thread_name(mut self, name: &str) -> Self {
        self.thread_name = name.to_owned();
        self
    }

    /// Insists on faults from inside system calls: read(2) and write(2) with a buffer in a mapping. Without
    /// the privilege such a call fails with EFAULT where it meets a page that has not been touched,
    /// and [`PagerBuilder::start`] goes on with that unless this is set.
    pub fn require_kernel_faults(mut self) -> Self {
        self.need_kernel_faults = true;
        self
    }

    /// Measures how long each fault takes; two readings of the clock a fault. Off unless called.
    pub fn measure_latencies(mut self) -> Self {
        self.latencies = true;
        self
    }

    /// How many address ranges (VMAs) the mappings may take together. Beyond that, parts of mappings of
    /// fragmented files are given up until they are touched again, which costs a fault or two each time. At least 16.
    ///
    /// Unless set, three quarters of `vm.max_map_count`. That is a limit of the process: the mappings of all its pagers
    /// together keep to three quarters of it whatever is set here, and the pager that has the most gives up first.
    pub fn address_ranges_max(mut self, ranges: u64) -> Self {
        self.address_ranges_max = Some(ranges.max(16));
        self
    }

    /// Lets blocks of fragmented files be moved together when address ranges run short
    /// ([`PagerBuilder::address_ranges_max`]): what is in demand stays fast. Only where no device, and no other
    /// process, transfers into mapped memory at its own pace (O_DIRECT, io_uring, RDMA): the library cannot see such a
    /// transfer, and what it writes to a block that has been moved is lost.
    pub fn gather_blocks(mut self) -> Self {
        self.gathers = true;
        self
    }

    /// An observer that is told of every fault read and taken up. Everything else is told
    /// to the volume's observer.
    pub fn probe(mut self, probe: Arc<dyn Probe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Has the reader ask for messages again and again for so long before it falls asleep. It takes a CPU of its own while it
    /// does, and saves the waking of the reader, which is the larger half of a fault where threads run on CPUs of
    /// their own. Off unless called; a millisecond or so bridges the gaps between the faults of a busy thread.
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = Some(time).filter(|time| !time.is_zero());
        self
    }

    /// Has [`PagerBuilder::start`] open what mappings with these options need, instead of the first [`Pager::map_with`]: userfaultfds,
    /// `/proc/self/pagemap`, and a thread. For programs that give up their privileges after the start, or are short of descriptors later. Plain
    /// mappings need nothing more. May be called for several.
    pub fn prepare(mut self, options: &MapOptions) -> Self {
        self.prepared.push(*options);
        self
    }

    /// Has the workers answer every fault, also those that the reader could. For tests that park a fault.
    #[cfg(feature = "inside")]
    #[doc(hidden)]
    pub fn reader_answers(mut self, answers: bool) -> Self {
        self.reader_answers = answers;
        self
    }

    /// Puts faults into the page table. For tests.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn inject(mut self, injection: Injection) -> Self {
        self.injection = Some(injection);
        self
    }

    /// Opens a userfaultfd and starts the threads.
    ///
    /// # Errors
    /// [`Error::WorkerCount`]; [`Error::NoUserfaultfd`], [`Error::NoKernelFaults`],
    /// [`Error::MissingFeature`] for what the kernel or the process's privileges lack; [`Error::ThreadName`]; [`Error::Limit`], or
    /// [`Error::System`] where the limit is not known, when a thread or a descriptor is not to be had. Then
    /// nothing is left of it, and a later start works if there is room.
    pub fn start(self) -> Result<Pager> {
        self.try_start().map_err(|error| limits::explain(error, Wanted::Thread))
    }

    fn try_start(self) -> Result<Pager> {
        self.check()?;
        let table = Userfault::open(self.need_kernel_faults)?;
        self.start_on(table, Box::new(|| Ok(Userfault::open_direct()?)))
    }

    /// Starts a pager on a fake page table instead of the kernel's.
    #[cfg(feature = "fake")]
    #[doc(hidden)]
    pub fn start_on_fake(self, fake: &crate::sys::fake::FakePageTable) -> Result<Pager> {
        self.check()?;
        let direct = fake.direct_table();
        self.start_on(fake.table(), Box::new(move || Ok(direct.clone())))
    }

    fn check(&self) -> Result<()> {
        if !(1..=1024).contains(&self.workers) {
            return Err(Error::WorkerCount { workers: self.workers });
        }
        if self.thread_name.contains('\0') {
            return Err(Error::ThreadName { name: self.thread_name.clone() });
        }
        Ok(())
    }

    fn start_on(self, table: Arc<dyn PageTable>, open_direct: OpenDirect) -> Result<Pager> {
        let home = Home::here()?;
        #[cfg(feature = "sabotage")]
        let injecting = self.injection.map(|injection| Arc::new(Injecting::new(table.clone(), injection)));
        #[cfg(feature = "sabotage")]
        let open_direct = match injecting.clone() {
            None => open_direct,
            Some(beside) => Box::new(move || Ok(Arc::new(beside.beside(open_direct()?)) as Arc<dyn PageTable>)),
        };
        #[cfg(feature = "sabotage")]
        let table = injecting.clone().map_or(table, |injecting| injecting as Arc<dyn PageTable>);
        let mut core = Core::new(home, table, self.address_ranges_max, self.latencies, self.probe);
        core.reader_answers = self.reader_answers;
        core.busy_poll = self.busy_poll;
        core.gathers = self.gathers;
        let core = Arc::new(core);
        budget::join(&core);
        // Threads that have been started end with the pager if a later one is not to be had.
        let pager = Pager {
            home,
            core: home.keep(core),
            reader: home.keep(Mutex::new(None)),
            workers: home.keep(Mutex::new(Vec::new())),
            dispatcher: home.keep(Mutex::new(None)),
            open_direct: home.keep(open_direct),
            thread_name: self.thread_name,
            #[cfg(feature = "sabotage")]
            injecting: home.keep(injecting),
        };
        for worker in 0..self.workers {
            let thread = pager.spawn(&format!("worker-{worker}"), threads::worker)?;
            pager.workers.lock().push(thread);
        }
        // Last: when it ends, it waits for a worker.
        let reader = pager.spawn("reader", threads::reader)?;
        *pager.reader.lock() = Some(reader);
        self.prepared.iter().try_for_each(|options| pager.table_for(options).map(drop))?;
        Ok(pager)
    }
}

impl Pager {
    /// A pager with two workers, on the kernel's page table.
    pub fn builder() -> PagerBuilder {
        PagerBuilder {
            workers: 2,
            thread_name: "dax".to_owned(),
            need_kernel_faults: false,
            latencies: false,
            address_ranges_max: None,
            gathers: false,
            probe: None,
            reader_answers: true,
            busy_poll: None,
            prepared: Vec::new(),
            #[cfg(feature = "sabotage")]
            injection: None,
        }
    }

    /// `part` tells the thread from the pager's others.
    fn spawn(&self, part: &str, body: impl FnOnce(&Core) + Send + 'static) -> Result<thread::JoinHandle<()>> {
        // Here: once threads that were started have ended, there may be room again, and no limit in sight.
        self.try_spawn(part, body).map_err(|error| limits::explain(error, Wanted::Thread))
    }

    fn try_spawn(&self, part: &str, body: impl FnOnce(&Core) + Send + 'static) -> Result<thread::JoinHandle<()>> {
        limits::check_thread()?;
        let core = Arc::clone(&self.core);
        thread::Builder::new()
            .name(format!("{}-{part}", self.thread_name))
            .spawn(move || body(&core))
            .map_err(|error| Error::System { call: "clone", errno: error.raw_os_error().unwrap_or(0) })
    }

    /// What the pager has done so far. Waits for nobody.
    pub fn stats(&self) -> Stats {
        if !self.home.is_here() {
            return Stats::default();
        }
        Stats {
            calls: self.core.calls(),
            queued: self.core.queue.len() as u64,
            address_ranges: self.core.share.pieces(),
            ..self.core.stats.snapshot()
        }
    }

    /// How long faults of a kind took, if [`PagerBuilder::measure_latencies`] asked for it.
    pub fn latency(&self, kind: Kind) -> Option<LatencySummary> {
        self.home.check().ok()?;
        Some(self.core.latencies.as_ref()?.summary(kind))
    }

    /// How often faults of a kind took how long, if [`PagerBuilder::measure_latencies`] asked for it: for each bucket
    /// with something in it, shortest first, the longest time that falls into it in nanoseconds, and how many did. A
    /// bucket is at most an eighth wide of its time.
    pub fn latency_histogram(&self, kind: Kind) -> Option<Vec<(u64, u64)>> {
        self.home.check().ok()?;
        Some(self.core.latencies.as_ref()?.histogram(kind))
    }

    /// The pager's state as lines of text, for a bug report: whether it lives, what it has done, how its locks are
    /// held, and for up to 16 mappings how those of their files are. To be read, not to be parsed.
    ///
    /// Never blocks, so it can be called while threads hang: where a lock is taken it says so instead. Each line
    /// is of a slightly different moment.
    pub fn describe(&self) -> String {
        if !self.home.is_here() {
            return "pager: of another process\n".to_owned();
        }
        describe::describe(&self.core)
    }

    /// What describes it for as long as it is there: for the tests' watchdog, which has no handle.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn describer(&self) -> impl Fn() -> String + Send + Sync + 'static {
        let core = Arc::downgrade(&self.core);
        move || core.upgrade().map_or_else(String::new, |core| describe::describe(&core))
    }

    /// Whether faults from inside system calls are served. See [`PagerBuilder::require_kernel_faults`].
    pub fn serves_kernel_faults(&self) -> bool {
        self.core.table.serves_kernel_faults()
    }

    /// Breaks a safety rule that is the pager's own, or mends it. Never for use.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn sabotage(&self, rule: crate::sabotage::Rule, broken: bool) {
        self.core.switches.set(rule, broken);
    }

    /// How often each fault has been put in; empty without [`PagerBuilder::inject`].
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn injected(&self) -> Vec<(&'static str, u64)> {
        self.injecting.as_ref().map_or_else(Vec::new, |injecting| injecting.counts())
    }

    /// How many mappings there are.
    pub fn mappings(&self) -> usize {
        if self.home.is_here() { self.core.regions.read().len() } else { 0 }
    }

    /// Ends the pager: every mapping ends in SIGBUS, threads that wait in a fault get theirs, and the
    /// pager's own threads are gone when this returns. Waits for faults that are being answered, and for nobody's call: one that is
    /// under way on a mapping ends in an error at its next fault. Addresses stay the mapping's until that is dropped.
    ///
    /// # Errors
    /// [`Error::PagerGone`] if it had ended before, because a thread of it had panicked.
    pub fn shutdown(self) -> Result<Stats> {
        self.home.check()?;
        let died = self.core.check_alive();
        self.end();
        died.map(|()| self.stats())
    }

    fn end(&self) {
        self.core.stop();
        // It ends when a worker has revoked the mappings.
        if let Some(reader) = self.reader.lock().take() {
            let _ = reader.join();
        }
        if let Some(dispatcher) = self.dispatcher.lock().take() {
            let _ = dispatcher.join();
        }
        let workers = std::mem::take(&mut *self.workers.lock());
        workers.iter().for_each(|_| self.core.queue.push(Job::Stop));
        workers.into_iter().for_each(|worker| drop(worker.join()));
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return;
        }
        self.end();
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("stats", &self.stats()).finish()
    }
}
