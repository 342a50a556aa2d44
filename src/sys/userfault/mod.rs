//! The kernel's page table, through one userfaultfd.
//!
//! One function per ioctl ([`ioctls`]), each turning the kernel's answer into an [`Outcome`] in one place.

mod asynchronous;
mod ioctls;
mod open;
mod ranges;
mod spare;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use userfaultfd::Uffd;

use super::abi;
use super::asynchronous::Asynchronous;
use super::memory::{DeviceMemory, base_page_bytes};
use super::{
    Access, Calls, Delivery, FaultKind, Filled, Last, MESSAGES_PER_READ, Mended, Message, Outcome, PageTable, Present,
    Protection, RawFault, Resolver, Revoked, Rights, Span, Ticket, Tid, Verdict, access, passing, process, trap,
};
use crate::error::{Error, Result};
use crate::sync::plain::OnceLock;
use crate::sync::{Arc, Ordering, ProcessMutex as Mutex, Tally, Weak};
use crate::units::Addr;
use asynchronous::{FIRST, SECOND, Second};
use ioctls::{continue_mode, copy_mode};
use open::{check_features, supported_features};
use ranges::{Template, Watched, length, madvise};

/// One userfaultfd, and for asynchronous mappings a second one.
pub(crate) struct Userfault {
    uffd: Uffd,
    second: OnceLock<Second>,
    kick: EventFd,
    /// The features asked for.
    features: u64,
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
    /// See [`PageTable::goings`].
    goings: Tally,
    this: Weak<Userfault>,
}

#[derive(Default)]
struct Counters {
    polls: Tally,
    reads: Tally,
    installs: Tally,
    wakes: Tally,
    zaps: Tally,
    repoints: Tally,
}

