//! The file behind a device, read and written by pread(2) and pwrite(2) on its descriptor: nothing that another process does to the
//! file is a SIGBUS here.
//!
//! | device | who else has it | a page that is not there |
//! |---|---|---|
//! | memfd, sealed against shrinking and growing | nobody | zeros, as on any tmpfs |
//! | file on tmpfs | whoever opens the path | lost: [`Error::DeviceLost`], unless all of it is written anew |
//! | file on hugetlbfs | whoever opens the path | likewise |
//!
//! On a file with a name, every block is written before a file of the volume has it as a written one. So a page that is not there is one that
//! somebody has taken away. It is looked for where it can matter: after a read of nothing but zeros, and before a
//! write of a part. What another process does between that look and the write behind it is not seen: then the
//! rest of that block reads as zeros, and a file that is cut short at that moment is as long again as the write reaches.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, Flock, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek};

use super::open::{self, Opened};
use super::{base_page_bytes, check_size};
use crate::error::{Error, Result};
use crate::sync::plain::{AtomicU64, Ordering};
use crate::sys::access;

/// What is written where zeros are wanted.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Bytes that are read first where zeros are looked for: most pages that have any others begin with some.
const GLANCE_BYTES: usize = 64;
/// And then at a time.
const PIECE_BYTES: usize = 4096;

pub(super) struct DeviceFile {
    file: Flock<File>,
    /// The path as it was given, or the memfd's name.
    path: PathBuf,
    kind: Kind,
    len_bytes: u64,
    /// How long the file is: more than that if it is sparse.
    span_bytes: AtomicU64,
    block_bytes: u64,
}

/// How long a sparse device is made, in bytes, if the process may.
const SPAN_BYTES: u64 = 1 << 60;

enum Kind {
    Memfd,
    Tmpfs,
    /// hugetlbfs has no write(2): written to through this mapping of all of it, by accesses whose SIGBUS is caught, and by nothing else.
    Hugetlbfs(MmapRaw),
}

/// Whether a device of `bytes` bytes can have blocks of the size that it is told.
fn check(bytes: u64) -> impl Fn(u64) -> Result<()> {
    move |block_bytes| {
        check_size(bytes, block_bytes)?;
        check_file_size_limit(bytes)
    }
}

impl DeviceFile {
    pub(super) fn memfd(name: &str, bytes: u64) -> Result<Self> {
        let block_bytes = base_page_bytes();
        check_size(bytes, block_bytes)?;
        check_file_size_limit(bytes)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(name, flags).map_err(|errno| Error::system("memfd_create", errno))?;
        let file = open::lock(File::from(fd), Path::new(name))?;
        ftruncate(&*file, bytes as i64).map_err(|errno| Error::system("ftruncate", errno))?;
        // Whoever gets at it by /proc may punch it, and, when it is as long as it is to be (`settle`), no more.
        fcntl(&*file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
            .map_err(|errno| Error::system("fcntl(F_ADD_SEALS)", errno))?;
        let span_bytes = AtomicU64::new(bytes);
        Ok(Self { file, path: PathBuf::from(name), kind: Kind::Memfd, len_bytes: bytes, span_bytes, block_bytes })
    }

    /// Makes a memfd as long as it can be.
    pub(super) fn stretch(&self) -> u64 {
        let allowed = file_size_limit().unwrap_or(SPAN_BYTES) / self.block_bytes * self.block_bytes;
        let bytes = allowed.clamp(self.len_bytes, SPAN_BYTES.max(self.len_bytes));
        if ftruncate(&*self.file, bytes as i64).is_ok() {
            self.span_bytes.store(bytes, Ordering::Relaxed);
        }
        self.settle();
        self.span_bytes()
    }

    /// The file stays as long as it is.
    pub(super) fn settle(&self) {
        if self.is_private() {
            // It has been asked for one seal already, so it takes them.
            let _ = fcntl(&*self.file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL));
        }
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        fstat(&*self.file).map_or(0, |stat| stat.st_blocks as u64 * 512)
    }

    /// What lseek(2) finds with `SEEK_DATA` and `SEEK_HOLE`. Nobody relies on where the file's own offset is.
    pub(super) fn resident_in(&self, offset: u64, bytes: u64) -> u64 {
        let end = offset + bytes;
        let find = |at: u64, whence| lseek(&*self.file, at as i64, whence).map(|at| (at as u64).min(end));
        let (mut at, mut resident) = (offset, 0);
        // ENXIO: no data from there on.
        while at < end
            && let Ok(data) = find(at, Whence::SeekData)
            && data < end
            && let Ok(hole) = find(data, Whence::SeekHole)
        {
            resident += hole.saturating_sub(data);
            at = hole.max(data).max(at + 1);
        }
        resident
    }

