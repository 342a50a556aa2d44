//! Loads and stores that end in an error where a plain one would end in SIGBUS.
//!
//! Each access is a few instructions of assembler between two labels. A process-wide SIGBUS
//! handler looks whether the interrupted instruction lies between them; if so, it has the access
//! return "failed" with the faulting address, and otherwise it calls the handler that was there
//! before. It allocates nothing and takes no lock. Before all that it asks [`super::trap`] whether the fault is one that this very
//! thread resolves.
//!
//! A SIGBUS for a full volume is sent by the pager ([`super::process::raise_sigbus`]), not raised by the access. It
//! counts only if it meets the access it is meant for ([`super::sent`]). Otherwise it is dropped, and the access faults again if it must.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};

use super::sent::{self, Met};
use super::{Verdict, passing, trap};

/// What a guarded routine returns: a value, and 0 for done or 1 for SIGBUS. With 1 the value is the faulting address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answer {
    value: u64,
    failed: u64,
}

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.daxpager_access,\"ax\",@progbits",
    ".globl daxpager_access_begin",
    "daxpager_access_begin:",
    ".globl daxpager_load8",
    "daxpager_load8:",
    "mov rax, [rdi]",
    "xor edx, edx",
    "ret",
    ".globl daxpager_store8",
    "daxpager_store8:",
    "mov [rdi], rsi",
    "xor edx, edx",
    "ret",
    ".globl daxpager_exchange8",
    "daxpager_exchange8:",
    "mov rax, rsi",
    ".globl daxpager_exchange8_at",
    "daxpager_exchange8_at:",
    "lock cmpxchg [rdi], rdx",
    "xor edx, edx",
    "ret",
    ".globl daxpager_copy",
    "daxpager_copy:",
    "mov rcx, rdx",
    ".globl daxpager_copy_at",
    "daxpager_copy_at:",
    "rep movsb",
    "xor edx, edx",
    "ret",
    ".globl daxpager_access_end",
    "daxpager_access_end:",
    ".globl daxpager_access_failed",
    "daxpager_access_failed:",
    "mov edx, 1",
    "ret",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .text.daxpager_access,\"ax\",@progbits",
    ".balign 4",
    ".globl daxpager_access_begin",
    "daxpager_access_begin:",
    ".globl daxpager_load8",
    "daxpager_load8:",
    "ldr x0, [x0]",
    "mov x1, #0",
    "ret",
    ".globl daxpager_store8",
    "daxpager_store8:",
    "str x1, [x0]",
    "mov x1, #0",
    "ret",
    ".globl daxpager_exchange8",
    "daxpager_exchange8:",
    ".globl daxpager_exchange8_at",
    "daxpager_exchange8_at:",
    "1: ldaxr x3, [x0]",
    "cmp x3, x1",
    "b.ne 2f",
    ".globl daxpager_exchange8_store",
    "daxpager_exchange8_store:",
    "stlxr w4, x2, [x0]",
    "cbnz w4, 1b",
    "2: clrex",
    "mov x0, x3",
    "mov x1, #0",
    "ret",
    ".globl daxpager_copy",
    "daxpager_copy:",
    "cbz x2, 2f",
    ".globl daxpager_copy_load",
    "daxpager_copy_load:",
    "1: ldrb w3, [x1], #1",
    ".globl daxpager_copy_at",
    "daxpager_copy_at:",
    "strb w3, [x0], #1",
    "subs x2, x2, #1",
    "b.ne 1b",
    "2: mov x1, #0",
    "ret",
    ".globl daxpager_access_end",
    "daxpager_access_end:",
    ".globl daxpager_access_failed",
    "daxpager_access_failed:",
    "mov x1, #1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn daxpager_access_begin();
    fn daxpager_access_end();
    fn daxpager_access_failed();
    fn daxpager_exchange8_at();
    fn daxpager_copy_at();
    #[cfg(target_arch = "aarch64")]
    fn daxpager_exchange8_store();
    #[cfg(target_arch = "aarch64")]
    fn daxpager_copy_load();
    fn daxpager_load8(at: usize) -> Answer;
    fn daxpager_store8(at: usize, value: u64) -> Answer;
    fn daxpager_exchange8(at: usize, expected: u64, new: u64) -> Answer;
    fn daxpager_copy(to: usize, from: usize, bytes: usize) -> Answer;
}

/// The registers that matter of an interrupted thread.
struct Interrupted {
    at: usize,
    /// The first two arguments of the routine: the addresses it accesses, as far as they are addresses.
    operands: [usize; 2],
}

#[cfg(target_arch = "x86_64")]
fn interrupted(context: &libc::ucontext_t) -> Interrupted {
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as usize;
    Interrupted { at: register(libc::REG_RIP), operands: [register(libc::REG_RDI), register(libc::REG_RSI)] }
}

