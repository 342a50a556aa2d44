//! The pager ends while a call waits halfway, and what would take the place of its mapping may not be locked, and so not be mapped.

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::Resource;
use nix::sys::signal::Signal;

use super::call::Call;
use super::stage::{Scene, Stage, check_ended};
use crate::machine::page_bytes;
use crate::oracle::Kind;
use crate::{raw, scarce};

/// More than may be locked, and so be mapped.
const BYTES: u64 = 1 << 20;
/// Room for what else is mapped.
const LOCKED_MOST: u64 = 768 << 10;
const NOBODY: u32 = 65534;

pub(super) fn run(scene: &mut Scene) -> anyhow::Result<()> {
    let stage = Stage::new(scene, BYTES / page_bytes(), None)?;
    let call = Call::begin(scene, &stage.map)?;
    scene.step("next to nothing more may be mapped");
    scarce::limit(Resource::RLIMIT_MEMLOCK, LOCKED_MOST);
    // The capability to lock without a limit goes with the user; and so does the kernel's promise to end this process with its parent.
    if raw::become_user(NOBODY) {
        set_pdeathsig(Signal::SIGKILL)?;
    }
    mlockall(MlockAllFlags::MCL_FUTURE)?;
    scene.step("the pager ends");
    let Stage { pager, map, file, volume } = stage;
    if let Err(error) = pager.shutdown() {
        scene.found(Kind::Error, "a pager that ends in order", &error.to_string());
    }
    if scarce::may_map(BYTES as usize) {
        scene.found(Kind::Error, "a limit on what may be mapped", "none: this scene shows nothing");
    }
    scene.place_guards(&map, "when the pager had ended and nothing could be mapped in their place");
    if let Some(Ok(bytes)) = call.go_on(scene) {
        let found = format!("{bytes} bytes");
        scene.found(Kind::NoSigbus, "an error from a call that goes on after the end of the pager", &found);
    }
    check_ended(scene, &map, &file);
    drop((map, file, volume));
    Ok(())
}
