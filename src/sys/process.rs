//! Signals and limits of this process.

use std::io::ErrorKind::NotFound;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::sent::{self, Place};
use super::{Delivery, Tid};
use crate::sync::plain::yield_now;
use crate::units::Addr;

/// Blocks every signal in the calling thread. The pager's threads run no handler of the
/// application: a handler might touch mapped memory, and then the pager would wait for itself.
pub(crate) fn block_all_signals() {
    // Miri has no signals, and knows no call about them.
    if cfg!(miri) {
        return;
    }
    // Fails only for a bad `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// How many address ranges a process may have: `vm.max_map_count`.
pub(crate) fn max_map_count() -> u64 {
    // Miri has no such number, and warns of files in /proc.
    let text = if cfg!(miri) { None } else { std::fs::read_to_string("/proc/sys/vm/max_map_count").ok() };
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(65_530)
}

/// Where a thread sleeps, if it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sleep {
    /// In a page fault of its own instructions, of this one.
    UserFault(Place),
    /// In a page fault of a system call, or in a system call where the kernel does not tell which.
    SystemCall,
    /// It runs, or is about to, and a signal is pending for it. In the fault of a system call it would not sleep, and not
    /// leave the fault either: it tries again and again until it is answered.
    Interrupted,
    /// Not for an answer of ours: in a system call, or for a lock of the kernel's.
    Elsewhere,
    /// It runs, or is about to.
    Awake,
    /// The kernel does not tell, or it is no thread of this process.
    Unknown,
}

/// Where `tid` sleeps, from its `syscall` file: asleep and in no system call is asleep in a fault.
fn sleep_of(tid: Tid) -> Sleep {
    match std::fs::read_to_string(format!("/proc/self/task/{}/syscall", tid.0)) {
        Ok(text) if text.starts_with("running") && is_interrupted(tid) => Sleep::Interrupted,
        Ok(text) if text.starts_with("running") => Sleep::Awake,
        // Also a thread in a fault may wait for something else: for the address space, while another maps.
        Ok(_) if waits_for_something_else(tid) => Sleep::Elsewhere,
        Ok(text) => place_of(&text).map_or(Sleep::SystemCall, Sleep::UserFault),
        // It has ended: what it wanted is nobody's wish any more. (A thread of another process has a folder of its own.)
        Err(error) if error.kind() == NotFound && !exists(tid) => Sleep::Awake,
        Err(_) => Sleep::Unknown,
    }
}

/// Whether there is such a thread, in whatever process. Where the kernel hides those of others there is none: who is woken instead of
/// served faults again, and is served then.
fn exists(tid: Tid) -> bool {
    std::fs::exists(format!("/proc/{}", tid.0)).unwrap_or(true)
}

/// Where a thread that is in no system call will go on: `-1`, the stack pointer, the program counter.
fn place_of(syscall: &str) -> Option<Place> {
    let mut words = syscall.strip_prefix("-1 ")?.split_ascii_whitespace();
    let mut word = || usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    Some(Place { sp: word()?, pc: word()? })
}

/// Whether a thread that sleeps certainly does not wait for a userfaultfd: its `wchan` names another function.
/// A kernel that keeps them to itself writes 0, or nothing.
fn waits_for_something_else(tid: Tid) -> bool {
    let waits_in = std::fs::read_to_string(format!("/proc/self/task/{}/wchan", tid.0)).unwrap_or_default();
    !matches!(waits_in.trim(), "" | "0") && !waits_in.contains("userfault")
}

/// Like [`sleep_of`], but a thread that has been woken and has not run since is given the time to fall
/// asleep again, and one that a signal has woken, to take it: nobody answers its fault meanwhile.
fn sleep_soon(tid: Tid) -> Sleep {
    let until = Instant::now() + Duration::from_millis(5);
    loop {
        match sleep_of(tid) {
            Sleep::Awake | Sleep::Interrupted if Instant::now() < until => yield_now(),
            sleep => return sleep,
        }
    }
}

/// What would come of sending `tid` a SIGBUS, now or soon.
pub(super) fn outlook(tid: Tid) -> Delivery {
    delivery_to(tid, sleep_soon(tid))
}

