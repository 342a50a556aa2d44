//! A real file under the kernel's own mmap, on ext4 or XFS.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, fstatfs};

/// Not in the crate `nix` for musl.
const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);

pub struct RealFile {
    file: File,
    map: MmapRaw,
    path: PathBuf,
    file_system: &'static str,
}

impl RealFile {
    /// An empty file of which `bytes` are mapped.
    ///
    /// # Panics
    /// When the directory is on no file system that can be an oracle: that is no pass.
    pub fn new(name: &str, bytes: u64) -> Self {
        let dir = std::env::var_os("DAXPAGER_ORACLE_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
        let path = dir.join(format!("oracle-{name}-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let file_system = match fstatfs(&file).unwrap().filesystem_type() {
            kind if kind == EXT4_SUPER_MAGIC => "ext4",
            kind if kind == XFS_SUPER_MAGIC => "XFS",
            kind => panic!("{} is on neither ext4 nor XFS ({kind:?}): set DAXPAGER_ORACLE_DIR", dir.display()),
        };
        let map = MmapOptions::new().len(bytes as usize).map_raw(&file).unwrap();
        Self { file, map, path, file_system }
    }

    pub fn file_system(&self) -> &'static str {
        self.file_system
    }

    pub fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    pub fn truncate(&self, size: u64) {
        self.file.set_len(size).unwrap();
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) {
        fallocate(&self.file, flags, offset as i64, len as i64)
            .unwrap_or_else(|errno| panic!("fallocate({flags:?}) on fd {}: {errno}", self.file.as_raw_fd()));
    }

    pub fn punch_hole(&self, offset: u64, len: u64) {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len);
    }

    pub fn zero_range(&self, offset: u64, len: u64, keep: bool) {
        let keep = if keep { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
        self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, offset, len);
    }

    pub fn allocate(&self, offset: u64, len: u64, keep: bool) {
        let keep = if keep { FallocateFlags::FALLOC_FL_KEEP_SIZE } else { FallocateFlags::empty() };
        self.fallocate(keep, offset, len);
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) {
        self.file.write_all_at(bytes, offset).unwrap();
    }

    pub fn read(&self, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Stores through the kernel's mapping; `false` for a SIGBUS.
    pub fn store(&self, offset: u64, bytes: &[u8]) -> bool {
        assert!(offset as usize + bytes.len() <= self.map.len());
        // SAFETY: within the mapping (checked); nothing borrows its bytes.
        unsafe { daxpager::checked::copy_in(self.map.as_mut_ptr() as usize + offset as usize, bytes) }.is_ok()
    }

    /// A page through the kernel's mapping; none for a SIGBUS.
    pub fn load(&self, offset: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        assert!(offset as usize + bytes.len() <= self.map.len());
        // SAFETY: within the mapping (checked).
        unsafe { daxpager::checked::copy_out(self.map.as_ptr() as usize + offset as usize, &mut bytes) }.ok()?;
        Some(bytes)
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
