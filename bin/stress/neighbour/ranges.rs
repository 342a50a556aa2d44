//! Takes most of the process's address ranges, for a while.

use memmap2::{Mmap, MmapMut};

use super::one::Neighbour;
use crate::oracle::lock;

/// Ranges that are left: the harness's own allocations, and threads that the pagers start, have to find some.
const LEFT: std::ops::Range<u64> = 24..256;

/// Pages of alternating protection: the kernel can't merge them.
enum Page {
    Writable { _page: MmapMut },
    ReadOnly { _page: Mmap },
}

impl Page {
    fn map(read_only: bool) -> std::io::Result<Self> {
        let page = MmapMut::map_anon(1)?;
        Ok(if read_only { Page::ReadOnly { _page: page.make_read_only()? } } else { Page::Writable { _page: page } })
    }
}

/// How many ranges the process may have more.
fn free_ranges() -> Option<u64> {
    let most: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?.trim().parse().ok()?;
    let used = std::fs::read("/proc/self/maps").ok()?.iter().filter(|byte| **byte == b'\n').count() as u64;
    most.checked_sub(used)
}

pub(super) fn run(neighbour: &mut Neighbour) {
    while neighbour.goes_on() {
        let left = neighbour.rng.u64(LEFT);
        let room = neighbour.room.clone();
        let held = lock(&room);
        let Some(take) = free_ranges().and_then(|free| free.checked_sub(left)) else { return };
        // All of the memory for it at once: later there may be none.
        let mut pages = Vec::with_capacity(take as usize);
        while pages.len() < take as usize && neighbour.goes_on() {
            let Ok(page) = Page::map(pages.len() % 2 == 0) else { break };
            pages.push(page);
        }
        neighbour.pause(10..200);
        drop(pages);
        drop(held);
        neighbour.pause(10..200);
    }
}
