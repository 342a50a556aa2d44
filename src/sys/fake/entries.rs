//! The entries of the fake page table: what accesses find there, and what the ioctls make of them. Plain data.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::FakeEntry;
use super::space::{Backing, Space};
use crate::sync::{Arc, Ordering};
use crate::sys::memory::DeviceMemory;
use crate::sys::{FaultKind, Outcome, Present};
use crate::units::Addr;

/// The page that an entry maps.
pub(super) enum Page {
    /// The block itself, whatever the area points at by now.
    Device(Arc<DeviceMemory>, u64),
    /// An anonymous page, nobody else's. A store that gets through to it is lost, as it is on the kernel.
    Private(BTreeMap<usize, u64>),
}

/// A page-table entry, or a marker in its place.
pub(super) enum Entry {
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

impl Space {
    pub(super) fn is_present(&self, at: usize) -> bool {
        matches!(self.entries.get(&self.base.of(at)), Some(Entry::Present { .. }))
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
        // Before the kernel looks for an entry.
        if op.is_store() && self.rights(at).is_some_and(|rights| rights.read_only) {
            return Look::Segv;
        }
        let fault = match &backing {
            Backing::Zeros => FaultKind::Missing,
            Backing::Device(memory, offset, _) if !memory.is_there(*offset) => FaultKind::Missing,
            Backing::Device(..) => FaultKind::Minor,
            Backing::Revoked => return Look::Bus,
        };
        if let Backing::Device(memory, offset, Present::Installed | Present::Open) = &backing
            && fault == FaultKind::Minor
            && matches!(self.entries.get(&self.base.of(at)), Some(Entry::Marker) | None)
        {
            let protected = self.entries.contains_key(&self.base.of(at));
            let page = Page::Device(memory.clone(), *offset);
            self.entries.insert(self.base.of(at), Entry::Present { protected, page });
        }
        let is_noticed = !self.lets_stores_through(at);
        match self.entries.get_mut(&self.base.of(at)) {
            Some(Entry::Poison) => Look::Bus,
            Some(Entry::Present { protected: true, .. }) if op.is_store() && is_noticed => {
                Look::Fault(FaultKind::WriteProtect, backing)
            }
            Some(Entry::Present { page, protected }) => {
                *protected &= !op.is_store();
                Look::Done(page.perform(at - self.base.of(at), op))
            }
            Some(Entry::Marker) | None => Look::Fault(fault, backing),
        }
    }

    /// The kernel's last look before a thread falls asleep. It takes markers, and poison, for no entry.
    pub(super) fn must_wait(&self, at: usize, kind: FaultKind) -> bool {
        match self.entries.get(&self.base.of(at)) {
            Some(Entry::Present { protected, .. }) => kind == FaultKind::WriteProtect && *protected,
            Some(Entry::Marker | Entry::Poison) | None => true,
        }
    }

    /// Puts `entry` in every page of a range, up to the first that `taken` says is.
    fn fill(&mut self, at: Addr, bytes: u64, taken: fn(&Entry) -> bool, entry: impl Fn(u64) -> Entry) -> Answer {
        let mut done = 0;
        for page in self.base.pages(at, bytes) {
            if self.entries.get(&page).is_some_and(taken) {
                return (Ok(Outcome::AlreadyPresent), done);
            }
            self.entries.insert(page, entry(done));
            done += self.base.0;
        }
        (Ok(Outcome::Installed), done)
    }

    /// UFFDIO_CONTINUE.
    pub(super) fn install(&mut self, at: Addr, bytes: u64, protected: bool) -> Answer {
        if !self.base.is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        let (memory, offset) = match self.one_area(at, bytes) {
            Some(Backing::Device(_, _, Present::Open)) if protected => return (Err(Errno::EINVAL), 0),
            Some(Backing::Device(memory, offset, _)) => (memory, offset),
            Some(Backing::Zeros) => return (Err(Errno::EINVAL), 0),
            Some(Backing::Revoked) | None => return (Ok(Outcome::Gone), 0),
        };
        // Markers and poison are no guard: they are gone, and what they stood for is forgotten.
        let taken = |entry: &Entry| matches!(entry, Entry::Present { .. });
        let there = self.base.pages(Addr(offset as usize), bytes).take_while(|at| memory.is_there(*at as u64)).count();
        if there == 0 && !self.entries.get(&at.0).is_some_and(taken) {
            return (Err(Errno::EFAULT), 0);
        }
        let there = bytes.min(there.max(1) as u64 * self.base.0);
        let page = |done| Page::Device(memory.clone(), offset + done);
        match self.fill(at, there, taken, |done| Entry::Present { protected, page: page(done) }) {
            // The next is not there: as if it had an entry, to who looks at what is done.
            (Ok(Outcome::Installed), done) if done < bytes => (Ok(Outcome::AlreadyPresent), done),
            other => other,
        }
    }

