//! Tests that need a process of their own: this test program again, with one ignored test.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Set in children, so that an ignored test that somebody runs by hand says what it is.
const MARK: &str = "DAXPAGER_TEST_CHILD";
/// After this a child is killed, and its test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let mut command = Command::new(program);
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(MARK, name).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command
}

/// Runs the ignored test `name` in a child.
#[track_caller]
pub(crate) fn run(name: &str) -> Outcome {
    finish(command(name))
}

/// Runs the command to its end. One that takes longer than 30 s is killed and a failure.
#[track_caller]
pub(crate) fn finish(mut command: Command) -> Outcome {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Leash(child);
    // Read beside the child, so that it never waits for a full pipe.
    let mut out = child.0.stdout.take().unwrap();
    let mut err = child.0.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = out.read_to_end(&mut bytes);
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = err.read_to_end(&mut bytes);
        bytes
    });
    let since = Instant::now();
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if since.elapsed() > PATIENCE => break None,
            // The time until the next look, not a guess at how long the child takes.
            None => std::thread::park_timeout(Duration::from_millis(2)),
        }
    };
    drop(child);
    let output = [out.join().unwrap(), err.join().unwrap()].concat();
    let output = String::from_utf8_lossy(&output).into_owned();
    match status {
        Some(status) => Outcome { status, output },
        None => panic!("the child hung, and was killed after {PATIENCE:?}:\n{output}"),
    }
}

/// A child that does not outlive the test.
struct Leash(Child);

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Called first by every test that is a child's: refuses to run as an ordinary one.
pub(crate) fn assert_is_child() {
    assert!(std::env::var_os(MARK).is_some(), "this is run by the test of the same name as its child process");
}
