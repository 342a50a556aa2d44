//! A run: mixes one after the other, each of a seed of its own, each in rounds that end at rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use crate::config::Config;
use crate::ends;
use crate::inject::Inject;
use crate::machine::{kernel, page_bytes};
use crate::mix::{Mix, Scenario};
use crate::neighbour::Neighbours;
use crate::op::Op;
use crate::oracle::{Access, Evidence, Kind, Oracle};
use crate::outcome::{LongestWait, Outcome};
use crate::totals;
use crate::watch::{Came, Watch};
use crate::word::describe;
use crate::work::{self, REST, Worker};
use crate::world::World;

/// Threads run so long before everything is compared at rest.
const ROUND: Duration = Duration::from_millis(1500);

/// A run under way.
struct Run<'a> {
    config: &'a Config,
    watch: Watch,
    outcome: Outcome,
    start: Instant,
}

/// Runs it all.
pub(crate) fn run(config: &Config) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let signals = config.put.has(Inject::Signals);
    let mut run = Run {
        config,
        watch: Watch::new(config, start, signals),
        outcome: Outcome { verdict: "ok".to_owned(), ..Outcome::default() },
        start,
    };
    let mut seed = config.seed;
    while run.goes_on() {
        run.mix(seed)?;
        seed = seed.wrapping_add(1);
    }
    run.watch.finish();
    Ok(run.finish())
}

