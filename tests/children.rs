//! Promises that take a process to see: what a signal handler is told, what kills a process and what does not, fork, privileges, and
//! system calls with which an application goes behind the pager's back. Each test runs this program again with one
//! ignored test of [`child`]; a child that hangs says who waits where, and is a failure.

mod blackbox;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blackbox::child::assert_is_child;
use blackbox::raw::{BUS_ADDR, BUS_CODE, BUS_COUNT};
use blackbox::*;
use daxpager::{Allocation, Device, Error, MapOptions, Mapping, Pager, Tracking, Volume};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

/// The user and the group nobody.
const NOBODY: u32 = 65534;

/// An application with a SIGBUS handler of its own loads past the end. Its handler is told the very address and a
/// code that the kernel uses for this; it lets the file grow and returns, and the same access goes on as if nothing had been.
#[test]
fn the_applications_handler_is_told_the_exact_address() {
    let outcome = child::run("inside::the_applications_handler_is_told_the_exact_address");
    outcome.assert_success();
    let code: i32 = outcome.value("si_code").parse().unwrap();
    assert!([libc::BUS_ADRERR, libc::BUS_MCEERR_AR].contains(&code), "si_code {code}");
    println!("si_code {code}");
}

child::children! {
    /// Nobody handles SIGBUS: a load past the end ends the process with just that signal, and no hang.
    without_a_handler_a_load_past_the_end_kills => "loads within the file work", libc::SIGBUS;
    /// Nobody handles SIGBUS, the volume is full, and a store comes to a hole.
    without_a_handler_a_store_to_a_full_volume_kills => "the hole reads as zeros", libc::SIGBUS;
    /// Nobody handles SIGBUS but the library, which has put its handler in; the application's own
    /// load past the end, in plain code, still kills.
    the_librarys_handler_does_not_swallow_the_applications_accesses => "caught one", libc::SIGBUS;
    /// A mapping is not inherited: a forked child that touches it gets SIGSEGV, on pages that were touched and that were not, and
    /// never zeros, which it would put into everybody's file. The parent goes on.
    a_forked_child_has_no_mapping;
}

