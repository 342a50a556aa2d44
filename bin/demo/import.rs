//! The file that is imported: whether it can be, its bytes into a volume, and its SHA-256 by several ways.

use std::fs::{self, File as Source};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use daxpager::{Error, File, Mapping};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

/// The largest file: the device lies in memory.
const BYTES_MAX: u64 = 1 << 30;
const COPY_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 1 << 20;

/// A file that cannot be imported, and why. Misuse, not failure.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(crate) struct Refusal {
    path: PathBuf,
    reason: String,
}

/// The file to import.
pub(crate) struct Input {
    path: PathBuf,
    pub(crate) len: u64,
}

impl Input {
    /// Looks whether `path` can be imported.
    pub(crate) fn check(path: &Path) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal { path: path.to_owned(), reason };
        // Asked before it is opened: opening a pipe would wait for its writer.
        let about = fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
        if about.is_dir() {
            return Err(refuse("is a directory; a regular file is wanted".to_owned()));
        }
        if !about.is_file() {
            return Err(refuse("is not a regular file".to_owned()));
        }
        match about.len() {
            0 => return Err(refuse("is empty; there is nothing to import".to_owned())),
            len if len > BYTES_MAX => {
                let reason =
                    format!("has {len} bytes; at most {BYTES_MAX} (1 GiB) are imported, as they lie in memory");
                return Err(refuse(reason));
            }
            _ => {}
        }
        let input = Self { path: path.to_owned(), len: about.len() };
        input.open().map_err(|error| refuse(error.to_string()))?;
        Ok(input)
    }

    fn open(&self) -> std::io::Result<impl Read> {
        Ok(Source::open(&self.path)?.take(self.len))
    }

    /// The file's name for a reader: what `/proc/self/exe` stands for, if it is that.
    pub(crate) fn name(&self) -> String {
        fs::read_link(&self.path).unwrap_or_else(|_| self.path.clone()).display().to_string()
    }

    /// Writes the file's bytes to `file`.
    pub(crate) fn import(&self, file: &File) -> anyhow::Result<()> {
        let style = "importing [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}";
        let bar = ProgressBar::new(self.len).with_style(ProgressStyle::with_template(style)?);
        let mut at = 0;
        self.each_piece(|piece| {
            file.write_at(piece, at)?;
            at += piece.len() as u64;
            bar.set_position(at);
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(())
    }

    /// The SHA-256 of the file itself, read once more.
    pub(crate) fn sha(&self) -> anyhow::Result<String> {
        let mut sha = Sha256::new();
        self.each_piece(|piece| {
            sha.update(piece);
            Ok(())
        })?;
        Ok(hex(sha))
    }

    fn each_piece(&self, mut then: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut source = self.open().with_context(|| format!("cannot read {}", self.path.display()))?;
        let mut buffer = vec![0; READ_BYTES];
        let mut left = self.len;
        while left > 0 {
            let read = source.read(&mut buffer).with_context(|| format!("cannot read {}", self.path.display()))?;
            if read == 0 {
                let reason = format!("became shorter while it was read: {left} of {} bytes are missing", self.len);
                return Err(Refusal { path: self.path.clone(), reason }.into());
            }
            then(&buffer[..read])?;
            left -= read as u64;
        }
        Ok(())
    }
}

/// The SHA-256 of the first `len` bytes that a mapping shows, each page faulted in.
pub(crate) fn sha_of_mapping(map: &Mapping, len: u64) -> Result<String, Error> {
    sha_by(len, |at, buffer| map.copy_out(at, buffer))
}

/// The SHA-256 of the first `len` bytes of a file, read without a mapping.
pub(crate) fn sha_of_file(file: &File, len: u64) -> Result<String, Error> {
    sha_by(len, |at, buffer| {
        let wanted = buffer.len();
        let read = file.read_at(buffer, at)?;
        // A short read makes another digest, which is what the check is to see.
        buffer[read.min(wanted)..].fill(0xee);
        Ok(())
    })
}

fn sha_by(len: u64, mut read: impl FnMut(u64, &mut [u8]) -> Result<(), Error>) -> Result<String, Error> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    for at in (0..len).step_by(COPY_BYTES) {
        let piece = &mut buffer[..COPY_BYTES.min((len - at) as usize)];
        read(at, piece)?;
        sha.update(piece);
    }
    Ok(hex(sha))
}

fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
