//! The library: the one file that knows how it is asked for its options.

use std::ops::Range;
use std::time::Duration;

use daxpager::{Allocation, Device, File, MapOptions, Mapping, Pager, Volume};

use crate::case::{Options, Resolve, Tracking};
use crate::laps::Counts;
use crate::raw::{PAGE, View};

/// How much is written at a time.
const CHUNK: usize = 1 << 20;

/// The options in the library's words.
fn asked(options: Options) -> MapOptions {
    let resolve = match options.resolve {
        Resolve::PagerThread => daxpager::Resolve::PagerThread,
        Resolve::FaultingThread => daxpager::Resolve::FaultingThread,
    };
    let tracking = match options.tracking {
        Tracking::Exact => daxpager::Tracking::Exact,
        Tracking::Coarse => daxpager::Tracking::Coarse,
        Tracking::Asynchronous => daxpager::Tracking::Asynchronous,
        Tracking::Off => daxpager::Tracking::Off,
    };
    let asked = MapOptions::new().resolve(resolve).tracking(tracking);
    options.around.map_or(asked, |bytes| asked.fault_around(bytes))
}

/// Maps a file as the options say.
pub(crate) fn map(pager: &Pager, file: &File, range: Range<u64>, options: Options) -> anyhow::Result<Mapping> {
    Ok(pager.map_with(file, range, &asked(options))?)
}

/// A volume of blocks that are all in memory, and a pager.
pub(crate) struct World {
    pub(crate) volume: Volume,
    pub(crate) pager: Pager,
}

impl World {
    pub(crate) fn new(device: Device) -> anyhow::Result<Self> {
        Ok(Self { volume: Volume::format_with(device, Allocation::Blocks), pager: Pager::builder().start()? })
    }

    /// With a reader that stays awake for a millisecond after each fault.
    pub(crate) fn awake(self) -> anyhow::Result<Self> {
        Ok(Self { pager: Pager::builder().busy_poll(Duration::from_millis(1)).start()?, ..self })
    }

    pub(crate) fn memfd(pages: u64, options: Options) -> anyhow::Result<Self> {
        let world = Self::memfd_of_few_zeros(pages, options)?;
        // What is measured is not how zeros are taken back.
        world.volume.set_zeros_max(u64::MAX);
        Ok(world)
    }

    /// With as much room for zeros as a volume has unless told.
    pub(crate) fn memfd_of_few_zeros(pages: u64, options: Options) -> anyhow::Result<Self> {
        let device = Device::memfd("bench", pages * PAGE)?;
        if !options.windows {
            return Self::new(device);
        }
        let volume = Volume::format_with(device, Allocation::Windows);
        anyhow::ensure!(volume.allocation() == (Allocation::Windows, None), "no windows: {:?}", volume.allocation());
        Ok(Self { volume, pager: Pager::builder().start()? })
    }

    /// A file of written blocks, in one extent if the volume is empty.
    pub(crate) fn file(&self, name: &str, pages: u64) -> anyhow::Result<File> {
        let file = self.volume.create(name)?;
        fill(&file, 0..pages * PAGE)?;
        Ok(file)
    }
}

/// Puts written blocks under a range.
pub(crate) fn fill(file: &File, bytes: Range<u64>) -> anyhow::Result<()> {
    let chunk = vec![1u8; CHUNK];
    for at in bytes.clone().step_by(CHUNK) {
        let len = (bytes.end - at).min(CHUNK as u64) as usize;
        file.write_at(&chunk[..len], at)?;
    }
    Ok(())
}

/// Stores to every page, which maps each writable.
pub(crate) fn store_all(view: View<'_>) {
    (0..view.pages()).for_each(|page| view.store(page));
}

/// What has been called for faults. What changes of the file have zapped is not.
pub(crate) fn counts(pager: &Pager) -> Counts {
    let stats = pager.stats();
    let calls = stats.calls;
    let all = calls.polls + calls.reads + calls.installs + calls.wakes + calls.repoints;
    Counts { faults: stats.all_faults(), calls: all }
}
