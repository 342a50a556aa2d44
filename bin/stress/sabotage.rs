//! The oracle proves itself: each safety rule is broken in its turn, and must be caught.
//!
//! Every rule has a recipe: the scenario in which it shows, and what widens the window if it is a narrow one. Each
//! run is a process of its own: a broken pager need not be able to end.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use serde::Serialize;
use serde_json::Value;

use crate::ends;
use crate::inject::{Delay, Inject, Put};
use crate::manner::{self, Pins};
use crate::mix::Scenario;
use crate::output::Output;
use crate::terminal::say;

/// Which rules are broken, how often, and for how long at most.
pub(crate) struct Selection {
    pub(crate) which: Which,
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) times: u64,
    pub(crate) pins: Pins,
    pub(crate) json: Option<Output>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    All,
    /// Those that show within a second or two.
    Quick,
    One(Rule),
}

impl Which {
    fn has(self, recipe: &Recipe) -> bool {
        match self {
            Which::All => true,
            Which::Quick => recipe.quick,
            Which::One(rule) => recipe.rule == rule,
        }
    }
}

/// Where a broken rule shows.
pub(crate) struct Recipe {
    pub(crate) rule: Rule,
    pub(crate) scenario: Scenario,
    pub(crate) inject: &'static [Inject],
    pub(crate) gates: &'static [(Point, Delay)],
    /// It shows within a second or two.
    pub(crate) quick: bool,
    /// It is about messages and the wakes that answer them: a thread that resolves its own faults has neither.
    pub(crate) messages: bool,
    /// Where the pages of files lie that it shows on.
    pub(crate) allocation: &'static str,
    /// How stores are noticed in the mappings that it shows in, unless by what is drawn.
    pub(crate) tracking: Option<&'static str>,
    /// A change hangs when it takes longer than this, and anything else as usual.
    pub(crate) change_limit: Option<Duration>,
}

/// A gate that many threads meet, and that is wide against what races through it.
const GATE: Delay = Delay { ppm: 200_000, us_max: 1500 };

