//! The demo: imports a file into a volume, maps it, checks its SHA-256 through the mapping, puts it under
//! load beside a second file, plays the race that the library is about, and checks everything again.
//!
//! Exits with 0 if every check held, 1 if one failed, 2 on misuse, and 77 where userfaultfd is not to be had.

#[path = "../common/ends.rs"]
mod ends;
#[cfg(test)]
#[path = "../../tests/common/guard.rs"]
mod guard;
mod import;
mod live;
mod load;
#[path = "../common/machine.rs"]
mod machine;
mod race;
mod stage;
mod table;
mod tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use daxpager::{Device, Error, File, Pager, Volume};
use import::{Input, Refusal, sha_of_file, sha_of_mapping};
use load::{ARENA_PAGES, SPARE_BLOCKS, Target, words_of_page};
use machine::{MISUSE, NO_USERFAULTFD, page_bytes};
use table::{Checks, bytes, heading, paragraph, say};
use tally::Tally;

const FAILED: u8 = 1;

/// Shows what daxpager does, and checks it while it shows it.
///
/// Imports FILE into a volume in memory, maps it, and compares its SHA-256 through the mapping
/// with that of the file. Then threads store, load, truncate and punch holes for some seconds,
/// all at once, on the imported file and on a second one with which it shares what room there
/// is. Then it plays, step by step, the race between a store's fault and a hole punch: as it
/// should be, and as it would be without the check that matters. At the end: both files'
/// contents, latencies, counters, and a list of what has been checked. FILE itself is only read.
///
/// It needs Linux 6.6 or later with userfaultfd, no privileges, and as much memory as FILE has
/// bytes.
#[derive(Parser)]
#[command(
    name = "daxpager-demo",
    version,
    verbatim_doc_comment,
    after_help = "Exit status:\n   0  all checks held\n   1  a check failed, or something else did\n   \
                  2  bad arguments, or a FILE that cannot be imported\n  77  no userfaultfd, or not all of it that is needed\n\
                  After a SIGINT, SIGTERM or SIGHUP it lists what has been checked so far, and ends by that signal."
)]
struct Args {
    /// The file to import: a regular file of 1 byte to 1 GiB [default: this program itself]
    file: Option<PathBuf>,
    /// How long the load runs, 1 to 3600
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = ends::take_signals().map_err(anyhow::Error::from).and_then(|()| show(&args));
    if let (Some(signal), Ok(true)) = (ends::asked(), &done) {
        ends::die_of(signal);
    }
    let error = match done {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return FAILED.into(),
        Err(error) => error,
    };
    eprintln!("daxpager-demo: {error:#}");
    if error.is::<Refusal>() {
        return MISUSE.into();
    }
    match error.downcast_ref() {
        Some(Error::MissingFeature { .. } | Error::NoUserfaultfd { .. }) => NO_USERFAULTFD.into(),
        _ => FAILED.into(),
    }
}

/// Everything, in order; whether all checks held.
fn show(args: &Args) -> anyhow::Result<bool> {
    let path = args.file.as_deref().unwrap_or(Path::new("/proc/self/exe"));
    let input = Input::check(path)?;
    let pager = Pager::builder().measure_latencies().start()?;
    let mut checks = Checks::default();
    let blocks = input.len.div_ceil(page_bytes()) + SPARE_BLOCKS;
    let volume = Volume::format(Device::memfd("daxpager-demo", blocks * page_bytes())?);
    let file = volume.create("imported")?;

    heading("1. A file, imported and mapped");
    let sha = import(&input, &pager, &file, &mut checks)?;
    if let Some(signal) = ends::asked() {
        return Ok(checks.finish_early(signal));
    }
    heading(&format!("2. Load for {} s", args.seconds));
    let second = volume.create("second")?;
    let targets = [Target::new(&pager, 1, "imported", &file)?, Target::new(&pager, 2, "second", &second)?];
    let (targets, tally) = match under_load(&pager, targets, args.seconds, &mut checks) {
        Ok(done) => done,
        Err(error) => {
            // A thread is stuck in a fault: tidying up would wait for it.
            std::mem::forget((pager, volume, file, second));
            checks.check("every thread of the load came to its end", false, || format!("{error:#}"));
            return Ok(checks.finish());
        }
    };
    if let Some(signal) = ends::asked() {
        return Ok(checks.finish_early(signal));
    }
    heading("3. The race of the thread");
    race::play(&mut checks);
    if let Some(signal) = ends::asked() {
        return Ok(checks.finish_early(signal));
    }
    heading("4. What is left");
    compare(&input, &sha, &pager, &targets, &mut checks)?;
    give_back(&volume, blocks, &pager, (targets, [file, second]), &mut checks)?;
    heading("5. Numbers of parts 1, 2 and 4");
    table::latencies(&pager);
    say("");
    table::counters(&pager.stats(), tally.invalidations.load(Ordering::Relaxed));
    let stats = pager.shutdown()?;
    checks.equal(
        "no fault at an unknown address, and no page of the device lost",
        stats.unknown_addresses + stats.lost_pages,
        0,
    );
    Ok(checks.finish())
}

