//! The mappings of a file, by what they show: a change is of interest to those that show a part of it, and costs nothing for the others.

use std::collections::BTreeMap;

use super::Window;
use crate::sync::Arc;
use crate::units::PageRange;

/// See the module. Windows of about one length lie in order of where they begin: those that reach into a range begin in it, or not farther
/// before it than the longest of them is long.
#[derive(Clone, Default)]
pub(super) struct Shown(BTreeMap<Key, Arc<Window>>);

/// The power of two that is no less than a window's pages; where it begins; which it is.
type Key = (u32, u64, usize);

fn key(window: &Arc<Window>) -> Key {
    let pages = window.pages();
    (pages.pages().max(1).next_power_of_two().ilog2(), pages.start.0, Arc::as_ptr(window) as usize)
}

impl Shown {
    pub(super) fn insert(&mut self, window: Arc<Window>) {
        self.0.insert(key(&window), window);
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, window: &Arc<Window>) -> bool {
        self.0.remove(&key(window)).is_some()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Window>> {
        self.0.values()
    }

    /// Those that show a page of `range`. Allocates nothing.
    pub(super) fn over(&self, range: PageRange) -> impl Iterator<Item = &Arc<Window>> {
        let next = move |least: u32| self.0.range((least, 0, 0)..).next().map(|((length, ..), _)| *length);
        let lengths = std::iter::successors(next(0), move |length| next(length + 1));
        lengths.flat_map(move |length| {
            let first = range.start.0.saturating_sub(1 << length);
            let near = self.0.range((length, first, 0)..(length, range.end.0.max(first), 0));
            near.map(|(_, window)| window).filter(move |window| !window.pages().intersect(range).is_empty())
        })
    }
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::options::MapOptions;
    use crate::sys::fake::FakePageTable;
    use crate::sys::{Place, Rights};
    use crate::units::{PageIndex, PageSize};
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn window(fake: &FakePageTable, pages: PageRange) -> Arc<Window> {
        let (table, options) = (fake.table(), MapOptions::new());
        let place = Place::reserve(&table, pages.pages() * PAGE, PAGE, Rights::of(&options)).unwrap();
        Arc::new(Window::new(table, options, place, pages, PageSize::new(PAGE)).unwrap())
    }

    proptest! {
        /// The same as a look at each.
        #[test]
        fn those_over_a_range_are_found(
            windows in proptest::collection::vec((0..200u64, 1..70u64), 0..30),
            asked in proptest::collection::vec((0..260u64, 0..90u64), 1..20),
        ) {
            let fake = FakePageTable::new();
            let range = |(start, pages)| PageRange::at(PageIndex(start), pages);
            let mut kept: Vec<_> = windows.into_iter().map(|shape| window(&fake, range(shape))).collect();
            let mut shown = Shown::default();
            kept.iter().for_each(|window| shown.insert(window.clone()));
            for shape in asked {
                let range = range(shape);
                let names = |windows: &mut dyn Iterator<Item = &Arc<Window>>| {
                    let mut names: Vec<_> = windows.map(|window| window.base().0).collect();
                    names.sort_unstable();
                    names
                };
                let is_over = |window: &&Arc<Window>| !window.pages().intersect(range).is_empty();
                prop_assert_eq!(names(&mut shown.over(range)), names(&mut kept.iter().filter(is_over)));
                prop_assert_eq!(names(&mut shown.all()), names(&mut kept.iter()));
                if let Some(gone) = kept.pop() {
                    prop_assert!(shown.remove(&gone) && !shown.remove(&gone));
                }
            }
            prop_assert_eq!(shown.over(PageRange::from(PageIndex(0))).count(), kept.len());
        }
    }
}
