//! What the tests share: a small world, threads parked at named points, and the two halves of a
//! test of a rule, the one in which it holds and the one in which it is broken.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod guard;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use daxpager::probe::{Event, Point, Probe};
use daxpager::sabotage::Rule;
use daxpager::{Allocation, Device, Error, File, Injection, MapOptions, Mapping, Pager, Resolve, Volume};

#[allow(unused_imports, reason = "each test file uses its part")]
pub use guard::{HANG, until};

pub const PAGE: u64 = 4096;

/// How long something that must wait is watched while it waits. A correct pager passes
/// however short this is.
pub const WATCH: Duration = Duration::from_millis(300);
/// The same where a rule is broken: it must not wait there, and only a slow machine needs this long to show it.
const WATCH_BROKEN: Duration = Duration::from_secs(10);
/// What is a hang where a rule is broken, and there may be one.
const HANG_BROKEN: Duration = Duration::from_secs(3);
/// Nobody is held for longer, whatever becomes of the test.
const HELD: Duration = Duration::from_secs(60);

thread_local! {
    /// Whether the calling test has broken a rule.
    static BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs what breaks a rule: waits in it are shorter, or longer, as [`watch`] and [`patience`] say.
pub fn breaking<T>(body: impl FnOnce() -> T) -> T {
    BROKEN.set(true);
    let value = body();
    BROKEN.set(false);
    value
}

/// How long what must wait is watched: in the half of a test in which its rule is broken it ends as soon as it shows.
pub fn watch() -> Duration {
    if BROKEN.get() { WATCH_BROKEN } else { WATCH }
}

/// How long what must come is waited for: not that long in the half of a test in which it may never come.
pub fn patience() -> Duration {
    if BROKEN.get() { HANG_BROKEN } else { HANG }
}

/// Each way in which faults are resolved.
pub fn ways() -> Vec<MapOptions> {
    let mut ways = vec![MapOptions::new()];
    if cfg!(target_arch = "x86_64") {
        ways.push(MapOptions::new().resolve(Resolve::FaultingThread));
    }
    ways
}

/// The next of numbers that look random: xorshift64.
pub fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// In an order that no stream is found in.
pub fn shuffled(pages: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..pages).collect();
    let mut state = 17;
    (1..order.len()).rev().for_each(|at| order.swap(at, (next(&mut state) % (at as u64 + 1)) as usize));
    order
}

type Filter = Box<dyn Fn(&Event) -> bool + Send>;

/// Holds threads at points. Each trap holds the first thread that meets it. When the thread that has made this
/// panics, nobody is held any more.
pub struct Park {
    traps: Traps,
    let_go: Arc<AtomicBool>,
    _on_panic: Arc<dyn Fn() + Send + Sync>,
}

/// The traps from here on. They are met in a signal handler, too: no lock, and nothing is allocated to look through them.
#[derive(Default)]
struct Traps(OnceLock<Box<(Arc<Trap>, Traps)>>);

impl Traps {
    fn iter(&self) -> impl Iterator<Item = &Arc<Trap>> {
        std::iter::successors(self.0.get(), |here| here.1.0.get()).map(|here| &here.0)
    }

    fn push(&self, trap: Arc<Trap>) {
        let (mut end, mut new) = (self, Box::new((trap, Self::default())));
        while let Err(taken) = end.0.set(new) {
            new = taken;
            end = &end.0.get().expect("somebody has set it").1;
        }
    }
}

pub struct Trap {
    point: Point,
    filter: Mutex<Filter>,
    state: Mutex<TrapState>,
    changed: Condvar,
    let_go: Arc<AtomicBool>,
}

#[derive(Default)]
struct TrapState {
    caught: Option<Event>,
    released: bool,
    /// The test did not let go in time, so the thread went on by itself.
    expired: bool,
}

impl Default for Park {
    fn default() -> Self {
        let let_go = Arc::new(AtomicBool::new(false));
        // No lock: the panic may be one under it. Who is held looks.
        let on_panic = guard::release_on_panic({
            let let_go = let_go.clone();
            move || let_go.store(true, Ordering::SeqCst)
        });
        Self { traps: Traps::default(), let_go, _on_panic: on_panic }
    }
}

impl Park {
    /// Holds the first thread that comes to `point` with `filter` satisfied.
    pub fn at(&self, point: Point, filter: impl Fn(&Event) -> bool + Send + 'static) -> Arc<Trap> {
        let trap = Arc::new(Trap {
            point,
            filter: Mutex::new(Box::new(filter)),
            state: Mutex::default(),
            changed: Condvar::new(),
            let_go: self.let_go.clone(),
        });
        self.traps.push(trap.clone());
        trap
    }

    /// Holds the first thread that comes to `point` for `page`.
    pub fn at_page(&self, point: Point, page: u64) -> Arc<Trap> {
        self.at(point, move |event| event.page.0 == page)
    }
}

impl Probe for Park {
    fn at(&self, event: Event) {
        self.traps.iter().for_each(|trap| trap.meet(event));
    }
}