/// Part 1; the file's SHA-256.
fn import(input: &Input, pager: &Pager, file: &File, checks: &mut Checks) -> anyhow::Result<String> {
    input.import(file)?;
    let map = pager.map(file, 0..input.len.next_multiple_of(page_bytes()))?;
    let through_mapping = sha_of_mapping(&map, input.len)?;
    let own = input.sha()?;
    say(format_args!("file                {}", input.name()));
    say(format_args!("size                {}, in {} blocks", bytes(input.len), file.blocks()));
    say(format_args!("SHA-256, mapping    {through_mapping}"));
    say(format_args!("SHA-256, file       {own}"));
    say(format_args!("faults so far       {}", pager.stats().all_faults()));
    checks.equal("the mapping shows the file's SHA-256", through_mapping, own.clone());
    Ok(own)
}

/// Part 2.
fn under_load(
    pager: &Pager,
    targets: [Target; 2],
    seconds: u64,
    checks: &mut Checks,
) -> anyhow::Result<([Target; 2], Tally)> {
    paragraph(&format!(
        "Two writers and two readers on {ARENA_PAGES} pages behind the imported content and on {ARENA_PAGES} \
         pages of a second file, while one thread truncates both files and another punches holes in both. They \
         share {SPARE_BLOCKS} blocks, and what one gives up either may have. Each word says where it belongs. Per \
         second:"
    ));
    say("");
    let (targets, tally) = load::run(pager, targets, seconds)?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (words, stores, invalidations) = (count(&tally.words), count(&tally.stores), count(&tally.invalidations));
    say(format_args!("\n{stores} words stored; {words} loaded, and {} times zero.", count(&tally.zeros)));
    say(format_args!("{invalidations} truncates and punches; {} pages of content compared.", count(&tally.content)));
    say(format_args!("{} times SIGBUS, each caught, where the file may have ended below.", count(&tally.past_end)));
    checks.check("every thread of the load came to its end", true, String::new);
    // A load that a signal has ended may have been too short for that.
    if ends::asked().is_none() {
        let got_on = words.min(stores).min(invalidations) > 0;
        checks.check("loads, stores, truncates and punches all got on", got_on, || {
            format!("{words} words loaded, {stores} stored, {invalidations} truncates and punches")
        });
    }
    checks.check("each word loaded was zero or its page's own", tally.foreign.get().is_none(), || {
        tally.foreign.get().cloned().unwrap_or_default()
    });
    checks.check("no other error, and no SIGBUS below where the files end", tally.failure.get().is_none(), || {
        tally.failure.get().cloned().unwrap_or_default()
    });
    Ok((targets, tally))
}

/// Part 4: the contents.
fn compare(input: &Input, sha: &str, pager: &Pager, targets: &[Target; 2], checks: &mut Checks) -> anyhow::Result<()> {
    let [imported, second] = targets;
    imported.file.truncate(input.len)?;
    let by_read = sha_of_file(&imported.file, input.len)?;
    let by_mapping =
        sha_of_mapping(&pager.map(&imported.file, 0..input.len.next_multiple_of(page_bytes()))?, input.len)?;
    say(format_args!("SHA-256, read       {by_read}"));
    say(format_args!("SHA-256, mapping    {by_mapping}"));
    checks.equal("the imported content is what it was, by read", by_read.as_str(), sha);
    checks.equal("the imported content is what it was, by mapping", by_mapping.as_str(), sha);
    // The imported file's arena is gone, so there are blocks for all of this one's.
    let differs = second.fill_and_compare()?;
    say(format_args!(
        "second file         {} words stored, and read by two mappings and without",
        ARENA_PAGES * words_of_page()
    ));
    checks.check("the second file has each word, by two mappings and by read", differs.is_none(), || {
        differs.unwrap_or_default()
    });
    Ok(())
}

/// Part 4: the blocks.
fn give_back(
    volume: &Volume,
    total: u64,
    pager: &Pager,
    users: ([Target; 2], [File; 2]),
    checks: &mut Checks,
) -> anyhow::Result<()> {
    let (used, free) = (volume.used_blocks(), volume.free_blocks());
    let owned: u64 = volume.list().iter().map(|file| file.blocks).sum();
    say(format_args!("blocks              {used} used + {free} free = {total}; files own {owned}"));
    checks.equal(
        "no block is lost: used + free = all, and files own the used ones",
        (used + free, owned),
        (total, used),
    );
    drop(users.0);
    checks.equal("no mapping is left once all are dropped", pager.mappings(), 0);
    volume.remove("imported")?;
    volume.remove("second")?;
    drop(users.1);
    let used = volume.used_blocks();
    say(format_args!("files removed       {used} used"));
    checks.equal("no block is used once both files are removed", used, 0);
    Ok(())
}
