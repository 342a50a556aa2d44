//! Threads that map and unmap, and threads that collect what is dirty.

use std::sync::Arc;

use super::Hand;
use crate::op::Op;
use crate::oracle::dirty::Mapped as Of;
use crate::oracle::trace::End;
use crate::oracle::{Access, lock};

impl Hand {
    /// Gives a place another mapping. The old one is unmapped when the last thread that uses it has done; those
    /// that know no more than its address may be in a fault there.
    pub(super) fn remap(&mut self) {
        let world = self.world.clone();
        let place = self.rng.usize(0..world.mappings.len());
        let file = self.rng.u8(0..world.mix.files as u8);
        // Half of them of the whole file: the address of the last one is the next one's then.
        let pages = match self.rng.u32(0..2) {
            0 => 0..world.mix.pages,
            _ => {
                let first = self.rng.u64(0..world.mix.pages);
                first..self.rng.u64(first + 1..=world.mix.pages)
            }
        };
        let manner = world.mix.manners.next(&mut self.rng);
        let address = world.mapped(place).map(|mapped| mapped.mapping.as_ptr() as u64);
        let access = Access { op: Op::Unmap, thread: self.id, file, page: 0, address };
        let begin = self.begin(&access);
        drop(world.exchange(place, None));
        self.end(&access, begin, false);
        let access = Access { op: Op::Map, address: None, ..access };
        let begin = self.begin(&access);
        let mapped = world.map(file, pages, manner);
        self.end(&access, begin, mapped.is_err());
        match mapped {
            Ok(mapped) => drop(world.exchange(place, Some(Arc::new(mapped)))),
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
        self.pause(world.mix.remap_pause_us);
    }

    /// Takes the dirty ranges of a mapping.
    pub(super) fn collect(&mut self) {
        let place = self.rng.usize(0..self.world.mappings.len());
        let Some(mapped) = self.world.mapped(place).filter(|mapped| !mapped.manner.is_untracked()) else { return };
        let access = Access {
            op: Op::TakeDirty,
            thread: self.id,
            file: mapped.file,
            page: mapped.first_page,
            address: Some(mapped.mapping.as_ptr() as u64),
        };
        let turn = lock(&mapped.dirty.turn);
        let begin = self.begin(&access);
        let taken = mapped.mapping.take_dirty();
        let span = self.end(&access, begin, taken.is_err());
        match taken {
            Ok(ranges) => {
                let size = self.page_bytes();
                let pages: Vec<_> = ranges.iter().map(|range| range.start / size..range.end / size).collect();
                for page in pages.iter().cloned().flatten() {
                    self.note(&Access { page: mapped.first_page + page, ..access }, span, None, None, End::Done);
                }
                let of = Of { file: mapped.file, first_page: mapped.first_page, thread: self.id };
                mapped.dirty.judge(&self.oracle, &of, &pages, span);
            }
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
        drop(turn);
        self.pause(self.world.mix.remap_pause_us.max(100));
    }
}
