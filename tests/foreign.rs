//! Other processes that look at a mapping, and debuggers: each access ends, with what is there or with an error, also while every
//! thread of the pager is stopped. The owner of the mapping is a child of the test, and who looks at it is a child of that.
#![allow(unsafe_code)]

mod blackbox;

use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{File, MapOptions, Mapping, Resolve};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// After this long somebody hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Ways to look at a word of another process.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    ReadProcMem,
    WriteProcMem,
    ReadVm,
    WriteVm,
}

/// What a look came to, small enough for an exit code: the byte that was read, or an errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Byte(u8),
    Failed(Errno),
}

impl Way {
    /// Looks, in a process that is not the owner and may call nothing that takes a lock.
    fn look(self, mem: i32, owner: i32, addr: usize, byte: u8) -> Result<u8, i32> {
        let mut buffer = [byte; 8];
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: 8 };
        let bytes = buffer.as_mut_ptr().cast();
        let done = match self {
            // SAFETY: the kernel writes to a buffer of this function's own.
            Way::ReadProcMem => unsafe { libc::pread(mem, bytes, 8, addr as i64) },
            // SAFETY: the kernel reads it.
            Way::WriteProcMem => unsafe { libc::pwrite(mem, bytes, 8, addr as i64) },
            // SAFETY: as for pread(2); the address is in another process.
            Way::ReadVm => unsafe { libc::process_vm_readv(owner, &local, 1, &remote, 1, 0) },
            // SAFETY: as for pwrite(2).
            Way::WriteVm => unsafe { libc::process_vm_writev(owner, &local, 1, &remote, 1, 0) },
        };
        match done {
            8 => Ok(buffer[0]),
            _ => Err(Errno::last_raw()),
        }
    }
}

/// A process that does one thing to its parent, and is not waited for yet. It does not outlive the test.
struct Looker(Pid);

impl Looker {
    /// `look` may call nothing that takes a lock, and its result is the exit code: below 128 a byte, above an errno and 128.
    fn start(look: impl FnOnce() -> Result<u8, i32>) -> Self {
        // SAFETY: the child calls nothing but what is safe there, and _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: safe after fork. The child may not outlive a test that is killed.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let code = look().map_or_else(|errno| 128 + errno.min(127), |byte| i32::from(byte & 127));
            // SAFETY: ends the child without running the parent's destructors.
            unsafe { libc::_exit(code) }
        }
        Self(Pid::from_raw(pid))
    }

    fn ended(&self) -> Option<WaitStatus> {
        Some(waitpid(self.0, Some(WaitPidFlag::WNOHANG)).unwrap()).filter(|status| *status != WaitStatus::StillAlive)
    }

    #[track_caller]
    fn wait(self, what: &str) -> WaitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            if start.elapsed() > LIMIT {
                let _ = kill(self.0, Signal::SIGKILL);
                panic!("{what} hangs");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn seen(self, what: &str) -> Seen {
        match self.wait(what) {
            WaitStatus::Exited(_, code) if code < 128 => Seen::Byte(code as u8),
            WaitStatus::Exited(_, code) => Seen::Failed(Errno::from_raw(code - 128)),
            status => panic!("{what}: {status:?}"),
        }
    }
}

/// A file of four written pages and four holes, mapped to past its end.
struct Stage {
    rig: Rig,
    file: File,
    map: Mapping,
    mem: std::fs::File,
}

impl Stage {
    fn new(options: &MapOptions) -> Self {
        let rig = Rig::new(16);
        let file = rig.file("a");
        file.write_at(&vec![0x33; 4 * rig.page as usize], 0).unwrap();
        file.truncate(8 * rig.page).unwrap();
        let map = rig.pager.map_with(&file, 0..12 * rig.page, options).unwrap();
        let mem = std::fs::OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
        Self { rig, file, map, mem }
    }

    fn at(&self, page: u64) -> usize {
        self.map.as_ptr() as usize + (page * self.rig.page) as usize
    }

