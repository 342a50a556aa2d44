//! Signals and limits of this process.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::{Delivery, Tid};
use crate::units::Addr;

/// Blocks every signal in the calling thread. The pager's threads run no handler of the
/// application: a handler might touch mapped memory, and then the pager would wait for itself.
pub(crate) fn block_all_signals() {
    // Fails only for a bad `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// How many address ranges a process may have: `vm.max_map_count`.
pub(crate) fn max_map_count() -> u64 {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65_530)
}

/// The mask of signals that `tid` blocks, from its `status` file. The thread sleeps in a fault, so it cannot change it.
fn blocked_signals(tid: Tid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{}/status", tid.0)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// How often a thread has been put on a CPU: the third number of its `schedstat`.
pub(super) fn runs(tid: Tid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", tid.0)).ok()?;
    text.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// `siginfo_t` of a SIGBUS with an address: `si_signo`, `si_errno`, `si_code`, then `si_addr`.
#[repr(C)]
struct BusInfo {
    signo: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    addr: usize,
    _rest: [u64; 13],
}

const _: () = assert!(size_of::<BusInfo>() == size_of::<libc::siginfo_t>());

/// Sends one thread the SIGBUS that the kernel would have raised for `at`. The kernel lets nobody
/// forge a positive `si_code`, so it is `SI_QUEUE`; `si_addr` is right.
pub(super) fn raise_sigbus(tid: Tid, at: Addr) -> Delivery {
    const SIGBUS_BIT: u64 = 1 << (libc::SIGBUS - 1);
    match blocked_signals(tid) {
        None => return Delivery::Gone,
        Some(mask) if mask & SIGBUS_BIT != 0 => return Delivery::Blocked,
        Some(_) => {}
    }
    let info = BusInfo { signo: libc::SIGBUS, errno: 0, code: libc::SI_QUEUE, _pad: 0, addr: at.0, _rest: [0; 13] };
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
    match Errno::result(answer) {
        Ok(_) => Delivery::Sent,
        // EAGAIN: the limit of queued signals is reached. Poison reaches the thread then.
        Err(Errno::EAGAIN | Errno::EPERM) => Delivery::Blocked,
        Err(_) => Delivery::Gone,
    }
}