impl Trap {
    fn meet(&self, event: Event) {
        if self.let_go.load(Ordering::SeqCst) || event.point != self.point || !(self.filter.lock().unwrap())(&event) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        if state.caught.is_some() {
            return;
        }
        state.caught = Some(event);
        self.changed.notify_all();
        let since = Instant::now();
        while !state.released && !state.expired && !self.let_go.load(Ordering::SeqCst) {
            state = self.changed.wait_timeout(state, Duration::from_millis(20)).unwrap().0;
            state.expired = since.elapsed() > HELD;
        }
    }

    /// Waits until a thread is held.
    pub fn wait(&self) -> Event {
        self.caught_within(HANG).unwrap_or_else(|| panic!("nobody came to {:?}", self.point))
    }

    pub fn caught_within(&self, time: Duration) -> Option<Event> {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, time, |state| state.caught.is_none()).unwrap();
        state.caught
    }

    /// Lets the held thread go on, and holds nobody any more.
    ///
    /// # Panics
    /// If it had to go by itself because the test took longer than a minute: the test waited for it.
    #[track_caller]
    pub fn release(&self) {
        let mut state = self.state.lock().unwrap();
        state.released = true;
        let nobody = Event { point: self.point, file: None, page: daxpager::PageIndex(u64::MAX), block: None };
        state.caught.get_or_insert(nobody);
        self.changed.notify_all();
        let expired = state.expired;
        drop(state);
        assert!(!expired, "what the test did meanwhile waited for the held thread");
    }
}

/// A thread whose end can be waited for with a limit.
pub struct Task<T> {
    done: mpsc::Receiver<thread::Result<T>>,
}

pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let (tx, done) = mpsc::channel();
    thread::Builder::new()
        .name(guard::TASK.to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let _ = tx.send(result);
        })
        .unwrap();
    Task { done }
}

