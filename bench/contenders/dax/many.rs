//! The library with many mappings, and with many files.

use std::time::Instant;

use daxpager::{File, Mapping};

use super::world::{World, map};
use crate::case::{Case, Options, Sample};
use crate::contenders::steps::{self, SMALL};
use crate::raw::{PAGE, View};

/// Of so many files one has a page.
const WRITTEN: u64 = 100;
/// Creations are timed in so many parts.
const PARTS: u64 = 10;

/// A page written and punched while there are so many small mappings: of parts of one file, or each of a file of its own.
pub(crate) fn punch_among(case: &Case, options: Options, mappings: u64, own_files: bool) -> anyhow::Result<Sample> {
    let bytes = SMALL * PAGE;
    let world = World::memfd(mappings * SMALL, options)?;
    let new_file = |name: u64, bytes: u64| -> anyhow::Result<File> {
        let file = world.volume.create(&name.to_string())?;
        file.truncate(bytes)?;
        Ok(file)
    };
    let shared = if own_files { None } else { Some(new_file(0, mappings * bytes)?) };
    let mut all: Vec<(File, u64, Mapping)> = Vec::new();
    for nth in 0..mappings {
        let (file, first) = match &shared {
            Some(file) => (file.clone(), nth * bytes),
            None => (new_file(nth, bytes)?, 0),
        };
        let map = map(&world.pager, &file, first..first + bytes, options)?;
        all.push((file, first, map));
    }
    let (file, first, map) = &all[all.len() / 2];
    let page_bytes = vec![1; PAGE as usize];
    let write = |page: u64| Ok(file.write_at(&page_bytes, first + page * PAGE).map(drop)?);
    let punch = |page: u64| Ok(file.punch_hole(first + page * PAGE, PAGE)?);
    steps::write_and_punch(View::of(map), case.pages, write, punch)
}

/// Files that are created, listed and removed.
pub(crate) fn files(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let files = case.pages;
    let world = World::memfd(files.div_ceil(WRITTEN), options)?;
    let name = |nth: u64| format!("file-{nth}");
    let before = steps::status("VmRSS:")?;
    let mut times = Vec::new();
    for part in steps::runs(files, files.div_ceil(PARTS)) {
        let count = part.end - part.start;
        let start = Instant::now();
        for nth in part {
            world.volume.create(&name(nth))?;
        }
        times.push(start.elapsed().as_nanos() as f64 / count as f64);
    }
    for nth in (0..files).step_by(WRITTEN as usize) {
        world.volume.open(&name(nth))?.write_at(&[1], 0)?;
    }
    // Before the list, which takes memory of its own.
    let grown = steps::status("VmRSS:")? as f64 - before as f64;
    let list = world.volume.list();
    anyhow::ensure!(list.len() as u64 == files, "{} of {files} files are listed", list.len());
    list.iter().try_for_each(|file| world.volume.remove(&file.name))?;
    let left = (world.volume.list().len(), world.volume.used_blocks());
    anyhow::ensure!(left == (0, 0), "files and blocks are left: {left:?}");
    let ns_per_page = times.iter().sum::<f64>() / times.len() as f64;
    let mut sample = Sample { ns_per_page, laps: 1, pages: files, ..Sample::default() };
    sample.figures.insert("last ×".into(), times[times.len() - 1] / times[0]);
    sample.figures.insert("KiB per file".into(), grown / 1024.0 / files as f64);
    Ok(sample)
}
