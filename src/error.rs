//! What can go wrong, with the numbers kept.

use std::path::PathBuf;

/// The result of a library call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which a call of this library can fail.
///
/// A call that fails on its input has changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A range of zero bytes, where the operation needs at least one (`EINVAL` of fallocate(2)).
    #[error("the range at offset {offset} is empty")]
    EmptyRange {
        /// Where the range begins, in bytes.
        offset: u64,
    },
    /// `offset + len` is larger than the largest file, 2^63 - 1 bytes (`EFBIG`).
    #[error("offset {offset} plus length {len} is past the largest file size")]
    RangeOverflow {
        /// Where the range begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A mapping must begin at a page border and cover whole pages.
    #[error("the range {offset}+{len} is not made of whole pages of {page_bytes} bytes")]
    Misaligned {
        /// Where the range begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The volume's page size in bytes.
        page_bytes: u64,
    },
    /// An access outside the mapping.
    #[error("bytes {offset}+{len} lie outside the mapping of {mapping_bytes} bytes")]
    OutsideMapping {
        /// Where the access begins, in bytes from the start of the mapping.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The mapping's length in bytes.
        mapping_bytes: u64,
    },
    /// Asked for what has been stored to, of a mapping made with [`Tracking::Off`](crate::Tracking::Off).
    #[error("the mapping at {addr:#x} does not keep track of stores")]
    NotTracked {
        /// Where the mapping begins.
        addr: usize,
    },
    /// A store through a mapping made with [`MapOptions::read_only`](crate::MapOptions::read_only). Through the pointer it is
    /// a SIGSEGV.
    #[error("bytes {offset}+{len} were to be stored to, and the mapping is read-only")]
    ReadOnlyMapping {
        /// Where the access begins, in bytes from the start of the mapping.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// An access to a page wholly past the end of the file. Through the pointer it is a SIGBUS.
    #[error("page {page} is past the end of the file, which has {file_bytes} bytes")]
    PastEnd {
        /// The first page of the access that is past the end.
        page: u64,
        /// The file's size in bytes.
        file_bytes: u64,
    },
    /// The volume has fewer free blocks than the operation needs (`ENOSPC`).
    #[error("the volume is full: {wanted} blocks wanted, {free} free")]
    NoSpace {
        /// Blocks that the operation needed.
        wanted: u64,
        /// Blocks that were free.
        free: u64,
    },
    /// The device of a volume of windows ([`Allocation::Windows`](crate::Allocation::Windows)) has no offsets left for so many pages:
    /// the ranges that its files have been mapped at, or written to, are together longer than the longest file of the kernel.
    #[error("the device has no place left for {pages} pages that follow each other")]
    NoPlaces {
        /// The pages that were to get a window.
        pages: u64,
    },
    /// The memory behind the device could not be allocated, though the volume has free blocks:
    /// the tmpfs is full, or there are no huge pages left.
    #[error("the device has no memory for block {block} (errno {errno})")]
    DeviceMemory {
        /// The first block that got no memory.
        block: u64,
        /// The kernel's errno.
        errno: i32,
    },
    /// The device has no page where a file has its bytes: somebody has punched a hole in the device's file, or cut it short, and
    /// those bytes are gone. A load or store of that page through a mapping is a SIGBUS. To write the whole page anew, or to
    /// punch it, mends it. Only for devices that have a name in a file system: see [`Device::open`](crate::Device::open).
    #[error("{} has lost its block {block}, at byte {offset}: it was punched or cut short by somebody else", device.display())]
    DeviceLost {
        /// The device's file, as it was given to `Device::open`.
        device: PathBuf,
        /// The block.
        block: u64,
        /// Where on the device the lost bytes begin, as far as they were asked for.
        offset: u64,
    },
    /// A device must be a regular file, and not be reached by a symbolic link.
    #[error("{} is {kind}: a device must be a regular file", path.display())]
    NotAFile {
        /// The path that was given.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// A device of no block at all, or of more than the address space can hold.
    #[error("a device of {bytes} bytes cannot be used: its blocks have {block_bytes} bytes")]
    DeviceSize {
        /// The size that was asked for, in bytes.
        bytes: u64,
        /// The size of a block, in bytes.
        block_bytes: u64,
    },
    /// A device whose size is not a multiple of its block size.
    #[error("a device of {bytes} bytes is not a multiple of its block size, {block_bytes} bytes")]
    DeviceNotWholeBlocks {
        /// The size that was asked for, in bytes.
        bytes: u64,
        /// The size of a block, in bytes.
        block_bytes: u64,
    },
    /// The file lies on a file system on which userfaultfd cannot serve faults.
    #[error(
        "{path} lies on {file_system}: userfaultfd serves missing and minor faults only on tmpfs, hugetlbfs and memfd, \
         because only there it can install a page of the page cache; use one of those"
    )]
    UnsupportedFileSystem {
        /// The path that was given.
        path: PathBuf,
        /// The file system's name, or its magic number.
        file_system: String,
    },
    /// Another process, or another `Device` of this one, uses the file.
    #[error("{path} is in use by another device")]
    DeviceBusy {
        /// The path that was given.
        path: PathBuf,
    },
    /// A name must have 1 to 255 bytes, and neither `/` nor NUL.
    #[error("{name:?} is no file name: 1 to 255 bytes, no '/' and no NUL")]
    BadName {
        /// The name that was given, cut to 64 characters.
        name: String,
    },
    /// There is a file of that name already (`EEXIST`).
    #[error("there is a file {name:?} already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There is no file of that name (`ENOENT`).
    #[error("there is no file {name:?}")]
    NoSuchFile {
        /// The name.
        name: String,
    },
    /// The kernel lacks a userfaultfd feature that the pager needs.
    #[error("this kernel's userfaultfd lacks {feature}: it came with Linux {since}")]
    MissingFeature {
        /// The feature's name in linux/userfaultfd.h.
        feature: &'static str,
        /// The kernel release that has it.
        since: &'static str,
    },
    /// userfaultfd is not to be had at all.
    #[error(
        "userfaultfd is not available (errno {errno}): it needs a kernel with CONFIG_USERFAULTFD, and a sandbox that lets the system call through"
    )]
    NoUserfaultfd {
        /// The kernel's errno.
        errno: i32,
    },
    /// Faults from inside system calls were asked for, and this process may not have them.
    #[error(
        "this process may not handle faults of system calls (errno {errno}): it needs CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1; where it gives up its privileges, PagerBuilder::prepare before that"
    )]
    NoKernelFaults {
        /// The kernel's errno.
        errno: i32,
    },
    /// A limit of this process or of the system is reached: a later try works if there is more room then.
    #[error("{call} failed with errno {errno}: {limit} allows {allowed} {unit}, and {wanted} are wanted")]
    Limit {
        /// What was refused.
        call: &'static str,
        /// The kernel's errno.
        errno: i32,
        /// The limit's name: an `RLIMIT_...` of getrlimit(2), a sysctl, or a file of a cgroup.
        limit: &'static str,
        /// What it counts: "bytes", "descriptors", "threads" or "address ranges".
        unit: &'static str,
        /// How many it allows.
        allowed: u64,
        /// How many there would have been, at least.
        wanted: u64,
    },
    /// A thread's name must have no NUL.
    #[error("{name:?} is no name for a thread: there is a NUL in it")]
    ThreadName {
        /// The name that was given.
        name: String,
    },
    /// A pager must have at least one worker, and at most 1024.
    #[error("{workers} workers: there must be 1 to 1024")]
    WorkerCount {
        /// The number that was given.
        workers: usize,
    },
    /// The handle is of a process that this one was forked from (fork(2)). It does nothing here, and leaks when it is dropped;
    /// what this process makes itself works.
    #[error("the handle belongs to the process that made it, and this process is a child of that one")]
    Forked,
    /// The pager has been shut down, or one of its threads has died. Mappings it served are gone.
    #[error("the pager is gone: {reason}")]
    PagerGone {
        /// Why.
        reason: String,
    },
    /// The pager has given the mapping up: the application has moved a part of it (mremap(2)), or the kernel had no room to
    /// keep it.
    #[error("the mapping at {addr:#x} is given up: a part of it was moved away, or there was no room to keep it")]
    MappingLost {
        /// Where the mapping began.
        addr: usize,
    },
    /// The process has no address range (VMA) left: `vm.max_map_count`, or `RLIMIT_AS`. The access waited for one about a
    /// second, and can be repeated: the mapping is as it was.
    #[error(
        "page {page} needs an address range, and the process has none left: pagers have {taken} of the {max} that vm.max_map_count          allows"
    )]
    AddressRanges {
        /// The page of the file.
        page: u64,
        /// Address ranges that the mappings of all pagers of the process take.
        taken: u64,
        /// `vm.max_map_count`.
        max: u64,
    },
    /// An access through a mapping ended in SIGBUS, and was caught.
    #[error(transparent)]
    Bus(BusError),
    /// The buffer of a copy to or from a mapping, or of a read or write of a file, lies in memory that ended in SIGBUS: in another mapping, past
    /// the end of its file (`EFAULT`). What is copied, read or written is all right itself. Threads in which a SIGBUS would not be caught
    /// ([`Mapping`](crate::Mapping)) touch the buffer of a read or write as any memory, and end there.
    #[error("SIGBUS at {addr:#x}: in the buffer, not in what is copied to or from it")]
    BadBuffer {
        /// The faulting address.
        addr: usize,
    },
    /// The descriptor was opened with `O_DIRECT`, and the buffer lies in a mapping. The device would read or write the pages themselves, also
    /// after a punch or truncate has given their blocks to another file.
    #[error(
        "a descriptor opened with O_DIRECT cannot be read into, or written from, a mapping: open it without, or use a buffer"
    )]
    DirectIo,
    /// A system call failed in a way that has no name of its own here.
    #[error("{call} failed: {} (errno {errno})", nix::errno::Errno::from_raw(*errno).desc())]
    System {
        /// The system call or ioctl.
        call: &'static str,
        /// The kernel's errno.
        errno: i32,
    },
}

impl Error {
    pub(crate) fn system(call: &'static str, errno: nix::errno::Errno) -> Self {
        Error::System { call, errno: errno as i32 }
    }
}

/// An access through a mapping ended in SIGBUS, and was caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("SIGBUS at {addr:#x}, byte {offset} of the mapping")]
pub struct BusError {
    /// The faulting address.
    pub addr: usize,
    /// The same in bytes from the start of the mapping.
    pub offset: u64,
}
