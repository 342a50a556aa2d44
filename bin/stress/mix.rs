//! What a run is made of: how many threads do what, to how many files of which size, how often. Drawn from a seed, each
//! run other than the last (swarm testing: Groce et al., ISSTA 2012); a scenario fixes a part.

use clap::ValueEnum;
use daxpager::Allocation;
use fastrand::Rng;

use crate::manner::{self, Manners, Pins};
use crate::op::Op;
use crate::word::{FILES_MAX, PAGES_MAX, THREADS_MAX};

/// A run with a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Scenario {
    /// Everything, as the seed draws it
    Random,
    /// Two writers and one puncher on one page
    ThreeParty,
    /// Truncates down and up, to any size, all the time
    TruncateStorm,
    /// A small device, two files that trade blocks
    Reuse,
    /// Mappings that come and go under faults
    UnmapStorm,
    /// Sizes that move around one page border
    EofEdge,
    /// Files in many pieces, on few address ranges
    Fragmented,
    /// Each of these in its turn, from seed to seed
    All,
}

impl Scenario {
    /// Whose turn it is in the `mixes`th mix of a run.
    pub(crate) fn of_mix(self, mixes: u64) -> Self {
        if self == Scenario::All { EACH[mixes as usize % EACH.len()] } else { self }
    }

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// The scenarios that [`Scenario::All`] goes through.
const EACH: [Scenario; 7] = [
    Scenario::Random,
    Scenario::ThreeParty,
    Scenario::TruncateStorm,
    Scenario::Reuse,
    Scenario::UnmapStorm,
    Scenario::EofEdge,
    Scenario::Fragmented,
];

/// Where sizes and offsets are drawn from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Offsets {
    Anywhere,
    /// Within a word or two of the border between these two pages.
    Border(u64),
}

/// One kind of operation and how often it is drawn, against the others of its thread.
pub(crate) type Weights = Vec<(Op, u32)>;

#[derive(Clone, Debug)]
pub(crate) struct Mix {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) files: usize,
    /// Pages of each file, at most.
    pub(crate) pages: u64,
    /// Pages that most accesses go to, and most changes.
    pub(crate) hot_pages: u64,
    /// Blocks that the device has, in percent of what all files may want at once, and what transit needs besides.
    pub(crate) device_percent: u64,
    pub(crate) mappings_per_file: usize,
    pub(crate) manners: Manners,
    pub(crate) workers: usize,
    pub(crate) reader_answers: bool,
    pub(crate) address_ranges_max: Option<u64>,
    pub(crate) gather_blocks: bool,
    pub(crate) accessors: usize,
    pub(crate) changers: usize,
    pub(crate) remappers: usize,
    pub(crate) collectors: usize,
    pub(crate) accesses: Weights,
    pub(crate) changes: Weights,
    pub(crate) offsets: Offsets,
    /// How long a changer leaves files alone between two changes, at most.
    pub(crate) change_pause_us: u64,
    pub(crate) remap_pause_us: u64,
    /// Files never shorter than this many pages.
    pub(crate) least_pages: u64,
    /// Blocks of the device, if they are not reckoned.
    pub(crate) blocks: Option<u64>,
    pub(crate) allocation: Allocation,
    /// With windows: bytes that zeros may take which loads have left in holes.
    pub(crate) zeros_bytes: u64,
}

/// Pages of all files of a mix together, and blocks of its device, at most.
pub(crate) const FILE_PAGES_MAX: u64 = 1024;
pub(crate) const DEVICE_BLOCKS_MAX: u64 = 8192;

/// Threads besides those that access: what `--threads` must allow for.
pub(crate) const THREADS_MIN: usize = 2;

fn weights(rng: &mut Rng, ops: &[Op]) -> Weights {
    // Each is left out in one of three runs: what is left meets oftener.
    let mut drawn = Vec::new();
    for op in ops {
        if rng.u32(0..3) > 0 {
            drawn.push((*op, rng.u32(1..=10)));
        }
    }
    if drawn.is_empty() { vec![(ops[rng.usize(0..ops.len())], 1)] } else { drawn }
}

