//! The fake address space: what each address points at. Plain data, and with it the entries of its page table.

use std::collections::BTreeMap;

use nix::errno::Errno;

#[cfg(feature = "shuttle")]
use super::FakeEntry;
use super::entries::Entry;
use crate::sync::Arc;
use crate::sys::memory::DeviceMemory;
use crate::sys::{Present, Rights};
use crate::units::Addr;

/// What an area points at: where its next entries come from.
#[derive(Clone)]
pub(super) enum Backing {
    /// Private anonymous memory.
    Zeros,
    /// The device, from this offset on, and who installs what it has.
    Device(Arc<DeviceMemory>, u64, Present),
    /// The empty file: not registered, and every access ends in SIGBUS.
    Revoked,
}

impl Backing {
    fn plus(&self, bytes: u64) -> Self {
        match self {
            Backing::Device(memory, offset, present) => Backing::Device(memory.clone(), offset + bytes, *present),
            Backing::Zeros | Backing::Revoked => self.clone(),
        }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Backing::Device(memory, offset, present), Backing::Device(other, at, others)) => {
                Arc::ptr_eq(memory, other) && (offset, present) == (at, others)
            }
            (Backing::Zeros, Backing::Zeros) | (Backing::Revoked, Backing::Revoked) => true,
            _ => false,
        }
    }
}

/// A VMA.
struct Area {
    bytes: u64,
    backing: Backing,
    rights: Rights,
    /// The application has moved it here.
    moved: bool,
}

pub(super) struct Space {
    pub(super) base: BasePage,
    /// By first address. They never overlap.
    areas: BTreeMap<usize, Area>,
    /// By address of the base page.
    pub(super) entries: BTreeMap<usize, Entry>,
    /// Ranges given back, to be handed out again as soon as possible: late installs should hit.
    given_back: Vec<(Addr, u64)>,
    next: usize,
}

/// Where the first reservation goes. Any huge-page border would do.
pub(super) const FIRST: usize = 1 << 40;

/// The size of a base page in bytes.
#[derive(Clone, Copy)]
pub(super) struct BasePage(pub(super) u64);

impl BasePage {
    pub(super) fn is_whole(self, at: Addr, bytes: u64) -> bool {
        at.0.is_multiple_of(self.0 as usize) && bytes.is_multiple_of(self.0) && bytes > 0
    }

    pub(super) fn pages(self, at: Addr, bytes: u64) -> impl Iterator<Item = usize> {
        (at.0..at.plus(bytes).0).step_by(self.0 as usize)
    }

    pub(super) fn of(self, at: usize) -> usize {
        Addr(at).align_down(self.0).0
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new(FIRST, BasePage(super::BASE_PAGE))
    }
}

impl Space {
    /// With the first reservation at `next`.
    pub(super) fn new(next: usize, base: BasePage) -> Self {
        Self { base, areas: BTreeMap::new(), entries: BTreeMap::new(), given_back: Vec::new(), next }
    }

    /// The area that holds `at`, and where it begins.
    fn area(&self, at: usize) -> Option<(usize, &Area)> {
        let (start, area) = self.areas.range(..=at).next_back()?;
        (((at - start) as u64) < area.bytes).then_some((*start, area))
    }

    /// Whether all of a range is mapped, and not revoked.
    pub(super) fn is_mapped(&self, at: Addr, bytes: u64) -> bool {
        self.base.pages(at, bytes).all(|page| !matches!(self.backing(page), Some(Backing::Revoked) | None))
    }

    /// What the page that holds `at` points at.
    pub(super) fn backing(&self, at: usize) -> Option<Backing> {
        let (start, area) = self.area(at)?;
        Some(area.backing.plus((self.base.of(at) - start) as u64))
    }

    /// What the page that holds `at` allows.
    pub(super) fn rights(&self, at: usize) -> Option<Rights> {
        self.area(at).map(|(_, area)| area.rights)
    }

    /// What a range points at if the kernel would have it as one VMA: it merges what continues each other.
    pub(super) fn one_area(&self, at: Addr, bytes: u64) -> Option<Backing> {
        let first = self.backing(at.0)?;
        let mut next = at.0;
        while next < at.plus(bytes).0 {
            let (start, area) = self.area(next)?;
            let expected = first.plus((next - at.0) as u64);
            if !self.backing(next)?.is(&expected) || self.rights(next) != self.rights(at.0) {
                return None;
            }
            next = start + area.bytes as usize;
        }
        Some(first)
    }

