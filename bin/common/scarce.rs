//! A process that runs out of address ranges.
#![allow(dead_code, reason = "each program uses its part")]
#![allow(unsafe_code)]

/// Mappings that serve nothing, and take every address range that the process has left.
pub(crate) struct Hoard {
    at: *mut libc::c_void,
    bytes: usize,
    single: Vec<*mut libc::c_void>,
    _heap: Vec<Vec<u8>>,
}

const PAGE: usize = 4096;

/// Allocations of every small size, beside which as many are free again. musl's malloc maps memory for every few allocations of a size, and
/// a process that has no address range for that ends.
fn small_change() -> Vec<Vec<u8>> {
    let sizes = std::iter::successors(Some(16), |size| Some(size + size / 8)).take_while(|size| *size <= 32 << 10);
    let all: Vec<Vec<u8>> = sizes.flat_map(|size| (0..32).map(move |_| Vec::with_capacity(size))).collect();
    all.into_iter().step_by(2).collect()
}

impl Hoard {
    /// Takes all but `left` of them. Nothing big is to be allocated while it lives.
    pub(crate) fn all_but(left: usize) -> Self {
        let max: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        let bytes = (max + 2) * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        let mut hoard = Self { at, bytes, single: Vec::with_capacity(64), _heap: small_change() };
        // Each takes two.
        let pages = (0..max).step_by(2);
        let _ = pages.map(|page| hoard.protect(page, libc::PROT_READ)).take_while(|done| *done).count();
        // And the last ones, one by one; shared ones are never joined.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        loop {
            // SAFETY: as above.
            let one = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0) };
            if one == libc::MAP_FAILED {
                break;
            }
            hoard.single.push(one);
        }
        // Joined again: two each.
        (0..left.div_ceil(2)).for_each(|range| assert!(hoard.protect(2 * range, libc::PROT_NONE)));
        hoard
    }

    fn protect(&self, page: usize, protection: i32) -> bool {
        let at = self.at.wrapping_byte_add(page * PAGE);
        // SAFETY: a page of the hoard's own, which nobody accesses.
        unsafe { libc::mprotect(at, PAGE, protection) == 0 }
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        // SAFETY: the hoard's own, which nobody accesses.
        unsafe { libc::munmap(self.at, self.bytes) };
        for one in &self.single {
            // SAFETY: likewise.
            unsafe { libc::munmap(*one, PAGE) };
        }
    }
}

/// Sets a limit of this process, or lifts it, as far as that is allowed. What it was.
pub(crate) fn limit(resource: nix::sys::resource::Resource, soft: u64) -> u64 {
    let (before, hard) = nix::sys::resource::getrlimit(resource).unwrap();
    nix::sys::resource::setrlimit(resource, soft, hard).unwrap();
    before
}

/// Whether something is mapped at each of the addresses.
pub(crate) fn is_mapped_by_now(addresses: &[usize]) -> Vec<bool> {
    let is_mapped = |at: &usize| {
        let mut resident = 0u8;
        // SAFETY: the kernel only looks whether there is a mapping, and writes one byte.
        unsafe { libc::mincore(*at as *mut _, PAGE, &raw mut resident) == 0 }
    };
    addresses.iter().map(is_mapped).collect()
}

/// Waits until a thread of this process sleeps in a function of the kernel of that name, for at most ten seconds.
pub(crate) fn until_asleep(thread: nix::unistd::Pid, function: &str) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !std::fs::read_to_string(format!("/proc/self/task/{thread}/wchan")).unwrap().contains(function) {
        assert!(std::time::Instant::now() < until, "{thread} does not sleep in {function}");
        std::thread::yield_now();
    }
}

/// Whether so many bytes can be mapped.
pub(crate) fn may_map(bytes: usize) -> bool {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0) };
    // SAFETY: what has just been mapped, if it has.
    at != libc::MAP_FAILED && unsafe { libc::munmap(at, bytes) } == 0
}
