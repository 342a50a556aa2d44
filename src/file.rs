//! Files as the embedder sees them.

use std::ops::Range;

use crate::error::Result;
use crate::inode::InUse;
use crate::space::extents::Extent;
use crate::sys::fork::Kept;
use crate::units::{PageIndex, PageRange};

/// A handle to a file on a [`Volume`](crate::Volume). Cheap to clone; all clones are the same file.
///
/// Every operation is atomic with respect to the others, and correct while any number of threads load
/// and store through mappings. Offsets and lengths are bytes, up to 2^63 - 1; what does not fall on page
/// borders is zeroed in part, as ftruncate(2) and fallocate(2) do.
///
/// None of these calls may be made from within a [`Probe`](crate::probe::Probe). Changes wait for each other, for
/// faults on the same file that are being answered at that moment, and up to a few
/// milliseconds for a fault that keeps losing to them.
///
/// In a child process (fork(2)) calls answer [`Error::Forked`](crate::Error::Forked); those that cannot give an error give 0 or an empty list;
/// and dropping it does nothing.
#[derive(Clone)]
pub struct File {
    inode: Kept<InUse>,
}

/// What a range of a file is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentKind {
    /// Blocks with bytes in them.
    Written,
    /// Blocks that have not been written since they were allocated. Reads as zeros.
    Unwritten,
    /// No blocks. Reads as zeros.
    Hole,
}

/// A range of a file that is all of one kind. Its ends are page borders, but for a hole at the
/// end of the file, which ends where the file does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ExtentInfo {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What it is made of.
    pub kind: ExtentKind,
}

/// A range of a file on a range of the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PhysicalExtent {
    /// Where in the file it begins, in bytes (`fe_logical`).
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where on the device it begins, in bytes (`fe_physical`).
    pub device_offset: u64,
    /// [`ExtentKind::Written`] or [`ExtentKind::Unwritten`].
    pub kind: ExtentKind,
}

impl From<&Extent> for ExtentKind {
    fn from(extent: &Extent) -> Self {
        if extent.written { ExtentKind::Written } else { ExtentKind::Unwritten }
    }
}

impl File {
    pub(crate) fn new(inode: Kept<InUse>) -> Self {
        Self { inode }
    }

    pub(crate) fn inode(&self) -> &Kept<InUse> {
        &self.inode
    }

    /// The file's size in bytes (`i_size`).
    #[expect(clippy::len_without_is_empty, reason = "a file's length, as std::fs::Metadata::len")]
    pub fn len(&self) -> u64 {
        if !self.inode.home().is_here() {
            return 0;
        }
        self.inode.space.shared().size()
    }

    /// Sets the size, as ftruncate(2). Down: blocks wholly past the end are freed and gone from every
    /// mapping, and the rest of the last page reads as zeros. Up: the new range is a hole, and what was
    /// stored past the old end within its page is gone. To the same size: that tail is zeroed, and
    /// blocks allocated past the end are freed.
    ///
    /// # Errors
    /// [`Error::RangeOverflow`](crate::Error::RangeOverflow) past 2^63 - 1. [`Error::DeviceLost`](crate::Error::DeviceLost) if the last page is
    /// lost; the size is what was asked for then.
    pub fn truncate(&self, len: u64) -> Result<()> {
        self.inode.home().check()?;
        self.inode.truncate(len)
    }