#[cfg(target_arch = "x86_64")]
fn go_on_as_failed(context: &mut libc::ucontext_t, at: usize, addr: usize) {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = at as i64;
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = addr as i64;
}

#[cfg(target_arch = "aarch64")]
fn interrupted(context: &libc::ucontext_t) -> Interrupted {
    let registers = &context.uc_mcontext.regs;
    Interrupted { at: context.uc_mcontext.pc as usize, operands: [registers[0] as usize, registers[1] as usize] }
}

#[cfg(target_arch = "aarch64")]
fn go_on_as_failed(context: &mut libc::ucontext_t, at: usize, addr: usize) {
    context.uc_mcontext.pc = at as u64;
    context.uc_mcontext.regs[0] = addr as u64;
}

impl Interrupted {
    fn is_in_a_routine(&self) -> bool {
        let begin = daxpager_access_begin as *const () as usize;
        let end = daxpager_access_end as *const () as usize;
        (begin..end).contains(&self.at)
    }

    /// Whether the thread is about to make the access that faulted at `addr`.
    fn is_about_to_access(&self, addr: usize) -> bool {
        let words = [
            daxpager_load8 as *const () as usize,
            daxpager_store8 as *const () as usize,
            daxpager_exchange8_at as *const () as usize,
            #[cfg(target_arch = "aarch64")]
            (daxpager_exchange8_store as *const () as usize),
        ];
        let copies = [
            daxpager_copy_at as *const () as usize,
            #[cfg(target_arch = "aarch64")]
            (daxpager_copy_load as *const () as usize),
        ];
        // A copy is interrupted anywhere in the page: the CPU takes it in pieces of its own size.
        let near = |operand: usize| operand >> 12 == addr >> 12;
        match self.at {
            at if words.contains(&at) => self.operands[0] == addr,
            at if copies.contains(&at) => self.operands.into_iter().any(near),
            _ => false,
        }
    }
}

/// The SIGBUS handler that was there before ours.
static PREVIOUS: OnceLock<SigAction> = OnceLock::new();

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler installed with SA_SIGINFO.
    let info_ref = unsafe { &*info };
    // SAFETY: for SIGBUS, raised by the kernel or sent by `process::raise_sigbus`, si_addr is the address.
    let addr = unsafe { info_ref.si_addr() } as usize;
    // SAFETY: the third argument of an SA_SIGINFO handler is the interrupted ucontext_t, ours to change.
    let context_ref = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    // One of ours that meets its access is as good as one that the access has raised.
    let raised = match sent::met(info_ref, context_ref) {
        Some(Met::SomethingElse) => return,
        Some(Met::Access) => true,
        None => info_ref.si_code > 0,
    };
    if info_ref.si_code > 0
        && (trap::resolve(addr, context_ref) == Some(Verdict::Repeat) || passing::is_to_be_repeated(addr, context_ref))
    {
        return;
    }
    let thread = interrupted(context_ref);
    if thread.is_in_a_routine() {
        if raised || thread.is_about_to_access(addr) {
            go_on_as_failed(context_ref, daxpager_access_failed as *const () as usize, addr);
            return;
        }
        if info_ref.si_code == libc::SI_QUEUE {
            return;
        }
    }
    give_signals_back(context_ref);
    pass_on(signal, raised, info, context);
}

/// Unblocks the signals that only our own handler had blocked: the one that is called next expects what it would have
/// without ours.
fn give_signals_back(context: &libc::ucontext_t) {
    // SAFETY: the mask that the kernel has saved on the way into the handler is a sigset_t like any other.
    let mut before = unsafe { SigSet::from_sigset_t_unchecked(context.uc_sigmask) };
    before.add(Signal::SIGBUS);
    if let Some(previous) = PREVIOUS.get() {
        previous.mask().iter().for_each(|signal| before.add(signal));
    }
    // Fails only for a bad `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
}

/// Calls the handler that was there before, or does what the system would have done without ours.
fn pass_on(signal: i32, raised: bool, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match PREVIOUS.get().map(SigAction::handler) {
        Some(SigHandler::SigAction(handler)) => return handler(signal, info, context),
        Some(SigHandler::Handler(handler)) => return handler(signal),
        // Only a signal that was sent can be ignored; one that an access has raised ends the process.
        Some(SigHandler::SigIgn) if !raised => return,
        Some(SigHandler::SigDfl | SigHandler::SigIgn) | None => {}
    }
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
    if !raised {
        // An access would be repeated, and end the process then. This signal would not: sent again,
        // it is delivered when this handler returns.
        let _ = nix::sys::signal::raise(Signal::SIGBUS);
    }
}

