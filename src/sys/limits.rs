//! Which limit is in the way, when the kernel has refused something and its errno does not say.
//!
//! Only asked after a failure, and then with buffers of a fixed size: memory may be what is short.

use std::fs::File;
use std::io::Read;

use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::unistd::{SysconfVar, sysconf};

use crate::error::{Error, Result};

/// What somebody wanted, of which there was not enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Private memory, or addresses for it, in bytes.
    Memory(u64),
    /// Addresses for shared memory, in bytes.
    Shared(u64),
    /// A thread.
    Thread,
}

/// The stack of a thread, unless `RUST_MIN_STACK` says otherwise.
const STACK_BYTES: u64 = 2 << 20;
/// More than the stacks for signals of the threads that are starting at one moment.
const SIGNAL_STACKS_BYTES: u64 = 256 << 10;
/// Address ranges that a mapping, or a thread's stack, may take.
const RANGES: u64 = 4;
const CAP_IPC_LOCK: u32 = 14;

/// Names the limit that a refused call has run into, if it was one. Any other error stays as it is.
pub(crate) fn explain(error: Error, wanted: Wanted) -> Error {
    let Error::System { call, errno } = error else { return error };
    let short = match (Errno::from_raw(errno), wanted) {
        (Errno::EMFILE, _) => descriptors(),
        (Errno::ENOMEM | Errno::EAGAIN, Wanted::Memory(bytes)) => Facts::now().memory(errno, bytes, true),
        (Errno::ENOMEM | Errno::EAGAIN, Wanted::Shared(bytes)) => Facts::now().memory(errno, bytes, false),
        (Errno::EAGAIN, Wanted::Thread) if call == "clone" => thread(),
        (Errno::EAGAIN | Errno::ENOMEM, Wanted::Thread) => {
            Facts::now().memory(errno, STACK_BYTES + SIGNAL_STACKS_BYTES, true)
        }
        _ => None,
    };
    match short {
        Some(Short { limit, unit, allowed, wanted }) => Error::Limit { call, errno, limit, unit, allowed, wanted },
        None => Error::System { call, errno },
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Short {
    limit: &'static str,
    unit: &'static str,
    allowed: u64,
    wanted: u64,
}

/// No file can be opened to ask.
fn descriptors() -> Option<Short> {
    let allowed = sysconf(SysconfVar::OPEN_MAX).ok()?? as u64;
    Some(Short { limit: "RLIMIT_NOFILE", unit: "descriptors", allowed, wanted: allowed + 1 })
}

/// Memory as a thread's stack is, for a moment.
fn try_stack(bytes: u64) -> std::io::Result<()> {
    MmapOptions::new().len(bytes as usize).no_reserve_swap().map_anon().map(drop)
}

/// A thread is refused with EAGAIN whatever is short: so its stack is tried.
fn thread() -> Option<Short> {
    match try_stack(STACK_BYTES) {
        Err(error) => Facts::now().memory(error.raw_os_error().unwrap_or(0), STACK_BYTES, true),
        Ok(()) => Facts::now().threads(),
    }
}

/// Refuses a thread for whose stacks there is no room: std ends the process if the second one, for signals, is not to be had. Another
/// thread may take the room in between.
///
/// # Errors
/// [`Error::System`], for [`explain`] to name the limit.
pub(crate) fn check_thread() -> Result<()> {
    if cfg!(miri) {
        return Ok(());
    }
    let refused = |error: std::io::Error| Error::System { call: "mmap", errno: error.raw_os_error().unwrap_or(0) };
    try_stack(STACK_BYTES + SIGNAL_STACKS_BYTES).map_err(refused)
}

/// What the kernel says of this process, as far as it does.
#[derive(Clone, Copy, Default, Debug)]
struct Facts {
    /// Addresses in use in bytes, those of them that are private and writable, and those that are locked.
    size: Option<u64>,
    data: Option<u64>,
    locked: Option<u64>,
    may_lock: bool,
    is_root: bool,
    ranges: Option<u64>,
    ranges_max: Option<u64>,
    limit_size: Option<u64>,
    limit_data: Option<u64>,
    limit_locked: Option<u64>,
    limit_threads: Option<u64>,
    /// Bytes that all processes have been promised, and how many may be: where that is enforced.
    promised: Option<u64>,
    promised_max: Option<u64>,
    /// Tasks in this process's cgroup, and how many there may be.
    tasks: Option<u64>,
    tasks_max: Option<u64>,
    /// Tasks of the whole machine, likewise.
    all_tasks: Option<u64>,
    all_tasks_max: Option<u64>,
}

impl Facts {
    fn now() -> Self {
        let mut buffer = [0; 8192];
        let status = read_text("/proc/self/status", &mut buffer);
        let mut facts = Facts {
            size: kilobytes(status, "VmSize:"),
            data: kilobytes(status, "VmData:"),
            locked: kilobytes(status, "VmLck:"),
            may_lock: field(status, "CapEff:")
                .and_then(|text| u64::from_str_radix(text, 16).ok())
                .is_some_and(|caps| caps & 1 << CAP_IPC_LOCK != 0),
            is_root: field(status, "Uid:") == Some("0"),
            ranges: lines_of("/proc/self/maps"),
            ..Facts::default()
        };
        facts.ranges_max = number(read_text("/proc/sys/vm/max_map_count", &mut buffer));
        let limits = read_text("/proc/self/limits", &mut buffer);
        facts.limit_size = soft_limit(limits, "Max address space");
        facts.limit_data = soft_limit(limits, "Max data size");
        facts.limit_locked = soft_limit(limits, "Max locked memory");
        facts.limit_threads = soft_limit(limits, "Max processes");
        if number(read_text("/proc/sys/vm/overcommit_memory", &mut buffer)) == Some(2) {
            let memory = read_text("/proc/meminfo", &mut buffer);
            facts.promised = kilobytes(memory, "Committed_AS:");
            facts.promised_max = kilobytes(memory, "CommitLimit:");
        }
        // The fourth number is "running/all".
        let load = read_text("/proc/loadavg", &mut buffer).split_ascii_whitespace().nth(3);
        facts.all_tasks = load.and_then(|load| number(load.split_once('/')?.1));
        facts.all_tasks_max = number(read_text("/proc/sys/kernel/threads-max", &mut buffer));
        let cgroup = read_text("/proc/self/cgroup", &mut buffer);
        if let Some(path) = cgroup.lines().find_map(|line| line.strip_prefix("0::")) {
            let file = |name| format!("/sys/fs/cgroup{path}/{name}");
            let (tasks, max) = (file("pids.current"), file("pids.max"));
            facts.tasks = number(read_text(&tasks, &mut buffer));
            facts.tasks_max = number(read_text(&max, &mut buffer));
        }
        facts
    }

    /// Why so many bytes are refused. `private` memory that may be written to counts as data.
    fn memory(&self, errno: i32, bytes: u64, private: bool) -> Option<Short> {
        let more = |used: Option<u64>| Some(used?.saturating_add(bytes));
        let of = |limit, unit, wanted: Option<u64>, allowed: Option<u64>| {
            let (wanted, allowed) = (wanted?, allowed?);
            (wanted > allowed).then_some(Short { limit, unit, allowed, wanted })
        };
        if errno == libc::EAGAIN {
            // Of mlockall(MCL_FUTURE): nothing else refuses memory so.
            let allowed = self.limit_locked.filter(|_| !self.may_lock);
            return of("RLIMIT_MEMLOCK", "bytes", more(self.locked), allowed);
        }
        let ranges = self.ranges.map(|ranges| ranges + RANGES);
        of("RLIMIT_AS", "bytes", more(self.size), self.limit_size)
            .or_else(|| of("RLIMIT_DATA", "bytes", more(self.data), self.limit_data.filter(|_| private)))
            .or_else(|| of("vm.max_map_count", "address ranges", ranges, self.ranges_max))
            .or_else(|| {
                // By how much it is exceeded is known to the kernel alone, which keeps a reserve.
                let (promised, allowed) = (more(self.promised)?, self.promised_max?);
                let wanted = promised.max(allowed.saturating_add(1));
                private.then_some(Short {
                    limit: "vm.overcommit_memory=2, CommitLimit",
                    unit: "bytes",
                    allowed,
                    wanted,
                })
            })
    }

    /// Why a thread is refused that could have had a stack.
    fn threads(&self) -> Option<Short> {
        let next = |limit, allowed: u64| Short { limit, unit: "threads", allowed, wanted: allowed.saturating_add(1) };
        let full = |limit, tasks: Option<u64>, max: Option<u64>| {
            let (tasks, max) = (tasks?, max?);
            (tasks >= max).then(|| next(limit, max))
        };
        full("pids.max of the cgroup", self.tasks, self.tasks_max)
            .or_else(|| full("kernel.threads-max", self.all_tasks, self.all_tasks_max))
            // Of all processes of the user: what is left. The superuser's are not counted.
            .or_else(|| self.limit_threads.filter(|_| !self.is_root).map(|max| next("RLIMIT_NPROC", max)))
    }
}

/// The beginning of a file, as much as fits; nothing where it cannot be read.
fn read_text<'a>(path: &str, buffer: &'a mut [u8]) -> &'a str {
    let mut len = 0;
    if let Ok(mut file) = File::open(path) {
        while let Ok(read @ 1..) = file.read(&mut buffer[len..]) {
            len += read;
        }
    }
    std::str::from_utf8(&buffer[..len]).unwrap_or("")
}

