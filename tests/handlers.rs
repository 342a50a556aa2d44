//! The library's SIGBUS handler and its single accesses among other handlers, masks and stacks. What kills a process, or changes what it
//! does with signals, runs in a child: this program again, with one ignored test of [`inside`].
#![allow(unsafe_code, reason = "handlers, stacks, and accesses with nothing to catch a signal")]

mod blackbox;

use std::cell::UnsafeCell;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use blackbox::child::{self, assert_is_child};
use blackbox::*;
use daxpager::{Error, MapOptions, Mapping, Resolve};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, sigaction};

child::children! {
    /// Every call past the end is an error in a thread that blocks all signals; within the file it does what it does elsewhere.
    a_thread_that_blocks_signals_gets_errors;
    /// The mask is asked for each time: it may change between two calls of one thread.
    a_mask_may_change_between_two_calls;
    /// Threads with and without a mask, on one page, beside truncates and punches: nobody is killed, no addition is lost.
    masked_and_unmasked_threads_add_up;
    /// The same words beside a truncate that goes to and fro.
    masked_threads_survive_truncates;
    /// Stores of a masked thread are dirty, and allocate like others.
    a_masked_store_is_dirty_and_has_a_block;
    /// A full volume is SIGBUS for a masked thread's store, too.
    a_masked_store_to_a_full_volume_is_an_error;
    /// A handler that the application puts in after ours does not see the accesses of our calls.
    calls_work_under_a_handler_that_came_later;
    /// A mapping whose threads resolve their own faults puts our handler in front again; the other is called for what is not ours.
    a_new_mapping_goes_in_front_of_a_later_handler;
    /// A later handler that calls ours, and is called by ours: it ends, at the one that was there first.
    handlers_that_call_each_other_end_at_the_oldest;
    /// A later handler that calls on what it does not want is a chain: faults are resolved behind it.
    a_later_handler_that_calls_ours_resolves;
    /// `SA_ONSTACK`: on the alternate stack. Without: not.
    the_previous_handler_runs_on_the_stack_it_asked_for;
    /// `sa_mask` and `SA_NODEFER`: blocked is what would be without us.
    the_previous_handler_has_the_mask_it_asked_for;
    /// Faults are resolved in threads of 16 KiB, whose alternate stack is Rust's own.
    small_stacks_resolve_their_faults;
    /// What resolving takes of a stack, measured.
    resolving_fits_into_the_room_that_is_kept_for_it;
    /// A thread whose own stack is too small, as Go's are, but whose alternate stack is not.
    a_large_alternate_stack_is_used;
    /// The kernel's word about broken memory that nobody accesses is nobody's access.
    a_late_memory_error_fails_no_access;
    /// A copy whose other side cannot be had names that side.
    a_bad_buffer_is_told_from_a_bad_mapping;
    /// The accesses that ask once.
    accesses_that_ask_once;
}

child::children! {
    /// `SA_RESETHAND`: called once, and then the default action.
    a_previous_handler_that_resets_itself_is_called_once => "called once", libc::SIGBUS;
    /// What the library cannot do anything about: an access through the pointer, in a thread that blocks SIGBUS.
    a_masked_access_through_the_pointer_kills => "about to load", libc::SIGBUS;
}

/// And an access through the pointer to a mapping that was there before a handler that calls nobody.
#[test]
fn a_later_handler_has_the_faults_of_the_pointer() {
    let outcome = child::run("inside::a_later_handler_has_the_faults_of_the_pointer");
    assert_eq!(outcome.status.code(), Some(LATER), "{}\n{}", outcome.status, outcome.output);
}

