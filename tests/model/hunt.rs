//! Runs a scenario under many schedules, remembers the one that fails, and runs that again.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;

use daxpager::Invariants;
use daxpager::sabotage::Rule;
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::scenarios::Scenario;
use crate::world::{allocation, with_allocation};

/// Points at which a schedule of the PCT scheduler takes the CPU from the thread that has it.
const PCT_DEPTH: usize = 4;
/// Many times what the longest scenario takes: a schedule that gets here goes round in circles.
const STEPS_MAX: usize = 50_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Random,
    Pct,
}

impl How {
    pub fn scheduler(self, seed: u64, schedules: usize) -> Box<dyn Scheduler + Send> {
        match self {
            How::Random => Box::new(RandomScheduler::new_from_seed(seed, schedules)),
            How::Pct => Box::new(PctScheduler::new_from_seed(seed, PCT_DEPTH, schedules)),
        }
    }
}

/// A schedule that fails.
pub struct Found {
    /// How many schedules it took, this one included.
    pub schedules: usize,
    pub schedule: Schedule,
    pub message: String,
}

/// What a scheduler has decided so far.
#[derive(Default)]
struct Record {
    schedules: usize,
    last: Schedule,
}

struct Recorder {
    inner: Asking,
    record: Rc<RefCell<Record>>,
}

impl Scheduler for Recorder {
    fn new_execution(&mut self) -> Option<Schedule> {
        let schedule = self.inner.new_execution()?;
        let mut record = self.record.borrow_mut();
        record.schedules += 1;
        record.last = schedule.clone();
        Some(schedule)
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let next = self.inner.next_task(runnable, current, is_yielding)?;
        self.record.borrow_mut().last.push_task(next);
        Some(next)
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("no scenario draws numbers")
    }
}

thread_local! {
    /// Of the schedule that is being run.
    static WATCHED: RefCell<Option<Invariants>> = const { RefCell::new(None) };
    /// What is wrong in it.
    static WRONG: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on these must hold, up to the end of the schedule.
pub fn watch(invariants: Invariants) {
    WATCHED.set(Some(invariants));
}

/// Asks before every step, whoever is to make it, whether the invariants hold.
struct Asking {
    inner: Box<dyn Scheduler + Send>,
}

impl Scheduler for Asking {
    fn new_execution(&mut self) -> Option<Schedule> {
        WATCHED.set(None);
        WRONG.set(None);
        self.inner.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        WRONG.with_borrow_mut(|wrong| {
            let holds = || WATCHED.with_borrow(|watched| watched.as_ref().map_or(Ok(()), Invariants::check));
            // A panic may be caught by the thread whose step it comes after. No thread gets any further all the same.
            if wrong.is_none() {
                *wrong = holds().err();
            }
            if let Some(wrong) = wrong {
                panic!("{wrong}");
            }
        });
        self.inner.next_task(runnable, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}

pub fn config() -> Config {
    // As many schedules as are asked for; the checker sees a hang in one of them.
    crate::guard::allow(std::time::Duration::from_secs(24 * 3600));
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    // Or threads that hold a mapping would go on to unmap it, with nobody there any more to wait for.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}

thread_local! {
    /// Panics of this thread are expected: the first one's message is kept here, and nothing is printed.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics that are expected kept, and all others reported with their schedule, as shuttle does.
fn keep_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Shuttle puts its hook in when it runs for the first time; this one goes in front of it.
        Runner::new(RandomScheduler::new_from_seed(0, 1), config()).run(|| ());
        let reports = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                return reports(info);
            }
            let text = info.payload_as_str().unwrap_or("no message").to_owned();
            FIRST.with_borrow_mut(|first| first.get_or_insert(text).truncate(200));
        }));
    });
}

/// Runs schedules of a scenario until one fails. In a thread of its own: one that has panicked within an execution counts
/// as panicking for ever after, since the stack that was being unwound is left where it is.
fn run(inner: Box<dyn Scheduler + Send>, scenario: &Scenario, broken: Option<Rule>) -> Option<Found> {
    keep_expected_panics();
    let body = scenario.run;
    let allocation = allocation();
    let thread = std::thread::spawn(move || {
        let body = move |broken| with_allocation(allocation, || body(broken));
        let record = Rc::new(RefCell::new(Record::default()));
        let mut config = config();
        config.failure_persistence = FailurePersistence::None;
        let runner = Runner::new(Recorder { inner: Asking { inner }, record: record.clone() }, config);
        EXPECTED.set(true);
        let failed = catch_unwind(AssertUnwindSafe(|| runner.run(move || body(broken)))).is_err();
        let message = FIRST.take().unwrap_or_default();
        let record = record.take();
        failed.then_some(Found { schedules: record.schedules, schedule: record.last, message })
    });
    thread.join().expect("panics of the scenario are caught")
}

/// Looks for a schedule under which a broken rule shows.
pub fn hunt(how: How, seed: u64, scenario: &Scenario, rule: Rule, schedules: usize) -> Option<Found> {
    run(how.scheduler(seed, schedules), scenario, Some(rule))
}

/// The message with which a schedule fails when it is run again; `None` if it does not.
pub fn replay(found: &Found, scenario: &Scenario, rule: Rule) -> Option<String> {
    let scheduler = ReplayScheduler::new_from_schedule(found.schedule.clone());
    run(Box::new(scheduler), scenario, Some(rule)).map(|again| again.message)
}

/// Runs schedules with every rule kept. A panic says which schedule it was, for `shuttle::replay`.
pub fn unbroken(scheduler: Box<dyn Scheduler + Send>, scenario: &Scenario) -> usize {
    keep_expected_panics();
    let body = scenario.run;
    Runner::new(Asking { inner: scheduler }, config()).run(move || body(None))
}
