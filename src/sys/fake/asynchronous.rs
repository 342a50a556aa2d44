//! Ranges that let stores through by themselves: the kernel's asynchronous write-protect.

use nix::errno::Errno;

use super::Shared;
use super::entries::Entry;
use super::space::{Backing, Space};
use crate::sync::Arc;
use crate::sys::asynchronous::Twin;
use crate::sys::memory::DeviceMemory;
use crate::sys::{Filled, Outcome, PageTable, Present, Protection, Rights, Scan, Span};
use crate::units::Addr;

/// How a range that shows the device is watched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Every access that finds no entry is a fault, and every store through one that is write-protected.
    Device,
    /// Such a store makes the entry writable, and nobody is asked.
    DeviceUnnoticed,
    /// What the device has is put there by the kernel: write-protected where there is a marker, and nobody is asked.
    DeviceArmed,
    /// The same, and such a store makes the entry writable.
    DeviceArmedUnnoticed,
    /// The same, and every store is let through.
    DeviceOpen,
}

impl Watched {
    /// A range in which pages that the device has are installed so.
    pub(super) fn of(present: Present) -> Self {
        match present {
            Present::Told => Watched::Device,
            Present::Installed => Watched::DeviceArmed,
            Present::Open => Watched::DeviceOpen,
        }
    }

    /// The same, of an asynchronous mapping.
    fn unnoticed(present: Present) -> Self {
        match present {
            Present::Told => Watched::DeviceUnnoticed,
            Present::Installed => Watched::DeviceArmedUnnoticed,
            Present::Open => Watched::DeviceOpen,
        }
    }

    pub(super) fn is_armed(self) -> bool {
        matches!(self, Watched::DeviceArmed | Watched::DeviceArmedUnnoticed)
    }
}

impl Backing {
    pub(super) fn lets_stores_through(&self) -> bool {
        matches!(self, Backing::Device(_, _, Watched::DeviceUnnoticed | Watched::DeviceArmedUnnoticed))
    }
}

impl Space {
    /// PAGEMAP_SCAN, page by page, of what lets stores through by itself.
    pub(super) fn scan(&mut self, scan: Scan, at: Addr, bytes: u64) -> Vec<Addr> {
        let mut found = Vec::new();
        for page in self.base.pages(at, bytes) {
            if !self.backing(page).is_some_and(|backing| backing.lets_stores_through()) {
                continue;
            }
            let meant = match (scan, self.entries.get_mut(&page)) {
                (Scan::TakeWritten, Some(Entry::Present { protected, .. })) => !std::mem::replace(protected, true),
                (Scan::TakeWritten, _) => false,
                (Scan::TakeAll, Some(Entry::Present { protected, .. })) => !std::mem::replace(protected, true),
                (Scan::TakeAll, Some(Entry::Marker | Entry::Poison)) => false,
                (Scan::TakeAll, None) => {
                    self.entries.insert(page, Entry::Marker);
                    true
                }
                (Scan::Absent, entry) => entry.is_none(),
                (Scan::Marked, entry) => matches!(entry, Some(Entry::Marker)),
            };
            if meant {
                found.push(Addr(page));
            }
        }
        found
    }
}

impl Shared {
    pub(super) fn point_within(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        (watched, rights): (Watched, Rights),
    ) -> Result<(), Errno> {
        if offset.checked_add(span.bytes()).is_none_or(|end| end > device.len_bytes()) {
            return Err(Errno::EFAULT);
        }
        self.point(span.at(), span.bytes(), Backing::Device(device.clone(), offset, watched), rights);
        Ok(())
    }
}

impl Twin for Shared {
    fn point_at_device_unnoticed(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        self.point_within(span, device, offset, (Watched::DeviceUnnoticed, rights))
    }

    fn show_unnoticed(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        let backing = Backing::Device(device.clone(), offset, Watched::unnoticed(present));
        self.state.lock().space.replace(span.at(), span.bytes(), backing, rights);
        Ok(())
    }

    fn point_in_place_unnoticed(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        let backing = Backing::Device(device.clone(), offset, Watched::unnoticed(present));
        self.point(span.at(), span.bytes(), backing, rights);
        Ok(())
    }

    fn make_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.make_present(span, protection)
    }

    fn install_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.install(span, protection)
    }

    fn install_run_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.install_run(span, protection)
    }

    fn scan_unnoticed(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        let found = self.state.lock().space.scan(scan, span.at(), span.bytes());
        found.into_iter().for_each(|page| each(page, self.base_page));
        Ok(())
    }
}
