//! Forked children. The address range of a mapping is free in a child, and its next allocation may get it; the locks of the
//! parent's threads are held for ever there; and the device, its lock and the userfaultfds are shared. So a handle does nothing in a child:
//! calls answer `Forked`, drops leak. What a child makes itself works.
//!
//! Each test runs this program again; a child that hangs is killed after 30 s and is a failure.

mod blackbox;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blackbox::child::assert_is_child;
use blackbox::forking::{self, fork_and_wait};
use blackbox::*;
use daxpager::{Access, Advice, Device, Error, File, Kind, MapOptions, Mapping, Pager, Resolve, Tracking, Volume};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

child::children! {
    /// Every call on every handle, in a child whose addresses are a `Vec` of its own by then: each says `Forked`, or nothing, and no byte
    /// of the `Vec` changes. Then all is dropped, and the child forks again.
    every_call_in_a_child_says_forked_and_touches_nothing;
    /// The parent's file is still locked, mapped and whole after a child has dropped everything and ended.
    a_child_that_drops_everything_unlocks_nothing;
    /// Forks while threads hold every lock there is, again and again: no call and no drop in the child waits for one.
    no_lock_of_the_parents_threads_is_waited_for;
    /// A child starts a pager of its own on a device of its own, with each way to resolve faults and to track stores, while threads of
    /// the parent are in theirs; a grandchild does it again.
    a_child_and_its_child_have_pagers_of_their_own;
    /// A child's SIGBUS at an address that is a mapping's in the parent is none of the library's: it is the child's own, and changes nothing in the
    /// parent.
    a_sigbus_in_a_child_is_its_own;
}

