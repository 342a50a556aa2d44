//! Children of fork(2) that use what they have inherited: mappings, files and volumes are the parent's alone, and every call on one is
//! to say so. The addresses of mappings are free in a child: a guard lies there.
#![allow(unsafe_code)]

use daxpager::Error;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};

use super::guards::Guards;
use super::one::Neighbour;
use crate::oracle::Kind;
use crate::world::{Mapped, World};

/// A call that takes longer than so many seconds waits for a thread that the child does not have.
const SECONDS: u32 = 10;

type Call = fn(&World, &Mapped) -> Result<(), Error>;

/// Words that calls in a child store: no byte of them is a guard's.
const STORED: u64 = 0x0101_0101_0101_0101;

/// What a child tries.
const CALLS: &[(&str, Call)] = &[
    ("load", |_, mapped| mapped.mapping.load(0).map(drop)),
    ("store", |_, mapped| mapped.mapping.store(0, STORED)),
    ("copy_in", |_, mapped| mapped.mapping.copy_in(0, &[1; 3])),
    ("Mapping::read_at", |_, mapped| mapped.mapping.read_at(&mut [0; 8], 0)),
    ("Mapping::write_at", |_, mapped| mapped.mapping.write_at(&[1; 8], 0)),
    ("take_dirty", |_, mapped| mapped.mapping.take_dirty().map(drop)),
    ("File::write_at", |world, mapped| world.files[usize::from(mapped.file)].write_at(&[1; 8], 0).map(drop)),
    ("truncate", |world, mapped| world.files[usize::from(mapped.file)].truncate(1)),
    ("punch_hole", |world, mapped| world.files[usize::from(mapped.file)].punch_hole(0, 1 << 20)),
    ("copy_out", |_, mapped| mapped.mapping.copy_out(0, &mut [0; 3])),
    ("create", |world, _| world.volume.create("child").map(drop)),
];

/// By its name: a library without it refuses nothing.
fn is_refusal(result: &Result<(), Error>) -> bool {
    result.as_ref().is_err_and(|error| format!("{error:?}").contains("Forked"))
}

/// What a child had to complain about: the number of a call, and what came of it.
#[derive(Clone, Copy)]
enum Complaint {
    /// It was not refused.
    Done = 1,
    /// It was not, and a guard has other bytes now.
    Harmed,
    /// A load gave a guard's bytes.
    Read,
    /// The drop of a mapping has taken a guard away.
    Unmapped,
}

impl Complaint {
    const BITS: i32 = 3;

    fn text(code: i32) -> String {
        let name = CALLS.get((code >> Self::BITS) as usize).map_or("?", |call| call.0);
        match code & ((1 << Self::BITS) - 1) {
            code if code == Self::Done as i32 => format!("{name} was not refused"),
            code if code == Self::Harmed as i32 => {
                format!("{name} was not refused, and has changed a guard at the mapping's addresses")
            }
            code if code == Self::Read as i32 => format!("{name} gave a guard's bytes, from the mapping's addresses"),
            code if code == Self::Unmapped as i32 => "the drop of a mapping has taken a guard away".to_owned(),
            code => format!("exit code {code}"),
        }
    }
}

/// The exit code: 0, or a [`Complaint`].
fn as_child(world: &World, mapped: Mapped, first: usize) -> i32 {
    let _ = set_pdeathsig(Signal::SIGKILL);
    alarm::set(SECONDS);
    let mut guards = Guards::none(first as u64);
    let (at, bytes) = (mapped.mapping.as_ptr() as usize, mapped.mapping.len() as usize);
    let is_guarded = guards.place(at, bytes, bytes).is_some();
    for number in (0..CALLS.len()).map(|number| (number + first) % CALLS.len()) {
        let complaint = |complaint: Complaint| (number as i32) << Complaint::BITS | complaint as i32;
        let (name, call) = CALLS[number];
        if name == "load" && is_guarded {
            let guard = u64::from_ne_bytes(std::array::from_fn(|at| guards.placed_byte(at)));
            if mapped.mapping.load(0) == Ok(guard) {
                return complaint(Complaint::Read);
            }
        }
        let refused = is_refusal(&call(world, &mapped));
        if guards.harm().is_some() {
            return complaint(Complaint::Harmed);
        }
        if !refused {
            return complaint(Complaint::Done);
        }
    }
    drop(mapped);
    if guards.harm().is_some() { Complaint::Unmapped as i32 } else { 0 }
}

pub(super) fn run(neighbour: &mut Neighbour) {
    let expected = "children whose calls are all refused, and that end";
    while neighbour.goes_on() {
        let world = neighbour.world.clone();
        let file = neighbour.rng.u8(0..world.mix.files as u8);
        let manner = world.mix.manners.next(&mut neighbour.rng);
        // Of its own, so that the child drops it for good. Where something is scarce there may be none.
        let Ok(mapped) = world.map(file, 0..world.mix.pages, manner) else {
            neighbour.pause(5..20);
            continue;
        };
        let first = neighbour.rng.usize(0..CALLS.len());
        // SAFETY: glibc keeps its heap usable in children of processes with threads; the child waits for no lock of this program's, runs
        // no code of it but the calls, and a call that waits for a thread which is not there is ended by the alarm.
        let child = match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                let code = as_child(&world, mapped, first);
                // SAFETY: ends the child, and runs nothing that the parent has to run.
                unsafe { libc::_exit(code) }
            }
            Ok(ForkResult::Parent { child }) => child,
            Err(_) => {
                neighbour.pause(5..20);
                continue;
            }
        };
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => {}
            Ok(WaitStatus::Exited(_, code)) => {
                neighbour.report(Kind::Harm, expected, format!("a child of fork(2): {}", Complaint::text(code)));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                neighbour.report(
                    Kind::Harm,
                    expected,
                    format!(
                        "a child of fork(2) was ended by {signal}, as it made all calls from {} on",
                        CALLS[first].0
                    ),
                );
            }
            other => neighbour.report(Kind::Error, expected, format!("{other:?}")),
        }
        drop(mapped);
        neighbour.pause(5..100);
    }
}
