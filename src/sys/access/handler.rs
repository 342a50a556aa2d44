//! The process's SIGBUS handler, and its handler of SIGSEGV where that has been put in: what it takes for itself, and how it calls those that
//! were there before. Of the two signals SIGSEGV is ours only where an access of ours has raised it.
//!
//! | asked for by who was there | as the kernel would have done it |
//! |---|---|
//! | `SA_ONSTACK`, `SA_RESTART` | ours is put in with the same, so the kernel has done it by the time ours runs |
//! | `sa_mask`, `SA_NODEFER` | what ours blocks beyond that is unblocked before the call |
//! | `SA_RESETHAND` | called once; from then on it is the default action |
//! | `SA_SIGINFO` | three arguments, or one |
//!
//! **Whose stack.** Rust's own run-time, Go's and the sanitizers ask for `SA_ONSTACK`; then ours runs on the alternate stack, too. Rust's has some
//! 8 KiB, 3 of them taken by what the kernel saves of an AVX-512 thread (`AT_MINSIGSTKSZ`: 3,376 bytes; 11 KiB with AMX). Resolving a fault has to fit into
//! the rest, and so has an observer. Go's has 32 KiB, and what Go's threads have for a stack is smaller. So the resolver stays on an alternate stack with room
//! for it ([`ROOM_TO_RESOLVE`]), and runs below the interrupted frame otherwise, where a handler without `SA_ONSTACK` would. Every signal is blocked meanwhile: nobody comes to
//! the alternate stack and finds it free.
//!
//! **Who comes later.** A handler that is put in after ours, and calls ours for what it does not want, is a chain like any
//! other. One that calls nobody takes every fault from ours; [`chain::catches`] says so. Ours is put in front again when another
//! mapping is made whose threads resolve their own faults ([`chain::install`]). Both may be called by each other then. What
//! is called from within a call of ours goes to the next older one, so it ends.

use std::cell::Cell;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, pthread_sigmask, sigaction};

use super::chain::{self, Before};
use super::routines::{self, Routines};
use crate::sync::plain::Ordering;
use crate::sys::memory::base_page_bytes;
use crate::sys::sent::{self, Met};
use crate::sys::{Verdict, passing, trap};

/// What resolving a fault is given of a stack, in bytes, below what the kernel saves. It takes some 2.5 KiB (`tests/handlers.rs` measures it again), and an
/// observer runs in there, too.
#[cfg(target_arch = "x86_64")]
const ROOM_TO_RESOLVE: usize = 12 << 10;

/// No mapping there; a mapping that does not allow it. As the kernel numbers them (asm-generic/siginfo.h).
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;

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
    /// Whether the thread is about to make the access that faulted at `addr`.
    fn is_about_to_access(&self, routines: &Routines, addr: usize) -> bool {
        // A copy is interrupted anywhere in the page: the CPU takes it in pieces of its own size.
        // The C library keeps the size in memory, and so may be asked in here.
        let page = base_page_bytes() as usize;
        let near = |operand: usize| operand / page == addr / page;
        match self.at {
            at if routines.access_a_word_at(at) => self.operands[0] == addr,
            at if routines.copy_at(at) => self.operands.into_iter().any(near),
            _ => false,
        }
    }
}

/// What the kernel calls. It goes on to [`on_signal`] and tells it, besides, whether the kernel has called: then what the thread was
/// interrupted in lies just behind the return address. Other handlers pass the pointer on, and their frames lie between.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) extern "C" fn entry(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    std::arch::naked_asm!(
        "lea rax, [rsp + 8]",
        "xor ecx, ecx",
        "cmp rax, rdx",
        "sete cl",
        "jmp {on_signal}",
        on_signal = sym on_signal,
    )
}

#[cfg(target_arch = "aarch64")]
pub(super) extern "C" fn entry(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // Nothing is resolved in here on this architecture, and so nothing has to be blocked.
    on_signal(signal, info, context, 1);
}

/// A signal as it arrived.
struct Arrived {
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    /// Whether an access of this very thread has raised it. It was sent otherwise: by somebody, or by the kernel about a page that
    /// nobody is accessing (`BUS_MCEERR_AO`).
    raised: bool,
    /// The kernel has called ours, and has every signal blocked for it. Otherwise another handler has.
    by_kernel: bool,
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void, by_kernel: u32) {
    // SAFETY: the kernel passes a valid siginfo_t to a handler installed with SA_SIGINFO, and who calls us on does the same.
    let code = unsafe { (*info).si_code };
    let raised = match signal {
        // Whatever the kernel says; what was sent has a code of 0 or less.
        libc::SIGSEGV => code > 0,
        _ => matches!(code, libc::BUS_ADRALN | libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR),
    };
    let arrived = Arrived { signal, info, context, raised, by_kernel: by_kernel != 0 };
    if !arrived.is_ours(code) {
        // Who was there before may change what the pointers lead to: nothing is borrowed any more.
        arrived.pass_on();
    }
}