    /// Calls `with` for an aligned word, through a mapping that is made for it alone.
    pub(super) fn with_word<T>(&self, offset: u64, with: impl FnOnce(&AtomicU64) -> T) -> Result<T> {
        let page = base_page_bytes();
        let within = (offset % page) as usize;
        let system = |error: std::io::Error| Error::System { call: "mmap", errno: error.raw_os_error().unwrap_or(0) };
        let alias = MmapOptions::new().offset(offset - offset % page).len(page as usize).map_raw(&*self.file);
        let alias = alias.map_err(system)?;
        assert!(within + 8 <= alias.len() && within.is_multiple_of(8), "{offset} is not a word's");
        let word = alias.as_mut_ptr().wrapping_add(within).cast::<u64>();
        // SAFETY: aligned, and within the mapping, by the assertion; that lives as long as `alias`. Others access the word as a whole too,
        // by instructions that are atomic, or through other mappings of it, which no reference of ours points into. A memfd has a page
        // there, or makes one: its length is sealed.
        let word = unsafe { AtomicU64::from_ptr(word) };
        Ok(with(word))
    }

    /// Whether there is a page at all in a range. Looks no further.
    pub(super) fn is_anything_in(&self, offset: u64, bytes: u64) -> bool {
        lseek(&*self.file, offset as i64, Whence::SeekData).is_ok_and(|data| (data as u64) < offset + bytes)
    }

    pub(super) fn span_bytes(&self) -> u64 {
        self.span_bytes.load(Ordering::Relaxed)
    }

