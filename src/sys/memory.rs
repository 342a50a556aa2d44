//! The memory behind a device, reached through one alias mapping that is never registered with
//! a userfaultfd. It does not fault into the pager, so any thread may use it under any lock.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::sync::step;

/// The alias mapping, and the file it maps.
pub(crate) struct DeviceMemory {
    words: NonNull<AtomicU64>,
    len_bytes: u64,
    block_bytes: u64,
    huge: bool,
    /// Called when the device is gone: userfaultfds that have a mapping of it give that up. A leaf.
    when_gone: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    owner: Owner,
}

/// What keeps `words` alive.
enum Owner {
    Mapped {
        file: Flock<File>,
        _alias: MmapRaw,
    },
    #[cfg(feature = "fake")]
    Heap(Box<[AtomicU64]>),
}

// SAFETY: the words are atomics, reached only through `&AtomicU64`, and live as long as `owner`.
unsafe impl Send for DeviceMemory {}
// SAFETY: as for Send; nothing here has interior state but the atomics.
unsafe impl Sync for DeviceMemory {}

fn file_system_name(kind: FsType) -> String {
    use nix::sys::statfs;
    let known = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (statfs::XFS_SUPER_MAGIC, "XFS"),
        (statfs::BTRFS_SUPER_MAGIC, "btrfs"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlayfs"),
        (statfs::NFS_SUPER_MAGIC, "NFS"),
        (statfs::PROC_SUPER_MAGIC, "proc"),
        (statfs::FUSE_SUPER_MAGIC, "FUSE"),
    ];
    match known.iter().find(|(magic, _)| *magic == kind) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("a file system of type {:#x}", kind.0),
    }
}

impl DeviceMemory {
    /// A memfd of `bytes` bytes.
    pub(crate) fn memfd(name: &str, bytes: u64) -> Result<Self> {
        check_size(bytes, base_page_bytes())?;
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(|errno| Error::system("memfd_create", errno))?;
        Self::from_file(File::from(fd), bytes, Path::new(name))
    }

