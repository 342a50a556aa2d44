//! The address ranges that a userfaultfd watches: how they are made, and pointed elsewhere.

use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MRemapFlags, MapFlags, ProtFlags, mmap, mmap_anonymous, mremap, munmap};
use userfaultfd::{RegisterMode, Uffd};

use super::open::errno_of;
use super::{Userfault, count};
use crate::sync::back_off;
use crate::sys::memory::DeviceMemory;
use crate::sys::{Outcome, PageTable, Present, Rights, Span};
use crate::units::Addr;

/// How often, and how long apart, it is asked whether a range is registered: about a second.
const ASK_TRIES: u32 = 10_000;
const ASK_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);
/// How much of a range is asked about at once that is registered for missing faults alone.
const ASK_BYTES: u64 = 64 << 20;

/// What a range is, and so how its faults come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Anonymous memory.
    Zeros,
    /// The device, and who installs what is present there.
    Device(Present),
}

/// How a range is watched, and what it allows. A copy has both of what it is a copy of.
type Kind = (Watched, Rights);

/// A whole device, mapped and registered, of which parts are duplicated to where they are wanted:
/// `mremap` with an old size of zero copies a shared mapping together with its registration.
pub(super) struct Template {
    /// The device's address, while it lives.
    device: usize,
    kind: Kind,
    pub(super) at: Addr,
    pub(super) bytes: u64,
}

impl Userfault {
    pub(super) fn register(&self, at: Addr, bytes: u64, (watched, rights): Kind) -> Result<(), Errno> {
        let mode = match watched {
            Watched::Zeros | Watched::Device(Present::Installed) => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT,
            Watched::Device(Present::Told) => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT | RegisterMode::MINOR,
            // With any other the kernel would install page by page.
            Watched::Device(Present::Open) => RegisterMode::MISSING,
        };
        let uffd = if rights.unnoticed { &self.second.get().ok_or(Errno::EBADF)?.uffd } else { &self.uffd };
        // All modes at once: registering again with fewer would drop the others.
        uffd.register_with_mode(at.0 as *mut _, bytes as usize, mode).map(drop).map_err(|error| errno_of(&error))
    }

    /// Whether the whole range is registered with one of ours. Where it is registered with another userfaultfd its pages may be
    /// protected afterwards, which its handler has to expect of any of them: no byte of anybody's is different.
    pub(super) fn is_ours(&self, span: Span<'_>) -> Result<bool, Errno> {
        Ok(self.is_registered(span)? && self.is_registered_with_us(span.at(), span.bytes()))
    }

    /// Whether the whole range is registered, be it with another userfaultfd: the kernel does not look whose it is. It is protected by
    /// that, or armed where nothing is.
    fn is_registered(&self, span: Span<'_>) -> Result<bool, Errno> {
        match until_answered(|| self.protect(span))? {
            Outcome::Installed | Outcome::AlreadyPresent => Ok(true),
            // Not for write-protect faults.
            Outcome::Gone | Outcome::Retry => self.is_registered_for_missing_faults(span.at(), span.bytes()),
        }
    }

    /// Has a marker in every page of a range in which there is nothing.
    fn arm(&self, span: Span<'_>) -> Result<(), Errno> {
        match until_answered(|| self.protect(span))? {
            Outcome::Installed | Outcome::AlreadyPresent => Ok(()),
            Outcome::Gone | Outcome::Retry => Err(Errno::ENOENT),
        }
    }

