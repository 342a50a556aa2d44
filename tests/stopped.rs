//! Threads that are stopped, signalled, or cannot be asked about, in the middle of a fault. The kernel does not let the fault of a system
//! call sleep while its thread's signal flag is up, and after a stop nothing in /proc shows that it is.
#![allow(unsafe_code, reason = "accesses that nobody catches, limits, and another user")]

#[allow(dead_code, reason = "a part of it is used")]
#[path = "blackbox/child.rs"]
mod child;
mod common;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use daxpager::fake::{FakeFault, FakePageTable};
use daxpager::sabotage::Rule;
use daxpager::{Device, Error, File, Injection, Mapping, Pager, Volume};

/// Page 0 of a file of holes, to be stored to on the fake page table by a thread that does not sleep in its fault.
fn store_restlessly(blocks: u64, rule: Option<Rule>, wait: Duration) -> (Option<Result<(), FakeFault>>, File, usize) {
    let fake = FakePageTable::new();
    let volume = Volume::format(Device::heap(blocks * PAGE, PAGE).unwrap());
    let pager = Pager::builder().workers(2).start_on_fake(&fake).unwrap();
    rule.into_iter().for_each(|rule| pager.sabotage(rule, true));
    let hog = volume.create("hog").unwrap();
    hog.allocate(0, PAGE, false).unwrap();
    let file = volume.create("a").unwrap();
    file.truncate(PAGE).unwrap();
    let map = pager.map(&file, 0..PAGE).unwrap();
    let at = map.as_ptr() as usize;
    let storer = spawn({
        let fake = fake.clone();
        move || fake.store_restlessly(at + 8, 7)
    });
    let stored = storer.within(wait);
    if stored.is_some() {
        assert_eq!(fake.load(at), Ok(0), "the poison is not meant for loads");
        assert_eq!(fake.stray_signals(), 0);
    } else if rule.is_some() {
        // Its pager need not be able to end, and the thread goes on until it does.
        pager.sabotage(Rule::ServeWhoInsists, false);
        storer.join("the store, with the rule kept again").unwrap().unwrap();
    }
    (stored, file, at)
}

#[test]
fn a_thread_that_never_sleeps_in_its_fault_is_served() {
    let (stored, file, _) = store_restlessly(2, None, HANG);
    assert_eq!((stored, file.blocks()), (Some(Ok(())), 1));
}

#[test]
fn without_the_rule_it_is_woken_for_ever() {
    let (stored, ..) = store_restlessly(2, Some(Rule::ServeWhoInsists), WATCH);
    assert_eq!(stored, None);
}

/// No block: a signal would not end its fault. The page is poisoned for a moment, which does.
#[test]
fn a_thread_that_never_sleeps_in_its_fault_is_refused_on_a_full_volume() {
    let (stored, file, at) = store_restlessly(1, None, HANG);
    assert_eq!((stored, file.blocks()), (Some(Err(FakeFault::Bus { addr: at + 8 })), 0));
}

fn system_calls_into_holes(world: &mut World) -> Verdict {
    let file = world.file("a", 0, 0);
    file.truncate(8 * PAGE).unwrap();
    let map = world.map(&file, 8);
    let calls = spawn(move || (0..8).all(|page| zeros_into(&map, page) == Ok(8)));
    // Broken, it is woken again and again: no longer than needed, as that takes a CPU.
    let wait = if world.rule.is_some() { WATCH } else { HANG };
    let done = calls.within(wait);
    if world.rule.is_some() {
        world.pager().sabotage(Rule::ServeWhoInsists, false);
        calls.join("system calls, with the rule kept again")?;
    }
    check(done == Some(true), || "a thread that looks awake was not served".to_owned())
}

fn all_look_awake(rule: Option<Rule>) -> World {
    World::injected(16, rule, true, Injection { awake_ppm: 1_000_000, ..Injection::default() })
}

#[test]
fn threads_that_look_awake_are_served() {
    intact_in(all_look_awake(None), system_calls_into_holes);
}