/// With `O_DIRECT` the device would read into the pages themselves. A pipe of packets has the same flag, and copies.
#[test]
fn direct_io_into_a_mapping_is_refused() {
    let rig = Rig::new(8);
    let file = rig.written("a", 2);
    let map = rig.pager.map(&file, 0..2 * rig.page).unwrap();
    let path = std::env::temp_dir().join(format!("daxpager-handlers-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let opened = std::fs::File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
    std::fs::remove_file(&path).unwrap();
    let opened = opened.expect("this test needs a temporary directory on a file system that knows O_DIRECT");
    assert_eq!(map.read_from(opened.as_fd(), 0, rig.page), Err(Error::DirectIo));
    assert_eq!(map.write_to(opened.as_fd(), 0, rig.page), Err(Error::DirectIo));
    assert_eq!(seen(&map, 0, 8), pattern(8, 1));
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_DIRECT).unwrap();
    assert_eq!(map.write_to(writer.as_fd(), 0, 8), Ok(8));
    assert_eq!(map.read_from(reader.as_fd(), rig.page, 8), Ok(8));
    assert_eq!(seen(&map, rig.page, 8), pattern(8, 1));
}

/// Two versions of the crate in one program: nothing of it has a name that the other could have, too.
#[test]
fn no_symbol_has_a_name_of_its_own_choosing() {
    let listed = Command::new("nm").arg(std::env::current_exe().unwrap()).output();
    let listed = listed.expect("this test needs nm, of the binutils that the linker comes from");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("daxpager"), "nm lists nothing of the library");
    let plain = |line: &&str| line.split_whitespace().last().is_some_and(|name| name.starts_with("daxpager"));
    assert_eq!(listed.lines().find(plain), None);
}

/// A program with two copies of the crate, of different versions, is built, and both work in it: the handlers call each other. Takes a
/// build of its own, so only with `DAXPAGER_LONG=1`.
#[test]
fn two_versions_of_the_crate_work_in_one_program() {
    if std::env::var("DAXPAGER_LONG").as_deref() != Ok("1") {
        return println!("not run: it builds the library twice; set DAXPAGER_LONG=1");
    }
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("two-versions");
    for version in ["1", "2"] {
        let copy = dir.join(format!("copy-{version}"));
        let manifest = std::fs::read_to_string(ours.join("Cargo.toml")).unwrap();
        // The library alone.
        let manifest = manifest.replace("version = \"0.1.0\"", &format!("version = \"0.{version}.0\""));
        let manifest = manifest.split("[dev-dependencies]").next().unwrap().replace("default-run", "#");
        std::fs::create_dir_all(&copy).unwrap();
        std::fs::write(copy.join("Cargo.toml"), format!("{manifest}\n[workspace]\n")).unwrap();
        std::fs::copy(ours.join("README.md"), copy.join("README.md")).unwrap();
        let link = copy.join("src");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(ours.join("src"), link).unwrap();
    }
    std::fs::create_dir_all(dir.join("src")).unwrap();
    let copy = |version| {
        format!("one{version} = {{ package = \"daxpager\", path = \"copy-{version}\", default-features = false }}\n")
    };
    let manifest = "[package]\nname = \"two-versions\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\nexclude = [\"copy-1\", \"copy-2\"]\n[dependencies]\n";
    std::fs::write(dir.join("Cargo.toml"), format!("{manifest}{}{}", copy(1), copy(2))).unwrap();
    std::fs::copy(ours.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    std::fs::write(dir.join("src/main.rs"), TWO_VERSIONS).unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built =
        Command::new(cargo).args(["build", "--offline"]).current_dir(&dir).env_remove("CARGO_TARGET_DIR").output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let ran = child::finish(Command::new(dir.join("target/debug/two-versions")));
    assert!(ran.status.success() && ran.output.contains("both work"), "{}\n{}", ran.status, ran.output);
}

/// Both copies catch past the end, and both resolve in the faulting thread, in either order of coming.
const TWO_VERSIONS: &str = r#"
macro_rules! world {
    ($copy:ident) => {{
        use $copy::{Device, MapOptions, Pager, Resolve, Volume};
        let volume = Volume::format(Device::memfd("two", 1 << 20).unwrap());
        let file = volume.create("a").unwrap();
        file.write_at(&[5; 4 * 4096], 0).unwrap();
        let pager = Pager::builder().start().unwrap();
        let options = MapOptions::new().resolve(Resolve::FaultingThread);
        let map = pager.map_with(&file, 0..8 * 4096, &options).unwrap();
        (volume, file, pager, map)
    }};
}

macro_rules! works {
    ($copy:ident, $world:expr, $page:expr) => {{
        let map = &$world.3;
        let at = unsafe { map.as_ptr().add($page * 4096) };
        assert_eq!(unsafe { at.cast::<u64>().read_volatile() }, u64::from_ne_bytes([5; 8]));
        assert_eq!(map.load($page * 4096 + 8), Ok(u64::from_ne_bytes([5; 8])));
        assert!(matches!(map.load(6 * 4096), Err($copy::Error::Bus(_))));
    }};
}

fn main() {
    let first = world!(one1);
    works!(one1, first, 0);
    let second = world!(one2);
    works!(one1, first, 1);
    works!(one2, second, 0);
    let third = world!(one1);
    works!(one1, third, 0);
    works!(one2, second, 1);
    works!(one1, first, 2);
    println!("both work");
}
"#;

/// How the process ends by a handler that came later.
const LATER: i32 = 42;

fn mask(how: SigmaskHow, set: &SigSet) {
    pthread_sigmask(how, Some(set), None).unwrap();
}

/// In a thread that blocks every signal.
fn masked<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|s| {
        let thread = s.spawn(|| {
            mask(SigmaskHow::SIG_SETMASK, &SigSet::all());
            body()
        });
        join(thread)
    })
}