/// A call in a thread of its own, on a mapping or a file that others use too.
pub fn spawn_on<S, T>(shared: &S, call: impl FnOnce(S) -> T + Send + 'static) -> Task<T>
where
    S: Clone + Send + 'static,
    T: Send + 'static,
{
    let shared = shared.clone();
    spawn(move || call(shared))
}

impl<T> Task<T> {
    /// The result, if there is one within `time`.
    pub fn within(&self, time: Duration) -> Option<T> {
        match self.done.recv_timeout(time) {
            Ok(Ok(value)) => Some(value),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => None,
        }
    }

    /// The result; an error that names `what` if the thread hangs.
    pub fn join(&self, what: &str) -> Result<T, String> {
        self.within(patience()).ok_or_else(|| format!("hang: {what}"))
    }
}

/// A crowded volume with a pager, and a park for its threads.
pub struct World {
    pub volume: Volume,
    pub pager: Option<Pager>,
    pub park: Arc<Park>,
    pub rule: Option<Rule>,
    pub options: MapOptions,
    _last_words: Arc<dyn Fn() -> String + Send + Sync>,
}

impl World {
    /// A volume of `blocks` pages. The workers answer every fault, so that one of them can be parked.
    pub fn new(blocks: u64, rule: Option<Rule>) -> Self {
        Self::with_reader(blocks, rule, false)
    }

    pub fn with_reader(blocks: u64, rule: Option<Rule>, reader_answers: bool) -> Self {
        Self::injected(blocks, rule, reader_answers, Injection::default())
    }

    /// The same on a page table with faults put in.
    pub fn injected(blocks: u64, rule: Option<Rule>, reader_answers: bool, injection: Injection) -> Self {
        Self::allocated(Allocation::Blocks, blocks, rule, reader_answers, injection)
    }

    /// One whose files have windows.
    pub fn in_windows(blocks: u64, rule: Option<Rule>) -> Self {
        Self::allocated(Allocation::Windows, blocks, rule, false, Injection::default())
    }

    fn allocated(
        allocation: Allocation,
        blocks: u64,
        rule: Option<Rule>,
        reader_answers: bool,
        injection: Injection,
    ) -> Self {
        let park = Arc::new(Park::default());
        let device = Device::memfd("test", blocks * PAGE).unwrap();
        let volume = Volume::format_observed(device, allocation, park.clone());
        assert_eq!(volume.allocation(), (allocation, None));
        let builder = Pager::builder().workers(3).probe(park.clone()).reader_answers(reader_answers);
        let builder = if injection == Injection::default() { builder } else { builder.inject(injection) };
        let pager = builder.start().unwrap();
        if let Some(rule) = rule {
            volume.sabotage(rule, true);
            pager.sabotage(rule, true);
        }
        let last_words = guard::last_words(pager.describer());
        Self { volume, pager: Some(pager), park, rule, options: MapOptions::new(), _last_words: last_words }
    }

    /// From now on its mappings are resolved by the threads that fault.
    pub fn directly(self) -> Self {
        Self { options: self.options.resolve(Resolve::FaultingThread), ..self }
    }

    /// With windows, and each way to resolve faults.
    pub fn each_in_windows(blocks: u64) -> [World; 2] {
        [World::in_windows(blocks, None), World::in_windows(blocks, None).directly()]
    }

    pub fn pager(&self) -> &Pager {
        self.pager.as_ref().unwrap()
    }

    pub fn map(&self, file: &File, pages: u64) -> Arc<Mapping> {
        self.map_range(file, 0..pages * PAGE)
    }

    pub fn map_range(&self, file: &File, range: Range<u64>) -> Arc<Mapping> {
        Arc::new(self.pager().map_with(file, range, &self.options).unwrap())
    }

    pub fn map_with(&self, file: &File, pages: u64, options: &MapOptions) -> Arc<Mapping> {
        Arc::new(self.pager().map_with(file, 0..pages * PAGE, options).unwrap())
    }

    /// A file of so many pages that is one hole.
    pub fn hole(&self, name: &str, pages: u64) -> File {
        let file = self.volume.create(name).unwrap();
        file.truncate(pages * PAGE).unwrap();
        file
    }

    /// A file of `pages` written pages, each filled with `byte`.
    pub fn file(&self, name: &str, pages: u64, byte: u8) -> File {
        let file = self.volume.create(name).unwrap();
        if pages > 0 {
            file.write_at(&vec![byte; (pages * PAGE) as usize], 0).unwrap();
        }
        file
    }
}

/// What a scenario finds: nothing wrong, or what.
pub type Verdict = Result<(), String>;

pub fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Runs a scenario with every rule intact: it must find nothing.
pub fn intact(scenario: impl Fn(&mut World) -> Verdict, blocks: u64) {
    intact_in(World::new(blocks, None), scenario);
}

/// The same in a world of one's own.
pub fn intact_in(mut world: World, scenario: impl Fn(&mut World) -> Verdict) {
    if let Err(violation) = scenario(&mut world) {
        let pager = world.pager.as_ref().map(Pager::describe).unwrap_or_default();
        // Threads may hang in it: the process ends without them.
        std::mem::forget(world);
        panic!("with every rule intact: {violation}\n{pager}");
    }
}

/// Runs a scenario with one rule broken: it must find something, or it proves nothing.
pub fn broken(rule: Rule, scenario: impl Fn(&mut World) -> Verdict, blocks: u64) {
    broken_in(World::new(blocks, Some(rule)), rule, scenario);
}

/// The same in a world of one's own, in which the rule is broken.
pub fn broken_in(mut world: World, rule: Rule, scenario: impl Fn(&mut World) -> Verdict) {
    let verdict = breaking(|| scenario(&mut world));
    // A broken pager need not be able to end in order.
    std::mem::forget(world);
    match verdict {
        Ok(()) => panic!("{} was broken, and nothing noticed", rule.name()),
        Err(violation) => println!("{} broken: {violation}", rule.name()),
    }
}

/// Both halves of a rule's test, and both again where threads resolve their own faults, in worlds that `$world` makes.
#[macro_export]
macro_rules! rule_tests_in {
    ($world:expr, $name:ident, $rule:expr, $blocks:expr, $scenario:expr) => {
        mod $name {
            use super::*;
            #[test]
            fn holds() {
                intact_in($world($blocks, None), $scenario);
            }
            #[test]
            fn is_noticed_when_broken() {
                broken_in($world($blocks, Some($rule)), $rule, $scenario);
            }
            #[test]
            fn holds_in_the_faulting_thread() {
                intact_in($world($blocks, None).directly(), $scenario);
            }
            #[test]
            fn is_noticed_when_broken_in_the_faulting_thread() {
                broken_in($world($blocks, Some($rule)).directly(), $rule, $scenario);
            }
        }
    };
}

/// The same where files have single blocks.
#[macro_export]
macro_rules! rule_tests {
    ($($test:tt)*) => { $crate::rule_tests_in!(World::new, $($test)*); };
}

/// The same where they have windows.
#[macro_export]
macro_rules! windows_tests {
    ($($test:tt)*) => { $crate::rule_tests_in!(World::in_windows, $($test)*); };
}

/// The two halves of a rule's test: `name::holds` and `name::is_noticed_when_broken`.
#[macro_export]
macro_rules! rule_test {
    ($(#[$doc:meta])* $name:ident, $rule:expr, $blocks:expr, $scenario:expr) => {
        $(#[$doc])*
        mod $name {
            use super::*;
            #[test]
            fn holds() {
                intact($scenario, $blocks);
            }
            #[test]
            fn is_noticed_when_broken() {
                broken($rule, $scenario, $blocks);
            }
        }
    };
}

pub fn page_of(file: &File, page: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; PAGE as usize];
    let got = file.read_at(&mut bytes, page * PAGE).unwrap();
    bytes.truncate(got);
    bytes
}

/// The first word of a page, by a call.
pub fn word_of(file: &File, page: u64) -> u64 {
    u64::from_ne_bytes(page_of(file, page)[..8].try_into().unwrap())
}

/// The pages that are dirty, taken.
pub fn take(map: &Mapping) -> Vec<u64> {
    map.take_dirty().unwrap().into_iter().flat_map(|range| range.start / PAGE..range.end / PAGE).collect()
}

pub fn is_bus(result: &Result<u64, Error>) -> bool {
    matches!(result, Err(Error::Bus(_)))
}