impl Recipe {
    pub(crate) fn of(rule: Rule) -> Self {
        let with = |scenario, inject, gates| Self {
            rule,
            scenario,
            inject,
            gates,
            quick: true,
            messages: false,
            allocation: manner::BLOCKS,
            tracking: None,
            change_limit: None,
        };
        let slow = |recipe: Self| Self { quick: false, ..recipe };
        let in_windows = |recipe: Self| Self { allocation: manner::WINDOWS, ..recipe };
        let exactly = |recipe: Self| Self { tracking: Some(manner::EXACT), ..recipe };
        let messages = |recipe: Self| Self { messages: true, ..slow(recipe) };
        match rule {
            Rule::GuardThroughInstall => with(Scenario::Reuse, &[], &[(Point::Decided, GATE)]),
            Rule::InvalidateUnderLock => with(Scenario::Reuse, &[], &[(Point::Published, GATE)]),
            Rule::ZapBeforeFree => with(Scenario::Reuse, &[], &[(Point::Freed, GATE)]),
            Rule::SizeUnderLock => with(Scenario::TruncateStorm, &[], &[(Point::SizeSeen, GATE)]),
            Rule::SizeOnMkwrite => {
                with(Scenario::TruncateStorm, &[], &[(Point::FaultRead, GATE), (Point::FaultTaken, GATE)])
            }
            Rule::ZeroWhatIsAHole => with(Scenario::Reuse, &[], &[(Point::BeforeInvalidate, GATE)]),
            Rule::LoserLeavesBlock => with(Scenario::Reuse, &[], &[(Point::Allocated, GATE)]),
            Rule::ForgetBeforeProtect => with(Scenario::Reuse, &[], &[(Point::Collecting, GATE)]),
            Rule::ZeroTailOnTruncate | Rule::ZeroTailOnGrowth | Rule::ZeroOnlyTheTail => {
                with(Scenario::EofEdge, &[], &[])
            }
            // The rest end in hangs: each takes as long as it takes to call one a hang.
            Rule::WakeAfterEexist => messages(with(Scenario::Reuse, &[Inject::Exist], &[])),
            Rule::ServeWhoInsists => messages(with(Scenario::Reuse, &[Inject::Awake], &[])),
            Rule::WakeOnRetry => messages(with(Scenario::Reuse, &[], &[])),
            Rule::NoCopyUnderLock => slow(with(Scenario::EofEdge, &[], &[])),
            Rule::ReaderNeverBlocks => messages(with(Scenario::UnmapStorm, &[], &[])),
            Rule::RevokeBeforeClose => slow(with(Scenario::Reuse, &[], &[])),
            Rule::UnmapUnderLock => slow(with(Scenario::UnmapStorm, &[], &[(Point::Decided, GATE)])),
            // Harmless as long as the reader reads. So it is held for long, and then no change may wait for it.
            Rule::NoWaitUnderLock => {
                let held = &[(Point::FaultRead, Delay { ppm: 2000, us_max: 3_000_000 })];
                Self { change_limit: Some(Duration::from_secs(1)), ..messages(with(Scenario::Reuse, &[], held)) }
            }
            // What is harmed is none of the files': the scenario is one that leaves most of the machine to the processes beside.
            Rule::RevokeInPlace => slow(with(Scenario::ThreeParty, &[Inject::Memlock], &[])),
            Rule::RevokeOnce => slow(with(Scenario::ThreeParty, &[Inject::Panics], &[])),
            Rule::MendWhatIsOurs => slow(with(Scenario::ThreeParty, &[Inject::Exhaustion], &[])),
            Rule::MadeUpAddresses => slow(with(Scenario::ThreeParty, &[Inject::MadeUp], &[])),
            Rule::ForkCheck => slow(with(Scenario::ThreeParty, &[Inject::Forks], &[])),
            // Where some mapping lets stores through no load leaves zeros.
            Rule::LookAgainAtZeros => exactly(in_windows(with(Scenario::Reuse, &[], &[(Point::BeforeZerosGo, GATE)]))),
            Rule::ArmWhatIsPunched => exactly(in_windows(with(Scenario::Reuse, &[], &[]))),
            Rule::PresentIsWritten => {
                Self { tracking: Some(manner::MIXED), ..in_windows(with(Scenario::Reuse, &[], &[])) }
            }
            Rule::KeepStoresOut => Self {
                tracking: Some(manner::ASYNCHRONOUS),
                ..in_windows(with(Scenario::Reuse, &[], &[(Point::Published, GATE)]))
            },
            _ => with(Scenario::Reuse, &[], &[]),
        }
    }

    /// What this program was built without, and the rule can't be broken without.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        let fake = self.inject.contains(&Inject::MadeUp) && !cfg!(feature = "fake");
        fake.then_some("the fake page table: build with --features sabotage,fake")
    }

    fn widened(&self) -> String {
        let mut names = Put::new(self.inject, self.gates).names();
        names.extend(self.change_limit.map(|limit| format!("no change may take {} s", limit.as_secs())));
        if names.is_empty() { "-".to_owned() } else { names.join(", ") }
    }
}

/// What came of breaking one rule, some times.
#[derive(Serialize, Default)]
struct Row {
    rule: &'static str,
    scenario: String,
    times: u64,
    caught: u64,
    /// What was reported, and how often.
    reported: Vec<(String, u64)>,
    /// Of each time that it was caught, in order.
    seconds: Vec<f64>,
    operations: Vec<u64>,
    seeds: Vec<u64>,
    /// Seconds that the unbroken pager ran in the same way, and what was reported of it.
    intact_seconds: f64,
    intact_reported: Vec<String>,
    /// All that those runs said.
    #[serde(skip)]
    intact_said: Vec<String>,
    widened: String,
}

/// The rules, and where each one shows.
pub(crate) fn list() {
    say!("{:<26}{:<16}widened by", "rule", "scenario");
    for rule in Rule::ALL {
        let recipe = Recipe::of(*rule);
        say!("{:<26}{:<16}{}", rule.name(), recipe.scenario.name(), recipe.widened());
    }
}