    /// Whether the whole range is registered for missing faults at least. It is asked to copy something there that
    /// cannot be read: the kernel looks for the range first, and then for the bytes, and nothing is done.
    fn is_registered_for_missing_faults(&self, at: Addr, bytes: u64) -> Result<bool, Errno> {
        // In pieces: where nothing can be read from there must be as many addresses, up to the end of all.
        for done in (0..bytes).step_by(ASK_BYTES as usize) {
            match until_answered(|| self.copy_from_nowhere(at.plus(done), (bytes - done).min(ASK_BYTES))) {
                Err(Errno::EFAULT) => {}
                Ok(Outcome::Gone | Outcome::Retry) => return Ok(false),
                Ok(Outcome::Installed | Outcome::AlreadyPresent) => return Err(Errno::EIO),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// Whether a range that is registered is so with ours, one or the other. To register it again asks for no mode that it does
    /// not have, and changes nothing; the kernel refuses (EBUSY) where another userfaultfd has any of it. So a range of which
    /// each of ours has a part is asked about in halves.
    fn is_registered_with_us(&self, at: Addr, bytes: u64) -> bool {
        let again =
            |uffd: &Uffd| uffd.register_with_mode(at.0 as *mut _, bytes as usize, RegisterMode::MISSING).is_ok();
        let Some(second) = self.second.get() else { return again(&self.uffd) };
        if again(&self.uffd) || again(&second.uffd) {
            return true;
        }
        let pages = bytes / self.base_page();
        let half = pages / 2 * self.base_page();
        pages > 1 && self.is_registered_with_us(at, half) && self.is_registered_with_us(at.plus(half), bytes - half)
    }

    /// A mapping of the device, registered and kept out of children, wherever there is room.
    fn map_device(&self, bytes: u64, device: &DeviceMemory, offset: u64, kind: Kind) -> Result<Addr, Errno> {
        self.map_device_like(Addr(0), bytes, device, offset, kind)
    }

    /// The same, at an address that lies within a table of the page table's lowest level as `like` does: what is moved from one
    /// to the other is moved table by table, and not entry by entry.
    fn map_device_like(
        &self,
        like: Addr,
        bytes: u64,
        device: &DeviceMemory,
        offset: u64,
        kind: Kind,
    ) -> Result<Addr, Errno> {
        let fd = device.fd().ok_or(Errno::ENODEV)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        let table = self.base_page() * (self.base_page() / 8);
        // A hint: without it the kernel moves entry by entry.
        let is_moved_whole = kind.0 == Watched::Device(Present::Installed) && bytes >= table;
        let hint = if is_moved_whole { self.room_like(like, bytes, table).unwrap_or(None) } else { None };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours: the hint is one, and no more.
        let at = unsafe { mmap(hint, length(bytes)?, ProtFlags::PROT_NONE, flags, fd, offset as i64) }?;
        // Before it is accessible. A core dump of all of a template could be as long as the device: what is duplicated of it
        // inherits the flag, and is dumped by choice.
        // SAFETY: has just been mapped here, and changes nothing but that flag.
        let _ = unsafe { madvise(addr(at), bytes, libc::MADV_DONTDUMP) };
        // SAFETY: has just been mapped here; nobody else has its address.
        unsafe { self.prepare(addr(at), bytes, kind) }
    }

    /// An address that is free at this moment, as far beyond a multiple of `table` as `like`.
    fn room_like(&self, like: Addr, bytes: u64, table: u64) -> Result<Option<std::num::NonZeroUsize>, Errno> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        let total = bytes.checked_add(table).ok_or(Errno::ENOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let start = addr(unsafe { mmap_anonymous(None, length(total)?, ProtFlags::PROT_NONE, flags) }?);
        // SAFETY: has just been mapped here, and nobody has its address.
        unsafe { self.give_back(start, total) };
        let wanted = like.0 as u64 % table;
        let at = start.plus((wanted + table - start.0 as u64 % table) % table);
        Ok(std::num::NonZeroUsize::new(at.0))
    }

    /// Puts a mapping of the device in the place of a part of a range that nobody uses yet.
    pub(super) fn show_device(
        &self,
        span: Span<'_>,
        device: &DeviceMemory,
        offset: u64,
        kind: Kind,
    ) -> Result<(), Errno> {
        let fd = device.fd().ok_or(Errno::ENODEV)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        let place = std::num::NonZeroUsize::new(span.at().0);
        let (at, bytes) = (span.at(), span.bytes());
        // SAFETY: `Span`. What is replaced is a reservation, in which there is nothing.
        unsafe { mmap(place, length(bytes)?, ProtFlags::PROT_NONE, flags, fd, offset as i64) }?;
        if !kind.1.dumped {
            // SAFETY: likewise. It changes a flag, and no byte.
            let _ = unsafe { madvise(at, bytes, libc::MADV_DONTDUMP) };
        }
        // SAFETY: a mapping's, and nobody has its address yet (`PageTable::show`).
        unsafe { self.make_ready(at, bytes, kind) }
    }

    /// Anonymous memory, registered and kept out of children: wherever there is room, or, at `fixed`, only if
    /// nothing is mapped there (EEXIST).
    pub(super) fn map_zeros(&self, bytes: u64, align: u64, fixed: Option<Addr>, rights: Rights) -> Result<Addr, Errno> {
        let mut flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        if fixed.is_some() {
            flags |= MapFlags::MAP_FIXED_NOREPLACE;
        }
        let slack = if fixed.is_some() { 0 } else { align.saturating_sub(self.base_page()) };
        let total = bytes.checked_add(slack).ok_or(Errno::ENOMEM)?;
        let hint = fixed.and_then(|at| std::num::NonZeroUsize::new(at.0));
        // SAFETY: a new mapping at an address of the kernel's choice, or, by MAP_FIXED_NOREPLACE, one that replaces nothing.
        let start = addr(unsafe { mmap_anonymous(hint, length(total)?, ProtFlags::PROT_NONE, flags) }?);
        let at = if fixed.is_some() { start } else { start.plus(align - 1).align_down(align) };
        let head = at.since(start);
        // SAFETY: the part in front of what has just been mapped here and is wanted: nobody else has its address.
        unsafe { self.give_back(start, head) };
        // SAFETY: likewise, the part behind.
        unsafe { self.give_back(at.plus(bytes), slack - head) };
        if !rights.dumped {
            // SAFETY: likewise, the rest, and changes nothing but that flag.
            let _ = unsafe { madvise(at, bytes, libc::MADV_DONTDUMP) };
        }
        // SAFETY: likewise.
        unsafe { self.prepare(at, bytes, (Watched::Zeros, rights)) }
    }

    /// Makes a new mapping ready: not inherited, registered, and accessible last.
    ///
    /// After mlockall(MCL_FUTURE) the kernel locks what is mapped and fills it at once, before it could be
    /// registered: hence PROT_NONE, which it does not fill, and munlock, without which mremap would fill
    /// the range from inside the worker that serves its faults.
    ///
    /// # Safety
    /// The range has just been mapped by the caller, and nobody else has its address.
    unsafe fn prepare(&self, at: Addr, bytes: u64, kind: Kind) -> Result<Addr, Errno> {
        // SAFETY: the caller's promise.
        match unsafe { self.make_ready(at, bytes, kind) } {
            Ok(()) => Ok(at),
            Err(errno) => {
                // SAFETY: likewise, and the caller does not get it.
                unsafe { self.give_back(at, bytes) };
                Err(errno)
            }
        }
    }

    /// # Safety
    /// As for [`Userfault::prepare`].
    unsafe fn make_ready(&self, at: Addr, bytes: u64, kind: Kind) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { munlock(at, bytes) }
            // SAFETY: likewise; changes a flag.
            .and_then(|()| unsafe { madvise(at, bytes, libc::MADV_DONTFORK) })
            .and_then(|()| self.register(at, bytes, kind))
            // SAFETY: likewise.
            .and_then(|()| unsafe { make_accessible(at, bytes, kind.1) })
    }

    /// Unmaps a range of ours.
    ///
    /// # Safety
    /// It was mapped here, and nobody uses it any more, nor will.
    pub(super) unsafe fn give_back(&self, at: Addr, bytes: u64) {
        if bytes == 0 {
            return;
        }
        // SAFETY: the caller's promise.
        let _ = unsafe { munmap(pointer(at), bytes as usize) };
    }

    /// Moves what is at `from` over what is mapped at `to`. `old_bytes` of zero duplicates instead.
    /// Waits until the event is read.
    ///
    /// # Safety
    /// `from` was mapped here, as long as `to`, and is nobody else's, or it is duplicated.
    pub(super) unsafe fn move_over(&self, from: Addr, old_bytes: u64, to: Span<'_>) -> Result<(), Errno> {
        let (to, bytes) = (to.at(), to.bytes());
        self.moves.lock().push_back((from, to));
        let flags = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: the caller's promise; and `to` is a mapping's (`Span`), whose accesses stay served.
        let moved = unsafe { mremap(pointer(from), old_bytes as usize, bytes as usize, flags, Some(pointer(to))) };
        if moved.is_err() {
            // No event comes of it.
            self.is_own_move(from, to);
        }
        moved.map(drop)
    }

    /// Whether a move is one of ours; it is forgotten.
    pub(super) fn is_own_move(&self, from: Addr, to: Addr) -> bool {
        let mut moves = self.moves.lock();
        let found = moves.iter().position(|own| *own == (from, to));
        found.is_some_and(|index| moves.remove(index).is_some())
    }

    /// Points a range at the device.
    pub(super) fn point(&self, span: Span<'_>, device: &DeviceMemory, offset: u64, kind: Kind) -> Result<(), Errno> {
        count(&self.calls.repoints);
        if !device.is_huge() {
            let template = self.template(device, kind)?;
            // After mlockall the kernel would fill the range from inside this very thread.
            // SAFETY: a template, which is given back when its device or this struct is dropped: both are borrowed.
            unsafe { munlock(template, device.len_bytes()) }?;
            // SAFETY: likewise, duplicated.
            unsafe { self.move_over(template.plus(offset), 0, span) }?;
            dump_by_choice(span, kind);
            return Ok(());
        }
        // The kernel does not duplicate hugetlb mappings.
        self.stage(span, device, offset, kind)
    }

    /// Points a range at the device by a new mapping, made as it is to be and then moved over what is there: no moment is unwatched.
    pub(super) fn stage(&self, span: Span<'_>, device: &DeviceMemory, offset: u64, kind: Kind) -> Result<(), Errno> {
        let stage = self.map_device_like(span.at(), span.bytes(), device, offset, kind)?;
        if kind.0 == Watched::Device(Present::Installed) {
            // SAFETY: has just been mapped here; nobody else has its address.
            let armed = self.arm(unsafe { Span::of(stage, span.bytes()) });
            if let Err(errno) = armed {
                // SAFETY: likewise.
                unsafe { self.give_back(stage, span.bytes()) };
                return Err(errno);
            }
        }
        // SAFETY: has just been mapped here, and nobody else has its address.
        let moved = unsafe { self.move_over(stage, span.bytes(), span) };
        // SAFETY: likewise: it was not moved.
        moved.inspect_err(|_| unsafe { self.give_back(stage, span.bytes()) })?;
        dump_by_choice(span, kind);
        Ok(())
    }

    /// The registered mapping of the whole device, made when it is first wanted.
    fn template(&self, device: &DeviceMemory, kind: Kind) -> Result<Addr, Errno> {
        let key = std::ptr::from_ref(device) as usize;
        let mut templates = self.templates.lock();
        if let Some(template) = templates.iter().find(|template| (template.device, template.kind) == (key, kind)) {
            return Ok(template.at);
        }
        let bytes = device.len_bytes();
        let at = self.map_device(bytes, device, 0, kind)?;
        templates.push(Template { device: key, kind, at, bytes });
        let this = self.this.clone();
        device.when_gone(Box::new(move || {
            if let Some(this) = this.upgrade() {
                this.forget_template(key);
            }
        }));
        Ok(at)
    }

    /// Gives up the templates of a device that is gone, and with them the device's memory.
    fn forget_template(&self, device: usize) {
        let gone: Vec<Template> = self.templates.lock().extract_if(.., |template| template.device == device).collect();
        // SAFETY: mapped by `map_device`, and taken out of the list, which alone had it: a re-point that duplicates from it borrows the
        // device, and the device is gone.
        gone.iter().for_each(|template| unsafe { self.give_back(template.at, template.bytes) });
    }
}

/// What the kernel says to an ioctl in the end. Waits, for about a second, where it refuses for the moment: the event of somebody's mremap is
/// unread, or its thread has not run again.
fn until_answered(ask: impl Fn() -> Result<Outcome, Errno>) -> Result<Outcome, Errno> {
    for _ in 0..ASK_TRIES {
        match ask()? {
            Outcome::Retry => back_off(ASK_BACK_OFF),
            answer => return Ok(answer),
        }
    }
    Err(Errno::EAGAIN)
}

pub(super) fn addr(pointer: NonNull<libc::c_void>) -> Addr {
    Addr(pointer.as_ptr() as usize)
}

pub(super) fn pointer(at: Addr) -> NonNull<libc::c_void> {
    NonNull::new(at.0 as *mut libc::c_void).expect("address 0 is never mapped here")
}

pub(super) fn length(bytes: u64) -> Result<std::num::NonZeroUsize, Errno> {
    usize::try_from(bytes).ok().and_then(std::num::NonZeroUsize::new).ok_or(Errno::EINVAL)
}

/// # Safety
/// The range was mapped here: a lock that somebody else has asked for is his.
unsafe fn munlock(at: Addr, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise. It changes flags, and no byte.
    unsafe { nix::sys::mman::munlock(pointer(at), bytes as usize) }
}

/// Has a part of the device that is in its place in core dumps, if that is wanted. Where the kernel refuses it is in none, and
/// works as well.
fn dump_by_choice(span: Span<'_>, (_, rights): Kind) {
    if rights.dumped {
        // SAFETY: `Span`. It changes a flag, and no byte.
        let _ = unsafe { madvise(span.at(), span.bytes(), libc::MADV_DODUMP) };
    }
}

/// # Safety
/// The range has just been mapped by the caller, and nobody else has its address.
unsafe fn make_accessible(at: Addr, bytes: u64, rights: Rights) -> Result<(), Errno> {
    let prot = match rights.read_only {
        true => ProtFlags::PROT_READ,
        false => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
    };
    // SAFETY: the caller's promise.
    unsafe { nix::sys::mman::mprotect(pointer(at), bytes as usize, prot) }
}

/// Makes every access to a range a SIGSEGV. The range stays mapped.
///
/// # Safety
/// The range is a mapping's ([`Span`]).
pub(super) unsafe fn make_inaccessible(at: Addr, bytes: u64) -> Result<(), Errno> {
    // SAFETY: the caller's promise: no Rust reference points into it, and accesses of the application are to fail from now on.
    unsafe { nix::sys::mman::mprotect(pointer(at), bytes as usize, ProtFlags::PROT_NONE) }
}

/// # Safety
/// The range has just been mapped by the caller, or is a mapping's ([`Span`]). The advice is one that changes flags, or drops entries:
/// the bytes of such a range live in the device, or are zeros, and no Rust reference points into it.
pub(super) unsafe fn madvise(at: Addr, bytes: u64, advice: i32) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    Errno::result(unsafe { libc::madvise(at.0 as *mut _, bytes as usize, advice) }).map(drop)
}
