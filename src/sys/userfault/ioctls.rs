//! The ioctls that change entries, one function each.

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::ranges::{addr, madvise};
use super::{Userfault, count};
use crate::sync::plain::OnceLock;
use crate::sys::{Filled, Outcome, PageTable, Protection, Span, abi};
use crate::units::Addr;

/// A page of zeros to copy from. Aligned so that any base page size up to 64 KiB can be copied.
#[repr(align(65536))]
struct ZeroPage([u8; 65536]);
static ZEROS: ZeroPage = ZeroPage([0; 65536]);

/// Zeros that can be copied at once.
const MANY_BYTES: u64 = 2 << 20;

fn range(span: Span<'_>) -> abi::Range {
    abi::Range { start: span.at().0 as u64, len: span.bytes() }
}

/// The outcome of an ioctl that leaves in `done` the bytes it did, or a negative errno.
fn outcome(answer: nix::Result<i32>, done: i64) -> Result<Outcome, Errno> {
    match answer {
        Ok(_) => Ok(Outcome::Installed),
        Err(Errno::EEXIST) => Ok(Outcome::AlreadyPresent),
        // Some pages were done before one that had an entry: the caller sees all of them as present.
        Err(Errno::EAGAIN) if done > 0 => Ok(Outcome::AlreadyPresent),
        Err(Errno::EAGAIN) => Ok(Outcome::Retry),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(Outcome::Gone),
        Err(errno) => Err(errno),
    }
}

/// What has been done of so many bytes.
fn filled(answer: nix::Result<i32>, done: i64, bytes: u64) -> Result<Filled, Errno> {
    match u64::try_from(done) {
        // Whatever stopped it: these are done. (Of an error the field holds the negative errno, or nothing.)
        Ok(done) if done > 0 => Ok(Filled::Bytes(done)),
        Ok(_) | Err(_) => Ok(match outcome(answer, 0)? {
            Outcome::Installed => Filled::Bytes(bytes),
            other => Filled::Nothing(other),
        }),
    }
}

/// Addresses at which nothing but zeros is ever read: [`MANY_BYTES`].
static MANY: OnceLock<usize> = OnceLock::new();

/// Makes [`MANY`], never to be given back, before a signal handler wants it. It takes no memory: all are the system's one page of zeros,
/// which stays in the CPU's cache. Where the kernel has no addresses for it zeros are copied in smaller pieces.
pub(super) fn have_many_zeros() {
    let Some(bytes) = std::num::NonZeroUsize::new(MANY_BYTES as usize).filter(|_| MANY.get().is_none()) else { return };
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
    let Ok(mapped) = (unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE) }) else {
        return;
    };
    let at = addr(mapped);
    // Not a huge page of zeros, which would not stay there.
    // SAFETY: has just been mapped here. It changes a flag.
    let _ = unsafe { madvise(at, MANY_BYTES, libc::MADV_NOHUGEPAGE) };
    if MANY.set(at.0).is_err() {
        // Another thread has been first.
        // SAFETY: has just been mapped here, and nobody has its address.
        let _ = unsafe { nix::sys::mman::munmap(mapped, MANY_BYTES as usize) };
    }
}

pub(super) fn continue_mode(protection: Protection) -> u64 {
    match protection {
        Protection::ReadOnly => abi::CONTINUE_MODE_WP,
        Protection::Writable => 0,
    }
}

pub(super) fn copy_mode(protection: Protection) -> u64 {
    match protection {
        Protection::ReadOnly => abi::COPY_MODE_WP,
        Protection::Writable => 0,
    }
}

impl Userfault {
    /// UFFDIO_CONTINUE: installs what is in the page cache, and wakes who sleeps at this userfaultfd.
    pub(super) fn continue_(&self, fd: i32, span: Span<'_>, mode: u64) -> Result<Outcome, Errno> {
        count(&self.calls.installs);
        let mut argument = abi::Continue { range: range(span), mode, done: 0 };
        // SAFETY: `argument` is a valid uffdio_continue and outlives the call. What it installs in is a mapping's (`Span`).
        let answer = unsafe { abi::uffdio_continue(fd, &mut argument) };
        outcome(answer, argument.done)
    }

