//! What ends the programs early: a signal, a parent that is killed, a report that cannot be written.

#[path = "common/program.rs"]
mod program;

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use program::{Scratch, stderr, stdout};

const BENCH: &str = env!("CARGO_BIN_EXE_daxpager-bench");
const DEMO: &str = env!("CARGO_BIN_EXE_daxpager-demo");
const STRESS: &str = env!("CARGO_BIN_EXE_daxpager-stress");

/// After this long it is a hang.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A program that runs, and everything that it has started: all have a word of their own in their environment.
struct Running {
    child: Option<Child>,
    mark: String,
}

impl Running {
    fn start(program: &str, args: &str) -> Self {
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mark = format!("{}-{number}", std::process::id());
        let mut command = Command::new(program);
        command.args(args.split_whitespace()).env("DAXPAGER_TEST_MARK", &mark);
        // A group of its own: what is sent to it reaches nobody else.
        let child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child: Some(child), mark }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id() as i32)
    }

    /// Every living process of it.
    fn alive(&self) -> Vec<Pid> {
        let mark = format!("DAXPAGER_TEST_MARK={}", self.mark);
        let is_marked = |pid: &Pid| {
            // Nothing is read of one that has ended.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
        };
        let pids = std::fs::read_dir("/proc").unwrap();
        let number = |name: &OsStr| name.to_str()?.parse().ok().map(Pid::from_raw);
        pids.filter_map(|entry| number(&entry.ok()?.file_name())).filter(is_marked).collect()
    }

    /// Waits until it has started another.
    fn until_it_has_children(&self, program: &str) {
        let start = Instant::now();
        let is_there = || {
            let others = self.alive().into_iter().filter(|pid| *pid != self.pid());
            others.filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok()).any(|line| {
                let first = line.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
                String::from_utf8(first).is_ok_and(|name| name.contains(program))
            })
        };
        while !is_there() {
            assert!(start.elapsed() < LIMIT, "no child of it is to be seen");
            sleep(POLL);
        }
    }

    /// What it has said when it has ended, and nothing of it lives any more.
    fn end(mut self) -> Output {
        let (start, pid) = (Instant::now(), self.pid());
        let child = self.child.take().unwrap();
        let (tx, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || tx.send(child.wait_with_output().unwrap()));
        let output = ended.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{pid} goes on"));
        while let Some(left) = self.alive().first() {
            assert!(start.elapsed() < LIMIT, "{left} lives on after its parent {pid}");
            sleep(POLL);
        }
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.alive().into_iter().for_each(|pid| _ = kill(pid, Signal::SIGKILL));
        self.child.iter_mut().for_each(|child| _ = child.wait());
    }
}

/// It has died of the signal, with no panic on the way.
#[track_caller]
fn assert_died_of(output: &Output, signal: Signal) {
    let (text, errors) = (stdout(output), stderr(output));
    assert_eq!(output.status.signal(), Some(signal as i32), "{:?} {text}{errors}", output.status);
    assert!(!errors.contains("panicked"), "{errors}");
}

const ALL: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

#[test]
fn a_table_that_is_ended_says_which_rules_were_tried() {
    for signal in ALL {
        let json = Scratch::new(signal.as_str());
        let running = Running::start(STRESS, &format!("--sabotage all --seed 3 --json {}", json.path()));
        running.until_it_has_children("daxpager-stress");
        kill(running.pid(), signal).unwrap();
        let output = running.end();
        assert_died_of(&output, signal);
        let text = stdout(&output);
        assert!(text.contains(&format!("ended early by {signal}: ")) && text.contains(" rules tried"), "{text}");
        let rows: serde_json::Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
        assert!(text.contains(&format!("{} of ", rows.as_array().unwrap().len())), "{text}");
    }
}

#[test]
fn a_stress_run_that_is_ended_shows_what_it_has_judged() {
    for signal in ALL {
        let json = Scratch::new(&format!("run-{signal}"));
        let running = Running::start(STRESS, &format!("--seconds 600 --seed 7 --json {}", json.path()));
        sleep(Duration::from_secs(1));
        kill(running.pid(), signal).unwrap();
        let output = running.end();
        assert_died_of(&output, signal);
        let text = stdout(&output);
        assert!(text.contains("ok: no violation in ") && text.contains("Operations"), "{text}");
        assert!(text.trim_end().ends_with(&format!("ended early by {signal}")), "{text}");
        let outcome: serde_json::Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
        assert_eq!(outcome["ended_by"], signal.as_str());
    }
}

/// A signal that comes while the run is stopped is taken when it goes on; who stops it ends with it.
#[test]
fn a_stress_run_that_is_stopped_again_and_again_is_ended() {
    let running = Running::start(STRESS, "--seconds 600 --seed 7 --inject stops,shutdown");
    running.until_it_has_children("daxpager-stress");
    sleep(Duration::from_millis(300));
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let output = running.end();
    assert_died_of(&output, Signal::SIGTERM);
    assert!(stdout(&output).trim_end().ends_with("ended early by SIGTERM"), "{}", stdout(&output));
}

#[test]
fn a_bench_that_is_ended_shows_what_it_has_measured() {
    for signal in ALL {
        let json = Scratch::new(&format!("bench-{signal}"));
        let running = Running::start(BENCH, &format!("--quick --rounds 1000 --json {}", json.path()));
        running.until_it_has_children("daxpager-bench");
        kill(running.pid(), signal).unwrap();
        let output = running.end();
        assert_died_of(&output, signal);
        let text = stdout(&output);
        assert!(text.contains(&format!("ended by {signal} before all was measured")), "{text}");
        assert!(text.contains("\nrandom read, 1 thread, "), "{text}");
        let document: serde_json::Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
        assert_eq!(document["facts"]["ended_by"], signal.as_str());
    }
}