impl Arrived {
    /// Does what is to be done if it is about a fault of ours.
    fn is_ours(&self, code: i32) -> bool {
        // SAFETY: valid, as above, and nobody changes it until this function returns.
        let info = unsafe { &*self.info };
        // SAFETY: for SIGSEGV, and for SIGBUS, raised by the kernel or sent by `process::raise_sigbus`, si_addr is the address. Of a signal
        // that somebody has sent it is some other number, which nobody uses.
        let addr = unsafe { info.si_addr() } as usize;
        // SAFETY: the third argument of an SA_SIGINFO handler is the interrupted ucontext_t, ours to change and nobody else's until
        // this function returns.
        let context = unsafe { &mut *self.context.cast::<libc::ucontext_t>() };
        if self.signal == libc::SIGSEGV {
            return self.fails_an_access(code, addr, context);
        }
        // One of ours that meets its access is as good as one that the access has raised.
        let meets = match sent::met(info, context) {
            Some(Met::SomethingElse) => return true,
            met => met.is_some(),
        };
        // Memory that is broken is nothing to resolve: the entry is there, and the access would be repeated for ever.
        let may_resolve = self.raised && code != libc::BUS_MCEERR_AR;
        if may_resolve && self.resolve(addr, context) == Some(Verdict::Repeat) {
            return true;
        }
        if self.raised && passing::is_to_be_repeated(addr, context) {
            return true;
        }
        let Some(routines) = routines::found() else { return false };
        let thread = interrupted(context);
        if !routines.contain(thread.at) {
            return false;
        }
        if self.raised || meets || thread.is_about_to_access(routines, addr) {
            go_on_as_failed(context, routines.failed, addr);
            return true;
        }
        code == libc::SI_QUEUE
    }

    /// A SIGSEGV: has an access of ours return "failed" that has met what is inaccessible.
    fn fails_an_access(&self, code: i32, addr: usize, context: &mut libc::ucontext_t) -> bool {
        // Other codes come without an address, or are about something else.
        let is_about_an_address = matches!(code, SEGV_MAPERR | SEGV_ACCERR);
        let Some(routines) = routines::found().filter(|_| is_about_an_address) else { return false };
        if !routines.contain(interrupted(context).at) {
            return false;
        }
        go_on_as_failed(context, routines.failed, addr);
        true
    }

    /// Asks the resolver, with every signal blocked: a handler that touched a mapping would wait for locks that are held below it.
    fn resolve(&self, addr: usize, context: &libc::ucontext_t) -> Option<Verdict> {
        if self.by_kernel {
            return resolve_with_room(addr, context);
        }
        let mut before = SigSet::empty();
        // Fails only for a bad `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
        let verdict = resolve_with_room(addr, context);
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        verdict
    }
}

/// A call of [`trap::resolve`], to be made on another stack.
#[cfg(target_arch = "x86_64")]
struct Question<'a> {
    addr: usize,
    context: &'a libc::ucontext_t,
    verdict: Option<Verdict>,
}

#[cfg(target_arch = "x86_64")]
extern "C" fn ask(question: &mut Question<'_>) {
    question.verdict = trap::resolve(question.addr, question.context);
}

/// Resolves where there is room for it.
#[cfg(target_arch = "x86_64")]
fn resolve_with_room(addr: usize, context: &libc::ucontext_t) -> Option<Verdict> {
    /// What code may use below its stack pointer without telling.
    const RED_ZONE: usize = 128;
    let here = std::ptr::from_ref(&addr) as usize;
    let interrupted = context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize;
    let stack = &context.uc_stack;
    let alternate = match stack.ss_flags & libc::SS_DISABLE {
        0 => stack.ss_sp as usize..stack.ss_sp as usize + stack.ss_size,
        _ => 0..0,
    };
    // Who was interrupted on the alternate stack has no other that we know of.
    let enough = !alternate.contains(&here) || here - alternate.start >= ROOM_TO_RESOLVE;
    if enough || alternate.contains(&interrupted) {
        return trap::resolve(addr, context);
    }
    let top = (interrupted - RED_ZONE) & !63;
    let mut question = Question { addr, context, verdict: None };
    // SAFETY: below the interrupted frame and its red zone the thread's stack is unused, and the thread goes nowhere until this returns. With
    // every signal blocked no other handler begins there, or on the alternate stack that is left for the moment.
    unsafe {
        std::arch::asm!(
            "xchg rsp, r12",
            "call {ask}",
            "mov rsp, r12",
            ask = sym ask,
            inout("r12") top => _,
            in("rdi") &mut question,
            clobber_abi("C"),
        );
    }
    question.verdict
}

