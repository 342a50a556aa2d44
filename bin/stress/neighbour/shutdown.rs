//! Pagers that end under threads which load and store.

use std::sync::Arc;
use std::time::Duration;

use daxpager::{Device, Error, File, MapOptions, Mapping, Pager, Resolve, Volume};

use super::Neighbour;
use crate::oracle::{Kind, lock};

const PAGES: u64 = 16;
const THREADS: u64 = 2;

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

pub(super) fn run(neighbour: &mut Neighbour) {
    let page = neighbour.world.oracle.page_bytes;
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
        let threads: Vec<_> = (0..THREADS).filter_map(|thread| start(thread).ok()).collect();
        drop(held);
        std::thread::sleep(Duration::from_micros(neighbour.rng.u64(0..5000)));
        if let Err(error) = pager.shutdown() {
            neighbour.report(Kind::Error, "a pager that ends in order", error.to_string());
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
        // The file goes on without it.
        let mut bytes = [0; 8];
        if let Err(error) = file.read_at(&mut bytes, 0) {
            neighbour.report(Kind::Error, "a file that can be read", error.to_string());
        }
        neighbour.pause(1..30);
    }
}
