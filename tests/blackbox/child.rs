//! Tests that need a process of their own: this test program again, with one ignored test.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use super::guard::{output, text, this_program_at};

/// Set in children, so that an ignored test that somebody runs by hand says what it is.
const MARK: &str = "DAXPAGER_TEST_CHILD";

/// What became of a child.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    /// Standard output and error.
    pub(crate) output: String,
}

impl Outcome {
    /// The child's test passed.
    #[track_caller]
    pub(crate) fn assert_success(&self) {
        assert!(self.status.success(), "the child ended with {}:\n{}", self.status, self.output);
        assert!(self.output.contains("1 passed"), "the child ran no test:\n{}", self.output);
    }

    /// The child said that it had come as far as `line`, and died of the signal after that.
    #[track_caller]
    pub(crate) fn assert_killed_after(&self, line: &str, signal: i32) {
        assert!(self.output.contains(line), "the child did not get to {line:?}:\n{}", self.output);
        assert_eq!(self.status.signal(), Some(signal), "the child ended with {}:\n{}", self.status, self.output);
    }

    /// What the child printed after `key=`.
    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> &str {
        let key = format!("{key}=");
        let found = self.output.lines().find_map(|line| line.strip_prefix(&key));
        found.unwrap_or_else(|| panic!("the child printed no {key}:\n{}", self.output))
    }
}

/// The command that runs the ignored test `name` of this program.
pub(crate) fn command(name: &str) -> Command {
    command_of(std::env::current_exe().unwrap(), name)
}

/// The same with a copy of the program.
pub(crate) fn command_of(program: PathBuf, name: &str) -> Command {
    let mut command = this_program_at(program, name);
    command.env(MARK, name);
    command
}

/// Runs the ignored test `name` in a child.
#[track_caller]
pub(crate) fn run(name: &str) -> Outcome {
    finish(command(name))
}

/// Runs the command to its end. One that takes longer than [`PROGRAM`](super::guard::PROGRAM) is killed and a failure.
#[track_caller]
pub(crate) fn finish(command: Command) -> Outcome {
    let output = output(command);
    Outcome { status: output.status, output: text(&output) }
}

/// Called first by every test that is a child's: refuses to run as an ordinary one.
pub(crate) fn assert_is_child() {
    assert!(std::env::var_os(MARK).is_some(), "this is run by the test of the same name as its child process");
}

/// Tests that each run the ignored one of their name in `inside` as a child process, which passes; or which comes as far as a line
/// and dies of a signal after that.
#[allow(unused_macros, reason = "each test file uses its part")]
macro_rules! children {
    (@judge $outcome:ident) => { $outcome.assert_success() };
    (@judge $outcome:ident, $line:literal, $signal:path) => { $outcome.assert_killed_after($line, $signal) };
    ($($(#[$doc:meta])* $name:ident $(=> $line:literal, $signal:path)?;)*) => {
        $($(#[$doc])*
        #[test]
        fn $name() {
            let outcome = child::run(concat!("inside::", stringify!($name)));
            child::children!(@judge outcome $(, $line, $signal)?);
        })*
    };
}
#[allow(unused_imports, reason = "each test file uses its part")]
pub(crate) use children;