/// The program runs as nobody: there is no userfaultfd for faults from inside system calls. The pager starts all the same and says so;
/// who insists gets an error; loads and stores by the CPU work, and a system call on an untouched page gets EFAULT.
#[test]
fn without_privileges_the_cpu_is_served_and_system_calls_get_efault() {
    let name = "inside::without_privileges_the_cpu_is_served_and_system_calls_get_efault";
    let sysctl = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    assert_eq!(sysctl.trim(), "0", "this test needs vm.unprivileged_userfaultfd=0: with 1 everybody has the privilege");
    if std::env::var("DAXPAGER_TEST_UNPRIVILEGED").as_deref() == Ok("1") {
        return child::run(name).assert_success();
    }
    let root = raw::is_root();
    assert!(root, "this test needs root, to become nobody; as an ordinary user set DAXPAGER_TEST_UNPRIVILEGED=1");
    // Nobody may not be allowed to go to where the program is.
    let dir = std::env::temp_dir().join(format!("daxpager-children-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join("children");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = child::command_of(program, name);
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let outcome = child::finish(command);
    fs::remove_dir_all(&dir).unwrap();
    outcome.assert_success();
}

child::children! {
    /// The application mremaps a part of a mapping away. What is at the new address is nobody's: SIGBUS, neither zeros nor what was there.
    /// The mapping is lost, and its calls say so; other mappings of the file, and the pager, go on.
    a_part_that_is_mremapped_away_is_lost_and_never_zeros;
    /// The same of a mapping that is not tracked: the kernel cannot be asked of that as of others whether a range is the library's.
    a_part_of_an_untracked_mapping_is_lost_as_well;
    /// The library's single accesses to a mapping that is lost say that it is lost, and not that the caller's numbers are wrong.
    single_accesses_say_that_a_mapping_is_lost;
    /// The application tells the kernel that it does not need the mapping's pages now, and then touches them: the data is there,
    /// holes are zero, what is past the end is SIGBUS, stores are noticed, and nobody waits for ever.
    dontneed_loses_nothing_and_hangs_nobody;
    /// The same while threads store and load without end.
    dontneed_beside_stores_loses_nothing;
    /// The application had a SIGBUS handler before the library put its own in. A SIGBUS that is none of the library's goes to the
    /// application's, with its address; those that the library catches do not.
    the_handler_that_was_there_before_is_called;
    /// Nobody had a handler before the library put its own in: a SIGBUS that is none of the library's kills, as ever.
    where_there_was_no_handler_a_foreign_sigbus_kills => "caught one", libc::SIGBUS;
}

/// The tmpfs under the device is full, though the volume has free blocks: the error says which block got no memory, nothing is
/// written, a store is SIGBUS, and blocks that have memory already go on working.
#[test]
fn a_device_without_memory_is_an_error_and_no_crash() {
    assert!(raw::is_root(), "this test mounts a small tmpfs and needs root");
    child::run("inside::a_device_without_memory_is_an_error_and_no_crash").assert_success();
}

/// What the children do.
mod inside {
    use super::*;

    fn base(map: &Mapping) -> usize {
        map.as_ptr() as usize
    }

    static GROWN: AtomicBool = AtomicBool::new(false);

    /// Notes the address and waits until the file has grown.
    extern "C" fn wait_for_growth(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        raw::note_bus(info);
        while !GROWN.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_applications_handler_is_told_the_exact_address() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, wait_for_growth);
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 1);
        let map = rig.pager.map(&file, 0..8 * p).unwrap();
        assert_eq!(raw::load(base(&map)).to_ne_bytes(), pattern(8, 1)[..]);
        let mut size = p;
        for (store, offset) in [(false, 2 * p + 24), (true, 4 * p + 8), (false, 6 * p), (true, 8 * p - 8)] {
            GROWN.store(false, Ordering::SeqCst);
            let count = BUS_COUNT.load(Ordering::SeqCst);
            let addr = base(&map) + offset as usize;
            thread::scope(|s| {
                let access = s.spawn(|| if store { raw::store(addr, 5) } else { assert_eq!(raw::load(addr), 0) });
                while BUS_COUNT.load(Ordering::SeqCst) == count {
                    thread::yield_now();
                }
                assert_eq!(BUS_ADDR.load(Ordering::SeqCst), addr);
                println!("\nsi_code={}", BUS_CODE.load(Ordering::SeqCst));
                // Not yet: the page is still past the end.
                assert_eq!(file.len(), size);
                size = (offset / p + 1) * p;
                file.truncate(size).unwrap();
                GROWN.store(true, Ordering::SeqCst);
                join(access);
            });
            assert_eq!(raw::load(addr), if store { 5 } else { 0 });
            raw::store(addr, 7);
            assert_eq!(raw::load(addr), 7);
            assert_eq!(BUS_COUNT.load(Ordering::SeqCst), count + 1, "one signal, and none after the file had grown");
        }
        assert_eq!(read(&file, 2 * p + 24, 8), 7u64.to_ne_bytes());
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn without_a_handler_a_load_past_the_end_kills() {
        assert_is_child();
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 2);
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        assert_eq!(raw::load(base(&map) + p as usize).to_ne_bytes(), pattern(2 * p, 1)[p as usize..][..8]);
        println!("loads within the file work");
        let seen = raw::load(base(&map) + 2 * p as usize);
        println!("a load past the end gave {seen:#x}");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn without_a_handler_a_store_to_a_full_volume_kills() {
        assert_is_child();
        let rig = Rig::new(2);
        let p = rig.page;
        let file = rig.written("a", 2);
        file.truncate(4 * p).unwrap();
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        assert_eq!(raw::load(base(&map) + 2 * p as usize), 0);
        raw::store(base(&map), 1);
        println!("the hole reads as zeros");
        raw::store(base(&map) + 2 * p as usize, 1);
        println!("a store without a block was done");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_librarys_handler_does_not_swallow_the_applications_accesses() {
        assert_is_child();
        let rig = Rig::new(2);
        let file = rig.file("a");
        let map = rig.pager.map(&file, 0..rig.page).unwrap();
        assert_bus(map.load(8), &map, 8);
        println!("caught one");
        let seen = raw::load(base(&map) + 8);
        println!("a load past the end gave {seen:#x}");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_forked_child_has_no_mapping() {
        assert_is_child();
        let (rig, file, maps) = Rig::mapped_of_each_kind(16);
        let p = rig.page;
        // Touched in the first mapping: written pages, one of them stored to, a hole, an unwritten page.
        for index in [0, 1, 4, 6] {
            touch(&maps[0], index * p);
        }
        maps[0].store(p + 8, 5).unwrap();
        let before = read(&file, 0, 8 * p);
        for index in [0, 1, 2, 4, 5, 6, 7, 9] {
            for map in &maps {
                let addr = base(map) + (index * p) as usize;
                for store in [false, true] {
                    let ended = raw::fork(|| match store {
                        true => {
                            raw::store(addr, 0);
                            10
                        }
                        false if raw::load(addr) == 0 => 11,
                        false => 12,
                    });
                    match ended {
                        WaitStatus::Signaled(_, Signal::SIGSEGV, _) => {}
                        other => panic!("page {index}, store {store}: {other:?} (10 stored, 11 zeros, 12 data)"),
                    }
                }
            }
        }
        assert_everywhere(&file, &maps, 0, &before);
        assert_eq!(file.blocks(), 5);
        maps[0].store(4 * p, 1).unwrap();
        assert_eq!(maps[1].load(4 * p), Ok(1));
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn without_privileges_the_cpu_is_served_and_system_calls_get_efault() {
        assert_is_child();
        assert!(!raw::is_root());
        let open = fs::File::open("/dev/userfaultfd").map(drop).map_err(|error| error.raw_os_error());
        assert_ne!(open, Ok(()), "this test needs a /dev/userfaultfd that not everybody may open");
        match Pager::builder().require_kernel_faults().start() {
            Err(Error::NoKernelFaults { errno }) => assert!([libc::EPERM, libc::EACCES].contains(&errno), "{errno}"),
            other => panic!("{other:?}"),
        }
        let rig = Rig::new(16);
        let p = rig.page;
        assert!(!rig.pager.serves_kernel_faults());
        let file = rig.written("a", 4);
        file.truncate(6 * p).unwrap();
        let maps = rig.maps(&file, 8);
        let outside = nix::sys::memfd::memfd_create("outside", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let outside = fs::File::from(outside);
        outside.write_all_at(&pattern(p, 3), 0).unwrap();
        let efault = Some(Errno::EFAULT as i32);
        for index in [1, 4, 7] {
            let write = outside.write_at(raw::slice(&maps[0], index * p, p), 0);
            assert_eq!(write.unwrap_err().raw_os_error(), efault);
            let read = outside.read_at(raw::slice_mut(&maps[0], index * p, p), 0);
            assert_eq!(read.unwrap_err().raw_os_error(), efault);
        }
        // The CPU is served as ever: loads, stores, holes, the end, punch.
        let mut want = pattern(4 * p, 1);
        want.resize(6 * p as usize, 0);
        assert_everywhere(&file, &maps, 0, &want);
        maps[1].store(5 * p, 0xff).unwrap();
        want[5 * p as usize] = 0xff;
        assert_everywhere(&file, &maps, 0, &want);
        assert_all_bus(&maps[0], 6 * p);
        file.punch_hole(0, 2 * p).unwrap();
        want[..2 * p as usize].fill(0);
        assert_everywhere(&file, &maps, 0, &want);
        // Now that the page has been touched the system call finds it.
        assert_eq!(outside.write_at(raw::slice(&maps[0], 2 * p, p), 0).unwrap() as u64, p);
        maps[0].store(3 * p, 1).unwrap();
        assert_eq!(outside.read_at(raw::slice_mut(&maps[0], 3 * p, p), 0).unwrap() as u64, p);
        assert_bytes(&read(&file, 3 * p, p), &want[2 * p as usize..][..p as usize], "through two system calls");
    }

    /// Waits until the mapping's calls say that it is lost.
    fn wait_until_lost(map: &Mapping) {
        let lost = Error::MappingLost { addr: base(map) };
        let since = Instant::now();
        loop {
            match map.read_at(&mut [0; 8], 0) {
                Ok(()) => thread::yield_now(),
                Err(error) => break assert_eq!(error, lost),
            }
            assert!(since.elapsed() < Duration::from_secs(25), "the mapping was changed, and its calls go on");
        }
        assert_eq!(map.write_at(&[1; 8], 0), Err(lost.clone()));
        assert_eq!(map.take_dirty(), Err(lost));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_part_that_is_mremapped_away_is_lost_and_never_zeros() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        // 1 and 2 written, 4 a hole, 6 unwritten, 9 past the end.
        for (index, touched) in [1, 2, 4, 6, 9].into_iter().flat_map(|index| [(index, false), (index, true)]) {
            let (rig, file, maps) = Rig::mapped_of_each_kind(16);
            let p = rig.page;
            if touched {
                [0, 1, 2, 4, 6].iter().for_each(|index| touch(&maps[0], index * p));
                let two = maps[0].load(2 * p).unwrap();
                maps[0].store(2 * p, two).unwrap();
            }
            println!("page {index}, touched: {touched}");
            let target = raw::reserve(p);
            raw::mremap(base(&maps[0]) + (index * p) as usize, p, target);
            // Whenever the library learns of it, what is loaded until then is at worst what is there.
            let count = BUS_COUNT.load(Ordering::SeqCst);
            let expected_page = read(&file, (index * p).min(7 * p), p);
            let expected = &expected_page[..8];
            let seen = raw::load(target);
            if BUS_COUNT.load(Ordering::SeqCst) == count {
                assert!(touched && index < 8, "page {index}: {seen:#x}, and it was never mapped");
                assert_eq!(seen.to_ne_bytes(), *expected, "page {index} at its new address");
            }
            println!("loaded at the new address: {seen:#x}");
            wait_until_lost(&maps[0]);
            println!("lost");
            if BUS_COUNT.load(Ordering::SeqCst) == count {
                // The block goes to another file, whose bytes are nobody else's business.
                file.punch_hole(index * p, p).unwrap();
                let thief = rig.file("b");
                thief.write_at(&vec![0xbb; (rig.volume.free_blocks() * p) as usize], 0).unwrap();
                let seen = raw::load(target + 8);
                assert_eq!(BUS_COUNT.load(Ordering::SeqCst), count + 1, "page {index} at its new address: {seen:#x}");
                assert_eq!(seen.to_ne_bytes(), [raw::PATCH; 8]);
                assert_eq!(BUS_ADDR.load(Ordering::SeqCst), target + 8);
                drop(thief);
                rig.volume.remove("b").unwrap();
                file.write_at(&expected_page, index * p).unwrap();
            }
            // Everybody else goes on.
            let mut want = pattern(4 * p, 1);
            want.resize(8 * p as usize, 0);
            assert_everywhere(&file, &maps[1..], 0, &want);
            maps[2].store(4 * p, 1).unwrap();
            want[4 * p as usize] = 1;
            let [lost, second, third] = maps;
            drop(lost);
            let again = rig.pager.map(&file, 0..10 * p).unwrap();
            assert_everywhere(&file, &[second, third, again], 0, &want);
            rig.assert_blocks_add_up();
            raw::munmap(target, p);
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_part_of_an_untracked_mapping_is_lost_as_well() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let p = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap() as u64;
        for (page, touched) in [(1, false), (1, true), (2, true), (5, false)] {
            let volume = Volume::format_with(Device::memfd("untracked", 16 * p).unwrap(), Allocation::Windows);
            let pager = Pager::builder().start().unwrap();
            let file = volume.create("a").unwrap();
            file.write_at(&pattern(4 * p, 1), 0).unwrap();
            let options = MapOptions::new().tracking(Tracking::Off);
            let [lost, other] = [0; 2].map(|_| pager.map_with(&file, 0..8 * p, &options).unwrap());
            if touched {
                touch(&lost, page * p);
            }
            let target = raw::reserve(p);
            raw::mremap(base(&lost) + (page * p) as usize, p, target);
            wait_until_lost(&lost);
            // The mapping is given up before what has been moved is.
            let count = BUS_COUNT.load(Ordering::SeqCst);
            let (since, own) = (Instant::now(), pattern(4 * p, 1));
            while BUS_COUNT.load(Ordering::SeqCst) == count {
                let seen = raw::load(target);
                let is_end = BUS_COUNT.load(Ordering::SeqCst) > count;
                let there = |page: u64| own[(page * p) as usize..][..8] == seen.to_ne_bytes();
                assert!(is_end || page < 4 && there(page), "page {page} at its new address: {seen:#x}");
                assert!(since.elapsed() < Duration::from_secs(25), "page {page} stays at its new address");
            }
            drop(lost);
            assert_eq!(seen_of(&other, 4 * p), pattern(4 * p, 1));
            other.store(3 * p, 7).unwrap();
            assert_eq!(read(&file, 3 * p, 8), 7_u64.to_ne_bytes());
            raw::munmap(target, p);
        }
    }

    fn seen_of(map: &Mapping, bytes: u64) -> Vec<u8> {
        let mut seen = vec![0; bytes as usize];
        map.copy_out(0, &mut seen).unwrap();
        seen
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn single_accesses_say_that_a_mapping_is_lost() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.written("a", 4);
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        let target = raw::reserve(p);
        raw::mremap(base(&map) + p as usize, p, target);
        raw::load(target);
        wait_until_lost(&map);
        let lost = Error::MappingLost { addr: base(&map) };
        for index in [0, 1, 3] {
            assert_eq!(map.load(index * p), Err(lost.clone()), "page {index}");
            assert_eq!(map.store(index * p, 1), Err(lost.clone()), "page {index}");
            assert_eq!(map.compare_exchange(index * p, 0, 1), Err(lost.clone()), "page {index}");
            assert_eq!(map.copy_out(index * p, &mut [0; 3]), Err(lost.clone()), "page {index}");
            assert_eq!(map.copy_in(index * p, &[0; 3]), Err(lost.clone()), "page {index}");
        }
        assert_bytes(&read(&file, 0, 4 * p), &pattern(4 * p, 1), "the file");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn dontneed_loses_nothing_and_hangs_nobody() {
        assert_is_child();
        let (rig, file, maps) = Rig::mapped_of_each_kind(16);
        let p = rig.page;
        let mut want = pattern(4 * p, 1);
        want.resize(8 * p as usize, 0);
        for round in 0..4 {
            // Round 0 on pages that nobody has touched, and then on whatever the round before has left.
            raw::madvise(base(&maps[0]), 10 * p, libc::MADV_DONTNEED);
            assert_everywhere(&file, &maps, 0, &want);
            assert_all_bus(&maps[0], 8 * p);
            raw::madvise(base(&maps[0]), 10 * p, libc::MADV_DONTNEED);
            assert_all_bus(&maps[0], 9 * p);
            // Stores right after it: to a written page, a hole, an unwritten page.
            for index in [1, 4 + round % 2, 6] {
                maps[0].store(index * p + 8, round + 1).unwrap();
                want[(index * p) as usize + 8] = round as u8 + 1;
                want[(index * p) as usize + 9..][..7].fill(0);
            }
            assert_everywhere(&file, &maps, 0, &want);
            // What has been stored is dirty although its pages are not mapped any more; and is noticed again.
            raw::madvise(base(&maps[0]), 10 * p, libc::MADV_DONTNEED);
            let hole = 4 + round % 2;
            let dirty: Vec<_> = match hole {
                4 => vec![p..2 * p, 4 * p..5 * p, 6 * p..7 * p],
                _ => vec![p..2 * p, 5 * p..7 * p],
            };
            assert_eq!(maps[0].take_dirty(), Ok(dirty));
            raw::madvise(base(&maps[0]), 10 * p, libc::MADV_DONTNEED);
            maps[0].store(p + 16, round).unwrap();
            want[p as usize + 16..][..8].copy_from_slice(&round.to_ne_bytes());
            assert_eq!(maps[0].take_dirty(), Ok(std::iter::once(p..2 * p).collect()));
        }
        file.punch_hole(0, 8 * p).unwrap();
        raw::madvise(base(&maps[0]), 10 * p, libc::MADV_DONTNEED);
        assert_everywhere(&file, &maps, 0, &zeros(8 * p));
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn dontneed_beside_stores_loses_nothing() {
        assert_is_child();
        let rig = Rig::new(16);
        let p = rig.page;
        let file = rig.written("a", 4);
        let maps = rig.maps(&file, 4);
        let stop = AtomicBool::new(false);
        thread::scope(|s| {
            let _end = at_end(|| stop.store(true, Ordering::Relaxed));
            let writers: Vec<_> = (0..2)
                .map(|writer: u64| {
                    let map = &maps[writer as usize];
                    s.spawn(move || {
                        for value in 1..=1500 {
                            let at = value % 4 * p + 8 * writer;
                            map.store(at, value).unwrap();
                            assert_eq!(map.load(at), Ok(value), "a store is lost");
                        }
                    })
                })
                .collect();
            let adviser = s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for map in &maps {
                        raw::madvise(base(map), 4 * p, libc::MADV_DONTNEED);
                        thread::yield_now();
                    }
                }
            });
            writers.into_iter().for_each(join);
            stop.store(true, Ordering::Relaxed);
            join(adviser);
        });
        for (at, value) in [(0, 1500_u64), (p, 1497), (2 * p, 1498), (3 * p, 1499)] {
            let mut want = value.to_ne_bytes().to_vec();
            want.extend(value.to_ne_bytes());
            assert_everywhere(&file, &maps, at, &want);
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn the_handler_that_was_there_before_is_called() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, raw::patching_handler);
        let rig = Rig::new(8);
        let p = rig.page;
        let file = rig.written("a", 1);
        let map = rig.pager.map(&file, 0..4 * p).unwrap();
        for round in 1..4 {
            // The library puts its handler in at the latest now, and catches this one.
            assert_bus(map.load(2 * p), &map, 2 * p);
            assert_eq!(BUS_COUNT.load(Ordering::SeqCst), 2 * round - 2, "the application saw what the library caught");
            // This one has nothing to do with it.
            let foreign = raw::empty_memfd_page() + 40;
            assert_eq!(raw::load(foreign).to_ne_bytes(), [raw::PATCH; 8]);
            assert_eq!(BUS_COUNT.load(Ordering::SeqCst), 2 * round - 1);
            assert_eq!(BUS_ADDR.load(Ordering::SeqCst), foreign);
            // And neither has the application's own load, though it is in a mapping.
            let own = pattern_free_page(&rig);
            let addr = base(&own) + 16;
            assert_eq!(raw::load(addr).to_ne_bytes(), [raw::PATCH; 8]);
            assert_eq!(BUS_COUNT.load(Ordering::SeqCst), 2 * round);
            assert_eq!(BUS_ADDR.load(Ordering::SeqCst), addr);
            raw::munmap(foreign / p as usize * p as usize, p);
        }
        assert_eq!(map.load(0).unwrap().to_ne_bytes(), pattern(8, 1)[..]);
    }

    /// A mapping of a file of no bytes.
    fn pattern_free_page(rig: &Rig) -> Mapping {
        let file = rig.file("empty");
        let map = rig.pager.map(&file, 0..rig.page).unwrap();
        rig.volume.remove("empty").unwrap();
        map
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn where_there_was_no_handler_a_foreign_sigbus_kills() {
        assert_is_child();
        let rig = Rig::new(8);
        let file = rig.file("a");
        let map = rig.pager.map(&file, 0..rig.page).unwrap();
        assert_bus(map.load(0), &map, 0);
        println!("caught one");
        let seen = raw::load(raw::empty_memfd_page());
        println!("a load from an empty file gave {seen:#x}");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_device_without_memory_is_an_error_and_no_crash() {
        assert_is_child();
        let p = host_page();
        let dir = std::env::temp_dir().join(format!("daxpager-tmpfs-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        raw::private_tmpfs(dir.to_str().unwrap(), 16 * p);
        let volume = Volume::format(Device::open(dir.join("device"), 64 * p).unwrap());
        assert_eq!(volume.free_blocks(), 64);
        let pager = Pager::builder().start().unwrap();
        let file = volume.create("a").unwrap();
        let map = pager.map(&file, 0..64 * p).unwrap();
        file.write_at(&pattern(10 * p, 1), 0).unwrap();
        file.truncate(64 * p).unwrap();
        let mut want = pattern(10 * p, 1);
        want.resize(64 * p as usize, 0);

        // Seven blocks: six have memory, and tmpfs needs none for itself.
        let other = volume.create("b").unwrap();
        let no_memory = |result: Result<(), Error>| match result {
            Err(Error::DeviceMemory { block, errno: libc::ENOSPC }) => assert!((10..=16).contains(&block), "{block}"),
            result => panic!("{result:?}"),
        };
        no_memory(other.write_at(&pattern(7 * p, 2), 0).map(drop));
        no_memory(other.allocate(0, 7 * p, false));
        no_memory(other.zero_range(0, 7 * p, false));
        assert_eq!((other.len(), other.blocks(), volume.used_blocks()), (0, 0, 10));
        assert_everywhere(&file, std::slice::from_ref(&map), 0, &want);

        other.write_at(&pattern(6 * p, 2), 0).unwrap();
        for index in [10, 20] {
            assert_bus(map.store(index * p, 1), &map, index * p);
            no_memory(map.write_at(&[1], index * p));
            assert_eq!(map.load(index * p), Ok(0));
        }
        map.store(8, 9).unwrap();
        want[8..16].copy_from_slice(&9u64.to_ne_bytes());
        assert_everywhere(&file, std::slice::from_ref(&map), 0, &want);
        assert_eq!(volume.used_blocks(), 16);

        // A block that has been given back has its memory still.
        other.punch_hole(0, p).unwrap();
        map.store(20 * p, 1).unwrap();
        want[20 * p as usize] = 1;
        assert_everywhere(&file, std::slice::from_ref(&map), 0, &want);
        assert_bytes(&read(&other, p, 5 * p), &pattern(6 * p, 2)[p as usize..], "the other file");
        let _ = fs::remove_dir(&dir);
    }
}
