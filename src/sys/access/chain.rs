//! Which handler the process has for SIGBUS, and for SIGSEGV: ours, and those that it stands in front of.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};

use super::handler::entry;
use super::routines;
use crate::sync::plain::{AtomicBool, AtomicPtr, AtomicUsize, Mutex, Ordering, PoisonError};
use crate::sys::fork::PerProcess;

/// A handler that ours stands in front of.
pub(super) struct Before {
    pub(super) action: SigAction,
    /// It has been called, and had asked for `SA_RESETHAND`.
    pub(super) spent: AtomicBool,
}

/// The most of them. Whoever comes later is not gone in front of any more.
const MOST: usize = 8;

/// The handlers of one signal.
pub(super) struct Chain {
    signal: Signal,
    /// Who was there before, the oldest first. Never shorter, and what is in it never freed: handlers read it. Written under
    /// [`INSTALLING`].
    chain: [AtomicPtr<Before>; MOST],
    chained: AtomicUsize,
}

pub(super) static SIGBUS: Chain = Chain::of(Signal::SIGBUS);
pub(super) static SIGSEGV: Chain = Chain::of(Signal::SIGSEGV);

/// Held by whoever changes the handler, for the time of three system calls. A leaf. Never taken in a handler. A child has its own: nobody would
/// ever unlock one that another thread held when it was forked. Guarded by `tests/forks.rs` and below.
static INSTALLING: PerProcess<Mutex<()>> = PerProcess::new(Mutex::default);

/// The chain of a signal that [`entry`] is called for.
pub(super) fn of(signal: i32) -> &'static Chain {
    if signal == libc::SIGSEGV { &SIGSEGV } else { &SIGBUS }
}

/// Whatever flags it has: Go's run-time adds `SA_ONSTACK` to what it finds.
fn is_entry(action: &libc::sigaction) -> bool {
    action.sa_sigaction == entry as *const () as usize
}

/// Whether a SIGBUS that an access of this thread raised now would come to our handler first, and a SIGSEGV to whoever handles
/// those. Two system calls.
pub(super) fn catches() -> bool {
    let mut blocked = SigSet::empty();
    let asked = pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut blocked));
    let open = !blocked.contains(Signal::SIGBUS) && !blocked.contains(Signal::SIGSEGV);
    asked.is_ok() && open && SIGBUS.present().is_ok_and(|action| is_entry(&action))
}

impl Chain {
    const fn of(signal: Signal) -> Self {
        let chain = [const { AtomicPtr::new(std::ptr::null_mut()) }; MOST];
        Self { signal, chain, chained: AtomicUsize::new(0) }
    }

    pub(super) fn signal(&self) -> Signal {
        self.signal
    }

    fn chained(&self, index: usize) -> Option<&'static Before> {
        // SAFETY: null, or made by `Box::into_raw` in `append`, which alone writes there, and never freed.
        unsafe { self.chain.get(index)?.load(Ordering::Acquire).as_ref() }
    }

    /// The youngest but `level` of them.
    pub(super) fn older(&self, level: usize) -> Option<&'static Before> {
        self.chained.load(Ordering::Acquire).checked_sub(level + 1).and_then(|index| self.chained(index))
    }

    /// Makes it the youngest of the chain, at that place. Only under [`INSTALLING`].
    fn append(&self, index: usize, action: SigAction) {
        let before = Box::into_raw(Box::new(Before { action, spent: AtomicBool::new(false) }));
        self.chain[index].store(before, Ordering::Release);
        self.chained.store(index + 1, Ordering::Release);
    }

    /// The handler that the process has now.
    fn present(&self) -> Result<libc::sigaction, Errno> {
        let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: changes nothing, and writes what is there to `now`, which has room for it.
        Errno::result(unsafe { libc::sigaction(self.signal as i32, std::ptr::null(), now.as_mut_ptr()) })?;
        // SAFETY: written by the call, which has succeeded.
        Ok(unsafe { now.assume_init() })
    }

    /// Puts the handler in front of all others, unless it is there already.
    ///
    /// Who was there before is in the chain before ours is there: a signal finds its way to it at any time, also in a child that is forked
    /// in between.
    ///
    /// ```text
    /// install                                           another thread
    ///   chain: H
    ///                                                     SIGBUS: H
    ///   sigaction: ours
    ///                                                     SIGBUS: ours, then H
    /// ```
    pub(super) fn install(&self) -> Result<(), Errno> {
        // There is no page to be had.
        let installing = INSTALLING.get_or_make().map_err(|_| Errno::ENOMEM)?;
        let _installing = installing.lock().unwrap_or_else(PoisonError::into_inner);
        routines::find();
        let now = self.present()?;
        if is_entry(&now) {
            return Ok(());
        }
        let before = as_action(&now);
        let count = self.chained.load(Ordering::Relaxed);
        // Stands in it already where it was put in once more after ours: calling it twice would help nobody.
        let is_known = |action: &SigAction| {
            (0..count).filter_map(|at| self.chained(at)).any(|known| address(&known.action) == address(action))
        };
        if !is_known(&before) {
            if count == MOST {
                return Err(Errno::ENOSPC);
            }
            self.append(count, before);
        }
        // With every signal blocked; see `handler::Arrived::resolve`.
        let asked = before.flags() & (SaFlags::SA_ONSTACK | SaFlags::SA_RESTART);
        let ours = SigAction::new(SigHandler::SigAction(entry), SaFlags::SA_SIGINFO | asked, SigSet::all());
        // SAFETY: `handler::entry` is async-signal-safe: it reads registers and cells that are set once, waits for nothing but the pager,
        // and calls on whom the chain names, as the kernel would have.
        let replaced = unsafe { sigaction(self.signal, &ours) }?;
        // The application has put in another one since the look: then that is who was there.
        if address(&replaced) != address(&before) && !is_known(&replaced) && count < MOST {
            self.append(count, replaced);
        }
        Ok(())
    }
}