#[cfg(not(target_arch = "x86_64"))]
fn resolve_with_room(addr: usize, context: &libc::ucontext_t) -> Option<Verdict> {
    trap::resolve(addr, context)
}

/// A call of an older handler by this thread that has not returned.
#[derive(Clone, Copy)]
struct Passing {
    context: usize,
    frame: usize,
    /// How many were passed over: 0 for the youngest.
    level: usize,
}

thread_local! {
    /// Read and written by the handler. Has no destructor, and needs no allocation in a program that the crate is linked into.
    static PASSING: Cell<Passing> = const { Cell::new(Passing { context: 0, frame: 0, level: 0 }) };
}

impl Arrived {
    /// Calls the handler that was there before, or does what the system would have done without ours.
    fn pass_on(&self) {
        let outer = PASSING.get();
        let frame = std::ptr::from_ref(&outer) as usize;
        // A handler that was called with this very context, and has called ours in its turn. What was left behind by one that has jumped out of
        // itself (siglongjmp) is no deeper than this.
        let within = !self.by_kernel && outer.context == self.context as usize && frame < outer.frame;
        let level = if within { outer.level + 1 } else { 0 };
        let before = chain::of(self.signal).older(level);
        let before = before.filter(|before| {
            let once = before.action.flags().contains(SaFlags::SA_RESETHAND);
            !once || !before.spent.swap(true, Ordering::Relaxed)
        });
        if self.by_kernel {
            self.give_signals_back(before);
        }
        PASSING.set(Passing { context: self.context as usize, frame, level });
        match before.map(|before| before.action.handler()) {
            Some(SigHandler::SigAction(handler)) => handler(self.signal, self.info, self.context),
            Some(SigHandler::Handler(handler)) => handler(self.signal),
            // Only a signal that was sent can be ignored; one that an access has raised ends the process. So does ours that stands for that: the
            // access would be repeated for ever.
            Some(SigHandler::SigIgn) if !self.raised && !self.meets_its_access() => {}
            Some(SigHandler::SigDfl | SigHandler::SigIgn) | None => self.end_by_default(),
        }
        PASSING.set(outer);
    }

    /// Whether it is one of ours, and has met what it is meant for.
    fn meets_its_access(&self) -> bool {
        // SAFETY: as in `is_ours`: valid, and nobody changes either until this function returns.
        let info = unsafe { &*self.info };
        // SAFETY: likewise.
        let context = unsafe { &*self.context.cast::<libc::ucontext_t>() };
        sent::met(info, context) == Some(Met::Access)
    }

    /// Unblocks the signals that only our own handler had blocked: the one that is called next expects what it would have
    /// without ours.
    fn give_signals_back(&self, next: Option<&Before>) {
        // SAFETY: as in `is_ours`; only read, and copied.
        let interrupted = unsafe { (*self.context.cast::<libc::ucontext_t>()).uc_sigmask };
        // SAFETY: the mask that the kernel has saved on the way into the handler is a sigset_t like any other.
        let mut mask = unsafe { SigSet::from_sigset_t_unchecked(interrupted) };
        let action = next.map(|next| &next.action);
        if !action.is_some_and(|action| action.flags().contains(SaFlags::SA_NODEFER)) {
            mask.add(chain::of(self.signal).signal());
        }
        if let Some(action) = action {
            action.mask().iter().for_each(|signal| mask.add(signal));
        }
        // Fails only for a bad `how`.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None);
    }

    fn end_by_default(&self) {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        let signal = chain::of(self.signal).signal();
        // SAFETY: the default action runs no code of ours.
        let _ = unsafe { sigaction(signal, &default) };
        if !self.raised {
            // An access would be repeated, and end the process then. This signal would not: sent again,
            // it is delivered when this handler returns.
            let _ = nix::sys::signal::raise(signal);
        }
    }
}