/// daemon(3) is a safe call in Rust: the parent ends, and the child goes on with handles that are not its.
#[test]
fn a_daemon_has_no_mapping_and_says_so() {
    let said = std::env::temp_dir().join(format!("daxpager-daemon-{}", std::process::id()));
    let _ = std::fs::remove_file(&said);
    let mut command = child::command("inside::a_daemon_has_no_mapping_and_says_so");
    command.env(SAID, &said);
    let outcome = child::finish(command);
    assert!(outcome.status.success(), "{}", outcome.output);
    let since = Instant::now();
    let text = loop {
        match std::fs::read_to_string(&said) {
            Ok(text) if text.ends_with('\n') => break text,
            _ if since.elapsed() > Duration::from_secs(30) => panic!("the daemon says nothing"),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    };
    std::fs::remove_file(&said).unwrap();
    assert_eq!(text, "Err(Forked), and another: Ok(7)\n");
}

/// Where the daemon of [`a_daemon_has_no_mapping_and_says_so`] writes.
const SAID: &str = "DAXPAGER_TEST_DAEMON_SAYS";

child::children! {
    /// An observer that forks in the middle of a call, and comes back in the child, ends the child there.
    an_observer_that_forks_does_not_come_back_in_the_child;
    /// The lock of a device's file is the open file's, which a child has too: who drops the device unlocks it for all, but
    /// a process that ends with it leaves the lock to a child that lives on. One that has called exec has nothing.
    a_child_that_lives_on_keeps_a_dead_parents_lock_until_it_execs;
    /// No descriptor of the library's survives exec.
    exec_leaves_no_descriptor;
}

/// exit(3) and _exit(2) end a process whose threads wait in faults that nobody will answer.
#[test]
fn exit_ends_threads_that_wait_in_faults() {
    for how in ["exit", "_exit", "return"] {
        let mut command = child::command("inside::exit_ends_threads_that_wait_in_faults");
        command.env(HOW, how);
        let outcome = child::finish(command);
        assert!(outcome.output.contains("both wait"), "{how}: {}", outcome.output);
        let code = if how == "return" { 0 } else { 3 };
        assert_eq!(outcome.status.code(), Some(code), "{how}: {}", outcome.output);
    }
}

const HOW: &str = "DAXPAGER_TEST_HOW";

/// What the children do.
mod inside {
    use super::*;

    /// Every handle there is, of one process.
    struct Handles {
        volume: Volume,
        file: File,
        pager: Pager,
        maps: Vec<Mapping>,
        spare: Device,
    }

    const PAGES: u64 = 64;

    fn ways() -> Vec<MapOptions> {
        let of = |resolve| [Tracking::Exact, Tracking::Asynchronous].map(|tracking| options(resolve, tracking));
        [Resolve::PagerThread, Resolve::FaultingThread].into_iter().flat_map(of).collect()
    }

    fn options(resolve: Resolve, tracking: Tracking) -> MapOptions {
        MapOptions::default().resolve(resolve).tracking(tracking)
    }

    fn handles() -> Handles {
        let p = host_page();
        let volume = Volume::format(Device::memfd("forks", 2 * PAGES * p).unwrap());
        let file = volume.create("a").unwrap();
        file.write_at(&pattern(PAGES * p, 1), 0).unwrap();
        let pager = Pager::builder().measure_latencies().start().unwrap();
        let maps: Vec<_> = ways().iter().map(|options| pager.map_with(&file, 0..PAGES * p, options).unwrap()).collect();
        for map in &maps {
            map.load(0).unwrap();
            map.store(p, 1).unwrap();
        }
        Handles { volume, file, pager, maps, spare: Device::memfd("spare", p).unwrap() }
    }

    /// What a child does must not panic: the code is the number of the check that failed.
    struct Checks(i32);

    impl Checks {
        fn that(&mut self, holds: bool) -> Option<()> {
            self.0 += 1;
            holds.then_some(())
        }

        fn forked<T: PartialEq>(&mut self, result: Result<T, Error>) -> Option<()> {
            self.that(result == Err(Error::Forked))
        }
    }

    fn calls_say_forked(h: &Handles, c: &mut Checks) -> Option<()> {
        let p = host_page();
        let mut bytes = [0u8; 8];
        let zeros = nix::fcntl::open("/dev/zero", nix::fcntl::OFlag::O_RDWR, nix::sys::stat::Mode::empty()).ok()?;
        // The volume's.
        c.forked(h.volume.create("b").map(drop))?;
        c.forked(h.volume.create("").map(drop))?;
        c.forked(h.volume.open("a").map(drop))?;
        c.forked(h.volume.remove("a"))?;
        c.that(h.volume.list().is_empty() && h.volume.free_blocks() == 0 && h.volume.used_blocks() == 0)?;
        c.that(h.volume.block_bytes() == p && format!("{:?}", h.volume).contains("Volume"))?;
        // The device's: plain numbers.
        c.that(h.spare.len_bytes() == p && h.spare.block_bytes() == p && format!("{:?}", h.spare).contains("Device"))?;
        // The file's.
        c.forked(h.file.truncate(0))?;
        c.forked(h.file.punch_hole(0, p))?;
        c.forked(h.file.punch_hole(0, 0))?;
        c.forked(h.file.zero_range(0, p, false))?;
        c.forked(h.file.allocate(0, p, false))?;
        c.forked(h.file.read_at(&mut bytes, 0))?;
        c.forked(h.file.write_at(&bytes, 0))?;
        c.that(h.file.len() == 0 && h.file.blocks() == 0 && h.file.extents().is_empty() && h.file.fiemap().is_empty())?;
        c.that(h.file.number() == 1 && format!("{:?}", h.file).contains("File"))?;
        // The pager's.
        c.forked(h.pager.map(&h.file, 0..p).map(drop))?;
        for options in ways() {
            c.forked(h.pager.map_with(&h.file, 0..p, &options).map(drop))?;
        }
        c.that(h.pager.stats().all_faults() == 0 && h.pager.mappings() == 0)?;
        c.that(
            Kind::ALL.iter().all(|kind| h.pager.latency(*kind).is_none() && h.pager.latency_histogram(*kind).is_none()),
        )?;
        c.that(h.pager.describe().contains("another process") && format!("{:?}", h.pager).contains("Pager"))?;
        let _ = h.pager.serves_kernel_faults();
        // The mappings'.
        for map in &h.maps {
            let all = 0..PAGES * p;
            c.forked(map.load(0))?;
            c.forked(map.store(0, 1))?;
            c.forked(map.compare_exchange(0, 0, 1))?;
            c.forked(map.copy_out(0, &mut bytes))?;
            c.forked(map.copy_in(0, &bytes))?;
            c.forked(map.read_from(zeros.as_fd(), 0, p))?;
            c.forked(map.write_to(zeros.as_fd(), 0, p))?;
            c.forked(map.read_at(&mut bytes, 0))?;
            c.forked(map.write_at(&bytes, 0))?;
            c.forked(map.take_dirty())?;
            c.forked(map.populate(all.clone(), Access::Load))?;
            c.forked(map.populate(all.clone(), Access::Store))?;
            for advice in [Advice::Normal, Advice::Sequential, Advice::Random, Advice::WillNeed, Advice::DontNeed] {
                c.forked(map.advise(all.clone(), advice))?;
            }
            c.that(map.backing_at(0).is_none() && map.len() == PAGES * p && map.file_offset() == 0)?;
            c.that(format!("{map:?}").contains("Mapping"))?;
        }
        Some(())
    }

    /// Drops and ends everything, in an order in which something might be the last of its kind.
    fn drop_all(h: Handles, c: &mut Checks) -> Option<()> {
        let Handles { volume, file, pager, maps, spare } = h;
        drop((volume.clone(), file.clone()));
        drop(maps);
        c.forked(pager.shutdown().map(drop))?;
        drop((file, volume));
        let of_the_parents = Volume::format(spare);
        c.forked(of_the_parents.create("a").map(drop))
    }

    fn code(c: &Checks, done: Option<()>) -> i32 {
        if done.is_some() { 0 } else { c.0 }
    }

    #[track_caller]
    fn assert_ended(ended: WaitStatus) {
        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}; the code is the number of the check");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn every_call_in_a_child_says_forked_and_touches_nothing() {
        assert_is_child();
        let h = handles();
        let p = host_page();
        let want = read(&h.file, 0, PAGES * p);
        let places: Vec<_> = h.maps.iter().map(|map| map.as_ptr() as usize).collect();
        let mut h = Some(h);
        assert_ended(fork_and_wait(|| {
            // The child's own bytes lie where the mappings are.
            let own: Vec<_> = places.iter().map(|at| forking::memory_at(*at, PAGES * p, 0x33)).collect();
            let mut c = Checks(0);
            let h = h.take().unwrap();
            let mut done = calls_say_forked(&h, &mut c);
            done = done.and_then(|()| {
                let again = fork_and_wait(|| {
                    let mut c = Checks(0);
                    let done = calls_say_forked(&h, &mut c);
                    code(&c, done)
                });
                c.that(matches!(again, WaitStatus::Exited(_, 0)))
            });
            done = done.and_then(|()| drop_all(h, &mut c));
            done = done.and_then(|()| c.that(own.iter().all(|own| own.iter().all(|byte| *byte == 0x33))));
            code(&c, done)
        }));
        let h = h.unwrap();
        assert_everywhere(&h.file, &h.maps, 0, &want);
        for (index, map) in h.maps.iter().enumerate() {
            map.store(index as u64 * p, 9).unwrap();
            assert!(!map.take_dirty().unwrap().is_empty());
        }
        drop(h.maps);
        h.pager.shutdown().unwrap();
        h.file.truncate(0).unwrap();
        assert_eq!(h.volume.used_blocks(), 0);
    }

    /// A tmpfs that is there on every machine.
    fn shared_memory_file(name: &str) -> std::path::PathBuf {
        std::path::PathBuf::from(format!("/dev/shm/daxpager-forks-{}-{name}", std::process::id()))
    }

    fn is_busy(path: &std::path::Path) -> bool {
        match Device::open(path, host_page()) {
            Err(Error::DeviceBusy { .. }) => true,
            Ok(_) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_child_that_drops_everything_unlocks_nothing() {
        assert_is_child();
        let path = shared_memory_file("kept");
        let p = host_page();
        let volume = Volume::format(Device::open(&path, 8 * p).unwrap());
        let file = volume.create("a").unwrap();
        file.write_at(&pattern(4 * p, 1), 0).unwrap();
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 0..4 * p).unwrap();
        let mut all = Some((map, pager, file, volume));
        assert_ended(fork_and_wait(|| {
            drop(all.take());
            // Neither the child nor anybody else may have it.
            i32::from(!is_busy(&path))
        }));
        assert!(is_busy(&path), "the child has unlocked the parent's device");
        let (map, pager, file, volume) = all.unwrap();
        assert_everywhere(&file, std::slice::from_ref(&map), 0, &pattern(4 * p, 1));
        drop((map, pager, file, volume));
        assert!(!is_busy(&path));
        std::fs::remove_file(&path).unwrap();
    }

    /// Does it again and again until it is to stop, and counts.
    fn spin<'s>(
        s: &'s thread::Scope<'s, '_>,
        stop: &'s AtomicBool,
        rounds: &'s AtomicU64,
        mut body: impl FnMut(u64) + Send + 's,
    ) {
        s.spawn(move || {
            for round in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                body(round);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn no_lock_of_the_parents_threads_is_waited_for() {
        assert_is_child();
        let p = host_page();
        let h = handles();
        let mut h = Some(h);
        // The threads' own handles: what they hold locks of is what the child drops.
        let (file, volume) = (h.as_ref().unwrap().file.clone(), h.as_ref().unwrap().volume.clone());
        let pager = Pager::builder().start().unwrap();
        let stop = AtomicBool::new(false);
        let rounds = AtomicU64::new(0);
        thread::scope(|s| {
            let _end = at_end(|| stop.store(true, Ordering::Relaxed));
            let (file, volume, pager, stop, rounds) = (&file, &volume, &pager, &stop, &rounds);
            spin(s, stop, rounds, move |round| {
                file.punch_hole(round % PAGES * p, p).unwrap();
                file.write_at(&[1; 9000], round % PAGES * p).unwrap();
                file.truncate(PAGES * p).unwrap();
            });
            spin(s, stop, rounds, move |round| {
                let name = round.to_string();
                volume.create(&name).unwrap();
                volume.list();
                volume.remove(&name).unwrap();
            });
            spin(s, stop, rounds, move |round| {
                let ways = ways();
                let map = pager.map_with(file, 0..PAGES * p, &ways[round as usize % ways.len()]).unwrap();
                for page in 0..PAGES {
                    let _ = map.load(page * p);
                    let _ = map.store(page * p, round);
                }
            });
            for round in 0..60 {
                let before = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) == before {
                    thread::yield_now();
                }
                let ended = fork_and_wait(|| {
                    let mut c = Checks(0);
                    let h = h.take().unwrap();
                    let done = calls_say_forked(&h, &mut c).and_then(|()| drop_all(h, &mut c));
                    code(&c, done)
                });
                assert!(matches!(ended, WaitStatus::Exited(_, 0)), "round {round}: {ended:?}");
            }
        });
        drop(h);
    }

    /// A pager of this process's own, with every kind of mapping.
    fn own_pager_works() -> bool {
        let h = handles();
        let p = host_page();
        let each = h.maps.iter().enumerate().all(|(index, map)| {
            let at = (8 + index as u64) * p;
            let first = map.store(at, 77).is_ok() && map.load(at) == Ok(77) && map.take_dirty().is_ok();
            h.file.punch_hole(at, p).unwrap();
            let past = map.load(at) == Ok(0) && map.store(at, 5).is_ok() && h.file.read_at(&mut [0; 8], at) == Ok(8);
            first && past
        });
        h.file.truncate(p).unwrap();
        let ends = h.maps.iter().all(|map| matches!(map.load(p), Err(Error::Bus(_))));
        drop(h.maps);
        each && ends && h.pager.shutdown().is_ok()
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_child_and_its_child_have_pagers_of_their_own() {
        assert_is_child();
        let p = host_page();
        let h = handles();
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            let _end = at_end(|| stop.store(true, Ordering::Relaxed));
            // Threads of the parent in slots and in the directory of watched ranges.
            for map in &h.maps {
                s.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        h.file.punch_hole(3 * p, 2 * p).unwrap();
                        map.store(3 * p, 1).unwrap();
                        map.load(4 * p).unwrap();
                    }
                });
            }
            let watching = s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(h.pager.map_with(&h.file, 0..p, &options(Resolve::FaultingThread, Tracking::Exact)).unwrap());
                }
            });
            for round in 0..10 {
                let ended = fork_and_wait(|| {
                    let own = own_pager_works();
                    let again = fork_and_wait(|| i32::from(!own_pager_works()));
                    match (own, again) {
                        (true, WaitStatus::Exited(_, 0)) => 0,
                        (false, _) => 1,
                        (true, _) => 2,
                    }
                });
                assert!(matches!(ended, WaitStatus::Exited(_, 0)), "round {round}: {ended:?}");
            }
            stop.store(true, Ordering::Relaxed);
            join(watching);
        });
        assert!(own_pager_works());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_sigbus_in_a_child_is_its_own() {
        assert_is_child();
        let h = handles();
        let p = host_page();
        // In the thread: the pages are not loaded, so the library's handler would install them in the parent.
        let map = &h.maps[2];
        let stats = h.pager.stats();
        let ended = raw::fork(|| {
            // At the mapping's address, memory of the child's own that is a SIGBUS to touch.
            forking::empty_memfd_at(map.as_ptr() as usize, PAGES * p);
            raw::load(map.as_ptr() as usize + 9 * p as usize);
            1
        });
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGBUS, _)), "{ended:?}");
        assert_eq!(h.pager.stats().all_faults(), stats.all_faults(), "the child's fault was served in the parent");
        // The same with a handler of the library's that is the child's, too.
        let ended = fork_and_wait(|| {
            forking::empty_memfd_at(map.as_ptr() as usize, PAGES * p);
            let own = handles();
            let works = own.maps[2].load(9 * p).is_ok()
                && matches!(own.maps[2].load(PAGES * p), Err(Error::OutsideMapping { .. }));
            if !works {
                return 2;
            }
            raw::load(map.as_ptr() as usize + 9 * p as usize);
            1
        });
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGBUS, _)), "{ended:?}");
        assert_eq!(h.pager.stats().all_faults(), stats.all_faults(), "the child's fault was served in the parent");
        assert_bytes(&seen(map, 9 * p, p), &read(&h.file, 9 * p, p), "the parent's page");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_daemon_has_no_mapping_and_says_so() {
        assert_is_child();
        let h = handles();
        nix::unistd::daemon(true, true).unwrap();
        // Another process from here on.
        forking::die_after(30);
        let text = format!("{:?}, and another: ", h.maps[0].load(0));
        drop(h);
        let own = handles();
        own.maps[0].store(0, 7).unwrap();
        let text = format!("{text}{:?}\n", own.maps[0].load(0));
        std::fs::write(std::env::var_os(SAID).unwrap(), text).unwrap();
        forking::exit_now(0);
    }

    struct Forking(AtomicBool);

    impl daxpager::probe::Probe for Forking {
        fn at(&self, event: daxpager::probe::Event) {
            if event.point == daxpager::probe::Point::Published && self.0.swap(false, Ordering::SeqCst) {
                // The parent waits for the child, which is to end as it leaves this observer; were it to go on, it would say so.
                match forking::fork_here() {
                    None => {}
                    Some(ended) => {
                        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGABRT, _)), "{ended:?}");
                    }
                }
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn an_observer_that_forks_does_not_come_back_in_the_child() {
        assert_is_child();
        let p = host_page();
        let probe = std::sync::Arc::new(Forking(AtomicBool::new(false)));
        let volume = Volume::format_with_probe(Device::memfd("observed", 8 * p).unwrap(), probe.clone());
        let file = volume.create("a").unwrap();
        file.write_at(&[1; 100], 0).unwrap();
        let me = std::process::id();
        probe.0.store(true, Ordering::SeqCst);
        file.truncate(0).unwrap();
        assert_eq!(std::process::id(), me, "the child has come back");
        assert!(!probe.0.load(Ordering::SeqCst), "nobody has forked");
        assert_eq!(file.len(), 0);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_child_that_lives_on_keeps_a_dead_parents_lock_until_it_execs() {
        assert_is_child();
        let path = shared_memory_file("inherited");
        for execs in [true, false] {
            // Until `tells` is closed here.
            let (ends, tells) = nix::unistd::pipe().unwrap();
            let mut tells = Some(tells);
            assert_ended(fork_and_wait(|| {
                let device = Device::open(&path, host_page()).unwrap();
                if execs {
                    let stdin = std::process::Stdio::from(ends.try_clone().unwrap());
                    drop(tells.take());
                    // Returns when the new process has called exec.
                    std::mem::forget(std::process::Command::new("cat").stdin(stdin).spawn().unwrap());
                } else {
                    forking::fork_away(|| {
                        drop(tells.take());
                        let _ = nix::unistd::read(&ends, &mut [0]);
                    });
                }
                std::mem::forget(device);
                0
            }));
            assert_eq!(is_busy(&path), !execs, "execs: {execs}");
            drop(tells);
            until_free(&path);
            // A drop unlocks whatever children there are.
            let device = Device::open(&path, host_page()).unwrap();
            let (ends, tells) = nix::unistd::pipe().unwrap();
            let mut tells = Some(tells);
            forking::fork_away(|| {
                drop(tells.take());
                let _ = nix::unistd::read(&ends, &mut [0]);
            });
            assert!(is_busy(&path));
            drop(device);
            assert!(!is_busy(&path));
        }
        std::fs::remove_file(&path).unwrap();
    }

    /// Waits for a process to end that nobody can wait for.
    fn until_free(path: &std::path::Path) {
        let since = Instant::now();
        while is_busy(path) {
            assert!(since.elapsed() < Duration::from_secs(20), "still locked");
            thread::yield_now();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn exec_leaves_no_descriptor() {
        assert_is_child();
        let list = || {
            let output = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            // The columns from the name on; ls itself has the directory open.
            let mut open: Vec<_> =
                text.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, to)| to.to_owned()).collect();
            open.retain(|to| !to.starts_with("pipe:") && !to.starts_with("/proc/"));
            open.sort();
            open
        };
        let before = list();
        let own = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let h = handles();
        let path = shared_memory_file("exec");
        let device = Device::open(&path, host_page()).unwrap();
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() >= own + 8, "the library has descriptors");
        assert_eq!(list(), before);
        std::fs::remove_file(&path).unwrap();
        drop((h, device));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn exit_ends_threads_that_wait_in_faults() {
        assert_is_child();
        let rig = Rig::with_reader(8, false);
        let p = rig.page;
        let file = rig.written("a", 4);
        let maps: &'static [Mapping] = Box::leak(Box::new([
            rig.pager.map(&file, 0..4 * p).unwrap(),
            rig.pager.map_with(&file, 0..4 * p, &options(Resolve::FaultingThread, Tracking::Exact)).unwrap(),
        ]));
        // Nobody answers: the file's changes are parked under their lock.
        let trap = rig.park.trap(daxpager::probe::Point::Published, 0);
        let changing = file.clone();
        thread::spawn(move || changing.punch_hole(0, p));
        trap.wait();
        static TIDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
        for (index, map) in maps.iter().enumerate() {
            thread::spawn(move || {
                TIDS[index].store(nix::unistd::gettid().as_raw() as u64, Ordering::SeqCst);
                map.load(p)
            });
        }
        let since = Instant::now();
        for tid in &TIDS {
            // In a fault, or at a slot.
            let asleep = || {
                let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", tid.load(Ordering::SeqCst)));
                stat.is_ok_and(|stat| {
                    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S') || rest.starts_with('D'))
                })
            };
            while !asleep() {
                assert!(since.elapsed() < Duration::from_secs(20), "a reader does not wait");
                thread::yield_now();
            }
        }
        println!("both wait");
        match std::env::var(HOW).unwrap().as_str() {
            "exit" => std::process::exit(3),
            "_exit" => forking::exit_now(3),
            // The test ends, and so does main. What it has is not dropped: that would wait for the change.
            _ => std::mem::forget((trap, rig, file)),
        }
    }
}
