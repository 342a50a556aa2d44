//! The fake address space: what each address points at, and the entries of its page table. Plain data.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::{BASE_PAGE, FakeEntry};
use crate::sync::{Arc, Ordering};
use crate::sys::memory::DeviceMemory;
use crate::sys::{FaultKind, Outcome};
use crate::units::Addr;

/// What an area points at: where its next entries come from.
#[derive(Clone)]
pub(super) enum Backing {
    /// Private anonymous memory.
    Zeros,
    /// The device, from this offset on.
    Device(Arc<DeviceMemory>, u64),
    /// The empty file: not registered, and every access ends in SIGBUS.
    Condemned,
}

impl Backing {
    fn plus(&self, bytes: u64) -> Self {
        match self {
            Backing::Device(memory, offset) => Backing::Device(memory.clone(), offset + bytes),
            Backing::Zeros | Backing::Condemned => self.clone(),
        }
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Backing::Device(memory, offset), Backing::Device(other, at)) => Arc::ptr_eq(memory, other) && offset == at,
            (Backing::Zeros, Backing::Zeros) | (Backing::Condemned, Backing::Condemned) => true,
            _ => false,
        }
    }
}

/// A VMA.
struct Area {
    bytes: u64,
    backing: Backing,
}

/// The page that an entry maps.
enum Page {
    /// The block itself, whatever the area points at by now.
    Device(Arc<DeviceMemory>, u64),
    /// An anonymous page, nobody else's. A store that gets through to it is lost, as it is on the kernel.
    Private(BTreeMap<usize, u64>),
}

/// A page-table entry, or a marker in its place.
enum Entry {
    Present { protected: bool, page: Page },
    Marker,
    Poison,
}

/// What the CPU does at an aligned word.
#[derive(Clone, Copy)]
pub(super) enum Op {
    Load,
    Store(u64),
    CompareExchange(u64, u64),
}

impl Op {
    pub(super) fn is_store(self) -> bool {
        // A failed exchange is a store to the page table all the same.
        !matches!(self, Op::Load)
    }
}

/// What came of a look at the page table.
pub(super) enum Look {
    /// The access is done; what was there before.
    Done(u64),
    /// Only the pager can say.
    Fault(FaultKind, Backing),
    Bus,
    Segv,
}

/// An answer to an ioctl, and how many bytes of its range it has done.
pub(super) type Answer = (Result<Outcome, Errno>, u64);

pub(super) struct Space {
    /// By first address. They never overlap.
    areas: BTreeMap<usize, Area>,
    /// By address of the base page.
    entries: BTreeMap<usize, Entry>,
    /// Ranges given back, to be handed out again as soon as possible: late installs should hit.
    given_back: Vec<(Addr, u64)>,
    next: usize,
}

/// Where the first reservation goes. Any huge-page border would do.
const FIRST: usize = 1 << 40;

impl Default for Space {
    fn default() -> Self {
        Self { areas: BTreeMap::new(), entries: BTreeMap::new(), given_back: Vec::new(), next: FIRST }
    }
}

fn is_whole(at: Addr, bytes: u64) -> bool {
    at.0.is_multiple_of(BASE_PAGE as usize) && bytes.is_multiple_of(BASE_PAGE) && bytes > 0
}

fn pages(at: Addr, bytes: u64) -> impl Iterator<Item = usize> {
    (at.0..at.plus(bytes).0).step_by(BASE_PAGE as usize)
}

fn page_of(at: usize) -> usize {
    Addr(at).align_down(BASE_PAGE).0
}

/// Areas.
impl Space {
    /// The area that holds `at`, and where it begins.
    fn area(&self, at: usize) -> Option<(usize, &Area)> {
        let (start, area) = self.areas.range(..=at).next_back()?;
        (((at - start) as u64) < area.bytes).then_some((*start, area))
    }

    /// What the page that holds `at` points at.
    pub(super) fn backing(&self, at: usize) -> Option<Backing> {
        let (start, area) = self.area(at)?;
        Some(area.backing.plus((page_of(at) - start) as u64))
    }

    /// What a range points at if the kernel would have it as one VMA: it merges what continues each other.
    fn one_area(&self, at: Addr, bytes: u64) -> Option<Backing> {
        let first = self.backing(at.0)?;
        let mut next = at.0;
        while next < at.plus(bytes).0 {
            let (start, area) = self.area(next)?;
            let expected = first.plus((next - at.0) as u64);
            if !self.backing(next)?.is(&expected) {
                return None;
            }
            next = start + area.bytes as usize;
        }
        Some(first)
    }

