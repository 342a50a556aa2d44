//! What needs `unsafe`: slices of mappings, and accesses under the test's own SIGBUS handler.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use daxpager::Mapping;

/// A part of a mapping as a buffer for a call, which is what embedders do.
pub(crate) fn slice(map: &Mapping, offset: u64, len: u64) -> &[u8] {
    assert!(offset + len <= map.len());
    // SAFETY: within the mapping, which outlives the borrow.
    let start = unsafe { map.as_ptr().add(offset as usize) };
    // SAFETY: the test has no other reference to these bytes while it lends them to a call.
    unsafe { std::slice::from_raw_parts(start, len as usize) }
}

/// The same to be written to.
#[expect(clippy::mut_from_ref, reason = "the mapping's memory is shared by nature")]
pub(crate) fn slice_mut(map: &Mapping, offset: u64, len: u64) -> &mut [u8] {
    assert!(offset + len <= map.len());
    // SAFETY: within the mapping, which outlives the borrow.
    let start = unsafe { map.as_ptr().add(offset as usize) };
    // SAFETY: the test has no other reference to these bytes while it lends them to a call.
    unsafe { std::slice::from_raw_parts_mut(start, len as usize) }
}

/// A load by the CPU, with nothing to catch a signal.
pub(crate) fn load(addr: usize) -> u64 {
    // SAFETY: the address is in a mapping, or the signal is what the test is about.
    unsafe { std::ptr::read_volatile(addr as *const u64) }
}

/// A store by the CPU, with nothing to catch a signal.
pub(crate) fn store(addr: usize, value: u64) {
    // SAFETY: the address is in a mapping, or the signal is what the test is about.
    unsafe { std::ptr::write_volatile(addr as *mut u64, value) }
}

/// The address of the last SIGBUS that [`install_handler`]'s handler got.
pub(crate) static BUS_ADDR: AtomicUsize = AtomicUsize::new(0);
/// Its si_code.
pub(crate) static BUS_CODE: AtomicUsize = AtomicUsize::new(0);
/// How many there were.
pub(crate) static BUS_COUNT: AtomicU64 = AtomicU64::new(0);

pub(crate) type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Sets a handler for the whole process, as an application would with sigaction(2).
pub(crate) fn install_handler(signal: libc::c_int, handler: Handler) {
    PAGE.store(super::host_page() as usize, Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler keeps to what is safe in one.
    let set = unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

/// Notes the SIGBUS.
pub(crate) fn note_bus(info: *mut libc::siginfo_t) -> usize {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid one, which outlives the handler.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let addr = unsafe { info.si_addr() } as usize;
    let code = info.si_code;
    BUS_ADDR.store(addr, Ordering::SeqCst);
    BUS_CODE.store(code as usize, Ordering::SeqCst);
    BUS_COUNT.fetch_add(1, Ordering::SeqCst);
    addr
}

/// What a page reads as after [`patching_handler`] has put memory there.
pub(crate) const PATCH: u8 = 0x5b;

/// Notes the SIGBUS and puts ordinary memory, full of [`PATCH`], where it was, so that the access
/// goes on: who then loads [`PATCH`] knows that it was a SIGBUS.
pub(crate) extern "C" fn patching_handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = PAGE.load(Ordering::Relaxed);
    let at = (note_bus(info) / page * page) as *mut libc::c_void;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page faulted with SIGBUS, and the test has no other use for it.
    let patched = unsafe { libc::mmap(at, page, prot, flags, -1, 0) };
    if patched == at {
        // SAFETY: just mapped.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), PATCH, page) };
    }
}

/// What an application does to a mapping of its own accord.
pub(crate) fn madvise(addr: usize, len: u64, advice: libc::c_int) {
    // SAFETY: the range is in a mapping of the test's.
    let done = unsafe { libc::madvise(addr as *mut libc::c_void, len as usize, advice) };
    assert_eq!(done, 0, "madvise: {}", std::io::Error::last_os_error());
}

/// Address space that nobody else uses, not accessible.
pub(crate) fn reserve(len: u64) -> usize {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}

/// Moves a part of a mapping elsewhere, as an application might.
pub(crate) fn mremap(from: usize, len: u64, to: usize) {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (from, to, len) = (from as *mut libc::c_void, to as *mut libc::c_void, len as usize);
    // SAFETY: both ranges are the test's.
    let moved = unsafe { libc::mremap(from, len, len, flags, to) };
    assert_eq!(moved, to, "mremap: {}", std::io::Error::last_os_error());
}

pub(crate) fn munmap(addr: usize, len: u64) {
    // SAFETY: the range is the test's.
    let done = unsafe { libc::munmap(addr as *mut libc::c_void, len as usize) };
    assert_eq!(done, 0);
}

/// A page of an empty memfd: every access is a SIGBUS that has nothing to do with any pager.
pub(crate) fn empty_memfd_page() -> usize {
    let file = nix::sys::memfd::memfd_create("empty", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let len = super::host_page() as usize;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at as usize
}

/// How a child of fork(2) ended that did only `run`, which must be safe after a fork of a process with threads.
pub(crate) fn fork(run: impl FnOnce() -> i32) -> nix::sys::wait::WaitStatus {
    // SAFETY: the child calls nothing but what is safe there, and _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: safe after fork. The child may not outlive a test that is killed.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: safe after fork. No backtraces from in here.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        // SAFETY: safe after fork.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let code = run();
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(code) }
    }
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap()
}

/// Sends a signal to one thread of this process.
pub(crate) fn signal_thread(thread: i32, signal: i32) {
    let process = nix::unistd::getpid().as_raw();
    // SAFETY: a system call with plain numbers; a thread that is gone is an error and no harm.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
}

/// Takes the next signals of the kind and does nothing with them; system calls are interrupted.
pub(crate) fn swallow(signal: i32) {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    install_handler(signal, nothing);
}

/// A mount namespace of this thread's own, with a tmpfs of `bytes` bytes at `at`. Needs root.
pub(crate) fn private_tmpfs(at: &str, bytes: u64) {
    use nix::mount::{MsFlags, mount};
    // SAFETY: changes this thread's view of the file system and nothing else.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(done, 0, "this test mounts a small tmpfs and needs root: {}", std::io::Error::last_os_error());
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let size = format!("size={bytes}");
    mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
}

/// Whether this process is the superuser's.
pub(crate) fn is_root() -> bool {
    // SAFETY: always is.
    unsafe { libc::geteuid() == 0 }
}
