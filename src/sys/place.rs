//! The proof that addresses may be accessed: who has it needs no `unsafe` to do so, and nobody can make one up. And the list of all of them,
//! which tells whether a buffer of the caller's lies in a mapping ([`may_be_missing`]).

use std::collections::BTreeMap;
use std::marker::PhantomData;

use nix::errno::Errno;

use super::fork::{Home, PerProcess};
use super::{PageTable, Rights};
use crate::error::Error;
use crate::sync::{Ordering, ProcessRwLock, Tally};
use crate::units::Addr;

/// The mappings of this process that can be accessed, of all its pagers. A forked child has none of its parent's, nor the lock.
static MAPPED: PerProcess<Mapped> = PerProcess::new(|| Mapped {
    begin: Tally::new(u64::MAX),
    end: Tally::new(0),
    numbers: Tally::new(0),
    ranges: ProcessRwLock::default(),
});

struct Mapped {
    /// What all that there have been lie within: most buffers do not.
    begin: Tally,
    end: Tally,
    /// For the next one.
    numbers: Tally,
    /// Their bytes, by where they begin and a number of their own: of two with the same address one is about to leave. A leaf, for the time of a look.
    ranges: ProcessRwLock<BTreeMap<(usize, u64), u64>>,
}

impl Mapped {
    fn enter(&self, at: Addr, bytes: u64) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.begin.fetch_min(at.0 as u64, Ordering::Relaxed);
        self.end.fetch_max(at.0 as u64 + bytes, Ordering::Relaxed);
        self.ranges.write().insert((at.0, number), bytes);
        number
    }

    /// Whether one of them has any of the bytes. Who has a buffer in a mapping has it from somebody who has mapped it: no order of
    /// these loads is needed besides.
    fn touches(&self, at: usize, bytes: usize) -> bool {
        let end = at + bytes;
        let near = (at as u64) < self.end.load(Ordering::Relaxed) && end as u64 > self.begin.load(Ordering::Relaxed);
        // They do not overlap, but for those about to leave: those are in front of no other for long.
        near && self.ranges.read().range(..(end, 0)).rev().take(2).any(|((start, _), len)| start + *len as usize > at)
    }
}

/// Whether any of a buffer lies in a mapping: then its bytes may not be there to be touched.
pub(super) fn may_be_missing(buffer: &[u8]) -> bool {
    MAPPED.get().is_some_and(|mapped| mapped.touches(buffer.as_ptr() as usize, buffer.len()))
}

/// An address range that a page table has reserved for a mapping. The mapping owns it, and gives the range back when it is dropped,
/// which nobody else does: as long as it is borrowed the addresses are the mapping's, if with nothing behind them.
#[derive(Debug)]
pub(crate) struct Place {
    at: Addr,
    bytes: u64,
    /// In which list it is, and under which number. `None` where the addresses are made up ([`super::fake`]).
    listed: Option<(Home, u64)>,
}

impl Place {
    /// Reserves a range. The only way to get one.
    pub(crate) fn reserve(table: &dyn PageTable, bytes: u64, align: u64, rights: Rights) -> Result<Self, Errno> {
        let at = table.reserve(bytes, align, rights)?;
        let enter = || {
            let home = Home::here()?;
            Ok::<_, Error>((home, MAPPED.get_or_make()?.enter(at, bytes)))
        };
        let listed = table.has_real_addresses().then(|| enter().expect("who reserves has a page table, and it a home"));
        Ok(Self { at, bytes, listed })
    }

    /// It is not listed any more. Before the addresses are given back: they may be another's at once.
    pub(crate) fn leave(&self) {
        // A child's list has other ranges, perhaps at the same addresses.
        if let Some((home, number)) = self.listed
            && home.is_here()
            && let Some(mapped) = MAPPED.get()
        {
            mapped.ranges.write().remove(&(self.at.0, number));
        }
    }

    pub(crate) fn at(&self) -> Addr {
        self.at
    }

    /// Breaks [`Rule::MadeUpAddresses`](crate::sabotage::Rule::MadeUpAddresses).
    #[cfg(feature = "sabotage")]
    pub(crate) fn take_for_real(&mut self) {
        // In no list: a number that none has.
        self.listed = Home::here().ok().map(|home| (home, u64::MAX));
    }

    /// Whether the addresses can be accessed at all.
    pub(crate) fn is_real(&self) -> bool {
        self.listed.is_some()
    }

    /// A part of it to be accessed. `None` outside, and where the addresses are made up.
    pub(crate) fn part(&self, offset: u64, bytes: u64) -> Option<Part<'_>> {
        let inside = self.is_real() && offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        inside.then(|| Part { at: self.at.0 + offset as usize, bytes: bytes as usize, _place: PhantomData })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A part of a mapping's addresses, while the mapping is borrowed. Its bytes are the application's to read and to change, and nothing in
/// Rust borrows them: [`Mapping`](crate::Mapping) gives out a pointer and no reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    at: usize,
    bytes: usize,
    _place: PhantomData<&'a Place>,
}

impl Part<'_> {
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its address if it is an aligned word.
    ///
    /// # Panics
    /// If it is not: a caller that has not looked.
    pub(super) fn word(&self) -> usize {
        assert!(self.bytes == 8 && self.at.is_multiple_of(8), "{self:?} is no aligned word");
        self.at
    }

    /// The same from its start, and no longer than `bytes`.
    pub(crate) fn at_most(self, bytes: usize) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(real: bool) -> Place {
        Place { at: Addr(4096), bytes: 8192, listed: real.then(|| (Home::here().unwrap(), u64::MAX)) }
    }

    #[test]
    fn a_buffer_in_a_mapping_is_found() {
        let mapped = Mapped {
            begin: Tally::new(u64::MAX),
            end: Tally::new(0),
            numbers: Tally::new(0),
            ranges: ProcessRwLock::default(),
        };
        assert!(!mapped.touches(0x1000, 8));
        let [first, _] = [0x1000, 0x9000].map(|at| mapped.enter(Addr(at), 0x2000));
        let touched = |at, bytes| mapped.touches(at, bytes);
        assert!(touched(0x1000, 1) && touched(0x2fff, 9) && touched(0, 0x1001) && touched(0, 0x9_0000));
        assert!(touched(0x8fff, 2) && touched(0xafff, 1) && !touched(0x3000, 0x6000) && !touched(0xb000, 8));
        // Another one at the same address, before the first has left.
        mapped.enter(Addr(0x1000), 0x2000);
        mapped.ranges.write().remove(&(0x1000, first));
        assert!(touched(0x2000, 8));
    }

    #[test]
    fn a_part_lies_inside() {
        let place = place(true);
        assert_eq!(place.part(8, 8).map(|part| (part.word(), part.at_most(3).bytes())), Some((4104, 3)));
        assert!(place.part(8192, 0).is_some() && place.part(8185, 8).is_none());
        assert!(place.part(u64::MAX, 8).is_none() && place.part(8, u64::MAX).is_none());
        assert!(self::place(false).part(0, 8).is_none());
    }

    #[test]
    #[should_panic(expected = "no aligned word")]
    fn a_word_is_aligned() {
        place(true).part(4, 8).unwrap().word();
    }
}