fn in_thread() -> MapOptions {
    MapOptions::new().resolve(Resolve::FaultingThread)
}

/// What the children do.
mod inside {
    use super::*;

    fn base(map: &Mapping) -> usize {
        map.as_ptr() as usize
    }

    /// Two pages of a pattern, and two pages past them, mapped in both ways.
    fn rig_and_maps() -> (Rig, [Mapping; 2]) {
        let rig = Rig::new(32);
        let p = rig.page;
        let file = rig.written("a", 2);
        let maps =
            [rig.pager.map(&file, 0..4 * p).unwrap(), rig.pager.map_with(&file, 0..4 * p, &in_thread()).unwrap()];
        (rig, maps)
    }

    fn assert_calls_work(map: &Mapping, p: u64) {
        let first = u64::from_ne_bytes(pattern(8, 1).try_into().unwrap());
        assert_eq!(map.load(0), Ok(first));
        assert_eq!(map.store(p + 8, 9), Ok(()));
        assert_eq!(map.compare_exchange(p + 8, 8, 7), Ok(9));
        assert_eq!(map.compare_exchange(p + 8, 9, 10), Ok(9));
        assert_eq!(map.load(p + 8), Ok(10));
        assert_bus(map.load(2 * p + 16), map, 2 * p + 16);
        assert_bus(map.store(3 * p, 1), map, 3 * p);
        assert_bus(map.compare_exchange(2 * p, 0, 1), map, 2 * p);
        // What lies before the end is copied.
        let mut bytes = vec![0xee; 2 * p as usize];
        assert_bus(map.copy_out(p, &mut bytes), map, 2 * p);
        assert_eq!(bytes[..8], pattern(2 * p, 1)[p as usize..][..8]);
        assert!(bytes[p as usize..].iter().all(|byte| *byte == 0xee));
        assert_bus(map.copy_in(2 * p - 8, &[3; 16]), map, 2 * p);
        assert_eq!(map.load(2 * p - 8), Ok(u64::from_ne_bytes([3; 8])));
        assert_eq!(map.copy_in(5, b"odd"), Ok(()));
        assert_eq!(seen(map, 5, 3), b"odd");
        map.copy_in(0, &pattern(8, 1)).unwrap();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_thread_that_blocks_signals_gets_errors() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        maps.iter().for_each(|map| masked(|| assert_calls_work(map, rig.page)));
        maps.iter().for_each(|map| assert_calls_work(map, rig.page));
        let only = SigSet::from(Signal::SIGBUS);
        mask(SigmaskHow::SIG_BLOCK, &only);
        maps.iter().for_each(|map| assert_calls_work(map, rig.page));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_mask_may_change_between_two_calls() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        let p = rig.page;
        for round in 0..50 {
            let how = if round % 2 == 0 { SigmaskHow::SIG_BLOCK } else { SigmaskHow::SIG_UNBLOCK };
            mask(how, &SigSet::from(Signal::SIGBUS));
            for map in &maps {
                assert_bus(map.load(2 * p + 8 * round), map, 2 * p + 8 * round);
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn masked_and_unmasked_threads_add_up() {
        const ADDITIONS: u64 = 3000;
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        let p = rig.page;
        let file = rig.file("counted");
        file.truncate(4 * p).unwrap();
        let own = rig.pager.map_with(&file, 0..4 * p, &in_thread()).unwrap();
        let other = rig.other.map(&file, 0..4 * p).unwrap();
        let add = |map: &Mapping| {
            for _ in 0..ADDITIONS {
                let mut seen = map.load(p).unwrap();
                loop {
                    match map.compare_exchange(p, seen, seen + 1).unwrap() {
                        was if was == seen => break,
                        was => seen = was,
                    }
                }
            }
        };
        let done = AtomicBool::new(false);
        thread::scope(|s| {
            let threads = [s.spawn(|| masked(|| add(&own))), s.spawn(|| masked(|| add(&other))), s.spawn(|| add(&own))];
            let punches = s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    file.punch_hole(2 * p, p).unwrap();
                    file.truncate(3 * p).unwrap();
                    own.store(2 * p + 8, 1).unwrap();
                }
            });
            threads.into_iter().for_each(join);
            done.store(true, Ordering::Relaxed);
            join(punches);
        });
        assert_eq!(other.load(p), Ok(3 * ADDITIONS));
        drop(maps);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn masked_threads_survive_truncates() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        let p = rig.page;
        let file = rig.file("short");
        let other = rig.pager.map_with(&file, 0..4 * p, &in_thread()).unwrap();
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        let done = AtomicBool::new(false);
        let counts = [const { AtomicU64::new(0) }; 2];
        let work = |map: &Mapping| {
            let mut bytes = vec![0; 2 * p as usize];
            while !done.load(Ordering::Relaxed) {
                let outcomes = [
                    map.store(2 * p + 64, 6),
                    map.load(2 * p + 64).map(|value| assert!(value == 0 || value == 6, "{value}")),
                    map.compare_exchange(2 * p + 64, 6, 6).map(drop),
                    map.compare_exchange(2 * p + 64, 0, 6).map(drop),
                    map.copy_out(2 * p, &mut bytes),
                    map.copy_in(2 * p, &[0; 8]),
                ];
                for outcome in outcomes {
                    match outcome {
                        Ok(()) => counts[0].fetch_add(1, Ordering::Relaxed),
                        Err(Error::Bus(bus)) if bus.offset >= 2 * p => counts[1].fetch_add(1, Ordering::Relaxed),
                        Err(error) => panic!("{error}"),
                    };
                }
            }
        };
        let (work, other, map) = (&work, &other, &map);
        thread::scope(|s| {
            let threads = [s.spawn(|| masked(|| work(other))), s.spawn(|| masked(|| work(map))), s.spawn(|| work(map))];
            let mut rounds = 0;
            while rounds < 200 || counts.iter().any(|count| count.load(Ordering::Relaxed) == 0) {
                file.truncate(if rounds % 2 == 0 { 4 * p } else { 2 * p }).unwrap();
                file.punch_hole(2 * p, p).unwrap();
                rounds += 1;
                thread::yield_now();
            }
            done.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(join);
        });
        drop(maps);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_masked_store_is_dirty_and_has_a_block() {
        assert_is_child();
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(4 * p).unwrap();
        file.allocate(3 * p, p, false).unwrap();
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        masked(|| {
            assert_eq!(map.compare_exchange(0, 5, 6), Ok(0));
            assert_eq!(file.blocks(), 1, "an exchange that does nothing takes no block");
            map.store(p + 8, 5).unwrap();
            assert_eq!(map.compare_exchange(2 * p + 8, 0, 6), Ok(0));
            assert_eq!(map.compare_exchange(3 * p + 8, 0, 7), Ok(0));
            assert_eq!(map.load(p + 16), Ok(0));
        });
        assert_eq!(map.take_dirty().unwrap(), [p..4 * p]);
        assert_eq!([map.load(p + 8), map.load(2 * p + 8), map.load(3 * p + 8)], [Ok(5), Ok(6), Ok(7)]);
        assert_eq!(map.load(3 * p), Ok(0), "a new block is zeros");
        assert_eq!(file.blocks(), 3);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_masked_store_to_a_full_volume_is_an_error() {
        assert_is_child();
        let rig = Rig::new(2);
        let p = rig.page;
        let full = rig.written("full", 2);
        let file = rig.file("a");
        file.truncate(2 * p).unwrap();
        for options in [MapOptions::new(), in_thread()] {
            let map = rig.pager.map_with(&file, 0..2 * p, &options).unwrap();
            masked(|| {
                assert_bus(map.store(p, 1), &map, p);
                assert_bus(map.compare_exchange(p, 0, 1), &map, p);
                assert_bus(map.copy_in(p - 3, b"both"), &map, p - 3);
                assert_eq!(map.compare_exchange(p, 1, 2), Ok(0));
                assert_eq!(map.load(p), Ok(0));
            });
        }
        drop(full);
    }

    extern "C" fn end_the_process(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: ends the process, as crash reporters do.
        unsafe { libc::_exit(LATER) }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn calls_work_under_a_handler_that_came_later() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        maps.iter().for_each(|map| assert_calls_work(map, rig.page));
        raw::install_handler(libc::SIGBUS, end_the_process);
        // Entries that are there would hide the handler.
        rig.volume.open("a").unwrap().truncate(0).unwrap();
        rig.volume.open("a").unwrap().write_at(&pattern(2 * rig.page, 1), 0).unwrap();
        maps.iter().for_each(|map| assert_calls_work(map, rig.page));
        maps.iter().for_each(|map| masked(|| assert_calls_work(map, rig.page)));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_later_handler_has_the_faults_of_the_pointer() {
        assert_is_child();
        let (rig, [_, map]) = rig_and_maps();
        raw::install_handler(libc::SIGBUS, end_the_process);
        raw::load(base(&map) + rig.page as usize);
        panic!("the handler was not called");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_masked_access_through_the_pointer_kills() {
        assert_is_child();
        let (rig, [_, map]) = rig_and_maps();
        println!("about to load");
        masked(|| raw::load(base(&map) + rig.page as usize));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_new_mapping_goes_in_front_of_a_later_handler() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let file = rig.written("b", 2);
        let map = rig.pager.map_with(&file, 0..4 * rig.page, &in_thread()).unwrap();
        let second = pattern(2 * rig.page, 1)[rig.page as usize..][..8].to_vec();
        for map in [&map, &maps[1]] {
            assert_eq!(raw::load(base(map) + rig.page as usize).to_ne_bytes(), second[..]);
        }
        assert_calls_work(&map, rig.page);
        assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), 0);
        assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
        assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), 1, "what is not ours is the later one's");
    }