    /// A file on tmpfs or hugetlbfs, created if it is not there. Its content is lost.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(Error::system("open", Errno::ENOENT));
        }
        // The directory decides, and is asked first: a refusal leaves no file behind.
        let place = if path.exists() { path } else { path.parent().unwrap_or(path) };
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        let stat = nix::sys::statfs::statfs(place).map_err(|errno| Error::system("statfs", errno))?;
        let kind = stat.filesystem_type();
        if kind != TMPFS_MAGIC && kind != HUGETLBFS_MAGIC {
            return Err(Error::UnsupportedFileSystem { path: path.to_owned(), file_system: file_system_name(kind) });
        }
        check_size(bytes, block_bytes_of(kind, stat.block_size() as u64))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| Error::System { call: "open", errno: error.raw_os_error().unwrap_or(0) })?;
        Self::from_file(file, bytes, path)
    }

    fn from_file(file: File, bytes: u64, path: &Path) -> Result<Self> {
        let stat = fstatfs(&file).map_err(|errno| Error::system("fstatfs", errno))?;
        let huge = stat.filesystem_type() == HUGETLBFS_MAGIC;
        let block_bytes = block_bytes_of(stat.filesystem_type(), stat.block_size() as u64);
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::DeviceBusy { path: path.to_owned() },
            errno => Error::system("flock", errno),
        })?;
        let resize = |bytes: u64| nix::unistd::ftruncate(&*file, bytes as i64);
        // To nothing first: old bytes must not show up in new files.
        resize(0).and_then(|()| resize(bytes)).map_err(|errno| Error::system("ftruncate", errno))?;
        let alias = MmapOptions::new()
            .len(bytes as usize)
            .no_reserve_swap()
            .map_raw(&*file)
            .map_err(|error| Error::System { call: "mmap", errno: error.raw_os_error().unwrap_or(0) })?;
        let words = NonNull::new(alias.as_mut_ptr().cast()).expect("mmap returned null");
        Ok(Self {
            words,
            len_bytes: bytes,
            block_bytes,
            huge,
            when_gone: Mutex::default(),
            owner: Owner::Mapped { file, _alias: alias },
        })
    }

    /// Memory from the heap, for the fake page table.
    #[cfg(feature = "fake")]
    pub(crate) fn heap(bytes: u64, block_bytes: u64) -> Result<Self> {
        check_size(bytes, block_bytes)?;
        let heap: Box<[AtomicU64]> = (0..bytes / 8).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            words: NonNull::dangling(),
            len_bytes: bytes,
            block_bytes,
            huge: false,
            when_gone: Mutex::default(),
            owner: Owner::Heap(heap),
        })
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Whether the blocks are huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        self.huge
    }

    /// Has `act` called when the device is dropped.
    pub(super) fn when_gone(&self, act: Box<dyn Fn() + Send + Sync>) {
        self.when_gone.lock().push(act);
    }

    /// The file behind the memory; none for memory from the heap.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.owner {
            Owner::Mapped { file, .. } => Some(file.as_fd()),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => None,
        }
    }

    /// Has the kernel allocate the memory of a range. Without it, the first touch of a range that
    /// a full tmpfs cannot back would be a SIGBUS in the library.
    pub(crate) fn populate(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        let Some(fd) = self.fd() else { return Ok(()) };
        loop {
            match fallocate(fd, FallocateFlags::empty(), offset as i64, bytes as i64) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        assert!(index < self.len_bytes / 8, "word {index} lies outside the device");
        #[cfg(feature = "fake")]
        if let Owner::Heap(words) = &self.owner {
            return &words[index as usize];
        }
        // SAFETY: within the allocation of len_bytes bytes, checked above; add cannot overflow.
        let word = unsafe { self.words.add(index as usize) };
        // SAFETY: mapped read-write and 8-byte aligned (page-aligned base) while `owner` lives, which
        // the borrow of self outlasts. Other mappings of the memory change it only by machine
        // accesses, which are atomic per word.
        unsafe { word.as_ref() }
    }

    /// Changes only the bytes of word `index` that `mask` selects, whatever happens to the others meanwhile.
    fn merge(&self, index: u64, mask: u64, value: u64) {
        let word = self.word(index);
        let mut old = word.load(Ordering::Relaxed);
        while let Err(now) =
            word.compare_exchange_weak(old, old & !mask | value & mask, Ordering::Relaxed, Ordering::Relaxed)
        {
            old = now;
        }
    }

    /// Calls `each` for every word that the bytes touch: its index, where its bytes begin among
    /// those meant, and the range of it that is meant.
    fn for_words(offset: u64, bytes: u64, mut each: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let first = (at % 8) as usize;
            let last = (end - (at - first as u64)).min(8) as usize;
            each(at / 8, (at - offset) as usize, first..last);
            at += (last - first) as u64;
        }
    }

    /// Copies out of the device. Each aligned word is read whole.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        step();
        Self::for_words(offset, into.len() as u64, |index, at, part| {
            let word = self.word(index).load(Ordering::Relaxed).to_ne_bytes();
            into[at..at + part.len()].copy_from_slice(&word[part]);
        });
        std::sync::atomic::fence(Ordering::Acquire);
    }

    /// Copies into the device. Each aligned word is written whole, and no byte beside those meant.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) {
        step();
        std::sync::atomic::fence(Ordering::Release);
        Self::for_words(offset, from.len() as u64, |index, at, part| {
            let mut bytes = [0u8; 8];
            bytes[part.clone()].copy_from_slice(&from[at..at + part.len()]);
            let value = u64::from_ne_bytes(bytes);
            if part.len() == 8 {
                self.word(index).store(value, Ordering::Relaxed);
            } else {
                self.merge(index, mask(&part), value);
            }
        });
    }

    /// Compares and exchanges one aligned word, as one step; what was there before.
    pub(crate) fn exchange(&self, offset: u64, expected: u64, new: u64) -> u64 {
        step();
        let word = self.word(offset / 8);
        match word.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(was) | Err(was) => was,
        }
    }

    /// Zeroes a range of the device.
    pub(crate) fn zero(&self, offset: u64, bytes: u64) {
        step();
        Self::for_words(offset, bytes, |index, _, part| {
            if part.len() == 8 {
                self.word(index).store(0, Ordering::Relaxed);
            } else {
                self.merge(index, mask(&part), 0);
            }
        });
        std::sync::atomic::fence(Ordering::Release);
    }

    /// Whether whole words hold nothing but zeros.
    pub(crate) fn is_zero(&self, offset: u64, bytes: u64) -> bool {
        step();
        (offset / 8..(offset + bytes) / 8).all(|index| self.word(index).load(Ordering::Relaxed) == 0)
    }

    /// Copies whole words within the device.
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: u64) {
        step();
        for index in 0..bytes / 8 {
            let value = self.word(from / 8 + index).load(Ordering::Relaxed);
            self.word(to / 8 + index).store(value, Ordering::Relaxed);
        }
        std::sync::atomic::fence(Ordering::Release);
    }

    /// One aligned word, for the fake page table's accesses.
    #[cfg(feature = "fake")]
    pub(super) fn aligned_word(&self, offset: u64) -> &AtomicU64 {
        self.word(offset / 8)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.when_gone.get_mut().iter().for_each(|act| act());
    }
}

