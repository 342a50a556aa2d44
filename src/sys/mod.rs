//! Everything that talks to the kernel: every ioctl, mmap, mremap and madvise, behind one trait.
//!
//! This is the only module with `unsafe` in it. It knows addresses, bytes and blocks of memory,
//! and nothing of files. [`fake`] is a second page table behind the same trait, without a kernel.
#![allow(unsafe_code)]

pub(crate) mod abi;
pub(crate) mod access;
mod asynchronous;
#[cfg(all(test, feature = "fake", not(miri)))]
mod conformance;
#[cfg(feature = "fake")]
pub mod fake;
pub(crate) mod fork;
#[cfg(feature = "sabotage")]
pub(crate) mod inject;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod passing;
mod place;
pub(crate) mod process;
pub(crate) mod sent;
mod trap;
pub(crate) mod userfault;

use nix::errno::Errno;

use crate::options::MapOptions;
use crate::sync::Arc;
use crate::units::Addr;
use memory::DeviceMemory;
pub(crate) use place::{Last, Part, Place, Span};

/// What the access wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// A load.
    Load,
    /// A store, or an atomic read-modify-write.
    Store,
}

/// What the page table said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum FaultKind {
    /// No entry, and nothing in the page cache either.
    Missing,
    /// No entry, though the page is in the device's page cache.
    Minor,
    /// An entry, write-protected, and a store came: the kernel's `pfn_mkwrite`.
    WriteProtect,
}

/// A thread, by the number gettid(2) gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) struct Tid(pub(crate) u32);

/// A fault as the kernel reports it. The thread sleeps until it is woken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RawFault {
    pub(crate) addr: Addr,
    pub(crate) access: Access,
    pub(crate) kind: FaultKind,
    pub(crate) tid: Tid,
}

impl RawFault {
    /// The access: its address, and whether it is a store.
    pub(crate) fn access_key(&self) -> u64 {
        // No address of a process has the highest bit.
        self.addr.0 as u64 | u64::from(self.access == Access::Store) << 63
    }
}

/// A message read from the page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Fault(RawFault),
    /// The application has moved a registered range. Our own re-points are not reported.
    Moved {
        from: Addr,
        to: Addr,
        bytes: u64,
    },
    /// A fault that the thread was to resolve that has it, and could not: it waits until its ticket is answered.
    Posted(RawFault, Ticket),
}

/// Where a thread waits for the answer to a fault it has posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(pub(crate) u64);

/// What a thread does about a fault that was to be resolved by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Repeats the access.
    Repeat,
    /// Takes the SIGBUS, as a real one.
    Sigbus,
}

/// Resolves faults in the threads that have them, in a signal handler: it allocates nothing and waits for nobody.
pub(crate) trait Resolver: Send + Sync {
    /// `None` if it takes somebody who may wait.
    fn resolve(&self, fault: &RawFault) -> Option<Verdict>;
}

/// How many messages one read takes at most.
pub(crate) const MESSAGES_PER_READ: usize = 64;

/// Whether a store through the new entry shall fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protection {
    ReadOnly,
    Writable,
}

impl Protection {
    /// Of an entry that is put there for an access.
    pub(crate) fn of(access: Access) -> Self {
        match access {
            Access::Load => Protection::ReadOnly,
            Access::Store => Protection::Writable,
        }
    }
}

/// Who installs a page that the device has, where there is no entry for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Present {
    /// Whoever serves faults is told of it: a minor fault.
    Told,
    /// The kernel, and nobody is told. The range is armed: there is a marker in every page, so that what is installed is
    /// write-protected. An entry that was writable leaves no marker when it goes; then what is installed is writable.
    Installed,
    /// The kernel, and nobody is told of that nor of a store: only what the device does not have is a fault.
    Open,
}

/// What an address range allows at all, wherever it points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    /// As mmap(2) without PROT_WRITE: a store is a SIGSEGV, and no fault that the pager is asked about.
    pub(crate) read_only: bool,
    /// The kernel puts it into a core dump of the process.
    pub(crate) dumped: bool,
    /// Where it shows the device, a store gets through a write-protected entry by itself, and the entry is the record of it:
    /// [`PageTable::asynchronous`] sees to that.
    unnoticed: bool,
}

