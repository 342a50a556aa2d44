//! The kernel's page table, through one userfaultfd.
//!
//! One function per ioctl ([`ioctls`]), each turning the kernel's answer into an [`Outcome`] in one place.

mod ioctls;
mod open;
mod ranges;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use parking_lot::Mutex;
use userfaultfd::Uffd;

use super::abi;
use super::memory::{DeviceMemory, base_page_bytes};
use super::{
    Access, Calls, Delivery, FaultKind, Filled, MESSAGES_PER_READ, Message, Outcome, PageTable, Protection, RawFault,
    Resolver, Ticket, Tid, Verdict, access, process, trap,
};
use crate::error::{Error, Result};
use crate::units::Addr;
use ioctls::continue_mode;
use open::{check_features, supported_features};
use ranges::{Template, length, madvise, munlock};

/// One userfaultfd.
pub(crate) struct Userfault {
    uffd: Uffd,
    kick: EventFd,
    /// The features of this kernel.
    supported: u64,
    user_mode_only: bool,
    /// Faults are a SIGBUS of their threads instead of messages.
    direct: bool,
    /// An empty file: an access to a mapping of it is a SIGBUS that needs no pager.
    grave: OwnedFd,
    /// Mappings of whole devices. A leaf; never held while an event is awaited.
    templates: Mutex<Vec<Template>>,
    /// Our own moves whose events have not been read, from and to, in order. A leaf, for the time of a push
    /// or a pop: the reader takes it when it reads an event.
    moves: Mutex<VecDeque<(Addr, Addr)>>,
    calls: Counters,
    this: Weak<Userfault>,
}

#[derive(Default)]
struct Counters {
    polls: AtomicU64,
    reads: AtomicU64,
    installs: AtomicU64,
    wakes: AtomicU64,
    zaps: AtomicU64,
    repoints: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Userfault {
    /// Opens a userfaultfd whose faults are messages.
    pub(crate) fn open(need_kernel_faults: bool) -> Result<Arc<Self>> {
        let supported = supported_features()?;
        check_features(supported, &abi::NEEDED)?;
        Self::open_with(supported, 0, need_kernel_faults)
    }

    /// Opens a userfaultfd whose faults are resolved by the threads that have them.
    pub(crate) fn open_direct() -> Result<Arc<Self>> {
        if !trap::SUPPORTED {
            let feature = "the kind of access in a signal handler, on this architecture";
            return Err(Error::MissingFeature { feature, since: "none" });
        }
        let supported = supported_features()?;
        check_features(supported, &abi::NEEDED)?;
        check_features(supported, &[abi::SIGBUS])?;
        access::enable().map_err(|errno| Error::system("sigaction", errno))?;
        Self::open_with(supported, abi::SIGBUS.bit, false)
    }

    fn open_with(supported: u64, more: u64, need_kernel_faults: bool) -> Result<Arc<Self>> {
        let huge = abi::NEEDED_FOR_HUGE.iter().fold(0, |all, feature| all | feature.bit);
        let needed = abi::NEEDED.iter().fold(0, |all, feature| all | feature.bit);
        let (uffd, user_mode_only) = open::open(needed | more | (supported & huge), need_kernel_faults)?;
        let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system("eventfd", errno))?;
        let grave = memfd_create("daxpager-grave", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Error::system("memfd_create", errno))?;
        Ok(Arc::new_cyclic(|this| Self {
            uffd,
            kick,
            supported,
            user_mode_only,
            direct: more & abi::SIGBUS.bit != 0,
            grave,
            templates: Mutex::new(Vec::new()),
            moves: Mutex::new(VecDeque::new()),
            calls: Counters::default(),
            this: this.clone(),
        }))
    }

    fn fd(&self) -> i32 {
        self.uffd.as_raw_fd()
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        // The last close lets the kernel fill registered pages with zeros by itself: unmap first.
        for template in std::mem::take(self.templates.get_mut()) {
            self.give_back(template.at, template.bytes);
        }
    }
}

