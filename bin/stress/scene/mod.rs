//! Scenes: what can't be done to the process that judges, because it is for the whole of a process and may end it. The address ranges
//! run out, the address space or the memory that may be locked is limited, an observer panics, addresses are made up. Each runs in a process beside the
//! harness (`neighbour::beside`), once, with a pager and files of its own, and says on its standard output what it did and what was wrong.
//!
//! All bytes that go into files here are below [`GUARD`], all of guards are not: a guard's byte is known wherever it comes out.

mod call;
mod exhaustion;
mod locked;
#[cfg(feature = "fake")]
mod made_up;
mod panics;
mod stage;

use std::time::Duration;

use clap::ValueEnum;
use daxpager::sabotage::Rule;
use fastrand::Rng;
use nix::sys::prctl;

use crate::neighbour::guards::Guards;
use stage::Scene;
pub(crate) use stage::{FOUND, STEP};

/// What a process beside does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Name {
    /// No address range, or no address space, is left
    Exhaustion,
    /// What is mapped is locked, and next to nothing may be
    Locked,
    /// An observer panics
    Panics,
    /// The addresses of the fake page table
    MadeUp,
}

impl Name {
    pub(crate) fn text(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// Runs a scene. What was wrong is on the standard output.
pub(crate) fn run(name: Name, seed: u64, rules: Vec<Rule>, limit: Duration) -> anyhow::Result<()> {
    // An image of a process that has crashed on purpose is of no use to anybody.
    let _ = prctl::set_dumpable(false);
    let mut scene = Scene { rng: Rng::with_seed(seed), guards: Guards::new(seed), rules, limit };
    match name {
        Name::Exhaustion => exhaustion::run(&mut scene)?,
        Name::Locked => locked::run(&mut scene)?,
        Name::Panics => panics::run(&mut scene)?,
        #[cfg(feature = "fake")]
        Name::MadeUp => made_up::run(&mut scene)?,
        #[cfg(not(feature = "fake"))]
        Name::MadeUp => anyhow::bail!("built without the feature fake"),
    }
    scene.check_guards("the whole scene");
    Ok(())
}