#[test]
fn threads_that_look_awake_are_not_served_without_the_rule() {
    broken_in(all_look_awake(Some(Rule::ServeWhoInsists)), Rule::ServeWhoInsists, system_calls_into_holes);
}

/// read(2) of eight zeros into a page of a mapping.
fn zeros_into(map: &Mapping, page: u64) -> Result<usize, Error> {
    map.read_from(std::fs::File::open("/dev/zero").unwrap().as_fd(), page * PAGE, 8)
}

/// The process is stopped and continued while system calls store into holes, beside busy loops: no call hangs.
#[test]
fn stops_hang_no_system_call() {
    let done = Arc::new(AtomicBool::new(false));
    let busy = |_| {
        let done = done.clone();
        spawn(move || {
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })
    };
    let busy: Vec<_> = (0..6).map(busy).collect();
    let outcome = std::panic::catch_unwind(|| child::run("inside::stops_hang_no_system_call"));
    done.store(true, Ordering::Relaxed);
    busy.iter().for_each(|task| task.join("a busy loop").unwrap());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).assert_success();
}

/// A full volume, and a process that is another user's by now: /proc does not tell which of its threads sleep in a fault of their own
/// instructions. Stores get their SIGBUS, and loads of the same page none.
#[test]
fn loads_get_no_sigbus_where_privileges_were_dropped() {
    // SAFETY: plain call.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test becomes another user, and needs root");
    child::run("inside::loads_get_no_sigbus_where_privileges_were_dropped").assert_success();
}

child::children! {
    /// The same where there is no descriptor left to ask /proc with.
    loads_get_no_sigbus_where_no_descriptor_is_left;
    /// The same with stores by system calls, which no signal ends.
    loads_get_no_sigbus_of_a_system_call;
}

/// A full volume, and a thread that stores to a hole in plain code while another signal comes, again and again. The application's handler
/// is told of each store at the very instruction; no SIGBUS hits anything else.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_sigbus_meets_its_store_or_nothing() {
    let outcome = child::run("inside::raw::a_sigbus_meets_its_store_or_nothing");
    outcome.assert_success();
    println!("{} too late and dropped", outcome.value("dropped"));
}

child::children! {
    /// The same with the library's own calls.
    calls_on_a_full_volume_fail_while_signals_come;
}

/// What the children do.
mod inside {
    use super::*;

    /// How long threads race.
    const RACE: Duration = Duration::from_secs(2);
    /// Shorter than the parent's patience.
    const SOON: Duration = Duration::from_secs(15);