/// All ones in the bytes of a word that `part` names, in memory order.
fn mask(part: &std::ops::Range<usize>) -> u64 {
    let mut bytes = [0u8; 8];
    bytes[part.clone()].fill(0xff);
    u64::from_ne_bytes(bytes)
}

fn check_size(bytes: u64, block_bytes: u64) -> Result<()> {
    if bytes < block_bytes || bytes > i64::MAX as u64 {
        return Err(Error::DeviceSize { bytes, block_bytes });
    }
    if !bytes.is_multiple_of(block_bytes) {
        return Err(Error::DeviceNotWholeBlocks { bytes, block_bytes });
    }
    Ok(())
}

fn block_bytes_of(kind: FsType, fs_block_bytes: u64) -> u64 {
    if kind == HUGETLBFS_MAGIC { fs_block_bytes } else { base_page_bytes() }
}

/// The machine's base page in bytes.
pub(crate) fn base_page_bytes() -> u64 {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => bytes as u64,
        _ => 4096,
    }
}

/// An array of zeros that takes memory only where it is touched. A short one is from the heap: a mapping of
/// its own would be one of the process's address ranges.
pub(crate) enum SparseWords {
    Short(Box<[AtomicU64]>),
    Long { words: NonNull<AtomicU64>, len: usize, _map: MmapRaw },
}

/// Arrays of up to 32 KiB are short.
const SHORT_WORDS: usize = 4096;

// SAFETY: atomics only, alive as long as the map that the value owns.
unsafe impl Send for SparseWords {}
// SAFETY: as for Send.
unsafe impl Sync for SparseWords {}

impl SparseWords {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        if len <= SHORT_WORDS {
            return Ok(Self::Short((0..len).map(|_| AtomicU64::new(0)).collect()));
        }
        let map = MmapOptions::new()
            .len(len * 8)
            .no_reserve_swap()
            .map_anon()
            .map(MmapRaw::from)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let words = NonNull::new(map.as_mut_ptr().cast()).expect("mmap returned null");
        Ok(Self::Long { words, len, _map: map })
    }

    pub(crate) fn get(&self, index: usize) -> &AtomicU64 {
        let (words, len) = match self {
            Self::Short(words) => return &words[index],
            Self::Long { words, len, .. } => (words, *len),
        };
        assert!(index < len, "word {index} of {len}");
        // SAFETY: index is within the allocation, checked above.
        let word = unsafe { words.add(index) };
        // SAFETY: zeroed by the kernel, aligned, alive while self is; only atomics ever touch it.
        unsafe { word.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "a system call")]
    fn odd_ranges_of_a_memfd_touch_only_their_bytes() {
        touch_only_their_bytes(&DeviceMemory::memfd("odd", 4096).unwrap());
    }

    #[cfg(feature = "fake")]
    #[test]
    fn odd_ranges_of_the_heap_touch_only_their_bytes() {
        touch_only_their_bytes(&DeviceMemory::heap(4096, 4096).unwrap());
    }

    fn touch_only_their_bytes(memory: &DeviceMemory) {
        let mut model = vec![0u8; 4096];
        for (round, (offset, len)) in
            [(0, 4096), (3, 2), (5, 9), (7, 1), (8, 8), (17, 30), (4090, 6)].into_iter().enumerate()
        {
            let bytes = vec![round as u8 + 1; len];
            memory.write(offset as u64, &bytes);
            model[offset..offset + len].fill(round as u8 + 1);
            memory.zero(offset as u64 + 1, len as u64 / 2);
            model[offset + 1..offset + 1 + len / 2].fill(0);
        }
        let mut got = vec![0; 4096];
        memory.read(0, &mut got);
        assert_eq!(got, model);
    }
}
