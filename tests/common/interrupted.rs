//! A load whose thread can be held in a signal handler while its fault is being served, so that it
//! does not repeat the access before it is told to.
#![allow(unsafe_code)]

use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;

use super::common::guard::{HANG, receive};
use super::common::{Task, Verdict, spawn};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The handler's end of the stream; one test at a time.
static HANDLER_END: AtomicI32 = AtomicI32::new(-1);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

extern "C" fn hold(_: i32) {
    let fd: RawFd = HANDLER_END.load(Ordering::Relaxed);
    let mut byte = 1u8;
    // SAFETY: write(2) and read(2) are async-signal-safe; the byte is on this stack.
    unsafe { libc::write(fd, (&raw const byte).cast(), 1) };
    // SAFETY: as above.
    unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
}

/// Unless [`finish`](Self::finish) is called the thread is held for ever: there may be nothing at its address.
pub struct Load {
    task: Task<u64>,
    thread: Pthread,
    ours: ManuallyDrop<UnixStream>,
    _handlers: ManuallyDrop<UnixStream>,
    _turn: std::sync::MutexGuard<'static, ()>,
}

/// Loads the word at `address`, on a thread of its own.
pub fn load(address: usize) -> Load {
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (ours, handlers) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(HANG)).unwrap();
    HANDLER_END.store(handlers.as_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(hold), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls async-signal-safe functions only.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.unwrap();
    let (tx, rx) = mpsc::channel();
    let task = spawn(move || {
        // With musl it is a pointer, which is not `Send`.
        tx.send(pthread_self() as usize).unwrap();
        // SAFETY: something is mapped there whenever this thread is not held in the handler.
        unsafe { (address as *const u64).read_volatile() }
    });
    let thread = receive(&rx) as Pthread;
    Load { task, thread, ours: ManuallyDrop::new(ours), _handlers: ManuallyDrop::new(handlers), _turn: turn }
}

impl Load {
    /// Takes the thread out of its fault and holds it.
    pub fn interrupt(&self) {
        pthread_kill(self.thread, Signal::SIGUSR2).unwrap();
        (&*self.ours).read_exact(&mut [0]).unwrap();
    }

    /// Lets it go on: the access is repeated.
    pub fn finish(self) -> Verdict {
        (&*self.ours).write_all(&[0]).unwrap();
        self.task.join("the load").map(drop)
    }
}
