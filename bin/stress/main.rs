//! The stress harness: see `--help`, and `docs/stress.md` for how it judges and what it has found.
//!
//! Exits with 0 if nothing is wrong, 1 if something is, 2 on misuse or if it could not run, and 77 where userfaultfd is not
//! to be had.

mod args;
mod config;
#[path = "../common/ends.rs"]
mod ends;
#[cfg(test)]
#[path = "../../tests/common/guard.rs"]
mod guard;
#[path = "../common/html.rs"]
mod html;
mod inject;
#[path = "../common/machine.rs"]
mod machine;
mod manner;
mod mix;
mod neighbour;
mod op;
mod oracle;
mod outcome;
#[path = "../common/output.rs"]
mod output;
mod raw;
mod report;
mod run;
mod sabotage;
#[path = "../common/scarce.rs"]
mod scarce;
mod scene;
#[path = "../common/svg.rs"]
mod svg;
#[path = "../common/table.rs"]
mod table;
#[path = "../common/terminal.rs"]
mod terminal;
mod totals;
#[path = "../common/units.rs"]
mod units;
mod watch;
mod word;
mod work;
mod world;

use std::process::ExitCode;

use args::{Args, Task};
use clap::Parser;
use config::Config;
use machine::{MISUSE, NO_USERFAULTFD};
use output::Output;
use terminal::say;

const VIOLATION: u8 = 1;

fn main() -> ExitCode {
    let begun = ends::end_with_parent().and_then(|()| ends::take_signals()).map_err(anyhow::Error::from);
    let task = match begun.and_then(|()| Args::parse().task()) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("daxpager-stress: {error:#}");
            return MISUSE.into();
        }
    };
    let clean = match task {
        Task::StopParent => {
            neighbour::stops::stop_parent();
            std::process::exit(0)
        }
        Task::Scene { name, seed, rules, limit } => scene::run(name, seed, rules, limit).map(|()| true),
        Task::ListRules => {
            sabotage::list();
            Ok(true)
        }
        Task::Table(selection) => sabotage::table(&selection),
        Task::Run { config, json, report } => stress(&config, json, report),
    };
    match clean {
        // Threads may hang in what was broken on purpose: the process ends without them.
        Ok(true) => match ends::asked() {
            None => std::process::exit(0),
            Some(signal) => ends::die_of(signal),
        },
        Ok(false) => std::process::exit(VIOLATION.into()),
        Err(error) => {
            eprintln!("daxpager-stress: {error:#}");
            no_result(&error).into()
        }
    }
}

/// The exit code of a run that came to no result: nothing was found, and nothing was shown either.
fn no_result(error: &anyhow::Error) -> u8 {
    if let Some(sabotage::NotRun(code)) = error.downcast_ref() {
        return if *code == i32::from(NO_USERFAULTFD) { NO_USERFAULTFD } else { MISUSE };
    }
    if machine::is_lacking(error) { NO_USERFAULTFD } else { MISUSE }
}

/// One run; whether it found nothing.
fn stress(config: &Config, json: Option<Output>, page: Option<Output>) -> anyhow::Result<bool> {
    watch::take_signals()?;
    if !config.quiet {
        say!(
            "daxpager-stress, scenario {}, {} s from seed {}; at most {} MiB for the device and the oracle",
            config.scenario.name(),
            config.length.as_secs(),
            config.seed,
            args::memory_bytes_max(config).div_ceil(1 << 20)
        );
        if !config.rules.is_empty() || !config.put.names().is_empty() {
            let rules: Vec<&str> = config.rules.iter().map(|rule| rule.name()).collect();
            say!("broken: {}; put in: {}", rules.join(", "), config.put.names().join(", "));
        }
    }
    neighbour::lacking(&config.put).iter().for_each(|lacking| say!("{lacking}"));
    let outcome = run::run(config)?;
    // What was found is told, wherever else it was to be written.
    report::print(&outcome);
    let json = json.map_or(Ok(()), |json| report::write_json(&outcome, &json));
    let page = page.map_or(Ok(()), |page| report::write_html(&outcome, &page));
    match json.and(page) {
        Err(error) if outcome.violation_count > 0 => eprintln!("daxpager-stress: {error:#}"),
        written => written?,
    }
    Ok(outcome.violation_count == 0)
}
