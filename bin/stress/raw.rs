//! What needs `unsafe`: a part of a mapping as the buffer of a call, which is what embedders do; and another user.
#![allow(unsafe_code)]

use daxpager::Mapping;

/// Lends the first `len` bytes of a mapping as a buffer. The file must reach that far: a SIGBUS in it is not caught.
///
/// Whoever calls holds the buffer lock of the mapping's file, so there is no other such slice.
pub(crate) fn with_first_bytes<T>(map: &Mapping, len: u64, lend: impl FnOnce(&mut [u8]) -> T) -> T {
    assert!(len <= map.len());
    // SAFETY: within the mapping, which is borrowed meanwhile, and the only slice of it (above). Watched words are not in it. Punches
    // zero it meanwhile, through the device: as other processes may any shared memory that is given to read(2).
    lend(unsafe { std::slice::from_raw_parts_mut(map.as_ptr(), len as usize) })
}

/// Gives up what only root may, for good. Whether it was root's.
pub(crate) fn become_user(id: u32) -> bool {
    // SAFETY: changes nothing but who this process is, in all of its threads.
    unsafe { libc::setresuid(id, id, id) == 0 }
}