    fn start(&self, way: Way, page: u64) -> Looker {
        let (mem, owner, addr) = (self.mem.as_raw_fd(), std::process::id() as i32, self.at(page));
        Looker::start(move || way.look(mem, owner, addr, 0x44))
    }

    #[track_caller]
    fn look(&self, way: Way, page: u64) -> Seen {
        self.start(way, page).seen(&format!("{way:?} of page {page}"))
    }

    /// Whatever has been looked at, everything is as promised.
    fn assert_goes_on(&self) {
        let p = self.rig.page;
        let whole = read(&self.file, 0, 8 * p);
        assert_in_maps(std::slice::from_ref(&self.map), 0, &whole);
        assert_bus(self.map.load(10 * p), &self.map, 10 * p);
        self.map.store(5 * p + 64, 9).unwrap();
        assert_eq!(read(&self.file, 5 * p + 64, 1), [9]);
        self.rig.assert_blocks_add_up();
    }
}

child::children! {
    another_process_reads_and_writes;
    another_process_reads_and_writes_where_threads_resolve;
    another_process_writes_to_a_read_only_mapping;
    /// What gdb does, with every thread of the process stopped.
    a_debugger_never_hangs;
    /// Who reads from a process that is stopped waits for it, and can be killed, and goes on when it does.
    a_reader_of_a_stopped_process_waits_for_it;
    /// io_uring with its buffer in a mapping: the kernel's own thread faults, and is served as a system call is.
    io_uring_reads_into_a_mapping_and_writes_from_it;
}

/// Requests that workers of the kernel's do, and whose ends they tell the thread of the ring by task work, while that thread
/// is in faults of other requests: each is served, though the kernel does not let that thread sleep.
#[test]
fn io_uring_task_work_hangs_no_fault() {
    let outcome = child::run("inside::io_uring_task_work_hangs_no_fault");
    outcome.assert_success();
    println!("{}", outcome.output);
}

child::children! {
    /// The page is wanted for a store by another process, and there is no block: an error for it alone.
    a_foreign_store_that_finds_no_block_is_an_error;
}

mod inside {
    use super::*;
    use Seen::{Byte, Failed};

    const EIO: Seen = Failed(Errno::EIO);
    const EFAULT: Seen = Failed(Errno::EFAULT);