    /// UFFDIO_COPY of a page of zeros.
    pub(super) fn install_zeros(&mut self, at: Addr, protected: bool) -> Answer {
        if !self.base.is_whole(at, self.base.0) {
            return (Err(Errno::EINVAL), 0);
        }
        match self.backing(at.0) {
            Some(Backing::Zeros) => {}
            Some(Backing::Device(_, _, Present::Open)) if protected => return (Err(Errno::EINVAL), 0),
            // The page cache gets a page there; one that it has does not get mapped by that.
            Some(Backing::Device(memory, offset, _)) => {
                if !memory.make_there(offset) {
                    return (Ok(Outcome::AlreadyPresent), 0);
                }
                let page = || Page::Device(memory.clone(), offset);
                return self.fill(at, self.base.0, |_| false, |_| Entry::Present { protected, page: page() });
            }
            Some(Backing::Revoked) | None => return (Ok(Outcome::Gone), 0),
        }
        let taken = |entry: &Entry| matches!(entry, Entry::Present { .. });
        self.fill(at, self.base.0, taken, |_| Entry::Present { protected, page: Page::Private(BTreeMap::new()) })
    }

    /// UFFDIO_POISON.
    pub(super) fn poison(&mut self, at: Addr, bytes: u64) -> Answer {
        if !self.base.is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        match self.one_area(at, bytes) {
            Some(Backing::Zeros | Backing::Device(..)) => self.fill(at, bytes, |_| true, |_| Entry::Poison),
            Some(Backing::Revoked) | None => (Ok(Outcome::Gone), 0),
        }
    }

    /// UFFDIO_WRITEPROTECT, on or off. Other than the installs it serves several VMAs at once.
    pub(super) fn write_protect(&mut self, at: Addr, bytes: u64, on: bool) -> Answer {
        if !self.base.is_whole(at, bytes) {
            return (Err(Errno::EINVAL), 0);
        }
        let mut outcome = Outcome::Gone;
        for page in self.base.pages(at, bytes) {
            match self.backing(page) {
                // Not registered for it.
                Some(Backing::Device(_, _, Present::Open)) => return (Ok(Outcome::Gone), 0),
                Some(backing @ (Backing::Zeros | Backing::Device(..))) => {
                    outcome = Outcome::Installed;
                    self.write_protect_page(page, matches!(backing, Backing::Device(..)), on);
                }
                Some(Backing::Revoked) => return (Ok(Outcome::Gone), 0),
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

    /// FALLOC_FL_PUNCH_HOLE of the pages that a range shows: the device has them no more. Poison stays where there is no page.
    pub(super) fn page_goes(&mut self, at: Addr, bytes: u64) {
        for page in self.base.pages(at, bytes) {
            if let Some(Backing::Device(memory, offset, _)) = self.backing(page) {
                memory.make_gone(offset);
            }
            if !matches!(self.entries.get(&page), Some(Entry::Poison)) {
                self.zap(Addr(page), self.base.0);
                // Where the kernel installs the page at the very moment of the punch it takes the marker as well: the worst is what
                // models get.
                if cfg!(feature = "shuttle") {
                    self.entries.remove(&page);
                }
            }
        }
    }

    /// A marker in every page, as UFFDIO_WRITEPROTECT leaves them in a range in which there is nothing.
    pub(super) fn mark(&mut self, at: Addr, bytes: u64) {
        self.base.pages(at, bytes).for_each(|page| _ = self.entries.insert(page, Entry::Marker));
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
