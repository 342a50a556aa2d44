//! Starting with little: few descriptors, little memory, no threads, filters, and privileges that are given up. What is short is named with
//! its numbers, nothing is left of what failed, and a later try works. Each test runs this program again.
//!
//! Needs root, to become nobody, and `/dev/userfaultfd` that root may open.

mod blackbox;

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{Device, Error, File, MapOptions, Mapping, Pager, PagerBuilder, Resolve, Result, Tracking, Volume};
use nix::sys::resource::{RLIM_INFINITY, Resource};

child::children! {
    /// With any number of descriptors left, `start` and `map_with` work, or name `RLIMIT_NOFILE` and leave nothing open.
    each_descriptor_that_is_missing_is_named;
}

/// The programs say that descriptors are short, and not that this machine cannot.
#[cfg(feature = "cli")]
#[test]
fn the_programs_do_not_call_a_shortage_the_machines() {
    let programs = [
        (env!("CARGO_BIN_EXE_daxpager-demo"), "--seconds 1"),
        (env!("CARGO_BIN_EXE_daxpager-stress"), "--seconds 1 --quiet"),
    ];
    for (program, args) in programs {
        let mut named = 0;
        // From so few that the program itself does not load.
        for descriptors in 3..12 {
            let script = format!("ulimit -n {descriptors}; exec {program} {args}");
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_ne!(output.status.code(), Some(77), "{descriptors}: {said}");
            assert!(!said.contains("CONFIG_USERFAULTFD"), "{descriptors}: {said}");
            named += u32::from(said.contains("RLIMIT_NOFILE"));
        }
        assert!(named > 0, "{program} was never short of descriptors");
    }
}

/// A filter refuses userfaultfd(2), with either errno that filters use, and `/dev/userfaultfd` may be opened: everything works, faults from
/// inside system calls too.
#[test]
fn where_a_filter_refuses_the_system_call_the_device_serves() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut command = child::command("inside::where_a_filter_refuses_the_system_call_the_device_serves");
        command.env(ERRNO, errno.to_string());
        child::finish(command).assert_success();
    }
}

child::children! {
    /// A filter refuses the system call and the device is not for nobody: the error says so.
    where_both_are_refused_the_error_says_so;
    /// Privileges are given up after the start. What was prepared works, with faults from inside system calls; what was not and
    /// needs the privilege says which.
    what_was_prepared_works_without_privileges;
    a_mapping_beyond_rlimit_data_names_it;
    a_mapping_beyond_rlimit_as_names_it;
    a_thread_beyond_rlimit_as_names_it;
    a_thread_beyond_rlimit_nproc_names_it;
    /// After mlockall(MCL_FUTURE) everything mapped is locked, and the limit of that is met by stacks and by mappings.
    what_is_beyond_rlimit_memlock_names_it;
    /// No signal can be queued: a store that finds the volume full is an error for its thread all the same, and all else goes on.
    without_room_for_signals_a_full_volume_is_an_error;
    /// A file larger than RLIMIT_FSIZE would be SIGXFSZ, which kills.
    a_device_beyond_rlimit_fsize_is_an_error_and_no_death;
}

const ERRNO: &str = "DAXPAGER_TEST_ERRNO";
const NOBODY: u32 = 65534;

/// What the children do.
mod inside {
    use super::*;

    fn ways() -> [MapOptions; 4] {
        let of = |resolve, tracking| MapOptions::default().resolve(resolve).tracking(tracking);
        [
            of(Resolve::PagerThread, Tracking::Exact),
            of(Resolve::PagerThread, Tracking::Asynchronous),
            of(Resolve::FaultingThread, Tracking::Exact),
            of(Resolve::FaultingThread, Tracking::Asynchronous),
        ]
    }

    fn everything_prepared() -> PagerBuilder {
        ways().iter().fold(Pager::builder(), |builder, options| builder.prepare(options))
    }

    fn volume() -> (Volume, File) {
        let p = host_page();
        let volume = Volume::format(Device::memfd("limits", 64 * p).unwrap());
        let file = volume.create("a").unwrap();
        file.write_at(&pattern(16 * p, 1), 0).unwrap();
        (volume, file)
    }

    fn count(what: &str) -> usize {
        std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
    }

