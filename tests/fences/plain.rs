//! A program without `unsafe`, as an embedder writes it. The others in this folder are to fail for their own reasons, and not because
//! nothing builds: this one does, and runs.
#![forbid(unsafe_code)]

use daxpager::{Device, Error, MapOptions, Pager, Resolve, Volume};

fn main() -> Result<(), Error> {
    let volume = Volume::format(Device::memfd("plain", 1 << 20)?);
    let file = volume.create("a")?;
    file.write_at(&[5; 8192], 0)?;
    let pager = Pager::builder().start()?;
    let map = pager.map_with(&file, 0..1 << 20, &MapOptions::new().resolve(Resolve::PagerThread))?;
    assert_eq!(map.load(4096)?, u64::from_ne_bytes([5; 8]));
    assert!(matches!(map.load(8192), Err(Error::Bus(_))));
    map.store(0, 6)?;
    assert_eq!(map.take_dirty()?, vec![0..4096]);
    pager.shutdown()?;
    println!("no unsafe needed");
    Ok(())
}