    /// Frees the blocks that lie wholly within the range, and zeroes the rest of it. The size stays. Past
    /// the end it does nothing but free blocks allocated there, and zero what was stored past the end within the last page, as tmpfs does; on
    /// XFS that stays until the file grows. As fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
    ///
    /// # Errors
    /// [`Error::EmptyRange`](crate::Error::EmptyRange), [`Error::RangeOverflow`](crate::Error::RangeOverflow).
    /// [`Error::DeviceLost`](crate::Error::DeviceLost) if a page is lost that is to be zeroed in part; all else is done then.
    pub fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.inode.home().check()?;
        self.inode.punch_hole(offset, len)
    }

    /// Makes the range read as zeros, with blocks under all of it, so that a store to it never
    /// finds the volume full. Unless `keep_size`, the file grows to the end of the range. As fallocate(2)
    /// with `FALLOC_FL_ZERO_RANGE`.
    ///
    /// # Errors
    /// [`Error::EmptyRange`](crate::Error::EmptyRange), [`Error::RangeOverflow`](crate::Error::RangeOverflow),
    /// [`Error::NoSpace`](crate::Error::NoSpace), [`Error::NoPlaces`](crate::Error::NoPlaces),
    /// [`Error::DeviceMemory`](crate::Error::DeviceMemory); [`Error::DeviceLost`](crate::Error::DeviceLost) as [`File::punch_hole`].
    pub fn zero_range(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.inode.home().check()?;
        self.inode.zero_range(offset, len, keep_size)
    }

    /// Puts unwritten blocks under the holes of the range. Unless `keep_size`, the file grows to the end
    /// of the range. As fallocate(2).
    ///
    /// # Errors
    /// As [`File::zero_range`].
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.inode.home().check()?;
        self.inode.allocate(offset, len, keep_size)
    }

    /// Reads up to the end of the file, as pread(2): how many bytes were read. The buffer may lie in a mapping.
    ///
    /// A word that a mapping stores at that moment may be read half old and half new: the kernel copies byte by byte. Other calls on the
    /// file come before or after.
    ///
    /// # Errors
    /// [`Error::DeviceLost`](crate::Error::DeviceLost); [`Error::BadBuffer`](crate::Error::BadBuffer) when the buffer lies in a mapping, and is
    /// not to be had there. What lies before may have been read.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        self.inode.home().check()?;
        self.inode.read_at(into, offset)
    }

    /// Writes all of `from`, as pwrite(2), and grows the file where it must. Every mapping sees it when this
    /// returns; a mapping's dirty ranges are of stores through that mapping alone. The buffer may lie in a mapping.
    ///
    /// # Errors
    /// [`Error::RangeOverflow`](crate::Error::RangeOverflow), [`Error::NoSpace`](crate::Error::NoSpace),
    /// [`Error::NoPlaces`](crate::Error::NoPlaces), [`Error::DeviceMemory`](crate::Error::DeviceMemory),
    /// [`Error::BadBuffer`](crate::Error::BadBuffer) when the buffer lies in a mapping, and is
    /// not to be had there; then nothing has been written. (If it is taken away while it is being written, the bytes before may have been.)
    /// [`Error::DeviceLost`](crate::Error::DeviceLost), [`Error::Limit`](crate::Error::Limit), and
    /// [`Error::DeviceMemory`](crate::Error::DeviceMemory) for what the kernel refuses late: then the pages before that one may have been
    /// written, and are seen by everybody.
    pub fn write_at(&self, from: &[u8], offset: u64) -> Result<usize> {
        self.inode.home().check()?;
        self.inode.write_at(from, offset)
    }

    /// What the file is made of, from its start to its end, and blocks allocated past that. As the
    /// `FIEMAP` ioctl, holes included. Where on the device it lies: [`File::fiemap`].
    pub fn extents(&self) -> Vec<ExtentInfo> {
        if !self.inode.home().is_here() {
            return Vec::new();
        }
        let page = self.inode.page();
        let shared = self.inode.space.shared();
        let mut infos: Vec<ExtentInfo> = Vec::new();
        let mut push = |bytes: Range<u64>, kind| match infos.last_mut() {
            _ if bytes.is_empty() => {}
            // Blocks that are not neighbours on the device make one range of the file all the same.
            Some(last) if last.kind == kind && last.offset + last.len == bytes.start => {
                last.len += bytes.end - bytes.start
            }
            _ => infos.push(ExtentInfo { offset: bytes.start, len: bytes.end - bytes.start, kind }),
        };
        let bytes_of = |range: PageRange| page.offset_of(range.start)..page.offset_of(range.end);
        let zeros = shared.as_good_as_holes(&self.inode.store);
        let mut zeros = zeros.into_iter().map(bytes_of).peekable();
        let mut at = 0;
        for extent in shared.extents().within(PageRange::from(PageIndex(0))) {
            let (bytes, kind) = (bytes_of(extent.range()), ExtentKind::from(&extent));
            push(at..bytes.start, ExtentKind::Hole);
            at = bytes.start;
            while let Some(hole) = zeros.next_if(|hole| hole.start < bytes.end) {
                push(at..hole.start, kind);
                push(hole.start..hole.end, ExtentKind::Hole);
                at = hole.end;
            }
            push(at..bytes.end, kind);
            at = bytes.end;
        }
        push(at..shared.size().max(at), ExtentKind::Hole);
        infos
    }

    /// Where the file lies on its device, in the order of the file, blocks past its end included. As the
    /// `FIEMAP` ioctl: neighbours in the file that are neighbours on the device too, and of one kind, are one extent; holes
    /// are not listed.
    ///
    /// All of it is of one moment. The next change of the file may move or free any of these blocks, and a store through
    /// a mapping may be such a change: `device_offset` says nothing any more then. (With windows a page's offset is its own for as long as
    /// the file lives, and what changes is whether it is there.) To look at the device is
    /// sensible only while nobody changes the file. Waits for a change that is being published.
    pub fn fiemap(&self) -> Vec<PhysicalExtent> {
        if !self.inode.home().is_here() {
            return Vec::new();
        }
        let page = self.inode.page();
        let physical = |extent: Extent| PhysicalExtent {
            offset: page.offset_of(extent.page),
            len: page.bytes_of(extent.run.blocks),
            device_offset: page.device_offset(extent.run.start),
            kind: ExtentKind::from(&extent),
        };
        // The map joins neighbours itself.
        self.inode.space.shared().extents().within(PageRange::from(PageIndex(0))).map(physical).collect()
    }

    /// The file's number (`st_ino`): from 1 up, of its volume's files its own, also when it has been removed. What
    /// an observer is told as [`Event::file`](crate::probe::Event::file).
    pub fn number(&self) -> u64 {
        self.inode.number()
    }

    /// The memory that the device has for the file at this moment, in bytes: what SEEK_DATA finds. With
    /// [`Allocation::Windows`](crate::Allocation::Windows) that is every page that has been written, and the zeros that loads have left in
    /// holes; pages that are allocated and not written take none. 0 in a child of fork(2).
    ///
    /// Waits for a change of the file that is under way. Takes a system call or two for each run of pages.
    pub fn resident_bytes(&self) -> u64 {
        if self.inode.home().is_here() { self.inode.resident_bytes() } else { 0 }
    }

    /// The blocks that the file owns.
    pub fn blocks(&self) -> u64 {
        if !self.inode.home().is_here() {
            return 0;
        }
        self.inode.space.shared().extents().blocks()
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.inode.home().is_here() {
            return f.write_str("File { of another process }");
        }
        let shared = self.inode.space.shared();
        f.debug_struct("File").field("len", &shared.size()).field("blocks", &shared.extents().blocks()).finish()
    }
}
