//! What is asked of the library beyond the patterns.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use daxpager::Device;

use super::world::{self, World, fill, map, store_all};
use crate::case::{Case, Options, Outcome, Sample, Work};
use crate::contenders::steps;
use crate::laps::{self, Contestant, Ground, median};
use crate::machine::{bytes_of, memory_available};
use crate::raw::{self, PAGE, View};

const LAPS: usize = 5;
/// Pages that the puncher has to punch before it allocates them anew.
const PUNCHED: u64 = 4096;
/// How many of them before they get blocks again.
const AT_ONCE: u64 = 64;
const TERABYTE: u64 = 1 << 40;
const HUGE: u64 = 2 << 20;

fn of_laps(pages: u64, mut times: Vec<f64>) -> Sample {
    let laps = times.len() as u64;
    let ns_per_page = median(&mut times) / pages as f64;
    Sample { ns_per_page, laps, pages: pages * laps, ..Sample::default() }
}

fn ns_since(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}

pub(crate) fn collect(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages, options)?;
    let file = world.file("bench", case.pages)?;
    let map = map(&world.pager, &file, 0..case.pages * PAGE, options)?;
    let mut times = Vec::new();
    for _ in 0..LAPS {
        store_all(View::of(&map));
        let start = Instant::now();
        let dirty = map.take_dirty()?;
        times.push(ns_since(start));
        let bytes: u64 = dirty.iter().map(|range| range.end - range.start).sum();
        anyhow::ensure!(bytes == case.pages * PAGE, "{bytes} bytes dirty of {} pages", case.pages);
    }
    Ok(of_laps(case.pages, times))
}

pub(crate) fn calls(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages, options)?;
    let file = world.file("bench", case.pages)?;
    let mut page = vec![1; PAGE as usize];
    let mut times = Vec::new();
    for _ in 0..LAPS {
        let start = Instant::now();
        for at in (0..case.pages).map(|page| page * PAGE) {
            match case.work {
                Work::ReadCalls => file.read_at(&mut page, at)?,
                _ => file.write_at(&page, at)?,
            };
        }
        times.push(ns_since(start));
    }
    Ok(of_laps(case.pages, times))
}

pub(crate) fn take_away(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages, options)?;
    let file = world.file("bench", case.pages)?;
    let bytes = case.pages * PAGE;
    let map = map(&world.pager, &file, 0..bytes, options)?;
    let punch = |pages: Range<u64>| file.punch_hole(pages.start * PAGE, (pages.end - pages.start) * PAGE);
    let punch_by = |run| steps::runs(case.pages, run).try_for_each(punch);
    let mut times = Vec::new();
    for _ in 0..LAPS {
        fill(&file, 0..bytes)?;
        store_all(View::of(&map));
        let start = Instant::now();
        match case.work {
            Work::Punch => file.punch_hole(0, bytes)?,
            Work::PunchPages => punch_by(1)?,
            Work::PunchRuns { run } => punch_by(run)?,
            _ => file.truncate(0)?,
        }
        times.push(ns_since(start));
    }
    Ok(of_laps(case.pages, times))
}

/// A mapping whose entries are taken away for each lap. Its address ranges stay where they are.
struct Again<'a> {
    map: &'a daxpager::Mapping,
    pager: &'a daxpager::Pager,
}

impl Contestant for Again<'_> {
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>> {
        View::of(self.map).drop_entries().context("MADV_DONTNEED")?;
        Ok(Box::new(Again { map: self.map, pager: self.pager }))
    }
}

impl Ground for Again<'_> {
    fn view(&self) -> View<'_> {
        View::of(self.map)
    }

    fn counts(&self) -> Option<laps::Counts> {
        Some(world::counts(self.pager))
    }
}

/// Extents of equal length with a hole of a page after each. The file has as many blocks however many extents it has, and
/// the pages touched are spread as far: else it would be caches and page tables that are compared. They are
/// few enough that each may have address ranges of its own.
pub(crate) fn extents(case: &Case, options: Options, (extents, blocks): (u64, u64)) -> anyhow::Result<Outcome> {
    let length = blocks / extents;
    let needed = blocks * PAGE * 5 / 4 + (1 << 30);
    match memory_available() {
        Some(available) if available < needed => {
            return Ok(Outcome::Skipped(format!("{extents} extents take {} MiB of memory", needed >> 20)));
        }
        _ => {}
    }
    let world = World::memfd(blocks, options)?;
    let file = world.volume.create("bench")?;
    for extent in 0..extents {
        let start = extent * (length + 1) * PAGE;
        fill(&file, start..start + length * PAGE)?;
    }
    let map = map(&world.pager, &file, 0..extents * (length + 1) * PAGE, options)?;
    let nth = |page: u64| page / length * (length + 1) + page % length;
    // Spread over the whole file, the same pages each time.
    let mut pages: Vec<u64> = (0..case.pages).map(|index| nth(index * blocks / case.pages)).collect();
    fastrand::Rng::with_seed(42).shuffle(&mut pages);
    let view = View::of(&map);
    pages.iter().for_each(|page| view.load(*page));
    let mut sample = laps::run_on(case, &[pages], &mut Again { map: &map, pager: &world.pager })?;
    sample.figures.insert("extents".into(), file.fiemap().len() as f64);
    Ok(Outcome::Measured(sample))
}

