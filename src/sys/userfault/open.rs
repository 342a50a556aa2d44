//! Opening a userfaultfd: what this kernel can do, and what this process may have.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

use crate::error::{Error, Result};
use crate::sys::abi;

/// Turns the errors of the crate `userfaultfd` into plain numbers.
pub(super) fn errno_of(error: &userfaultfd::Error) -> Errno {
    use userfaultfd::Error as E;
    match error {
        E::CopyFailed(errno) | E::ZeropageFailed(errno) | E::SystemError(errno) => Errno::from_raw(*errno as i32),
        E::OpenDevUserfaultfd(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        _ => Errno::EIO,
    }
}

/// Every feature of `needed` that `supported` lacks is an error; the first one is named.
pub(super) fn check_features(supported: u64, needed: &[abi::Feature]) -> Result<()> {
    match needed.iter().find(|feature| supported & feature.bit == 0) {
        Some(feature) => Err(Error::MissingFeature { feature: feature.name, since: feature.since }),
        None => Ok(()),
    }
}

fn open_by_syscall(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd(2) takes flags only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn api(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut api = abi::Api { api: abi::UFFD_API, features, ioctls: 0 };
    // SAFETY: `api` is a valid uffdio_api and outlives the call.
    unsafe { abi::uffdio_api(fd.as_raw_fd(), &mut api) }?;
    Ok(api.features)
}

/// What this kernel's userfaultfd can do, asked on a throw-away descriptor: UFFDIO_API works once on each.
pub(super) fn supported_features() -> Result<u64> {
    let flags = libc::O_CLOEXEC | abi::USER_MODE_ONLY;
    let none = |errno: Errno| Error::NoUserfaultfd { errno: errno as i32 };
    let fd = open_by_syscall(flags).map_err(none)?;
    api(&fd, 0).map_err(none)
}

/// Opens a userfaultfd, the most able one that this process may have: `/dev/userfaultfd`, then the system
/// call, then the system call for faults from user mode only.
pub(super) fn open(features: u64, need_kernel_faults: bool) -> Result<(Uffd, bool)> {
    let through_device = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::from_bits_retain(features))
        .create();
    if let Ok(uffd) = through_device {
        return Ok((uffd, false));
    }
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let (fd, user_mode_only) = match open_by_syscall(flags) {
        Ok(fd) => (fd, false),
        Err(errno) if need_kernel_faults => return Err(Error::NoKernelFaults { errno: errno as i32 }),
        Err(_) => {
            let fd = open_by_syscall(flags | abi::USER_MODE_ONLY)
                .map_err(|errno| Error::NoUserfaultfd { errno: errno as i32 })?;
            (fd, true)
        }
    };
    api(&fd, features).map_err(|errno| Error::system("ioctl(UFFDIO_API)", errno))?;
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd);
    // SAFETY: ownership of an open userfaultfd passes to `Uffd`.
    Ok((unsafe { Uffd::from_raw_fd(raw) }, user_mode_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_feature_is_named() {
        let all = abi::NEEDED.iter().fold(0, |all, feature| all | feature.bit);
        assert_eq!(check_features(all, &abi::NEEDED), Ok(()));
        for feature in abi::NEEDED {
            let error = check_features(all & !feature.bit, &abi::NEEDED).unwrap_err();
            assert_eq!(error, Error::MissingFeature { feature: feature.name, since: feature.since });
            assert!(error.to_string().contains(feature.name));
        }
    }
}