impl Run<'_> {
    fn goes_on(&self) -> bool {
        let done: u64 = self.outcome.operations.iter().map(|count| count.done).sum();
        self.outcome.violation_count == 0
            && ends::asked().is_none()
            && self.start.elapsed() < self.config.length
            && self.config.operations_max.is_none_or(|most| done < most)
    }

    /// One mix: a world of its own, from its making to its end.
    fn mix(&mut self, seed: u64) -> anyhow::Result<()> {
        let mix = self.config.mix(seed, page_bytes());
        self.announce(&mix);
        let mut oracle = Oracle::new(mix.files, mix.pages, page_bytes());
        oracle.start = self.start;
        oracle.overcommitted = mix.is_overcommitted();
        oracle.scarce = self.config.put.has(Inject::Scarcity);
        oracle.buffer_pages = mix.uses_mapped_buffers();
        let oracle = Arc::new(oracle);
        let world = Arc::new(World::build(mix, oracle.clone(), &self.config.put).context("the run could not start")?);
        self.break_rules(&world);
        let ends = Instant::now() + self.config.mix_length.min(self.config.length.saturating_sub(self.start.elapsed()));
        let came = self.rounds(&world, ends)?;
        self.collect(&world);
        self.watch.next_world(&world);
        match came {
            // A thread hangs in it: nothing of it can be dropped.
            Came::ToNothing => std::mem::forget(world),
            Came::ToTheirEnd => self.end(world),
        }
        self.outcome.seed = seed;
        self.take_violations(&oracle, seed);
        Ok(())
    }

    fn announce(&mut self, mix: &Mix) {
        let options = mix.options();
        if self.outcome.options.is_empty() {
            self.outcome.options.clone_from(&options);
        }
        if self.config.quiet {
            return;
        }
        let options: Vec<String> = options.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let (seed, scenario) = (mix.seed, mix.scenario.name());
        self.watch.line(&format!("seed {seed}: scenario: {scenario}; {}", options.join("; ")));
    }

    #[cfg(feature = "sabotage")]
    fn break_rules(&self, world: &World) {
        for rule in &self.config.rules {
            world.volume.sabotage(*rule, true);
            world.pager.sabotage(*rule, true);
        }
    }

    #[cfg(not(feature = "sabotage"))]
    fn break_rules(&self, _world: &World) {}

    fn rounds(&mut self, world: &Arc<World>, ends: Instant) -> anyhow::Result<Came> {
        let prepare = work::spawn(world, REST, "rest", 0, |hand| hand.prepare())?;
        if self.watch.until_ended(world, std::slice::from_ref(&prepare), || true) == Came::ToNothing {
            return Ok(Came::ToNothing);
        }
        self.join(world, vec![prepare]);
        let most = self
            .config
            .operations_max
            .map(|most| most.saturating_sub(self.outcome.operations.iter().map(|count| count.done).sum()));
        let enough = || ends::asked().is_some() || most.is_some_and(|most| world.oracle.tallies.sum(|_| true) >= most);
        let mut round = 0;
        while Instant::now() < ends && !world.oracle.stop.load(Ordering::SeqCst) && !enough() {
            round += 1;
            if self.round(world, round, ends.min(Instant::now() + ROUND), &enough)? == Came::ToNothing {
                return Ok(Came::ToNothing);
            }
        }
        Ok(Came::ToTheirEnd)
    }

    /// Threads at work, then everything compared.
    fn round(
        &mut self,
        world: &Arc<World>,
        round: u64,
        ends: Instant,
        enough: &dyn Fn() -> bool,
    ) -> anyhow::Result<Came> {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = work::start(world, round, &stop)?;
        let neighbours = Neighbours::start(self.config, world, round)?;
        let came = self.watch.until_ended(world, &workers, || {
            if Instant::now() >= ends || enough() {
                stop.store(true, Ordering::Relaxed);
            }
            stop.load(Ordering::Relaxed) || world.oracle.stop.load(Ordering::Relaxed)
        });
        stop.store(true, Ordering::Relaxed);
        let ended = neighbours.end(&world.oracle);
        if came == Came::ToNothing || !self.join(world, workers) {
            return Ok(if ended { came } else { Came::ToNothing });
        }
        let compared = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let sum = compared.clone();
        let rest = work::spawn(world, REST, "rest", round, move |hand| {
            sum.store(hand.compare_at_rest(), Ordering::SeqCst);
        })?;
        let came = self.watch.until_ended(world, std::slice::from_ref(&rest), || true);
        if came == Came::ToTheirEnd {
            self.join(world, vec![rest]);
        }
        self.outcome.rounds += 1;
        self.outcome.compared_at_rest += compared.load(Ordering::SeqCst);
        Ok(came)
    }

    /// Joins threads that have ended; `false` if there is no use in comparing anything now.
    fn join(&self, world: &World, workers: Vec<Worker>) -> bool {
        for worker in workers {
            let id = worker.beat.id;
            if worker.thread.join().is_err() {
                let found = "a panic, which is printed above".to_owned();
                world.oracle.report_text(Kind::Error, Op::Inspect, id, "no panic", found);
            }
        }
        !world.oracle.stop.load(Ordering::SeqCst)
    }

    /// Adds what a world has counted to what others have.
    fn collect(&mut self, world: &World) {
        let oracle = &world.oracle;
        totals::add_operations(&mut self.outcome.operations, &oracle.tallies);
        self.outcome.judged += oracle.judged.load(Ordering::Relaxed);
        self.outcome.unjudged += oracle.unjudged.load(Ordering::Relaxed);
        self.outcome.parts += oracle.parts.load(Ordering::Relaxed);
        let lost = world.pager.stats().lost_pages;
        if lost > 0 {
            let expected = "a page of the device wherever a file has a block";
            oracle.report_text(Kind::Error, Op::Inspect, REST, expected, format!("{lost} faults found none"));
        }
        totals::add_counters(&mut self.outcome, world);
        totals::add_latencies(&mut self.outcome.faults, world);
    }

    /// The end of a world, in a thread of its own: it may hang, too.
    fn end(&self, world: Arc<World>) {
        let oracle = world.oracle.clone();
        let (tx, ended) = std::sync::mpsc::channel();
        let ending = std::thread::Builder::new().name("end".to_owned()).spawn(move || {
            let world = Arc::into_inner(world).expect("every thread of the world has been joined");
            end_of(world);
            let _ = tx.send(());
        });
        let expected = "the pager's end, and SIGBUS from all mappings after it";
        let (kind, found) = match (ending, ended.recv_timeout(self.config.hang_after)) {
            (Ok(_), Ok(())) => return,
            (Ok(_), Err(RecvTimeoutError::Timeout)) => (Kind::Hang, "it waits on".to_owned()),
            (Ok(_), Err(RecvTimeoutError::Disconnected)) => (Kind::Error, "a panic, which is printed above".to_owned()),
            (Err(error), _) => (Kind::Error, format!("no thread for it: {error}")),
        };
        oracle.report_text(kind, Op::Unmap, REST, expected, found);
    }

    fn take_violations(&mut self, oracle: &Oracle, seed: u64) {
        self.outcome.violation_count = oracle.violation_count.load(Ordering::SeqCst);
        self.outcome.violations = oracle.violations();
        if self.outcome.violation_count > 0 {
            self.outcome.verdict = "violation".to_owned();
            self.outcome.map = self.watch.map(oracle);
            let mix = self.config.mix(seed, page_bytes());
            self.outcome.options = mix.options();
            let scenario = match self.config.scenario {
                Scenario::All => format!(" --scenario {}", mix.scenario.name()),
                _ => String::new(),
            };
            self.outcome.again = format!("{}{scenario} --seed {seed}", self.config.again);
        } else {
            self.outcome.map = self.watch.map(oracle);
            self.outcome.again = format!("{} --seed {}", self.config.again, self.config.seed);
        }
    }

    fn finish(mut self) -> Outcome {
        let config = self.config;
        let mut faults = std::mem::take(&mut self.outcome.faults);
        faults.iter_mut().for_each(totals::quantiles);
        let longest = self.outcome.operations.iter().max_by_key(|count| count.longest_ns);
        let longest_wait = longest.map(|count| LongestWait {
            ns: count.longest_ns,
            operation: count.name.clone(),
            thread: count.longest_thread.clone(),
        });
        let seed = if self.outcome.violation_count > 0 { self.outcome.seed } else { config.seed };
        Outcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            scenario: config.scenario.name(),
            sabotage: config.rules.iter().map(|rule| rule.name().to_owned()).collect(),
            inject: config.put.names(),
            seconds: self.start.elapsed().as_secs_f64(),
            ended_by: ends::asked().map(Signal::as_str),
            faults,
            longest_wait,
            samples: self.watch.samples,
            seed,
            ..self.outcome
        }
    }
}

/// The pager is shut down, and its mappings end in SIGBUS; files are removed, and every block is free again.
fn end_of(world: World) {
    let World { mappings, files, volume, pager, oracle, mix, .. } = world;
    if let Err(error) = pager.shutdown() {
        oracle.report_text(Kind::Error, Op::Unmap, REST, "a pager that ends in order", error.to_string());
    }
    let mappings = mappings.into_iter().filter_map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner));
    for mapped in mappings {
        let loaded = (0..mapped.pages).find_map(|page| {
            let value = mapped.mapping.load(page * oracle.page_bytes).ok()?;
            Some((mapped.first_page + page, value))
        });
        if let Some((page, value)) = loaded {
            let access = Access { op: Op::Load, thread: REST, file: mapped.file, page, address: None };
            let expected = "SIGBUS: the pager has been shut down".to_owned();
            oracle.report(&access, Kind::NoSigbus, Evidence::Text { expected, found: describe(value) });
        }
    }
    drop(files);
    (0..mix.files).for_each(|file| drop(volume.remove(&format!("file-{file}"))));
    if volume.used_blocks() != 0 {
        let found = format!("{} blocks", volume.used_blocks());
        oracle.report_text(Kind::Blocks, Op::Inspect, REST, "no block used once all files are gone", found);
    }
}
