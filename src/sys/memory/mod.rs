//! The memory behind a device: a file that is read and written by system calls, or memory from the heap for the fake page
//! table. It does not fault into the pager, so any thread may use it under any lock.

mod file;
mod folios;
#[cfg(feature = "fake")]
mod heap;
mod open;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::sync::plain::{AtomicU64, Ordering};
use crate::sync::{ProcessMutex as Mutex, step};
use file::DeviceFile;
#[cfg(feature = "fake")]
use heap::Heap;

/// The largest device in bytes: all of it has to be mapped, and x86-64 has 2^47 bytes of addresses.
const DEVICE_BYTES_MAX: u64 = 1 << 46;

pub(crate) struct DeviceMemory {
    /// Called when the device is gone: userfaultfds that have a mapping of it give that up. A leaf.
    when_gone: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    owner: Owner,
}

/// Where the bytes are.
enum Owner {
    File(DeviceFile),
    #[cfg(feature = "fake")]
    Heap(Heap),
}

impl DeviceMemory {
    fn new(owner: Owner) -> Self {
        Self { when_gone: Mutex::default(), owner }
    }

    /// A memfd of `bytes` bytes.
    pub(crate) fn memfd(name: &str, bytes: u64) -> Result<Self> {
        Ok(Self::new(Owner::File(DeviceFile::memfd(name, bytes)?)))
    }

