//! The parts of `linux/userfaultfd.h` that the crate `userfaultfd` lacks. Sizes and request
//! codes are proved at compile time.

use nix::{request_code_none, request_code_readwrite};

/// `struct uffdio_range`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// `struct uffdio_api`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copy {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) copied: i64,
}

/// `struct uffdio_continue`, and of the same shape `struct uffdio_poison`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Continue {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) done: i64,
}

/// `struct uffdio_writeprotect`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WriteProtect {
    pub(super) range: Range,
    pub(super) mode: u64,
}

pub(super) const UFFD_API: u64 = 0xaa;
pub(super) const USER_MODE_ONLY: i32 = 1;
/// Of `/dev/userfaultfd`.
pub(super) const USERFAULTFD_IOC_NEW: u32 = request_code_none!(0xaa, 0x00) as u32;

/// Of UFFDIO_COPY, CONTINUE and POISON alike.
#[cfg(feature = "sabotage")]
pub(super) const MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const COPY_MODE_WP: u64 = 1 << 1;
pub(super) const CONTINUE_MODE_WP: u64 = 1 << 1;
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const EVENT_REMAP: u8 = 0x14;
pub(super) const FLAG_WRITE: u64 = 1 << 0;
pub(super) const FLAG_WP: u64 = 1 << 1;
pub(super) const FLAG_MINOR: u64 = 1 << 2;

/// `sizeof(struct uffd_msg)`: packed, 32 bytes.
pub(super) const MESSAGE_BYTES: usize = 32;

/// Since Linux 5.18: works on locked ranges too, which a plain `MADV_DONTNEED` refuses.
pub(super) const MADV_DONTNEED_LOCKED: i32 = 24;

/// A feature the pager cannot do without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature {
    pub(super) bit: u64,
    pub(super) name: &'static str,
    pub(super) since: &'static str,
}

const fn feature(bit: u32, name: &'static str, since: &'static str) -> Feature {
    Feature { bit: 1 << bit, name, since }
}

/// What every pager needs, oldest first. POISON also stands for COPY and CONTINUE in
/// write-protect mode (6.4), which have no bit of their own.
pub(super) const NEEDED: [Feature; 8] = [
    feature(2, "UFFD_FEATURE_EVENT_REMAP", "4.11"),
    feature(5, "UFFD_FEATURE_MISSING_SHMEM", "4.11"),
    feature(8, "UFFD_FEATURE_THREAD_ID", "4.14"),
    feature(0, "UFFD_FEATURE_PAGEFAULT_FLAG_WP", "5.7"),
    feature(10, "UFFD_FEATURE_MINOR_SHMEM", "5.14"),
    feature(11, "UFFD_FEATURE_EXACT_ADDRESS", "5.18"),
    feature(12, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM", "5.19"),
    feature(14, "UFFD_FEATURE_POISON", "6.6"),
];

/// What a pager needs besides for devices of huge pages.
pub(super) const NEEDED_FOR_HUGE: [Feature; 2] =
    [feature(4, "UFFD_FEATURE_MISSING_HUGETLBFS", "4.11"), feature(9, "UFFD_FEATURE_MINOR_HUGETLBFS", "5.13")];

/// What resolution in the faulting thread needs besides.
pub(super) const SIGBUS: Feature = feature(7, "UFFD_FEATURE_SIGBUS", "4.14");

/// What asynchronous tracking needs besides. PAGEMAP_SCAN came with it.
pub(super) const WP_ASYNC: Feature = feature(15, "UFFD_FEATURE_WP_ASYNC", "6.7");

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PageRegion {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) categories: u64,
}

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PmScan {
    pub(super) size: u64,
    pub(super) flags: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) walk_end: u64,
    pub(super) vec: u64,
    pub(super) vec_len: u64,
    pub(super) max_pages: u64,
    pub(super) category_inverted: u64,
    pub(super) category_mask: u64,
    pub(super) category_anyof_mask: u64,
    pub(super) return_mask: u64,
}

pub(super) const PAGE_IS_WPALLOWED: u64 = 1 << 0;
pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;
pub(super) const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Of a marker too.
pub(super) const PAGE_IS_SWAPPED: u64 = 1 << 4;
pub(super) const PM_SCAN_WP_MATCHING: u64 = 1 << 0;

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScan);
nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_writeprotect, 0xaa, 0x06, WriteProtect);
nix::ioctl_readwrite!(uffdio_continue, 0xaa, 0x07, Continue);
nix::ioctl_readwrite!(uffdio_poison, 0xaa, 0x08, Continue);

// A code is 32 bits; musl has it in a c_int, and others in a c_ulong.
const _: () = {
    assert!(request_code_readwrite!(0xaa, 0x3f, size_of::<Api>()) as u32 == 0xc018_aa3f);
    assert!(request_code_readwrite!(0xaa, 0x03, size_of::<Copy>()) as u32 == 0xc028_aa03);
    assert!(request_code_readwrite!(0xaa, 0x06, size_of::<WriteProtect>()) as u32 == 0xc018_aa06);
    assert!(request_code_readwrite!(0xaa, 0x07, size_of::<Continue>()) as u32 == 0xc020_aa07);
    assert!(request_code_readwrite!(0xaa, 0x08, size_of::<Continue>()) as u32 == 0xc020_aa08);
    assert!(request_code_none!(0xaa, 0x00) as u32 == 0xaa00);
    assert!(request_code_readwrite!(b'f', 16, size_of::<PmScan>()) as u32 == 0xc060_6610);
    assert!(size_of::<PageRegion>() == 24);
    assert!(size_of::<Range>() == 16);
    assert!(std::mem::offset_of!(Copy, copied) == 32);
    assert!(std::mem::offset_of!(Continue, done) == 24);
};
