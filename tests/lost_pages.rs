//! A device that has lost pages behind the library's back: its file was punched by somebody else. What was there is gone;
//! each access is a SIGBUS, and none of them hangs or shows zeros as if they were the file's.

mod common;

use std::sync::Arc;

use common::*;
use daxpager::{Device, MapOptions, Pager, Resolve, Volume};
use nix::fcntl::{FallocateFlags, fallocate};

/// Loads, stores and fails in both orders: a page that was only read leaves a write-protect marker, one that was written none.
fn sigbus_where_the_device_has_lost_a_page(resolve: Resolve) {
    let path = std::path::PathBuf::from(format!("/dev/shm/daxpager-lost-{}-{resolve:?}", std::process::id()));
    let device = Device::open(&path, 16 * PAGE).unwrap();
    let volume = Volume::format(device);
    let file = volume.create("a").unwrap();
    file.write_at(&[7; 4 * PAGE as usize], 0).unwrap();
    let pager = Pager::builder().start().unwrap();
    let options = MapOptions::new().resolve(resolve).fault_around(0);
    let map = Arc::new(pager.map_with(&file, 0..4 * PAGE, &options).unwrap());
    let seven = u64::from_ne_bytes([7; 8]);
    assert_eq!(map.load(0), Ok(seven));
    map.store(PAGE, seven).unwrap();
    let behind = std::fs::File::options().write(true).open(&path).unwrap();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&behind, flags, 0, 16 * PAGE as i64).unwrap();
    for page in [0, 1, 2] {
        for _ in 0..3 {
            let load = spawn({
                let map = map.clone();
                move || map.load(page * PAGE)
            });
            let loaded = load.join("the load").unwrap();
            assert!(is_bus(&loaded), "page {page}: {loaded:?}");
        }
    }
    assert!(pager.stats().lost_pages >= 3, "{:?}", pager.stats());
    // A punch through the library makes a hole of it, which has nothing to lose.
    file.punch_hole(0, PAGE).unwrap();
    assert_eq!(map.load(0), Ok(0));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn sigbus_from_the_pagers_thread() {
    sigbus_where_the_device_has_lost_a_page(Resolve::PagerThread);
}

#[test]
fn sigbus_in_the_faulting_thread() {
    sigbus_where_the_device_has_lost_a_page(Resolve::FaultingThread);
}