    /// A file on tmpfs or hugetlbfs, created if it is not there. Its content is lost.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self> {
        Ok(Self::new(Owner::File(DeviceFile::open(path, bytes)?)))
    }

    /// A file that is open.
    pub(crate) fn from_file(file: std::fs::File, name: &Path, bytes: u64) -> Result<Self> {
        Ok(Self::new(Owner::File(DeviceFile::from_file(file, name, bytes)?)))
    }

    /// Memory from the heap, for the fake page table.
    #[cfg(feature = "fake")]
    pub(crate) fn heap(bytes: u64, block_bytes: u64) -> Result<Self> {
        check_size(bytes, block_bytes)?;
        Ok(Self::new(Owner::Heap(Heap::new(bytes, block_bytes))))
    }

    /// The same with more places than bytes, for windows.
    #[cfg(feature = "fake")]
    pub(crate) fn sparse_heap(bytes: u64, span_bytes: u64, block_bytes: u64) -> Result<Self> {
        check_size(bytes, block_bytes)?;
        check_size(span_bytes, block_bytes)?;
        Ok(Self::new(Owner::Heap(Heap::sparse(bytes, span_bytes, block_bytes))))
    }

    /// Makes as long as it can be made a file that nobody else can open: how many bytes that are. It stays so. What is beyond
    /// [`DeviceMemory::len_bytes`] costs nothing until something is put there.
    pub(crate) fn stretch(&self) -> u64 {
        match &self.owner {
            Owner::File(file) => file.stretch(),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.span_bytes(),
        }
    }

    /// The file is as long as it is to be.
    pub(crate) fn settle(&self) {
        match &self.owner {
            Owner::File(file) => file.settle(),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => {}
        }
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        match &self.owner {
            Owner::File(file) => file.resident_bytes(),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => 0,
        }
    }

    /// The same of a part of it.
    pub(crate) fn resident_in(&self, offset: u64, bytes: u64) -> u64 {
        match &self.owner {
            Owner::File(file) => file.resident_in(offset, bytes),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.resident_in(offset, bytes),
        }
    }

    /// Whether there is anything in a part of it.
    pub(crate) fn is_anything_in(&self, offset: u64, bytes: u64) -> bool {
        match &self.owner {
            Owner::File(file) => file.is_anything_in(offset, bytes),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.resident_in(offset, bytes) > 0,
        }
    }

    /// Takes whole pages out of the device, and their entries out of every page table, in one step.
    pub(crate) fn punch(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        step();
        self.check_range(offset, bytes);
        match &self.owner {
            Owner::File(file) => file.punch(offset, bytes),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => {
                heap.punch(offset, bytes);
                Ok(())
            }
        }
    }

    /// Whether the block with the byte at `offset` has a page, for the fake page table.
    #[cfg(feature = "fake")]
    pub(crate) fn is_there(&self, offset: u64) -> bool {
        match &self.owner {
            Owner::File(_) => true,
            Owner::Heap(heap) => heap.is_there(offset),
        }
    }

    /// Has it have a page of zeros, unless it has one; whether it had none. Likewise.
    #[cfg(feature = "fake")]
    pub(super) fn make_there(&self, offset: u64) -> bool {
        match &self.owner {
            Owner::File(_) => false,
            Owner::Heap(heap) => heap.make_there(offset),
        }
    }

    /// Is about to be punched there: whoever looks finds no page. Likewise.
    #[cfg(feature = "fake")]
    pub(super) fn make_gone(&self, offset: u64) {
        match &self.owner {
            Owner::File(_) => {}
            Owner::Heap(heap) => heap.make_gone(offset),
        }
    }

    /// Whether a write may make pages present that it does not touch: the system gives such files huge folios.
    pub(crate) fn may_get_huge_folios(&self) -> bool {
        match &self.owner {
            Owner::File(_) => folios::may_be_huge(),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => false,
        }
    }

    /// The bytes from the first to the last that there may be something in.
    fn span_bytes(&self) -> u64 {
        match &self.owner {
            Owner::File(file) => file.span_bytes(),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.span_bytes(),
        }
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        match &self.owner {
            Owner::File(file) => file.len_bytes(),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.len_bytes(),
        }
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        match &self.owner {
            Owner::File(file) => file.block_bytes(),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.block_bytes(),
        }
    }

    /// Whether the blocks are huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        match &self.owner {
            Owner::File(file) => file.is_huge(),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => false,
        }
    }

    /// Whether no other process can open the device: then a page that is not there is one of zeros.
    pub(crate) fn is_private(&self) -> bool {
        match &self.owner {
            Owner::File(file) => file.is_private(),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => true,
        }
    }

    /// Has `act` called when the device is dropped.
    pub(super) fn when_gone(&self, act: Box<dyn Fn() + Send + Sync>) {
        self.when_gone.lock().push(act);
    }

    /// The file behind the memory; none for memory from the heap.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.owner {
            Owner::File(file) => Some(file.fd()),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => None,
        }
    }

    /// Has the kernel allocate the memory of a range, where it has none yet. What is there stays as it is.
    pub(crate) fn populate(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        match &self.owner {
            Owner::File(file) => file.allocate(offset, bytes),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => {
                heap.touch(offset, bytes);
                Ok(())
            }
        }
    }

    /// Nothing that the caller does reaches past the device, whatever it is made of.
    fn check_range(&self, offset: u64, bytes: u64) {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.span_bytes()), "{offset}+{bytes} lies outside the device");
    }

    /// The error for a page of the device that is not there.
    pub(crate) fn lost(&self, offset: u64) -> Error {
        match &self.owner {
            Owner::File(file) => file.lost(offset),
            #[cfg(feature = "fake")]
            Owner::Heap(_) => Error::DeviceLost { device: "heap".into(), block: offset / self.block_bytes(), offset },
        }
    }

    /// Copies out of the device.
    ///
    /// # Errors
    /// [`Error::DeviceLost`]. So for all that follows; those that write have [`Error::DeviceMemory`] and
    /// [`Error::Limit`] besides.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        step();
        self.check_range(offset, into.len() as u64);
        match &self.owner {
            Owner::File(file) => file.read(offset, into)?,
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.read(offset, into),
        }
        Ok(())
    }

    /// Copies into blocks that have been written once, and changes no byte beside those meant.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        step();
        self.check_range(offset, from.len() as u64);
        match &self.owner {
            Owner::File(file) => file.write(offset, from)?,
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.write(offset, from),
        }
        Ok(())
    }

    /// Copies into whole blocks, whether the device has pages for them or not.
    pub(crate) fn fill(&self, offset: u64, from: &[u8]) -> Result<()> {
        step();
        self.check_range(offset, from.len() as u64);
        match &self.owner {
            Owner::File(file) => file.fill(offset, from)?,
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.write(offset, from),
        }
        Ok(())
    }

    /// Zeroes a range of the device. Whole blocks are there afterwards.
    pub(crate) fn zero(&self, offset: u64, bytes: u64) -> Result<()> {
        step();
        self.check_range(offset, bytes);
        match &self.owner {
            Owner::File(file) => file.zero(offset, bytes)?,
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.zero(offset, bytes),
        }
        Ok(())
    }

    /// Whether whole words are there, and hold nothing but zeros.
    pub(crate) fn is_zero(&self, offset: u64, bytes: u64) -> bool {
        step();
        self.check_range(offset, bytes);
        match &self.owner {
            Owner::File(file) => file.is_zero(offset, bytes),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.is_zero(offset, bytes),
        }
    }

    /// Changes a word of its own alignment to what `to` makes of it, as one step beside the loads and stores of every mapping. What was
    /// there before.
    ///
    /// # Errors
    /// The kernel has no room for a mapping of the page.
    pub(crate) fn change_word(&self, offset: u64, to: impl Fn(u64) -> Option<u64>) -> Result<u64> {
        step();
        self.check_range(offset, 8);
        let change = |word: &AtomicU64| match word.fetch_update(Ordering::AcqRel, Ordering::Acquire, to) {
            Ok(was) | Err(was) => was,
        };
        match &self.owner {
            Owner::File(file) => file.with_word(offset, change),
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => Ok(change(heap.word(offset / 8))),
        }
    }

    /// Copies whole blocks within the device.
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        step();
        self.check_range(from, bytes);
        self.check_range(to, bytes);
        match &self.owner {
            Owner::File(file) => file.copy(from, to, bytes)?,
            #[cfg(feature = "fake")]
            Owner::Heap(heap) => heap.copy(from, to, bytes),
        }
        Ok(())
    }

    /// One aligned word, for the fake page table's accesses.
    #[cfg(feature = "fake")]
    pub(super) fn aligned_word(&self, offset: u64) -> &AtomicU64 {
        match &self.owner {
            Owner::File(_) => panic!("the fake page table has memory from the heap"),
            Owner::Heap(heap) => heap.word(offset / 8),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.when_gone.get_mut().iter().for_each(|act| act());
    }
}

