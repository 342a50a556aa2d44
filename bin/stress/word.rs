//! The words that threads store: each says where it belongs, who stored it and when.

use std::fmt;

/// Bytes of a page that are looked at: its words at these offsets. The first and the last, pairs of
/// neighbours, and others between them.
pub(crate) const SLOT_OFFSETS: [u64; SLOTS] = [0, 8, 504, 1024, 2040, 2048, 3584, 4088];
pub(crate) const SLOTS: usize = 8;
pub(crate) const WORD: u64 = 8;

pub(crate) const FILES_MAX: usize = 15;
pub(crate) const PAGES_MAX: u64 = 1024;
pub(crate) const THREADS_MAX: usize = 64;
/// The file number in the words of files that come and go.
pub(crate) const CHURN: u8 = 15;

/// What a stored word says. Packed as, from the top: checksum 8 bits, file 4, page 10, slot 3, thread 6,
/// generation 9, sequence 24.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    pub(crate) file: u8,
    pub(crate) page: u16,
    pub(crate) slot: u8,
    pub(crate) thread: u8,
    /// How many invalidations of the page had begun when the word was made.
    pub(crate) generation: u16,
    /// The thread's own count of words. Never zero, so that no word is.
    pub(crate) sequence: u32,
}

fn checksum(low: u64) -> u64 {
    (low ^ 0x5bd1_e995_9d1b_54a5).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56
}

impl Origin {
    pub(crate) fn encode(self) -> u64 {
        let mut low = u64::from(self.file & 0xf);
        low = low << 10 | u64::from(self.page & 0x3ff);
        low = low << 3 | u64::from(self.slot & 0x7);
        low = low << 6 | u64::from(self.thread & 0x3f);
        low = low << 9 | u64::from(self.generation & 0x1ff);
        low = low << 24 | u64::from(self.sequence & 0xff_ffff);
        low | checksum(low) << 56
    }

    /// `None` for what no thread has ever stored: a torn word, or bytes from elsewhere.
    pub(crate) fn decode(word: u64) -> Option<Self> {
        let low = word & ((1 << 56) - 1);
        if checksum(low) != word >> 56 || low & 0xff_ffff == 0 {
            return None;
        }
        Some(Self {
            file: (low >> 52) as u8 & 0xf,
            page: (low >> 42) as u16 & 0x3ff,
            slot: (low >> 39) as u8 & 0x7,
            thread: (low >> 33) as u8 & 0x3f,
            generation: (low >> 24) as u16 & 0x1ff,
            sequence: low as u32 & 0xff_ffff,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, page, slot, thread, generation, sequence } = self;
        if *file == CHURN {
            write!(f, "a removed file's page {page} word {slot}")?;
        } else {
            write!(f, "file {file} page {page} word {slot}")?;
        }
        write!(f, ", thread {thread}, generation {generation}, store {sequence}")
    }
}

/// A word in the words of a report.
pub(crate) fn describe(word: u64) -> String {
    match (word, Origin::decode(word)) {
        (0, _) => "zero".to_owned(),
        (_, Some(origin)) => origin.to_string(),
        (_, None) => format!("{word:#018x}, which nobody has stored"),
    }
}

/// The index of each slot that lies wholly within `bytes` of a page.
pub(crate) fn slots_in(bytes: std::ops::Range<u64>) -> impl Iterator<Item = usize> {
    (0..SLOTS).filter(move |slot| SLOT_OFFSETS[*slot] >= bytes.start && SLOT_OFFSETS[*slot] + WORD <= bytes.end)
}

/// `offset`, or the start of the watched word that it would cut in two.
pub(crate) fn uncut(offset: u64, page_bytes: u64) -> u64 {
    let within = offset % page_bytes;
    let cut = SLOT_OFFSETS.iter().find(|slot| within > **slot && within < **slot + WORD);
    cut.map_or(offset, |slot| offset - within + slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_was_put_into_it() {
        let origin = Origin { file: 9, page: 1023, slot: 7, thread: 63, generation: 511, sequence: 0xab_cdef };
        assert_eq!(Origin::decode(origin.encode()), Some(origin));
        assert_eq!(Origin::decode(0), None);
    }

    #[test]
    fn half_of_one_word_and_half_of_another_is_none() {
        let word = |sequence| Origin { file: 1, page: 5, slot: 2, thread: 3, generation: 4, sequence }.encode();
        let torn = (1..=2000u32).filter(|n| {
            let (old, new) = (word(*n), word(n + 70_000));
            Origin::decode(old & 0xffff_ffff | new & !0xffff_ffff).is_some()
        });
        // The checksum has eight bits.
        assert!(torn.count() < 40);
    }

    #[test]
    fn an_offset_cuts_no_watched_word() {
        for offset in 0..8192 {
            let moved = uncut(offset, 4096);
            assert!(moved <= offset && offset - moved < WORD);
            assert!(SLOT_OFFSETS.iter().all(|slot| moved % 4096 <= *slot || moved % 4096 >= slot + WORD));
        }
    }
}
