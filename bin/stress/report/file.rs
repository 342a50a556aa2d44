//! Reports as files: whole or not at all, and refused before a run rather than after it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

/// Fails if `path` cannot be written. What it holds stays; a file that was not there is there after it, empty.
pub(crate) fn check_writable(path: &Path) -> anyhow::Result<()> {
    // To open a FIFO would wait for its reader, and to close it again would send the reader away.
    if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()) {
        return Ok(());
    }
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    opened.map(drop).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes `content` as `path`. Nobody ever sees a half-written regular file there.
pub(crate) fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let to_be_replaced = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.is_file(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    let written = match to_be_replaced {
        true => match replace(path, content) {
            // A file that may be written, in a directory that may not.
            Err(error) if is_forbidden(&error) => write_straight(path, content),
            written => written,
        },
        false => write_straight(path, content),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn is_forbidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Writes a temporary file beside `path`, and gives it that name.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_file_name(format!(".daxpager-stress.{}.{number}.tmp", std::process::id()));
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::report::example::Directory;

    #[test]
    fn a_file_is_replaced_and_nothing_left_beside_it() {
        let directory = Directory::new();
        let path = directory.path("report.json");
        write(&path, b"first, and longer").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let held = File::open(&path).unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_ne!(std::fs::metadata(&path).unwrap().ino(), inode, "written over, not replaced");
        assert_eq!(std::io::read_to_string(held).unwrap(), "first, and longer");
        assert_eq!(directory.names(), ["report.json"]);
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = Directory::new();
        let (path, link) = (directory.path("report"), directory.path("link"));
        symlink(&path, &link).unwrap();
        write(&link, b"first, and longer").unwrap();
        write(&link, b"second").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(directory.names(), ["link", "report"]);
    }

    #[test]
    fn a_device_is_written_straight() {
        let null = Path::new("/dev/null");
        check_writable(null).unwrap();
        write(null, b"gone").unwrap();
        assert!(std::fs::metadata(null).unwrap().file_type().is_char_device());
    }

    #[test]
    fn a_check_keeps_what_is_there() {
        let directory = Directory::new();
        let path = directory.path("report");
        std::fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        check_writable(&directory.path("new")).unwrap();
    }

    #[test]
    fn an_unwritable_path_is_refused() {
        let directory = Directory::new();
        let path = directory.path("missing/report");
        for refused in [path.as_path(), directory.root(), Path::new("/dev/null/report"), Path::new("")] {
            let error = format!("{:#}", check_writable(refused).unwrap_err());
            assert!(error.starts_with(&format!("cannot write {}", refused.display())), "{error}");
            assert!(write(refused, b"x").is_err(), "{}", refused.display());
        }
        assert!(directory.names().is_empty());
    }

    #[test]
    fn a_full_disk_leaves_the_error() {
        assert!(write(Path::new("/dev/full"), b"x").is_err());
    }
}
