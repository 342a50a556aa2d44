//! Everything of the bench that the compiler cannot check: mappings, userfaultfd, a SIGBUS handler.
//!
//! The bare contenders are meant to be as small as can be, so nothing here is the library's.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use anyhow::Context;
use daxpager::Mapping;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// What the bench reads and writes in: the base page.
pub(crate) const PAGE: u64 = 4096;

pub(crate) const SIGBUS: u64 = 1 << 7;
pub(crate) const MINOR_SHMEM: u64 = 1 << 10;
pub(crate) const MISSING_SHMEM: u64 = 1 << 5;
pub(crate) const WP_SHMEM: u64 = 1 << 12 | 1;
pub(crate) const WP_ASYNC: u64 = 1 << 15;

const FLAG_MINOR: u64 = 1 << 2;

pub(crate) const MODE_MISSING: u64 = 1;
pub(crate) const MODE_WP: u64 = 1 << 1;
pub(crate) const MODE_MINOR: u64 = 1 << 2;

/// A piece of mapped memory for as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    at: usize,
    pages: u64,
    life: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// What a mapping of the library's shows. All of it has to lie within the file: past its end is a SIGBUS.
    pub(crate) fn of(map: &'a Mapping) -> Self {
        Self { at: map.as_ptr() as usize, pages: map.len() / PAGE, life: PhantomData }
    }

    fn word(self, page: u64) -> &'a AtomicU64 {
        assert!(page < self.pages);
        let at = (self.at + (page * PAGE) as usize) as *mut u64;
        // SAFETY: aligned, and within memory that is mapped for 'a; everybody accesses it atomically.
        unsafe { AtomicU64::from_ptr(at) }
    }

    #[inline(always)]
    pub(crate) fn load(self, page: u64) {
        std::hint::black_box(self.word(page).load(Ordering::Relaxed));
    }

    #[inline(always)]
    pub(crate) fn store(self, page: u64) {
        self.word(page).store(page, Ordering::Relaxed);
    }

    pub(crate) fn pages(self) -> u64 {
        self.pages
    }

    /// Takes all page-table entries away.
    pub(crate) fn drop_entries(self) -> nix::Result<()> {
        let at = NonNull::new(self.at as *mut _).ok_or(Errno::EINVAL)?;
        // SAFETY: the memory is shared, so what it shows stays.
        unsafe { madvise(at, (self.pages * PAGE) as usize, MmapAdvise::MADV_DONTNEED) }
    }
}

/// A memfd whose pages are there.
pub(crate) struct Memory {
    fd: OwnedFd,
    pages: u64,
}

impl Memory {
    /// Nothing but holes.
    pub(crate) fn sparse(pages: u64) -> anyhow::Result<Self> {
        let fd = memfd_create("daxpager-bench", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        nix::unistd::ftruncate(&fd, (pages * PAGE) as i64).context("ftruncate")?;
        Ok(Self { fd, pages })
    }

    /// With every page touched, through another mapping.
    pub(crate) fn resident(pages: u64) -> anyhow::Result<Self> {
        let memory = Self::sparse(pages)?;
        let alias = memory.map()?;
        (0..pages).for_each(|page| alias.view().store(page));
        Ok(memory)
    }

    pub(crate) fn read(&self, into: &mut [u8], at: u64) -> nix::Result<usize> {
        nix::sys::uio::pread(&self.fd, into, at as i64)
    }

    pub(crate) fn write(&self, from: &[u8], at: u64) -> nix::Result<usize> {
        nix::sys::uio::pwrite(&self.fd, from, at as i64)
    }

    /// Takes pages away.
    pub(crate) fn punch(&self, pages: Range<u64>) -> nix::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (at, len) = (pages.start * PAGE, (pages.end - pages.start) * PAGE);
        fallocate(&self.fd, flags, at as i64, len as i64)
    }

    pub(crate) fn map(&self) -> anyhow::Result<Mapped> {
        self.map_part(0..self.pages)
    }

    pub(crate) fn map_part(&self, part: Range<u64>) -> anyhow::Result<Mapped> {
        let pages = part.end - part.start;
        let bytes = NonZeroUsize::new((pages * PAGE) as usize).context("an empty mapping")?;
        let at = (part.start * PAGE) as i64;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, &self.fd, at) }.context("mmap")?;
        Ok(Mapped { at: at.as_ptr() as usize, pages })
    }
}

/// A mapping, unmapped when dropped.
pub(crate) struct Mapped {
    at: usize,
    pages: u64,
}

impl Mapped {
    pub(crate) fn view(&self) -> View<'_> {
        View { at: self.at, pages: self.pages, life: PhantomData }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let Some(at) = NonNull::new(self.at as *mut _) else { return };
        // SAFETY: ours, and every view of it is gone.
        let _ = unsafe { munmap(at, (self.pages * PAGE) as usize) };
    }
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}
/// REGISTER, and CONTINUE and ZEROPAGE: a range, a mode, an answer.
#[repr(C)]
struct Ranged {
    start: u64,
    bytes: u64,
    mode: u64,
    answer: i64,
}
#[repr(C)]
struct Protect {
    start: u64,
    bytes: u64,
    mode: u64,
}
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    pages_max: u64,
    inverted: u64,
    mask: u64,
    any_of: u64,
    returned: u64,
}

