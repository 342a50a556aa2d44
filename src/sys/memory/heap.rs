//! Memory from the heap, for the fake page table.

use crate::sync::plain::{AtomicBool, AtomicU64, Ordering, fence};

pub(super) struct Heap {
    words: Box<[AtomicU64]>,
    /// Bytes that may be in use at one time.
    len_bytes: u64,
    block_bytes: u64,
    /// Of a heap that is sparse, which blocks have a page: one for each. Of another all have, always.
    there: Option<Box<[AtomicBool]>>,
}

impl Heap {
    pub(super) fn new(bytes: u64, block_bytes: u64) -> Self {
        Self { words: zeros(bytes), len_bytes: bytes, block_bytes, there: None }
    }

    /// With more places than bytes: a block is there only when something has been put there.
    pub(super) fn sparse(bytes: u64, span_bytes: u64, block_bytes: u64) -> Self {
        let there = (0..span_bytes / block_bytes).map(|_| AtomicBool::new(false)).collect();
        Self { words: zeros(span_bytes), len_bytes: bytes, block_bytes, there: Some(there) }
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn span_bytes(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    pub(super) fn is_there(&self, offset: u64) -> bool {
        let block = (offset / self.block_bytes) as usize;
        self.there.as_ref().is_none_or(|there| there[block].load(Ordering::Acquire))
    }

    pub(super) fn resident_in(&self, offset: u64, bytes: u64) -> u64 {
        let blocks = (offset..offset + bytes).step_by(self.block_bytes as usize);
        blocks.filter(|at| self.is_there(*at)).count() as u64 * self.block_bytes
    }

    /// Makes a block of zeros there, unless it is. Whether it was not.
    pub(super) fn make_there(&self, offset: u64) -> bool {
        let block = (offset / self.block_bytes) as usize;
        self.there.as_ref().is_some_and(|there| !there[block].swap(true, Ordering::AcqRel))
    }

    /// Makes a block gone to who looks whether it is there. Its bytes are cleared later.
    pub(super) fn make_gone(&self, offset: u64) {
        if let Some(there) = &self.there {
            there[(offset / self.block_bytes) as usize].store(false, Ordering::Release);
        }
    }

    /// Makes every block there that a range has a part of.
    pub(super) fn touch(&self, offset: u64, bytes: u64) {
        (offset..offset + bytes).step_by(self.block_bytes as usize).for_each(|at| _ = self.make_there(at));
        if bytes > 0 {
            self.make_there(offset + bytes - 1);
        }
    }

    /// Takes whole blocks away.
    pub(super) fn punch(&self, offset: u64, bytes: u64) {
        self.clear(offset, bytes);
        let Some(there) = &self.there else { return };
        let blocks = (offset / self.block_bytes) as usize..((offset + bytes) / self.block_bytes) as usize;
        there[blocks].iter().for_each(|there| there.store(false, Ordering::Release));
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub(super) fn word(&self, index: u64) -> &AtomicU64 {
        &self.words[index as usize]
    }

    /// Changes only the bytes of word `index` that `mask` selects, whatever happens to the others meanwhile.
    fn merge(&self, index: u64, mask: u64, value: u64) {
        let word = self.word(index);
        let mut old = word.load(Ordering::Relaxed);
        while let Err(now) =
            word.compare_exchange_weak(old, old & !mask | value & mask, Ordering::Relaxed, Ordering::Relaxed)
        {
            old = now;
        }
    }

    /// Calls `each` for every word that the bytes touch: its index, where its bytes begin among
    /// those meant, and the range of it that is meant.
    fn for_words(offset: u64, bytes: u64, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let first = (at % 8) as usize;
            let last = (end - (at - first as u64)).min(8) as usize;
            each(at / 8, (at - offset) as usize, first..last);
            at += (last - first) as u64;
        }
    }

    /// Each aligned word is read whole.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        Self::for_words(offset, into.len() as u64, |index, at, part| {
            let word = self.word(index).load(Ordering::Relaxed).to_ne_bytes();
            into[at..at + part.len()].copy_from_slice(&word[part]);
        });
        fence(Ordering::Acquire);
    }

    /// Each aligned word is written whole, and no byte beside those meant.
    pub(super) fn write(&self, offset: u64, from: &[u8]) {
        self.touch(offset, from.len() as u64);
        fence(Ordering::Release);
        Self::for_words(offset, from.len() as u64, |index, at, part| {
            let mut bytes = [0u8; 8];
            bytes[part.clone()].copy_from_slice(&from[at..at + part.len()]);
            let value = u64::from_ne_bytes(bytes);
            if part.len() == 8 {
                self.word(index).store(value, Ordering::Relaxed);
            } else {
                self.merge(index, mask(&part), value);
            }
        });
    }

    pub(super) fn zero(&self, offset: u64, bytes: u64) {
        self.touch(offset, bytes);
        self.clear(offset, bytes);
    }

    fn clear(&self, offset: u64, bytes: u64) {
        Self::for_words(offset, bytes, |index, _, part| {
            if part.len() == 8 {
                self.word(index).store(0, Ordering::Relaxed);
            } else {
                self.merge(index, mask(&part), 0);
            }
        });
        fence(Ordering::Release);
    }

    pub(super) fn is_zero(&self, offset: u64, bytes: u64) -> bool {
        (offset / 8..(offset + bytes) / 8).all(|index| self.word(index).load(Ordering::Relaxed) == 0)
    }

    pub(super) fn copy(&self, from: u64, to: u64, bytes: u64) {
        self.touch(to, bytes);
        for index in 0..bytes / 8 {
            let value = self.word(from / 8 + index).load(Ordering::Relaxed);
            self.word(to / 8 + index).store(value, Ordering::Relaxed);
        }
        fence(Ordering::Release);
    }
}

fn zeros(bytes: u64) -> Box<[AtomicU64]> {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

/// All ones in the bytes of a word that `part` names, in memory order.
fn mask(part: &std::ops::Range<usize>) -> u64 {
    let mut bytes = [0u8; 8];
    bytes[part.clone()].fill(0xff);
    u64::from_ne_bytes(bytes)
}
