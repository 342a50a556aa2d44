//! Which blocks are free. Plain data: the lock is the store's.
//!
//! A block that has just been freed is the next one handed out. That is deliberate: a page table
//! that still holds a freed block is caught at once, not after the device has wrapped around.

use std::collections::BTreeMap;

use crate::blocks::Run;
use crate::units::BlockIndex;

/// How many freed runs are remembered in order. Older ones are found by address.
const RECENT: usize = 1024;
/// How many free runs are looked at for one that is long enough.
const RUNS_LOOKED_AT: usize = 64;

#[derive(Debug)]
pub(crate) struct Allocator {
    /// Free runs by first block: start, length. Neighbours are joined.
    free: BTreeMap<u64, u64>,
    /// Runs in the order in which they were freed, the newest last. Hints: they may be taken since.
    recent: Vec<Run>,
    free_blocks: u64,
    total_blocks: u64,
    /// No block from here on has ever been handed out.
    used_up_to: u64,
}

impl Allocator {
    pub(crate) fn new(blocks: u64) -> Self {
        let free = BTreeMap::from([(0, blocks)]);
        Self { free, recent: Vec::new(), free_blocks: blocks, total_blocks: blocks, used_up_to: 0 }
    }

    pub(crate) fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    pub(crate) fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    /// The free run that holds `block`.
    fn run_with(&self, block: BlockIndex) -> Option<Run> {
        let (start, blocks) = self.free.range(..=block.0).next_back()?;
        (block.0 < start + blocks).then_some(Run { start: BlockIndex(*start), blocks: *blocks })
    }

    #[cfg(feature = "shuttle")]
    pub(crate) fn is_free(&self, block: BlockIndex) -> bool {
        self.run_with(block).is_some()
    }

    /// One to `want` consecutive blocks, the last freed first. `None` when no block is free.
    pub(crate) fn take(&mut self, want: u64) -> Option<Run> {
        debug_assert!(want > 0);
        while let Some(hint) = self.recent.pop() {
            let Some(run) = self.run_with(hint.start) else { continue };
            let tail = run.blocks - (hint.start.0 - run.start.0);
            let taken = Run { start: hint.start, blocks: want.min(tail) };
            if taken.blocks < hint.blocks {
                let rest = Run { start: hint.start.plus(taken.blocks), blocks: hint.blocks - taken.blocks };
                self.recent.push(rest);
            }
            self.carve(taken);
            return Some(taken);
        }
        let (start, blocks) = self.free.first_key_value().map(|(start, blocks)| (*start, *blocks))?;
        let taken = Run { start: BlockIndex(start), blocks: want.min(blocks) };
        self.carve(taken);
        Some(taken)
    }

    /// One to `want` consecutive blocks, in one run if there is one among the first: other than [`Allocator::take`], which
    /// takes what was freed last even if that is short.
    ///
    /// With it, whether none of them has ever been handed out.
    pub(crate) fn take_run(&mut self, want: u64) -> Option<(Run, bool)> {
        let used_up_to = self.used_up_to;
        let fits = self.free.iter().take(RUNS_LOOKED_AT).find(|(_, blocks)| **blocks >= want);
        let taken = match fits.filter(|_| want > 1) {
            Some((start, _)) => {
                let taken = Run { start: BlockIndex(*start), blocks: want };
                self.carve(taken);
                taken
            }
            None => self.take(want)?,
        };
        Some((taken, taken.start.0 >= used_up_to))
    }

    /// Exactly `want` consecutive blocks, from the smallest free run that has them.
    pub(crate) fn take_together(&mut self, want: u64) -> Option<Run> {
        let fits = self.free.iter().filter(|(_, blocks)| **blocks >= want);
        let (start, _) = fits.min_by_key(|(_, blocks)| **blocks)?;
        let taken = Run { start: BlockIndex(*start), blocks: want };
        self.carve(taken);
        Some(taken)
    }

    /// Removes a run, all of which is free, from the free ones.
    fn carve(&mut self, taken: Run) {
        self.used_up_to = self.used_up_to.max(taken.start.0 + taken.blocks);
        let run = self.run_with(taken.start).expect("only free blocks are carved");
        self.free.remove(&run.start.0);
        let before = taken.start.0 - run.start.0;
        let after = run.blocks - before - taken.blocks;
        if before > 0 {
            self.free.insert(run.start.0, before);
        }
        if after > 0 {
            self.free.insert(taken.start.0 + taken.blocks, after);
        }
        self.free_blocks -= taken.blocks;
    }