/// A terabyte: how long the mapping takes, and what memory; then that many pages of it in use.
pub(crate) fn map_sparse(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages, options)?;
    let file = world.file("bench", case.pages)?;
    file.truncate(TERABYTE)?;
    let mut sample = Sample { pages: case.pages, laps: LAPS as u64, ..Sample::default() };
    let (mut times, mut growths) = (Vec::new(), Vec::new());
    for _ in 0..LAPS {
        let before = resident("Rss:")?;
        let start = Instant::now();
        let map = map(&world.pager, &file, 0..TERABYTE, options)?;
        times.push(ns_since(start) / 1e6);
        growths.push(resident("Rss:")?.saturating_sub(before) as f64 / 1024.0);
        drop(map);
    }
    let map = map(&world.pager, &file, 0..TERABYTE, options)?;
    let before = resident("Anonymous:")?;
    let start = Instant::now();
    // Stores: what is dirty has to be remembered too.
    (0..case.pages).for_each(|page| View::of(&map).store(page));
    sample.ns_per_page = ns_since(start) / case.pages as f64;
    let grown = resident("Anonymous:")?.saturating_sub(before) as f64 / 1024.0;
    sample.figures.insert("map ms".into(), median(&mut times));
    sample.figures.insert("map KiB".into(), median(&mut growths));
    sample.figures.insert("KiB per GiB".into(), grown / (case.pages * PAGE) as f64 * (1u64 << 30) as f64);
    Ok(sample)
}

pub(crate) fn beside_puncher(case: &Case, options: Options) -> anyhow::Result<Sample> {
    let world = World::memfd(case.pages + PUNCHED, options)?;
    let file = world.file("bench", case.pages + PUNCHED)?;
    // Of the whole file: what is punched has to be taken out of the mapping, too.
    let map = map(&world.pager, &file, 0..(case.pages + PUNCHED) * PAGE, options)?;
    let mut again = Again { map: &map, pager: &world.pager };
    let stop = AtomicBool::new(false);
    let punch = || -> anyhow::Result<u64> {
        let mut punched = 0;
        loop {
            for first in (case.pages..case.pages + PUNCHED).step_by(AT_ONCE as usize) {
                for page in first..first + AT_ONCE {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(punched);
                    }
                    file.punch_hole(page * PAGE, PAGE)?;
                    punched += 1;
                }
                // A change now and then, and a small one: what is measured is punches.
                file.allocate(first * PAGE, AT_ONCE * PAGE, true)?;
            }
        }
    };
    std::thread::scope(|scope| {
        let puncher = scope.spawn(punch);
        let sample = laps::run(case, &mut again);
        stop.store(true, Ordering::Relaxed);
        let punched = puncher.join().expect("the puncher")?;
        let mut sample = sample?;
        sample.figures.insert("punches".into(), punched as f64);
        Ok(sample)
    })
}

/// A hugetlbfs of our own, where one may be mounted.
struct HugeDir(PathBuf);

impl HugeDir {
    fn mount() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("daxpager-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let dir = Self(path);
        raw::mount_hugetlbfs(&dir.0)?;
        Ok(dir)
    }
}

impl Drop for HugeDir {
    fn drop(&mut self) {
        raw::unmount(&self.0);
        let _ = std::fs::remove_dir(&self.0);
    }
}

pub(crate) fn huge(case: &Case, options: Options) -> anyhow::Result<Outcome> {
    let blocks = (case.pages * PAGE).div_ceil(HUGE);
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if free < blocks {
        return Ok(Outcome::Skipped(format!("{free} free huge pages of 2 MiB, and {blocks} are needed")));
    }
    let dir = match HugeDir::mount() {
        Ok(dir) => dir,
        Err(error) => return Ok(Outcome::Skipped(format!("{error:#}"))),
    };
    let device = Device::open(dir.0.join("device"), blocks * HUGE)?;
    // The device has it open: nothing is left behind, however this process ends.
    drop(dir);
    on_huge_pages(case, options, device, blocks).map(Outcome::Measured)
}

fn on_huge_pages(case: &Case, options: Options, device: Device, blocks: u64) -> anyhow::Result<Sample> {
    let world = World::new(device)?;
    let file = world.file("bench", blocks * HUGE / PAGE)?;
    let map = map(&world.pager, &file, 0..blocks * HUGE, options)?;
    laps::run(case, &mut Again { map: &map, pager: &world.pager })
}

/// Resident memory of this process in bytes, exactly; "Anonymous:" is what is neither a file's nor the device's.
fn resident(name: &str) -> anyhow::Result<u64> {
    bytes_of("/proc/self/smaps_rollup", name).context("/proc/self/smaps_rollup says nothing of memory")
}
