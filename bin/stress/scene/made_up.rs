//! A mapping of the fake page table: its addresses are made up, and whatever of this process's is there is none of its business.

use std::io::Write;
use std::os::fd::AsFd;

use daxpager::fake::FakePageTable;
use daxpager::{Device, MapOptions, Mapping, Pager, Resolve, Result, Volume};

use super::call::READ;
use super::stage::{GUARD_BYTES, Scene, byte_of};
use crate::oracle::Kind;

const PAGE: u64 = 4096;
const PAGES: u64 = 16;

/// Every access that there is, at a page of its own; what came out of it.
fn access(map: &Mapping, number: u64) -> Result<Vec<u8>> {
    let (at, mut bytes) = (number * PAGE, vec![0; 64]);
    let word = |word: u64| word.to_ne_bytes().to_vec();
    match number {
        0 => map.load(at).map(word),
        1 => map.store(at, 7).map(|()| Vec::new()),
        2 => map.compare_exchange(at, 0, 7).map(word),
        3 => map.copy_out(at, &mut bytes).map(|()| bytes),
        4 => map.copy_in(at, &[7; 64]).map(|()| Vec::new()),
        5 => map.read_at(&mut bytes, at).map(|()| bytes),
        6 => map.write_at(&[7; 64], at).map(|()| Vec::new()),
        7 => {
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            writer.write_all(&[READ; 64]).expect("room in a pipe");
            // Refused, as there is no address.
            Ok(map.read_from(reader.as_fd(), at, 64).map_or(Vec::new(), |_| Vec::new()))
        }
        _ => {
            let (mut reader, writer) = std::io::pipe().expect("a pipe");
            let written = map.write_to(writer.as_fd(), at, 64).unwrap_or(0);
            bytes.truncate(written);
            std::io::Read::read_exact(&mut reader, &mut bytes).expect("what has been written");
            Ok(bytes)
        }
    }
}

pub(super) fn run(scene: &mut Scene) -> anyhow::Result<()> {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(2 * PAGES * PAGE, PAGE)?);
    let file = volume.create("file")?;
    for page in 0..PAGES {
        file.write_at(&[byte_of(page); PAGE as usize], page * PAGE)?;
    }
    let pager = Pager::builder().start_on_fake(&fake)?;
    scene.break_rules(&volume, &pager);
    let resolve = if scene.rng.bool() { Resolve::FaultingThread } else { Resolve::PagerThread };
    let map = pager.map_with(&file, 0..PAGES * PAGE, &MapOptions::new().resolve(resolve))?;
    let at = map.as_ptr() as usize;
    scene.step(&format!("guards at {at:#x}, which a mapping of the fake page table has too"));
    if scene.guards.place(at, (PAGES * PAGE) as usize, GUARD_BYTES).is_none() {
        // Nobody has mapped anything so low; a machine where that is forbidden shows nothing.
        scene.found(Kind::Error, "guards at addresses that nobody has", "none: this scene shows nothing");
    }
    let mut order: Vec<u64> = (0..9).collect();
    scene.rng.shuffle(&mut order);
    for number in order {
        scene.step(&format!("access {number} through the mapping"));
        match access(&map, number) {
            Ok(bytes) => scene.check_bytes(&bytes, &format!("access {number}")),
            Err(error) => scene.found(Kind::Error, "an access that goes by the extents", &error.to_string()),
        }
        scene.check_guards(&format!("access {number} through a mapping with made-up addresses"));
    }
    drop(map);
    pager.shutdown()?;
    Ok(())
}