    /// A thread that has been joined may be in the list for a moment.
    #[track_caller]
    fn assert_none_left(what: &str, before: usize) {
        let since = std::time::Instant::now();
        while count(what) != before {
            let time = since.elapsed() < std::time::Duration::from_secs(10);
            assert!(time, "{} in /proc/self/{what}, and {before} before", count(what));
            std::thread::yield_now();
        }
    }

    #[track_caller]
    fn assert_limit<T>(result: Result<T>, name: &str) -> (u64, u64) {
        match result.map(drop) {
            Err(error @ Error::Limit { .. }) => {
                let text = error.to_string();
                let Error::Limit { limit, allowed, wanted, .. } = error else { unreachable!() };
                assert_eq!(limit, name, "{text}");
                assert!(wanted > allowed && text.contains(name), "{text}");
                assert!(text.contains(&wanted.to_string()) && text.contains(&allowed.to_string()), "{text}");
                (allowed, wanted)
            }
            other => panic!("{other:?} is not about {name}"),
        }
    }

    /// Every kind of access, and nothing that belongs to somebody else.
    fn assert_works(file: &File, map: &Mapping) {
        let p = host_page();
        map.take_dirty().unwrap();
        assert_bytes(&seen(map, 0, 16 * p), &read(file, 0, 16 * p), "a mapping");
        map.store(3 * p, 9).unwrap();
        let dirty = map.take_dirty().unwrap();
        assert!(dirty.iter().any(|range| range.contains(&(3 * p))), "{dirty:?}");
        file.punch_hole(3 * p, p).unwrap();
        assert_eq!(map.load(3 * p), Ok(0));
        map.store(3 * p, 7).unwrap();
        assert_bus(map.load(16 * p), map, 16 * p);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn each_descriptor_that_is_missing_is_named() {
        assert_is_child();
        let p = host_page();
        let (_volume, file) = volume();
        // Made beforehand: what it opens is not the test's business.
        drop(everything_prepared().start().unwrap());
        let plenty = raw_limits::get(Resource::RLIMIT_NOFILE);
        let _fillers = raw_limits::without_gaps();
        let (open, threads) = (count("fd") as u64, count("task"));
        let mut worked = 0;
        for more in 0..30 {
            // `count` has the directory open.
            raw_limits::set(Resource::RLIMIT_NOFILE, open - 1 + more);
            let started = everything_prepared().start();
            let refused = started.is_err();
            if refused {
                assert_eq!(assert_limit(started, "RLIMIT_NOFILE").0, open - 1 + more);
                assert!(worked == 0, "more descriptors are worse");
            } else {
                worked += 1;
                let pager = started.unwrap();
                for options in ways() {
                    assert_works(&file, &pager.map_with(&file, 0..17 * p, &options).unwrap());
                }
            }
            raw_limits::set(Resource::RLIMIT_NOFILE, plenty);
            assert_none_left("fd", open as usize);
            assert_none_left("task", threads);
        }
        assert!((1..30).contains(&worked), "{worked} of 30 worked");
        // Plain at start, and short when more is wanted.
        let pager = Pager::builder().start().unwrap();
        let _fillers = raw_limits::without_gaps();
        let (open, threads) = (count("fd"), count("task"));
        for options in &ways()[1..] {
            raw_limits::set(Resource::RLIMIT_NOFILE, open as u64 - 1);
            assert_limit(pager.map_with(&file, 0..p, options), "RLIMIT_NOFILE");
            assert_works(&file, &pager.map(&file, 0..17 * p).unwrap());
            raw_limits::set(Resource::RLIMIT_NOFILE, plenty);
            assert_none_left("fd", open);
            assert_none_left("task", threads);
        }
        raw_limits::set(Resource::RLIMIT_NOFILE, open as u64 - 1);
        assert_limit(Device::memfd("short", p), "RLIMIT_NOFILE");
        raw_limits::set(Resource::RLIMIT_NOFILE, plenty);
        for options in ways() {
            assert_works(&file, &pager.map_with(&file, 0..17 * p, &options).unwrap());
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn where_a_filter_refuses_the_system_call_the_device_serves() {
        assert_is_child();
        let errno: i32 = std::env::var(ERRNO).unwrap().parse().unwrap();
        let device = std::fs::File::options().read(true).write(true).open("/dev/userfaultfd");
        assert!(device.is_ok(), "this test needs a /dev/userfaultfd that it may open: {device:?}");
        raw_limits::refuse_userfaultfd(errno);
        let p = host_page();
        let (_volume, file) = volume();
        let pager = Pager::builder().require_kernel_faults().start().unwrap();
        assert!(pager.serves_kernel_faults());
        for options in ways() {
            let map = pager.map_with(&file, 0..17 * p, &options).unwrap();
            assert_works(&file, &map);
            assert_system_call_is_served(&map);
        }
    }

    /// A system call on pages that nobody has touched.
    fn assert_system_call_is_served(map: &Mapping) {
        let p = host_page();
        let outside = nix::sys::memfd::memfd_create("outside", nix::sys::memfd::MFdFlags::empty()).unwrap();
        map.advise(0..16 * p, daxpager::Advice::DontNeed).unwrap();
        let fd = std::os::fd::AsFd::as_fd(&outside);
        assert_eq!(map.write_to(fd, 4 * p, 2 * p).unwrap() as u64, 2 * p);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn where_both_are_refused_the_error_says_so() {
        assert_is_child();
        raw_limits::become_nobody();
        raw_limits::refuse_userfaultfd(libc::EPERM);
        let refused = Error::NoUserfaultfd { errno: libc::EPERM };
        assert_eq!(Pager::builder().start().map(drop), Err(refused.clone()));
        assert_eq!(Pager::builder().require_kernel_faults().start().map(drop), Err(refused));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn what_was_prepared_works_without_privileges() {
        assert_is_child();
        let p = host_page();
        let (_volume, file) = volume();
        let plain = Pager::builder().require_kernel_faults().start().unwrap();
        let prepared = everything_prepared().require_kernel_faults().start().unwrap();
        let (descriptors, threads) = (count("fd"), count("task"));
        raw_limits::become_nobody();
        for options in ways() {
            let map = prepared.map_with(&file, 0..17 * p, &options).unwrap();
            assert_works(&file, &map);
            assert_system_call_is_served(&map);
        }
        assert!(prepared.serves_kernel_faults());
        assert_eq!((count("fd"), count("task")), (descriptors, threads), "something was opened after all");
        let [exact, asynchronous, direct, direct_asynchronous] = ways();
        assert_works(&file, &plain.map_with(&file, 0..17 * p, &exact).unwrap());
        assert_works(&file, &plain.map_with(&file, 0..17 * p, &direct).unwrap());
        let refused = plain.map_with(&file, 0..p, &asynchronous).map(drop).unwrap_err();
        assert!(matches!(refused, Error::NoKernelFaults { .. }), "{refused}");
        assert!(refused.to_string().contains("PagerBuilder::prepare"), "{refused}");
        // Its own threads serve no faults of system calls, so what it lacks is the page table's record: this process's files
        // in /proc are root's now.
        let refused = plain.map_with(&file, 0..p, &direct_asynchronous).map(drop).unwrap_err();
        let expected = Error::System { call: "open(/proc/self/pagemap)", errno: libc::EACCES };
        assert_eq!(refused, expected);
        assert_works(&file, &plain.map_with(&file, 0..17 * p, &direct).unwrap());
    }

    const GIB: u64 = 1 << 30;

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_mapping_beyond_rlimit_data_names_it() {
        assert_is_child();
        let p = host_page();
        let (_volume, file) = volume();
        let pager = everything_prepared().start().unwrap();
        let open = count("fd");
        let limit = raw_limits::status("VmData:") + (64 << 20);
        raw_limits::set(Resource::RLIMIT_DATA, limit);
        for options in ways() {
            let (allowed, wanted) = assert_limit(pager.map_with(&file, 0..GIB, &options), "RLIMIT_DATA");
            assert_eq!(allowed, limit);
            assert!((GIB..limit + GIB).contains(&wanted), "{wanted}");
            assert_works(&file, &pager.map_with(&file, 0..17 * p, &options).unwrap());
        }
        // What has been mapped for good by now is all there is.
        let ranges = raw_limits::ranges();
        for _ in 0..20 {
            for options in ways() {
                assert_limit(pager.map_with(&file, 0..GIB, &options), "RLIMIT_DATA");
            }
        }
        assert!(raw_limits::ranges() < ranges + 20, "address ranges are left");
        assert_eq!((count("fd"), pager.mappings()), (open, 0));
        raw_limits::set(Resource::RLIMIT_DATA, RLIM_INFINITY);
        for options in ways() {
            assert_works(&file, &pager.map_with(&file, 0..GIB, &options).unwrap());
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_mapping_beyond_rlimit_as_names_it() {
        assert_is_child();
        let p = host_page();
        let (_volume, file) = volume();
        let pager = everything_prepared().start().unwrap();
        let open = count("fd");
        raw_limits::set(Resource::RLIMIT_AS, raw_limits::status("VmSize:") + (256 << 20));
        for options in ways() {
            assert_limit(pager.map_with(&file, 0..GIB, &options), "RLIMIT_AS");
            assert_works(&file, &pager.map_with(&file, 0..17 * p, &options).unwrap());
        }
        // A device takes no addresses.
        drop(Device::memfd("large", GIB).unwrap());
        assert_none_left("fd", open);
        raw_limits::set(Resource::RLIMIT_AS, RLIM_INFINITY);
        assert_works(&file, &pager.map(&file, 0..GIB).unwrap());
    }

    /// Starts that are refused for `name`, with one thread or more of them already there, and then one that is not.
    fn assert_starts_are_refused_for(
        name: &str,
        limit: Resource,
        values: impl Iterator<Item = u64>,
        builder: &PagerBuilder,
    ) {
        let before = raw_limits::get(limit);
        let (open, threads) = (count("fd"), count("task"));
        let mut refused = 0;
        for value in values {
            raw_limits::set(limit, value);
            let started = builder.clone().workers(8).start();
            raw_limits::set(limit, before);
            if started.is_err() {
                assert_limit(started, name);
                refused += 1;
            } else {
                drop(started);
            }
            assert_none_left("fd", open);
            assert_none_left("task", threads);
        }
        assert!(refused > 0, "no start was refused");
        let (_volume, file) = volume();
        let pager = builder.clone().start().unwrap();
        assert_works(&file, &pager.map(&file, 0..17 * host_page()).unwrap());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_thread_beyond_rlimit_as_names_it() {
        assert_is_child();
        let used = raw_limits::status("VmSize:");
        let values = (0..10).map(|step| used + (1 << 20) + step * (3 << 20));
        assert_starts_are_refused_for("RLIMIT_AS", Resource::RLIMIT_AS, values, &everything_prepared());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_thread_beyond_rlimit_nproc_names_it() {
        assert_is_child();
        raw_limits::become_nobody();
        // Of which there may be others, but so few not.
        assert_starts_are_refused_for("RLIMIT_NPROC", Resource::RLIMIT_NPROC, 0..3, &Pager::builder());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn what_is_beyond_rlimit_memlock_names_it() {
        assert_is_child();
        let p = host_page();
        let (_volume, file) = volume();
        let pager = everything_prepared().start().unwrap();
        raw_limits::become_nobody();
        raw_limits::set(Resource::RLIMIT_MEMLOCK, 4 << 20);
        raw_limits::lock_all_that_comes();
        let (open, threads) = (count("fd"), count("task"));
        assert_limit(pager.map(&file, 0..GIB), "RLIMIT_MEMLOCK");
        assert_limit(Pager::builder().workers(8).start(), "RLIMIT_MEMLOCK");
        assert_none_left("fd", open);
        assert_none_left("task", threads);
        assert_works(&file, &pager.map(&file, 0..17 * p).unwrap());
        raw_limits::unlock_all();
        drop(Pager::builder().workers(8).start().unwrap());
        assert_works(&file, &pager.map(&file, 0..GIB).unwrap());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn without_room_for_signals_a_full_volume_is_an_error() {
        assert_is_child();
        raw_limits::set(Resource::RLIMIT_SIGPENDING, 0);
        let p = host_page();
        let pager = everything_prepared().start().unwrap();
        for options in ways() {
            let volume = Volume::format(Device::memfd("full", 2 * p).unwrap());
            let file = volume.create("a").unwrap();
            file.write_at(&pattern(2 * p, 1), 0).unwrap();
            file.truncate(4 * p).unwrap();
            let map = pager.map_with(&file, 0..4 * p, &options).unwrap();
            for round in 0..20 {
                assert_bus(map.store(2 * p + 8 * round, 1), &map, 2 * p + 8 * round);
                map.store(round * 8, 5).unwrap();
            }
            file.punch_hole(0, p).unwrap();
            // Poisoned until somebody has seen that the thread has run.
            let since = std::time::Instant::now();
            while let Err(error) = map.store(2 * p, 1) {
                assert!(since.elapsed() < std::time::Duration::from_secs(20), "{error}");
            }
            assert_eq!(map.load(2 * p), Ok(1));
            // Where nobody is told of stores a load takes a page, and there is none.
            match map.load(3 * p) {
                Ok(found) => assert_eq!(found, 0),
                other => assert!(options == options.tracking(Tracking::Asynchronous), "{options:?}: {other:?}"),
            }
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_device_beyond_rlimit_fsize_is_an_error_and_no_death() {
        assert_is_child();
        let p = host_page();
        let path = std::path::PathBuf::from(format!("/dev/shm/daxpager-fsize-{}", std::process::id()));
        drop(Device::open(&path, 8 * p).unwrap());
        raw_limits::set(Resource::RLIMIT_FSIZE, 16 * p);
        let expected = (16 * p, 17 * p);
        assert_eq!(assert_limit(Device::memfd("large", 17 * p), "RLIMIT_FSIZE"), expected);
        assert_eq!(assert_limit(Device::open(&path, 17 * p), "RLIMIT_FSIZE"), expected);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 * p, "the file was changed");
        let volume = Volume::format(Device::open(&path, 16 * p).unwrap());
        let file = volume.create("a").unwrap();
        // Files on it are not files of the kernel's.
        file.truncate(1 << 40).unwrap();
        file.write_at(&pattern(16 * p, 1), 1 << 30).unwrap();
        let pager = Pager::builder().start().unwrap();
        let map = pager.map(&file, 1 << 30..(1 << 30) + 16 * p).unwrap();
        assert_bytes(&seen(&map, 0, 16 * p), &pattern(16 * p, 1), "the file");
        std::fs::remove_file(&path).unwrap();
    }
}

/// Limits, identities and filters of this process.
mod raw_limits {
    #![allow(unsafe_code)]

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::NOBODY;

    pub(crate) fn get(resource: Resource) -> u64 {
        getrlimit(resource).unwrap().0
    }

    /// The soft limit; the hard one stays.
    pub(crate) fn set(resource: Resource, value: u64) {
        let (_, hard) = getrlimit(resource).unwrap();
        setrlimit(resource, value.min(hard), hard).unwrap();
    }

    /// Bytes of a line of `/proc/self/status`.
    pub(crate) fn status(name: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Opens something at each number that is free below one that is not: a limit is one of numbers.
    pub(crate) fn without_gaps() -> Vec<std::fs::File> {
        let open = || std::fs::File::open("/dev/null").unwrap();
        let number =
            |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_str().unwrap().parse::<i32>();
        let highest = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| number(entry).unwrap()).max().unwrap();
        let below = |file: &std::fs::File| std::os::fd::AsRawFd::as_raw_fd(file) < highest;
        std::iter::repeat_with(open).take_while(below).collect()
    }

    pub(crate) fn ranges() -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
    }

    /// Every thread of the process, for good, and no capability is left.
    pub(crate) fn become_nobody() {
        assert!(super::raw::is_root(), "this test needs root, to become nobody");
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) }, 0);
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
        assert!(!super::raw::is_root());
    }

    pub(crate) fn lock_all_that_comes() {
        nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::MCL_FUTURE).unwrap();
    }

    pub(crate) fn unlock_all() {
        nix::sys::mman::munlockall().unwrap();
    }

    /// From now on userfaultfd(2) fails with `errno` in the calling thread, and in those that it starts.
    pub(crate) fn refuse_userfaultfd(errno: i32) {
        let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut filter = [
            // The number of the system call.
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_userfaultfd as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: the program and its filter outlive the call, which copies them.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }, 0);
        // SAFETY: takes flags only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_userfaultfd, 0) }, -1);
        assert_eq!(nix::errno::Errno::last_raw(), errno);
    }
}
