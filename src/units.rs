//! A type for each unit. Pages, blocks, bytes and addresses never mix, and only this file
//! multiplies or divides by the page size.

use std::fmt;
use std::ops::Range;

/// The most that one fault installs, in bytes: what one entry of the level above covers on most machines.
pub(crate) const LARGEST_WINDOW: u64 = 2 << 20;

/// What one table of the page table's lowest level is for, with pages of 4 KiB.
pub(crate) const TABLE_BYTES: u64 = 2 << 20;

/// A page of a file, counted from its start, in units of the volume's page size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageIndex(pub u64);

/// A block of a device, counted from its start. A block holds exactly one page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockIndex(pub u64);

/// An address in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Addr(pub(crate) usize);

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl PageIndex {
    /// The page `n` pages further on. Saturates: a saturated page lies past every file's end.
    pub(crate) fn plus(self, n: u64) -> Self {
        Self(self.0.saturating_add(n))
    }
}

impl BlockIndex {
    pub(crate) fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

impl Addr {
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes as usize)
    }

    pub(crate) fn align_down(self, bytes: u64) -> Self {
        Self(self.0 & !(bytes as usize - 1))
    }

    /// Bytes from `base` up to this address.
    pub(crate) fn since(self, base: Addr) -> u64 {
        (self.0 - base.0) as u64
    }
}

/// A half-open range of pages. An empty range has `start >= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageRange {
    pub(crate) start: PageIndex,
    pub(crate) end: PageIndex,
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start.0, self.end.0)
    }
}

impl PageRange {
    pub(crate) fn new(start: PageIndex, end: PageIndex) -> Self {
        Self { start, end }
    }

    pub(crate) fn at(start: PageIndex, pages: u64) -> Self {
        Self::new(start, start.plus(pages))
    }

    pub(crate) fn one(page: PageIndex) -> Self {
        Self::at(page, 1)
    }

    /// Every page from `start` on.
    pub(crate) fn from(start: PageIndex) -> Self {
        Self::new(start, PageIndex(u64::MAX))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    pub(crate) fn pages(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    pub(crate) fn contains(&self, page: PageIndex) -> bool {
        self.start <= page && page < self.end
    }

    pub(crate) fn intersect(&self, other: PageRange) -> PageRange {
        PageRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range with this one and `page` in it.
    pub(crate) fn and(&self, page: PageIndex) -> PageRange {
        PageRange::new(self.start.min(page), self.end.max(page.plus(1)))
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = PageIndex> {
        (self.start.0..self.end.0).map(PageIndex)
    }
}

/// The size of a page, and of a block: a power of two, at least 4096.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageSize {
    shift: u32,
}

/// The largest file size and the largest offset, as in the kernel (`MAX_LFS_FILESIZE`).
pub(crate) const MAX_FILE_BYTES: u64 = i64::MAX as u64;

impl PageSize {
    pub(crate) fn new(bytes: u64) -> Self {
        assert!(bytes.is_power_of_two() && bytes >= 4096, "{bytes} is no page size");
        Self { shift: bytes.trailing_zeros() }
    }

    pub(crate) fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The page that holds byte `offset`.
    pub(crate) fn page_of(self, offset: u64) -> PageIndex {
        PageIndex(offset >> self.shift)
    }

    /// The first page that begins at or after byte `offset`: `ceil(offset / page)`.
    pub(crate) fn ceil(self, offset: u64) -> PageIndex {
        PageIndex((offset >> self.shift) + u64::from(self.within(offset) != 0))
    }

    /// Bytes from the start of the page that holds `offset` up to `offset`.
    pub(crate) fn within(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// The byte offset in the file at which `page` starts.
    pub(crate) fn offset_of(self, page: PageIndex) -> u64 {
        page.0.saturating_mul(self.bytes())
    }

    /// The byte offset in the device at which `block` starts.
    pub(crate) fn device_offset(self, block: BlockIndex) -> u64 {
        block.0 << self.shift
    }

    /// The bytes that `pages` pages take.
    pub(crate) fn bytes_of(self, pages: u64) -> u64 {
        pages << self.shift
    }

    /// The whole pages within `bytes` bytes.
    pub(crate) fn pages_in(self, bytes: u64) -> u64 {
        bytes >> self.shift
    }

    /// The pages that `bytes` touches, wholly or in part.
    pub(crate) fn touched(self, bytes: &Range<u64>) -> PageRange {
        if bytes.is_empty() {
            return PageRange::new(self.page_of(bytes.start), self.page_of(bytes.start));
        }
        PageRange::new(self.page_of(bytes.start), self.ceil(bytes.end))
    }

    /// The pages that lie wholly within `bytes`.
    pub(crate) fn whole(self, bytes: &Range<u64>) -> PageRange {
        PageRange::new(self.ceil(bytes.start), self.page_of(bytes.end))
    }

    /// Cuts `bytes` at page borders: for each page touched, the page and the bytes of it
    /// that are meant, counted from the page's own start.
    pub(crate) fn slices(self, bytes: Range<u64>) -> impl Iterator<Item = (PageIndex, Range<u64>)> {
        self.touched(&bytes).iter().map(move |page| {
            let start = self.offset_of(page);
            let from = bytes.start.saturating_sub(start);
            (page, from..(bytes.end - start).min(self.bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What machines have.
    const SIZES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];

    #[test]
    fn slices_cover_exactly_the_bytes() {
        for size in SIZES {
            let page = PageSize::new(size);
            let got: Vec<_> = page.slices(size - 96..3 * size + 12).collect();
            let of = |page, bytes| (PageIndex(page), bytes);
            assert_eq!(got, vec![of(0, size - 96..size), of(1, 0..size), of(2, 0..size), of(3, 0..12)]);
            assert_eq!(page.slices(2 * size..2 * size).count(), 0);
        }
    }

    #[test]
    fn whole_and_touched_differ_at_the_edges() {
        for size in SIZES {
            let page = PageSize::new(size);
            assert_eq!(page.whole(&(1..2 * size - 1)).pages(), 0);
            assert_eq!(page.whole(&(0..2 * size)).pages(), 2);
            assert_eq!(page.touched(&(1..2 * size - 1)).pages(), 2);
            assert_eq!(page.ceil(0), PageIndex(0));
            assert_eq!(page.ceil(1), PageIndex(1));
            assert_eq!(page.ceil(MAX_FILE_BYTES), PageIndex(MAX_FILE_BYTES / size + 1));
        }
    }
}