fn check_size(bytes: u64, block_bytes: u64) -> Result<()> {
    if bytes < block_bytes || bytes > DEVICE_BYTES_MAX {
        return Err(Error::DeviceSize { bytes, block_bytes });
    }
    if !bytes.is_multiple_of(block_bytes) {
        return Err(Error::DeviceNotWholeBlocks { bytes, block_bytes });
    }
    Ok(())
}

/// The machine's base page in bytes.
pub(crate) fn base_page_bytes() -> u64 {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    bytes.ok().flatten().expect("sysconf(3): POSIX has _SC_PAGE_SIZE") as u64
}

/// An array of zeros that takes memory only where it is touched. A short one is from the heap: a mapping of
/// its own would be one of the process's address ranges.
pub(crate) enum SparseWords {
    Short(Box<[AtomicU64]>),
    Long { words: NonNull<AtomicU64>, len: usize, _map: MmapRaw },
}

/// Arrays of up to 32 KiB are short.
const SHORT_WORDS: usize = 4096;

// SAFETY: atomics only (`get`), in memory of the map that the value owns and never gives out.
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
        // SAFETY: within the map of `len` words (`new`), by the assertion.
        let word = unsafe { words.add(index) };
        // SAFETY: zeroed by the kernel, aligned (a mapping's start), alive as long as the map in self; nobody else has a pointer there.
        unsafe { word.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "a system call")]
    fn odd_ranges_of_a_memfd_touch_only_their_bytes() {
        touch_only_their_bytes(&DeviceMemory::memfd("odd", base_page_bytes()).unwrap());
    }

    #[cfg(feature = "fake")]
    #[test]
    fn odd_ranges_of_the_heap_touch_only_their_bytes() {
        for bytes in [4 << 10, 16 << 10, 64 << 10] {
            touch_only_their_bytes(&DeviceMemory::heap(bytes, bytes).unwrap());
        }
    }

    fn touch_only_their_bytes(memory: &DeviceMemory) {
        let bytes = memory.len_bytes() as usize;
        let mut model = vec![0u8; bytes];
        for (round, (offset, len)) in
            [(0, bytes), (3, 2), (5, 9), (7, 1), (8, 8), (17, 30), (bytes - 6, 6)].into_iter().enumerate()
        {
            let bytes = vec![round as u8 + 1; len];
            memory.write(offset as u64, &bytes).unwrap();
            model[offset..offset + len].fill(round as u8 + 1);
            memory.zero(offset as u64 + 1, len as u64 / 2).unwrap();
            model[offset + 1..offset + 1 + len / 2].fill(0);
        }
        let mut got = vec![0; bytes];
        memory.read(0, &mut got).unwrap();
        assert_eq!(got, model);
    }
}
