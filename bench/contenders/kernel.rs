//! The kernel alone: mmap of a memfd.

use std::time::Instant;

use anyhow::Context;

use super::floor::memory;
use super::steps;
use crate::case::{Case, Contender, Sample, Work};
use crate::laps::{Contestant, Ground, median};
use crate::raw::{self, Mapped, Memory, PAGE, Uffd};

const LAPS: usize = 7;

pub(crate) struct Kernel {
    contender: Contender,
    work: Work,
    pages: u64,
    memory: Memory,
    uffd: Option<Uffd>,
}

impl Kernel {
    pub(crate) fn new(case: &Case) -> anyhow::Result<Self> {
        let features = match case.contender {
            Contender::KernelOnePage => Some(raw::WP_SHMEM),
            Contender::KernelAsync => Some(raw::WP_SHMEM | raw::WP_ASYNC),
            Contender::KernelArmed => Some(raw::WP_SHMEM | raw::MISSING_SHMEM),
            _ => None,
        };
        let uffd = features.map(Uffd::open).transpose().context("userfaultfd with write-protect on shared memory")?;
        let (work, pages) = (case.work, case.file_pages());
        Ok(Self { contender: case.contender.clone(), work, pages, memory: memory(case)?, uffd })
    }
}

impl Contestant for Kernel {
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>> {
        if self.work.is_hole() {
            self.memory = Memory::sparse(self.pages)?;
        }
        let map = self.memory.map()?;
        if let Some(uffd) = &self.uffd {
            let armed = self.contender == Contender::KernelArmed;
            // With a range registered for write-protect and nothing protected, the kernel leaves its
            // fault-around out. MADV_RANDOM does not do that on shared memory.
            let mode = if armed { raw::MODE_MISSING | raw::MODE_WP } else { raw::MODE_WP };
            uffd.register(&map, mode).context("UFFDIO_REGISTER")?;
            if self.contender == Contender::KernelAsync {
                let view = map.view();
                (0..view.pages()).for_each(|page| view.store(page));
            }
            if armed || self.contender == Contender::KernelAsync {
                uffd.protect_all(&map).context("UFFDIO_WRITEPROTECT")?;
            }
        }
        Ok(Box::new(map))
    }
}

fn mapped(memory: &Memory, uffd: Option<&Uffd>) -> anyhow::Result<Mapped> {
    let map = memory.map()?;
    if let Some(uffd) = uffd {
        uffd.register(&map, raw::MODE_WP)?;
        // Else a page that has never been written to counts as written.
        uffd.protect_all(&map)?;
    }
    (0..map.view().pages()).for_each(|page| map.view().store(page));
    Ok(map)
}

fn of_laps(pages: u64, mut lap: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Sample> {
    let mut times = (0..LAPS).map(|_| lap()).collect::<anyhow::Result<Vec<f64>>>()?;
    let ns_per_page = median(&mut times) / pages as f64;
    Ok(Sample { ns_per_page, laps: LAPS as u64, pages: pages * LAPS as u64, ..Sample::default() })
}

/// MADV_DONTNEED of pages that are all mapped, writable.
pub(crate) fn drop_entries(case: &Case) -> anyhow::Result<Sample> {
    let memory = Memory::resident(case.pages)?;
    of_laps(case.pages, || {
        let map = mapped(&memory, None)?;
        let start = Instant::now();
        map.view().drop_entries().context("MADV_DONTNEED")?;
        Ok(start.elapsed().as_nanos() as f64)
    })
}

/// FALLOC_FL_PUNCH_HOLE of pages that are all mapped, writable, so many at a time.
pub(crate) fn punch_pages(case: &Case, run: u64) -> anyhow::Result<Sample> {
    of_laps(case.pages, || {
        let memory = Memory::resident(case.pages)?;
        let map = mapped(&memory, None)?;
        let start = Instant::now();
        steps::runs(case.pages, run).try_for_each(|pages| memory.punch(pages)).context("FALLOC_FL_PUNCH_HOLE")?;
        let ns = start.elapsed().as_nanos() as f64;
        drop(map);
        Ok(ns)
    })
}

/// A load of a page in each 2 MiB of holes.
pub(crate) fn holes_far(case: &Case) -> anyhow::Result<Sample> {
    let memory = Memory::sparse(case.pages * (steps::FAR / PAGE))?;
    let map = memory.map()?;
    steps::load_far(map.view(), case.pages)
}

/// A page written and punched, of a memfd that is mapped in many small parts.
pub(crate) fn punch_among(case: &Case, mappings: u64) -> anyhow::Result<Sample> {
    let memory = Memory::sparse(mappings * steps::SMALL)?;
    // In order: the kernel gives lower addresses to later ones, and joins no two.
    let maps = (0..mappings)
        .map(|part| memory.map_part(part * steps::SMALL..(part + 1) * steps::SMALL))
        .collect::<anyhow::Result<Vec<Mapped>>>()?;
    let nth = maps.len() / 2;
    let bytes = vec![1; PAGE as usize];
    let first = nth as u64 * steps::SMALL;
    let write = |page: u64| Ok(memory.write(&bytes, (first + page) * PAGE).map(drop)?);
    let punch = |page: u64| Ok(memory.punch(first + page..first + page + 1)?);
    steps::write_and_punch(maps[nth].view(), case.pages, write, punch)
}

/// pread(2) or pwrite(2) of each page.
pub(crate) fn calls(case: &Case) -> anyhow::Result<Sample> {
    let memory = Memory::resident(case.pages)?;
    let mut page = vec![1; PAGE as usize];
    of_laps(case.pages, || {
        let start = Instant::now();
        for at in (0..case.pages).map(|page| page * PAGE) {
            match case.work {
                Work::ReadCalls => memory.read(&mut page, at).context("pread")?,
                _ => memory.write(&page, at).context("pwrite")?,
            };
        }
        Ok(start.elapsed().as_nanos() as f64)
    })
}

/// PAGEMAP_SCAN of pages that have all been stored to.
pub(crate) fn scan(case: &Case) -> anyhow::Result<Sample> {
    let memory = Memory::resident(case.pages)?;
    let uffd = Uffd::open(raw::WP_SHMEM | raw::WP_ASYNC).context("userfaultfd with WP_ASYNC")?;
    let pagemap = std::fs::File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    of_laps(case.pages, || {
        let map = mapped(&memory, Some(&uffd))?;
        let start = Instant::now();
        let found = raw::scan_written(&pagemap, &map).context("PAGEMAP_SCAN")?;
        let ns = start.elapsed().as_nanos() as f64;
        anyhow::ensure!(found == case.pages, "PAGEMAP_SCAN found {found} pages written of {}", case.pages);
        Ok(ns)
    })
}