/// Only to a thread that sleeps in a fault of its own instructions: in the fault of a system call a
/// signal with a handler ends nothing (`fault_signal_pending`), and the kernel would spin.
fn delivery_to(tid: Tid, sleep: Sleep) -> Delivery {
    match sleep {
        Sleep::Awake | Sleep::Elsewhere => Delivery::Awake,
        Sleep::UserFault(_) if takes_sigbus(tid) => Delivery::Sent,
        Sleep::UserFault(_) | Sleep::SystemCall | Sleep::Interrupted | Sleep::Unknown => Delivery::Unreachable,
    }
}

/// Whether `tid` may be asleep in a fault.
pub(super) fn may_wait(tid: Tid) -> bool {
    !matches!(sleep_of(tid), Sleep::Awake | Sleep::Elsewhere)
}

/// One mask of signals of a thread, from its `status` file.
fn signals(status: &str, name: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix(name))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn status_of(tid: Tid) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/task/{}/status", tid.0)).ok()
}

const SIGBUS: u64 = 1 << (libc::SIGBUS - 1);

/// Whether a signal is pending for `tid` that it does not block. Ours for a full volume does not count: it goes only to
/// threads that it takes out of their fault.
fn is_interrupted(tid: Tid) -> bool {
    let Some(status) = status_of(tid) else { return false };
    let mask = |name: &str| signals(&status, name).unwrap_or(0);
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !SIGBUS != 0
}

/// Whether a SIGBUS that is sent reaches `tid`: it is neither blocked nor ignored, from its `status` file. The
/// thread sleeps in a fault, so it cannot change the one; the other is the application's. Where no more signals can
/// be queued the kernel delivers it without what it says, as anybody's.
fn takes_sigbus(tid: Tid) -> bool {
    let Some(status) = status_of(tid) else { return false };
    if !has_room_for_signals(&status) {
        return false;
    }
    let has = |name: &str| signals(&status, name).is_none_or(|mask| mask & SIGBUS != 0);
    !has("SigBlk:") && !has("SigIgn:")
}

/// From the line "SigQ: queued/limit" of a `status` file.
fn has_room_for_signals(status: &str) -> bool {
    let room = status.lines().find_map(|line| {
        let (queued, limit) = line.strip_prefix("SigQ:")?.split_once('/')?;
        Some((queued.trim().parse::<u64>().ok()?, limit.trim().parse::<u64>().ok()?))
    });
    room.is_none_or(|(queued, limit)| queued < limit)
}

/// How often a thread has been put on a CPU: the third number of its `schedstat`.
pub(super) fn runs(tid: Tid) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{}/schedstat", tid.0)).ok()?;
    text.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// Sends one thread the SIGBUS that the kernel would have raised for `at`. The kernel lets nobody
/// forge a positive `si_code`, so it is `SI_QUEUE`; `si_addr` is right. Until it is taken the thread may have gone
/// elsewhere, if only to another signal's handler: it says what it is meant to interrupt ([`super::sent`]).
pub(super) fn raise_sigbus(tid: Tid, at: Addr) -> Delivery {
    let sleep = sleep_of(tid);
    let place = match (delivery_to(tid, sleep), sleep) {
        (Delivery::Sent, Sleep::UserFault(place)) => place,
        (Delivery::Sent, _) => return Delivery::Unreachable,
        (other, _) => return other,
    };
    // Without our handler it would hit the application's whatever it interrupts.
    let _ = super::access::enable();
    match sent::send(tid, at, place) {
        Ok(()) => Delivery::Sent,
        // The limit of queued signals is reached, or the thread has just ended.
        Err(_) => Delivery::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_a_fault_of_its_own_is_told_from_one_in_a_system_call() {
        let place = Place { sp: 0x7ffd_0010, pc: 0x55_1234 };
        assert_eq!(place_of("-1 0x7ffd0010 0x551234\n"), Some(place));
        assert_eq!(place_of("0 0x3 0x7f00 0x5 0x0 0x0 0x0 0x7ffd0010 0x551234\n"), None);
        assert_eq!(place_of("-1 0x7ffd0010"), None);
    }
}
