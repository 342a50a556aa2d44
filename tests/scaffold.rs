//! What the tests stand on, tested: a failed assertion ends a test and never hangs it, whatever is held or waits at that moment. Each
//! is a child process that fails on purpose.

mod common;
#[path = "blackbox/park.rs"]
#[allow(dead_code, reason = "a part of it")]
mod park;

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::guard::{self, HANG};
use common::*;
use daxpager::probe::Point;
use daxpager::{Device, Pager, Volume};

/// Runs the ignored test `name`, which must fail as a test does: with 101, and by itself.
fn fails(name: &str, limit: &str) -> String {
    let mut command = guard::this_program(name);
    command.env("DAXPAGER_TEST_LIMIT", limit);
    let output = guard::output_within(HANG, command);
    let text = guard::text(&output);
    assert_eq!(output.status.code(), Some(101), "{}\n{text}", output.status);
    text
}

/// A reader is held in a trap, the assertion fails, and unwinding joins the reader.
#[test]
fn a_trap_lets_go_when_the_test_panics() {
    for name in
        ["inside::a_trap_is_held", "inside::a_trap_of_the_other_park_is_held", "inside::a_trap_is_held_in_a_scope"]
    {
        let text = fails(name, "20");
        assert!(text.contains("on purpose") && !text.contains("HANG"), "{name}: {text}");
    }
}

#[test]
fn the_watchdog_names_who_waits_and_what_was_said_before() {
    let text = fails("inside::a_scope_never_ends", "1");
    for part in ["HANG: no end after", "inside::a_scope", "the-one-that-wa", "wchan", "syscall", "on purpose"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = fails("inside::pagers_are_asked", "1");
    assert!(text.contains("HANG") && text.contains("pager: alive"), "{text}");
}

#[test]
fn a_join_that_takes_too_long_ends_the_process() {
    let text = fails("inside::a_thread_is_joined_that_never_ends", "20");
    assert!(text.contains("HANG: tests/scaffold.rs:") && text.contains("the-one-that-waits"), "{text}");
}

/// Its child has the pipe still, so that its output does not end with it.
#[test]
#[should_panic(expected = "was killed after")]
fn a_program_that_hangs_is_killed() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo begun; sleep 12 & sleep 600"]);
    guard::output_within(Duration::from_millis(200), command);
}

#[test]
#[should_panic(expected = "the sender has gone")]
fn a_channel_without_a_sender_is_no_hang() {
    let (sender, receiver) = mpsc::channel::<()>();
    drop(sender);
    guard::receive(&receiver);
}

/// Nobody is held for longer than a minute, and the panic of another thread lets nobody go.
#[test]
fn a_trap_is_its_tests_own() {
    let world = World::new(4, None);
    let file = world.file("a", 1, 1);
    let map = world.map(&file, 1);
    let trap = world.park.at_page(Point::Decided, 0);
    let load = spawn(move || map.load(0));
    trap.wait();
    let other = thread::spawn(|| panic!("on purpose"));
    assert!(other.join().is_err());
    assert_eq!(load.within(WATCH), None, "let go by the panic of a thread that has nothing to do with it");
    trap.release();
    load.join("the load").unwrap().unwrap();
}

/// What the children do.
mod inside {
    use super::*;

    fn waits_for_ever() {
        loop {
            thread::park();
        }
    }

    #[test]
    #[ignore = "fails on purpose"]
    fn a_trap_is_held() {
        let world = World::with_reader(4, None, true);
        let file = world.file("a", 1, 1);
        let map = world.map(&file, 1);
        let trap = world.park.at(Point::FaultRead, |_| true);
        let _load = spawn(move || map.load(0));
        trap.wait();
        panic!("on purpose");
    }

    #[test]
    #[ignore = "fails on purpose"]
    fn a_trap_of_the_other_park_is_held() {
        let park = park::Park::new();
        let volume = Volume::format_with_probe(Device::memfd("scaffold", 4 * PAGE).unwrap(), park.clone());
        let file = volume.create("a").unwrap();
        file.write_at(&[1; 8], 0).unwrap();
        let pager = Pager::builder().probe(park.clone()).start().unwrap();
        let map = pager.map(&file, 0..PAGE).unwrap();
        let trap = park.trap(Point::FaultRead, 0);
        thread::scope(|s| {
            s.spawn(|| map.load(0));
            trap.wait();
            panic!("on purpose");
        });
    }

    /// The trap is older than the scope, so that it is not dropped before the scope joins who is held in it.
    #[test]
    #[ignore = "fails on purpose"]
    fn a_trap_is_held_in_a_scope() {
        let world = World::new(4, None);
        let file = world.file("a", 1, 1);
        let map = world.map(&file, 1);
        let trap = world.park.at_page(Point::Decided, 0);
        thread::scope(|s| {
            s.spawn(|| map.load(0));
            trap.wait();
            panic!("on purpose");
        });
    }

    #[test]
    #[ignore = "fails on purpose"]
    fn a_scope_never_ends() {
        thread::scope(|s| {
            thread::Builder::new().name("the-one-that-waits".to_owned()).spawn_scoped(s, waits_for_ever).unwrap();
            panic!("on purpose");
        });
    }

    #[test]
    #[ignore = "fails on purpose"]
    fn pagers_are_asked() {
        let _world = World::new(4, None);
        waits_for_ever();
    }

    #[test]
    #[ignore = "fails on purpose"]
    fn a_thread_is_joined_that_never_ends() {
        let waits = thread::Builder::new().name("the-one-that-waits".to_owned()).spawn(waits_for_ever).unwrap();
        guard::join_within(Duration::from_millis(100), waits);
    }
}