impl Rights {
    #[cfg(feature = "fake")]
    pub(crate) const LOAD_STORE: Self = Self { read_only: false, dumped: false, unnoticed: false };

    pub(crate) fn of(options: &MapOptions) -> Self {
        Self { read_only: options.read_only, dumped: options.dumped, unnoticed: false }
    }

    /// The same, with stores that nobody is told of.
    fn unnoticed(self) -> Self {
        Self { unnoticed: true, ..self }
    }
}

/// What came of an attempt to change one page-table entry. Each ioctl's answer becomes one of
/// these in one place ([`userfault`]), and callers match them without a `_` arm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Outcome {
    /// Done, and every thread waiting on the range is woken.
    Installed,
    /// There was an entry, or a marker, already. Nobody has been woken.
    AlreadyPresent,
    /// An event is unread, so the kernel refused. Nobody has been woken.
    Retry,
    /// No such range any more. Nobody has been woken.
    Gone,
}

/// What came of an attempt to install a run of pages, in order from the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Filled {
    /// So many bytes are done, the first page at least, and every thread waiting on those is woken. If that is not all,
    /// something is in the way of the next page; the kernel says what when it is asked for that page.
    Bytes(u64),
    /// Nothing is done, and nobody woken. The reason may be any page's if it is not [`Outcome::AlreadyPresent`], which is
    /// said of the first.
    Nothing(Outcome),
}

/// Which pages of ranges that let stores through by themselves are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scan {
    /// Those whose entry lets stores through: a store has been there, or may have been. In the same step, which no store
    /// comes in between of, each is write-protected.
    TakeWritten,
    /// These, and those without an entry and without a marker, which get one in the same step. For ranges in which the kernel installs what is
    /// present: there such a page may get an entry at any moment, and one that lets stores through.
    TakeAll,
    /// Those without an entry and without a marker. A zap leaves a marker where the entry was write-protected: of pages that had
    /// one, these are those that may have been stored to.
    Absent,
    /// Those with a marker in the place of an entry.
    Marked,
}

/// What a range is that was to be revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Revoked {
    /// Every access is a SIGBUS.
    Sigbus,
    /// Every access is a SIGSEGV: the kernel had no room for more. Caught where an access of ours raises it.
    Segv,
    /// The kernel refuses that, too: nothing has changed.
    Refused,
}

/// What a range is after a re-point of it has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Mended {
    /// What it was before.
    Untouched,
    /// The kernel had unmapped it. It points at zeros now.
    Zeros,
    /// The kernel had unmapped it, and its addresses are somebody else's, or will be.
    Lost,
}

/// What came of sending a thread its SIGBUS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Delivery {
    /// The signal is on its way, and takes the thread out of its fault.
    Sent,
    /// The thread is not asleep in a fault: it has been woken since, and will fault anew if it must.
    Awake,
    /// A signal does not end this fault: it is one of a system call, or of another process, or the
    /// thread blocks or ignores SIGBUS. Only a poisoned page does.
    Unreachable,
}

/// One address space, and the channel on which its faults arrive.
///
/// The implementation for the kernel is [`userfault::Userfault`]: one userfaultfd. Addresses and
/// lengths are multiples of the base page everywhere, and of the device's page where
/// an entry for a device page is meant.
///
/// What changes anything at an address takes a [`Span`] of it: the proof that the addresses are a mapping's, and stay so until the call
/// returns. The kernel would not look: its ioctls serve every range of the process that is registered with any userfaultfd.
pub(crate) trait PageTable: Send + Sync {
    /// The granularity at which zeros are installed: the machine's base page, in bytes.
    fn base_page(&self) -> u64;

    /// Whether faults from inside system calls arrive too.
    fn serves_kernel_faults(&self) -> bool;

    /// Whether devices of huge pages can be mapped.
    fn check_huge(&self) -> crate::error::Result<()>;

    /// The same address space for mappings whose stores to device pages need nobody to let them through. Messages
    /// for both are read here.
    fn asynchronous(self: Arc<Self>) -> crate::error::Result<Arc<dyn PageTable>>;

    /// Calls `each` for every range of the pages that are meant, in order, of those of the range that point at the device and let stores
    /// through by themselves: there are none but in what [`PageTable::asynchronous`] gives.
    fn scan(&self, _: Scan, _: Span<'_>, _: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        Ok(())
    }

