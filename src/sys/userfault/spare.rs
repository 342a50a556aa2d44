//! Address ranges kept in reserve: a few mappings that serve nothing, and are joined to one when something that must not
//! fail finds that the process has no address range left (`vm.max_map_count`).

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};

use super::ranges::{addr, length, pointer};
use crate::sync::ProcessMutex as Mutex;
use crate::sys::fork::PerProcess;
use crate::sys::memory::base_page_bytes;
use crate::units::Addr;

/// How many there are: a re-point takes up to six for a moment.
const RANGES: u64 = 32;
/// How long somebody waits for the reserve who needs it while another has it.
const PATIENCE: Duration = Duration::from_secs(1);

/// One reserve for the process; a forked child makes its own. Held by [`lend`] while the ranges are lent, also over a re-point, which waits
/// for the reader; the reader never takes it. Under it: no other lock but the leaves `templates` and `moves`. Guarded by `tests/scarce.rs`.
static RESERVE: PerProcess<Mutex<Option<Reserve>>> = PerProcess::new(Mutex::default);

struct Reserve {
    at: Addr,
}

impl Reserve {
    fn new() -> Result<Self, Errno> {
        let (flags, bytes) = (MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE, 2 * RANGES * base_page_bytes());
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let at = unsafe { mmap_anonymous(None, length(bytes)?, ProtFlags::PROT_NONE, flags) }?;
        let reserve = Self { at: addr(at) };
        reserve.take_up();
        Ok(reserve)
    }

    /// Makes every second page a range of its own, as far as there are any.
    fn take_up(&self) {
        let page = base_page_bytes();
        let _ = (0..RANGES).try_for_each(|range| {
            let at = pointer(self.at.plus(2 * range * page));
            // SAFETY: pages of the reserve, which nobody else knows and nobody accesses.
            unsafe { mprotect(at, page as usize, ProtFlags::PROT_READ) }
        });
    }

    /// Makes all of it one range.
    fn set_free(&self) {
        let bytes = 2 * RANGES * base_page_bytes();
        // SAFETY: as in `take_up`. Ranges are joined, so the kernel needs none for it.
        let _ = unsafe { mprotect(pointer(self.at), bytes as usize, ProtFlags::PROT_NONE) };
    }
}

/// Makes the reserve, if there is none yet. Without room for it there is none.
pub(super) fn keep() {
    let Ok(reserve) = RESERVE.get_or_make() else { return };
    let mut reserve = reserve.lock();
    if reserve.is_none() {
        *reserve = Reserve::new().ok();
    }
}

/// Does something that takes address ranges, and does it again with those of the reserve if the process has none left.
pub(super) fn lend<T>(mut act: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    match act() {
        Err(Errno::ENOMEM) => {}
        done => return done,
    }
    let Some(reserve) = RESERVE.get().and_then(|reserve| reserve.try_lock_for(PATIENCE)) else { return act() };
    let Some(reserve) = &*reserve else { return act() };
    reserve.set_free();
    let done = act();
    reserve.take_up();
    done
}
