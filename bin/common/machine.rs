//! What the programs ask of the machine, and how they end where it lacks something.
#![allow(dead_code, reason = "each program uses its part")]

use std::sync::LazyLock;

use daxpager::Error;
use nix::unistd::{SysconfVar, sysconf};

/// Bad arguments, or a program that could not run.
pub(crate) const MISUSE: u8 = 2;
/// As automake and many others say "skipped".
pub(crate) const NO_USERFAULTFD: u8 = 77;

/// Whether an error of the library says that this machine cannot run it.
pub(crate) fn is_lacking(error: &anyhow::Error) -> bool {
    use Error::{MissingFeature, NoKernelFaults, NoUserfaultfd};
    matches!(error.downcast_ref(), Some(MissingFeature { .. } | NoUserfaultfd { .. } | NoKernelFaults { .. }))
}

/// The size of a page, and so of a block.
pub(crate) fn page_bytes() -> u64 {
    static BYTES: LazyLock<u64> = LazyLock::new(|| match sysconf(SysconfVar::PAGE_SIZE) {
        Ok(Some(bytes)) => bytes as u64,
        _ => 4096,
    });
    *BYTES
}

/// The release of the kernel; nothing if it does not say.
pub(crate) fn kernel() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Memory that is to be had now, as the kernel reckons; `None` if it does not say.
pub(crate) fn memory_available() -> Option<u64> {
    bytes_of("/proc/meminfo", "MemAvailable:")
}

/// The bytes of a line of a file in which the kernel says how many kB something has.
pub(crate) fn bytes_of(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The bits of a line of /proc/self/status, such as `SigIgn:`; none if it is not there.
pub(crate) fn mask_of(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(name));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
