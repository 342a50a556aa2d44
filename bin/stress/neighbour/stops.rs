//! Stops this process and lets it go on, from a process beside it.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use fastrand::Rng;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;

use crate::ends;

/// How long it is stopped, and how long it runs, in milliseconds.
const STOPPED_MS: std::ops::Range<u64> = 1..60;
const RUNNING_MS: std::ops::Range<u16> = 1..120;

/// Starts the process beside this one. To be called by the main thread: with that it ends, if it is not ended before by the
/// end of its input.
pub(super) fn start() -> anyhow::Result<Child> {
    let mut command = ends::this_program()?;
    // A group of its own: a signal from the terminal would end it while this process is stopped.
    command.arg("--stop-parent").process_group(0).stdin(Stdio::piped());
    Ok(command.stdout(Stdio::null()).spawn()?)
}

/// What that process does, until its input ends. It never leaves its parent stopped.
pub(crate) fn stop_parent() {
    let (parent, mut rng) = (getppid(), Rng::new());
    let input = std::io::stdin();
    loop {
        let wait = PollTimeout::from(rng.u16(RUNNING_MS));
        let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, wait) != Ok(0) || getppid() != parent {
            return;
        }
        let _ = kill(parent, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(rng.u64(STOPPED_MS)));
        let _ = kill(parent, Signal::SIGCONT);
    }
}
