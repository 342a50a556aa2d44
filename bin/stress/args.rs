//! The command line. Everything that can be wrong with it is found before anything starts.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use daxpager::sabotage::Rule;

use crate::config::Config;
use crate::inject::{Inject, Put};
use crate::machine::{memory_available, page_bytes};
use crate::manner::{self, Pins};
use crate::mix::{DEVICE_BLOCKS_MAX, FILE_PAGES_MAX, Scenario, THREADS_MIN};
use crate::oracle::history::{EVENTS_MAX, Event};
use crate::oracle::trace::{EVENTS, Entry};
use crate::output::Output;
use crate::sabotage::{Recipe, Selection, Which};
use crate::scene;
use crate::word::{SLOTS, THREADS_MAX};

/// Threads that a person may ask for; one more compares everything at rest.
const THREADS_MOST: usize = THREADS_MAX - 2;
/// Seeds that are drawn stay below this, so that they are short to type.
const SEEDS_DRAWN: u64 = 1_000_000_000;

/// Says whether the pager keeps truncate, hole punch, fault and munmap apart.
///
/// Threads load, store, compare-and-swap and copy through mappings, by instruction and by
/// system call; others truncate, punch, zero, allocate, read, write, map and unmap meanwhile.
/// Each stored word says where it belongs and when it was stored, and an oracle knows which
/// values a load may give. What must not be is reported with the page's last 64 events, and
/// ends the run. Every 1.5 s everything is brought to rest and compared with the device itself.
///
/// What exactly the threads do is drawn from a seed: another one every ten seconds.
#[derive(Parser, Debug)]
#[command(
    name = "daxpager-stress",
    version,
    verbatim_doc_comment,
    after_help = "Exit status:\n   0  nothing is wrong; with --sabotage all or quick: each broken rule was caught\n   \
                  1  a violation was found; with --sabotage all or quick: a rule was missed,\n      or something reported of the unbroken pager\n   \
                  2  bad arguments, or it could not run\n  77  no userfaultfd, or not all of it that is needed\n\
                  After a SIGINT, SIGTERM or SIGHUP it shows what was done so far and ends by that signal, or with 1 if a\nviolation was found.\n\n\
                  Examples:\n  daxpager-stress --seconds 600\n  daxpager-stress --scenario reuse --seed 7 --report reuse.html\n  \
                  daxpager-stress --inject all --seconds 60\n  daxpager-stress --inject all,neighbour --seconds 3600\n  daxpager-stress --sabotage revalidate --seconds 30\n  \
                  daxpager-stress --sabotage all --times 10"
)]
pub(crate) struct Args {
    /// How long it runs, 1 to 604800; of --sabotage all, how long each rule has to be caught [default: 60, or 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: Option<u64>,
    /// Ends the run after this many operations of all threads together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Threads that make operations, 2 to 62 [default: as the seed draws]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where to begin; the second mix has the next seed, and so on [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What the threads do
    #[arg(long, value_enum, value_name = "NAME")]
    scenario: Option<Scenario>,
    /// Who resolves faults: the pager's threads, or the one that faults (x86-64); mixed draws it for each mapping
    /// [default: as the seed draws]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(manner::resolve_names()))]
    resolve: Option<String>,
    /// How stores through mappings are noticed [default: as the seed draws]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(manner::tracking_names()))]
    tracking: Option<String>,
    /// What a fault installs at most: one page, 16 KiB, or what the library has as a default [default: as the seed draws]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(manner::around_names()))]
    fault_around: Option<String>,
    /// Where the pages of files lie: on single blocks, which are used again at once, or each at its place in a window
    /// [default: as the seed draws; blocks with --sabotage, but for rules of windows]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(manner::allocation_names()))]
    allocation: Option<String>,
    /// Faults to put in, with commas between them
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    inject: Vec<Inject>,
    /// Breaks a safety rule (see --list-rules), in the scenario that shows it best; or each in its turn: "all", or "quick" for
    /// those that show within a second or two. Needs the feature "sabotage"
    #[arg(long, value_name = "RULE")]
    sabotage: Option<String>,
    /// With --sabotage RULE: everything but the breaking
    #[arg(long, requires = "sabotage")]
    intact: bool,
    /// Breaks each rule so often, each time with another seed, and makes a table of it [default: 1, for "all" and "quick"]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000), requires = "sabotage")]
    times: Option<u64>,
    /// Lists the rules that can be broken, and where each one shows
    #[arg(long)]
    list_rules: bool,
    /// Writes everything about the run to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a page to look at to FILE: latencies, rates, pages over time
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// The size of the device [default: what the files of the seed may want, or less]
    #[arg(long, value_name = "BYTES")]
    device_bytes: Option<u64>,
    /// An operation that takes longer hangs: 5 to 3600
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3600))]
    hang_seconds: u64,
    /// How long each seed runs [default: 10; with --sabotage RULE 3, as not every mix shows it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    mix_seconds: Option<u64>,
    /// Shows nothing before the end
    #[arg(long)]
    quiet: bool,
    /// What this program runs itself as, for --inject stops
    #[arg(long, hide = true)]
    stop_parent: bool,
    /// What this program runs itself as, for what is done in processes beside
    #[arg(long, hide = true, value_enum, value_name = "NAME")]
    scene: Option<scene::Name>,
}

