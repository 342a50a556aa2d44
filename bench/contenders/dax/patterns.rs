//! The library, in the patterns that every contender has.

use daxpager::{File, Mapping};

use super::world::{World, counts, map, store_all};
use crate::case::{Case, Options, Sample, Work};
use crate::laps::{self, Contestant, Counts, Ground};
use crate::raw::{PAGE, View};

pub(crate) fn measure(case: &Case, options: Options) -> anyhow::Result<Sample> {
    laps::run(case, &mut Dax::new(case, options)?)
}

/// The six patterns, what is done to holes, and the read of a sparse few.
struct Dax {
    world: World,
    file: File,
    pages: u64,
    work: Work,
    options: Options,
}

impl Dax {
    fn new(case: &Case, options: Options) -> anyhow::Result<Self> {
        let pages = case.file_pages();
        let world = World::memfd(pages, options)?;
        let world = if options.busy { world.awake()? } else { world };
        let file = match case.work {
            // Far longer than what is touched of it, and with windows nothing is gained by having had blocks.
            Work::SparseHoleWrite { .. } => world.volume.create("bench")?,
            _ => world.file("bench", pages)?,
        };
        Ok(Self { world, file, pages, work: case.work, options })
    }
}

impl Contestant for Dax {
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>> {
        if self.work.is_hole() {
            // Single blocks go back, and stay in memory.
            self.file.truncate(0)?;
            self.file.truncate(self.pages * PAGE)?;
        }
        let map = map(&self.world.pager, &self.file, 0..self.pages * PAGE, self.options)?;
        if self.work == Work::WriteAfterProtect {
            store_all(View::of(&map));
            map.take_dirty()?;
        }
        Ok(Box::new(Mapped { map, world: &self.world }))
    }
}

struct Mapped<'a> {
    map: Mapping,
    world: &'a World,
}

impl Ground for Mapped<'_> {
    fn view(&self) -> View<'_> {
        View::of(&self.map)
    }

    fn counts(&self) -> Option<Counts> {
        Some(counts(&self.world.pager))
    }

    fn figures(&self, touched: u64) -> Vec<(&'static str, f64)> {
        let device = self.world.volume.resident_bytes() as f64;
        vec![("device ×", device / (touched * PAGE) as f64)]
    }
}