    /// What is seen of a written page, of a hole, and past the end.
    #[track_caller]
    fn assert_looks(stage: &Stage, way: Way, pages: [u64; 3], want: [Seen; 3]) {
        let seen = pages.map(|page| stage.look(way, page));
        assert_eq!(seen, want, "{way:?}");
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn another_process_reads_and_writes() {
        assert_is_child();
        for touched in [false, true] {
            let stage = Stage::new(&MapOptions::new());
            let (p, free) = (stage.rig.page, stage.rig.volume.free_blocks());
            if touched {
                (0..8).for_each(|index| touch(&stage.map, index * p));
            }
            // /proc/PID/mem takes what is installed and waits for nobody; process_vm_readv faults as a system call of the owner
            // does, and is served.
            let there = if touched { [Byte(0x33), Byte(0), EIO] } else { [EIO, EIO, EIO] };
            assert_looks(&stage, Way::ReadProcMem, [0, 5, 9], there);
            assert_looks(&stage, Way::ReadVm, [0, 5, 9], [Byte(0x33), Byte(0), EFAULT]);
            assert_eq!(stage.rig.volume.free_blocks(), free);
            // A first store is a fault in either case.
            assert_looks(&stage, Way::WriteProcMem, [1, 6, 9], [EIO, EIO, EIO]);
            assert_eq!((stage.rig.volume.free_blocks(), stage.map.take_dirty()), (free, Ok(vec![])));
            assert_looks(&stage, Way::WriteVm, [1, 6, 9], [Byte(0x44), Byte(0x44), EFAULT]);
            assert_eq!(stage.rig.volume.free_blocks(), free - 1);
            assert_eq!(stage.map.take_dirty(), Ok(vec![p..2 * p, 6 * p..7 * p]));
            for (page, byte) in [(0, 0x33), (1, 0x44), (6, 0x44)] {
                assert_eq!(read(&stage.file, page * p, 1), [byte], "page {page}");
            }
            stage.assert_goes_on();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn another_process_reads_and_writes_where_threads_resolve() {
        assert_is_child();
        for touched in [false, true] {
            let stage = Stage::new(&MapOptions::new().resolve(Resolve::FaultingThread));
            let (p, free) = (stage.rig.page, stage.rig.volume.free_blocks());
            if touched {
                (0..8).for_each(|index| touch(&stage.map, index * p));
            }
            // What is installed is seen, and nothing else.
            for (way, error) in [(Way::ReadProcMem, EIO), (Way::ReadVm, EFAULT)] {
                let there = if touched { [Byte(0x33), Byte(0), error] } else { [error; 3] };
                assert_looks(&stage, way, [0, 5, 9], there);
            }
            for (way, error) in [(Way::WriteProcMem, EIO), (Way::WriteVm, EFAULT)] {
                assert_looks(&stage, way, [0, 5, 9], [error; 3]);
            }
            assert_eq!((stage.rig.volume.free_blocks(), stage.map.take_dirty()), (free, Ok(vec![])));
            stage.assert_goes_on();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn another_process_writes_to_a_read_only_mapping() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            for touched in [false, true] {
                let stage = Stage::new(&MapOptions::new().resolve(resolve).read_only(true));
                let (p, free) = (stage.rig.page, stage.rig.volume.free_blocks());
                if touched {
                    (0..8).for_each(|index| touch(&stage.map, index * p));
                }
                assert_looks(&stage, Way::WriteProcMem, [0, 5, 9], [EIO; 3]);
                assert_looks(&stage, Way::WriteVm, [0, 5, 9], [EFAULT; 3]);
                assert_eq!(stage.map.take_dirty(), Ok(vec![]));
                // A debugger may write to private memory that nobody else may, as it is over a hole: not to this.
                let whole = read(&stage.file, 0, 8 * p);
                assert_bytes(&whole[4 * p as usize..], &zeros(4 * p), "the holes");
                assert_in_maps(std::slice::from_ref(&stage.map), 0, &whole);
                assert_eq!(stage.rig.volume.free_blocks(), free);
                stage.rig.assert_blocks_add_up();
            }
        }
    }

    /// Every thread of this process.
    fn threads() -> Vec<i32> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    /// Stops a thread as gdb does, or finds that it has ended. Safe after fork.
    fn attach(tid: i32) -> Result<(), i32> {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: changes how the kernel runs that thread, which is of this test.
            let done = unsafe { libc::ptrace(request, tid, nothing, nothing) };
            match Errno::last_raw() {
                _ if done == 0 => {}
                // EPERM is said of one that is about to.
                libc::ESRCH | libc::EPERM => return Ok(()),
                errno => return Err(errno),
            }
        }
        // SAFETY: a status of nobody's interest.
        if unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) } == tid { Ok(()) } else { Err(2) }
    }

