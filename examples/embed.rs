//! The smallest program that embeds the pager: a file in memory, mapped, stored to, and punched.
//!
//! `cargo run --example embed`

use std::process::ExitCode;

use daxpager::{Device, Error, Pager, Volume};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    // 256 blocks of 4 KiB in memory, and a file of 64 KiB on them. It is all hole, so it has no blocks yet.
    let volume = Volume::format(Device::memfd("embed", 1 << 20)?);
    let file = volume.create("log")?;
    file.truncate(64 << 10)?;

    // The pager's threads serve the faults of every mapping. A mapping may be longer than its file.
    let pager = Pager::builder().start()?;
    let map = pager.map(&file, 0..1 << 20)?;
    map.store(4096, 42)?; // faults: page 1 gets a block
    println!("stored {}, the file has {} block(s)", map.load(4096)?, file.blocks());

    file.punch_hole(4096, 4096)?; // takes the block away, while any number of threads use the mapping
    println!("punched: {}, {} block(s)", map.load(4096)?, file.blocks());

    // Past the end of the file an access is a SIGBUS; these ones catch it and return it.
    println!("past the end: {}", map.load(512 << 10).unwrap_err());
    Ok(()) // the mapping is unmapped, the pager's threads end, the blocks are free
}
