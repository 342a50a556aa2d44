//! How a program ends early: a signal asks it to, or its parent is gone.
//!
//! The first SIGINT, SIGTERM or SIGHUP is noted, and the program winds down: its children end, it says what was done so far, and
//! dies of that signal, so that a shell or a script sees why. A second one ends it at once.
#![allow(dead_code, reason = "each program uses its part")]

use std::io::{Error, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

use crate::machine::mask_of;

const TAKEN: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// Tells a child whose it is.
const PARENT: &str = "DAXPAGER_PARENT";

/// What the handlers write.
struct Noted {
    /// The first signal's number, or 0.
    signal: Arc<AtomicUsize>,
    /// Readable from the first signal on.
    pipe: UnixStream,
}

static NOTED: OnceLock<Noted> = OnceLock::new();

/// From now on the signals are noted. One that was ignored when the program began (nohup) stays ignored.
pub(crate) fn take_signals() -> std::io::Result<()> {
    let (pipe, write) = UnixStream::pair()?;
    let signal = Arc::new(AtomicUsize::new(0));
    let again = Arc::new(AtomicBool::new(false));
    // One bit each.
    let ignored = mask_of("SigIgn:");
    for taken in TAKEN.into_iter().filter(|taken| ignored >> (*taken as u64 - 1) & 1 == 0) {
        let number = taken as i32;
        // In this order: the second one finds the flag set.
        signal_hook::flag::register_conditional_default(number, again.clone())?;
        signal_hook::flag::register(number, again.clone())?;
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
        signal_hook::low_level::pipe::register(number, write.try_clone()?)?;
    }
    let _ = NOTED.set(Noted { signal, pipe });
    Ok(())
}

/// The signal that asked the program to end, if one has.
pub(crate) fn asked() -> Option<Signal> {
    let number = NOTED.get()?.signal.load(Ordering::SeqCst);
    Signal::try_from(i32::try_from(number).ok()?).ok()
}

/// Readable once there is such a signal.
pub(crate) fn readable_when_asked() -> Option<BorrowedFd<'static>> {
    NOTED.get().map(|noted| noted.pipe.as_fd())
}

/// Dies of a signal, as the program would have without this.
pub(crate) fn die_of(signal: Signal) -> ! {
    let _ = std::io::stdout().flush();
    let _ = signal_hook::low_level::emulate_default_handler(signal as i32);
    std::process::exit(128 + signal as i32)
}

/// This program once more, as a child that does not outlive the thread that starts it, nor so this process.
pub(crate) fn this_program() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(PARENT, getpid().to_string());
    Ok(command)
}

/// How a child ends. One that goes on for longer than `limit`, or when a signal asks this process to end, is killed, and nothing is
/// told. What it says must fit into its pipes.
pub(crate) fn end_of(child: &mut Child, limit: Duration, look_every: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if start.elapsed() > limit || asked().is_some() => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            None => std::thread::sleep(look_every),
        }
    }
}

/// To be called first: a child that was made by [`this_program`] is killed when its parent ends, however that ends. What
/// it executes in its own place then is, too.
pub(crate) fn end_with_parent() -> std::io::Result<()> {
    let Some(parent) = std::env::var_os(PARENT) else { return Ok(()) };
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have gone before the kernel was asked.
    if parent.to_str() != Some(&getppid().to_string()) {
        return Err(Error::new(ErrorKind::NotFound, format!("the process that started this one ({PARENT}) is gone")));
    }
    Ok(())
}

/// Executes another program in the place of this one; what came in between.
pub(crate) fn become_program(path: &str, args: &[String]) -> Error {
    use std::os::unix::process::CommandExt;
    Command::new(path).args(args).env_remove(PARENT).exec()
}
