//! What every test program has, so that a failure is told and is no hang:
//!
//! - a watchdog, which needs no call. It ends the process when a test takes longer than `DAXPAGER_TEST_LIMIT` seconds, 120 unless set,
//!   and says who waits where;
//! - waits for threads, channels and programs that end;
//! - [`release_on_panic`], for whatever holds threads: unwinding may wait for them.
//!
//! `DAXPAGER_LONG=1`, which CI sets, asks for the long form of tests that only repeat ([`repeats`]).
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "a thread that is there before main")]

use std::ffi::c_void;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle, ScopedJoinHandle, ThreadId};
use std::time::{Duration, Instant};

/// What is waited for happens in microseconds; after this long it is a hang.
pub const HANG: Duration = Duration::from_secs(if cfg!(miri) { 600 } else { 30 });

/// Names of threads that may outlive their test: those of pagers, and of tests that have hung because a rule was broken. The
/// kernel keeps 15 bytes of a name.
const NOT_A_TEST: [&str; 5] = ["dax-", "oth-", "sig-", TASK, WATCHDOG];
/// The name of a thread that a test has started and may have to leave behind.
pub const TASK: &str = "test-task";
const WATCHDOG: &str = "test-watchdog";

/// Whether what is only longer is asked for, too.
pub fn long() -> bool {
    std::env::var_os("DAXPAGER_LONG").is_some_and(|value| value == "1")
}

/// How often something is repeated: what it takes to guard the rule, or, in the long form, more.
pub fn repeats(short: u64, in_long: u64) -> u64 {
    if long() { in_long } else { short }
}

/// Says why a test has not been run, so that it is seen beside those that passed: straight to the descriptor, as what a test prints
/// is kept to itself.
pub fn not_run(why: &str) {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "NOT RUN: {name}: {why}");
}

// ---- the watchdog

/// Seconds that a test may take.
static LIMIT: AtomicU64 = AtomicU64::new(0);
/// Tests that may take longer, by the names of their threads.
static ALLOWED: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());
/// What else is told: of pagers, where they can be asked.
static LAST_WORDS: Mutex<Vec<Weak<LastWords>>> = Mutex::new(Vec::new());

type LastWords = dyn Fn() -> String + Send + Sync;

/// Under Miri everything takes long, and nothing is known of threads.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = start_watchdog;

/// Not with `std::thread`, which is not to be used before main.
extern "C" fn start_watchdog() {
    let limit = std::env::var("DAXPAGER_TEST_LIMIT").ok().and_then(|text| text.parse().ok());
    look_at_panics();
    LIMIT.store(limit.unwrap_or(if long() { 600 } else { 120 }), Ordering::Relaxed);
    // SAFETY: two all-zero signal sets are sets.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // Signals for the process are for the threads of the tests.
    // SAFETY: the set is ours.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both sets are ours.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    // A number with glibc, a pointer with musl.
    let mut thread = std::mem::MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: the function takes no argument, and lives as long as the program.
    let started = unsafe { libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), watch, std::ptr::null_mut()) };
    // SAFETY: the set that was there before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    if started != 0 {
        end("the watchdog cannot be started");
    }
}

extern "C" fn watch(_: *mut c_void) -> *mut c_void {
    let _ = std::fs::write("/proc/thread-self/comm", WATCHDOG);
    let limit = Duration::from_secs(LIMIT.load(Ordering::Relaxed));
    // A test that is not over in time has begun before its first look; none of them allocates before that (tests/syscalls.rs).
    thread::sleep(limit);
    loop {
        let allowed = |name: &str| {
            let allowed = ALLOWED.lock().unwrap_or_else(PoisonError::into_inner);
            allowed.iter().filter(|(of, _)| of == name).map(|(_, time)| *time).fold(limit, Duration::max)
        };
        let main = std::process::id();
        let is_test =
            |thread: &Thread| thread.tid != main && !NOT_A_TEST.iter().any(|name| thread.name.starts_with(name));
        let late = threads().into_iter().find(|thread| is_test(thread) && thread.age > allowed(&thread.name));
        if let Some(late) = late {
            end(&format!("no end after {:?}: {}", late.age, late.name));
        }
        thread::sleep((limit / 10).min(Duration::from_secs(5)));
    }
}

/// The calling test may take this long, if that is more than the limit.
pub fn allow(time: Duration) {
    let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let new = (name.trim_end().to_owned(), time);
    let mut allowed = ALLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    if !allowed.contains(&new) {
        allowed.push(new);
    }
}