fn lines_of(path: &str) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let mut buffer = [0; 4096];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(lines),
            read => lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The first word behind a name that begins a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    number(field(text, name)?)?.checked_mul(1024)
}

/// The soft limit of a line of `/proc/self/limits`; none where it is "unlimited".
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    number(field(text, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Facts = Facts {
        size: Some(100),
        data: Some(50),
        locked: Some(0),
        may_lock: false,
        is_root: false,
        ranges: Some(20),
        ranges_max: Some(65530),
        limit_size: None,
        limit_data: None,
        limit_locked: Some(64),
        limit_threads: None,
        promised: None,
        promised_max: None,
        tasks: None,
        tasks_max: None,
        all_tasks: None,
        all_tasks_max: None,
    };

    fn limit(short: Option<Short>) -> Option<(&'static str, u64, u64)> {
        short.map(|short| (short.limit, short.allowed, short.wanted))
    }

    #[test]
    fn each_limit_is_named_with_both_numbers() {
        let memory = |facts: Facts| limit(facts.memory(libc::ENOMEM, 1000, true));
        assert_eq!(memory(NONE), None);
        assert_eq!(memory(Facts { limit_size: Some(1099), ..NONE }), Some(("RLIMIT_AS", 1099, 1100)));
        assert_eq!(memory(Facts { limit_size: Some(1100), ..NONE }), None);
        let data = Facts { limit_data: Some(1049), ..NONE };
        assert_eq!(memory(data), Some(("RLIMIT_DATA", 1049, 1050)));
        assert_eq!(limit(data.memory(libc::ENOMEM, 1000, false)), None);
        let ranges = Facts { ranges: Some(65529), ..NONE };
        assert_eq!(memory(ranges), Some(("vm.max_map_count", 65530, 65533)));
        let strict = Facts { promised: Some(5000), promised_max: Some(5500), ..NONE };
        assert_eq!(memory(strict), Some(("vm.overcommit_memory=2, CommitLimit", 5500, 6000)));
        assert_eq!(limit(NONE.memory(libc::EAGAIN, 1000, true)), Some(("RLIMIT_MEMLOCK", 64, 1000)));
        assert_eq!(limit(Facts { may_lock: true, ..NONE }.memory(libc::EAGAIN, 1000, true)), None);
        assert_eq!(limit(NONE.threads()), None);
        let threads = Facts { limit_threads: Some(7), ..NONE };
        assert_eq!(limit(threads.threads()), Some(("RLIMIT_NPROC", 7, 8)));
        assert_eq!(limit(Facts { is_root: true, ..threads }.threads()), None);
        let group = Facts { tasks: Some(9), tasks_max: Some(9), ..threads };
        assert_eq!(limit(group.threads()), Some(("pids.max of the cgroup", 9, 10)));
        let machine = Facts { all_tasks: Some(30), all_tasks_max: Some(30), ..threads };
        assert_eq!(limit(machine.threads()), Some(("kernel.threads-max", 30, 31)));
    }

    #[test]
    fn the_kernels_texts_are_understood() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max file size             unlimited            unlimited            bytes     \n\
                      Max data size             123456               unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max data size"), Some(123_456));
        assert_eq!(soft_limit(limits, "Max file size"), None);
        assert_eq!(soft_limit(limits, "Max locked memory"), None);
        assert_eq!(kilobytes("VmPeak:\t  9 kB\nVmSize:\t    4 kB\n", "VmSize:"), Some(4096));
        assert_eq!(field("Uid:\t0\t0\t0\t0\n", "Uid:"), Some("0"));
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads /proc")]
    fn this_process_is_known() {
        let facts = Facts::now();
        assert!(facts.size > facts.data && facts.data > Some(0), "{facts:?}");
        assert!(facts.ranges > Some(5) && facts.ranges_max > facts.ranges, "{facts:?}");
        assert!(facts.all_tasks > Some(1) && facts.all_tasks_max > facts.all_tasks, "{facts:?}");
    }

    #[test]
    fn what_is_no_limit_stays_as_it_is() {
        let other = Error::System { call: "mmap", errno: libc::EINVAL };
        assert_eq!(explain(other.clone(), Wanted::Memory(1)), other);
        assert_eq!(explain(Error::Forked, Wanted::Thread), Error::Forked);
    }
}
