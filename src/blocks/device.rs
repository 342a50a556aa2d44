//! Devices: the memory that blocks lie in.

use std::path::Path;

use crate::error::Result;
use crate::sync::Arc;
use crate::sys::fork::{Home, Kept};
use crate::sys::limits::{self, Wanted};
use crate::sys::memory::DeviceMemory;

/// Memory cut into blocks of one page: a memfd, or a file on tmpfs or hugetlbfs.
///
/// A device knows nothing of files; [`Volume::format`](crate::Volume::format) puts them on it. Its
/// memory is allocated as blocks are first handed out, or, with windows, as pages are stored to or
/// loaded. The bytes are as lasting as the file they lie in, but which block belongs to which file is not stored: formatting starts anew.
///
/// In a child process (fork(2)) it is of no use: a volume made of it answers [`Error::Forked`](crate::Error::Forked), and
/// dropping it there neither unlocks the file nor frees anything.
pub struct Device {
    memory: Kept<Arc<DeviceMemory>>,
}

impl Device {
    /// An anonymous file in memory (memfd_create(2)) for `bytes` bytes of files. For windows a volume makes it far longer: it is sparse.
    /// `name` shows up in `/proc/self/maps`.
    ///
    /// # Errors
    /// [`Error::DeviceSize`](crate::Error::DeviceSize) for less than one page and for more than 64 TiB,
    /// [`Error::DeviceNotWholeBlocks`](crate::Error::DeviceNotWholeBlocks) for a size that is no
    /// multiple of the page size, [`Error::Limit`](crate::Error::Limit) where descriptors, addresses or the size of a file are
    /// limited, [`Error::System`](crate::Error::System) when the kernel refuses.
    pub fn memfd(name: &str, bytes: u64) -> Result<Self> {
        Self::of(bytes, || DeviceMemory::memfd(name, bytes))
    }

    /// A file on tmpfs (blocks of one page) or on hugetlbfs (blocks of one huge page, 2 MiB on
    /// most machines). It is created if it is not there, emptied, set to `bytes` bytes, and
    /// locked (flock(2)) while the device lives. The lock is the open file's, and a forked child has that too: where the process ends
    /// without dropping the device, the file stays locked until its children have ended or called execve(2). A new file is readable
    /// and writable for its owner alone.
    ///
    /// Whoever may open the file can punch it and cut it short. What is gone then is an error to calls
    /// ([`Error::DeviceLost`](crate::Error::DeviceLost)) and a SIGBUS to loads and stores; all the rest goes on. The same holds for what the
    /// application gives up itself by `madvise(MADV_REMOVE)` on a mapping: it cannot be told from that.
    ///
    /// # Errors
    /// [`Error::UnsupportedFileSystem`](crate::Error::UnsupportedFileSystem) on every other file system, before
    /// anything is created. [`Error::NotAFile`](crate::Error::NotAFile) for what is no regular file; the last component of the path may be
    /// no symbolic link. [`Error::DeviceBusy`](crate::Error::DeviceBusy) while another device uses the file, and the errors
    /// of [`Device::memfd`]. A file that was there keeps its bytes and its length, and a new one is gone again.
    pub fn open(path: impl AsRef<Path>, bytes: u64) -> Result<Self> {
        Self::of(bytes, || DeviceMemory::open(path.as_ref(), bytes))
    }

    /// A file that is open for reading and writing: on tmpfs, on hugetlbfs, or a memfd that may be shrunk and grown. It is emptied, set to
    /// `bytes` bytes, and locked, as by [`Device::open`], and what is said there of others who have it holds here, too. `name` is what
    /// errors call it.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn from_file(file: std::fs::File, name: &str, bytes: u64) -> Result<Self> {
        Self::of(bytes, || DeviceMemory::from_file(file, Path::new(name), bytes))
    }

    fn of(bytes: u64, open: impl FnOnce() -> Result<DeviceMemory>) -> Result<Self> {
        let home = Home::here()?;
        let memory = open().map_err(|error| limits::explain(error, Wanted::Shared(bytes)))?;
        Ok(Self { memory: home.keep(Arc::new(memory)) })
    }

    /// Memory from the heap, to be used with the fake page table.
    #[cfg(feature = "fake")]
    #[doc(hidden)]
    pub fn heap(bytes: u64, block_bytes: u64) -> Result<Self> {
        Ok(Self { memory: Home::here()?.keep(Arc::new(DeviceMemory::heap(bytes, block_bytes)?)) })
    }

    /// The same with `span_bytes` bytes of places, for windows.
    #[cfg(feature = "fake")]
    #[doc(hidden)]
    pub fn sparse_heap(bytes: u64, span_bytes: u64, block_bytes: u64) -> Result<Self> {
        let memory = DeviceMemory::sparse_heap(bytes, span_bytes, block_bytes)?;
        Ok(Self { memory: Home::here()?.keep(Arc::new(memory)) })
    }

    /// The size of the device in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.memory.len_bytes()
    }

    /// The size of a block in bytes.
    pub fn block_bytes(&self) -> u64 {
        self.memory.block_bytes()
    }

    pub(crate) fn into_memory(self) -> Kept<Arc<DeviceMemory>> {
        self.memory
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("len_bytes", &self.len_bytes())
            .field("block_bytes", &self.block_bytes())
            .finish()
    }
}
