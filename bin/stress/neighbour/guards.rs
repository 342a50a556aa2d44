//! Memory that is none of the library's, with known content.

use memmap2::MmapMut;

/// Of each kind so many.
const PIECES: usize = 16;

pub(super) struct Guards {
    seed: u64,
    heap: Vec<Vec<u8>>,
    /// New mappings: the kernel puts them where others have been, and beside those of the library.
    mapped: Vec<MmapMut>,
}

fn byte(seed: u64, piece: usize, at: usize) -> u8 {
    (seed as usize ^ piece.wrapping_mul(31) ^ at.wrapping_mul(7) ^ at >> 8) as u8 | 1
}

fn fill(seed: u64, piece: usize, bytes: &mut [u8]) {
    bytes.iter_mut().enumerate().for_each(|(at, into)| *into = byte(seed, piece, at));
}

impl Guards {
    pub(super) fn new(seed: u64) -> Self {
        let heap = (0..PIECES).map(|piece| {
            // From a few bytes to more than malloc(3) keeps in its heaps.
            let mut bytes = vec![0; 64 << (piece % 13)];
            fill(seed, piece, &mut bytes);
            bytes
        });
        let mapped = (0..PIECES).filter_map(|piece| {
            let mut bytes = MmapMut::map_anon((1 + piece % 4) << 12).ok()?;
            fill(seed, piece, &mut bytes);
            Some(bytes)
        });
        Self { seed, heap: heap.collect(), mapped: mapped.collect() }
    }

    /// What is not as it was.
    pub(super) fn harm(&self) -> Option<String> {
        let heap = self.heap.iter().map(Vec::as_slice);
        let mapped = self.mapped.iter().map(|bytes| &bytes[..]);
        let differs = |(piece, bytes): (usize, &[u8])| {
            let at = (0..bytes.len()).find(|at| bytes[*at] != byte(self.seed, piece, *at))?;
            Some(format!("{:#x} at byte {at} of {} at {:p}", bytes[at], bytes.len(), bytes.as_ptr()))
        };
        heap.enumerate().chain(mapped.enumerate()).find_map(differs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harm_is_seen() {
        let mut guards = Guards::new(7);
        assert_eq!(guards.harm(), None);
        guards.heap[3][2] = 0;
        assert!(guards.harm().is_some_and(|harm| harm.starts_with("0x0 at byte 2 of 512 ")));
        guards.heap[3][2] = byte(7, 3, 2);
        guards.mapped[5][4097] ^= 2;
        assert!(guards.harm().is_some_and(|harm| harm.contains("at byte 4097 of 8192 ")));
    }
}
