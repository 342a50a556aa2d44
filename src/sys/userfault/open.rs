//! Opening a userfaultfd: what this kernel can do, and what this process may have.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use userfaultfd::Uffd;

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

/// Where those may ask for a userfaultfd who may open it.
const DEVICE: &str = "/dev/userfaultfd";

/// # Safety
/// The kernel has just given the caller this descriptor, and nobody else knows it.
unsafe fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn open_by_syscall(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: userfaultfd(2) takes flags only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: what the call has just answered.
    Ok(unsafe { owned(fd as i32) })
}

fn open_by_device(flags: i32) -> Result<OwnedFd, Errno> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    // SAFETY: USERFAULTFD_IOC_NEW takes flags only.
    let fd = Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW as _, flags) })?;
    // SAFETY: what the call has just answered.
    Ok(unsafe { owned(fd) })
}

/// Not a refusal: there is none left.
fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// A userfaultfd, and whether it is for faults from user mode only: through the device, which needs no privilege but
/// to open that, also where a filter refuses the system call; then the system call; then the system call for user mode.
fn open_any(need_kernel_faults: bool) -> Result<(OwnedFd, bool)> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let short = |errno: Errno| Error::system("userfaultfd", errno);
    match open_by_device(flags) {
        Ok(fd) => return Ok((fd, false)),
        Err(errno) if is_shortage(errno) => return Err(short(errno)),
        Err(_) => {}
    }
    match open_by_syscall(flags) {
        Ok(fd) => return Ok((fd, false)),
        Err(errno) if is_shortage(errno) => return Err(short(errno)),
        Err(errno @ Errno::ENOSYS) => return Err(Error::NoUserfaultfd { errno: errno as i32 }),
        Err(errno) if need_kernel_faults => return Err(Error::NoKernelFaults { errno: errno as i32 }),
        Err(_) => {}
    }
    match open_by_syscall(flags | abi::USER_MODE_ONLY) {
        Ok(fd) => Ok((fd, true)),
        Err(errno) if is_shortage(errno) => Err(short(errno)),
        Err(errno) => Err(Error::NoUserfaultfd { errno: errno as i32 }),
    }
}

fn api(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut api = abi::Api { api: abi::UFFD_API, features, ioctls: 0 };
    // SAFETY: `api` is a valid uffdio_api and outlives the call.
    unsafe { abi::uffdio_api(fd.as_raw_fd(), &mut api) }?;
    Ok(api.features)
}

/// What this kernel's userfaultfd can do, asked on a throw-away descriptor, opened in whichever way there is: UFFDIO_API works
/// once on each.
pub(super) fn supported_features() -> Result<u64> {
    let (fd, _) = open_any(false)?;
    api(&fd, 0).map_err(|errno| Error::NoUserfaultfd { errno: errno as i32 })
}

/// Opens a userfaultfd, the most able one that this process may have.
pub(super) fn open(features: u64, need_kernel_faults: bool) -> Result<(Uffd, bool)> {
    let (fd, user_mode_only) = open_any(need_kernel_faults)?;
    api(&fd, features).map_err(|errno| Error::system("ioctl(UFFDIO_API)", errno))?;
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd);
    // SAFETY: an open userfaultfd, by `open_any`; who owned it has just given it up.
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
