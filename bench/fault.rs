//! What a fault costs: the library beside the kernel, beside the smallest loop and the smallest signal handler
//! that could do its work, and beside other people's pagers. See `--help`.
//!
//! Each contender runs in a process of its own, which is this program once more.

mod args;
mod bars;
mod case;
mod contenders;
#[path = "../bin/common/ends.rs"]
mod ends;
#[cfg(test)]
#[path = "../tests/common/guard.rs"]
mod guard;
#[path = "../bin/common/html.rs"]
mod html;
mod laps;
#[path = "../bin/common/machine.rs"]
mod machine;
#[path = "../bin/common/output.rs"]
mod output;
mod plan;
mod raw;
mod report;
mod results;
mod run;
mod scale;
#[path = "../bin/common/svg.rs"]
mod svg;
#[path = "../bin/common/table.rs"]
mod table;
#[path = "../bin/common/terminal.rs"]
mod terminal;
#[path = "../bin/common/units.rs"]
mod units;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use args::{Args, Command};
use clap::Parser;
use machine::{MISUSE, NO_USERFAULTFD};

const SHORT: u8 = 1;
/// How long one turn of a contender may take.
const SECONDS_MAX: u32 = 300;

fn main() -> ExitCode {
    if let Err(error) = ends::end_with_parent() {
        eprintln!("daxpager-bench: {error}");
        return MISUSE.into();
    }
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Contender { case }) => contend(case).map(|()| true),
        Some(Command::Become { path, args }) => {
            Err(anyhow::Error::from(ends::become_program(path, args)).context(format!("cannot run {path}")))
        }
        None => bench(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => SHORT.into(),
        Err(error) => {
            eprintln!("daxpager-bench: {error:#}");
            if machine::is_lacking(&error) { NO_USERFAULTFD.into() } else { MISUSE.into() }
        }
    }
}

/// One contender: measures, and says what as a line of JSON.
fn contend(case: &str) -> anyhow::Result<()> {
    let case = serde_json::from_str(case).context("not a case")?;
    // A contender that hangs ends in a SIGALRM, even in the middle of a fault.
    nix::unistd::alarm::set(SECONDS_MAX);
    let outcome = contenders::measure(&case)?;
    // Nobody reads it if the bench has been ended.
    let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Everything; whether no bar is short.
fn bench(args: &Args) -> anyhow::Result<bool> {
    let [json, html] = args.check()?;
    ends::take_signals()?;
    // Says at once what this machine lacks.
    daxpager::Pager::builder().start()?.shutdown()?;
    let plan = plan::plan(args);
    let results = run::run(&plan, args)?;
    let is_whole = results.ended_by.is_none();
    let verdicts = if args.bars && is_whole { bars::verdicts(&plan.scale, &results) } else { Vec::new() };
    let summary = report::Summary::new(args, &results, &verdicts);
    report::print(&summary);
    if let Some(json) = json {
        json.write((serde_json::to_string(&report::Document::new(&summary))? + "\n").as_bytes())?;
    }
    if let Some(html) = html {
        html.write(report::page(&summary).as_bytes())?;
    }
    if let Some(signal) = results.ended_by {
        ends::die_of(signal);
    }
    Ok(verdicts.iter().all(bars::Verdict::is_ok))
}
