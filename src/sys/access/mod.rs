//! Loads and stores that end in an error where a plain one would end in SIGBUS, or, where nothing better could be put in the place of a
//! mapping that is given up ([`expect_inaccessible`]), in SIGSEGV.
//!
//! Each access is a few instructions of assembler ([`routines`]). A process-wide SIGBUS handler ([`handler`]) looks whether
//! the interrupted instruction is one of them; if so, it has the access return "failed" with the faulting address, and otherwise it
//! calls the handler that was there before. It allocates nothing and takes no lock. Before all that it asks [`super::trap`] whether the fault is one that
//! this very thread resolves.
//!
//! A SIGBUS for a full volume is sent by the pager ([`super::process::raise_sigbus`]), not raised by the access. It
//! counts only if it meets the access it is meant for ([`super::sent`]). Otherwise it is dropped, and the access faults again if it must.
//!
//! A thread that blocks SIGBUS, and a process in which another handler has been put in since, would be killed all the same: [`catches`].

pub(crate) mod buffer;
mod chain;
mod handler;
mod routines;

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::Part;
use crate::sync::plain::{AtomicBool, Ordering};
use routines::Answer;

/// Installs the handler, once for the process; its children have it, too.
pub(crate) fn enable() -> Result<(), Errno> {
    // No `OnceLock`: a child would wait for ever for a thread that was in it at the fork.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Acquire) {
        chain::SIGBUS.install()?;
        DONE.store(true, Ordering::Release);
    }
    Ok(())
}

/// Puts the handler in front again where another one has been put in since. That one is called for what is not ours. A process in which that
/// has happened many times keeps the handler that it has.
pub(super) fn go_in_front() {
    let _ = chain::SIGBUS.install();
}

/// Before a range of a mapping is made inaccessible: an access of ours that is under way there gets SIGSEGV, which is caught from now on. Until
/// that is needed SIGSEGV is nobody's but the program's. What comes of others is for the handler that was there before, in its turn.
pub(super) fn expect_inaccessible() {
    // Where the handler cannot be had, the signal ends the process, as it would have without.
    let _ = chain::SIGSEGV.install();
}

/// Whether a SIGBUS that an access of this thread raised now would be caught: the thread blocks neither it nor SIGSEGV, and the handler is still ours.
/// That is so until the thread changes its mask, or any thread the handler. Two system calls: nothing that costs less knows.
pub(crate) fn catches() -> bool {
    chain::catches()
}

fn done(answer: Answer) -> Result<u64, usize> {
    if answer.failed == 0 { Ok(answer.value) } else { Err(answer.value as usize) }
}

// What the SAFETY comments below refer to: a `Part` borrows its `Place`, and `Core::unmap`, for the drop of the `Mapping` that owns that, is alone
// in giving addresses back. So it is mapped, and its bytes are the application's, as long as it lives; what is not to
// be had there is a SIGBUS or SIGSEGV, which is caught, or kills (`catches`), and harms no memory.

/// Loads an aligned word, in one access. The error is the faulting address.
pub(crate) fn load(word: Part<'_>) -> Result<u64, usize> {
    // SAFETY: an aligned word of a `Part`.
    done(unsafe { routines::load(word.word()) })
}

/// Stores an aligned word, in one access.
pub(crate) fn store(word: Part<'_>, value: u64) -> Result<(), usize> {
    // SAFETY: an aligned word of a `Part`; nothing in Rust borrows it.
    done(unsafe { routines::store(word.word(), value) }).map(drop)
}

/// Compares and exchanges an aligned word atomically; what was there before.
pub(crate) fn exchange(word: Part<'_>, expected: u64, new: u64) -> Result<u64, usize> {
    // SAFETY: as for `store`.
    done(unsafe { routines::exchange(word.word(), expected, new) })
}

/// Copies out of a mapping, as much as both have. What was copied before the fault stays copied.
pub(crate) fn copy_out(from: Part<'_>, into: &mut [u8]) -> Result<(), usize> {
    let bytes = from.bytes().min(into.len());
    // SAFETY: no more than the `Part` has, into a borrowed slice that has as much.
    done(unsafe { routines::copy(into.as_mut_ptr() as usize, from.at(), bytes) }).map(drop)
}

/// Copies into a mapping, as much as both have. What was copied before the fault stays copied.
pub(crate) fn copy_in(into: Part<'_>, from: &[u8]) -> Result<(), usize> {
    let bytes = into.bytes().min(from.len());
    // SAFETY: no more than the `Part` has, which nothing in Rust borrows, from a borrowed slice that has as much.
    done(unsafe { routines::copy(into.at(), from.as_ptr() as usize, bytes) }).map(drop)
}

/// Copies to memory that is no mapping of the embedder's. What was copied before the fault stays copied.
///
/// # Safety
/// The range is mapped writable, if not necessarily backed, and no reference points into it.
pub(super) unsafe fn copy_to(at: usize, from: &[u8]) -> Result<(), usize> {
    // SAFETY: the caller's promise, and a borrowed slice.
    done(unsafe { routines::copy(at, from.as_ptr() as usize, from.len()) }).map(drop)
}

/// read(2) into a mapping. By its number: the bytes are the kernel's to change, as they are other threads' and processes', and no
/// wrapper of the C library is to take that for an access of this thread (ThreadSanitizer's does).
pub(crate) fn read_into(fd: BorrowedFd<'_>, into: Part<'_>) -> Result<usize, Errno> {
    let start = into.at() as *mut libc::c_void;
    // SAFETY: a `Part`, which nothing in Rust borrows; where its bytes are not to be had the kernel says EFAULT.
    Errno::result(unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), start, into.bytes()) })
        .map(|done| done as usize)
}