    /// UFFDIO_CONTINUE of several pages. It ends at the first that has an entry, says EAGAIN, and has woken who waits on
    /// those before; or EEXIST, if that is the very first.
    pub(super) fn continue_run(&self, fd: i32, span: Span<'_>, mode: u64) -> Result<Filled, Errno> {
        count(&self.calls.installs);
        let mut argument = abi::Continue { range: range(span), mode, done: 0 };
        // SAFETY: `argument` is a valid uffdio_continue and outlives the call. What it installs in is a mapping's (`Span`).
        let answer = unsafe { abi::uffdio_continue(fd, &mut argument) };
        filled(answer, argument.done, span.bytes())
    }

    /// UFFDIO_COPY of zeros into a base page. Wakes who sleeps at this userfaultfd.
    ///
    /// # Panics
    /// If it is more than one: there are no more zeros than that.
    pub(super) fn copy_zeros(&self, fd: i32, span: Span<'_>, mode: u64) -> Result<Outcome, Errno> {
        assert!(span.bytes() <= self.base_page(), "zeros go into one base page at a time");
        let (answer, copied) = self.copy(fd, ZEROS.0.as_ptr() as usize, span, mode);
        outcome(answer, copied)
    }

    /// The same for a run of pages, as many as there are zeros: it ends at the first that is there.
    pub(super) fn copy_zeros_run(&self, fd: i32, span: Span<'_>, mode: u64) -> Result<Filled, Errno> {
        let (src, most) = match MANY.get() {
            Some(many) => (*many, MANY_BYTES),
            None => (ZEROS.0.as_ptr() as usize, ZEROS.0.len() as u64),
        };
        let span = span.at_most(most);
        let (answer, copied) = self.copy(fd, src, span, mode);
        filled(answer, copied, span.bytes())
    }

    /// UFFDIO_COPY from zeros that are never given back, and how many bytes it says that it has copied. Where there are fewer zeros than the
    /// range is long the kernel finds nothing to read, or somebody else's bytes: both callers keep to what there is.
    fn copy(&self, fd: i32, src: usize, span: Span<'_>, mode: u64) -> (nix::Result<i32>, i64) {
        count(&self.calls.installs);
        let (dst, src) = (span.at().0 as u64, src as u64);
        let mut argument = abi::Copy { dst, src, len: span.bytes(), mode, copied: 0 };
        // SAFETY: `argument` is a valid uffdio_copy and outlives the call. It is the kernel that reads the source. What it writes to is a
        // mapping's (`Span`).
        let answer = unsafe { abi::uffdio_copy(fd, &mut argument) };
        (answer, argument.copied)
    }

    /// UFFDIO_COPY of bytes that cannot be read: EFAULT where the whole range is registered, and nothing is done. `Gone` where it is not.
    pub(super) fn copy_from_nowhere(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        static NOWHERE: OnceLock<Result<usize, Errno>> = OnceLock::new();
        let page = std::num::NonZeroUsize::new(self.base_page() as usize).ok_or(Errno::EINVAL)?;
        let map = || {
            // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours. It is never given back.
            let mapped = unsafe { mmap_anonymous(None, page, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) };
            mapped.map(|at| at.as_ptr() as usize)
        };
        let nowhere = (*NOWHERE.get_or_init(map))?;
        let mut argument = abi::Copy { dst: at.0 as u64, src: nowhere as u64, len: bytes, mode: 0, copied: 0 };
        // SAFETY: `argument` is a valid uffdio_copy and outlives the call. Its source is not readable, so nothing is written anywhere.
        let answer = unsafe { abi::uffdio_copy(self.fd(), &mut argument) };
        outcome(answer, argument.copied)
    }

    /// UFFDIO_POISON.
    pub(super) fn poison_with(&self, span: Span<'_>, mode: u64) -> Result<Outcome, Errno> {
        count(&self.calls.installs);
        let mut argument = abi::Continue { range: range(span), mode, done: 0 };
        // SAFETY: `argument` has the layout of uffdio_poison (asserted in `abi`) and outlives the call. What it poisons is a mapping's
        // (`Span`).
        let answer = unsafe { abi::uffdio_poison(self.fd(), &mut argument) };
        outcome(answer, argument.done)
    }

    /// UFFDIO_WRITEPROTECT.
    pub(super) fn write_protect(&self, span: Span<'_>, mode: u64) -> Result<Outcome, Errno> {
        count(&self.calls.installs);
        let mut argument = abi::WriteProtect { range: range(span), mode };
        // SAFETY: `argument` is a valid uffdio_writeprotect and outlives the call. Whose entries it changes: `Span`.
        let answer = unsafe { abi::uffdio_writeprotect(self.fd(), &mut argument) };
        outcome(answer, 0)
    }
}