/// Parses one `struct uffd_msg`. `None` for an event that was never asked for.
fn parse(bytes: &[u8]) -> Option<Message> {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    match bytes[0] {
        abi::EVENT_PAGEFAULT => {
            let flags = word(8);
            let kind = match (flags & abi::FLAG_WP != 0, flags & abi::FLAG_MINOR != 0) {
                (true, _) => FaultKind::WriteProtect,
                (false, true) => FaultKind::Minor,
                (false, false) => FaultKind::Missing,
            };
            // A write-protect fault is always a store, whatever the other flag says.
            let store = flags & (abi::FLAG_WRITE | abi::FLAG_WP) != 0;
            Some(Message::Fault(RawFault {
                addr: Addr(word(16) as usize),
                access: if store { Access::Store } else { Access::Load },
                kind,
                tid: Tid(word(24) as u32),
            }))
        }
        abi::EVENT_REMAP => {
            Some(Message::Moved { from: Addr(word(8) as usize), to: Addr(word(16) as usize), bytes: word(24) })
        }
        _ => None,
    }
}

impl PageTable for Userfault {
    fn base_page(&self) -> u64 {
        base_page_bytes()
    }

    fn serves_kernel_faults(&self) -> bool {
        !self.user_mode_only
    }

    fn check_huge(&self) -> Result<()> {
        check_features(self.supported, &abi::NEEDED_FOR_HUGE)
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<Addr, Errno> {
        self.map_zeros(bytes, align, None)
    }

    fn point_at_device(&self, at: Addr, bytes: u64, device: &Arc<DeviceMemory>, offset: u64) -> Result<(), Errno> {
        count(&self.calls.repoints);
        if !device.is_huge() {
            let template = self.template(device)?;
            // After mlockall the kernel would fill the range from inside this very thread.
            munlock(template, device.len_bytes())?;
            return self.move_over(template.plus(offset), 0, bytes, at);
        }
        // The kernel does not duplicate hugetlb mappings: make a new one, and move it.
        let stage = self.map_device(bytes, device, offset)?;
        self.move_over(stage, bytes, bytes, at).inspect_err(|_| self.give_back(stage, bytes))
    }

    fn point_at_zeros(&self, at: Addr, bytes: u64) -> Result<(), Errno> {
        count(&self.calls.repoints);
        let stage = self.map_zeros(bytes, self.base_page(), None)?;
        self.move_over(stage, bytes, bytes, at).inspect_err(|_| self.give_back(stage, bytes))
    }

    fn mend(&self, at: Addr, bytes: u64) -> Result<bool, Errno> {
        match self.map_zeros(bytes, self.base_page(), Some(at)) {
            Ok(_) => Ok(true),
            // Still ours, unless somebody has mapped something there in between: then it is not registered.
            Err(Errno::EEXIST) if self.is_registered(at, bytes)? => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn condemn(&self, at: Addr, bytes: u64) -> bool {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let place = std::num::NonZeroUsize::new(at.0);
        // SAFETY: replaces a range that this struct has reserved; no Rust reference points into it.
        let dead = length(bytes).and_then(|len| unsafe { mmap(place, len, prot, flags, self.grave.as_fd(), 0) });
        if dead.is_err() {
            // No room for the mapping: SIGSEGV is still better than zeros that were never there.
            self.give_back(at, bytes);
        }
        self.wake(at, bytes);
        dead.is_ok()
    }

    fn unmap(&self, at: Addr, bytes: u64) {
        self.give_back(at, bytes);
        // munmap wakes nobody.
        self.wake(at, bytes);
    }

    fn install(&self, at: Addr, bytes: u64, protection: Protection) -> Result<Outcome, Errno> {
        self.continue_(at, bytes, continue_mode(protection))
    }

    fn install_run(&self, at: Addr, bytes: u64, protection: Protection) -> Result<Filled, Errno> {
        self.continue_run(at, bytes, continue_mode(protection))
    }

    fn install_zeros(&self, at: Addr) -> Result<Outcome, Errno> {
        self.copy_zeros(at, abi::COPY_MODE_WP)
    }

    fn poison(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.poison_with(at, bytes, 0)
    }

    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, at: Addr, entry: super::inject::Entry) -> Result<Outcome, Errno> {
        use super::inject::Entry;
        let quietly = abi::MODE_DONTWAKE;
        match entry {
            Entry::Page(bytes, protection) => self.continue_(at, bytes, continue_mode(protection) | quietly),
            Entry::Zeros => self.copy_zeros(at, abi::COPY_MODE_WP | quietly),
            Entry::Poison(bytes) => self.poison_with(at, bytes, quietly),
        }
    }

    fn refuse_own(&self, at: Addr) -> bool {
        // Under the lock: the range stays ours.
        let templates = self.templates.lock();
        let own = templates.iter().any(|template| template.at <= at && at.since(template.at) < template.bytes);
        if own {
            let (at, bytes) = (at.align_down(self.base_page()), self.base_page());
            if !matches!(self.poison(at, bytes), Ok(Outcome::Installed)) {
                self.wake(at, bytes);
            }
        }
        own
    }

    fn unprotect(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.write_protect(at, bytes, 0)
    }

    fn clear_markers(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.write_protect(at, bytes, abi::WRITEPROTECT_MODE_DONTWAKE)
    }

    fn protect(&self, at: Addr, bytes: u64) -> Result<Outcome, Errno> {
        self.write_protect(at, bytes, abi::WRITEPROTECT_MODE_WP)
    }

    fn zap(&self, at: Addr, bytes: u64) -> Result<(), Errno> {
        count(&self.calls.zaps);
        match madvise(at, bytes, abi::MADV_DONTNEED_LOCKED) {
            // The application has unmapped a part; the kernel has done the rest.
            Err(Errno::ENOMEM) => Ok(()),
            other => other,
        }
    }

    fn wake(&self, at: Addr, bytes: u64) {
        count(&self.calls.wakes);
        // Fails only for a misaligned or empty range.
        let _ = self.uffd.wake(at.0 as *mut _, bytes as usize);
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        process::raise_sigbus(tid, at)
    }

    fn outlook(&self, tid: Tid) -> Delivery {
        process::outlook(tid)
    }

    fn may_wait(&self, tid: Tid) -> bool {
        process::may_wait(tid)
    }

    fn runs(&self, tid: Tid) -> Option<u64> {
        process::runs(tid)
    }

    fn wait(&self) {
        count(&self.calls.polls);
        let mut fds =
            [PollFd::new(self.uffd_fd(), PollFlags::POLLIN), PollFd::new(self.kick.as_fd(), PollFlags::POLLIN)];
        // EINTR is a wake-up like any other: the caller reads and waits again.
        let ready = poll(&mut fds, PollTimeout::NONE);
        if ready.is_ok() && fds[1].revents().is_some_and(|events| !events.is_empty()) {
            let _ = self.kick.read();
        }
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        if self.direct {
            into.extend(trap::take_posted(self.id(), MESSAGES_PER_READ));
        }
        count(&self.calls.reads);
        let mut buffer = [0u8; abi::MESSAGE_BYTES * MESSAGES_PER_READ];
        match nix::unistd::read(self.uffd_fd(), &mut buffer) {
            Ok(bytes) => {
                let messages = buffer[..bytes].chunks_exact(abi::MESSAGE_BYTES).filter_map(parse);
                into.extend(messages.filter(|message| match *message {
                    Message::Moved { from, to, .. } => !self.is_own_move(from, to),
                    Message::Fault(_) | Message::Posted(..) => true,
                }));
                Ok(())
            }
            // The waiter has left, or a signal came: nothing to read is normal.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn kick(&self) {
        // A full counter has the reader awake already.
        let _ = self.kick.write(1);
    }

    fn watch(&self, at: Addr, bytes: u64, resolver: Arc<dyn Resolver>) {
        if let (true, Some(kick)) = (self.direct, self.this.upgrade()) {
            trap::watch(at, &trap::Watched { bytes, owner: self.id(), kick, resolver });
        }
    }

    fn unwatch(&self, at: Addr) {
        if self.direct {
            trap::unwatch(at);
        }
    }

    fn answer(&self, ticket: Ticket, verdict: Verdict) {
        trap::answer(ticket, verdict);
    }

    fn dismiss(&self) {
        trap::dismiss(self.id());
    }

    fn calls(&self) -> Calls {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Calls {
            polls: get(&self.calls.polls),
            reads: get(&self.calls.reads),
            installs: get(&self.calls.installs),
            wakes: get(&self.calls.wakes),
            zaps: get(&self.calls.zaps),
            repoints: get(&self.calls.repoints),
        }
    }
}

impl trap::Kick for Userfault {
    fn kick(&self) {
        PageTable::kick(self);
    }
}

impl Userfault {
    /// No other table has it while this one lives.
    fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn uffd_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.uffd`, which the borrow of self outlasts.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.fd()) }
    }
}