const ACCESSES: &[Op] = &[
    Op::Load,
    Op::Store,
    Op::Exchange,
    Op::CopyOut,
    Op::CopyIn,
    Op::SysIn,
    Op::SysOut,
    Op::MapRead,
    Op::MapWrite,
    Op::Raw,
    Op::Populate,
    Op::Advise,
];
const CHANGES: &[Op] =
    &[Op::Truncate, Op::Punch, Op::ZeroRange, Op::Allocate, Op::FileRead, Op::FileWrite, Op::Churn, Op::Inspect];

impl Mix {
    /// What `seed` draws; `threads` in all, if it is given.
    pub(crate) fn draw(scenario: Scenario, seed: u64, threads: Option<usize>, pins: &Pins) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut mix = Self::random(&mut rng, seed);
        // By another die: what the others give stays what it was.
        let mut die = Rng::with_seed(!seed);
        mix.allocation = pins.allocation(manner::draw_allocation(&mut die));
        mix.zeros_bytes = [8 << 10, 64 << 10, 64 << 20][die.usize(0..3)];
        if die.u32(0..3) == 0 {
            mix.manners.leave_some_untracked();
        }
        mix.scenario = scenario;
        mix.fix(&mut rng);
        mix.manners.pin(pins);
        if let Some(threads) = threads {
            mix.fit(threads);
        }
        debug_assert!(mix.files <= FILES_MAX && mix.pages <= PAGES_MAX && mix.threads() <= THREADS_MAX);
        mix
    }

    fn random(rng: &mut Rng, seed: u64) -> Self {
        let pages = [2, 4, 8, 16, 32, 64, 128][rng.usize(0..7)];
        let accesses = weights(rng, ACCESSES);
        let mut changes = weights(rng, CHANGES);
        // Without an invalidation there is nothing to look for.
        if !changes.iter().any(|(op, _)| matches!(op, Op::Truncate | Op::Punch | Op::ZeroRange)) {
            changes.push(([Op::Truncate, Op::Punch, Op::ZeroRange][rng.usize(0..3)], 5));
        }
        let overcommitted = rng.u32(0..4) == 0;
        if !overcommitted && rng.u32(0..3) == 0 {
            // They cost a page of each file that is a buffer then, and not judged.
            changes.extend([(Op::FileReadMapped, 3), (Op::FileWriteMapped, 3)]);
        }
        Self {
            scenario: Scenario::Random,
            seed,
            files: rng.usize(1..=5),
            pages,
            hot_pages: rng.u64(1..=pages.min(8)),
            device_percent: if overcommitted { rng.u64(30..=90) } else { 100 },
            mappings_per_file: rng.usize(1..=4),
            manners: Manners::draw(rng),
            workers: rng.usize(1..=4),
            reader_answers: rng.u32(0..4) > 0,
            address_ranges_max: (rng.u32(0..4) == 0).then(|| rng.u64(16..200)),
            gather_blocks: rng.u32(0..3) == 0,
            accessors: rng.usize(2..=8),
            changers: rng.usize(1..=3),
            remappers: usize::from(rng.u32(0..2) == 0),
            collectors: usize::from(rng.u32(0..2) == 0),
            accesses,
            changes,
            offsets: Offsets::Anywhere,
            change_pause_us: [0, 20, 100, 500][rng.usize(0..4)],
            remap_pause_us: [0, 50, 300, 2000][rng.usize(0..4)],
            least_pages: 0,
            blocks: None,
            allocation: Allocation::Blocks,
            zeros_bytes: 64 << 20,
        }
    }

    /// What the scenario says instead.
    fn fix(&mut self, rng: &mut Rng) {
        match self.scenario {
            Scenario::Random | Scenario::All => {}
            Scenario::ThreeParty => {
                (self.files, self.pages, self.hot_pages, self.mappings_per_file) = (1, 1, 1, 2);
                (self.accessors, self.changers, self.remappers, self.collectors) = (2, 1, 0, 0);
                self.accesses = vec![(Op::Store, 10), (Op::Load, 1)];
                self.changes = vec![(Op::Punch, 1)];
                (self.device_percent, self.change_pause_us, self.least_pages) = (100, 0, 1);
            }
            Scenario::TruncateStorm => {
                self.changes = vec![(Op::Truncate, 20), (Op::FileWrite, 2), (Op::Allocate, 1)];
                (self.changers, self.collectors) = (rng.usize(1..=2), 1);
                self.accesses.extend([(Op::Load, 5), (Op::Store, 5)]);
                (self.device_percent, self.least_pages, self.change_pause_us) = (100, 0, rng.u64(0..60));
            }
            Scenario::Reuse => {
                (self.files, self.pages) = (2, rng.u64(1..=4));
                (self.hot_pages, self.mappings_per_file, self.collectors) = (self.pages, rng.usize(2..=4), 1);
                self.accesses.extend([(Op::Load, 5), (Op::Store, 5)]);
                self.changes = vec![(Op::Punch, 10), (Op::Truncate, 3), (Op::ZeroRange, 2), (Op::Churn, 2)];
                self.changes.extend([(Op::FileWrite, 2), (Op::Allocate, 2)]);
                self.device_percent = if rng.u32(0..4) == 0 { rng.u64(30..=90) } else { 100 };
                self.change_pause_us = rng.u64(0..200);
            }
            Scenario::UnmapStorm => {
                (self.files, self.pages) = (rng.usize(2..=3), rng.u64(2..=8));
                (self.remappers, self.remap_pause_us, self.device_percent) = (rng.usize(1..=2), rng.u64(0..30), 100);
                self.hot_pages = self.pages;
                self.accesses = vec![(Op::Load, 3), (Op::Store, 3), (Op::Raw, 10), (Op::SysOut, 2)];
                self.accesses.extend([(Op::Populate, 1), (Op::Advise, 1)]);
            }
            Scenario::EofEdge => {
                self.pages = rng.u64(3..=5);
                self.hot_pages = 3;
                self.offsets = Offsets::Border(2);
                self.accesses.extend([(Op::Load, 5), (Op::Store, 5)]);
                (self.files, self.device_percent, self.change_pause_us) = (rng.usize(1..=2), 100, rng.u64(0..60));
                let size_changes = [(Op::Truncate, 10), (Op::FileWrite, 4), (Op::Allocate, 2), (Op::ZeroRange, 2)];
                let others = [(Op::Punch, 1), (Op::FileReadMapped, 1), (Op::FileWriteMapped, 1)];
                self.changes = size_changes.into_iter().chain(others).collect();
            }
            Scenario::Fragmented => {
                (self.files, self.pages, self.device_percent) = (rng.usize(2..=4), 256, 100);
                self.hot_pages = 256;
                self.address_ranges_max = Some(rng.u64(16..120));
                self.changes = vec![(Op::Punch, 10), (Op::FileWrite, 5), (Op::ZeroRange, 2), (Op::Truncate, 1)];
            }
        }
        if self.uses_mapped_buffers() {
            // The buffer is page 0: never past the end, and never on a full volume, where it would be a SIGBUS.
            (self.pages, self.hot_pages) = (self.pages.max(2), self.hot_pages.max(2));
            (self.least_pages, self.device_percent) = (1, 100);
        }
    }

    pub(crate) fn uses_mapped_buffers(&self) -> bool {
        self.changes.iter().any(|(op, _)| matches!(op, Op::FileReadMapped | Op::FileWriteMapped))
    }

    pub(crate) fn is_overcommitted(&self) -> bool {
        self.device_percent < 100
    }

    pub(crate) fn threads(&self) -> usize {
        self.accessors + self.changers + self.remappers + self.collectors
    }

    /// Makes it `threads` in all, of the same kinds as far as that goes.
    fn fit(&mut self, threads: usize) {
        let threads = threads.clamp(THREADS_MIN, THREADS_MAX);
        while self.threads() > threads && self.accessors > 1 {
            self.accessors -= 1;
        }
        while self.threads() > threads && self.changers > 1 {
            self.changers -= 1;
        }
        if self.threads() > threads {
            self.collectors = 0;
        }
        if self.threads() > threads {
            self.remappers = 0;
        }
        self.accessors += threads - self.threads();
    }

    /// Blocks that threads may hold besides what their files own.
    fn transit(&self) -> u64 {
        // A change reserves for all holes of its range what faults may fill meanwhile; blocks that are gathered are there twice.
        let mut ranges = self.changers as u64 + u64::from(self.gather_blocks);
        if self.accesses.iter().any(|(op, _)| *op == Op::Populate) {
            ranges += self.accessors as u64;
        }
        if self.manners.allocates_ahead() {
            // Two that meet at one hole both have blocks for all of it.
            ranges += self.workers as u64;
        }
        64 + 2 * (self.threads() + self.workers) as u64 + ranges * self.pages
    }

    /// Gives the device another size. If that is too small for all that files may want, stores may find it full.
    pub(crate) fn set_device(&mut self, blocks: u64) {
        let wanted = self.files as u64 * self.pages;
        if blocks < wanted + self.transit() {
            self.device_percent = (blocks * 100 / wanted.max(1)).min(99);
            self.changes.retain(|(op, _)| !matches!(op, Op::FileReadMapped | Op::FileWriteMapped));
            if self.changes.is_empty() {
                self.changes = vec![(Op::Punch, 1)];
            }
        }
        self.blocks = Some(blocks);
    }

    pub(crate) fn device_blocks(&self) -> u64 {
        if let Some(blocks) = self.blocks {
            return blocks;
        }
        (self.files as u64 * self.pages * self.device_percent / 100).max(2)
            + if self.is_overcommitted() { 0 } else { self.transit() }
    }

    /// Name and value of everything that was drawn.
    pub(crate) fn options(&self) -> Vec<(String, String)> {
        let weights = |weights: &Weights| {
            weights.iter().map(|(op, weight)| format!("{} {weight}", op.name())).collect::<Vec<_>>().join(", ")
        };
        let offsets = match self.offsets {
            Offsets::Anywhere => "anywhere".to_owned(),
            Offsets::Border(page) => format!("around the start of page {page}"),
        };
        let ranges = self.address_ranges_max.map_or("not limited".to_owned(), |ranges| ranges.to_string());
        let rows = [
            ("files", self.files.to_string()),
            ("pages per file", format!("{}, of which hot {}", self.pages, self.hot_pages)),
            ("device", format!("{} blocks, {} % of what files may want", self.device_blocks(), self.device_percent)),
            (
                "allocation",
                match self.allocation {
                    Allocation::Windows => format!("windows, {} KiB of zeros at most", self.zeros_bytes >> 10),
                    other => manner::allocation_name(other).to_owned(),
                },
            ),
            ("mappings per file", format!("{}: {}", self.mappings_per_file, self.manners.text())),
            ("pager", format!("{} workers, reader answers: {}", self.workers, self.reader_answers)),
            ("address ranges", format!("{ranges}, blocks gathered: {}", self.gather_blocks)),
            (
                "threads",
                format!(
                    "{} access, {} change, {} remap, {} collect",
                    self.accessors, self.changers, self.remappers, self.collectors
                ),
            ),
            ("accesses", weights(&self.accesses)),
            ("changes", weights(&self.changes)),
            ("sizes and offsets", offsets),
            (
                "pauses",
                format!("up to {} us after a change, {} us after a map", self.change_pause_us, self.remap_pause_us),
            ),
        ];
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_twice_and_every_scenario_fits_its_limits() {
        let pins = Pins::default();
        for scenario in Scenario::value_variants() {
            for seed in 0..500 {
                let mix = Mix::draw(*scenario, seed, None, &pins);
                assert_eq!(mix.options(), Mix::draw(*scenario, seed, None, &pins).options());
                assert!(mix.files as u64 * mix.pages <= FILE_PAGES_MAX && mix.device_blocks() <= DEVICE_BLOCKS_MAX);
                assert!(mix.files <= FILES_MAX && mix.pages <= PAGES_MAX && mix.threads() <= THREADS_MAX);
                assert!(mix.hot_pages >= 1 && mix.hot_pages <= mix.pages && mix.least_pages <= mix.pages);
                assert!(mix.accessors > 0 && mix.changers > 0 && !mix.accesses.is_empty());
                let fitted = Mix::draw(*scenario, seed, Some(3), &pins);
                assert!(fitted.threads() <= 3 && fitted.accessors > 0 && fitted.changers > 0);
            }
        }
    }
}
