//! The rules about order, broken one at a time: each is found, and the schedule that shows it can be run again.
//!
//! The other rules are about what is done, not when, and one schedule is enough for those; and `no-copy-under-lock` is
//! about a user's buffer in a mapping, which the fake page table does not have.

use std::time::Instant;

use daxpager::Allocation;
use daxpager::sabotage::Rule;

use crate::hunt::{How, hunt, replay};
use crate::scenarios::named;
use crate::world::with_allocation;

/// A broken rule is found in no more schedules than this.
const SCHEDULES_MAX: usize = 10_000;
const SEED: u64 = 1;
/// Runs of which the median is taken.
const RUNS: u64 = 20;

/// Each rule, and the scenario that is made for it.
const FINDINGS: &[(Rule, &str)] = &[
    (Rule::Revalidate, "punch"),
    (Rule::GuardThroughInstall, "punch"),
    (Rule::InvalidateUnderLock, "punch"),
    (Rule::PublishBeforeZap, "punch"),
    (Rule::ZapBeforeFree, "one block"),
    (Rule::ZeroNewBlock, "trade"),
    (Rule::SizeUnderLock, "truncate"),
    (Rule::SizeOnMkwrite, "truncate"),
    (Rule::MkwriteNeverAllocates, "punch"),
    (Rule::LoserLeavesBlock, "two stores"),
    (Rule::ZeroWhatIsAHole, "store and write"),
    (Rule::ZapZerosOnAllocate, "punch"),
    (Rule::WakeAfterEexist, "injected"),
    (Rule::WakeOnRetry, "mkwrite"),
    (Rule::ServeWhoInsists, "restless"),
    (Rule::UnmapUnderLock, "unmap"),
    (Rule::NoWaitUnderLock, "slow reader"),
    (Rule::ReaderNeverBlocks, "punch"),
    (Rule::RevokeBeforeClose, "shutdown"),
    (Rule::ForgetBeforeProtect, "dirty"),
];

/// The same where files have windows. The others are about blocks that are used again, or about ranges that are pointed elsewhere.
const IN_WINDOWS: &[(Rule, &str)] = &[
    (Rule::GuardThroughInstall, "punch"),
    (Rule::InvalidateUnderLock, "punch"),
    (Rule::PublishBeforeZap, "punch"),
    (Rule::SizeUnderLock, "truncate"),
    (Rule::SizeOnMkwrite, "truncate"),
    (Rule::ZeroWhatIsAHole, "store and write"),
    (Rule::WakeAfterEexist, "injected"),
    (Rule::RevokeBeforeClose, "shutdown"),
    (Rule::LookAgainAtZeros, "zeros"),
    (Rule::ArmWhatIsPunched, "armed"),
    (Rule::PresentIsWritten, "open"),
    (Rule::KeepStoresOut, "ahead"),
];

/// With the seed fixed, each broken rule shows, and shows again, in the same way, when the schedule is run again.
#[test]
fn every_broken_rule_is_found() {
    all_are_found(FINDINGS);
}

#[test]
fn every_broken_rule_is_found_in_windows() {
    with_allocation(Allocation::Windows, || all_are_found(IN_WINDOWS));
}

fn all_are_found(findings: &[(Rule, &str)]) {
    let mut missed = Vec::new();
    for (rule, name) in findings {
        let scenario = named(name);
        let Some(found) = hunt(How::Pct, SEED, scenario, *rule, SCHEDULES_MAX) else {
            missed.push(rule.name());
            continue;
        };
        let again = replay(&found, scenario, *rule);
        assert_eq!(again.as_deref(), Some(&*found.message), "{} does not replay", rule.name());
        let line = found.message.lines().next().unwrap_or_default();
        println!("{:24} {name:12} {:5} schedules: {line:.90}", rule.name(), found.schedules);
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Prints a part of the table of `docs/models.md`: schedules until a broken rule is found, the median of several runs
/// and the most.
#[test]
#[ignore = "takes a minute"]
fn medians_pct() {
    medians(How::Pct);
}

/// As [`medians_pct`]. Where the window is long the random scheduler finds nothing, for a long time.
#[test]
#[ignore = "takes many minutes"]
fn medians_random() {
    medians(How::Random);
}

fn medians(how: How) {
    let start = Instant::now();
    for (rule, name) in FINDINGS {
        println!("| {} | {name} | {} |", rule.name(), median(how, *rule, name));
    }
    println!("{how:?}, in {:.0?}", start.elapsed());
}

/// Median and maximum over the runs, as cells of a table.
fn median(how: How, rule: Rule, name: &str) -> String {
    let mut counts = Vec::new();
    for seed in 0..RUNS {
        match hunt(how, 100 + seed, named(name), rule, SCHEDULES_MAX) {
            Some(found) => counts.push(found.schedules),
            None => {
                counts.push(usize::MAX);
                // One more miss than there may be for a median: nobody needs the rest.
                if counts.iter().filter(|count| **count == usize::MAX).count() as u64 > RUNS / 2 {
                    break;
                }
            }
        }
    }
    counts.sort_unstable();
    let cell = |count: usize| if count == usize::MAX { "–".to_owned() } else { count.to_string() };
    let most = *counts.last().expect("there are runs");
    if (counts.len() as u64) < RUNS {
        return "– | –".to_owned();
    }
    format!("{} | {}", cell(counts[counts.len() / 2]), cell(most))
}
