//! Pagers that end under threads which load and store, copy, or wait in a call halfway. Guards are put at addresses as soon as they are free.

use std::collections::VecDeque;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use daxpager::{Device, Error, File, MapOptions, Mapping, Pager, Resolve, Volume};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::guards::{GUARD, Guards};
use super::one::Neighbour;
use crate::oracle::{Kind, lock};

const PAGES: u64 = 16;
const THREADS: u64 = 2;
/// Guards that are kept where mappings have been.
const GUARDS_MOST: usize = 8;

struct Stage {
    _volume: Volume,
    file: File,
    pager: Pager,
    map: Arc<Mapping>,
}

/// With a device of its own: what becomes of it is no business of the oracle's.
fn stage(page: u64, resolve: Resolve) -> daxpager::Result<Stage> {
    let volume = Volume::format(Device::memfd("neighbour", 2 * PAGES * page)?);
    let file = volume.create("file")?;
    file.truncate(PAGES * page)?;
    let pager = Pager::builder().workers(1).thread_name("nbr").start()?;
    let map = Arc::new(pager.map_with(&file, 0..PAGES * page, &MapOptions::new().resolve(resolve))?);
    Ok(Stage { _volume: volume, file, pager, map })
}

/// Stores and loads until the pager has ended; what was wrong. Each thread has a word of each page.
fn work(map: &Mapping, page: u64, thread: u64) -> Result<(), String> {
    let mut stored = [0; PAGES as usize];
    for value in 1.. {
        let index = value % PAGES;
        let at = index * page + 8 * thread;
        let found = match map.store(at, value).and_then(|()| map.load(at)) {
            Ok(found) => found,
            Err(Error::Bus(_) | Error::PagerGone { .. }) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        stored[index as usize] = value;
        if found != value {
            return Err(format!("loaded {found}, and had stored {value}"));
        }
    }
    Ok(())
}

/// Copies into all of the mapping, and out of it, until the pager has ended; what was wrong. Words that others store are in the first ones
/// of each page.
fn copy(map: &Mapping, page: u64) -> Result<(), String> {
    let from = vec![COPIED; page as usize - OTHERS as usize];
    let mut into = vec![0; from.len()];
    loop {
        for index in 0..PAGES {
            let at = index * page + OTHERS;
            match map.copy_in(at, &from).and_then(|()| map.copy_out(at, &mut into)) {
                Ok(()) => {}
                Err(Error::Bus(_) | Error::PagerGone { .. }) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
            if let Some(at) = into.iter().position(|byte| *byte != COPIED) {
                return Err(format!("copied {:#x} out at byte {at}, and had copied {COPIED:#x} in", into[at]));
            }
        }
    }
}

/// A byte that is no guard's.
const COPIED: u8 = 0x55;
/// Bytes of each page that are other threads'.
const OTHERS: u64 = 64;

/// A thread in read_from or write_to, that waits for its pipe, and what lets it go on.
struct Call {
    name: &'static str,
    thread: JoinHandle<daxpager::Result<usize>>,
    pipe: Result<PipeReader, PipeWriter>,
}

impl Call {
    fn begin(map: &Arc<Mapping>, reads: bool) -> std::io::Result<Self> {
        let (reader, mut writer) = std::io::pipe()?;
        let map = map.clone();
        let new = std::thread::Builder::new();
        if reads {
            let thread = new.spawn(move || map.read_from(reader.as_fd(), 0, map.len()))?;
            return Ok(Self { name: "read_from", thread, pipe: Err(writer) });
        }
        // Full: the call waits until somebody reads.
        let room = fcntl(&writer, FcntlArg::F_GETPIPE_SZ)? as usize;
        writer.write_all(&vec![0; room])?;
        let thread = new.spawn(move || map.write_to(writer.as_fd(), 0, map.len()))?;
        Ok(Self { name: "write_to", thread, pipe: Ok(reader) })
    }

    /// What was wrong.
    fn go_on(self) -> Result<(), String> {
        let mut bytes = Vec::new();
        match self.pipe {
            Ok(mut reader) => drop(reader.read_to_end(&mut bytes)),
            Err(mut writer) => drop(writer.write_all(&[COPIED; 4096])),
        }
        if let Some(at) = bytes.iter().position(|byte| *byte >= GUARD) {
            return Err(format!("{:#x}, a guard's, at byte {at} of what {} wrote", bytes[at], self.name));
        }
        match self.thread.join() {
            // Where it had not begun to wait, it may have been served.
            Ok(Ok(_) | Err(Error::MappingLost { .. } | Error::PagerGone { .. })) => Ok(()),
            Ok(Err(Error::System { errno, .. })) if errno == Errno::EFAULT as i32 => Ok(()),
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            Err(_) => Err("a panic, which is printed above".to_owned()),
        }
    }
}

pub(super) fn run(neighbour: &mut Neighbour) {
    let page = neighbour.world.oracle.page_bytes;
    let mut guards = VecDeque::new();
    while neighbour.goes_on() {
        let resolve = if neighbour.rng.bool() && cfg!(target_arch = "x86_64") {
            Resolve::FaultingThread
        } else {
            Resolve::PagerThread
        };
        let room = neighbour.room.clone();
        let held = lock(&room);
        // Where something is scarce there may be none.
        let Ok(Stage { _volume, file, pager, map }) = stage(page, resolve) else {
            drop(held);
            neighbour.pause(5..20);
            continue;
        };
        let start = |thread| {
            let map = map.clone();
            std::thread::Builder::new().spawn(move || work(&map, page, thread))
        };
        let mut threads: Vec<_> = (0..THREADS).filter_map(|thread| start(thread).ok()).collect();
        let copied = map.clone();
        threads.extend(std::thread::Builder::new().spawn(move || copy(&copied, page)).ok());
        let call = Call::begin(&map, neighbour.rng.bool()).ok();
        drop(held);
        std::thread::sleep(Duration::from_micros(neighbour.rng.u64(0..5000)));
        if let Err(error) = pager.shutdown() {
            neighbour.report(Kind::Error, "a pager that ends in order", error.to_string());
        }
        let (at, bytes) = (map.as_ptr() as usize, map.len() as usize);
        let mut guard = Guards::none(neighbour.rng.u64(..));
        if guard.place(at, bytes, page as usize).is_some() {
            let found = "they could be mapped by somebody else when the pager had ended".to_owned();
            neighbour.report(Kind::Harm, "addresses that stay a mapping's until it is dropped", found);
        }
        if let Some(Err(found)) = call.map(Call::go_on) {
            neighbour.report(Kind::Harm, "an error from a call that goes on after the end of the pager", found);
        }
        for thread in threads {
            if let Err(found) = thread.join().unwrap_or_else(|_| Err("a panic, which is printed above".to_owned())) {
                neighbour.report(Kind::Error, "words as they were stored until the pager ends", found);
            }
        }
        for index in 0..PAGES {
            if let Ok(value) = map.load(index * page) {
                neighbour.report(Kind::NoSigbus, "SIGBUS: the pager has ended", value.to_string());
            }
        }
        // Now they are free, and may be anybody's: nothing of the library's may come there late.
        drop(map);
        guard.place(at, bytes, bytes);
        guards.push_back(guard);
        if let Some(harm) = guards.iter().find_map(Guards::harm) {
            neighbour.report(Kind::Harm, "bytes that nobody has written to, where a mapping has been", harm);
        }
        if guards.len() > GUARDS_MOST {
            guards.pop_front();
        }
        // The file goes on without it.
        let mut bytes = [0; 8];
        if let Err(error) = file.read_at(&mut bytes, 0) {
            neighbour.report(Kind::Error, "a file that can be read", error.to_string());
        }
        neighbour.pause(1..30);
    }
}
