//! A call of another thread on a mapping, that waits for its pipe halfway.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use daxpager::{Mapping, Result};

use super::stage::{Scene, wait_for};
use crate::machine::page_bytes;
use crate::oracle::Kind;

/// What is read into a mapping.
pub(super) const READ: u8 = 0x77;

enum Pipe {
    /// The thread is in read_from, and this is where it reads from.
    In(PipeWriter),
    /// The thread is in write_to, and its pipe is full: of so many bytes that are not the mapping's.
    Out(PipeReader, usize),
}

pub(super) struct Call {
    name: &'static str,
    pipe: Pipe,
    /// For what goes through the pipe: later there may be no memory.
    buffer: Vec<u8>,
    thread: JoinHandle<Result<usize>>,
}

const PIPE_MOST: usize = 64 << 10;
/// How long it may take a thread to fall asleep in its pipe. It is not seen where the kernel does not tell; then the call may come late.
const FALLING_ASLEEP: Duration = Duration::from_secs(2);

impl Call {
    /// Begins one, of all of the mapping.
    pub(super) fn begin(scene: &mut Scene, map: &Arc<Mapping>) -> anyhow::Result<Self> {
        let (reader, mut writer) = std::io::pipe()?;
        let (tell, told) = std::sync::mpsc::channel();
        let (map, bytes) = (map.clone(), map.len());
        let (name, pipe, thread) = if scene.rng.bool() {
            let thread = std::thread::Builder::new().spawn(move || {
                let _ = tell.send(nix::unistd::gettid());
                map.read_from(reader.as_fd(), 0, bytes)
            })?;
            ("read_from", Pipe::In(writer), thread)
        } else {
            let room = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ)? as usize;
            writer.write_all(&vec![0; room])?;
            let thread = std::thread::Builder::new().spawn(move || {
                let _ = tell.send(nix::unistd::gettid());
                map.write_to(writer.as_fd(), 0, bytes)
            })?;
            ("write_to", Pipe::Out(reader, room), thread)
        };
        scene.step(&format!("a thread is in {name}"));
        let tid = told.recv()?;
        let wchan = format!("/proc/self/task/{tid}/wchan");
        wait_for(FALLING_ASLEEP, || std::fs::read_to_string(&wchan).is_ok_and(|text| text.contains("pipe")));
        Ok(Self { name, pipe, buffer: vec![READ; PIPE_MOST], thread })
    }

    /// Lets it go on, and ends it; what came of it, if it has ended in time. Bytes that it has written are the file's.
    pub(super) fn go_on(mut self, scene: &Scene) -> Option<Result<usize>> {
        scene.step(&format!("{} goes on", self.name));
        match self.pipe {
            Pipe::In(mut writer) => {
                // An error where it has ended already.
                let _ = writer.write_all(&self.buffer[..page_bytes() as usize]);
            }
            Pipe::Out(mut reader, others) => {
                let mut left = others;
                // Until the thread has ended, and with it the other end of the pipe; what comes late is looked at, too.
                while let Ok(bytes @ 1..) = reader.read(&mut self.buffer) {
                    scene.check_bytes(&self.buffer[left.min(bytes)..bytes], "write_to, through its pipe");
                    left -= left.min(bytes);
                }
            }
        }
        if !wait_for(scene.limit, || self.thread.is_finished()) {
            scene.found(Kind::Hang, "a call that ends", &format!("{} goes on and on", self.name));
            return None;
        }
        let went = self.thread.join().ok();
        if went.is_none() {
            scene.found(Kind::Error, "no panic", &format!("{} has panicked", self.name));
        }
        scene.check_guards(&format!("a {} of {:?}", self.name, went));
        went
    }
}
