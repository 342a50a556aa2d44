//! The proof that addresses may be accessed: who has it needs no `unsafe` to do so, and nobody can make one up.

use std::marker::PhantomData;

use nix::errno::Errno;

use super::{PageTable, Rights};
use crate::units::Addr;

/// An address range that a page table has reserved for a mapping. The mapping owns it, and gives the range back when it is dropped,
/// which nobody else does: as long as it is borrowed the addresses are the mapping's, if with nothing behind them.
#[derive(Debug)]
pub(crate) struct Place {
    at: Addr,
    bytes: u64,
    /// The addresses are this process's, and not made up ([`super::fake`]).
    real: bool,
}

impl Place {
    /// Reserves a range. The only way to get one.
    pub(crate) fn reserve(table: &dyn PageTable, bytes: u64, align: u64, rights: Rights) -> Result<Self, Errno> {
        let at = table.reserve(bytes, align, rights)?;
        Ok(Self { at, bytes, real: table.has_real_addresses() })
    }

    pub(crate) fn at(&self) -> Addr {
        self.at
    }

    /// Breaks [`Rule::MadeUpAddresses`](crate::sabotage::Rule::MadeUpAddresses).
    #[cfg(feature = "sabotage")]
    pub(crate) fn take_for_real(&mut self) {
        self.real = true;
    }

    /// Whether the addresses can be accessed at all.
    pub(crate) fn is_real(&self) -> bool {
        self.real
    }

    /// A part of it to be accessed. `None` outside, and where the addresses are made up.
    pub(crate) fn part(&self, offset: u64, bytes: u64) -> Option<Part<'_>> {
        let inside = self.real && offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        inside.then(|| Part { at: self.at.0 + offset as usize, bytes: bytes as usize, _place: PhantomData })
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

    #[test]
    fn a_part_lies_inside() {
        let place = Place { at: Addr(4096), bytes: 8192, real: true };
        assert_eq!(place.part(8, 8).map(|part| (part.word(), part.at_most(3).bytes())), Some((4104, 3)));
        assert!(place.part(8192, 0).is_some() && place.part(8185, 8).is_none());
        assert!(place.part(u64::MAX, 8).is_none() && place.part(8, u64::MAX).is_none());
        assert!(Place { real: false, ..place }.part(0, 8).is_none());
    }

    #[test]
    #[should_panic(expected = "no aligned word")]
    fn a_word_is_aligned() {
        let place = Place { at: Addr(4096), bytes: 8192, real: true };
        place.part(4, 8).unwrap().word();
    }
}