fn count(counter: &Tally) {
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
        let features = needed | more | (supported & huge);
        let (uffd, user_mode_only) = open::open(features, need_kernel_faults)?;
        spare::keep();
        ioctls::have_many_zeros();
        let kick = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system("eventfd", errno))?;
        let grave = memfd_create("daxpager-grave", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| Error::system("memfd_create", errno))?;
        Ok(Arc::new_cyclic(|this| Self {
            uffd,
            second: OnceLock::new(),
            kick,
            features,
            supported,
            user_mode_only,
            direct: more & abi::SIGBUS.bit != 0,
            grave,
            templates: Mutex::new(Vec::new()),
            moves: Mutex::new(VecDeque::new()),
            calls: Counters::default(),
            goings: Tally::new(0),
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
            // SAFETY: mapped by `map_device`, and in this list alone. A re-point that duplicates from it would borrow self.
            unsafe { self.give_back(template.at, template.bytes) };
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

    fn asynchronous(self: Arc<Self>) -> Result<Arc<dyn PageTable>> {
        self.open_second()?;
        Ok(Arc::new(Asynchronous(self)))
    }

    fn has_real_addresses(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno> {
        self.map_zeros(bytes, align, None, rights)
    }

    fn point_at_device(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        self.point(span, device, offset, (Watched::Device(Present::Told), rights))
    }

    fn show(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        self.show_device(span, device, offset, (Watched::Device(present), rights))
    }

    fn point_in_place(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        count(&self.calls.repoints);
        self.stage(span, device, offset, (Watched::Device(present), rights))
    }

    fn page_goes(&self, _: Span<'_>) -> u64 {
        self.goings.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn goings(&self) -> u64 {
        self.goings.load(Ordering::Relaxed)
    }

    fn point_at_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        count(&self.calls.repoints);
        let stage = self.map_zeros(span.bytes(), self.base_page(), None, rights)?;
        // SAFETY: has just been mapped here, and nobody else has its address.
        let moved = unsafe { self.move_over(stage, span.bytes(), span) };
        // SAFETY: likewise: it was not moved.
        moved.inspect_err(|_| unsafe { self.give_back(stage, span.bytes()) })
    }

    fn join_to_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        spare::lend(|| self.point_at_zeros(span, rights))
    }

    fn mend(&self, span: Span<'_>, rights: Rights) -> Result<Mended, Errno> {
        // Asked first: where no address range is left, the kernel refuses before it looks whether the place is free.
        if self.is_ours(span)? {
            return Ok(Mended::Untouched);
        }
        match spare::lend(|| self.map_zeros(span.bytes(), self.base_page(), Some(span.at()), rights)) {
            Ok(_) => Ok(Mended::Zeros),
            Err(_) => Ok(Mended::Lost),
        }
    }

    fn revoke(&self, span: Span<'_>) -> Revoked {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        let (at, bytes) = (span.at(), span.bytes());
        let Ok(len) = length(bytes) else { return Revoked::Sigbus };
        let place = std::num::NonZeroUsize::new(at.0);
        // SAFETY: `Span`.
        let dead = spare::lend(|| unsafe { mmap(place, len, prot, flags, self.grave.as_fd(), 0) });
        let revoked = match dead {
            Ok(_) => {
                // Nothing to see.
                // SAFETY: likewise. It changes a flag, and no byte.
                let _ = unsafe { ranges::madvise(at, bytes, libc::MADV_DONTDUMP) };
                Revoked::Sigbus
            }
            // No room for the mapping, or no memory may be locked: SIGSEGV is still better than zeros that were never there.
            Err(_) => {
                access::expect_inaccessible();
                // SAFETY: likewise.
                match spare::lend(|| unsafe { ranges::make_inaccessible(at, bytes) }) {
                    Ok(()) => Revoked::Segv,
                    Err(_) => Revoked::Refused,
                }
            }
        };
        self.wake(at, bytes);
        revoked
    }

    fn revoke_moved(&self, at: Addr, bytes: u64) -> Option<Revoked> {
        // SAFETY: nothing is done to it before it is known to be registered here, but that it is asked whether it is: what is neither
        // is let alone by that (`Userfault::is_ours`). And what is registered here is a part of a mapping that the application has
        // moved; nobody but its mremap has given these addresses to anybody.
        let span = unsafe { Span::of(at, bytes) };
        matches!(self.is_ours(span), Ok(true)).then(|| self.revoke(span))
    }

    fn unmap(&self, last: Last<'_>) {
        let (at, bytes) = last.range();
        // SAFETY: nobody else has the addresses, nor will (`Last`).
        unsafe { self.give_back(at, bytes) };
        // munmap wakes nobody.
        self.wake(at, bytes);
    }

    fn install(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.continue_(self.fd(), span, continue_mode(protection))
    }

    fn install_run(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.continue_run(self.fd(), span, continue_mode(protection))
    }

    fn install_zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.copy_zeros(self.fd(), span, copy_mode(protection))
    }

    fn make_run_present(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.copy_zeros_run(self.fd(), span, copy_mode(protection))
    }

    fn be_told(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.register(span.at(), span.bytes(), (Watched::Device(Present::Told), rights))
    }

    fn poison(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.poison_with(span, 0)
    }

    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, span: Span<'_>, entry: super::inject::Entry) -> Result<Outcome, Errno> {
        use super::inject::Entry;
        let quietly = abi::MODE_DONTWAKE;
        match entry {
            Entry::Page(protection) => self.continue_(self.fd(), span, continue_mode(protection) | quietly),
            Entry::Zeros => self.copy_zeros(self.fd(), span, abi::COPY_MODE_WP | quietly),
            Entry::Poison => self.poison_with(span, quietly),
        }
    }

    fn refuse_own(&self, at: Addr) -> bool {
        // Under the lock: the range stays ours.
        let templates = self.templates.lock();
        let own = templates.iter().any(|template| template.at <= at && at.since(template.at) < template.bytes);
        if own {
            let (at, bytes) = (at.align_down(self.base_page()), self.base_page());
            // SAFETY: a part of a template, which is given back when it is out of the list: its lock is held.
            let span = unsafe { Span::of(at, bytes) };
            if !matches!(self.poison(span), Ok(Outcome::Installed)) {
                self.wake(at, bytes);
            }
        }
        own
    }

    fn unprotect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.write_protect(span, 0)
    }

    fn clear_markers(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.write_protect(span, abi::WRITEPROTECT_MODE_DONTWAKE)
    }

    fn protect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.write_protect(span, abi::WRITEPROTECT_MODE_WP)
    }

    fn zap(&self, span: Span<'_>) -> Result<(), Errno> {
        count(&self.calls.zaps);
        // SAFETY: `Span`. It drops entries.
        match unsafe { madvise(span.at(), span.bytes(), abi::MADV_DONTNEED_LOCKED) } {
            // The application has unmapped a part; the kernel has done the rest.
            Err(Errno::ENOMEM) => Ok(()),
            other => other,
        }
    }

    fn wake(&self, at: Addr, bytes: u64) {
        count(&self.calls.wakes);
        // Fails only for a misaligned or empty range.
        let _ = self.uffd.wake(at.0 as *mut _, bytes as usize);
        // What the address points at now says nothing about where a thread has fallen asleep.
        if let Some(second) = self.second.get() {
            let _ = second.uffd.wake(at.0 as *mut _, bytes as usize);
        }
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        process::raise_sigbus(tid, at)
    }

    fn begin_passing(&self, at: Addr, bytes: u64) {
        passing::begin(at, bytes);
    }

    fn end_passing(&self, at: Addr, bytes: u64) {
        passing::end(at, bytes);
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
        let second = self.second.get();
        let for_reading = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let third = second.map_or(self.kick.as_fd(), Second::fd);
        let mut fds = [for_reading(self.uffd_fd()), for_reading(self.kick.as_fd()), for_reading(third)];
        let fds = &mut fds[..if second.is_some() { 3 } else { 2 }];
        // EINTR is a wake-up like any other: the caller reads and waits again.
        let answer = poll(fds, PollTimeout::NONE);
        let is_ready = |index: usize| answer.is_ok() && fds[index].revents().is_some_and(|events| !events.is_empty());
        if is_ready(1) {
            let _ = self.kick.read();
        }
        if let Some(second) = second {
            second.set_ready(if is_ready(0) { FIRST } else { 0 } | if is_ready(2) { SECOND } else { 0 });
        }
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        if self.direct {
            into.extend(trap::take_posted(self.id(), MESSAGES_PER_READ));
        }
        match self.second.get() {
            None => self.read_from(self.uffd_fd(), MESSAGES_PER_READ, into),
            Some(second) => self.read_either(second, into),
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
        let get = |counter: &Tally| counter.load(Ordering::Relaxed);
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

    /// Appends at most `most` messages of one of the userfaultfds.
    fn read_from(&self, fd: BorrowedFd<'_>, most: usize, into: &mut Vec<Message>) -> Result<(), Errno> {
        count(&self.calls.reads);
        let mut buffer = [0u8; abi::MESSAGE_BYTES * MESSAGES_PER_READ];
        match nix::unistd::read(fd, &mut buffer[..abi::MESSAGE_BYTES * most]) {
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

    fn uffd_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.uffd`, which the borrow of self outlasts.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }
}