/// What is to be done.
pub(crate) enum Task {
    Run { config: Box<Config>, json: Option<Output>, report: Option<Output> },
    Table(Selection),
    Scene { name: scene::Name, seed: u64, rules: Vec<Rule>, limit: Duration },
    ListRules,
    StopParent,
}

impl Args {
    /// What is asked for. The error is a sentence for the person who asked.
    pub(crate) fn task(self) -> anyhow::Result<Task> {
        if self.stop_parent {
            return Ok(Task::StopParent);
        }
        if let Some(name) = self.scene {
            let rule = self.sabotage.as_deref().map(recipe_of).transpose()?.map(|recipe| recipe.rule);
            let (seed, limit) = (self.seed.unwrap_or(0), Duration::from_secs(self.hang_seconds));
            return Ok(Task::Scene { name, seed, rules: rule.into_iter().collect(), limit });
        }
        if self.list_rules {
            return Ok(Task::ListRules);
        }
        if let Some(threads) = self.threads
            && !(THREADS_MIN..=THREADS_MOST).contains(&threads)
        {
            bail!("--threads {threads}: there must be {THREADS_MIN} to {THREADS_MOST}");
        }
        if self.json.is_some() && self.json == self.report {
            bail!("--json and --report name the same file");
        }
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..SEEDS_DRAWN));
        let mut task = match (self.sabotage.as_deref(), self.times) {
            (Some("all"), _) => self.table(Which::All, seed)?,
            (Some("quick"), _) => self.table(Which::Quick, seed)?,
            (Some(name), Some(_)) => self.table(Which::One(recipe_of(name)?.rule), seed)?,
            _ => {
                let config = self.config(seed)?;
                check_memory(&config)?;
                Task::Run { config: Box::new(config), json: None, report: None }
            }
        };
        // Last: it makes a file that is not there.
        let output = |path: &Option<PathBuf>| path.as_deref().map(Output::check).transpose();
        match &mut task {
            Task::Run { json, report, .. } => (*json, *report) = (output(&self.json)?, output(&self.report)?),
            Task::Table(selection) => selection.json = output(&self.json)?,
            Task::Scene { .. } | Task::ListRules | Task::StopParent => {}
        }
        Ok(task)
    }

    fn table(&self, which: Which, seed: u64) -> anyhow::Result<Task> {
        check_feature("--sabotage")?;
        let given = [
            ("--scenario", self.scenario.is_some()),
            ("--inject", !self.inject.is_empty()),
            ("--intact", self.intact),
            ("--report", self.report.is_some()),
            ("--ops", self.ops.is_some()),
            ("--threads", self.threads.is_some()),
            ("--device-bytes", self.device_bytes.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
            bail!("{name} does not go with a table: each rule has a scenario of its own");
        }
        let seconds = self.seconds.unwrap_or(30);
        Ok(Task::Table(Selection {
            which,
            seed,
            seconds,
            times: self.times.unwrap_or(1),
            pins: self.pins(None),
            json: None,
        }))
    }

    fn config(&self, seed: u64) -> anyhow::Result<Config> {
        let recipe = self.sabotage.as_deref().map(recipe_of).transpose()?;
        let mut kinds = self.inject.clone();
        let mut gates = Vec::new();
        if let Some(recipe) = &recipe {
            kinds.extend(recipe.inject.iter().filter(|kind| !self.inject.contains(kind)));
            gates.extend(recipe.gates);
        }
        let put = Put::new(&kinds, &gates);
        if put.needs_feature() {
            check_feature("--inject")?;
        }
        let fixed = recipe.as_ref().map(|recipe| recipe.scenario);
        let rules = recipe.iter().filter(|_| !self.intact).map(|recipe| recipe.rule).collect();
        Ok(Config {
            scenario: self.scenario.or(fixed).unwrap_or(Scenario::Random),
            seed,
            length: Duration::from_secs(self.seconds.unwrap_or(60)),
            operations_max: self.ops,
            threads: self.threads,
            device_bytes: self.device_bytes,
            pins: self.pins(recipe.as_ref()),
            put,
            rules,
            hang_after: Duration::from_secs(self.hang_seconds),
            change_limit: recipe.as_ref().and_then(|recipe| recipe.change_limit),
            mix_length: Duration::from_secs(self.mix_seconds.unwrap_or(if recipe.is_some() { 3 } else { 10 })),
            // Two pages: some are taken back all the time.
            zeros_bytes: recipe
                .as_ref()
                .filter(|recipe| recipe.allocation == manner::WINDOWS)
                .map(|_| 2 * page_bytes()),
            again: self.again(),
            quiet: self.quiet,
        })
    }

    /// What is asked for. A rule that is about messages shows only where there are some.
    fn pins(&self, recipe: Option<&Recipe>) -> Pins {
        let messages = recipe.filter(|recipe| recipe.messages).map(|_| manner::PAGER.to_owned());
        Pins {
            resolve: self.resolve.clone().or(messages),
            tracking: self.tracking.clone().or_else(|| recipe.and_then(|recipe| recipe.tracking).map(str::to_owned)),
            fault_around: self.fault_around.clone(),
            allocation: self.allocation.clone().or_else(|| recipe.map(|recipe| recipe.allocation.to_owned())),
        }
    }

    /// The command that runs this again, without the seed.
    fn again(&self) -> String {
        let mut words = vec!["daxpager-stress".to_owned()];
        let mut add = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("--{name} {value}")));
        };
        add("sabotage", self.sabotage.clone());
        // Of all scenarios the one that ran is added when it is known.
        add("scenario", self.scenario.filter(|scenario| *scenario != Scenario::All).map(Scenario::name));
        let kinds = Put::new(&self.inject, &[]).names();
        add("inject", (!kinds.is_empty()).then(|| kinds.join(",")));
        self.pins(None).given().for_each(|(name, value)| add(name, Some(value)));
        add("threads", self.threads.map(|threads| threads.to_string()));
        add("device-bytes", self.device_bytes.map(|bytes| bytes.to_string()));
        add("hang-seconds", (self.hang_seconds != 20).then(|| self.hang_seconds.to_string()));
        add("seconds", Some(self.seconds.unwrap_or(60).max(30).to_string()));
        if self.intact {
            words.push("--intact".to_owned());
        }
        words.join(" ")
    }
}