    pub(super) fn reserve(&mut self, bytes: u64, align: u64) -> Result<Addr, Errno> {
        if bytes == 0 || !bytes.is_multiple_of(BASE_PAGE) {
            return Err(Errno::EINVAL);
        }
        let fits = |at: Addr, size: u64| size == bytes && at.align_down(align) == at && self.is_free(at, bytes);
        let again = self.given_back.iter().rposition(|(at, size)| fits(*at, *size));
        let at = match again {
            Some(index) => self.given_back.remove(index).0,
            None => self.fresh(bytes, align)?,
        };
        self.areas.insert(at.0, Area { bytes, backing: Backing::Zeros });
        Ok(at)
    }

    fn fresh(&mut self, bytes: u64, align: u64) -> Result<Addr, Errno> {
        let at = self.next.checked_next_multiple_of(align as usize).ok_or(Errno::ENOMEM)?;
        // A page between ranges that nothing is mapped at: an access past the end is noticed.
        let end = at.checked_add(bytes as usize).and_then(|end| end.checked_add(BASE_PAGE as usize));
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
        let rest = Area { bytes: area.bytes - before, backing: area.backing.plus(before) };
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
    pub(super) fn replace(&mut self, at: Addr, bytes: u64, backing: Backing) {
        self.clear(at, bytes);
        self.areas.insert(at.0, Area { bytes, backing });
    }

    pub(super) fn unmap(&mut self, at: Addr, bytes: u64) {
        self.clear(at, bytes);
        self.given_back.push((at, bytes));
    }
}

/// Entries.
impl Space {
    pub(super) fn is_present(&self, at: usize) -> bool {
        matches!(self.entries.get(&page_of(at)), Some(Entry::Present { .. }))
    }

    pub(super) fn entries(&self) -> Vec<FakeEntry> {
        let present = |(addr, entry): (&usize, &Entry)| match entry {
            Entry::Present { protected, page } => {
                let device_offset = match page {
                    Page::Device(_, offset) => Some(*offset),
                    Page::Private(_) => None,
                };
                Some(FakeEntry { addr: *addr, device_offset, writable: !protected })
            }
            Entry::Marker | Entry::Poison => None,
        };
        self.entries.iter().filter_map(present).collect()
    }

    /// Accesses the word at `at`, if the page table lets it.
    pub(super) fn access(&mut self, at: usize, op: Op) -> Look {
        let Some(backing) = self.backing(at) else { return Look::Segv };
        let fault = match &backing {
            Backing::Zeros => FaultKind::Missing,
            Backing::Device(..) => FaultKind::Minor,
            Backing::Condemned => return Look::Bus,
        };
        match self.entries.get_mut(&page_of(at)) {
            Some(Entry::Poison) => Look::Bus,
            Some(Entry::Present { protected: true, .. }) if op.is_store() => {
                Look::Fault(FaultKind::WriteProtect, backing)
            }
            Some(Entry::Present { page, .. }) => Look::Done(page.perform(at - page_of(at), op)),
            Some(Entry::Marker) | None => Look::Fault(fault, backing),
        }
    }

    /// The kernel's last look before a thread falls asleep. It takes markers, and poison, for no entry.
    pub(super) fn must_wait(&self, at: usize, kind: FaultKind) -> bool {
        match self.entries.get(&page_of(at)) {
            Some(Entry::Present { protected, .. }) => kind == FaultKind::WriteProtect && *protected,
            Some(Entry::Marker | Entry::Poison) | None => true,
        }
    }

    /// Puts `entry` in every page of a range, up to the first that `taken` says is.
    fn fill(&mut self, at: Addr, bytes: u64, taken: fn(&Entry) -> bool, entry: impl Fn(u64) -> Entry) -> Answer {
        let mut done = 0;
        for page in pages(at, bytes) {
            if self.entries.get(&page).is_some_and(taken) {
                return (Ok(Outcome::AlreadyPresent), done);
            }
            self.entries.insert(page, entry(done));
            done += BASE_PAGE;
        }
        (Ok(Outcome::Installed), done)
    }

