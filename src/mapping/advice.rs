//! What the embedder says beforehand: pages that are to be there, and how a range will be accessed.

use std::ops::Range;

use super::Mapping;
use crate::error::{Error, Result};
use crate::policy::Access;
use crate::resolve::populate::{Want, populate};
use crate::sync::RwLockWriteGuard;
use crate::units::{PageIndex, PageRange};

/// How a range of a mapping will be accessed. For [`Mapping::advise`]; as `MADV_...` of madvise(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Nothing is known: fault-around as the faults suggest.
    Normal,
    /// From its start to its end: each fault installs as much as [`MapOptions::fault_around`](crate::MapOptions::fault_around)
    /// allows, the first one too.
    Sequential,
    /// In no order: each fault installs one page.
    Random,
    /// Soon: the blocks that there are get installed for loads, now.
    WillNeed,
    /// Not soon: the entries of this mapping are taken away, now. The bytes and the dirty pages stay, other mappings too;
    /// the next access faults.
    DontNeed,
}

/// The advice that lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    Sequential,
    Random,
}

/// What has been advised of the parts of one mapping, in order; of most of it usually nothing. By range, since that
/// is what madvise(2) does: an index and its data in one file want different advice. Plain data: its lock is the map
/// of regions, as the kernel's is the mmap_lock, so a fault looks at it without a lock of its own.
#[derive(Default, Debug)]
pub(crate) struct Advised {
    parts: Vec<(PageRange, Pattern)>,
}

impl Advised {
    pub(crate) fn at(&self, page: PageIndex) -> Option<Pattern> {
        let after = self.parts.partition_point(|(range, _)| range.end <= page);
        self.parts.get(after).filter(|(range, _)| range.contains(page)).map(|(_, pattern)| *pattern)
    }

    fn set(&mut self, range: PageRange, pattern: Option<Pattern>) {
        let mut parts: Vec<(PageRange, Pattern)> = Vec::with_capacity(self.parts.len() + 2);
        let mut put = |part: PageRange, pattern| match parts.last_mut() {
            _ if part.is_empty() => {}
            Some((last, same)) if last.end == part.start && *same == pattern => last.end = part.end,
            _ => parts.push((part, pattern)),
        };
        let before = self.parts.iter().map(|(part, had)| (PageRange::new(part.start, part.end.min(range.start)), *had));
        before.for_each(|(part, had)| put(part, had));
        if let Some(pattern) = pattern {
            put(range, pattern);
        }
        let after = self.parts.iter().map(|(part, had)| (PageRange::new(part.start.max(range.end), part.end), *had));
        after.for_each(|(part, had)| put(part, had));
        self.parts = parts;
    }
}

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
            Advice::DontNeed if self.window.is_asynchronous() => {
                // Nothing is installed while it is found out what has been stored to.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_an_array(sets in proptest::collection::vec((0..60u64, 1..20u64, 0..3u64), 1..40)) {
            let mut advised = Advised::default();
            let mut model = [None; 80];
            for (start, pages, what) in sets {
                let pattern = [None, Some(Pattern::Sequential), Some(Pattern::Random)][what as usize];
                advised.set(PageRange::at(PageIndex(start), pages), pattern);
                model[start as usize..(start + pages) as usize].fill(pattern);
                for (page, expected) in model.iter().enumerate() {
                    prop_assert_eq!(advised.at(PageIndex(page as u64)), *expected);
                }
                let borders = (1..80).filter(|i| model[*i] != model[*i - 1] && model[*i].is_some()).count();
                prop_assert_eq!(advised.parts.len(), borders + usize::from(model[0].is_some()));
            }
        }
    }
}
