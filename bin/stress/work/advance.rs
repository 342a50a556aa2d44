//! What is said beforehand: pages that are to be there, and how they will be accessed.

use daxpager::{Access as Kind, Advice, Error};

use super::Hand;
use crate::op::Op;
use crate::oracle::Access;
use crate::oracle::trace::End;
use crate::world::Mapped;

/// Pages that are populated, or advised about, at once: most of the time a few, and all that follow now and then.
const PAGES: u64 = 12;
const ADVICE: [Advice; 5] = [Advice::Normal, Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed];

impl Hand {
    /// Some pages of the file, from one on.
    fn pages_from(&mut self, mapped: &Mapped, page: u64) -> std::ops::Range<u64> {
        let left = mapped.first_page + mapped.pages - page;
        let most = if self.rng.u32(0..8) == 0 { left } else { left.min(PAGES) };
        page..page + self.rng.u64(1..=most)
    }

    /// Bytes of the mapping that touch all of some pages, and no other.
    fn bytes_touching(&mut self, mapped: &Mapped, pages: &std::ops::Range<u64>) -> std::ops::Range<u64> {
        let size = self.page_bytes();
        let (first, last) = (self.offset(mapped, pages.start), self.offset(mapped, pages.end - 1));
        match first == last || self.rng.bool() {
            true => first..last + size,
            false => first + self.rng.u64(0..size)..last + self.rng.u64(1..=size),
        }
    }

    /// Has pages put in place, for loads or for stores: once that has been done each page was in the file meanwhile,
    /// and those for stores are dirty.
    pub(super) fn populate(&mut self, mapped: &Mapped, page: u64) {
        let pages = self.pages_from(mapped, page);
        let bytes = self.bytes_touching(mapped, &pages);
        let stores = self.rng.bool();
        let kind = if stores { Kind::Store } else { Kind::Load };
        let access = self.access_to(Op::Populate, mapped, page, 0);
        if stores {
            mapped.dirty.attempt(pages.clone());
        }
        let begin = self.begin(&access);
        let populated = mapped.mapping.populate(bytes, kind);
        let span = self.end(&access, begin, populated.is_err());
        if stores {
            mapped.dirty.attempted(pages.clone(), span.1);
        }
        match populated {
            Ok(()) => {
                for page in pages {
                    let access = self.moved(&access, mapped, page, 0);
                    self.note(&access, span, None, None, End::Done);
                    self.oracle.present(&access, span);
                    if stores {
                        mapped.dirty.stored(&self.oracle, &access, span);
                    }
                }
            }
            Err(error) => self.not_populated(&access, &error, mapped, span),
        }
        self.leave();
    }

    fn not_populated(&self, access: &Access, error: &Error, mapped: &Mapped, span: (u64, u64)) {
        self.note(access, span, None, None, End::Refused);
        self.refused(access, error, mapped, span, false);
    }

    /// Says how pages will be accessed, which is never refused.
    pub(super) fn advise(&mut self, mapped: &Mapped, page: u64) {
        let pages = self.pages_from(mapped, page);
        let bytes = self.bytes_touching(mapped, &pages);
        let advice = ADVICE[self.rng.usize(0..ADVICE.len())];
        let access = self.access_to(Op::Advise, mapped, page, 0);
        let begin = self.begin(&access);
        let advised = mapped.mapping.advise(bytes, advice);
        let span = self.end(&access, begin, advised.is_err());
        match advised {
            Ok(()) => self.note(&access, span, None, None, End::Done),
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
    }
}
