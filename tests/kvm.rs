//! A virtual machine whose memory is a mapping: what a guest sees of the file, and what KVM_RUN says of a page past its end.
//!
//! The guest is a few bytes of ring-3 code of x86-64, and so are these tests. A machine without /dev/kvm runs none of this, and says so.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

mod blackbox;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use blackbox::child::assert_is_child;
use blackbox::raw::{BUS_ADDR, BUS_CODE, BUS_COUNT};
use blackbox::*;
use daxpager::{File, Mapping};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;

/// Where the guest has the mapping. Its page tables and its code are below.
const MEMORY: u64 = 2 << 20;
const CODE: u64 = 0x4000;
const LOW_BYTES: usize = 0x5000;
/// After this long a guest that has not come back hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// mov al, [rbx]; out 0x10, al
const LOAD: (u64, [u8; 4]) = (CODE, [0x8a, 0x03, 0xe6, 0x10]);
/// mov [rbx], al; out 0x11, al
const STORE: (u64, [u8; 4]) = (CODE + 0x10, [0x88, 0x03, 0xe6, 0x11]);
/// again: mov al, [rbx]; test al, al; jnz again; out 0x12, al
const UNTIL_ZERO: (u64, [u8; 8]) = (CODE + 0x20, [0x8a, 0x03, 0x84, 0xc0, 0x75, 0xfa, 0xe6, 0x12]);

/// What became of one run of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ran {
    /// It came to its `out`.
    Out(u8),
    /// The kernel takes the access for one to a device.
    Mmio { guest: u64 },
    /// KVM_RUN failed.
    Failed(Errno),
    /// Anything else.
    Other,
}

/// A machine with one CPU.
struct Guest {
    cpu: VcpuFd,
    _machine: VmFd,
    /// The guest's first pages: page tables and code.
    _low: Vec<u64>,
    _memory: Arc<Mapping>,
}

impl Guest {
    fn new(memory: Arc<Mapping>) -> Self {
        let kvm = Kvm::new().unwrap();
        let machine = kvm.create_vm().unwrap();
        // Whole pages of it, at a page border.
        let mut low = vec![0_u64; LOW_BYTES / 8 + 512];
        let skip = low.as_ptr().align_offset(4096);
        let page = |index: usize| skip + index * 512;
        // Present, writable, user; the last level in pieces of 2 MiB.
        (low[page(1)], low[page(2)]) = (0x2007, 0x3007);
        (0..8).for_each(|index| low[page(3) + index] = (index as u64) << 21 | 0x87);
        let code: Vec<(u64, &[u8])> = vec![(LOAD.0, &LOAD.1), (STORE.0, &STORE.1), (UNTIL_ZERO.0, &UNTIL_ZERO.1)];
        for (at, bytes) in code {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            low[skip + at as usize / 8] = u64::from_ne_bytes(word);
        }
        let host = |slot, guest_phys_addr, memory_size, userspace_addr| kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        let low_at = low[skip..].as_ptr() as u64;
        // SAFETY: the pages live as long as the machine, which is dropped before them.
        unsafe { machine.set_user_memory_region(host(0, 0, LOW_BYTES as u64, low_at)) }.unwrap();
        let at = memory.as_ptr() as u64;
        // SAFETY: so does the mapping; nothing in Rust borrows its bytes.
        unsafe { machine.set_user_memory_region(host(1, MEMORY, memory.len(), at)) }.unwrap();
        let cpu = machine.create_vcpu(0).unwrap();
        cpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
        let mut special = cpu.get_sregs().unwrap();
        let segment = |selector, type_, l| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl: 3,
            s: 1,
            l,
            db: 1 - l,
            g: 1,
            ..Default::default()
        };
        special.cs = segment(0x2b, 0xb, 1);
        let data = segment(0x33, 0x3, 0);
        (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
        (special.cr3, special.cr4, special.cr0, special.efer) = (0x1000, 1 << 5, 1 << 31 | 1, 1 << 8 | 1 << 10);
        cpu.set_sregs(&special).unwrap();
        Self { cpu, _machine: machine, _low: low, _memory: memory }
    }