    /// Gives blocks back.
    ///
    /// # Panics
    /// When one of them is free already: somebody owned it twice.
    pub(crate) fn give(&mut self, run: Run) {
        let end = run.start.0 + run.blocks;
        assert!(end <= self.total_blocks, "{run:?} lies outside the device");
        let before = self.free.range(..end).next_back().map(|(start, blocks)| (*start, *blocks));
        let before_end = before.map_or(0, |(start, blocks)| start + blocks);
        assert!(before_end <= run.start.0, "{run:?} is free already");
        let mut joined = (run.start.0, run.blocks);
        if let Some((start, blocks)) = before
            && before_end == run.start.0
        {
            joined = (start, blocks + run.blocks);
        }
        if let Some(blocks) = self.free.remove(&end) {
            joined.1 += blocks;
        }
        self.free.insert(joined.0, joined.1);
        self.free_blocks += run.blocks;
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_freed_comes_first() {
        let mut blocks = Allocator::new(10);
        let all: Vec<Run> = std::iter::from_fn(|| blocks.take(1)).collect();
        assert_eq!(all.len(), 10);
        for i in [3, 7, 5] {
            blocks.give(all[i]);
        }
        assert_eq!(blocks.take(1), Some(all[5]));
        assert_eq!(blocks.take(1), Some(all[7]));
        blocks.give(all[4]);
        // 3 and 4 are one run by now, and 4 is still the newest.
        assert_eq!(blocks.take(1), Some(all[4]));
        assert_eq!(blocks.take(9), Some(all[3]));
        assert_eq!(blocks.take(1), None);
    }

    #[test]
    fn a_run_is_in_one_piece_and_known_to_be_fresh() {
        let mut blocks = Allocator::new(20);
        let all: Vec<Run> = (0..8).filter_map(|_| blocks.take(1)).collect();
        blocks.give(all[2]);
        blocks.give(all[6]);
        let run = |start, blocks| Run { start: BlockIndex(start), blocks };
        assert_eq!(blocks.take_run(4), Some((run(8, 4), true)), "not the two that were freed last");
        assert_eq!(blocks.take_run(1), Some((run(6, 1), false)));
        blocks.give(run(8, 4));
        assert_eq!(blocks.take_run(12), Some((run(8, 12), false)), "some of them have been used");
        assert_eq!(blocks.take_run(9), Some((run(2, 1), false)), "what there is");
    }

    #[test]
    #[should_panic(expected = "free already")]
    fn a_block_freed_twice_panics() {
        let mut blocks = Allocator::new(4);
        let run = blocks.take(2).unwrap();
        blocks.give(run);
        blocks.give(Run { start: run.start.plus(1), blocks: 1 });
    }

    proptest! {
        /// Every block is either free or handed out, to exactly one.
        #[test]
        fn no_block_is_lost_or_doubled(wants in proptest::collection::vec((1..9u64, any::<bool>(), any::<prop::sample::Index>()), 1..80)) {
            let mut blocks = Allocator::new(32);
            let mut out: Vec<Run> = Vec::new();
            for (want, give, which) in wants {
                if give && !out.is_empty() {
                    let run = out.swap_remove(which.index(out.len()));
                    blocks.give(run);
                    prop_assert_eq!(blocks.take(run.blocks).map(|again| again.start), Some(run.start));
                    blocks.give(run);
                } else if let Some(run) = blocks.take(want) {
                    prop_assert!(run.blocks <= want);
                    out.push(run);
                }
                let mut owned = [0u8; 32];
                for run in out.iter().copied().chain(blocks.free.iter().map(|(start, blocks)| Run { start: BlockIndex(*start), blocks: *blocks })) {
                    for block in run.start.0..run.start.0 + run.blocks {
                        owned[block as usize] += 1;
                    }
                }
                prop_assert_eq!(owned, [1u8; 32]);
                prop_assert_eq!(blocks.free_blocks(), 32 - out.iter().map(|run| run.blocks).sum::<u64>());
            }
        }
    }
}
