//! Single accesses without a fault, for threads in which a SIGBUS would not be caught: by the extents, under the file's lock, to the
//! bytes of the device. Whoever asks cannot tell which way the access was made, but by the faults that are missing.
//!
//! A system call copies a word as it likes, while an instruction of another thread loads or stores it whole. So a word is changed with
//! the page out of every mapping:
//!
//! ```text
//! exchange, by table                                store, by the CPU
//!   L2 exclusive
//!   zap the page
//!   read the word
//!                                                     faults, waits for L2
//!   write the word, unlock
//!                                                     installed: stores to what was exchanged
//! ```
//!
//! A mapping that lets stores through to what is present can't be kept from them so. Beside one a word is exchanged by an instruction.

use super::Mapping;
use crate::error::{BusError, Error, Result};
use crate::policy::PageState;
use crate::space::Change;
use crate::units::{PageIndex, PageRange};

/// How often a word is read that was different each time.
const READS_MAX: u32 = 100;

impl Mapping {
    /// What the CPU would have met at `offset` where this access has failed with `error`.
    fn as_bus(&self, offset: u64, error: Error) -> Error {
        let offset = match error {
            // The bytes before that page have been copied.
            Error::PastEnd { page, .. } => {
                self.inode.page().offset_of(PageIndex(page)).saturating_sub(self.file_offset()).max(offset)
            }
            Error::NoSpace { .. }
            | Error::DeviceMemory { .. }
            | Error::DeviceLost { .. }
            | Error::Limit { .. }
            | Error::PagerGone { .. } => offset,
            other => return other,
        };
        Error::Bus(BusError { addr: self.window.base().0 + offset as usize, offset })
    }

    /// Reads it until it is the same twice: what was copied while a store was made may be a part of each.
    pub(super) fn load_by_table(&self, offset: u64) -> Result<u64> {
        let read = || {
            let mut word = [0; 8];
            self.copy_out_by_table(offset, &mut word).map(|()| u64::from_ne_bytes(word))
        };
        let mut last = read()?;
        for _ in 0..READS_MAX {
            match read()? {
                now if now == last => return Ok(now),
                now => last = now,
            }
        }
        // Nobody stores meanwhile.
        self.change_word(offset, |_| None).map_err(|error| self.as_bus(offset, error))
    }

    pub(super) fn store_by_table(&self, offset: u64, value: u64) -> Result<()> {
        self.change_word(offset, |_| Some(value)).map(drop).map_err(|error| self.as_bus(offset, error))
    }

    pub(super) fn copy_out_by_table(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read_at(into, offset).map_err(|error| self.as_bus(offset, error))
    }

    /// Page by page, as [`Mapping::write_at`]: so it is known where it ended.
    pub(super) fn copy_in_by_table(&self, offset: u64, from: &[u8]) -> Result<()> {
        let page = self.inode.page();
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let room = page.bytes() - (self.file_offset() + at) % page.bytes();
            let (part, behind) = rest.split_at(rest.len().min(room as usize));
            self.write_at(part, at).map_err(|error| self.as_bus(at, error))?;
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }

    pub(super) fn exchange_by_table(&self, offset: u64, expected: u64, new: u64) -> Result<u64> {
        self.change_word(offset, |was| (was == expected).then_some(new)).map_err(|error| self.as_bus(offset, error))
    }

    /// Changes a word to what `change` makes of it, as one step. What was there before.
    fn change_word(&self, offset: u64, to: impl Fn(u64) -> Option<u64>) -> Result<u64> {
        let bytes = self.file_range(offset, 8)?;
        let page = self.inode.page();
        let (index, within) = (page.page_of(bytes.start), bytes.start % page.bytes());
        // A write to a file with windows holds this alone.
        let _l1 = self.inode.store.capacity().map(|_| self.inode.change.read());
        // For a page that has a block none is needed, unless it is punched meanwhile.
        let (mut reserved, short) = match self.inode.store.reserve(1) {
            Ok(reserved) => (reserved, None),
            Err(error) => (self.inode.store.reserve(0)?, Some(error)),
        };
        let is_ready = |change: &Change<'_>| match change.extents().state(index) {
            PageState::Written(_) => change.keep_out_of(index),
            PageState::Hole | PageState::Unwritten(_) => change.make_ready(PageRange::one(index)),
        };
        let mut change = self.inode.change_when(|| self.inode.space.change(), is_ready)?;
        self.check_end(change.size(), PageRange::one(index))?;
        let state = change.extents().state(index);
        if change.is_open() && (short.is_none() || state != PageState::Hole) {
            let written = match state {
                // As far as anybody can tell.
                PageState::Hole | PageState::Unwritten(_) if to(0).is_none() => Ok(0),
                _ => self.inode.change_word_beside_stores(&mut change, index, within, &to, &mut reserved),
            };
            if written.as_ref().is_ok_and(|was| to(*was).is_some()) {
                // No entry of this mapping tells.
                self.window.mark_dirty(index);
            }
            change.commit(&self.inode.store);
            return written;
        }
        let mut word = [0; 8];
        if let PageState::Written(block) = state {
            self.inode.store.memory.read(page.device_offset(block) + within, &mut word)?;
        }
        let was = u64::from_ne_bytes(word);
        let written = match (to(was), short) {
            (None, _) => Ok(()),
            (Some(_), Some(error)) if state == PageState::Hole => Err(error),
            (Some(new), _) => {
                self.window.mark_dirty(index);
                let part = within..within + 8;
                self.inode.write_page(&mut change, index, part, &new.to_ne_bytes(), &mut reserved)
            }
        };
        change.commit(&self.inode.store);
        written.map(|()| was)
    }
}
