//! Memory that is none of the library's, with known content.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use memmap2::MmapMut;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getpid;

/// Of each kind so many.
const PIECES: usize = 16;
/// Every byte of a guard has this bit: what puts none of these into files knows a guard's byte wherever it comes out.
pub(crate) const GUARD: u8 = 0x80;
/// The number of what was placed: of pieces there are fewer.
const PLACED: usize = 1000;

pub(crate) struct Guards {
    seed: u64,
    heap: Vec<Vec<u8>>,
    /// New mappings: the kernel puts them where others have been, and beside those of the library.
    mapped: Vec<MmapMut>,
    /// At addresses that somebody else may think are his.
    placed: Vec<Placed>,
}

/// A mapping that lies where it was asked for. Its bytes are looked at by system calls alone: somebody may have mapped something over it.
struct Placed {
    at: NonNull<libc::c_void>,
    bytes: usize,
}

// SAFETY: an address, which is given to system calls and nothing else.
unsafe impl Send for Placed {}

fn byte(seed: u64, piece: usize, at: usize) -> u8 {
    (seed as usize ^ piece.wrapping_mul(31) ^ at.wrapping_mul(7) ^ at >> 8) as u8 | GUARD
}

fn fill(seed: u64, piece: usize, bytes: &mut [u8]) {
    bytes.iter_mut().enumerate().for_each(|(at, into)| *into = byte(seed, piece, at));
}

impl Placed {
    /// Only where nobody has mapped anything.
    fn new(seed: u64, at: usize, bytes: usize) -> Option<Self> {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping, that replaces nothing.
        let start = unsafe { mmap_anonymous(NonZeroUsize::new(at), NonZeroUsize::new(bytes)?, prot, flags) }.ok()?;
        // SAFETY: it has just been mapped, readable and writable, and whoever takes its addresses for his own does so later.
        let slice = unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast::<u8>(), bytes) };
        fill(seed, PLACED, slice);
        Some(Self { at: start, bytes })
    }

    fn harm(&self, seed: u64) -> Option<String> {
        let mut copy = [0; 4096];
        let address = self.at.as_ptr() as usize;
        for start in (0..self.bytes).step_by(copy.len()) {
            let len = copy.len().min(self.bytes - start);
            let remote = RemoteIoVec { base: address + start, len };
            let read = process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut copy[..len])], &[remote]);
            if read != Ok(len) {
                return Some(format!("nothing that can be read at byte {start} of a guard at {address:#x}: {read:?}"));
            }
            let changed = (0..len).find(|at| copy[*at] != byte(seed, PLACED, start + at));
            if let Some(at) = changed {
                let at_byte = start + at;
                return Some(format!("{:#x} at byte {at_byte} of a guard at {address:#x}", copy[at]));
            }
        }
        None
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing in Rust borrows it.
        let _ = unsafe { munmap(self.at, self.bytes) };
    }
}

impl Guards {
    pub(crate) fn new(seed: u64) -> Self {
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
        Self { seed, heap: heap.collect(), mapped: mapped.collect(), placed: Vec::with_capacity(PIECES) }
    }

    /// Only what is placed.
    pub(crate) fn none(seed: u64) -> Self {
        Self { seed, heap: Vec::new(), mapped: Vec::new(), placed: Vec::with_capacity(PIECES) }
    }

    /// Puts guards at some addresses, `piece` bytes at a time, wherever nothing is mapped. How many bytes, if any.
    pub(crate) fn place(&mut self, at: usize, bytes: usize, piece: usize) -> Option<usize> {
        let before = self.placed.len();
        let starts = (at..at + bytes).step_by(piece);
        self.placed.extend(starts.filter_map(|start| Placed::new(self.seed, start, piece.min(at + bytes - start))));
        let placed: usize = self.placed[before..].iter().map(|placed| placed.bytes).sum();
        (placed > 0).then_some(placed)
    }

    /// What byte is at an address of what was placed.
    pub(crate) fn placed_byte(&self, offset: usize) -> u8 {
        byte(self.seed, PLACED, offset)
    }

    /// What is not as it was.
    pub(crate) fn harm(&self) -> Option<String> {
        let heap = self.heap.iter().map(Vec::as_slice);
        let mapped = self.mapped.iter().map(|bytes| &bytes[..]);
        let differs = |(piece, bytes): (usize, &[u8])| {
            let at = (0..bytes.len()).find(|at| bytes[*at] != byte(self.seed, piece, *at))?;
            Some(format!("{:#x} at byte {at} of {} at {:p}", bytes[at], bytes.len(), bytes.as_ptr()))
        };
        let placed = || self.placed.iter().find_map(|placed| placed.harm(self.seed));
        heap.enumerate().chain(mapped.enumerate()).find_map(differs).or_else(placed)
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

    #[test]
    fn a_guard_is_placed_where_nothing_is() {
        let mut guards = Guards::none(7);
        let map = MmapMut::map_anon(4 << 12).unwrap();
        let at = map.as_ptr() as usize;
        assert_eq!(guards.place(at, 4 << 12, 1 << 12), None, "something is there");
        drop(map);
        // Another thread of this program may have mapped something there meanwhile, so: some of it.
        if guards.place(at, 4 << 12, 1 << 12).is_some() {
            assert_eq!(guards.harm(), None);
            let placed = &guards.placed[0];
            let page = placed.at.as_ptr().cast::<u8>();
            // SAFETY: the first byte of the guard, which is mapped and nobody else's.
            unsafe { page.write(1) };
            assert!(guards.harm().is_some_and(|harm| harm.starts_with("0x1 at byte 0 of a guard at ")));
        }
    }
}