/// Calls `words` when the process ends because of a hang, for as long as what is returned is there.
#[must_use]
pub fn last_words(words: impl Fn() -> String + Send + Sync + 'static) -> Arc<LastWords> {
    let words: Arc<LastWords> = Arc::new(words);
    let mut all = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|words| words.strong_count() > 0);
    all.push(Arc::downgrade(&words));
    words
}

/// Says why and who waits where, and ends the process as a failed test program does.
pub fn end(why: &str) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    if ENDING.swap(true, Ordering::SeqCst) {
        // Another thread is at it.
        loop {
            thread::park();
        }
    }
    // Straight to the descriptor: what a test prints is kept until its end.
    let _ = writeln!(std::io::stderr(), "\nHANG: {why}\n{}", who_waits_where());
    for panic in PANICS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(std::io::stderr(), "before that: {panic}");
    }
    let all = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    for words in all.iter().filter_map(Weak::upgrade) {
        let _ = writeln!(std::io::stderr(), "{}", words());
    }
    // SAFETY: ends the process, and runs nothing that could wait.
    unsafe { libc::_exit(101) }
}

struct Thread {
    tid: u32,
    name: String,
    state: char,
    age: Duration,
}

/// The threads of this process. One that ends meanwhile is left out.
fn threads() -> Vec<Thread> {
    let Some(uptime) = seconds(&std::fs::read_to_string("/proc/uptime").unwrap_or_default()) else { return Vec::new() };
    let tids = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let tids = tids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid| thread(tid, uptime)).collect()
}

fn seconds(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// By `stat`, proc(5): the name is in brackets, and may have brackets in it; then state is the 1st field, starttime, in
/// hundredths of a second, the 20th.
fn thread(tid: u32, uptime: f64) -> Option<Thread> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse::<f64>().ok()? / 100.0;
    Some(Thread { tid, name: name.to_owned(), state, age: Duration::from_secs_f64((uptime - start).max(0.0)) })
}

/// One line for each thread: what the kernel says of it. `syscall` begins with the number of the call, or says "running".
fn who_waits_where() -> String {
    let mut text = String::new();
    for Thread { tid, name, state, age } in threads() {
        let of = |what| std::fs::read_to_string(format!("/proc/self/task/{tid}/{what}")).unwrap_or_default();
        let (wchan, syscall, stack) = (of("wchan"), of("syscall"), of("stack"));
        let _ =
            writeln!(text, "{tid:>8} {name:<15} {state} {age:>8.1?}  wchan {wchan}  syscall {}", syscall.trim_end());
        let stack = stack.lines().take(4).map(|line| line.trim_start_matches("[<0>] ")).collect::<Vec<_>>();
        if !stack.is_empty() {
            let _ = writeln!(text, "{:>8}   in {}", "", stack.join(" < "));
        }
    }
    text
}

// ---- what holds threads

/// What is called when the thread panics that has asked for it.
type Release = dyn Fn() + Send + Sync;

static RELEASES: Mutex<Vec<(ThreadId, Weak<Release>)>> = Mutex::new(Vec::new());

/// Has `release` called when the calling thread panics, before it unwinds, for as long as what is returned is there. Unwinding
/// may join a thread that is held, so it comes too late to let it go.
#[must_use]
pub fn release_on_panic(release: impl Fn() + Send + Sync + 'static) -> Arc<Release> {
    let release: Arc<Release> = Arc::new(release);
    let mut all = RELEASES.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(_, release)| release.strong_count() > 0);
    all.push((thread::current().id(), Arc::downgrade(&release)));
    release
}

/// Panics so far, for when the process is ended: what the test has printed is gone then.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
const PANICS_MAX: usize = 20;

fn look_at_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        release_all();
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        if panics.len() < PANICS_MAX {
            panics.push(format!("{}: {info}", thread::current().name().unwrap_or("a thread")));
        }
        drop(panics);
        before(info);
    }));
}

fn release_all() {
    let me = thread::current().id();
    // Not called under the lock: a release may panic.
    let mine: Vec<_> = {
        let all = RELEASES.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(thread, _)| *thread == me).filter_map(|(_, release)| release.upgrade()).collect()
    };
    mine.iter().for_each(|release| release());
}

/// Runs at the end of its scope, also when that is a panic: ends threads that would otherwise be waited for.
pub fn at_end<F: Fn()>(run: F) -> impl Drop {
    struct AtEnd<F: Fn()>(F);
    impl<F: Fn()> Drop for AtEnd<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    AtEnd(run)
}

// ---- waits that end

