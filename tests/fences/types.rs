//! What cannot be called, made up or sent away.
#![forbid(unsafe_code)]

use daxpager::{Device, File, Mapping, Pager, PagerBuilder, Volume};

fn of_a_volume(volume: &Volume) {
    volume.demonstrate_without_revalidation(); //~ E0599 demonstrate_without_revalidation
    volume.sabotage(); //~ E0599 sabotage
    volume.invariants(); //~ E0599 invariants
}

fn of_a_builder() {
    let builder = || -> PagerBuilder { Pager::builder() };
    builder().reader_answers(false); //~ E0599 reader_answers
    builder().inject(); //~ E0599 inject
    builder().start_on_fake(); //~ E0599 start_on_fake
}

fn of_a_pager(pager: &Pager) {
    pager.sabotage(); //~ E0599 sabotage
    pager.injected(); //~ E0599 injected
    pager.describer(); //~ E0599 describer
}

fn of_a_device() {
    let _ = Device::heap(4096, 4096); //~ E0599 heap
}

fn of_a_file(file: &File) {
    let _ = file.read_at_mapped(&mut [0], 0); //~ E0599 read_at_mapped
    let _ = file.write_at_mapped(&[0], 0); //~ E0599 write_at_mapped
    let _ = file.inode(); //~ E0624 inode
}

fn of_a_mapping(map: &Mapping) {
    map.backing_at(0); //~ E0599 backing_at
    let _ = &map.window; //~ E0616 window
    let _ = &map.place; //~ E0609 place
}

fn wants_send<T: Send>(_: T) {}

/// The thread's mask of signals was looked at, and no other's.
fn accesses_of_another_thread(map: &Mapping) {
    wants_send(map.accesses()); //~ E0277 cannot be sent between threads
}

fn main() {}
