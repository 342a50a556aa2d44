use daxpager::*;

#[test]
fn smoke() {
    let volume = Volume::format(Device::memfd("smoke", 64 << 12).unwrap());
    let file = volume.create("a").unwrap();
    let pager = Pager::builder().start().unwrap();
    let map = pager.map(&file, 0..1 << 20).unwrap();
    assert!(matches!(map.load(0), Err(Error::Bus(_))));
    file.truncate(10_000).unwrap();
    assert_eq!(map.load(0).unwrap(), 0);
    map.store(8, 7).unwrap();
    assert_eq!(map.load(8).unwrap(), 7);
    let mut buf = [0; 8];
    file.read_at(&mut buf, 8).unwrap();
    assert_eq!(buf, 7u64.to_ne_bytes());
    assert_eq!(map.take_dirty().unwrap(), vec![0..4096]);
    assert_eq!(map.take_dirty().unwrap(), vec![]);
    map.store(16, 9).unwrap();
    assert_eq!(map.take_dirty().unwrap(), vec![0..4096]);
    file.punch_hole(0, 4096).unwrap();
    assert_eq!(map.load(8).unwrap(), 0);
    map.store(8, 1).unwrap();
    file.write_at(&[1; 5000], 4000).unwrap();
    assert_eq!(map.load(8).unwrap(), 1);
    assert_eq!(map.load(4096).unwrap(), 0x0101010101010101);
    println!("{:?} {:?}", pager.stats(), file.extents());
    drop(map);
    let map = pager.map(&file, 0..1 << 20).unwrap();
    assert_eq!(map.load(8).unwrap(), 1);
    pager.shutdown().unwrap();
    assert!(matches!(map.load(8), Err(Error::Bus(_))));
}
