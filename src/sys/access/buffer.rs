//! Buffers of the caller's, which may lie in a mapping: what is past the end of its file cannot be touched, and is an error here as it is
//! to read(2) and write(2) (`EFAULT`).
//!
//! A buffer that lies in no mapping is copied as any other. One that does is copied with its SIGBUS caught, if this thread
//! [`catches`]; otherwise it is touched as through the pointer.

use super::{catches, done, enable, routines};
use crate::sys::memory::base_page_bytes;
pub(crate) use crate::sys::place::may_be_missing;

/// Whether a buffer is to be touched with care, and can be.
fn with_care(buffer: &[u8]) -> bool {
    may_be_missing(buffer) && enable().is_ok() && catches()
}

/// Copies with the SIGBUS of either side caught. The error is the faulting address; what lies before it has been copied.
fn copy_with_care(into: &mut [u8], from: &[u8]) -> Result<(), usize> {
    assert_eq!(into.len(), from.len(), "both sides have the same length");
    // SAFETY: two borrowed slices, of the same length by the assertion.
    done(unsafe { routines::copy(into.as_mut_ptr() as usize, from.as_ptr() as usize, from.len()) }).map(drop)
}

/// Copies to a buffer of the caller's, from memory of the library's own. The error is the address that is not to be had.
pub(crate) fn give(buffer: &mut [u8], from: &[u8]) -> Result<(), usize> {
    if with_care(buffer) {
        return copy_with_care(buffer, from);
    }
    buffer.copy_from_slice(from);
    Ok(())
}

/// Copies from a buffer of the caller's, likewise.
pub(crate) fn take(into: &mut [u8], buffer: &[u8]) -> Result<(), usize> {
    if with_care(buffer) {
        return copy_with_care(into, buffer);
    }
    into.copy_from_slice(buffer);
    Ok(())
}

/// Whether all of a buffer is there, now: loads a byte of each page.
pub(crate) fn check(buffer: &[u8]) -> Result<(), usize> {
    if !with_care(buffer) {
        return Ok(());
    }
    let page = base_page_bytes() as usize;
    let first = page - buffer.as_ptr() as usize % page;
    let starts = std::iter::once(0).chain((first..buffer.len()).step_by(page));
    let mut byte = [0];
    starts.filter_map(|at| buffer.get(at..=at)).try_for_each(|there| copy_with_care(&mut byte, there))
}
