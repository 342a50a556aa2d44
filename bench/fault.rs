//! What a fault costs: the library beside the kernel, beside the smallest loop and the smallest signal handler
//! that could do its work, and beside other people's pagers. See `--help`.
//!
//! Each contender runs in a process of its own, which is this program once more.

mod args;
mod bars;
mod case;
mod contenders;
mod laps;
mod plan;
mod raw;
mod report;
mod run;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use args::{Args, Command};
use clap::Parser;

const SHORT: u8 = 1;
const MISUSE: u8 = 2;
/// As automake and many others say "skipped".
const NO_USERFAULTFD: u8 = 77;
/// How long one turn of a contender may take.
const SECONDS_MAX: u32 = 300;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Contender { case }) => contend(case).map(|()| true),
        None => bench(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => SHORT.into(),
        Err(error) => {
            eprintln!("daxpager-bench: {error:#}");
            let machine = contenders::dax_special::is_machine(&error);
            if machine { NO_USERFAULTFD.into() } else { MISUSE.into() }
        }
    }
}

/// One contender: measures, and says what as a line of JSON.
fn contend(case: &str) -> anyhow::Result<()> {
    let case = serde_json::from_str(case).context("not a case")?;
    // A contender that hangs ends in a SIGALRM, even in the middle of a fault.
    nix::unistd::alarm::set(SECONDS_MAX);
    let outcome = contenders::measure(&case)?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Everything; whether no bar is short.
fn bench(args: &Args) -> anyhow::Result<bool> {
    args.check()?;
    // Says at once what this machine lacks.
    daxpager::Pager::builder().start()?.shutdown()?;
    let plan = plan::plan(args);
    let results = run::run(&plan, args)?;
    let verdicts = if args.bars { bars::verdicts(&plan.scale, &results) } else { Vec::new() };
    let summary = report::Summary::new(args, &results, &verdicts);
    report::print(&summary, std::io::stdout().is_terminal());
    if let Some(path) = &args.json {
        report::write(path, &(serde_json::to_string(&report::Document::new(&summary))? + "\n"))?;
    }
    if let Some(path) = &args.html {
        report::write(path, &report::page(&summary))?;
    }
    Ok(verdicts.iter().all(bars::Verdict::is_ok))
}
