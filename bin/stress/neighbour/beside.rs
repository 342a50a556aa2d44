//! Scenes in processes beside this one, one after the other: what they found wrong is reported here.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::one::Neighbour;
use crate::ends;
use crate::oracle::{Kind, lock};
use crate::scene::{FOUND, Name, STEP};

/// What a scene may take besides its longest call.
const SLACK: Duration = Duration::from_secs(20);

/// What has to be waited for until a scene has ended.
pub(super) fn limit(hang_after: Duration) -> Duration {
    2 * hang_after + SLACK
}

pub(super) fn exhaustion(neighbour: &mut Neighbour) {
    run(neighbour, Name::Exhaustion);
}

pub(super) fn locked(neighbour: &mut Neighbour) {
    run(neighbour, Name::Locked);
}

pub(super) fn panics(neighbour: &mut Neighbour) {
    run(neighbour, Name::Panics);
}

pub(super) fn made_up(neighbour: &mut Neighbour) {
    run(neighbour, Name::MadeUp);
}

fn run(neighbour: &mut Neighbour, name: Name) {
    while neighbour.goes_on() {
        let seed = neighbour.rng.u64(..);
        if let Err(error) = scene(neighbour, name, seed) {
            let found = format!("scene {}, seed {seed}: {error}", name.text());
            neighbour.report(Kind::Error, "a process beside this one", found);
        }
        neighbour.pause(1..30);
    }
}

fn command(neighbour: &Neighbour, name: Name, seed: u64) -> std::io::Result<Command> {
    let mut command = ends::this_program()?;
    command.args(["--scene", &name.text(), "--seed", &seed.to_string()]);
    command.args(["--hang-seconds", &neighbour.hang_after.as_secs().to_string()]);
    for rule in &neighbour.rules {
        command.args(["--sabotage", rule.name()]);
    }
    // What a broken pager says as it dies is told by its last step and its signal.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Runs one, and reports what it found.
fn scene(neighbour: &Neighbour, name: Name, seed: u64) -> std::io::Result<()> {
    let mut child = {
        // A process is not to be had where address ranges are scarce.
        let _room = lock(&neighbour.room);
        command(neighbour, name, seed)?.spawn()?
    };
    let status = ends::end_of(&mut child, limit(neighbour.hang_after), Duration::from_millis(2))?;
    if ends::asked().is_some() {
        return Ok(());
    }
    let (mut text, mut errors) = (String::new(), String::new());
    if let (Some(out), Some(err)) = (&mut child.stdout, &mut child.stderr) {
        out.read_to_string(&mut text)?;
        err.read_to_string(&mut errors)?;
    }
    let where_from = |found: &str| format!("scene {}, seed {seed}: {found}", name.text());
    let (mut step, mut found_any) = ("its beginning", false);
    for line in text.lines() {
        let mut words = line.split('\t');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(STEP), Some(text), ..) => step = text,
            (Some(FOUND), Some(kind), Some(expected), Some(found)) => {
                let kind = Kind::named(kind).unwrap_or(Kind::Error);
                neighbour.report(kind, expected, where_from(found));
                found_any = true;
            }
            _ => {}
        }
    }
    if found_any {
        // How it came to its end may be of the doing of that.
        return Ok(());
    }
    let expected = "a process beside this one that comes to its end";
    let said = errors.lines().last().map_or(String::new(), |line| format!(": {line}"));
    match status {
        Some(status) if status.success() => {}
        None => neighbour.report(Kind::Hang, expected, where_from(&format!("it goes on and on, after: {step}"))),
        Some(status) => match status.signal().map(Signal::try_from) {
            Some(Ok(signal)) => {
                neighbour.report(Kind::Harm, expected, where_from(&format!("ended by {signal}, after: {step}{said}")));
            }
            _ => neighbour.report(Kind::Error, expected, where_from(&format!("{status}, after: {step}{said}"))),
        },
    }
    Ok(())
}