    pub(super) fn reserve(&mut self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno> {
        if bytes == 0 || !bytes.is_multiple_of(self.base.0) {
            return Err(Errno::EINVAL);
        }
        let fits = |at: Addr, size: u64| size == bytes && at.align_down(align) == at && self.is_free(at, bytes);
        let again = self.given_back.iter().rposition(|(at, size)| fits(*at, *size));
        let at = match again {
            Some(index) => self.given_back.remove(index).0,
            None => self.fresh(bytes, align)?,
        };
        self.areas.insert(at.0, Area { bytes, backing: Backing::Zeros, rights, moved: false });
        Ok(at)
    }

    fn fresh(&mut self, bytes: u64, align: u64) -> Result<Addr, Errno> {
        let at = self.next.checked_next_multiple_of(align as usize).ok_or(Errno::ENOMEM)?;
        // A page between ranges that nothing is mapped at: an access past the end is noticed.
        let end = at.checked_add(bytes as usize).and_then(|end| end.checked_add(self.base.0 as usize));
        self.next = end.ok_or(Errno::ENOMEM)?;
        Ok(Addr(at))
    }

    fn is_free(&self, at: Addr, bytes: u64) -> bool {
        self.area(at.0).is_none() && self.areas.range(at.0..at.plus(bytes).0).next().is_none()
    }

    fn split(&mut self, at: usize) {
        let Some((start, area)) = self.area(at) else { return };
        if start == at {
            return;
        }
        let before = (at - start) as u64;
        let (rights, moved) = (area.rights, area.moved);
        let rest = Area { bytes: area.bytes - before, backing: area.backing.plus(before), rights, moved };
        self.areas.insert(at, rest);
        if let Some(area) = self.areas.get_mut(&start) {
            area.bytes = before;
        }
    }

    fn clear(&mut self, at: Addr, bytes: u64) {
        let end = at.plus(bytes).0;
        self.split(at.0);
        self.split(end);
        let inner: Vec<usize> = self.areas.range(at.0..end).map(|(start, _)| *start).collect();
        for start in inner {
            self.areas.remove(&start);
        }
        let gone: Vec<usize> = self.entries.range(at.0..end).map(|(page, _)| *page).collect();
        for page in gone {
            self.entries.remove(&page);
        }
    }

    /// Puts another area in the place of what is there, with no entry.
    pub(super) fn replace(&mut self, at: Addr, bytes: u64, backing: Backing, rights: Rights) {
        self.clear(at, bytes);
        self.areas.insert(at.0, Area { bytes, backing, rights, moved: false });
    }

    /// UFFDIO_REGISTER with minor faults as well, where there were none. The entries stay.
    pub(super) fn be_told(&mut self, at: Addr, bytes: u64) -> Result<(), Errno> {
        if !self.base.pages(at, bytes).all(|page| matches!(self.backing(page), Some(Backing::Device(..)))) {
            return Err(Errno::EINVAL);
        }
        let end = at.plus(bytes).0;
        self.split(at.0);
        self.split(end);
        for (_, area) in self.areas.range_mut(at.0..end) {
            if let Backing::Device(_, _, present) = &mut area.backing {
                *present = Present::Told;
            }
        }
        Ok(())
    }

    /// Areas and entries go elsewhere, and nothing stays behind. None if there is a gap in the range.
    pub(super) fn move_away(&mut self, at: Addr, bytes: u64) -> Option<Addr> {
        if !self.base.is_whole(at, bytes) || self.base.pages(at, bytes).any(|page| self.area(page).is_none()) {
            return None;
        }
        let to = self.fresh(bytes, self.base.0).ok()?;
        let end = at.plus(bytes).0;
        self.split(at.0);
        self.split(end);
        let starts: Vec<usize> = self.areas.range(at.0..end).map(|(start, _)| *start).collect();
        for start in starts {
            let area = self.areas.remove(&start).map(|area| Area { moved: true, ..area });
            self.areas.extend(area.map(|area| (start - at.0 + to.0, area)));
        }
        for page in self.base.pages(at, bytes) {
            let entry = self.entries.remove(&page);
            self.entries.extend(entry.map(|entry| (page - at.0 + to.0, entry)));
        }
        self.given_back.push((at, bytes));
        Some(to)
    }

    #[cfg(feature = "shuttle")]
    pub(super) fn entries_in_place(&self) -> Vec<FakeEntry> {
        let mut entries = self.entries();
        entries.retain(|entry| self.area(entry.addr).is_none_or(|(_, area)| !area.moved));
        entries
    }

    pub(super) fn unmap(&mut self, at: Addr, bytes: u64) {
        self.clear(at, bytes);
        self.given_back.push((at, bytes));
    }
}