/// Breaks each rule in its turn; whether each was caught, and nothing was reported of the unbroken pager.
pub(crate) fn table(selection: &Selection) -> anyhow::Result<bool> {
    let rules: Vec<Recipe> = Rule::ALL.iter().map(|rule| Recipe::of(*rule)).collect();
    let rules = rules.into_iter().filter(|recipe| selection.which.has(recipe));
    let (left_out, rules): (Vec<Recipe>, Vec<Recipe>) = rules.partition(|recipe| recipe.lacks().is_some());
    let there_are = selection.pins.allow_messages();
    let (rules, without): (Vec<Recipe>, Vec<Recipe>) =
        rules.into_iter().partition(|recipe| there_are || !recipe.messages);
    say!(
        "each rule broken {} times from seed {}, for {} s at most",
        selection.times,
        selection.seed,
        selection.seconds
    );
    say!(
        "{:<25} {:<9} {:<22} {:>8} {:>12} {:>11}  {:<13} widened by",
        "rule",
        "caught",
        "reported",
        "seconds",
        "operations",
        "seed",
        "unbroken"
    );
    for recipe in &without {
        say!("{:<25} about messages: there are none where threads resolve their own faults", recipe.rule.name());
    }
    for recipe in &left_out {
        say!("{:<25} LEFT OUT: it needs {}", recipe.rule.name(), recipe.lacks().unwrap_or_default());
    }
    let mut rows = Vec::new();
    for recipe in &rules {
        let row = try_rule(recipe, selection)?;
        // Of a rule that a signal kept from being broken even once there is nothing to tell.
        if row.times > 0 {
            print(&row);
            rows.push(row);
        }
        if ends::asked().is_some() {
            break;
        }
    }
    if let Some(json) = &selection.json {
        json.write(&serde_json::to_vec_pretty(&rows)?)?;
    }
    let missed: Vec<&str> = rows.iter().filter(|row| row.caught * 10 < row.times * 9).map(|row| row.rule).collect();
    let noisy: Vec<&str> = rows.iter().filter(|row| !row.intact_reported.is_empty()).map(|row| row.rule).collect();
    say!("");
    if let Some(signal) = ends::asked() {
        say!("ended early by {signal}: {} of {} rules tried", rows.len(), rules.len());
    }
    match (missed.is_empty(), noisy.is_empty()) {
        (true, true) if rows.is_empty() => {}
        (true, true) => say!("each broken rule was caught, and nothing was reported of the unbroken pager"),
        (false, _) => say!("MISSED in more than one of ten: {}", missed.join(", ")),
        (true, false) => say!("REPORTED OF THE UNBROKEN PAGER, as run for: {}", noisy.join(", ")),
    }
    rows.iter().flat_map(|row| &row.intact_said).for_each(|said| say!("\n{said}"));
    Ok(missed.is_empty() && noisy.is_empty())
}

fn try_rule(recipe: &Recipe, selection: &Selection) -> anyhow::Result<Row> {
    let mut row =
        Row { rule: recipe.rule.name(), scenario: recipe.scenario.name(), widened: recipe.widened(), ..Row::default() };
    for time in 0..selection.times {
        let seed = selection.seed.wrapping_add(1000 * time);
        eprint_progress(&format!("{} {} of {}", row.rule, time + 1, selection.times));
        let Some(found) = run_child(recipe, &selection.pins, seed, selection.seconds, false)? else { break };
        row.times += 1;
        let Some(kind) = found.kind else { continue };
        row.caught += u64::from(found.seconds <= selection.seconds as f64);
        match row.reported.iter_mut().find(|(have, _)| *have == kind) {
            Some((_, count)) => *count += 1,
            None => row.reported.push((kind, 1)),
        }
        row.seconds.push(found.seconds);
        row.operations.push(found.operations);
        row.seeds.push(found.seed);
        // The unbroken pager on the same seed: as long as the broken one was, and a second at least.
        let seconds = found.seconds.ceil().max(1.0) as u64;
        let Some(intact) = run_child(recipe, &selection.pins, found.seed, seconds, true)? else { break };
        row.intact_seconds += intact.seconds;
        if let Some(kind) = intact.kind {
            row.intact_reported.push(kind);
            row.intact_said.push(intact.said);
        }
    }
    eprint_progress("");
    Ok(row)
}

fn eprint_progress(text: &str) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = std::io::stderr().flush();
    }
}

