//! Volumes: a device, its blocks, and files by name. Knows no addresses.

#[cfg(feature = "shuttle")]
pub(crate) mod invariants;

use std::collections::BTreeMap;

use crate::blocks::device::Device;
use crate::blocks::store::Store;
use crate::error::{Error, Result};
use crate::file::File;
use crate::inode::{InUse, Inode};
use crate::options::Allocation;
use crate::probe::Probe;
#[cfg(feature = "inside")]
use crate::sabotage::Rule;
use crate::sync::{Arc, Mutex};
use crate::sys::fork::Kept;

/// A formatted device: blocks, and files that share them.
///
/// Cheap to clone; all clones are the same volume. The files and their blocks live in memory alone:
/// formatting the same device again begins with an empty volume.
///
/// In a child process (fork(2)) calls answer [`Error::Forked`]; those that cannot give an error give 0 or an empty list; and dropping it does
/// nothing.
#[derive(Clone)]
pub struct Volume {
    inner: Kept<Arc<Names>>,
}

struct Names {
    store: Arc<Store>,
    /// Taken by create, open, remove and list, for the time of a map look-up. Nothing is taken under it.
    files: Mutex<BTreeMap<String, InUse>>,
}

/// Pages of zeros that a volume may have, at least.
const ZEROS_LEAST: u64 = 64;

/// One line of [`Volume::list`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FileInfo {
    /// The file's name.
    pub name: String,
    /// Its size in bytes.
    pub len: u64,
    /// The blocks that it owns.
    pub blocks: u64,
}

impl Volume {
    /// Makes an empty volume of the whole device. What was on it is lost. On a memfd files lie in windows, elsewhere on single blocks
    /// ([`Allocation`]).
    pub fn format(device: Device) -> Self {
        Self::build(device, Allocation::default(), None)
    }

    /// The same, with a choice of where the pages of files lie. Where the device cannot have what is chosen the volume has
    /// single blocks: [`Volume::allocation`] says which it is, and why.
    pub fn format_with(device: Device, allocation: Allocation) -> Self {
        Self::build(device, allocation, None)
    }

    /// Like [`Volume::format`], with an observer that is told at every [`Point`](crate::probe::Point).
    pub fn format_with_probe(device: Device, probe: Arc<dyn Probe>) -> Self {
        Self::build(device, Allocation::default(), Some(probe))
    }

    /// The same with a choice of where the pages of files lie, as [`Volume::format_with`].
    pub fn format_observed(device: Device, allocation: Allocation, probe: Arc<dyn Probe>) -> Self {
        Self::build(device, allocation, Some(probe))
    }

    /// Where the pages of its files lie, and why that is not what was asked for, if it is not.
    pub fn allocation(&self) -> (Allocation, Option<&'static str>) {
        if self.inner.home().is_here() { self.inner.store.allocation() } else { (Allocation::default(), None) }
    }

    fn build(device: Device, allocation: Allocation, probe: Option<Arc<dyn Probe>>) -> Self {
        let memory = device.into_memory();
        let home = memory.home();
        let store = Arc::new(Store::new(memory, allocation, probe));
        Self { inner: home.keep(Arc::new(Names { store, files: Mutex::new(BTreeMap::new()) })) }
    }