/// Calls `step` until it gives something, with a limit.
#[track_caller]
pub fn until<T>(what: &str, mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(start.elapsed() < HANG, "never happened: {what}");
        thread::yield_now();
    }
}

/// Waits for a thread that must get to its end by itself. Its panic goes on here.
#[track_caller]
pub fn join<T>(thread: JoinHandle<T>) -> T {
    join_within(HANG, thread)
}

/// The same with a limit of its own.
#[track_caller]
pub fn join_within<T>(limit: Duration, thread: JoinHandle<T>) -> T {
    ended(|| thread.is_finished(), limit, thread.thread().name());
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The same for a thread of a scope. The end of the scope would wait for it, so that a hang ends the process.
#[track_caller]
pub fn join_scoped<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    ended(|| thread.is_finished(), HANG, thread.thread().name());
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[track_caller]
fn ended(is_finished: impl Fn() -> bool, limit: Duration, name: Option<&str>) {
    let since = Instant::now();
    while !is_finished() {
        if since.elapsed() > limit {
            let (caller, name) = (std::panic::Location::caller(), name.unwrap_or("a thread"));
            end(&format!("{caller}: {name} has not ended for {limit:?}"));
        }
        // Until the next look.
        thread::park_timeout(Duration::from_micros(200));
    }
}

/// What comes through the channel, within the limit.
#[track_caller]
pub fn receive<T>(from: &Receiver<T>) -> T {
    match from.recv_timeout(HANG) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("hang: nothing came through the channel for {HANG:?}"),
        Err(RecvTimeoutError::Disconnected) => panic!("nothing will come through the channel: the sender has gone"),
    }
}

/// A program that does not outlive the test.
pub struct Leash(pub Child);

impl Drop for Leash {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command that runs the ignored test `name` of this program, and nothing else.
pub fn this_program(name: &str) -> Command {
    this_program_at(std::env::current_exe().unwrap(), name)
}

/// The same with a copy of the program. It says itself who waits where, before it is killed.
pub fn this_program_at(program: PathBuf, name: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("RUST_BACKTRACE", "0").env("DAXPAGER_TEST_LIMIT", CHILD_SECONDS);
    command
}

/// All that a program has said.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// How long a test's child may take before it says who waits where. Some serve tens of thousands of faults, beside whatever the
/// machine has to do.
const CHILD_SECONDS: &str = "540";
/// How long a program may take that a test runs: one that is not over then is killed, and a failure.
pub const PROGRAM: Duration = Duration::from_secs(570);

/// Runs a program to its end.
#[track_caller]
pub fn output(command: Command) -> Output {
    allow(PROGRAM + HANG);
    output_within(PROGRAM, command)
}

/// The same with a limit of its own.
#[track_caller]
pub fn output_within(limit: Duration, mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Leash(child.unwrap_or_else(|error| panic!("{command:?}: {error}")));
    // Read beside the child, so that it never waits for a full pipe.
    let out = drain(child.0.stdout.take().unwrap());
    let err = drain(child.0.stderr.take().unwrap());
    let since = Instant::now();
    let status = loop {
        match child.0.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if since.elapsed() > limit => break None,
            // The time until the next look, not a guess at how long the child takes.
            None => thread::park_timeout(Duration::from_millis(2)),
        }
    };
    drop(child);
    let (stdout, stderr) = (out(), err());
    let Some(status) = status else {
        let text = [stdout, stderr].concat();
        panic!("{command:?} hung, and was killed after {limit:?}:\n{}", String::from_utf8_lossy(&text));
    };
    Output { status, stdout, stderr }
}

/// Reads to the end, on a thread of its own. A child of the child may have the pipe's other end still: what has come
/// is given a moment after the child's end, and no more.
fn drain(mut from: impl Read + Send + 'static) -> impl FnOnce() -> Vec<u8> {
    let all = Arc::new((Mutex::new(Vec::new()), OnceLock::new()));
    let theirs = all.clone();
    let reader = thread::Builder::new().name(TASK.to_owned()).spawn(move || {
        let mut some = [0; 4096];
        while let Ok(got @ 1..) = from.read(&mut some) {
            theirs.0.lock().unwrap().extend_from_slice(&some[..got]);
        }
        let _ = theirs.1.set(());
    });
    reader.unwrap();
    move || {
        let since = Instant::now();
        while all.1.get().is_none() && since.elapsed() < Duration::from_secs(5) {
            thread::park_timeout(Duration::from_millis(1));
        }
        std::mem::take(&mut all.0.lock().unwrap())
    }
}