    /// PTRACE_PEEKDATA: a word, or an errno.
    fn peek(tid: i32, addr: usize) -> Result<i64, i32> {
        let mut word = 0_i64;
        // SAFETY: the system call itself stores the word there, other than libc's wrapper.
        let done = unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, tid, addr, &raw mut word) };
        if done == 0 { Ok(word) } else { Err(Errno::last_raw()) }
    }

    /// PTRACE_POKEDATA: an errno.
    fn poke(tid: i32, addr: usize, word: i64) -> Result<(), i32> {
        // SAFETY: stores in the test's own mapping, or does not.
        let done = unsafe { libc::ptrace(libc::PTRACE_POKEDATA, tid, addr, word) };
        if done == 0 { Ok(()) } else { Err(Errno::last_raw()) }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_debugger_never_hangs() {
        assert_is_child();
        for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
            let stage = Stage::new(&MapOptions::new().resolve(resolve));
            let p = stage.rig.page;
            touch(&stage.map, 0);
            stage.map.store(p, 0x55).unwrap();
            let (first, stop) = (stage.at(0), std::sync::atomic::AtomicBool::new(false));
            let page = p as usize;
            thread::scope(|s| {
                let _end = at_end(|| stop.store(true, std::sync::atomic::Ordering::Relaxed));
                // Somebody at work meanwhile: on pages of its own that come and go.
                let work = s.spawn(|| {
                    let mut rounds = 0_u64;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        rounds += 1;
                        stage.map.store(7 * p, rounds).unwrap();
                        assert_eq!(stage.map.load(7 * p), Ok(rounds));
                        stage.file.punch_hole(7 * p, p).unwrap();
                        assert_eq!(stage.map.load(7 * p), Ok(0));
                    }
                    rounds
                });
                for round in 0..20 {
                    let (tids, main) = (threads(), std::process::id() as i32);
                    let debugger = Looker::start(move || {
                        tids.iter().try_for_each(|tid| attach(*tid))?;
                        let eio = Err(libc::EIO);
                        let checks = [
                            // What is installed is seen, also what is written to it.
                            peek(main, first) == Ok(0x3333_3333_3333_3333),
                            peek(main, first + page) == Ok(0x55),
                            poke(main, first + page, 0x55) == Ok(()),
                            // What is not is an error at once: those who could serve it are stopped.
                            peek(main, first + 2 * page) == eio,
                            peek(main, first + 5 * page) == eio,
                            peek(main, first + 10 * page) == eio,
                            poke(main, first + 5 * page, 1) == Err(libc::EIO),
                        ];
                        checks.iter().position(|held| !held).map_or(Ok(0), |failed| Err(64 + failed as i32))
                    });
                    let what = format!("the debugger in round {round}");
                    assert_eq!(debugger.seen(&what), Byte(0), "{what}");
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                assert!(join(work) > 0);
            });
            stage.assert_goes_on();
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_reader_of_a_stopped_process_waits_for_it() {
        assert_is_child();
        let stage = Stage::new(&MapOptions::new());
        touch(&stage.map, 0);
        let (mem, owner, there, untouched) =
            (stage.mem.as_raw_fd(), std::process::id() as i32, stage.at(0), stage.at(2));
        let looker = Looker::start(move || {
            let signal = |pid, signal| {
                // SAFETY: processes of this test.
                unsafe { libc::kill(pid, signal) }
            };
            let reader = || {
                // SAFETY: a child that makes system calls and ends.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    let seen = Way::ReadVm.look(mem, owner, untouched, 0).map_or(1, i32::from);
                    // SAFETY: ends it.
                    unsafe { libc::_exit(seen) }
                }
                pid
            };
            let pause = |ms: u32| {
                // SAFETY: sleeps.
                unsafe { libc::usleep(ms * 1000) }
            };
            let wait = |pid, flags| {
                let mut status = 0;
                // SAFETY: stores the status there.
                let ended = unsafe { libc::waitpid(pid, &mut status, flags) };
                (ended, status)
            };
            signal(owner, libc::SIGSTOP);
            // It stops at once but for what is in the kernel.
            pause(100);
            let there = Way::ReadProcMem.look(mem, owner, there, 0) == Ok(0x33);
            let not_there = Way::ReadProcMem.look(mem, owner, untouched, 0) == Err(libc::EIO);
            let killed = reader();
            let served = reader();
            pause(200);
            let wait_on = wait(killed, libc::WNOHANG).0 == 0 && wait(served, libc::WNOHANG).0 == 0;
            signal(killed, libc::SIGKILL);
            let (ended, status) = wait(killed, 0);
            let dies = ended == killed && libc::WIFSIGNALED(status);
            signal(owner, libc::SIGCONT);
            let (ended, status) = wait(served, 0);
            let goes_on = ended == served && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0x33;
            let checks = [there, not_there, wait_on, dies, goes_on];
            checks.iter().position(|held| !held).map_or(Ok(0), |failed| Err(64 + failed as i32))
        });
        assert_eq!(looker.seen("who looks at a stopped process"), Byte(0));
        stage.assert_goes_on();
    }

    /// An io_uring.
    struct Ring {
        fd: std::os::fd::OwnedFd,
        rings: memmap2::MmapMut,
        entries: memmap2::MmapMut,
        /// Where things are in the rings: `struct io_uring_params`.
        at: [u32; 30],
        requests: u32,
    }

    /// A buffer that is to be read into or written from, from the start of the file.
    struct Request {
        what: u8,
        flags: u8,
        addr: usize,
        len: u32,
    }

    const READ: u8 = 22;
    const WRITE: u8 = 23;
    /// IOSQE_ASYNC: by a worker of the kernel's, which tells the thread of the ring by task work.
    const BY_A_WORKER: u8 = 16;

    impl Ring {
        /// One for so many requests at once, a power of two.
        fn new(requests: u32) -> Self {
            let mut at = [0_u32; 30];
            // SAFETY: the kernel fills in the parameters, which have room for all of them.
            let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, requests, at.as_mut_ptr()) };
            assert!(fd >= 0, "io_uring_setup: {} (kernel.io_uring_disabled must be 0)", Errno::last());
            // SAFETY: a new descriptor, nobody else's.
            let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) };
            let map = |offset, len| {
                let mut options = memmap2::MmapOptions::new();
                // SAFETY: the kernel changes these bytes only while a request is under way, in which nobody looks.
                unsafe { options.offset(offset).len(len).map_mut(&fd) }.unwrap()
            };
            // Both rings in one mapping, and the requests in another.
            let rings = map(0, (at[25] + at[1] * 16).max(at[16] + at[0] * 4) as usize);
            let entries = map(0x1000_0000, 64 * at[0] as usize);
            Self { rings, entries, at, requests: 0, fd }
        }

        fn word(&self, at: u32) -> u32 {
            u32::from_ne_bytes(self.rings[at as usize..][..4].try_into().unwrap())
        }

        fn set_word(&mut self, at: u32, value: u32) {
            self.rings[at as usize..][..4].copy_from_slice(&value.to_ne_bytes());
        }

        /// One request, to its end: what read(2) or write(2) would give.
        fn run(&mut self, what: u8, file: &std::fs::File, addr: usize, len: u32) -> Result<u32, Errno> {
            self.run_all(file, &[Request { what, flags: 0, addr, len }]).remove(0)
        }

        /// Several at once, all to their ends.
        fn run_all(&mut self, file: &std::fs::File, requests: &[Request]) -> Vec<Result<u32, Errno>> {
            let count = requests.len() as u32;
            for (index, request) in requests.iter().enumerate() {
                let slot = (self.requests + index as u32) % self.at[0];
                let mut entry = [0; 64];
                entry[..2].copy_from_slice(&[request.what, request.flags]);
                entry[4..8].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
                entry[16..24].copy_from_slice(&request.addr.to_ne_bytes());
                entry[24..28].copy_from_slice(&request.len.to_ne_bytes());
                entry[32..40].copy_from_slice(&(index as u64).to_ne_bytes());
                self.entries[slot as usize * 64..][..64].copy_from_slice(&entry);
                self.set_word(self.at[16] + slot * 4, slot);
            }
            let before = self.requests;
            self.requests += count;
            self.set_word(self.at[11], self.requests);
            // SAFETY: the buffers are in the test's own mapping, or their errors are what is asked for.
            let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), count, count, 1, 0, 0) };
            assert_eq!(done, i64::from(count), "io_uring_enter: {}", Errno::last());
            assert_eq!(self.word(self.at[21]), self.requests, "no answer");
            let mut results = vec![Err(Errno::UnknownErrno); requests.len()];
            for number in before..self.requests {
                let answer = self.at[25] + number % self.at[1] * 16;
                let result = self.word(answer + 8) as i32;
                results[self.word(answer) as usize] =
                    if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result as u32) };
            }
            self.set_word(self.at[20], self.requests);
            results
        }
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn io_uring_reads_into_a_mapping_and_writes_from_it() {
        assert_is_child();
        let outside = std::fs::File::from(
            nix::sys::memfd::memfd_create("outside", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap(),
        );
        std::os::unix::fs::FileExt::write_all_at(&outside, &[0x66; 64], 0).unwrap();
        let mut ring = Ring::new(1);
        let efault = Err(Errno::EFAULT);
        let stage = Stage::new(&MapOptions::new());
        let p = stage.rig.page;
        // Pages that nobody has touched: written, and a hole.
        for page in [1, 6] {
            assert_eq!(ring.run(READ, &outside, stage.at(page), 64), Ok(64), "page {page}");
            assert_eq!(read(&stage.file, page * p, 64), [0x66; 64]);
        }
        assert_eq!(stage.map.take_dirty(), Ok(vec![p..2 * p, 6 * p..7 * p]));
        assert_eq!(ring.run(WRITE, &outside, stage.at(2), 64), Ok(64));
        assert_eq!(ring.run(READ, &outside, stage.at(3), 64), Ok(64));
        assert_eq!(read(&stage.file, 3 * p, 64), [0x33; 64], "what was written from page 2");
        assert_eq!(ring.run(READ, &outside, stage.at(9), 64), efault);
        assert_eq!(ring.run(WRITE, &outside, stage.at(9), 64), efault);
        stage.assert_goes_on();
        // Where threads resolve their own faults nobody serves those of the kernel.
        let stage = Stage::new(&MapOptions::new().resolve(Resolve::FaultingThread));
        assert_eq!(ring.run(READ, &outside, stage.at(1), 64), efault);
        touch(&stage.map, 2 * p);
        assert_eq!(ring.run(WRITE, &outside, stage.at(2), 64), Ok(64));
        stage.assert_goes_on();
        // And for loads only it is never written to.
        let stage = Stage::new(&MapOptions::new().read_only(true));
        assert_eq!(ring.run(READ, &outside, stage.at(1), 64), efault);
        assert_eq!(ring.run(WRITE, &outside, stage.at(1), 64), Ok(64));
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn io_uring_task_work_hangs_no_fault() {
        assert_is_child();
        const PAGES: u64 = 32;
        let outside = std::fs::File::open("/dev/zero").unwrap();
        let rig = Rig::new(64);
        let p = rig.page;
        let file = rig.file("holes");
        file.truncate(PAGES * p).unwrap();
        let map = rig.pager.map(&file, 0..PAGES * p).unwrap();
        let base = map.as_ptr() as usize;
        // Every other one in this thread, whose faults are beside the task work of those that are done elsewhere.
        let requests = (0..PAGES).map(|page| Request {
            what: READ,
            flags: if page % 2 == 0 { BY_A_WORKER } else { 0 },
            addr: base + (page * p) as usize,
            len: 64,
        });
        let requests: Vec<Request> = requests.collect();
        let mut ring = Ring::new(PAGES as u32);
        let rounds = guard::repeats(50, 1000);
        for round in 0..rounds {
            let results = ring.run_all(&outside, &requests);
            assert!(results.iter().all(|result| *result == Ok(64)), "round {round}: {results:?}");
            assert_eq!(file.blocks(), PAGES, "round {round}");
            file.punch_hole(0, PAGES * p).unwrap();
        }
        // While task work waits for it the thread faults again and again, as for a signal, until it is served.
        let stats = rig.pager.stats();
        println!("{} faults of {} stores, {} insistent", stats.all_faults(), rounds * PAGES, stats.insistent);
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_foreign_store_that_finds_no_block_is_an_error() {
        assert_is_child();
        let stage = Stage::new(&MapOptions::new());
        let p = stage.rig.page;
        let thief = stage.rig.file("thief");
        thief.write_at(&vec![1; (stage.rig.volume.free_blocks() * p) as usize], 0).unwrap();
        assert_eq!(stage.look(Way::WriteVm, 6), EFAULT);
        assert_eq!(stage.look(Way::ReadVm, 1), Byte(0x33));
        drop(thief);
        stage.rig.volume.remove("thief").unwrap();
        let start = Instant::now();
        // The page may be out of reach for a moment.
        while stage.look(Way::WriteVm, 6) != Byte(0x44) {
            assert!(start.elapsed() < LIMIT, "there are blocks, and none for it");
        }
        stage.assert_goes_on();
    }
}
