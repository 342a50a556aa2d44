//! What the registers of an interrupted thread say of its fault.

use crate::sys::RawFault;
#[cfg(target_arch = "x86_64")]
use crate::{
    sys::{Access, FaultKind, Tid},
    units::Addr,
};

/// Whether this machine tells a handler what kind of access has faulted.
pub(in crate::sys) const SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// The number of the page fault among the exceptions of the CPU.
#[cfg(target_arch = "x86_64")]
const PAGE_FAULT: i64 = 14;
/// Bits of a page fault's error code: there was an entry; it was a write.
#[cfg(target_arch = "x86_64")]
const ERROR_PRESENT: i64 = 1 << 0;
#[cfg(target_arch = "x86_64")]
const ERROR_WRITE: i64 = 1 << 1;

/// The fault; `None` if it was no page fault. Its thread has another number than the kernel's: see [`thread_number`].
#[cfg(target_arch = "x86_64")]
pub(super) fn fault(addr: usize, context: &libc::ucontext_t) -> Option<RawFault> {
    let register = |index: i32| context.uc_mcontext.gregs[index as usize];
    if register(libc::REG_TRAPNO) != PAGE_FAULT {
        return None;
    }
    let error = register(libc::REG_ERR);
    let access = if error & ERROR_WRITE != 0 { Access::Store } else { Access::Load };
    // The entry was there, and the access faulted: a store to what is write-protected. Whether the page cache has a page
    // where there was none, the CPU does not know, and the fault table does not ask.
    let kind = if error & ERROR_PRESENT != 0 { FaultKind::WriteProtect } else { FaultKind::Minor };
    Some(RawFault { addr: Addr(addr), access, kind, tid: thread_number() })
}

/// A number that no other thread has at the moment, and that costs no system call: where its control block is, which also
/// tells threads apart whose numbers are taken modulo something small.
#[cfg(target_arch = "x86_64")]
fn thread_number() -> Tid {
    let block: usize;
    // SAFETY: by the ABI the first word of the block that FS points at is that very address; nothing is changed.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) block, options(nostack, preserves_flags, readonly)) };
    Tid((block >> 12) as u32)
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn fault(_: usize, _: &libc::ucontext_t) -> Option<RawFault> {
    None
}
