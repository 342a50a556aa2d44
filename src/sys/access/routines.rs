//! The accesses themselves: a few instructions each, of which the handler knows where they are.
//!
//! All of them are in one naked function, which itself does nothing but tell where: the address of a table of distances. So no symbol of
//! this crate has a name of its own choosing, and two versions of it fit into one program.

use std::ptr;

use crate::sync::plain::{AtomicPtr, Ordering};

/// What a guarded routine returns: a value, and 0 for done or 1 for SIGBUS. With 1 the value is the faulting address.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Answer {
    pub(super) value: u64,
    pub(super) failed: u64,
}

/// How many distances there are. On x86-64 an exchange and a copy are one instruction each.
const PLACES: usize = 11;

/// Where each thing is, in bytes from the table on, in the order of the fields of [`Routines`].
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn places() -> *const [i32; PLACES] {
    std::arch::naked_asm!(
        "lea rax, [rip + 99f]",
        "ret",
        // load(rdi)
        "20:",
        "mov rax, [rdi]",
        "xor edx, edx",
        "ret",
        // store(rdi, rsi)
        "21:",
        "mov [rdi], rsi",
        "xor edx, edx",
        "ret",
        // exchange(rdi, rsi expected, rdx new)
        "22:",
        "mov rax, rsi",
        "32:",
        "lock cmpxchg [rdi], rdx",
        "xor edx, edx",
        "ret",
        // copy(rdi to, rsi from, rdx bytes)
        "23:",
        "mov rcx, rdx",
        "33:",
        "rep movsb",
        "xor edx, edx",
        "ret",
        "24:",
        "mov edx, 1",
        "ret",
        ".balign 4",
        "99:",
        ".long 20b - 99b, 24b - 99b, 24b - 99b",
        ".long 20b - 99b, 21b - 99b, 22b - 99b, 23b - 99b",
        ".long 32b - 99b, 32b - 99b, 33b - 99b, 33b - 99b",
    )
}

#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn places() -> *const [i32; PLACES] {
    std::arch::naked_asm!(
        "adr x0, 99f",
        "ret",
        // load(x0)
        "20:",
        "ldr x0, [x0]",
        "mov x1, #0",
        "ret",
        // store(x0, x1)
        "21:",
        "str x1, [x0]",
        "mov x1, #0",
        "ret",
        // exchange(x0, x1 expected, x2 new)
        "22:",
        "32:",
        "ldaxr x3, [x0]",
        "cmp x3, x1",
        "b.ne 41f",
        "42:",
        "stlxr w4, x2, [x0]",
        "cbnz w4, 32b",
        "41:",
        "clrex",
        "mov x0, x3",
        "mov x1, #0",
        "ret",
        // copy(x0 to, x1 from, x2 bytes)
        "23:",
        "cbz x2, 51f",
        "33:",
        "ldrb w3, [x1], #1",
        "43:",
        "strb w3, [x0], #1",
        "subs x2, x2, #1",
        "b.ne 33b",
        "51:",
        "mov x1, #0",
        "ret",
        "24:",
        "mov x1, #1",
        "ret",
        ".balign 4",
        "99:",
        ".long 20b - 99b, 24b - 99b, 24b - 99b",
        ".long 20b - 99b, 21b - 99b, 22b - 99b, 23b - 99b",
        ".long 32b - 99b, 42b - 99b, 33b - 99b, 43b - 99b",
    )
}

/// Where the routines are. The order is that of the table.
#[repr(C)]
pub(super) struct Routines {
    begin: usize,
    end: usize,
    /// Where a routine goes on that has failed.
    pub(super) failed: usize,
    load: usize,
    store: usize,
    exchange: usize,
    copy: usize,
    /// The accesses within them.
    exchange_at: [usize; 2],
    copy_at: [usize; 2],
}

/// Null until somebody has looked. No `OnceLock`: a child would wait for ever for a thread that was looking at the fork.
static ROUTINES: AtomicPtr<Routines> = AtomicPtr::new(ptr::null_mut());

/// Looks where the routines are. Before the handler is put in: in there nothing is looked for.
pub(super) fn find() -> &'static Routines {
    found().unwrap_or_else(Routines::look)
}

/// The same in the handler: there by then.
pub(super) fn found() -> Option<&'static Routines> {
    // SAFETY: null, or a box that `look`, which alone writes there, has leaked.
    unsafe { ROUTINES.load(Ordering::Acquire).as_ref() }
}

impl Routines {
    #[cold]
    fn look() -> &'static Self {
        let table = places();
        // SAFETY: `places` returns the address of its table, which has that many words, is aligned to them and never changes.
        let distances = unsafe { *table };
        let [begin, end, failed, load, store, exchange, copy, exchange_1, exchange_2, copy_1, copy_2] =
            distances.map(|distance| (table as usize).wrapping_add_signed(distance as isize));
        let (exchange_at, copy_at) = ([exchange_1, exchange_2], [copy_1, copy_2]);
        let routines = Self { begin, end, failed, load, store, exchange, copy, exchange_at, copy_at };
        let routines = Box::leak(Box::new(routines));
        // Of two threads that look at once each finds the same.
        ROUTINES.store(routines, Ordering::Release);
        routines
    }

    /// Whether the instruction at `at` is one of theirs.
    pub(super) fn contain(&self, at: usize) -> bool {
        (self.begin..self.end).contains(&at)
    }

    /// Whether the instruction at `at` accesses the word that is the first operand.
    pub(super) fn access_a_word_at(&self, at: usize) -> bool {
        at == self.load || at == self.store || self.exchange_at.contains(&at)
    }

    /// Whether the instruction at `at` is one of a copy, and accesses what one of both operands points at.
    pub(super) fn copy_at(&self, at: usize) -> bool {
        self.copy_at.contains(&at)
    }
}

/// Loads a word.
///
/// # Safety
/// `at` is aligned, and no memory but what the application may read.
pub(super) unsafe fn load(at: usize) -> Answer {
    // SAFETY: that address is a function of this signature, written above.
    let routine = unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(usize) -> Answer>(find().load) };
    // SAFETY: the caller's promise.
    unsafe { routine(at) }
}

/// Stores a word.
///
/// # Safety
/// `at` is aligned, the word is the application's to change, and no Rust reference points at it.
pub(super) unsafe fn store(at: usize, value: u64) -> Answer {
    // SAFETY: that address is a function of this signature, written above.
    let routine = unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(usize, u64) -> Answer>(find().store) };
    // SAFETY: the caller's promise.
    unsafe { routine(at, value) }
}

/// Compares and exchanges a word.
///
/// # Safety
/// As for [`store`].
pub(super) unsafe fn exchange(at: usize, expected: u64, new: u64) -> Answer {
    type Exchange = unsafe extern "C" fn(usize, u64, u64) -> Answer;
    // SAFETY: that address is a function of this signature, written above.
    let routine = unsafe { std::mem::transmute::<usize, Exchange>(find().exchange) };
    // SAFETY: the caller's promise.
    unsafe { routine(at, expected, new) }
}

/// Copies bytes.
///
/// # Safety
/// All of `from` may be read and all of `to` be changed, as for [`load`] and [`store`].
pub(super) unsafe fn copy(to: usize, from: usize, bytes: usize) -> Answer {
    type Copy = unsafe extern "C" fn(usize, usize, usize) -> Answer;
    // SAFETY: that address is a function of this signature, written above.
    let routine = unsafe { std::mem::transmute::<usize, Copy>(find().copy) };
    // SAFETY: the caller's promise.
    unsafe { routine(to, from, bytes) }
}
