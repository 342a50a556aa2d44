//! What is promised of a report's file.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::example::Directory;
use crate::output::Output;

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    Output::check(path)?.write(content)
}

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
    write(null, b"gone").unwrap();
    assert!(std::fs::metadata(null).unwrap().file_type().is_char_device());
}

#[test]
fn a_check_keeps_what_is_there() {
    let directory = Directory::new();
    let path = directory.path("report");
    std::fs::write(&path, "old").unwrap();
    Output::check(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    Output::check(&directory.path("new")).unwrap();
}

#[test]
fn an_unwritable_path_is_refused() {
    let directory = Directory::new();
    let (missing, fifo, socket) = (directory.path("missing/report"), directory.path("fifo"), directory.path("socket"));
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    for (refused, why) in [
        (missing.as_path(), "No such file"),
        (directory.root(), "Is a directory"),
        (Path::new("/dev/null/report"), "Not a directory"),
        (Path::new(""), "No such file"),
        (&fifo, "a FIFO that nobody reads"),
        (&socket, "a socket"),
    ] {
        let error = format!("{:#}", Output::check(refused).unwrap_err());
        assert!(error.starts_with(&format!("cannot write {}", refused.display())), "{error}");
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(directory.names(), ["fifo", "socket"]);
}

#[test]
fn a_fifo_that_is_read_gets_all_of_it() {
    let directory = Directory::new();
    let fifo = directory.path("fifo");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let path = fifo.clone();
    // Opening waits for the other end; so the check is made again until somebody is there.
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    let output = (0..3000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        Output::check(&fifo).ok()
    });
    let output = output.expect("the reader opens the FIFO");
    // More than a pipe holds.
    let content = vec![7; 1 << 20];
    output.write(&content).unwrap();
    drop(output);
    assert!(reader.join().unwrap() == content);
}

#[test]
fn a_full_disk_leaves_the_error() {
    assert!(write(Path::new("/dev/full"), b"x").is_err());
}