    /// What [`call_ours`] calls.
    static OURS: AtomicUsize = AtomicUsize::new(0);
    static CALLED: AtomicU64 = AtomicU64::new(0);

    extern "C" fn call_ours(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        CALLED.fetch_add(1, Ordering::SeqCst);
        let ours = OURS.load(Ordering::SeqCst);
        // SAFETY: what sigaction(2) gave back as a handler with SA_SIGINFO.
        let ours = unsafe { std::mem::transmute::<usize, raw::Handler>(ours) };
        ours(signal, info, context);
    }

    /// Puts [`call_ours`] in, which calls whatever is there.
    fn install_calling_handler() {
        // SAFETY: an all-zero sigaction is one.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only asks.
        assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) }, 0);
        OURS.store(before.sa_sigaction, Ordering::SeqCst);
        raw::install_handler(libc::SIGBUS, call_ours);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn handlers_that_call_each_other_end_at_the_oldest() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let (rig, maps) = rig_and_maps();
        for round in 1..=3 {
            install_calling_handler();
            let file = rig.written(&format!("in front {round}"), 1);
            let map = rig.pager.map_with(&file, 0..rig.page, &in_thread()).unwrap();
            assert_eq!(raw::load(base(&map)).to_ne_bytes(), pattern(8, 1)[..]);
            // Twice: what the first call has left behind does not mislead the second.
            for twice in 0..2 {
                assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
                let calls = 2 * (round - 1) + twice + 1;
                assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), calls);
                assert_eq!(CALLED.load(Ordering::SeqCst), calls);
            }
        }
        drop(maps);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_later_handler_that_calls_ours_resolves() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let (rig, [_, map]) = rig_and_maps();
        install_calling_handler();
        let second = pattern(2 * rig.page, 1)[rig.page as usize..][..8].to_vec();
        assert_eq!(raw::load(base(&map) + rig.page as usize).to_ne_bytes(), second[..]);
        assert!(CALLED.load(Ordering::SeqCst) > 0);
        assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), 0);
        assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
        assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), 1);
        assert_calls_work(&map, rig.page);
    }

    /// Where [`note_and_patch`] ran, and what it had blocked.
    static RAN_AT: AtomicUsize = AtomicUsize::new(0);
    static BLOCKED: AtomicU64 = AtomicU64::new(0);

    extern "C" fn note_and_patch(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let here = 0u8;
        RAN_AT.store(std::ptr::from_ref(&here) as usize, Ordering::SeqCst);
        let mut blocked = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut blocked)).unwrap();
        BLOCKED.store(blocked.iter().map(|signal| 1 << signal as u64).sum(), Ordering::SeqCst);
        raw::patching_handler(signal, info, context);
    }

    fn install(flags: SaFlags, mask: &SigSet) {
        let action = SigAction::new(SigHandler::SigAction(note_and_patch), flags | SaFlags::SA_SIGINFO, *mask);
        raw::install_handler(libc::SIGBUS, note_and_patch);
        // SAFETY: the handler keeps to what is safe in one.
        unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
    }

    /// The calling thread's alternate stack, which [`painted_stack`] may have set.
    struct Stack {
        at: usize,
        bytes: usize,
    }

    const PAINT: u8 = 0xa5;

    /// Gives the thread an alternate stack of its own, painted, for good.
    fn painted_stack(bytes: usize) -> Stack {
        let memory: &'static [UnsafeCell<u8>] = Vec::leak((0..bytes).map(|_| UnsafeCell::new(PAINT)).collect());
        let at = memory.as_ptr() as usize;
        let stack = libc::stack_t { ss_sp: at as *mut libc::c_void, ss_flags: 0, ss_size: bytes };
        // SAFETY: the memory is leaked, and nobody else's.
        assert_eq!(unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) }, 0);
        Stack { at, bytes }
    }

    impl Stack {
        fn contains(&self, at: usize) -> bool {
            (self.at..self.at + self.bytes).contains(&at)
        }

        /// How much of it has been written to, from its top.
        fn used(&self) -> usize {
            let byte = |at: usize| raw::load((self.at + at) & !7).to_ne_bytes()[(self.at + at) & 7];
            (0..self.bytes).find(|at| byte(*at) != PAINT).map_or(0, |first| self.bytes - first)
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_previous_handler_runs_on_the_stack_it_asked_for() {
        assert_is_child();
        // What the first mapping finds is what ours takes over; a second one goes in front of another.
        for (flags, expected) in [(SaFlags::empty(), false), (SaFlags::SA_ONSTACK, true)] {
            install(flags, &SigSet::empty());
            let outcome = nix_fork(|| {
                let (_rig, maps) = rig_and_maps();
                let stack = painted_stack(64 << 10);
                assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
                assert_eq!(stack.contains(RAN_AT.load(Ordering::SeqCst)), expected, "{flags:?}");
                drop(maps);
            });
            assert!(outcome, "{flags:?}");
        }
    }

    /// Runs the body in a child of the child: the chain begins anew. Before any thread was started.
    fn nix_fork(body: impl FnOnce()) -> bool {
        let body = std::panic::AssertUnwindSafe(body);
        // SAFETY: this process has two threads, the harness's, which waits, and this one; the child goes on with this one alone.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let code = i32::from(std::panic::catch_unwind(body).is_err());
                // SAFETY: ends the child without running the harness's end.
                unsafe { libc::_exit(code) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                matches!(nix::sys::wait::waitpid(child, None).unwrap(), nix::sys::wait::WaitStatus::Exited(_, 0))
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_previous_handler_has_the_mask_it_asked_for() {
        assert_is_child();
        let bit = |signal: Signal| 1u64 << signal as u64;
        let asked = SigSet::from(Signal::SIGUSR1);
        let cases = [
            (SaFlags::empty(), bit(Signal::SIGBUS)),
            (SaFlags::SA_NODEFER, 0),
            (SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK, 0),
        ];
        for (flags, expected) in cases {
            let body = |ours: bool| {
                let kept = ours.then(rig_and_maps);
                mask(SigmaskHow::SIG_SETMASK, &SigSet::from(Signal::SIGUSR2));
                assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
                let expected = expected | bit(Signal::SIGUSR1) | bit(Signal::SIGUSR2);
                assert_eq!(BLOCKED.load(Ordering::SeqCst), expected, "{flags:?}, ours {ours}");
                drop(kept);
            };
            install(flags, &asked);
            // The kernel alone says what is right.
            assert!(nix_fork(|| body(false)), "{flags:?} without the library");
            assert!(nix_fork(|| body(true)), "{flags:?}");
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_previous_handler_that_resets_itself_is_called_once() {
        assert_is_child();
        install(SaFlags::SA_RESETHAND, &SigSet::empty());
        let (_rig, maps) = rig_and_maps();
        assert_eq!(raw::load(raw::empty_memfd_page()).to_ne_bytes(), [raw::PATCH; 8]);
        assert_calls_work(&maps[0], _rig.page);
        println!("called once");
        raw::load(raw::empty_memfd_page());
        println!("called twice");
    }

    /// Loads and stores of all kinds through the pointer, with some recursion below, and none of it lost.
    fn touch(map: &Mapping, p: u64, pages: u64) {
        for page in 0..pages {
            let at = base(map) + (page * p) as usize;
            raw::load(at);
            raw::store(at, page + 1);
            assert_eq!(raw::load(at), page + 1);
        }
    }

    /// A file of which the first half is written, and the rest a hole, mapped for threads that resolve their own faults.
    fn half_written(pages: u64) -> (Rig, Mapping) {
        let rig = Rig::new(2 * pages);
        let p = rig.page;
        let file = rig.file("a");
        file.truncate(pages * p).unwrap();
        file.write_at(&pattern(pages / 2 * p, 1), 0).unwrap();
        let map = rig.pager.map_with(&file, 0..pages * p, &in_thread()).unwrap();
        (rig, map)
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn small_stacks_resolve_their_faults() {
        const PAGES: u64 = 64;
        assert_is_child();
        let (rig, map) = half_written(PAGES);
        let p = rig.page;
        thread::scope(|s| {
            for _ in 0..2 {
                thread::Builder::new().stack_size(16 << 10).spawn_scoped(s, || touch(&map, p, PAGES)).unwrap();
            }
        });
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn resolving_fits_into_the_room_that_is_kept_for_it() {
        const PAGES: u64 = 64;
        // `ROOM_TO_RESOLVE` of the handler.
        const ROOM: usize = 12 << 10;
        assert_is_child();
        let (rig, map) = half_written(PAGES);
        let p = rig.page;
        let stack = painted_stack(256 << 10);
        touch(&map, p, PAGES);
        assert!(rig.pager.stats().in_thread > 0);
        // SAFETY: only asks.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let used = stack.used();
        println!("\nused={used}\nframe={frame}");
        assert!(used > frame / 2, "the alternate stack was not used: {used} bytes");
        assert!(used - frame.min(used) < ROOM * 3 / 4, "{used} bytes of stack, {frame} of them the kernel's");
    }

    /// Loads from `at` with the stack pointer at `top`.
    #[cfg(target_arch = "x86_64")]
    fn load_on(top: usize, at: usize) -> u64 {
        let value: u64;
        // SAFETY: the load is of a mapping; the stack is unused memory, and the old one is back before anybody knows.
        unsafe {
            std::arch::asm!(
                "xchg rsp, {top}",
                "mov {value}, [{at}]",
                "mov rsp, {top}",
                top = inout(reg) top => _,
                at = in(reg) at,
                value = out(reg) value,
            );
        }
        value
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_large_alternate_stack_is_used() {
        const PAGES: u64 = 32;
        assert_is_child();
        let rig = Rig::new(2 * PAGES);
        let p = rig.page;
        let file = rig.written("a", PAGES);
        let map = rig.pager.map_with(&file, 0..PAGES * p, &in_thread()).unwrap();
        let stack = painted_stack(32 << 10);
        // A page of stack, and below it nothing.
        let place = raw::reserve(2 * p);
        // SAFETY: the test's own reservation.
        let opened = unsafe {
            libc::mprotect((place + p as usize) as *mut libc::c_void, p as usize, libc::PROT_READ | libc::PROT_WRITE)
        };
        assert_eq!(opened, 0);
        for page in 0..PAGES {
            let expected = pattern(PAGES * p, 1)[(page * p) as usize..][..8].to_vec();
            let seen = load_on(place + p as usize + 512, base(&map) + (page * p) as usize);
            assert_eq!(seen.to_ne_bytes(), expected[..]);
        }
        assert!(stack.used() > 0);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_late_memory_error_fails_no_access() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, count_only);
        let (rig, maps) = rig_and_maps();
        let codes = [libc::BUS_MCEERR_AO, libc::BUS_MCEERR_AR];
        for (map, code) in maps.iter().flat_map(|map| codes.map(|code| (map, code))) {
            // A fault of this thread before leaves its number in the registers that a handler is shown.
            assert_calls_work(map, rig.page);
            let before = raw::BUS_COUNT.load(Ordering::SeqCst);
            // A thread may send itself what otherwise the kernel alone sends.
            let addr = base(map) + 16;
            let mut info = [0u64; 16];
            info[0] = libc::SIGBUS as u64;
            info[1] = code as u64;
            info[2] = addr as u64;
            let (process, thread) = (nix::unistd::getpid().as_raw(), nix::unistd::gettid().as_raw());
            let (call, info) = (libc::SYS_rt_tgsigqueueinfo, info.as_ptr());
            // SAFETY: 128 bytes in the layout of siginfo_t, which the kernel only reads.
            let sent = unsafe { libc::syscall(call, process, thread, libc::SIGBUS, info) };
            assert_eq!(sent, 0);
            assert_eq!(raw::BUS_COUNT.load(Ordering::SeqCst), before + 1);
            assert_eq!(raw::BUS_ADDR.load(Ordering::SeqCst), addr);
            assert_calls_work(map, rig.page);
        }
    }

    extern "C" fn count_only(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        raw::note_bus(info);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_bad_buffer_is_told_from_a_bad_mapping() {
        assert_is_child();
        let (rig, [map, other]) = rig_and_maps();
        let p = rig.page;
        for bad in [other.as_ptr() as usize + 2 * p as usize, raw::empty_memfd_page()] {
            // SAFETY: mapped, if with nothing behind it: what the test is about.
            let buffer = unsafe { std::slice::from_raw_parts_mut(bad as *mut u8, 8) };
            assert_eq!(map.copy_out(0, buffer), Err(Error::BadBuffer { addr: bad }));
            assert_eq!(map.copy_in(0, buffer), Err(Error::BadBuffer { addr: bad }));
            assert_bus(map.copy_in(2 * p, &[1; 8]), &map, 2 * p);
        }
        // SAFETY: as above. In the mapping itself its own name is right.
        let buffer = unsafe { std::slice::from_raw_parts_mut((base(&map) + 3 * p as usize) as *mut u8, 8) };
        assert_bus(map.copy_out(0, buffer), &map, 3 * p);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn accesses_that_ask_once() {
        assert_is_child();
        let (rig, maps) = rig_and_maps();
        let p = rig.page;
        for map in &maps {
            let work = || {
                let accesses = map.accesses().unwrap();
                accesses.store(p, 4).unwrap();
                assert_eq!(accesses.compare_exchange(p, 4, 5), Ok(4));
                assert_eq!(accesses.load(p), Ok(5));
                accesses.copy_in(p + 8, b"copied").unwrap();
                let mut bytes = [0; 6];
                accesses.copy_out(p + 8, &mut bytes).unwrap();
                assert_eq!(&bytes, b"copied");
                assert_bus(accesses.load(2 * p), map, 2 * p);
                assert_bus(accesses.copy_out(2 * p - 2, &mut bytes), map, 2 * p);
                assert!(matches!(accesses.load(1), Err(Error::Misaligned { .. })));
                assert!(matches!(accesses.load(4 * p), Err(Error::OutsideMapping { .. })));
            };
            work();
            masked(work);
        }
    }
}