nix::ioctl_readwrite!(ioctl_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(ioctl_register, 0xaa, 0x00, Ranged);
nix::ioctl_readwrite!(ioctl_zeropage, 0xaa, 0x04, Ranged);
nix::ioctl_readwrite!(ioctl_protect, 0xaa, 0x06, Protect);
nix::ioctl_readwrite!(ioctl_continue, 0xaa, 0x07, Ranged);
nix::ioctl_readwrite!(ioctl_scan, b'f', 16, Scan);

const _: () = {
    assert!(nix::request_code_readwrite!(0xaa, 0x00, size_of::<Ranged>()) as u32 == 0xc020_aa00);
    assert!(nix::request_code_readwrite!(0xaa, 0x06, size_of::<Protect>()) as u32 == 0xc018_aa06);
    assert!(nix::request_code_readwrite!(b'f', 16, size_of::<Scan>()) as u32 == 0xc060_6610);
};

/// A userfaultfd.
pub(crate) struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    pub(crate) fn open(features: u64) -> nix::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let open = |flags: i32| {
            // SAFETY: userfaultfd(2) takes flags only.
            Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })
        };
        // Without privileges: faults from user mode only, which is all the bench makes.
        let raw = open(flags).or_else(|_| open(flags | 1))?;
        // SAFETY: the kernel has just made it, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
        let mut api = Api { api: 0xaa, features, ioctls: 0 };
        // SAFETY: a valid uffdio_api that outlives the call.
        unsafe { ioctl_api(fd.as_raw_fd(), &mut api) }?;
        Ok(Self { fd })
    }

    pub(crate) fn register(&self, map: &Mapped, mode: u64) -> nix::Result<()> {
        let bytes = map.pages * PAGE;
        let mut argument = Ranged { start: map.at as u64, bytes, mode, answer: 0 };
        // SAFETY: a valid uffdio_register that outlives the call; the range is a mapping of ours.
        unsafe { ioctl_register(self.fd.as_raw_fd(), &mut argument) }.map(drop)
    }

    /// Installs every page of a mapping that has no entry.
    pub(crate) fn install_all(&self, map: &Mapped) -> nix::Result<()> {
        resolve(self.fd.as_raw_fd(), Answer::Continue, map.at as u64, map.pages * PAGE)
    }

    /// Protects all of a mapping against stores.
    pub(crate) fn protect_all(&self, map: &Mapped) -> nix::Result<()> {
        let mut argument = Protect { start: map.at as u64, bytes: map.pages * PAGE, mode: 1 };
        // SAFETY: a valid uffdio_writeprotect that outlives the call.
        unsafe { ioctl_protect(self.fd.as_raw_fd(), &mut argument) }.map(drop)
    }

    /// Waits for a message, up to a tenth of a second.
    pub(crate) fn poll(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::from(100u8)), Ok(1..))
    }

    /// The address of one fault, and whether there was no entry where there is a page.
    pub(crate) fn read(&self) -> Option<(u64, bool)> {
        let mut message = [0u8; 32];
        let word = |message: &[u8; 32], at: usize| Some(u64::from_ne_bytes(message[at..at + 8].try_into().ok()?));
        match nix::unistd::read(&self.fd, &mut message) {
            Ok(32) => Some((word(&message, 16)?, word(&message, 8)? & FLAG_MINOR != 0)),
            _ => None,
        }
    }

    /// Answers a fault for one page.
    pub(crate) fn answer(&self, answer: Answer, at: u64) -> nix::Result<()> {
        resolve(self.fd.as_raw_fd(), answer, at & !(PAGE - 1), PAGE)
    }
}

/// The one ioctl that a fault is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub(crate) enum Answer {
    Continue,
    Unprotect,
    Zero,
}

fn resolve(fd: i32, answer: Answer, start: u64, bytes: u64) -> nix::Result<()> {
    let mut ranged = Ranged { start, bytes, mode: 0, answer: 0 };
    match answer {
        // SAFETY: a valid uffdio_continue that outlives the call.
        Answer::Continue => unsafe { ioctl_continue(fd, &mut ranged) }.map(drop),
        // SAFETY: a valid uffdio_zeropage that outlives the call.
        Answer::Zero => unsafe { ioctl_zeropage(fd, &mut ranged) }.map(drop),
        Answer::Unprotect => {
            let mut protect = Protect { start, bytes, mode: 0 };
            // SAFETY: a valid uffdio_writeprotect that outlives the call.
            unsafe { ioctl_protect(fd, &mut protect) }.map(drop)
        }
    }
}

