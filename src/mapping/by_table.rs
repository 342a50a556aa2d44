//! Single accesses without a fault, for threads in which a SIGBUS would not be caught: by the extents, under the file's lock, to the very
//! words that the mapping would show. Whoever asks cannot tell which way the access was made, but by the faults that are missing.

use super::{BusError, Mapping};
use crate::error::{Error, Result};
use crate::policy::PageState;
use crate::units::{PageIndex, PageRange};

impl Mapping {
    /// What the CPU would have met at `offset` where this access has failed with `error`.
    fn as_bus(&self, offset: u64, error: Error) -> Error {
        let offset = match error {
            // The bytes before that page have been copied.
            Error::PastEnd { page, .. } => {
                self.inode.page().offset_of(PageIndex(page)).saturating_sub(self.file_offset()).max(offset)
            }
            Error::NoSpace { .. } | Error::DeviceMemory { .. } | Error::PagerGone { .. } => offset,
            other => return other,
        };
        Error::Bus(BusError { addr: self.window.base().0 + offset as usize, offset })
    }

    pub(super) fn load_by_table(&self, offset: u64) -> Result<u64> {
        // An aligned word is read whole.
        let mut word = [0; 8];
        self.copy_out_by_table(offset, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    pub(super) fn copy_out_by_table(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.read_at(into, offset).map_err(|error| self.as_bus(offset, error))
    }

    /// Page by page, as [`Mapping::write_at`]: so it is known where it ended. An aligned word is written whole.
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
        self.exchange_in_file(offset, expected, new).map_err(|error| self.as_bus(offset, error))
    }

    fn exchange_in_file(&self, offset: u64, expected: u64, new: u64) -> Result<u64> {
        let bytes = self.file_range(offset, 8)?;
        let page = self.inode.page();
        let (index, within) = (page.page_of(bytes.start), bytes.start % page.bytes());
        let exchange = |block| {
            let was = self.inode.store.memory.exchange(page.device_offset(block) + within, expected, new);
            if was == expected {
                self.window.mark_dirty(index);
            }
            was
        };
        {
            let shared = self.inode.space.shared();
            self.check_end(shared.size(), PageRange::one(index))?;
            match shared.extents().state(index) {
                PageState::Written(block) if !shared.is_ahead(PageRange::one(index)) => return Ok(exchange(block)),
                PageState::Hole | PageState::Unwritten(_) if expected != 0 => return Ok(0),
                _ => {}
            }
        }
        // Zeros are exchanged: as a store to the page. For a page that has a block none is needed, unless it is punched meanwhile.
        let (mut reserved, short) = match self.inode.store.reserve(1) {
            Ok(reserved) => (reserved, None),
            Err(error) => (self.inode.store.reserve(0)?, Some(error)),
        };
        let mut change = self.inode.space.change();
        self.check_end(change.size(), PageRange::one(index))?;
        let was = match (change.extents().state(index), short) {
            (PageState::Written(block), _) => {
                change.keep(PageRange::one(index));
                exchange(block)
            }
            (PageState::Hole, Some(error)) if expected == 0 => return Err(error),
            (PageState::Hole | PageState::Unwritten(_), _) if expected == 0 => {
                self.window.mark_dirty(index);
                let part = within..within + 8;
                self.inode.write_page(&mut change, index, part, &new.to_ne_bytes(), &mut reserved);
                0
            }
            (PageState::Hole | PageState::Unwritten(_), _) => 0,
        };
        change.commit(&self.inode.store);
        Ok(was)
    }
}
