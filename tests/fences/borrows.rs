//! What does not outlive what it is of.
#![forbid(unsafe_code)]

use daxpager::{Device, Mapping, Pager, Volume};

/// Dropped, its addresses are anybody's.
fn accesses_after_the_mapping(map: Mapping) {
    let accesses = map.accesses().unwrap();
    drop(map); //~ E0505 map
    let _ = accesses.load(0);
}

fn a_pager_after_its_end(pager: Pager) {
    let _ = pager.shutdown();
    pager.stats(); //~ E0382 pager
}

fn two_volumes_on_a_device(device: Device) {
    let _one = Volume::format(device);
    let _two = Volume::format(device); //~ E0382 device
}

fn by_the_pointer(map: &Mapping) {
    let _ = *map.as_ptr(); //~ E0133 unsafe
}

fn main() {}
