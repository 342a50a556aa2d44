//! What has been advised of the parts of a mapping.

use crate::units::{PageIndex, PageRange};

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

    pub(crate) fn set(&mut self, range: PageRange, pattern: Option<Pattern>) {
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
