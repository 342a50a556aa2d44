//! What the library holds: memory, and address ranges.

use std::time::Instant;

use super::world::{World, map};
use crate::case::{Case, Options, Sample};
use crate::contenders::steps::{self, FAR};
use crate::laps::orders;
use crate::raw::{PAGE, View};

/// A load of a page in each 2 MiB of holes: zeros are as few as a volume has unless told.
pub(crate) fn holes_far(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd_of_few_zeros(case.pages, options)?;
    let file = world.volume.create("bench")?;
    let bytes = case.pages * FAR;
    file.truncate(bytes)?;
    let map = map(&world.pager, &file, 0..bytes, options)?;
    let mut sample = steps::load_far(View::of(&map), case.pages)?;
    let device = world.volume.resident_bytes() as f64 / (1u64 << 20) as f64;
    sample.figures.insert("device MiB".into(), device);
    sample.figures.insert("address ranges".into(), world.pager.stats().address_ranges as f64);
    Ok(sample)
}

/// Holes stored to at random through one mapping, and loaded through it; and, since those loads are no faults, through a new one as well.
/// The address ranges are the most that a mapping had.
pub(crate) fn store_then_load(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages, options)?;
    let file = world.volume.create("bench")?;
    let bytes = case.pages * PAGE;
    file.truncate(bytes)?;
    let order = orders(case).concat();
    let stored = map(&world.pager, &file, 0..bytes, options)?;
    order.iter().for_each(|page| View::of(&stored).store(*page));
    order.iter().for_each(|page| View::of(&stored).load(*page));
    let after_stores = world.pager.stats().address_ranges;
    drop(stored);
    let loaded = map(&world.pager, &file, 0..bytes, options)?;
    let start = Instant::now();
    order.iter().for_each(|page| View::of(&loaded).load(*page));
    let ns_per_page = start.elapsed().as_nanos() as f64 / order.len() as f64;
    let ranges = after_stores.max(world.pager.stats().address_ranges);
    let mut sample = Sample { ns_per_page, laps: 1, pages: order.len() as u64, ..Sample::default() };
    sample.figures.insert("address ranges".into(), ranges as f64);
    Ok(sample)
}

/// How often a page counts in this process's memory that has been written by a call and loaded through a mapping.
pub(crate) fn write_then_load(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let before = steps::status("RssShmem:")?;
    let world = World::memfd(case.pages, options)?;
    let file = world.file("bench", case.pages)?;
    let map = map(&world.pager, &file, 0..case.pages * PAGE, options)?;
    let start = Instant::now();
    (0..case.pages).for_each(|page| View::of(&map).load(page));
    let ns_per_page = start.elapsed().as_nanos() as f64 / case.pages as f64;
    let grown = steps::status("RssShmem:")? as f64 - before as f64;
    let mut sample = Sample { ns_per_page, laps: 1, pages: case.pages, ..Sample::default() };
    sample.figures.insert("RssShmem ×".into(), grown / (case.pages * PAGE) as f64);
    Ok(sample)
}