/// Installs the handler, once for the process.
pub(crate) fn enable() -> Result<(), Errno> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    *DONE.get_or_init(|| {
        // On the thread's own stack: alternative ones are small, and meant for stacks that have overflown. With every signal
        // blocked: a handler that touched a mapping would find the locks of `trap` held below it.
        let ours = SigAction::new(SigHandler::SigAction(on_sigbus), SaFlags::SA_SIGINFO, SigSet::all());
        // SAFETY: the handler is async-signal-safe: it reads registers and a set-once cell, and calls on.
        let previous = unsafe { sigaction(Signal::SIGBUS, &ours) }?;
        let _ = PREVIOUS.set(previous);
        Ok(())
    })
}

fn done(answer: Answer) -> Result<u64, usize> {
    if answer.failed == 0 { Ok(answer.value) } else { Err(answer.value as usize) }
}

/// Loads an aligned word of a live mapping, in one access. The error is the faulting address.
pub(crate) fn load(at: usize) -> Result<u64, usize> {
    debug_assert!(at.is_multiple_of(8));
    // SAFETY: callers pass an aligned address inside a live mapping; SIGBUS is caught (`enable`).
    done(unsafe { daxpager_load8(at) })
}

/// Stores an aligned word, in one access.
pub(crate) fn store(at: usize, value: u64) -> Result<(), usize> {
    debug_assert!(at.is_multiple_of(8));
    // SAFETY: as for `load`; the bytes are the application's to change, and nothing borrows them.
    done(unsafe { daxpager_store8(at, value) }).map(drop)
}

/// Compares and exchanges an aligned word atomically; what was there before.
pub(crate) fn exchange(at: usize, expected: u64, new: u64) -> Result<u64, usize> {
    debug_assert!(at.is_multiple_of(8));
    // SAFETY: as for `store`.
    done(unsafe { daxpager_exchange8(at, expected, new) })
}

/// Copies out of a mapping. What was copied before the fault stays copied.
pub(crate) fn copy_out(at: usize, into: &mut [u8]) -> Result<(), usize> {
    // SAFETY: the source lies in a live mapping, the destination is a borrowed slice.
    done(unsafe { daxpager_copy(into.as_mut_ptr() as usize, at, into.len()) }).map(drop)
}

/// Copies into a mapping. What was copied before the fault stays copied.
pub(crate) fn copy_in(at: usize, from: &[u8]) -> Result<(), usize> {
    // SAFETY: the destination lies in a live mapping, the source is a borrowed slice.
    done(unsafe { daxpager_copy(at, from.as_ptr() as usize, from.len()) }).map(drop)
}

/// read(2) into a mapping.
pub(crate) fn read_into(fd: BorrowedFd<'_>, at: usize, bytes: usize) -> Result<usize, Errno> {
    // SAFETY: the range lies in a live mapping whose bytes are the application's to change, and nothing in Rust borrows
    // them; where they are not to be had the kernel says EFAULT.
    Errno::result(unsafe { libc::read(fd.as_raw_fd(), at as *mut libc::c_void, bytes) }).map(|done| done as usize)
}

/// write(2) out of a mapping.
pub(crate) fn write_from(fd: BorrowedFd<'_>, at: usize, bytes: usize) -> Result<usize, Errno> {
    // SAFETY: the kernel only reads the range, which lies in a live mapping, and says EFAULT where it cannot.
    Errno::result(unsafe { libc::write(fd.as_raw_fd(), at as *const libc::c_void, bytes) }).map(|done| done as usize)
}

/// Lends bytes of a live mapping as a buffer. A SIGBUS in it is not caught.
pub(crate) fn with_bytes_mut<T>(at: usize, len: usize, lend: impl FnOnce(&mut [u8]) -> T) -> T {
    let start = std::ptr::with_exposed_provenance_mut(at);
    // SAFETY: callers pass a range of a mapping that they keep alive meanwhile. Its bytes are plain memory; other threads may
    // change them, as they may those of any buffer that is mapped and given to a system call, and
    // the copy that is made into or out of it assumes nothing of what it reads.
    lend(unsafe { std::slice::from_raw_parts_mut(start, len) })
}

/// Checked accesses at any address, for tests that compare with the kernel's own mappings.
#[cfg(feature = "sabotage")]
pub mod checked {
    /// Copies out of memory that may end in SIGBUS. The error is the faulting address.
    ///
    /// # Safety
    /// The range is mapped, if not necessarily backed.
    pub unsafe fn copy_out(at: usize, into: &mut [u8]) -> Result<(), usize> {
        super::enable().expect("sigaction takes our handler");
        super::copy_out(at, into)
    }

    /// Copies into memory that may end in SIGBUS.
    ///
    /// # Safety
    /// The range is mapped writable, and no reference points into it.
    pub unsafe fn copy_in(at: usize, from: &[u8]) -> Result<(), usize> {
        super::enable().expect("sigaction takes our handler");
        super::copy_in(at, from)
    }
}