/// write(2) out of a mapping, likewise.
pub(crate) fn write_from(fd: BorrowedFd<'_>, from: Part<'_>) -> Result<usize, Errno> {
    let start = from.at() as *const libc::c_void;
    // SAFETY: the kernel only reads the `Part`, and says EFAULT where it cannot.
    Errno::result(unsafe { libc::syscall(libc::SYS_write, fd.as_raw_fd(), start, from.bytes()) })
        .map(|done| done as usize)
}

/// Whether a read(2) or write(2) on the descriptor may have a device work on the very pages of the buffer: it was opened with `O_DIRECT`. On
/// a pipe that means packets, and bytes are copied.
pub(crate) fn is_direct_io(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
    if flags & libc::O_DIRECT == 0 {
        return Ok(false);
    }
    let mode = nix::sys::stat::fstat(fd)?.st_mode;
    Ok(mode & libc::S_IFMT != libc::S_IFIFO)
}

/// Checked accesses at any address, for tests that compare with the kernel's own mappings.
#[cfg(feature = "sabotage")]
pub mod checked {
    use super::routines;

    /// Copies out of memory that may end in SIGBUS. The error is the faulting address.
    ///
    /// # Safety
    /// The range is mapped, if not necessarily backed.
    pub unsafe fn copy_out(at: usize, into: &mut [u8]) -> Result<(), usize> {
        super::enable().expect("sigaction takes our handler");
        // SAFETY: the caller's promise, and a borrowed slice.
        super::done(unsafe { routines::copy(into.as_mut_ptr() as usize, at, into.len()) }).map(drop)
    }

    /// Copies into memory that may end in SIGBUS.
    ///
    /// # Safety
    /// The range is mapped writable, and no reference points into it.
    pub unsafe fn copy_in(at: usize, from: &[u8]) -> Result<(), usize> {
        super::enable().expect("sigaction takes our handler");
        // SAFETY: the caller's promise.
        unsafe { super::copy_to(at, from) }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::{MmapOptions, MmapRaw};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::sys::memory::base_page_bytes;

    const WORD: u64 = 0x0123_4567_89ab_cdef;

    /// Two pages of a file that has one: the second is a SIGBUS. Where each of them begins.
    fn one_page_of_two() -> (MmapRaw, usize, usize) {
        enable().unwrap();
        let page = base_page_bytes() as usize;
        let file = memfd_create("access", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, page as i64).unwrap();
        let map = MmapOptions::new().len(2 * page).map_raw(&file).unwrap();
        let at = map.as_ptr() as usize;
        (map, at, at + page)
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembler")]
    fn a_word_is_loaded_stored_and_exchanged() {
        let (_map, at, _) = one_page_of_two();
        // SAFETY: an aligned word of the first page, which nothing in Rust borrows.
        assert_eq!(done(unsafe { routines::store(at + 8, WORD) }).map(drop), Ok(()));
        // SAFETY: as above.
        assert_eq!(done(unsafe { routines::load(at + 8) }), Ok(WORD));
        // SAFETY: as above.
        assert_eq!(done(unsafe { routines::exchange(at + 8, WORD, 7) }), Ok(WORD));
        // SAFETY: as above.
        assert_eq!(done(unsafe { routines::exchange(at + 8, WORD, 9) }), Ok(7), "it is another by now");
        // SAFETY: as above.
        assert_eq!([0, 8, 16].map(|word| done(unsafe { routines::load(at + word) })), [Ok(0), Ok(7), Ok(0)]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembler")]
    fn a_word_that_is_not_there_is_named() {
        let (_map, _, at) = one_page_of_two();
        // SAFETY: an aligned word of the mapping: a SIGBUS, which is caught.
        assert_eq!(done(unsafe { routines::load(at + 8) }), Err(at + 8));
        // SAFETY: as above.
        assert_eq!(done(unsafe { routines::store(at + 16, 1) }), Err(at + 16));
        // SAFETY: as above.
        assert_eq!(done(unsafe { routines::exchange(at, 0, 1) }), Err(at));
    }

    #[test]
    #[cfg_attr(miri, ignore = "assembler")]
    fn a_copy_ends_where_the_bytes_do() {
        let (_map, at, end) = one_page_of_two();
        let bytes: Vec<u8> = (1..=13).collect();
        let mut back = [0; 13];
        // SAFETY: thirteen bytes of the first page, which nothing in Rust borrows, and as many of a vector's.
        assert_eq!(done(unsafe { routines::copy(at + 3, bytes.as_ptr() as usize, 13) }).map(drop), Ok(()));
        // SAFETY: the same the other way round, into an array.
        assert_eq!(done(unsafe { routines::copy(back.as_mut_ptr() as usize, at + 3, 13) }).map(drop), Ok(()));
        assert_eq!(back, bytes[..]);
        // SAFETY: nothing is accessed.
        assert_eq!(done(unsafe { routines::copy(end, end, 0) }).map(drop), Ok(()));

        // SAFETY: within the mapping; past its file's end is a SIGBUS, which is caught.
        assert_eq!(done(unsafe { routines::copy(end - 5, bytes.as_ptr() as usize, 13) }).map(drop), Err(end));
        back.fill(0);
        // SAFETY: as above, into an array.
        assert_eq!(done(unsafe { routines::copy(back.as_mut_ptr() as usize, end - 5, 13) }).map(drop), Err(end));
        assert_eq!((&back[..5], &back[5..]), (&bytes[..5], &[0; 8][..]), "what came before is copied");
    }
}
