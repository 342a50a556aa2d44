//! Not one address range is left, or no address space: a page that needs a range is accessed, or the pager ends; beside a call that waits
//! halfway.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use daxpager::{Mapping, Pager, Result};
use nix::sys::resource::{Resource, getrlimit};

use super::call::Call;
use super::stage::{GUARD_BYTES, Scene, Stage, byte_of, check_ended, wait_for};
use crate::machine::page_bytes;
use crate::oracle::Kind;
use crate::scarce::{Hoard, limit};
use crate::work::names_a_shortage;

const PAGES: u64 = 64;
/// How many are left; a re-point takes some.
const LEFT: [usize; 6] = [0, 0, 0, 2, 5, 8];
/// A page that no call beside writes to, so that its word is known.
const PUNCHED: std::ops::Range<u64> = 20..PAGES;

/// What is short, until it is dropped.
enum Shortage {
    Ranges { _hoard: Hoard },
    Space { before: u64 },
}

impl Shortage {
    fn begin(scene: &mut Scene) -> Self {
        if scene.rng.u32(0..4) == 0 {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
            let pages = statm.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            let room = scene.rng.u64(0..8) * page_bytes();
            scene.step("RLIMIT_AS leaves next to nothing");
            return Self::Space { before: limit(Resource::RLIMIT_AS, pages * page_bytes() + room) };
        }
        let left = LEFT[scene.rng.usize(0..LEFT.len())];
        scene.step(&format!("{left} address ranges are left"));
        Self::Ranges { _hoard: Hoard::all_but(left) }
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        if let Self::Space { before } = self
            && getrlimit(Resource::RLIMIT_AS).is_ok()
        {
            limit(Resource::RLIMIT_AS, *before);
        }
    }
}

fn access(map: &Mapping, kind: u8, page: u64) -> Result<u64> {
    let at = page * page_bytes();
    match kind {
        0 => map.load(at),
        1 => map.store(at, 5).map(|()| 5),
        2 => map.copy_in(at, &[5; 8]).map(|()| u64::from_ne_bytes([5; 8])),
        _ => map.compare_exchange(at, 0, 6),
    }
}

pub(super) fn run(scene: &mut Scene) -> anyhow::Result<()> {
    let stage = Stage::new(scene, PAGES, None)?;
    let call = Call::begin(scene, &stage.map)?;
    if scene.rng.u32(0..3) == 0 { end(scene, stage, call) } else { accessed(scene, stage, call) }
}

/// How long something is short, at most: the library gives up after a second of waiting, where the machine has nothing else to do.
fn hold(scene: &mut Scene) -> Duration {
    Duration::from_millis(scene.rng.u64(50..1500))
}