fn recipe_of(name: &str) -> anyhow::Result<Recipe> {
    let rule = Rule::ALL.iter().find(|rule| rule.name() == name);
    let Some(rule) = rule else {
        let names: Vec<&str> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        bail!("--sabotage {name}: there is no such rule. There are: all, quick, {}", names.join(", "));
    };
    check_feature("--sabotage")?;
    let recipe = Recipe::of(*rule);
    if let Some(feature) = recipe.lacks() {
        bail!("--sabotage {name} needs {feature}");
    }
    Ok(recipe)
}

fn check_feature(option: &str) -> anyhow::Result<()> {
    if cfg!(feature = "sabotage") {
        return Ok(());
    }
    bail!("{option} needs a library that can be broken: build with --features sabotage")
}

/// Memory that a run takes at most, whatever its seeds draw: the largest device, and what the oracle keeps of each page.
pub(crate) fn memory_bytes_max(config: &Config) -> u64 {
    let page = SLOTS * EVENTS_MAX * size_of::<Event>() + EVENTS * size_of::<Entry>();
    let device = config.device_bytes.unwrap_or(DEVICE_BLOCKS_MAX * page_bytes());
    device.saturating_add(FILE_PAGES_MAX * page as u64)
}

fn check_memory(config: &Config) -> anyhow::Result<()> {
    let size = page_bytes();
    if let Some(bytes) = config.device_bytes
        && (bytes % size != 0 || bytes < 2 * size)
    {
        bail!("--device-bytes {bytes}: a device has at least two blocks of {size} bytes, and no part of one");
    }
    let needed = memory_bytes_max(config);
    let available =
        memory_available().ok_or_else(|| anyhow!("there is no /proc/meminfo to tell how much memory there is"))?;
    if needed > available / 10 * 9 {
        bail!("the device and what the oracle knows take up to {needed} bytes, and {available} are to be had");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(words: &[&str]) -> Result<Task, String> {
        let args = Args::try_parse_from([&["daxpager-stress"], words].concat()).map_err(|error| error.to_string())?;
        args.task().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        for (words, named) in [
            (vec!["--threads", "0"], "--threads 0"),
            (vec!["--threads", "63"], "2 to 62"),
            (vec!["--seconds", "0"], "0 is not in"),
            (vec!["--ops", "0"], "0 is not in"),
            (vec!["--scenario", "calm"], "calm"),
            (vec!["--inject", "again,gremlins"], "gremlins"),
            (vec!["--sabotage", "everything"], "there is no such rule"),
            (vec!["--sabotage", "all", "--ops", "5"], "--ops does not go with"),
            (vec!["--device-bytes", "4097"], "no part of one"),
            (vec!["--device-bytes", "1152921504606846976"], "are to be had"),
            (vec!["--json", "/no/such/folder/x.json"], "/no/such/folder"),
            (vec!["--report", "/proc"], "/proc"),
            (vec!["--intact"], "--sabotage"),
        ] {
            let error = task(&words).err().unwrap_or_else(|| panic!("{words:?} was taken"));
            assert!(error.contains(named), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_command_that_runs_it_again_is_taken() {
        let words = ["--scenario", "reuse", "--inject", "delays,signals", "--threads", "5", "--seconds", "40"];
        let Ok(Task::Run { config, .. }) = task(&words) else { panic!("it was refused") };
        let again: Vec<String> = config.again.split(' ').skip(1).map(str::to_owned).collect();
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        let Ok(Task::Run { config: second, .. }) = task(&again) else { panic!("{} was refused", config.again) };
        assert_eq!((second.scenario, second.threads, second.again), (config.scenario, Some(5), config.again));
    }
}