    /// Makes a file of zero bytes.
    ///
    /// # Errors
    /// [`Error::BadName`] unless the name has 1 to 255 bytes without `/` and NUL; [`Error::NameTaken`].
    pub fn create(&self, name: &str) -> Result<File> {
        self.inner.home().check()?;
        if name.is_empty() || name.len() > 255 || name.contains(['/', '\0']) {
            return Err(Error::BadName { name: name.chars().take(64).collect() });
        }
        let mut files = self.inner.files.lock();
        if files.contains_key(name) {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        let inode = Inode::create(self.inner.store.clone());
        files.insert(name.to_owned(), inode.clone());
        Ok(File::new(self.inner.home().keep(inode)))
    }

    /// Opens a file that is there.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`].
    pub fn open(&self, name: &str) -> Result<File> {
        self.inner.home().check()?;
        let files = self.inner.files.lock();
        let inode = files.get(name).ok_or_else(|| Error::NoSuchFile { name: name.to_owned() })?;
        Ok(File::new(self.inner.home().keep(inode.clone())))
    }

    /// Takes a file's name away. As with unlink(2), the file and its blocks stay until the last
    /// [`File`] and the last mapping of it are gone.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`], so also when it has been removed already.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.inner.home().check()?;
        // Dropped after the lock: the last reference frees blocks.
        let removed = self.inner.files.lock().remove(name);
        removed.map(drop).ok_or_else(|| Error::NoSuchFile { name: name.to_owned() })
    }

    /// All files, by name.
    pub fn list(&self) -> Vec<FileInfo> {
        if !self.inner.home().is_here() {
            return Vec::new();
        }
        let files: Vec<_> = {
            let files = self.inner.files.lock();
            files.iter().map(|(name, inode)| (name.clone(), inode.clone())).collect()
        };
        let info = |(name, inode): (String, InUse)| {
            let shared = inode.space.shared();
            FileInfo { name, len: shared.size(), blocks: shared.extents().blocks() }
        };
        files.into_iter().map(info).collect()
    }

    /// The size of a block, and of a page of every file, in bytes.
    pub fn block_bytes(&self) -> u64 {
        self.inner.store.page.bytes()
    }

    /// Blocks, or with windows pages, that no file owns. Zeros that loads have left are not missed. Another thread may take them before this
    /// returns.
    pub fn free_blocks(&self) -> u64 {
        self.usage().0
    }

    /// Blocks that files own, or are about to.
    pub fn used_blocks(&self) -> u64 {
        let (free, total) = self.usage();
        total - free
    }

    /// What files may have together, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.block_bytes() * self.usage().1
    }

    /// How much memory zeros may take that loads have left in holes, in bytes: 64 MiB unless set, and 64 pages at least, as one access may
    /// need several. When there are as many, some are taken back before a load leaves more. Of no consequence for single blocks.
    pub fn set_zeros_max(&self, bytes: u64) {
        self.limit_zeros(bytes.max(ZEROS_LEAST * self.block_bytes()));
    }

    /// Likewise, but as few as is asked for. Never for use.
    #[cfg(feature = "inside")]
    #[doc(hidden)]
    pub fn set_zeros_max_even_one(&self, bytes: u64) {
        self.limit_zeros(bytes);
    }

    fn limit_zeros(&self, bytes: u64) {
        if self.inner.home().is_here()
            && let Some(capacity) = self.inner.store.capacity()
        {
            capacity.set_zeros_max(self.inner.store.page.pages_in(bytes));
        }
    }

    /// The memory that the device takes now, in bytes, as the kernel counts it (`st_blocks`). With windows that is what files have, and zeros
    /// that loads have left in holes; with single blocks also what files have given up. 0 where the kernel does not tell.
    pub fn resident_bytes(&self) -> u64 {
        if self.inner.home().is_here() { self.inner.store.memory.resident_bytes() } else { 0 }
    }

    /// Free blocks, and all blocks; none in a child process.
    fn usage(&self) -> (u64, u64) {
        if self.inner.home().is_here() { self.inner.store.usage() } else { (0, 0) }
    }

    /// Breaks a safety rule, or mends it. Never for use.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn sabotage(&self, rule: Rule, broken: bool) {
        self.inner.store.switches.set(rule, broken);
    }

    /// Breaks the one rule that the demo shows being broken. Never for use: files on this volume
    /// will see each other's bytes.
    #[cfg(feature = "inside")]
    #[doc(hidden)]
    pub fn demonstrate_without_revalidation(&self) {
        self.inner.store.switches.set(Rule::Revalidate, true);
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (free, total) = self.usage();
        f.debug_struct("Volume").field("free_blocks", &free).field("blocks", &total).finish()
    }
}
