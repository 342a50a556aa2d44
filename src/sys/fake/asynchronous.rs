//! Ranges that let stores through by themselves: the kernel's asynchronous write-protect.

use nix::errno::Errno;

use super::Shared;
use super::entries::Entry;
use super::space::Space;
use crate::sys::asynchronous::Twin;
use crate::sys::{Filled, Outcome, PageTable, Protection, Scan, Span};
use crate::units::Addr;

impl Space {
    /// Whether a store at an address gets through a write-protected entry by itself.
    pub(super) fn lets_stores_through(&self, at: usize) -> bool {
        self.rights(at).is_some_and(|rights| rights.unnoticed)
    }

    /// PAGEMAP_SCAN, page by page, of what lets stores through by itself.
    pub(super) fn scan(&mut self, scan: Scan, at: Addr, bytes: u64) -> Vec<Addr> {
        let mut found = Vec::new();
        for page in self.base.pages(at, bytes) {
            if !self.lets_stores_through(page) {
                continue;
            }
            let meant = match (scan, self.entries.get_mut(&page)) {
                (Scan::TakeWritten | Scan::TakeAll, Some(Entry::Present { protected, .. })) => {
                    !std::mem::replace(protected, true)
                }
                (Scan::TakeWritten, _) | (Scan::TakeAll, Some(Entry::Marker | Entry::Poison)) => false,
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

impl Twin for Shared {
    fn make_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.make_present(span, protection)
    }

    fn make_run_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.make_run_present(span, protection)
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
