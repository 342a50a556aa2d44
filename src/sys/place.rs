//! The proof that addresses are a mapping's: who has it needs no `unsafe` to access them or to have their page table changed, and nobody
//! can make one up. And the list of all of them, which tells whether a buffer of the caller's lies in a mapping ([`may_be_missing`]).

use std::collections::BTreeMap;
use std::marker::PhantomData;

use nix::errno::Errno;

use super::fork::{Home, PerProcess};
use super::{PageTable, Rights};
use crate::error::Error;
use crate::sync::{Arc, Mutex, Ordering, ProcessRwLock, Tally};
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
pub(crate) fn may_be_missing(buffer: &[u8]) -> bool {
    MAPPED.get().is_some_and(|mapped| mapped.touches(buffer.as_ptr() as usize, buffer.len()))
}

/// An address range that a page table has reserved for a mapping. It is given back by who has this alone ([`Place::give_back`], or a drop): as long as
/// it is borrowed the addresses are the mapping's, if with nothing behind them. It is owned by the `Window`, which the mapping has, its
/// file and its pager as long as it can be faulted on, and whoever serves a fault of it.
pub(crate) struct Place {
    table: Arc<dyn PageTable>,
    at: Addr,
    bytes: u64,
    /// In which list it is, and under which number. `None` where the addresses are made up ([`super::fake`]).
    listed: Option<(Home, u64)>,
    /// The parts that are not ours any more: the application, or the kernel, has unmapped them. Nothing is done to
    /// them, and they are not given back. Changed by `Core::give_up` with `regions` held exclusively. A leaf, for the
    /// time of a copy.
    foreign: Mutex<Vec<(Addr, u64)>>,
}

impl Place {
    /// Reserves a range. The only way to get one.
    pub(crate) fn reserve(table: &Arc<dyn PageTable>, bytes: u64, align: u64, rights: Rights) -> Result<Self, Errno> {
        let at = table.reserve(bytes, align, rights)?;
        let enter = || {
            let home = Home::here()?;
            Ok::<_, Error>((home, MAPPED.get_or_make()?.enter(at, bytes)))
        };
        let listed = table.has_real_addresses().then(|| enter().expect("who reserves has a page table, and it a home"));
        Ok(Self { table: table.clone(), at, bytes, listed, foreign: Mutex::default() })
    }

    /// It is not listed any more. Before the addresses are given back: they may be another's at once.
    fn leave(&self) {
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

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What of `bytes` from `at` on lies in it.
    pub(crate) fn span(&self, at: Addr, bytes: u64) -> Span<'_> {
        let end = self.at.plus(self.bytes);
        let from = at.clamp(self.at, end);
        let bytes = bytes.saturating_sub(from.0.saturating_sub(at.0) as u64).min(end.since(from));
        Span { at: from, bytes, _place: PhantomData }
    }

    /// A part is not ours any more.
    pub(crate) fn set_foreign(&self, at: Addr, bytes: u64) {
        self.foreign.lock().push((at, bytes));
    }

    /// The parts that are ours, by address.
    pub(crate) fn own_parts(&self) -> Vec<Span<'_>> {
        let mut foreign = self.foreign.lock().clone();
        foreign.sort_unstable();
        let end = self.at.plus(self.bytes);
        let mut parts = Vec::with_capacity(foreign.len() + 1);
        let mut at = self.at;
        for (start, bytes) in foreign {
            if at < start {
                parts.push(self.span(at, start.since(at)));
            }
            at = at.max(start.plus(bytes));
        }
        if at < end {
            parts.push(self.span(at, end.since(at)));
        }
        parts
    }

    /// Gives it back. Nobody has a part of it, or will: who asks has it alone.
    pub(crate) fn give_back(&mut self) {
        self.leave();
        self.own_parts().into_iter().for_each(|part| self.table.unmap(Last(part)));
        self.set_foreign(self.at, self.bytes);
    }

    /// Gives a part of it back while others may be at work on it, which is what nobody may do: for rules that are broken on purpose.
    /// Without the feature it does nothing.
    pub(crate) fn give_back_too_early(&self, part: Span<'_>) {
        if cfg!(feature = "sabotage") {
            self.table.unmap(Last(part));
            self.set_foreign(part.at, part.bytes);
        }
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
        // In a child there is nothing of it at its addresses.
        if self.listed.is_some_and(|(home, _)| !home.is_here()) {
            return;
        }
        self.give_back();
    }
}

/// A part of a place, for its page table: the addresses stay the mapping's as long as it is there. Nothing in Rust borrows what is there
/// ([`Mapping`](crate::Mapping) gives out a pointer and no reference), so entries may come and go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span<'a> {
    at: Addr,
    bytes: u64,
    _place: PhantomData<&'a Place>,
}

impl<'a> Span<'a> {
    /// # Safety
    /// The range was mapped by a page table, for a mapping or for itself, and is not given back while the span is there; or
    /// the kernel is only asked about it.
    pub(super) unsafe fn of(at: Addr, bytes: u64) -> Span<'a> {
        Span { at, bytes, _place: PhantomData }
    }

    /// Any range, for the tests of a page table.
    #[cfg(test)]
    pub(crate) fn made_up(at: Addr, bytes: u64) -> Span<'a> {
        Span { at, bytes, _place: PhantomData }
    }

    pub(crate) fn at(self) -> Addr {
        self.at
    }

    pub(crate) fn bytes(self) -> u64 {
        self.bytes
    }

    /// The same from its start, and no longer than `bytes`.
    pub(crate) fn at_most(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }
}

/// A part of a place that is being dropped: nobody else has its addresses, nor will.
#[derive(Debug)]
pub(crate) struct Last<'a>(Span<'a>);

impl Last<'_> {
    /// Any range, for the tests of a page table.
    #[cfg(test)]
    pub(crate) fn made_up(at: Addr, bytes: u64) -> Self {
        Self(Span::made_up(at, bytes))
    }

    pub(super) fn range(&self) -> (Addr, u64) {
        (self.0.at, self.0.bytes)
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

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;

    /// Its page table is a fake one, which has nothing at its addresses.
    fn place(real: bool) -> Place {
        let listed = real.then(|| (Home::here().unwrap(), u64::MAX));
        let (table, foreign) = (crate::sys::fake::FakePageTable::new().table(), Mutex::default());
        Place { table, at: Addr(4096), bytes: 8192, listed, foreign }
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
    fn a_span_is_cut_to_what_lies_inside() {
        let place = place(false);
        let span = |at, bytes| (place.span(Addr(at), bytes).at().0, place.span(Addr(at), bytes).bytes());
        assert_eq!((span(4096, 8192), span(8192, 4096)), ((4096, 8192), (8192, 4096)));
        assert_eq!((span(0, 8192), span(0, 64)), ((4096, 4096), (4096, 0)));
        assert_eq!((span(8192, u64::MAX), span(16384, 8)), ((8192, 4096), (12288, 0)));
        place.set_foreign(Addr(8192), 4096);
        assert_eq!(place.own_parts(), [place.span(Addr(4096), 4096)]);
        place.set_foreign(Addr(4096), 64);
        assert_eq!(place.own_parts(), [place.span(Addr(4160), 4032)]);
    }

    #[test]
    #[should_panic(expected = "no aligned word")]
    fn a_word_is_aligned() {
        place(true).part(4, 8).unwrap().word();
    }
}