    /// Whether its addresses are this process's, and can be accessed: not those of the fake one.
    fn has_real_addresses(&self) -> bool;

    /// Reserves an address range whose every access faults, aligned to `align`. All of it
    /// points at zeros. For [`Place::reserve`], which gives it back.
    fn reserve(&self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno>;

    /// Makes a range point at the device from `offset` on, with no entry in the page table.
    /// Threads that fault there see the old range or the new one, never neither.
    ///
    /// Waits until somebody has called [`PageTable::read`] for the event, and until then every
    /// install answers [`Outcome::Retry`].
    fn point_at_device(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno>;

    /// Makes a part of a range that [`PageTable::reserve`] has just given show the device from `offset` on, with no entry. Nobody
    /// accesses it yet: so it is not as one step, and waits for nobody. After an error there may be nothing at its addresses.
    fn show(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno>;

    /// As [`PageTable::point_at_device`], for a range that shows its own places of a device that is far longer than what is in it.
    fn point_in_place(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno>;

    /// Makes a page present in the device that a range shows, of zeros, and installs it, as [`PageTable::install_zeros`] does in a range of
    /// zeros. [`Outcome::AlreadyPresent`] where the device has one.
    fn make_present(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.install_zeros(span, protection)
    }

    /// The same for the pages of a range, up to the first that the device has. An error is of the first page; then nothing is done.
    fn make_run_present(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno>;

    /// Whoever serves faults is told from now on of what is present in a range where the kernel installs it by itself
    /// ([`Present::Installed`]): one step, and no access in between is unwatched. The entries stay.
    fn be_told(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno>;

    /// The device's pages that a range shows are about to be punched, which takes the entries with them as one step, in every page
    /// table. The kernel sees to that by itself. How often that has been, this time included.
    fn page_goes(&self, span: Span<'_>) -> u64;

    /// How often pages that this table shows have gone so far.
    fn goings(&self) -> u64;

    /// Makes a range point at zeros again, with no entry. Waits like [`PageTable::point_at_device`].
    fn point_at_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno>;

    /// As [`PageTable::point_at_zeros`], where that makes one address range of several: with those that are kept in reserve, if
    /// the process has none left.
    fn join_to_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.point_at_zeros(span, rights)
    }

    /// After a re-point has failed: the kernel may have unmapped the range before it gave up.
    ///
    /// # Errors
    /// What kept the kernel from telling; nothing is known then.
    fn mend(&self, span: Span<'_>, rights: Rights) -> Result<Mended, Errno>;

    /// Makes every later access to the range end in SIGBUS, with no pager needed for it, and wakes who waits there. In place:
    /// the addresses stay taken.
    fn revoke(&self, span: Span<'_>) -> Revoked;

    /// Revokes a range to which the application has moved a part of a mapping, if it is registered with this page table and with no
    /// other: `None` if it is not, or the kernel does not tell.
    fn revoke_moved(&self, at: Addr, bytes: u64) -> Option<Revoked>;

    /// Gives the address range back, and wakes who waits there.
    fn unmap(&self, last: Last<'_>);

    /// Installs the device page that the range points at.
    fn install(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno>;

    /// Installs the device pages of a range, up to the first that has an entry: in one call, which wakes once. An
    /// error is of the first page, or of the range as a whole; then nothing is done.
    fn install_run(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno>;

    /// Installs a page of zeros in a base page of a range that points at zeros, or at a part of the device where it has no page: it has
    /// one then.
    fn install_zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno>;

    /// Makes the next accesses to the range end in SIGBUS, until it is zapped.
    fn poison(&self, span: Span<'_>) -> Result<Outcome, Errno>;

    /// Puts an entry there as [`PageTable::install`] and its siblings do, and wakes nobody: for [`inject`].
    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, span: Span<'_>, entry: inject::Entry) -> Result<Outcome, Errno>;

    /// Poisons a range on which nothing is mapped but perhaps a write-protect marker, which makes
    /// [`PageTable::poison`] answer [`Outcome::AlreadyPresent`].
    fn poison_over_marker(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        match self.clear_markers(span)? {
            Outcome::Installed => self.poison(span),
            other => Ok(other),
        }
    }

    /// Whether `at` lies in a range of the table's own that nobody has any business with; if so, the access is
    /// to end in SIGBUS, and everybody is woken. mlockall(2) makes the kernel touch those.
    fn refuse_own(&self, at: Addr) -> bool;

    /// Lets stores through. Installs nothing where nothing is.
    fn unprotect(&self, span: Span<'_>) -> Result<Outcome, Errno>;

    /// Takes write-protect markers away, and wakes nobody.
    fn clear_markers(&self, span: Span<'_>) -> Result<Outcome, Errno>;

    /// Makes the next store to each page of the range fault. Installs nothing.
    fn protect(&self, span: Span<'_>) -> Result<Outcome, Errno>;

    /// Takes the entries of the range away. The device's bytes stay.
    fn zap(&self, span: Span<'_>) -> Result<(), Errno>;

    /// Wakes every thread that waits on the range: each repeats its access.
    fn wake(&self, at: Addr, bytes: u64);

    /// Ends the fault of one thread, and of no other on the same page, in a SIGBUS.
    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery;

    /// A page of the range is about to be poisoned for the sake of one thread's store, until [`PageTable::end_passing`]: a load by the
    /// CPU that meets the poison meanwhile is repeated, as far as this process's SIGBUS handler is ours.
    fn begin_passing(&self, _at: Addr, _bytes: u64) {}

    /// The poison has been zapped.
    fn end_passing(&self, _at: Addr, _bytes: u64) {}

    /// What would come of sending a thread its SIGBUS. One that has been woken and has not run since is given some
    /// milliseconds to fall asleep again.
    fn outlook(&self, tid: Tid) -> Delivery;

    /// Whether a thread may still be asleep in a fault; `false` only if it is certainly awake.
    fn may_wait(&self, tid: Tid) -> bool;

    /// How often a thread has been put on a CPU so far; `None` if it is gone or the kernel does not tell.
    fn runs(&self, tid: Tid) -> Option<u64>;

    /// Waits until there is something to read or somebody has called [`PageTable::kick`].
    fn wait(&self);

    /// Appends what has arrived, at most [`MESSAGES_PER_READ`] messages. Never waits.
    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno>;

    /// Makes [`PageTable::wait`] return.
    fn kick(&self);

    /// From now on faults in the range are resolved by the threads that have them, if this is a table whose faults are.
    fn watch(&self, _at: Addr, _bytes: u64, _resolver: Arc<dyn Resolver>) {}

    /// No resolver is running for the range at `at` any more when this returns.
    fn unwatch(&self, _at: Addr) {}

    /// Answers a fault that came as [`Message::Posted`]. Only the first answer counts.
    fn answer(&self, _ticket: Ticket, _verdict: Verdict) {}

    /// Has every thread that waits for an answer repeat its access: there will be none. No range is watched any more.
    fn dismiss(&self) {}

    /// How often each system call has been made.
    fn calls(&self) -> Calls;
}

/// Counts of the system calls a pager has made for its faults, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Calls {
    /// poll(2) on the userfaultfd.
    pub polls: u64,
    /// read(2) from the userfaultfd.
    pub reads: u64,
    /// UFFDIO_CONTINUE, COPY, POISON and WRITEPROTECT.
    pub installs: u64,
    /// UFFDIO_WAKE alone.
    pub wakes: u64,
    /// madvise(2) that took page-table entries away.
    pub zaps: u64,
    /// mremap(2), each with what it takes to stage the range.
    pub repoints: u64,
}

impl Calls {
    pub(crate) fn plus(&self, other: &Calls) -> Calls {
        Calls {
            polls: self.polls + other.polls,
            reads: self.reads + other.reads,
            installs: self.installs + other.installs,
            wakes: self.wakes + other.wakes,
            zaps: self.zaps + other.zaps,
            repoints: self.repoints + other.repoints,
        }
    }

    /// What has been called since an earlier count; 0 of what that has more of.
    pub fn since(&self, earlier: &Calls) -> Calls {
        Calls {
            polls: self.polls.saturating_sub(earlier.polls),
            reads: self.reads.saturating_sub(earlier.reads),
            installs: self.installs.saturating_sub(earlier.installs),
            wakes: self.wakes.saturating_sub(earlier.wakes),
            zaps: self.zaps.saturating_sub(earlier.zaps),
            repoints: self.repoints.saturating_sub(earlier.repoints),
        }
    }
}