    /// Runs a piece of code on a byte of the mapping, from its start.
    fn run(&mut self, code: u64, offset: u64, value: u8) -> Ran {
        // Ports for ring 3.
        let rflags = 3 << 12 | 2;
        let regs = kvm_regs { rip: code, rbx: MEMORY + offset, rax: value.into(), rflags, ..Default::default() };
        self.cpu.set_regs(&regs).unwrap();
        match self.cpu.run() {
            Ok(VcpuExit::IoOut(_, data)) => Ran::Out(data[0]),
            Ok(VcpuExit::MmioRead(guest, _) | VcpuExit::MmioWrite(guest, _)) => Ran::Mmio { guest },
            Ok(other) => {
                println!("the guest ended in {other:?}");
                Ran::Other
            }
            Err(error) => Ran::Failed(Errno::from_raw(error.errno())),
        }
    }

    fn load(&mut self, offset: u64) -> Ran {
        self.run(LOAD.0, offset, 0)
    }

    fn store(&mut self, offset: u64, value: u8) -> Ran {
        self.run(STORE.0, offset, value)
    }
}

/// A file of four written pages and four holes, and twelve pages mapped.
fn stage() -> (Rig, File, Arc<Mapping>) {
    let rig = Rig::new(16);
    let file = rig.written("memory", 4);
    file.truncate(8 * rig.page).unwrap();
    let map = Arc::new(rig.pager.map(&file, 0..12 * rig.page).unwrap());
    (rig, file, map)
}

/// Runs the test in a child where there is a KVM.
fn run(name: &str) {
    match Kvm::new() {
        Ok(_) => {
            let outcome = child::run(name);
            outcome.assert_success();
            println!("{}", outcome.output);
        }
        Err(error) => guard::not_run(&format!("there is no KVM here (/dev/kvm: {error})")),
    }
}

#[test]
fn a_guest_sees_the_file_and_its_stores_reach_it() {
    run("inside::a_guest_sees_the_file_and_its_stores_reach_it");
}

#[test]
fn a_page_past_the_end_is_broken_memory_until_the_file_grows() {
    run("inside::a_page_past_the_end_is_broken_memory_until_the_file_grows");
}

#[test]
fn a_punch_under_a_running_guest_reads_as_zeros() {
    run("inside::a_punch_under_a_running_guest_reads_as_zeros");
}

#[test]
fn a_store_that_finds_no_block_stops_the_guest_and_not_the_others() {
    run("inside::a_store_that_finds_no_block_stops_the_guest_and_not_the_others");
}

mod inside {
    use super::*;