fn print(row: &Row) {
    let reported: Vec<String> = row.reported.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let median = |list: &[f64]| {
        let mut sorted = list.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    };
    let seconds = median(&row.seconds).map_or("-".to_owned(), |seconds| format!("{seconds:.2}"));
    let operations: Vec<f64> = row.operations.iter().map(|count| *count as f64).collect();
    let operations = median(&operations).map_or("-".to_owned(), |count| format!("{count:.0}"));
    let seed = row.seeds.first().map_or("-".to_owned(), u64::to_string);
    let unbroken = match row.intact_reported.first() {
        None => format!("quiet, {:.0} s", row.intact_seconds),
        Some(kind) => format!("{} {kind}!", row.intact_reported.len()),
    };
    say!(
        "{:<25} {:<9} {:<22} {seconds:>8} {operations:>12} {seed:>11}  {unbroken:<13} {}",
        row.rule,
        format!("{}/{}", row.caught, row.times),
        if reported.is_empty() { "NOTHING".to_owned() } else { reported.join(", ") },
        row.widened
    );
}

/// A run of this program that ended with an exit code and without a result.
#[derive(Debug, thiserror::Error)]
#[error("a run of this program ended with exit code {0} before it had begun")]
pub(crate) struct NotRun(pub(crate) i32);

/// What one run reported.
struct Found {
    kind: Option<String>,
    seconds: f64,
    operations: u64,
    seed: u64,
    /// Of a run with the rule intact, what it said: what is found then is a fault of the pager or the harness.
    said: String,
}

/// Runs this program once more, with one rule broken, or with nothing but that. Nothing comes of it if a signal asks to end.
fn run_child(recipe: &Recipe, pins: &Pins, seed: u64, seconds: u64, intact: bool) -> anyhow::Result<Option<Found>> {
    if ends::asked().is_some() {
        return Ok(None);
    }
    let json = std::env::temp_dir().join(format!("daxpager-stress-{}.json", std::process::id()));
    let mut command = ends::this_program()?;
    let hang_seconds = if recipe.change_limit.is_some() { "20" } else { "5" };
    command.args(["--sabotage", recipe.rule.name(), "--quiet", "--hang-seconds", hang_seconds]);
    command.args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string()]).arg("--json").arg(&json);
    for (name, value) in pins.given() {
        command.args([format!("--{name}"), value]);
    }
    if intact {
        command.arg("--intact");
    }
    let start = Instant::now();
    let saying = std::env::temp_dir().join(format!("daxpager-stress-{}.txt", std::process::id()));
    let stdout = if intact { Stdio::from(std::fs::File::create(&saying)?) } else { Stdio::null() };
    let mut child = command.stdout(stdout).stderr(Stdio::null()).spawn()?;
    // A pager broken badly enough does not even let the harness end.
    let limit = Duration::from_secs(seconds + 60);
    let status = ends::end_of(&mut child, limit, Duration::from_millis(10))?;
    let text = std::fs::read(&json).unwrap_or_default();
    let said = std::fs::read_to_string(&saying).unwrap_or_default();
    let _ = (std::fs::remove_file(&json), std::fs::remove_file(&saying));
    // Also if the signal went to the whole process group, and reached the child first.
    if ends::asked().is_some() && status.is_none_or(|status| status.signal().is_some()) {
        return Ok(None);
    }
    let parsed: Option<Value> = serde_json::from_slice(&text).ok();
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let Some(outcome) = parsed else {
        let kind = match status {
            None => "stuck".to_owned(),
            // Misuse, or no userfaultfd: nothing has been tried at all.
            Some(status) if status.code().is_some() => return Err(NotRun(status.code().unwrap_or(2)).into()),
            Some(status) => format!("died: {status}"),
        };
        let seconds = start.elapsed().as_secs_f64();
        return Ok(Some(Found { kind: Some(kind), seconds, operations: 0, seed, said }));
    };
    let violation = &outcome["violations"][0];
    let kind = violation["kind"].as_str().map(str::to_owned);
    let seconds = if kind.is_some() { number(&violation["seconds"]) } else { number(&outcome["seconds"]) };
    let operations = number(&violation["operations"]) as u64;
    Ok(Some(Found { kind, seconds, operations, seed: outcome["seed"].as_u64().unwrap_or(seed), said }))
}