/// What the handler answers through, and with; -1 while it has nothing to answer.
static HANDLER_FD: AtomicI32 = AtomicI32::new(-1);
static HANDLER_ANSWER: AtomicI32 = AtomicI32::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Where the last fault was. Once in a long while the kernel has taken an entry away, and unprotecting nothing helps nobody.
static HANDLED_AT: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: of a SIGBUS for an access, `si_addr` is the field that is set.
    let at = unsafe { info.si_addr() } as u64;
    let wanted = HANDLER_ANSWER.load(Ordering::Relaxed);
    let unprotect = wanted == Answer::Unprotect as i32;
    let again = HANDLED_AT.load(Ordering::Relaxed) == at;
    HANDLED_AT.store(at, Ordering::Relaxed);
    let answer = match unprotect && !again {
        true => Answer::Unprotect,
        false if wanted == Answer::Zero as i32 => Answer::Zero,
        false => Answer::Continue,
    };
    HANDLED.fetch_add(1, Ordering::Relaxed);
    match resolve(HANDLER_FD.load(Ordering::Relaxed), answer, at & !(PAGE - 1), PAGE) {
        Ok(()) | Err(Errno::EEXIST) => {}
        // SAFETY: async-signal-safe; there is nothing else to be done.
        Err(_) => unsafe { libc::_exit(70) },
    }
}

/// Answers every SIGBUS of this process from now on through `uffd`, which has to outlive the faults.
pub(crate) fn answer_sigbus(uffd: &Uffd, answer: Answer) -> nix::Result<()> {
    HANDLER_FD.store(uffd.fd.as_raw_fd(), Ordering::Relaxed);
    HANDLER_ANSWER.store(answer as i32, Ordering::Relaxed);
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: a valid action whose handler makes async-signal-safe calls only.
    Errno::result(unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) }).map(drop)
}

/// Faults that the handler has answered so far.
pub(crate) fn handled() -> u64 {
    HANDLED.load(Ordering::Relaxed)
}

/// PAGEMAP_SCAN over a whole mapping: what has been written is reported and protected again. How many pages there were.
pub(crate) fn scan_written(pagemap: &std::fs::File, map: &Mapped) -> nix::Result<u64> {
    const WP_MATCHING_AND_CHECK: u64 = 0b11;
    const WRITTEN: u64 = 1 << 1;
    let mut regions = vec![[0u64; 3]; 1024];
    let end = map.at as u64 + map.pages * PAGE;
    let (mut at, mut pages) = (map.at as u64, 0);
    while at < end {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: WP_MATCHING_AND_CHECK,
            start: at,
            end,
            regions: regions.as_mut_ptr() as u64,
            region_count: regions.len() as u64,
            mask: WRITTEN,
            returned: WRITTEN,
            ..Scan::default()
        };
        // SAFETY: a valid pm_scan_arg, and a vector of `region_count` page_regions (three words each).
        let count = unsafe { ioctl_scan(pagemap.as_raw_fd(), &mut scan) }?;
        pages += regions[..count as usize].iter().map(|region| (region[1] - region[0]) / PAGE).sum::<u64>();
        at = scan.walk_end;
    }
    Ok(pages)
}

/// What the kernel has counted of this process: faults, context switches of its own will and others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) minor_faults: u64,
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
}

pub(crate) fn usage() -> Usage {
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid rusage to be filled in.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    Usage {
        minor_faults: usage.ru_minflt as u64,
        voluntary: usage.ru_nvcsw as u64,
        involuntary: usage.ru_nivcsw as u64,
    }
}

/// One of the CPUs that this process may run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cpu {
    First,
    Last,
}

/// Those of the process at its start: pinning changes what is allowed.
static ALLOWED: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();

fn allowed() -> Vec<usize> {
    // SAFETY: all zeros is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid set of the size that is given.
    unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    let is_in = |cpu: &usize| {
        // SAFETY: `cpu` is below CPU_SETSIZE.
        unsafe { libc::CPU_ISSET(*cpu, &set) }
    };
    (0..libc::CPU_SETSIZE as usize).filter(is_in).collect()
}

/// Puts this thread, and those it will start, on one CPU.
pub(crate) fn pin(which: Cpu) -> nix::Result<()> {
    let cpus = ALLOWED.get_or_init(allowed);
    let cpu = if which == Cpu::First { cpus.first() } else { cpus.last() };
    let cpu = *cpu.ok_or(Errno::EINVAL)?;
    // SAFETY: all zeros is a valid, empty set.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    // SAFETY: a valid set of the size that is given.
    Errno::result(unsafe { libc::sched_setaffinity(0, size_of_val(&one), &one) }).map(drop)
}

/// Mounts a hugetlbfs, for root.
pub(crate) fn mount_hugetlbfs(at: &Path) -> anyhow::Result<()> {
    let at = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
    let kind = c"hugetlbfs".as_ptr();
    // SAFETY: three strings that end in NUL, and no data.
    let done = unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), kind, 0, std::ptr::null()) };
    Errno::result(done).map(drop).context("mounting a hugetlbfs needs root")
}

/// Takes it away again, as soon as nobody uses it.
pub(crate) fn unmount(at: &Path) {
    let Ok(at) = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()) else { return };
    // SAFETY: a string that ends in NUL.
    unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
}