    /// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`, which no limit stands in the way of: whole pages go, and parts of others are zeros.
    pub(super) fn punch(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes)
    }

    /// The file at `path`, created if it is not there. It keeps its bytes and its length if it cannot be used, and is not there
    /// afterwards if it was not before.
    pub(super) fn open(path: &Path, bytes: u64) -> Result<Self> {
        Self::of(open::open(path, check(bytes))?, path, bytes)
    }

    /// A file that is open. `name` is what errors call it.
    pub(super) fn from_file(file: File, name: &Path, bytes: u64) -> Result<Self> {
        Self::of(open::take(file.into(), name, None, check(bytes))?, name, bytes)
    }

    fn of(opened: Opened<'_>, path: &Path, bytes: u64) -> Result<Self> {
        let used = Self::empty(&opened, bytes);
        match used {
            Ok(kind) => {
                let block_bytes = opened.block_bytes;
                let (path, span_bytes) = (path.to_owned(), AtomicU64::new(bytes));
                Ok(Self { file: opened.keep(), path, kind, len_bytes: bytes, span_bytes, block_bytes })
            }
            Err(error) => {
                opened.undo();
                Err(error)
            }
        }
    }

    /// Empties the file and gives it its size.
    fn empty(opened: &Opened, bytes: u64) -> Result<Kind> {
        let file: &File = &opened.file;
        // What can fail comes before what loses bytes.
        let kind = if opened.huge {
            if let Err(errno) = access::enable() {
                return Err(Error::system("sigaction", errno));
            }
            Kind::Hugetlbfs(map_alias(file, bytes)?)
        } else {
            Kind::Tmpfs
        };
        let resize = |bytes: u64| ftruncate(file, bytes as i64).map_err(|errno| Error::system("ftruncate", errno));
        if bytes > opened.len_bytes {
            resize(bytes)?;
        }
        // To nothing: old bytes must not show up in new files.
        resize(0)?;
        resize(bytes)?;
        Ok(kind)
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub(super) fn is_huge(&self) -> bool {
        matches!(self.kind, Kind::Hugetlbfs(_))
    }

    /// Whether no other process can open the file: then what is missing in it reads as zeros.
    pub(super) fn is_private(&self) -> bool {
        matches!(self.kind, Kind::Memfd)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// fallocate(2): what is there stays as it is, and a file that somebody has cut short is no longer for it.
    pub(super) fn allocate(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        self.fallocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, bytes)
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, bytes: u64) -> Result<(), Errno> {
        loop {
            match fallocate(&*self.file, flags, offset as i64, bytes as i64) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    pub(super) fn lost(&self, offset: u64) -> Error {
        Error::DeviceLost { device: self.path.clone(), block: offset / self.block_bytes, offset }
    }

    /// What a refused write at `offset` means.
    fn refused(&self, offset: u64, errno: Errno) -> Error {
        match errno {
            Errno::EIO => self.lost(offset),
            errno => Error::DeviceMemory { block: offset / self.block_bytes, errno: errno as i32 },
        }
    }

    /// The parts of a range that lie in one block each: where they begin, and where among all.
    fn in_blocks(&self, offset: u64, bytes: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> + use<> {
        let (block, end) = (self.block_bytes, offset + bytes);
        let mut at = offset;
        std::iter::from_fn(move || {
            let start = at;
            at = end.min((start / block + 1) * block);
            (start < end).then(|| (start, (start - offset) as usize..(at - offset) as usize))
        })
    }

    /// Whether the block with byte `offset` has a page, as far as can be told: of a block that has been written once.
    fn is_present(&self, offset: u64) -> bool {
        let block = offset / self.block_bytes * self.block_bytes;
        match &self.kind {
            Kind::Memfd => true,
            Kind::Tmpfs => lseek(&*self.file, block as i64, Whence::SeekData) == Ok(block as i64),
            // SEEK_DATA knows no holes there. But the alias has an entry where it has been written through, until the page goes,
            // or until the kernel stops sharing page tables with another process. And read(2) sees holes as zeros.
            Kind::Hugetlbfs(alias) => {
                is_entered(alias, block) || self.reads_as_zeros(block, self.block_bytes) == Ok(false)
            }
        }
    }

    fn check_present(&self, offset: u64) -> Result<()> {
        if self.is_present(offset) { Ok(()) } else { Err(self.lost(offset)) }
    }

    /// Copies out of the device.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if self.is_private() {
            return self.read_raw(offset, into);
        }
        for (at, part) in self.in_blocks(offset, into.len() as u64) {
            let part = &mut into[part];
            self.read_raw(at, part)?;
            if is_zeros(part) {
                self.check_present(at)?;
            }
        }
        Ok(())
    }

    fn read_raw(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            match pread(&*self.file, &mut into[done..], at as i64) {
                Ok(bytes) if bytes > 0 => done += bytes,
                Err(Errno::EINTR) => {}
                // The file ends before, or the memory has failed.
                Ok(_) | Err(_) => return Err(self.lost(at)),
            }
        }
        Ok(())
    }

    /// Copies into blocks that are there: the rest of one that is not would read as zeros from now on.
    pub(super) fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        if self.is_private() {
            return self.write_raw(offset, from);
        }
        for (at, part) in self.in_blocks(offset, from.len() as u64) {
            self.check_present(at)?;
            self.write_raw(at, &from[part])?;
        }
        Ok(())
    }

    /// Writes whole blocks, which are there afterwards.
    pub(super) fn fill(&self, offset: u64, from: &[u8]) -> Result<()> {
        self.check_length(offset + from.len() as u64)?;
        self.write_raw(offset, from)
    }

    /// That the file still reaches to `end`: a write past its end would make it longer again.
    fn check_length(&self, end: u64) -> Result<()> {
        if self.is_private() {
            return Ok(());
        }
        match fstat(&*self.file) {
            Ok(stat) if stat.st_size as u64 >= end => Ok(()),
            _ => Err(self.lost(end - 1)),
        }
    }

    fn write_raw(&self, offset: u64, from: &[u8]) -> Result<()> {
        if let Kind::Hugetlbfs(alias) = &self.kind {
            return copy_into(alias, offset, from).map_err(|()| match self.check_length(offset + from.len() as u64) {
                Ok(()) => self.refused(offset, Errno::ENOMEM),
                Err(lost) => lost,
            });
        }
        // A write past it raises SIGXFSZ.
        check_file_size_limit(offset + from.len() as u64)?;
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            match pwrite(&*self.file, &from[done..], at as i64) {
                Ok(bytes) => done += bytes,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.refused(at, errno)),
            }
        }
        Ok(())
    }

    /// Zeroes a range. Whole blocks are written, and there afterwards; of others what is not there stays so.
    pub(super) fn zero(&self, offset: u64, bytes: u64) -> Result<()> {
        let end = offset + bytes;
        let whole = offset.next_multiple_of(self.block_bytes)..end / self.block_bytes * self.block_bytes;
        if whole.is_empty() {
            return self.in_blocks(offset, bytes).try_for_each(|(at, part)| self.zero_part(at, part.len() as u64));
        }
        self.zero_part(offset, whole.start - offset)?;
        self.check_length(whole.end)?;
        self.write_zeros(whole.start, whole.end - whole.start)?;
        self.zero_part(whole.end, end - whole.end)
    }

    /// Copies whole blocks within the device.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let mut block = vec![0; self.block_bytes as usize];
        (0..bytes).step_by(block.len()).try_for_each(|done| {
            self.read(from + done, &mut block)?;
            self.fill(to + done, &block)
        })
    }

    fn write_zeros(&self, offset: u64, bytes: u64) -> Result<()> {
        (0..bytes).step_by(ZEROS.len()).try_for_each(|done| {
            let piece = (bytes - done).min(ZEROS.len() as u64) as usize;
            self.write_raw(offset + done, &ZEROS[..piece])
        })
    }

    /// A hole punched into a part of a page zeroes that part in place. It allocates nothing, and no limit stands in its way.
    fn zero_part(&self, offset: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // For the first page the kernel (6.18) takes the entries of all others away from everywhere: shmem_fallocate computes a range
        // that ends before it begins. Nothing is lost by that but time.
        if offset / self.block_bytes == 0
            && !self.is_huge()
            && self.is_present(offset)
            && self.write_zeros(offset, bytes).is_ok()
        {
            return Ok(());
        }
        self.punch(offset, bytes).map_err(|errno| self.refused(offset, errno))?;
        self.check_present(offset)
    }

    /// Whether a range is there, and all zeros.
    pub(super) fn is_zero(&self, offset: u64, bytes: u64) -> bool {
        self.reads_as_zeros(offset, bytes) == Ok(true)
            && (self.is_private() || self.in_blocks(offset, bytes).all(|(at, _)| self.is_present(at)))
    }

    /// Whether a range is nothing but zeros or holes.
    fn reads_as_zeros(&self, offset: u64, bytes: u64) -> Result<bool> {
        let mut buffer = [0u8; PIECE_BYTES];
        let end = offset + bytes;
        let mut at = offset;
        let mut step = GLANCE_BYTES as u64;
        while at < end {
            let piece = &mut buffer[..step.min(end - at) as usize];
            self.read_raw(at, piece)?;
            if !is_zeros(piece) {
                return Ok(false);
            }
            at += piece.len() as u64;
            step = PIECE_BYTES as u64;
        }
        Ok(true)
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// How long a file the process may make, in bytes, if that is limited.
fn file_size_limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_FSIZE).ok().map(|(allowed, _)| allowed).filter(|allowed| *allowed != RLIM_INFINITY)
}

