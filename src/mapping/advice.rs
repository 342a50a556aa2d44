//! What the embedder says beforehand: pages that are to be there, and how a range will be accessed.

use std::ops::Range;

use super::Mapping;
use crate::address::advised::Pattern;
use crate::error::{Error, Result};
use crate::options::Advice;
use crate::policy::Access;
use crate::resolve::populate::{Want, populate};
use crate::sync::RwLockWriteGuard;
use crate::units::PageRange;

/// Pages in advance.
impl Mapping {
    /// The pages that a range of the mapping touches, in bytes from its start.
    fn pages_of(&self, range: &Range<u64>) -> Result<PageRange> {
        let len = range.end.saturating_sub(range.start);
        Ok(self.inode.page().touched(&self.file_range(range.start, len)?))
    }

    /// Installs now what loads, or stores, of every page of a range of the mapping (in bytes from its start) would: in long runs
    /// and without a fault. For stores that is as if each page had been stored to: holes get blocks, and the pages are dirty.
    /// As `MADV_POPULATE_READ` and `MADV_POPULATE_WRITE`. A punch, a truncate or [`Mapping::take_dirty`] may take
    /// any of it away again at once. An empty range is no error.
    ///
    /// Waits for changes of the file that are being published and, where addresses have to be pointed elsewhere, for the pager's reader.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`], and [`Error::ReadOnlyMapping`] for stores; then nothing is done. After the pages before it have been installed: [`Error::PastEnd`],
    /// [`Error::NoSpace`], [`Error::DeviceMemory`]; [`Error::PagerGone`]; [`Error::MappingLost`];
    /// [`Error::System`] when the kernel has no memory for entries, or the application has unmapped a part.
    pub fn populate(&self, range: Range<u64>, access: Access) -> Result<()> {
        let pages = self.pages_of(&range)?;
        if access == Access::Store {
            self.check_writable(range.start, range.end.saturating_sub(range.start))?;
        }
        populate(&self.core, &self.inode, &self.window, pages, Want::Like(access))
    }

    /// Says how a range of the mapping (in bytes from its start) will be accessed: every page that it touches. As madvise(2);
    /// see [`Advice`]. Sequential and random access may be advised for each range anew, and last until normal access is. It changes what is
    /// faster, and never what is read or written.
    ///
    /// [`Advice::WillNeed`] waits as [`Mapping::populate`] does; it skips holes, and ends at the end of the file and
    /// where the kernel has no memory, without an error. All others wait for faults that are being answered, and no longer.
    ///
    /// # Errors
    /// [`Error::OutsideMapping`]; [`Error::PagerGone`]; [`Error::MappingLost`].
    pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        let pages = self.pages_of(&range)?;
        match advice {
            Advice::Normal => self.set_pattern(pages, None),
            Advice::Sequential => self.set_pattern(pages, Some(Pattern::Sequential)),
            Advice::Random => self.set_pattern(pages, Some(Pattern::Random)),
            Advice::WillNeed => match populate(&self.core, &self.inode, &self.window, pages, Want::Resident) {
                Err(error @ (Error::PagerGone { .. } | Error::MappingLost { .. })) => Err(error),
                Ok(()) | Err(_) => Ok(()),
            },
            Advice::DontNeed if self.window.is_asynchronous() || self.window.has_poison() => {
                // Nothing is installed while it is found out what has been stored to, or before what had been poisoned is armed.
                let change = self.inode.space.change();
                let alive = self.window.is_alive();
                if alive {
                    self.window.zap(pages);
                }
                change.commit(&self.inode.store);
                if alive { Ok(()) } else { Err(self.core.gone()) }
            }
            Advice::DontNeed => {
                // Shared, as for an install: the range is ours as long as the window is in its file.
                let _shared = self.inode.space.shared();
                if !self.window.is_alive() {
                    return Err(self.core.gone());
                }
                self.window.zap(pages);
                Ok(())
            }
        }
    }

    fn set_pattern(&self, pages: PageRange, pattern: Option<Pattern>) -> Result<()> {
        let mut regions = self.core.regions.write();
        let region = regions.of(&self.window).ok_or_else(|| self.core.gone())?;
        if !pages.is_empty() {
            region.advised.set(pages, pattern);
        }
        RwLockWriteGuard::unlock_fair(regions);
        Ok(())
    }
}
