//! Children of fork(2), and what they do to themselves.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// A child that does `run` and ends. It has the parent's signal handlers.
fn start(run: impl FnOnce() -> i32) -> Pid {
    // SAFETY: the child is one of a process with threads: it allocates, which glibc sees to, and takes no lock of another
    // thread's but by mistake, which is what the tests are about. It ends without destructors.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => exit_now(run()),
    }
}

/// A child that nobody waits for, and that outlives its parent, if not by much.
pub(crate) fn fork_away(run: impl FnOnce()) -> Pid {
    start(|| {
        die_after(30);
        run();
        0
    })
}

/// The child may not outlive a test that is killed.
fn end_with_parent() {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// How a child ended that did `run`.
///
/// # Panics
/// If it takes longer than 20 s.
#[track_caller]
pub(crate) fn fork_and_wait(run: impl FnOnce() -> i32) -> WaitStatus {
    let child = start(|| {
        end_with_parent();
        run()
    });
    let since = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive if since.elapsed() > Duration::from_secs(20) => {
                let stack = std::fs::read_to_string(format!("/proc/{child}/wchan")).unwrap_or_default();
                nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                panic!("the forked child hangs, in {stack}");
            }
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(1)),
            ended => return ended,
        }
    }
}

/// As fork(2): `None` in the child; in the parent how the child ended.
pub(crate) fn fork_here() -> Option<WaitStatus> {
    // SAFETY: as in `start`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => Some(waitpid(child, None).unwrap()),
        ForkResult::Child => {
            end_with_parent();
            None
        }
    }
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Has the process killed if it lives that long.
pub(crate) fn die_after(seconds: u32) {
    nix::unistd::alarm::set(seconds);
}

fn map_at(at: usize, len: u64, flags: i32, fd: i32) {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping that replaces nothing.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len as usize, prot, flags, fd, 0) };
    assert_eq!(got as usize, at, "the address is not free: {}", std::io::Error::last_os_error());
}

/// Memory of the caller's own at an address that must be free, full of `byte`.
pub(crate) fn memory_at(at: usize, len: u64, byte: u8) -> &'static [u8] {
    map_at(at, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    // SAFETY: just mapped.
    unsafe { std::ptr::write_bytes(at as *mut u8, byte, len as usize) };
    // SAFETY: mapped and never unmapped; nobody may change it, which is what the caller tests.
    unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) }
}

/// At an address that must be free, memory of which every access is a SIGBUS.
pub(crate) fn empty_memfd_at(at: usize, len: u64) {
    let file = nix::sys::memfd::memfd_create("empty", nix::sys::memfd::MFdFlags::empty()).unwrap();
    map_at(at, len, libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(&file));
}