    /// Notes the SIGBUS, as a virtual machine monitor would that tells its guest.
    extern "C" fn noting(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        raw::note_bus(info);
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_guest_sees_the_file_and_its_stores_reach_it() {
        assert_is_child();
        let (rig, file, map) = stage();
        let p = rig.page;
        let mut guest = Guest::new(map.clone());
        let free = rig.volume.free_blocks();
        let want = pattern(4 * p, 1);
        for index in 0..8 {
            let byte = want.get((index * p + 5) as usize).copied().unwrap_or(0);
            assert_eq!(guest.load(index * p + 5), Ran::Out(byte), "page {index}");
        }
        // Loads take no block, and are no stores.
        assert_eq!((rig.volume.free_blocks(), map.take_dirty()), (free, Ok(vec![])));
        assert_eq!(guest.store(p + 7, 0x77), Ran::Out(0x77));
        assert_eq!(guest.store(5 * p + 7, 0x78), Ran::Out(0x78));
        assert_eq!(rig.volume.free_blocks(), free - 1);
        assert_eq!(map.take_dirty(), Ok(vec![p..2 * p, 5 * p..6 * p]));
        assert_eq!((read(&file, p + 7, 1)[0], read(&file, 5 * p + 7, 1)[0]), (0x77, 0x78));
        // A store after the dirty pages have been taken is noticed as well.
        assert_eq!(guest.store(p + 8, 0x79), Ran::Out(0x79));
        assert_eq!(map.take_dirty(), Ok(std::iter::once(p..2 * p).collect()));
        // What others write is seen.
        put(&file, &[0x42], 5 * p + 9);
        assert_eq!(guest.load(5 * p + 9), Ran::Out(0x42));
        file.punch_hole(0, 8 * p).unwrap();
        (0..8).for_each(|index| assert_eq!(guest.load(index * p + 7), Ran::Out(0), "page {index}"));
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_page_past_the_end_is_broken_memory_until_the_file_grows() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, noting);
        let (rig, file, map) = stage();
        let p = rig.page;
        let mut guest = Guest::new(map.clone());
        for (name, round) in [("load", 0), ("store", 1)] {
            let offset = (8 + round) * p + 3;
            let before = BUS_COUNT.load(Ordering::SeqCst);
            let ran = if name == "load" { guest.load(offset) } else { guest.store(offset, 5) };
            let signals = BUS_COUNT.load(Ordering::SeqCst) - before;
            println!("{name} past the end: {ran:?}, {signals} times SIGBUS");
            // Where the CPU runs the guest: the vCPU's thread gets the SIGBUS of broken memory, and KVM_RUN EINTR. Where KVM
            // emulates the instruction: an access to a device that is not there.
            match ran {
                Ran::Failed(Errno::EINTR) => {
                    assert!(signals > 0);
                    assert_eq!(BUS_CODE.load(Ordering::SeqCst), libc::BUS_MCEERR_AR as usize);
                    let page = BUS_ADDR.load(Ordering::SeqCst) as u64 / p * p;
                    assert_eq!(page, map.as_ptr() as u64 + offset / p * p);
                }
                Ran::Failed(Errno::EFAULT) => {}
                Ran::Mmio { guest } => assert_eq!(guest, MEMORY + offset),
                ran => panic!("{name} past the end: {ran:?}"),
            }
            // The same instruction again, when there is something.
            file.truncate((9 + round) * p).unwrap();
            let (again, value) = if name == "load" { (guest.load(offset), 0) } else { (guest.store(offset, 5), 5) };
            assert_eq!(again, Ran::Out(value), "{name} after the file has grown");
            assert_eq!(read(&file, offset, 1)[0], value);
        }
        // What was there before is as it was.
        assert_bytes(&read(&file, 0, 4 * p), &pattern(4 * p, 1), "the file");
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_punch_under_a_running_guest_reads_as_zeros() {
        assert_is_child();
        let (rig, file, map) = stage();
        let p = rig.page;
        let mut guest = Guest::new(map);
        for round in 0..20 {
            let offset = round % 4 * p + 11;
            put(&file, &[0x99], offset);
            assert_eq!(guest.load(offset), Ran::Out(0x99));
            let (tx, ended) = mpsc::channel();
            let running = thread::spawn(move || {
                let ran = guest.run(UNTIL_ZERO.0, offset, 0);
                tx.send(ran).unwrap();
                guest
            });
            // Some rounds find the guest at full speed, some before it begins.
            thread::sleep(Duration::from_millis(round % 3 * 5));
            file.punch_hole(offset / p * p, p).unwrap();
            let ran = ended.recv_timeout(LIMIT);
            assert_eq!(ran, Ok(Ran::Out(0)), "the guest goes on with what has been punched away");
            guest = running.join().unwrap();
        }
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run by the test of the same name as its child process"]
    fn a_store_that_finds_no_block_stops_the_guest_and_not_the_others() {
        assert_is_child();
        raw::install_handler(libc::SIGBUS, noting);
        let (rig, file, map) = stage();
        let p = rig.page;
        let mut guest = Guest::new(map.clone());
        let thief = rig.file("thief");
        thief.write_at(&vec![1; (rig.volume.free_blocks() * p) as usize], 0).unwrap();
        let before = BUS_COUNT.load(Ordering::SeqCst);
        let ran = guest.store(6 * p, 5);
        let signals = BUS_COUNT.load(Ordering::SeqCst) - before;
        println!("a store with no block left: {ran:?}, {signals} times SIGBUS");
        assert!(matches!(ran, Ran::Failed(Errno::EINTR | Errno::EFAULT) | Ran::Mmio { .. }), "{ran:?}");
        assert_eq!(guest.load(p), Ran::Out(pattern(p + 1, 1)[p as usize]));
        drop(thief);
        rig.volume.remove("thief").unwrap();
        // Out of reach for a moment at most.
        let start = std::time::Instant::now();
        while guest.store(6 * p, 5) != Ran::Out(5) {
            assert!(start.elapsed() < LIMIT, "there are blocks, and the guest gets none");
        }
        assert_eq!(read(&file, 6 * p, 1)[0], 5);
        rig.assert_blocks_add_up();
    }
}
