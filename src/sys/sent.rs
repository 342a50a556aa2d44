//! A SIGBUS that the pager sends: how it says what it is meant for, and how the handler finds out what it has met.
//!
//! ```text
//! worker                                            thread
//!   sees it asleep in its store, at this pc and sp
//!                                                     another signal: out of the fault, into
//!                                                     that signal's handler
//!   sends the SIGBUS
//!                                                     SIGBUS in the first instruction of that handler:
//!                                                     not this pc and sp. Dropped
//!                                                     back in its store: faults again
//!   has a message of it: sends once more
//! ```
//!
//! Between the look and the signal the thread cannot have finished the store: L2 is held exclusively, and the page is a hole. So at
//! the same instruction with the same stack it is at the same access. What is dropped costs a message; what hits
//! something else may cost a life.

use nix::errno::Errno;

use super::Tid;
use crate::sync::plain::{AtomicU64, Ordering};
use crate::units::Addr;

/// Where a thread goes on when its fault is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) sp: usize,
    pub(super) pc: usize,
}

/// `siginfo_t` of a SIGBUS with an address: `si_signo`, `si_errno`, `si_code`, then `si_addr`; and behind it what
/// the kernel hands on untouched for a negative `si_code`, 48 bytes in all.
#[repr(C)]
struct BusInfo {
    signo: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    addr: usize,
    mark: usize,
    pc: usize,
    sp: usize,
    _rest: [u64; 10],
}

const _: () = assert!(size_of::<BusInfo>() == size_of::<libc::siginfo_t>());
const _: () = assert!(align_of::<BusInfo>() <= align_of::<libc::siginfo_t>());

/// Signals of ours that met something else than what they were meant for, in this process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Signals of ours that came too late, and were dropped.
pub(crate) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Tells ours from those of others, and of another copy of this library: an address that nobody else has.
fn mark() -> usize {
    (&raw const DROPPED).expose_provenance()
}

/// Sends a thread of this process its SIGBUS for an access at `at`, to be taken at `place` and nowhere else.
pub(super) fn send(tid: Tid, at: Addr, place: Place) -> Result<(), Errno> {
    let info = BusInfo {
        signo: libc::SIGBUS,
        errno: 0,
        code: libc::SI_QUEUE,
        _pad: 0,
        addr: at.0,
        mark: mark(),
        pc: place.pc,
        sp: place.sp,
        _rest: [0; 10],
    };
    // SAFETY: `info` has the size and layout of siginfo_t (asserted above) and outlives the call; the kernel
    // only reads it. A wrong tid gives ESRCH.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::c_long::from(nix::unistd::getpid().as_raw()),
            libc::c_long::from(tid.0),
            libc::c_long::from(libc::SIGBUS),
            &raw const info,
        )
    };
    Errno::result(answer).map(drop)
}

/// What a SIGBUS has met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Met {
    /// The very access that it is meant for.
    Access,
    /// Something else: it came too late, and is dropped.
    SomethingElse,
}

/// What a SIGBUS of ours has met. `None` if it is somebody else's.
pub(super) fn met(info: &libc::siginfo_t, context: &libc::ucontext_t) -> Option<Met> {
    if info.si_code != libc::SI_QUEUE {
        return None;
    }
    // SAFETY: of the same size, plain numbers all of it, and aligned no more strictly (asserted above).
    let info = unsafe { &*std::ptr::from_ref(info).cast::<BusInfo>() };
    if info.mark != mark() {
        return None;
    }
    if (Place { sp: info.sp, pc: info.pc }) == place_in(context) {
        return Some(Met::Access);
    }
    DROPPED.fetch_add(1, Ordering::Relaxed);
    Some(Met::SomethingElse)
}

#[cfg(target_arch = "x86_64")]
fn place_in(context: &libc::ucontext_t) -> Place {
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as usize;
    Place { sp: register(libc::REG_RSP), pc: register(libc::REG_RIP) }
}

#[cfg(target_arch = "aarch64")]
fn place_in(context: &libc::ucontext_t) -> Place {
    Place { sp: context.uc_mcontext.sp as usize, pc: context.uc_mcontext.pc as usize }
}