/// The same, as nix has it.
fn as_action(action: &libc::sigaction) -> SigAction {
    type ThreeArguments = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    let flags = SaFlags::from_bits_truncate(action.sa_flags);
    let handler = match action.sa_sigaction {
        libc::SIG_DFL => SigHandler::SigDfl,
        libc::SIG_IGN => SigHandler::SigIgn,
        at if flags.contains(SaFlags::SA_SIGINFO) => {
            // SAFETY: the kernel would call it so: that is what the flag says.
            SigHandler::SigAction(unsafe { std::mem::transmute::<usize, ThreeArguments>(at) })
        }
        // SAFETY: likewise, without the flag.
        at => SigHandler::Handler(unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(at) }),
    };
    // SAFETY: a mask that the kernel has given is a sigset_t like any other.
    SigAction::new(handler, flags, unsafe { SigSet::from_sigset_t_unchecked(action.sa_mask) })
}

/// The address of a handler, as sigaction(2) has it.
fn address(action: &SigAction) -> usize {
    match action.handler() {
        SigHandler::SigDfl => libc::SIG_DFL,
        SigHandler::SigIgn => libc::SIG_IGN,
        SigHandler::Handler(handler) => handler as *const () as usize,
        SigHandler::SigAction(handler) => handler as *const () as usize,
    }
}

#[cfg(all(test, not(miri), not(feature = "shuttle")))]
mod tests {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, alarm, fork};

    use super::*;

    #[test]
    #[cfg_attr(emulated, ignore = "needs the kernel's MADV_WIPEONFORK")]
    fn a_child_waits_for_nobody_who_was_installing() {
        let _held = INSTALLING.get_or_make().unwrap().lock().unwrap();
        // SAFETY: the child allocates at most, which glibc sees to, and ends without destructors.
        let ended = match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                alarm::set(20);
                let code = i32::from(SIGBUS.install().is_err() || !catches());
                // SAFETY: ends the child.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        };
        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
    }

    #[test]
    fn a_handler_is_the_same_after_being_looked_at() {
        extern "C" fn one(_: libc::c_int) {}
        extern "C" fn three(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        let (flags, mask) = (SaFlags::SA_RESTART | SaFlags::SA_NODEFER, SigSet::from(Signal::SIGUSR1));
        let handlers = [SigHandler::SigDfl, SigHandler::SigIgn, SigHandler::Handler(one), SigHandler::SigAction(three)];
        for handler in handlers {
            let action = SigAction::new(handler, flags, mask);
            let again = as_action(&action.into());
            // Not as a whole: nobody sets the field of the C library's own.
            assert_eq!(
                (address(&again), again.flags(), again.mask()),
                (address(&action), action.flags(), action.mask())
            );
        }
    }
}