#[test]
fn a_demo_that_is_ended_lists_what_it_has_checked() {
    for signal in ALL {
        let running = Running::start(DEMO, "--seconds 600");
        sleep(Duration::from_secs(1));
        kill(running.pid(), signal).unwrap();
        let output = running.end();
        assert_died_of(&output, signal);
        let text = stdout(&output);
        assert!(text.contains(&format!("ended early by {signal}: ")), "{text}");
        assert!(text.contains("      ok  ") && text.trim_end().ends_with("checks held"), "{text}");
    }
}

/// As a terminal does it: parent and children all get it, in whatever order.
#[test]
fn a_signal_to_all_of_them_is_no_result() {
    for (program, args) in [(BENCH, "--quick --rounds 1000"), (STRESS, "--sabotage all --seed 3")] {
        let running = Running::start(program, args);
        running.until_it_has_children("daxpager-");
        nix::sys::signal::killpg(running.pid(), Signal::SIGINT).unwrap();
        let output = running.end();
        assert_died_of(&output, Signal::SIGINT);
        assert!(!stderr(&output).contains("ended with"), "{}", stderr(&output));
    }
}

#[test]
fn children_do_not_outlive_a_parent_that_is_killed() {
    use std::os::unix::fs::PermissionsExt;
    let other = Scratch::new("sleeper");
    std::fs::write(&other.0, "#!/bin/sh\nexec sleep 300\n").unwrap();
    std::fs::set_permissions(&other.0, PermissionsExt::from_mode(0o755)).unwrap();
    let with_other = format!("--quick --work random-read --rounds 1000 --other them={}", other.path());
    for (program, args, child) in [
        (BENCH, "--quick --rounds 1000", "daxpager-bench"),
        (STRESS, "--sabotage all --seed 3", "daxpager-stress"),
        // The one that stops its parent.
        (STRESS, "--seconds 600 --seed 7 --inject stops", "daxpager-stress"),
        // The contender's own child.
        (BENCH, &with_other, "sleep"),
    ] {
        let running = Running::start(program, args);
        running.until_it_has_children(child);
        kill(running.pid(), Signal::SIGKILL).unwrap();
        assert_eq!(running.end().status.signal(), Some(Signal::SIGKILL as i32));
    }
}

#[test]
fn a_signal_that_was_ignored_stays_so() {
    let running = Running::start("nohup", &format!("{STRESS} --seconds 2 --seed 7 --quiet"));
    sleep(Duration::from_secs(1));
    kill(running.pid(), Signal::SIGHUP).unwrap();
    let output = running.end();
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    // Whatever the first one has begun: the second may come at any moment of it.
    for wait in [0, 1, 5, 20, 100] {
        let running = Running::start(STRESS, "--seconds 600 --seed 7 --quiet");
        sleep(Duration::from_secs(1));
        kill(running.pid(), Signal::SIGTERM).unwrap();
        sleep(Duration::from_millis(wait));
        let _ = kill(running.pid(), Signal::SIGINT);
        let signal = running.end().status.signal();
        assert!([Some(Signal::SIGTERM as i32), Some(Signal::SIGINT as i32)].contains(&signal), "{signal:?}");
    }
}

/// What cannot be written is refused with a sentence, before anything runs that would be lost.
#[test]
fn reports_are_refused_before_the_run() {
    let (fifo, socket) = (Scratch::new("fifo"), Scratch::new("socket"));
    mkfifo(&fifo.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket.0).unwrap();
    let programs = [
        (STRESS, "--json", "--seconds 600 --quiet"),
        (STRESS, "--report", "--seconds 600 --quiet"),
        (STRESS, "--json", "--sabotage all"),
        (BENCH, "--json", "--rounds 1000"),
        (BENCH, "--html", "--rounds 1000"),
    ];
    for (program, option, more) in programs {
        for (path, why) in [
            (fifo.path(), "it is a FIFO that nobody reads"),
            (socket.path(), "it is a socket"),
            ("/", "Is a directory"),
            ("/no/such/folder/report", "No such file"),
        ] {
            let output = Running::start(program, &format!("{option} {path} {more}")).end();
            assert_eq!(output.status.code(), Some(2), "{program} {option} {path}: {}", stderr(&output));
            let told = format!("cannot write {path}: {why}");
            assert!(stderr(&output).contains(&told), "{program} {option}: {}", stderr(&output));
            assert!(stdout(&output).is_empty(), "{program} {option} {path}: {}", stdout(&output));
        }
    }
}

/// A pipe is as good as a file: a shell's `>(program)` is one.
#[test]
fn a_fifo_that_is_read_is_written() {
    let fifo = Scratch::new("read-fifo");
    mkfifo(&fifo.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let path = fifo.0.clone();
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    let start = Instant::now();
    // Until the reader has opened it, it is refused.
    let output = loop {
        let output = Running::start(STRESS, &format!("--ops 500 --seed 7 --quiet --json {}", fifo.path())).end();
        if output.status.code() != Some(2) {
            break output;
        }
        assert!(start.elapsed() < LIMIT, "{}", stderr(&output));
    };
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let outcome: serde_json::Value = serde_json::from_slice(&reader.join().unwrap()).unwrap();
    assert_eq!(outcome["verdict"], "ok");
}
