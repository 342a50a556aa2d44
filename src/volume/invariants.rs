//! What holds between any two steps of a schedule, whichever thread has the next: page tables, extents and the
//! allocator agree. For the schedule checker alone.
//!
//! It looks without a lock and is no step itself, so no schedule is different for it. What somebody is about
//! to change under its lock is left out: nobody else sees that either, and what is wrong then is wrong
//! still when the lock has been dropped. There is one lock for which that takes long: a file's L2, held exclusively from
//! publish to zap.

use super::{Names, Volume};
use crate::sync::{Arc, Weak};
use crate::sys::fake::Glimpse;
use crate::sys::fake::{FakeEntry, FakePageTable};
use crate::units::BlockIndex;

/// A volume and the page table on which all its mappings are. It keeps neither alive.
#[doc(hidden)]
pub struct Invariants {
    names: Weak<Names>,
    table: Glimpse,
}

impl Invariants {
    /// For a volume of which no file is removed, so that all of them are known by name.
    pub fn new(volume: &Volume, fake: &FakePageTable) -> Self {
        Self { names: Arc::downgrade(&volume.inner), table: fake.glimpse() }
    }

    /// # Errors
    /// What is wrong now, as text.
    pub fn check(&self) -> Result<(), String> {
        let Some(names) = self.names.upgrade() else { return Ok(()) };
        let Some(entries) = self.table.entries() else { return Ok(()) };
        names.check_free(&entries)?;
        names.check_files(&entries)
    }
}

impl Names {
    fn block_of(&self, entry: &FakeEntry) -> Option<BlockIndex> {
        Some(BlockIndex(self.store.page.page_of(entry.device_offset?).0))
    }

    /// No block is in the allocator and in a page table. There is no moment at which that may be otherwise.
    fn check_free(&self, entries: &[FakeEntry]) -> Result<(), String> {
        let Some(allocator) = self.store.peek() else { return Ok(()) };
        let free = |entry: &&FakeEntry| self.block_of(entry).is_some_and(|block| allocator.is_free(block));
        match entries.iter().find(free) {
            Some(entry) => Err(format!("a block is free, and an entry names it: {entry:?}")),
            None => Ok(()),
        }
    }

    /// Every mapping shows what its file is made of; no entry is anywhere else, or names another file's block; and
    /// each file's blocks are its own.
    fn check_files(&self, entries: &[FakeEntry]) -> Result<(), String> {
        let Some(files) = self.files.peek() else { return Ok(()) };
        let known: Vec<_> = files.values().filter_map(|inode| inode.space.peek()).collect();
        let mut owned: Vec<BlockIndex> = Vec::new();
        for file in &known {
            file.check(entries)?;
            if let Some(page) = file.stranger(|offset| self.store.memory.is_there(offset)) {
                return Err(format!("page {} is a hole, and the device has a page in its place", page.0));
            }
            let own = owned.len();
            owned.extend(file.blocks());
            let theirs = |entry: &&FakeEntry| {
                !file.shows(entry.addr) && self.block_of(entry).is_some_and(|block| owned[own..].contains(&block))
            };
            if let Some(entry) = entries.iter().find(theirs) {
                return Err(format!("a block of a file is mapped where the file is not: {entry:?}"));
            }
        }
        // Of a file that is being changed it is not known where it is mapped.
        let nowhere = |entry: &&FakeEntry| !known.iter().any(|file| file.shows(entry.addr));
        if known.len() == files.len()
            && let Some(entry) = entries.iter().find(nowhere)
        {
            return Err(format!("an entry is where no file is mapped: {entry:?}"));
        }
        let Some(allocator) = self.store.peek() else { return Ok(()) };
        let of = |block: &BlockIndex| owned.iter().filter(|other| *other == block).count();
        match owned.iter().find(|block| allocator.is_free(**block) || of(block) > 1) {
            Some(block) => Err(format!("block {} is a file's, and free or another's too", block.0)),
            None => Ok(()),
        }
    }
}
