//! Opens a device's file by its path. The file that has been opened is the one that is asked what it is and what it lies on.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, ftruncate, unlinkat};

use super::base_page_bytes;
use crate::error::{Error, Result};

/// How often a file that comes and goes at the path is looked for again.
const TRIES: u32 = 10;

/// A file that is open and locked, and has not been changed yet.
pub(super) struct Opened<'a> {
    pub(super) file: Flock<File>,
    pub(super) huge: bool,
    pub(super) block_bytes: u64,
    /// Its length before.
    pub(super) len_bytes: u64,
    /// Where it has been created.
    created: Option<Place<'a>>,
}

/// A directory, and a name in it.
pub(super) struct Place<'a> {
    dir: OwnedFd,
    name: &'a OsStr,
}

fn refused(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::system(call, errno)
}

/// flock(2), exclusively.
pub(super) fn lock(file: File, path: &Path) -> Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::DeviceBusy { path: path.to_owned() },
        errno => Error::system("flock", errno),
    })
}

/// Opens or creates the file. `check` is told the block size of the file system before anything is created.
pub(super) fn open<'a>(path: &'a Path, check: impl Fn(u64) -> Result<()>) -> Result<Opened<'a>> {
    for _ in 0..TRIES {
        let place = Place::of(path)?;
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&place.dir, place.name, look, Mode::empty()) {
            Ok(found) => {
                // Asked before it is opened for good: to open a device node may do something.
                check_regular(&found, path)?;
                let (_, block_bytes) = file_system(&found, path)?;
                check(block_bytes)?;
                let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
                let opened = openat(&place.dir, place.name, flags, Mode::empty());
                if matches!(opened, Err(Errno::ENOENT)) {
                    continue;
                }
                let fd = opened.map_err(refused("open"))?;
                return take(fd, path, None, check);
            }
            Err(Errno::ENOENT) => {
                // A new file lies where its directory does.
                let (_, block_bytes) = file_system(&place.dir, path)?;
                check(block_bytes)?;
                let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let opened = openat(&place.dir, place.name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
                if matches!(opened, Err(Errno::EEXIST)) {
                    continue;
                }
                let fd = opened.map_err(refused("open"))?;
                return take(fd, path, Some(place), check);
            }
            Err(errno) => return Err(Error::system("open", errno)),
        }
    }
    Err(Error::system("open", Errno::EAGAIN))
}

/// Takes an open file for a device if it may be one.
pub(super) fn take<'a>(
    fd: OwnedFd,
    path: &Path,
    created: Option<Place<'a>>,
    check: impl Fn(u64) -> Result<()>,
) -> Result<Opened<'a>> {
    let asked = check_regular(&fd, path).and_then(|len_bytes| {
        let (kind, block_bytes) = file_system(&fd, path)?;
        check(block_bytes)?;
        Ok((len_bytes, kind == HUGETLBFS_MAGIC, block_bytes))
    });
    let remove = |created: &Option<Place<'_>>, stat: &Result<FileStat, Errno>| {
        if let (Some(place), Ok(stat)) = (created, stat) {
            place.remove(stat);
        }
    };
    let stat = fstat(&fd);
    match asked {
        Ok((len_bytes, huge, block_bytes)) => match lock(File::from(fd), path) {
            Ok(file) => Ok(Opened { file, huge, block_bytes, len_bytes, created }),
            // Another device has it already, if it was created here or not.
            Err(error @ Error::DeviceBusy { .. }) => Err(error),
            Err(error) => {
                remove(&created, &stat);
                Err(error)
            }
        },
        Err(error) => {
            remove(&created, &stat);
            Err(error)
        }
    }
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Result<Self> {
        if path.as_os_str().is_empty() {
            return Err(Error::system("open", Errno::ENOENT));
        }
        let name = path.file_name().filter(|_| !path.as_os_str().as_bytes().ends_with(b"/"));
        let name = name.ok_or(Error::system("open", Errno::EISDIR))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(AT_FDCWD, dir, flags, Mode::empty()).map_err(refused("open"))?;
        Ok(Self { dir, name })
    }

    /// Takes the name away, if it is still that file's.
    fn remove(&self, created: &FileStat) {
        let now = fstatat(&self.dir, self.name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if now.is_ok_and(|now| (now.st_dev, now.st_ino) == (created.st_dev, created.st_ino)) {
            let _ = unlinkat(&self.dir, self.name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Opened<'_> {
    pub(super) fn keep(self) -> Flock<File> {
        self.file
    }

    /// Leaves everything as it was, as far as nothing has been lost yet.
    pub(super) fn undo(self) {
        match (&self.created, fstat(&*self.file)) {
            (Some(place), Ok(stat)) => place.remove(&stat),
            (None, Ok(stat)) if stat.st_size as u64 > self.len_bytes => {
                let _ = ftruncate(&*self.file, self.len_bytes as i64);
            }
            _ => {}
        }
    }
}

/// The length of a regular file.
fn check_regular(fd: &OwnedFd, path: &Path) -> Result<u64> {
    let stat = fstat(fd).map_err(refused("fstat"))?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let kind = match kind {
        SFlag::S_IFREG => return Ok(stat.st_size as u64),
        SFlag::S_IFDIR => return Err(Error::system("open", Errno::EISDIR)),
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        _ => "a device node",
    };
    Err(Error::NotAFile { path: path.to_owned(), kind })
}

/// The file system that an open file lies on, and the size of its blocks, if devices can be there.
fn file_system(fd: &impl AsFd, path: &Path) -> Result<(FsType, u64)> {
    let stat = fstatfs(fd).map_err(refused("fstatfs"))?;
    let kind = stat.filesystem_type();
    match kind {
        HUGETLBFS_MAGIC => Ok((kind, stat.block_size() as u64)),
        TMPFS_MAGIC => Ok((kind, base_page_bytes())),
        kind => Err(Error::UnsupportedFileSystem { path: path.to_owned(), file_system: file_system_name(kind) }),
    }
}

/// Not in the crate `nix` for musl.
const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);

fn file_system_name(kind: FsType) -> String {
    use nix::sys::statfs;
    let known = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (XFS_SUPER_MAGIC, "XFS"),
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