    #[test]
    #[ignore = "run in a child"]
    fn stops_hang_no_system_call() {
        child::assert_is_child();
        let world = World::with_reader(64, None, true);
        let stop = Arc::new(AtomicBool::new(false));
        let callers: Vec<_> = (0..3)
            .map(|caller| {
                let file = world.volume.create(&format!("{caller}")).unwrap();
                file.truncate(8 * PAGE).unwrap();
                let (map, stop) = (world.map(&file, 8), stop.clone());
                spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        (0..8).for_each(|page| assert_eq!(zeros_into(&map, page), Ok(8)));
                        file.punch_hole(0, 8 * PAGE).unwrap();
                    }
                })
            })
            .collect();
        let script = "for i in 1 2 3 4 5 6 7 8; do kill -STOP $PPID; sleep 0.1; kill -CONT $PPID; sleep 0.2; done";
        let status = std::process::Command::new("sh").args(["-c", script]).status().unwrap();
        assert!(status.success());
        stop.store(true, Ordering::Relaxed);
        let hung = callers.iter().filter(|caller| caller.within(SOON).is_none()).count();
        assert_eq!(hung, 0, "{}", world.pager().describe());
    }

    /// A full volume, a file of holes, and its mapping.
    fn full() -> (World, File, Arc<Mapping>) {
        let world = World::with_reader(2, None, true);
        world.volume.create("hog").unwrap().allocate(0, 2 * PAGE, false).unwrap();
        let file = world.volume.create("a").unwrap();
        file.truncate(2 * PAGE).unwrap();
        let map = world.map(&file, 2);
        (world, file, map)
    }

    /// Loads the hole, in plain code too, while `store` fails there. Both threads and the punches do it as fast as they can.
    fn race(store: impl Fn(&Mapping) + Clone + Send + 'static, (world, file, map): (World, File, Arc<Mapping>)) {
        let until = Instant::now() + RACE;
        let loads = Arc::new(AtomicU64::new(0));
        let stores = Arc::new(AtomicU64::new(0));
        // For the first loader; made before there is no descriptor left, if that is what this is about.
        let mut pipe = std::io::pipe().ok();
        let storers = (0..2).map(|_| {
            let (map, store, stores) = (map.clone(), store.clone(), stores.clone());
            spawn(move || {
                while Instant::now() < until {
                    store(&map);
                    stores.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let loaders = (0..3).map(|loader| {
            let (map, file, loads) = (map.clone(), file.clone(), loads.clone());
            let (mut reader, writer) = pipe.take().unzip();
            spawn(move || {
                while Instant::now() < until {
                    // SAFETY: within the mapping. A SIGBUS here ends the process.
                    assert_eq!(unsafe { map.as_ptr().cast::<u64>().wrapping_add(3).read_volatile() }, 0);
                    assert_eq!(map.load(8 * loader), Ok(0));
                    if let (Some(reader), Some(writer)) = (&mut reader, &writer) {
                        assert_eq!(map.write_to(writer.as_fd(), 0, 8), Ok(8), "write(2) out of a hole");
                        std::io::Read::read_exact(reader, &mut [0; 8]).unwrap();
                    }
                    if loader == 0 {
                        file.punch_hole(0, PAGE).unwrap();
                    }
                    loads.fetch_add(2, Ordering::Relaxed);
                }
            })
        });
        let threads: Vec<_> = storers.chain(loaders).collect();
        threads.iter().for_each(|thread| thread.within(SOON).expect("stores and loads end"));
        let (stores, loads) = (stores.load(Ordering::Relaxed), loads.load(Ordering::Relaxed));
        println!("\nstores={stores}\nloads={loads}\npoisoned={}", world.pager().stats().poisoned);
        assert!(stores > 0 && loads > 0);
        assert!(world.pager().stats().poisoned > 0, "another way of asking was found: this test tests nothing");
        assert_eq!(file.blocks(), 0);
    }

    fn failing_store(map: &Mapping) {
        let stored = map.store(64, 1);
        assert!(matches!(stored, Err(Error::Bus(bus)) if bus.offset == 64), "a store on a full volume: {stored:?}");
    }

    #[test]
    #[ignore = "run in a child"]
    fn loads_get_no_sigbus_where_privileges_were_dropped() {
        child::assert_is_child();
        let full = full();
        // SAFETY: plain call.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        assert!(std::fs::read_to_string("/proc/thread-self/syscall").is_err());
        race(failing_store, full);
    }

    #[test]
    #[ignore = "run in a child"]
    fn loads_get_no_sigbus_where_no_descriptor_is_left() {
        child::assert_is_child();
        let full = full();
        let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        // SAFETY: plain call with a struct on this stack.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        race(failing_store, full);
    }

    #[test]
    #[ignore = "run in a child"]
    fn loads_get_no_sigbus_of_a_system_call() {
        child::assert_is_child();
        let call = |map: &Mapping| {
            let called = zeros_into(map, 0);
            assert!(matches!(called, Err(Error::System { .. })), "read(2) on a full volume: {called:?}");
        };
        race(call, full());
    }

    /// Runs `body` in a thread that gets one SIGUSR1 after the other, as fast as they can be sent.
    fn interrupted(body: impl FnOnce() + Send + 'static) {
        extern "C" fn count(_: libc::c_int) {
            HANDLED.fetch_add(1, Ordering::Relaxed);
        }
        static HANDLED: AtomicU64 = AtomicU64::new(0);
        // SAFETY: the handler counts.
        unsafe { libc::signal(libc::SIGUSR1, count as *const () as usize) };
        let (thread, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = {
            let (thread, done) = (thread.clone(), done.clone());
            spawn(move || {
                thread.store(nix::unistd::gettid().as_raw() as u64, Ordering::SeqCst);
                body();
                done.store(true, Ordering::SeqCst);
            })
        };
        let (pid, mut pause) = (i64::from(std::process::id()), 0);
        until("the end of what is interrupted", || {
            let tid = thread.load(Ordering::SeqCst);
            if tid != 0 {
                // SAFETY: a thread of this process, or of nobody: then nothing is sent.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
                // Sometimes it sleeps in its fault by then, and sometimes it does not.
                pause = (pause + 97) % 4000;
                (0..pause).for_each(|_| std::hint::spin_loop());
            }
            done.load(Ordering::SeqCst).then_some(())
        });
        task.within(SOON).expect("what is interrupted ends");
    }

    #[test]
    #[ignore = "run in a child"]
    fn calls_on_a_full_volume_fail_while_signals_come() {
        child::assert_is_child();
        let (_world, file, map) = full();
        let storing = map.clone();
        interrupted(move || {
            let until = Instant::now() + RACE;
            while Instant::now() < until {
                failing_store(&storing);
            }
        });
        assert_eq!((file.blocks(), map.load(64)), (0, Ok(0)));
    }

    #[cfg(target_arch = "x86_64")]
    mod raw {
        use super::*;

        std::arch::global_asm!(
            ".globl stopped_test_store",
            "stopped_test_store:",
            "mov [rdi], rsi",
            ".globl stopped_test_stored",
            "stopped_test_stored:",
            "ret",
        );

        unsafe extern "C" {
            fn stopped_test_store(at: *mut u64, value: u64);
            fn stopped_test_stored();
        }

        static TAKEN: AtomicU64 = AtomicU64::new(0);
        static STRAY: AtomicU64 = AtomicU64::new(0);

        /// Goes on behind the store if that is what was interrupted, at the very address.
        extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
            // SAFETY: a handler with SA_SIGINFO is handed a valid one.
            let info = unsafe { &*info };
            // SAFETY: SIGBUS has an address.
            let addr = unsafe { info.si_addr() } as usize;
            // SAFETY: likewise a context, the handler's to change.
            let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
            let registers = &mut context.uc_mcontext.gregs;
            let is_store = registers[libc::REG_RIP as usize] as usize == stopped_test_store as *const () as usize;
            if is_store && registers[libc::REG_RDI as usize] as usize == addr {
                registers[libc::REG_RIP as usize] = stopped_test_stored as *const () as i64;
                TAKEN.fetch_add(1, Ordering::Relaxed);
            } else {
                STRAY.fetch_add(1, Ordering::Relaxed);
            }
        }

        #[test]
        #[ignore = "run in a child"]
        fn a_sigbus_meets_its_store_or_nothing() {
            child::assert_is_child();
            let (world, file, map) = full();
            // SAFETY: an all-zero sigaction is one.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            // SAFETY: the handler keeps to what is safe in one.
            assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }, 0);
            let stores = Arc::new(AtomicU64::new(0));
            let (storing, stored) = (map.clone(), stores.clone());
            interrupted(move || {
                let until = Instant::now() + RACE;
                while Instant::now() < until {
                    // SAFETY: within the mapping; its SIGBUS is handled.
                    unsafe { stopped_test_store(storing.as_ptr().cast::<u64>().wrapping_add(8), 1) };
                    stored.fetch_add(1, Ordering::Relaxed);
                }
            });
            let description = world.pager().describe();
            let dropped = description.lines().find_map(|line| line.split("dropped: ").nth(1)).unwrap();
            println!("\ndropped={dropped}");
            assert_eq!((STRAY.load(Ordering::Relaxed), file.blocks(), map.load(64)), (0, 0, Ok(0)));
            assert_eq!(TAKEN.load(Ordering::Relaxed), stores.load(Ordering::Relaxed));
            assert!(stores.load(Ordering::Relaxed) > 0);
        }
    }
}
