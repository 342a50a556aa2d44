//! The second userfaultfd: the kernel lets stores through it by itself, and its page table is the record of them.
//!
//! `UFFD_FEATURE_WP_ASYNC` is of a whole userfaultfd, and a store to zeros must not get through: so only ranges that
//! point at the device, of asynchronous mappings, are registered with it. It is opened for the first of these.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use userfaultfd::Uffd;

use super::open::{self, check_features};
use super::{Userfault, continue_mode, copy_mode};
use crate::error::{Error, Result};
use crate::sync::plain::{AtomicU8, Ordering};
use crate::sys::asynchronous::Twin;
use crate::sys::{Filled, MESSAGES_PER_READ, Message, Outcome, PageTable, Protection, Scan, Span, abi};
use crate::units::Addr;

/// The second userfaultfd, and what it takes to read its record.
pub(super) struct Second {
    pub(super) uffd: Uffd,
    pagemap: File,
    /// Which of the two poll(2) has called readable, as [`FIRST`] and [`SECOND`]; nothing once it was read.
    ready: AtomicU8,
}

pub(super) const FIRST: u8 = 1;
pub(super) const SECOND: u8 = 2;

/// Ranges that one PAGEMAP_SCAN reports at most.
const REGIONS: usize = 256;

impl Second {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.uffd`, which the borrow of self outlasts.
        unsafe { BorrowedFd::borrow_raw(self.uffd.as_raw_fd()) }
    }

    pub(super) fn set_ready(&self, ready: u8) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// PAGEMAP_SCAN: calls `each` for the ranges that are meant.
    fn scan(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        let absent = abi::PAGE_IS_PRESENT | abi::PAGE_IS_SWAPPED;
        // A range of zeros is not ours to scan: silently skipped where pages are protected, and not WPALLOWED.
        let (flags, inverted, mask) = match scan {
            Scan::TakeWritten => (abi::PM_SCAN_WP_MATCHING, 0, abi::PAGE_IS_PRESENT | abi::PAGE_IS_WRITTEN),
            // A marker is "swapped".
            Scan::TakeAll => (abi::PM_SCAN_WP_MATCHING, absent, abi::PAGE_IS_SWAPPED | abi::PAGE_IS_WPALLOWED),
            // Kernels differ in whether what is not there is "written"; none calls it present, or swapped, which a marker is.
            Scan::Absent => (0, absent, absent | abi::PAGE_IS_WPALLOWED),
            // Poison is "swapped" too, and "written".
            Scan::Marked => {
                (0, abi::PAGE_IS_PRESENT | abi::PAGE_IS_WRITTEN, absent | abi::PAGE_IS_WRITTEN | abi::PAGE_IS_WPALLOWED)
            }
        };
        let mut regions = [abi::PageRegion::default(); REGIONS];
        let end = span.at().plus(span.bytes()).0 as u64;
        let mut start = span.at().0 as u64;
        while start < end {
            let mut argument = abi::PmScan {
                size: size_of::<abi::PmScan>() as u64,
                flags,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: REGIONS as u64,
                category_inverted: inverted,
                category_mask: mask,
                category_anyof_mask: if scan == Scan::TakeAll {
                    abi::PAGE_IS_PRESENT | abi::PAGE_IS_WRITTEN
                } else {
                    0
                },
                ..Default::default()
            };
            // SAFETY: `argument` is a valid pm_scan_arg, and it and `regions`, of the length that it says, outlive the call. What it
            // protects is a mapping's (`Span`).
            let found = unsafe { abi::pagemap_scan(self.pagemap.as_raw_fd(), &mut argument) }?;
            for region in regions.iter().take(found as usize) {
                each(Addr(region.start as usize), region.end - region.start);
            }
            if argument.walk_end <= start {
                return Err(Errno::EIO);
            }
            start = argument.walk_end;
        }
        Ok(())
    }
}

impl Userfault {
    /// The second userfaultfd, opened if there is none yet.
    pub(super) fn open_second(&self) -> Result<()> {
        if self.second.get().is_some() {
            return Ok(());
        }
        check_features(self.supported, &[abi::WP_ASYNC])?;
        let (uffd, _) = open::open(self.features | abi::WP_ASYNC.bit, !self.user_mode_only)?;
        let pagemap = File::open("/proc/self/pagemap").map_err(|error| Error::System {
            call: "open(/proc/self/pagemap)",
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        // Of two threads that open one, the loser's is closed: nothing is registered with it.
        let _ = self.second.set(Second { uffd, pagemap, ready: AtomicU8::new(0) });
        // The reader waits for the first alone still.
        self.kick();
        Ok(())
    }

    fn second(&self) -> Result<&Second, Errno> {
        self.second.get().ok_or(Errno::EBADF)
    }

    /// Reads what poll(2) has called readable. Who has not polled, or finds nothing there, learns of both.
    pub(super) fn read_either(&self, second: &Second, into: &mut Vec<Message>) -> Result<(), Errno> {
        let ready = second.ready.swap(0, Ordering::Relaxed);
        if ready == FIRST || ready == SECOND {
            let fd = if ready == FIRST { self.uffd_fd() } else { second.fd() };
            let before = into.len();
            self.read_from(fd, MESSAGES_PER_READ, into)?;
            if into.len() > before {
                return Ok(());
            }
        }
        // Half of the room for each: neither keeps the other waiting.
        self.read_from(self.uffd_fd(), MESSAGES_PER_READ / 2, into)?;
        self.read_from(second.fd(), MESSAGES_PER_READ / 2, into)
    }
}

impl Twin for Userfault {
    fn make_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.copy_zeros(self.second()?.uffd.as_raw_fd(), span, copy_mode(protection))
    }

    fn make_run_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.copy_zeros_run(self.second()?.uffd.as_raw_fd(), span, copy_mode(protection))
    }

    fn install_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        let fd = self.second()?.uffd.as_raw_fd();
        self.continue_(fd, span, continue_mode(protection))
    }

    fn install_run_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        let fd = self.second()?.uffd.as_raw_fd();
        self.continue_run(fd, span, continue_mode(protection))
    }

    fn scan_unnoticed(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        self.second()?.scan(scan, span, each)
    }
}