/// A page that has been punched is accessed: the mapping must be whole after it.
fn accessed(scene: &mut Scene, stage: Stage, call: Call) -> anyhow::Result<()> {
    let (page, kind) = (scene.rng.u64(PUNCHED), scene.rng.u8(0..4));
    let ((go, told), (warm, warmed)) = (channel(), channel());
    let map = Arc::clone(&stage.map);
    // Before there is no room for its stack.
    let accessing = std::thread::Builder::new().spawn(move || {
        // What a thread allocates once, it has: later there may be no memory.
        let _ = access(&map, 0, PAGES - 1);
        let _ = warm.send(());
        let _: std::result::Result<(), _> = told.recv();
        access(&map, kind, page)
    })?;
    warmed.recv()?;
    let shortage = Shortage::begin(scene);
    scene.step(&format!("page {page} is punched and accessed, in way {kind}"));
    stage.file.punch_hole(page * page_bytes(), page_bytes())?;
    go.send(())?;
    // A guard as soon as there is room for one.
    let hold = hold(scene);
    let ended = wait_for(hold / 4, || accessing.is_finished());
    let (at, bytes) = (stage.map.as_ptr() as usize, stage.map.len() as usize);
    let given_back = !ended && scene.guards.place(at, bytes, GUARD_BYTES).is_some();
    wait_for(hold, || accessing.is_finished());
    drop(shortage);
    scene.step("there is room again");
    if given_back {
        let found = "they could be mapped by somebody else, when no address range was left for an access";
        scene.found(Kind::Harm, "addresses that stay a mapping's until it is dropped", found);
    }
    scene.place_guards(&stage.map, "when no address range was left for an access");
    let _ = call.go_on(scene);
    if !wait_for(scene.limit, || accessing.is_finished()) {
        scene.found(Kind::Hang, "an access that ends", &format!("that to page {page} goes on and on"));
        return Ok(());
    }
    let went = accessing.join().unwrap_or_else(|_| panic!("the accessing thread"));
    let value = match went {
        Ok(value) => value,
        Err(error) if names_a_shortage(&error) => 0,
        Err(error) => {
            let expected = "an access, or an error that names what is short";
            scene.found(Kind::Error, expected, &error.to_string());
            return Ok(());
        }
    };
    scene.check_bytes(&value.to_ne_bytes(), "an access where no address range is left");
    // Room, and so everything works again: within the second that a fault may take to notice.
    let map = &stage.map;
    if !wait_for(scene.limit, || map.load(page * page_bytes()).is_ok()) {
        let error = map.load(page * page_bytes()).err().map(|error| error.to_string());
        scene.found(Kind::Error, "a mapping that works once there is room", &error.unwrap_or_default());
        return Ok(());
    }
    stage.load_all(scene, &[0, page]);
    // What the mapping shows is its file, and no other.
    let other = stage.volume.create("other")?;
    other.write_at(&[9; 64], 0)?;
    let theirs = stage.pager.map(&other, 0..PAGES * page_bytes())?;
    stage.map.store(PAGES / 2 * page_bytes() + 8, u64::from_ne_bytes([3; 8]))?;
    let (mut read, mut its) = ([0; 8], [0; 64]);
    stage.file.read_at(&mut read, PAGES / 2 * page_bytes() + 8)?;
    other.read_at(&mut its, 0)?;
    if read != [3; 8] || its != [9; 64] || theirs.load(0) != Ok(u64::from_ne_bytes([9; 8])) {
        scene.found(Kind::Lost, "a store that is in its file, and in no other", &format!("{read:x?}, {its:x?}"));
    }
    if stage.pager.shutdown().is_err() {
        scene.found(Kind::Error, "a pager that ends in order", "an error");
    }
    Ok(())
}

/// The pager ends.
fn end(scene: &mut Scene, stage: Stage, call: Call) -> anyhow::Result<()> {
    let ((go, told), (warm, warmed)) = (channel(), channel());
    let Stage { volume, file, pager, map } = stage;
    let ending = std::thread::Builder::new().spawn(move || {
        // As above.
        let _ = Pager::builder().start().and_then(Pager::shutdown);
        let _ = warm.send(());
        let _: std::result::Result<(), _> = told.recv();
        pager.shutdown().map(drop)
    })?;
    warmed.recv()?;
    let shortage = Shortage::begin(scene);
    scene.step("the pager ends");
    go.send(())?;
    wait_for(hold(scene), || ending.is_finished());
    scene.place_guards(&map, "when the pager had ended and no address range was left");
    drop(shortage);
    scene.place_guards(&map, "when the pager had ended and no address range had been left");
    if !wait_for(scene.limit, || ending.is_finished()) {
        scene.found(Kind::Hang, "a pager that ends", "it goes on and on");
        return Ok(());
    }
    if !matches!(ending.join(), Ok(Ok(()))) {
        scene.found(Kind::Error, "a pager that ends in order", "an error");
    }
    let _ = call.go_on(scene);
    let mut bytes = [0; 64];
    file.read_at(&mut bytes, (PAGES - 1) * page_bytes())?;
    if bytes != [byte_of(PAGES - 1); 64] {
        scene.found(Kind::Lost, "what was written to the file", &format!("{bytes:x?}"));
    }
    check_ended(scene, &map, &file);
    drop((map, volume));
    Ok(())
}