/// A file that is longer than RLIMIT_FSIZE allows cannot be made, and trying raises SIGXFSZ.
fn check_file_size_limit(bytes: u64) -> Result<()> {
    match file_size_limit() {
        Some(allowed) if bytes > allowed => Err(Error::Limit {
            call: "ftruncate or pwrite",
            errno: Errno::EFBIG as i32,
            limit: "RLIMIT_FSIZE",
            unit: "bytes",
            allowed,
            wanted: bytes,
        }),
        _ => Ok(()),
    }
}

/// A mapping of a whole file on hugetlbfs. Not in core dumps, and not in child processes.
fn map_alias(file: &File, bytes: u64) -> Result<MmapRaw> {
    let system = |call| move |error: std::io::Error| Error::System { call, errno: error.raw_os_error().unwrap_or(0) };
    let alias = MmapOptions::new().len(bytes as usize).no_reserve_swap().map_raw(file).map_err(system("mmap"))?;
    alias.advise(Advice::DontDump).map_err(system("madvise(MADV_DONTDUMP)"))?;
    alias.advise(Advice::DontFork).map_err(system("madvise(MADV_DONTFORK)"))?;
    Ok(alias)
}

/// Copies into the alias. `Err` where that is a SIGBUS.
fn copy_into(alias: &MmapRaw, offset: u64, from: &[u8]) -> Result<(), ()> {
    assert!(offset + from.len() as u64 <= alias.len() as u64, "{offset} lies outside the device");
    // SAFETY: within the alias, by the assertion, which the borrow keeps; no reference points into it.
    unsafe { access::copy_to(alias.as_mut_ptr() as usize + offset as usize, from) }.map_err(drop)
}

/// Whether the alias has an entry for the huge page at `offset`.
fn is_entered(alias: &MmapRaw, offset: u64) -> bool {
    assert!(offset < alias.len() as u64, "{offset} lies outside the device");
    let mut there = 0u8;
    // SAFETY: one page of a mapping that the borrow keeps, and one byte for the answer.
    let asked = unsafe { libc::mincore(alias.as_mut_ptr().wrapping_add(offset as usize).cast(), 1, &mut there) };
    asked == 0 && there & 1 != 0
}