    /// UFFDIO_CONTINUE.
    pub(super) fn install(&mut self, at: Addr, bytes: u64, protected: bool) -> Answer {
        if !is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        let (memory, offset) = match self.one_area(at, bytes) {
            Some(Backing::Device(memory, offset)) => (memory, offset),
            Some(Backing::Zeros) => return (Err(Errno::EINVAL), 0),
            Some(Backing::Condemned) | None => return (Ok(Outcome::Gone), 0),
        };
        // Markers and poison are no guard: they are gone, and what they stood for is forgotten.
        let taken = |entry: &Entry| matches!(entry, Entry::Present { .. });
        self.fill(at, bytes, taken, |done| Entry::Present {
            protected,
            page: Page::Device(memory.clone(), offset + done),
        })
    }

    /// UFFDIO_COPY of a page of zeros, write-protected.
    pub(super) fn install_zeros(&mut self, at: Addr) -> Answer {
        if !is_whole(at, BASE_PAGE) {
            return (Err(Errno::EINVAL), 0);
        }
        match self.backing(at.0) {
            Some(Backing::Zeros) => {}
            // The page cache has a page there, always; it does not get mapped by that.
            Some(Backing::Device(..)) => return (Ok(Outcome::AlreadyPresent), 0),
            Some(Backing::Condemned) | None => return (Ok(Outcome::Gone), 0),
        }
        let taken = |entry: &Entry| matches!(entry, Entry::Present { .. });
        self.fill(at, BASE_PAGE, taken, |_| Entry::Present { protected: true, page: Page::Private(BTreeMap::new()) })
    }

    /// UFFDIO_POISON.
    pub(super) fn poison(&mut self, at: Addr, bytes: u64) -> Answer {
        if !is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        match self.one_area(at, bytes) {
            Some(Backing::Zeros | Backing::Device(..)) => self.fill(at, bytes, |_| true, |_| Entry::Poison),
            Some(Backing::Condemned) | None => (Ok(Outcome::Gone), 0),
        }
    }

    /// UFFDIO_WRITEPROTECT, on or off. Other than the installs it serves several VMAs at once.
    pub(super) fn write_protect(&mut self, at: Addr, bytes: u64, on: bool) -> Answer {
        if !is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        let mut outcome = Outcome::Gone;
        for page in pages(at, bytes) {
            match self.backing(page) {
                Some(backing @ (Backing::Zeros | Backing::Device(..))) => {
                    outcome = Outcome::Installed;
                    self.write_protect_page(page, matches!(backing, Backing::Device(..)), on);
                }
                Some(Backing::Condemned) => return (Ok(Outcome::Gone), 0),
                None => {}
            }
        }
        (Ok(outcome), if outcome == Outcome::Installed { bytes } else { 0 })
    }

    fn write_protect_page(&mut self, page: usize, device: bool, on: bool) {
        match (self.entries.get_mut(&page), on) {
            (Some(Entry::Present { protected, .. }), _) => *protected = on,
            (Some(Entry::Marker), false) => {
                self.entries.remove(&page);
            }
            (None, true) if device => {
                self.entries.insert(page, Entry::Marker);
            }
            (Some(Entry::Marker | Entry::Poison) | None, _) => {}
        }
    }

    /// MADV_DONTNEED. On a device, what was write-protected leaves a marker.
    pub(super) fn zap(&mut self, at: Addr, bytes: u64) {
        let there: Vec<usize> = self.entries.range(at.0..at.plus(bytes).0).map(|(page, _)| *page).collect();
        for page in there {
            let stays = match self.entries.remove(&page) {
                Some(Entry::Present { protected, page }) => protected && matches!(page, Page::Device(..)),
                Some(Entry::Marker) => true,
                Some(Entry::Poison) | None => false,
            };
            if stays {
                self.entries.insert(page, Entry::Marker);
            }
        }
    }
}

impl Page {
    /// Returns what was there before. The lock around the page table orders the accesses with zaps, as
    /// the TLB flush does; among each other they are as weak as the CPU's.
    fn perform(&mut self, offset: usize, op: Op) -> u64 {
        match self {
            Page::Device(memory, start) => {
                let word = memory.aligned_word(*start + offset as u64);
                match op {
                    Op::Load => word.load(Ordering::Relaxed),
                    Op::Store(value) => word.swap(value, Ordering::Relaxed),
                    Op::CompareExchange(expected, new) => {
                        match word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst) {
                            Ok(old) | Err(old) => old,
                        }
                    }
                }
            }
            Page::Private(words) => {
                let old = words.get(&offset).copied().unwrap_or(0);
                match op {
                    Op::Load => {}
                    Op::Store(value) => drop(words.insert(offset, value)),
                    Op::CompareExchange(expected, new) if old == expected => drop(words.insert(offset, new)),
                    Op::CompareExchange(..) => {}
                }
                old
            }
        }
    }
}
