//! Reports as files: whole or not at all, and refused before a run rather than after it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A place that a report can be written to.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    /// A pipe, open from the check on: closed in between, it would send its reader away.
    pipe: Option<File>,
}

impl Output {
    /// Fails if `path` cannot be written, and waits for nobody. What it holds stays; a file that was not there is there after
    /// it, empty.
    pub(crate) fn check(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("cannot write {}", path.display());
        let kind = std::fs::metadata(path).ok().map(|meta| meta.file_type());
        if kind.is_some_and(|kind| kind.is_socket()) {
            bail!("{}: it is a socket", what());
        }
        let is_pipe = kind.is_some_and(|kind| kind.is_fifo());
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
        let opened = OpenOptions::new().write(true).create(!is_pipe).truncate(false).custom_flags(flags).open(path);
        match opened {
            Err(error) if is_pipe && error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                bail!("{}: it is a FIFO that nobody reads", what())
            }
            Err(error) => Err(error).with_context(what),
            Ok(file) if is_pipe => {
                // The reader may be slow.
                fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).with_context(what)?;
                Ok(Self { path: path.to_owned(), pipe: Some(file) })
            }
            Ok(_) => Ok(Self { path: path.to_owned(), pipe: None }),
        }
    }

    /// Writes `content` there. Nobody ever sees a half-written regular file.
    pub(crate) fn write(&self, content: &[u8]) -> anyhow::Result<()> {
        let written = match (&self.pipe, is_to_be_replaced(&self.path)) {
            (Some(pipe), _) => (&mut &*pipe).write_all(content),
            (None, true) => match replace(&self.path, content) {
                // A file that may be written, in a directory that may not.
                Err(error) if is_forbidden(&error) => write_straight(&self.path, content),
                written => written,
            },
            (None, false) => write_straight(&self.path, content),
        };
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn is_to_be_replaced(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.is_file(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

fn is_forbidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Writes a temporary file beside `path`, and gives it that name.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_file_name(format!(".daxpager.{}.{number}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
    let renamed = (|| {
        if let Ok(meta) = std::fs::metadata(path) {
            file.set_permissions(meta.permissions())?;
        }
        file.write_all(content)?;
        // Else a crash of the machine could leave the new name with nothing in it.
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if renamed.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    renamed
}

fn write_straight(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = match own_output(path) {
        Some(file) => file,
        None => OpenOptions::new().write(true).create(true).truncate(true).open(path)?,
    };
    file.write_all(content)
}

/// Stdout or stderr, if `path` names one. If that is a regular file, to open it once more would begin at its start
/// and overwrite what has been printed.
fn own_output(path: &Path) -> Option<File> {
    let wanted = std::fs::metadata(path).ok()?;
    let is_same = |fd: BorrowedFd<'_>| {
        let file = File::from(fd.try_clone_to_owned().ok()?);
        let meta = file.metadata().ok()?;
        ((meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino())).then_some(file)
    };
    is_same(std::io::stdout().as_fd()).or_else(|| is_same(std::io::stderr().as_fd()))
}
