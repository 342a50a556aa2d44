//! Accesses through mappings: by instruction, by system call, and without a fault.

use std::io::{IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use daxpager::{Allocation, Error};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use super::{Hand, Watched, word_at};
use crate::op::Op;
use crate::oracle::{Access, trace::End};
use crate::word::{SLOT_OFFSETS, SLOTS, WORD};
use crate::world::Mapped;

/// Mappings that a thread remembers after they may have gone.
const SEEN: usize = 16;

/// What became of an access to several words.
enum Went {
    /// All of it.
    Through,
    /// Only so many bytes; what lies behind may have been stored all the same.
    Partly(usize),
    /// An error before anything was done for certain.
    Failed(Error),
}

impl Hand {
    /// One access of a kind and to a place that are drawn.
    pub(super) fn access(&mut self) {
        let weights = self.world.clone();
        let op = self.draw(&weights.mix.accesses);
        if op == Op::Raw {
            return self.raw();
        }
        let Some((mapped, page)) = self.place() else { return };
        let slot = self.rng.usize(0..SLOTS);
        match op {
            Op::Load => drop(self.load(&mapped, page, slot)),
            Op::Store => self.store(&mapped, page, slot),
            Op::Exchange => self.exchange(&mapped, page, slot),
            Op::Populate => self.populate(&mapped, page),
            Op::Advise => self.advise(&mapped, page),
            Op::CopyOut | Op::SysOut | Op::MapRead => self.read_many(op, &mapped, page, slot),
            _ => self.write_many(op, &mapped, page, slot),
        }
    }

    /// A mapping, and a page of its file.
    fn place(&mut self) -> Option<(Arc<Mapped>, u64)> {
        let place = self.rng.usize(0..self.world.mappings.len());
        let mapped = self.world.mapped(place)?;
        let hot = self.world.mix.hot_pages;
        let all = mapped.first_page..mapped.first_page + mapped.pages;
        let page = match self.rng.u32(0..4) > 0 && all.start < hot {
            true => self.rng.u64(all.start..hot.min(all.end)),
            false => self.rng.u64(all),
        };
        if self.seen.len() < SEEN {
            self.seen.push((Arc::downgrade(&mapped), page));
        } else {
            let at = self.rng.usize(0..SEEN);
            self.seen[at] = (Arc::downgrade(&mapped), page);
        }
        self.oracle.is_judged(page).then_some((mapped, page))
    }

    pub(super) fn access_to(&self, op: Op, mapped: &Mapped, page: u64, slot: usize) -> Access {
        let offset = self.offset(mapped, page) + SLOT_OFFSETS[slot];
        let address = Some(mapped.mapping.as_ptr() as u64 + offset);
        Access { op, thread: self.id, file: mapped.file, page, address }
    }

    /// The same access, at another word.
    pub(super) fn moved(&self, access: &Access, mapped: &Mapped, page: u64, slot: usize) -> Access {
        self.access_to(access.op, mapped, page, slot)
    }

    pub(super) fn offset(&self, mapped: &Mapped, page: u64) -> u64 {
        (page - mapped.first_page) * self.page_bytes()
    }

    /// An access ended in an error, which may be right.
    pub(super) fn refused(&self, access: &Access, error: &Error, mapped: &Mapped, span: (u64, u64), stores: bool) {
        let access = match error {
            Error::Bus(bus) => {
                let page = mapped.first_page + bus.offset / self.page_bytes();
                Access { page, address: Some(bus.addr as u64), ..*access }
            }
            Error::PastEnd { page, .. } => self.moved(access, mapped, *page, 0),
            // From a system call: where the file ends, EFAULT.
            Error::System { errno, .. } if *errno == Errno::EFAULT as i32 => *access,
            other => return self.failed(access, other),
        };
        // On a full volume a page is out of reach for a moment where a signal does not end the store that finds no block: of a system call, of a
        // thread that looks awake, or that nobody can be sure about. A load meets that poison only where it can't be repeated: in a system call that is not the library's. And where threads
        // resolve their own faults nothing is poisoned: it is the store alone that is refused.
        let repeats = cfg!(target_arch = "x86_64") && access.op != Op::Raw;
        let poisoned = !mapped.manner.is_direct() && !repeats;
        let mix = &self.world.mix;
        let takes_pages = mix.allocation == Allocation::Windows && mix.manners.let_stores_through();
        self.oracle.absent(&access, span, stores || poisoned || takes_pages);
    }

    pub(super) fn load(&mut self, mapped: &Mapped, page: u64, slot: usize) -> Option<u64> {
        let access = self.access_to(Op::Load, mapped, page, slot);
        let begin = self.begin(&access);
        let loaded = mapped.mapping.load(self.offset(mapped, page) + SLOT_OFFSETS[slot]);
        let span = self.end(&access, begin, loaded.is_err());
        self.judge_word(&access, mapped, slot, &loaded, span);
        self.leave();
        loaded.ok()
    }

    fn judge_word(&self, access: &Access, mapped: &Mapped, slot: usize, loaded: &Result<u64, Error>, span: (u64, u64)) {
        match loaded {
            Ok(value) => {
                self.note(access, span, Some(slot), Some(*value), End::Done);
                self.oracle.present(access, span);
                self.oracle.judge(access, slot, *value, span);
            }
            Err(error) => {
                self.note(access, span, Some(slot), None, End::Refused);
                self.refused(access, error, mapped, span, false);
            }
        }
    }

    fn store(&mut self, mapped: &Mapped, page: u64, slot: usize) {
        let access = self.access_to(Op::Store, mapped, page, slot);
        let value = self.word(mapped.file, page, slot);
        mapped.dirty.attempt(page..page + 1);
        let begin = self.begin(&access);
        self.oracle.store_begins(mapped.file, page, slot, value, begin, false);
        let stored = mapped.mapping.store(self.offset(mapped, page) + SLOT_OFFSETS[slot], value);
        let span = self.end(&access, begin, stored.is_err());
        mapped.dirty.attempted(page..page + 1, span.1);
        self.stored(&access, mapped, slot, value, span, stored.as_ref().err());
        self.leave();
    }

    /// A store of one word has ended. One that faulted for good has not been executed.
    fn stored(
        &self,
        access: &Access,
        mapped: &Mapped,
        slot: usize,
        value: u64,
        span: (u64, u64),
        error: Option<&Error>,
    ) {
        let done = error.is_none().then_some(true);
        self.oracle.store_ends(access.file, access.page, slot, span.0, span.1, done);
        let end = if error.is_none() { End::Done } else { End::Refused };
        self.note(access, span, Some(slot), Some(value), end);
        match error {
            None => {
                mapped.dirty.stored(&self.oracle, access, span);
                self.oracle.present(access, span);
            }
            Some(error) => self.refused(access, error, mapped, span, true),
        }
    }

    fn exchange(&mut self, mapped: &Mapped, page: u64, slot: usize) {
        let Some(expected) = self.load(mapped, page, slot) else { return };
        let access = self.access_to(Op::Exchange, mapped, page, slot);
        let value = self.word(mapped.file, page, slot);
        // One that finds something else is a store all the same, as far as the CPU is concerned.
        mapped.dirty.attempt(page..page + 1);
        let begin = self.begin(&access);
        self.oracle.store_begins(mapped.file, page, slot, value, begin, false);
        let found = mapped.mapping.compare_exchange(self.offset(mapped, page) + SLOT_OFFSETS[slot], expected, value);
        let span = self.end(&access, begin, found.is_err());
        mapped.dirty.attempted(page..page + 1, span.1);
        match found {
            Ok(found) if found == expected => {
                self.stored(&access, mapped, slot, value, span, None);
                self.oracle.judge(&access, slot, found, span);
            }
            Ok(_) => {
                self.oracle.store_ends(access.file, page, slot, span.0, span.1, None);
                self.judge_word(&access, mapped, slot, &found, span);
            }
            Err(error) => self.stored(&access, mapped, slot, value, span, Some(&error)),
        }
        self.leave();
    }

    /// Some bytes from one watched word to another, on the same page or the next. In bytes of the file.
    fn stretch(&mut self, mapped: &Mapped, page: u64, slot: usize) -> Range<u64> {
        let size = self.page_bytes();
        let start = page * size + SLOT_OFFSETS[slot];
        let next = page + 1 < mapped.first_page + mapped.pages && self.rng.bool();
        let end = match next {
            true => (page + 1) * size + SLOT_OFFSETS[self.rng.usize(0..SLOTS)],
            false => page * size + SLOT_OFFSETS[self.rng.usize(slot..SLOTS)],
        };
        start..end + WORD
    }

    fn read_many(&mut self, op: Op, mapped: &Mapped, page: u64, slot: usize) {
        let bytes = self.stretch(mapped, page, slot);
        let offset = bytes.start - mapped.first_page * self.page_bytes();
        let mut buffer = vec![0xee; (bytes.end - bytes.start) as usize];
        let access = self.access_to(op, mapped, page, slot);
        let begin = self.begin(&access);
        let went = match op {
            Op::CopyOut => whole(mapped.mapping.copy_out(offset, &mut buffer)),
            Op::MapRead => whole(mapped.mapping.read_at(&mut buffer, offset)),
            _ => part(mapped.mapping.write_to(self.pipe.1.as_fd(), offset, buffer.len() as u64), buffer.len()),
        };
        let span = self.end(&access, begin, !matches!(went, Went::Through));
        let read = self.judge_extent(&access, mapped, &bytes, &went, span, false);
        if op == Op::SysOut && self.pipe.0.read_exact(&mut buffer[..read]).is_err() {
            self.failed(&access, &Error::System { call: "read from a pipe", errno: 0 });
        }
        for Watched { page, slot, at } in self.watched(bytes.start..bytes.start + read as u64) {
            let (access, value) = (self.moved(&access, mapped, page, slot), word_at(&buffer, at));
            self.note(&access, span, Some(slot), Some(value), End::Done);
            self.oracle.judge(&access, slot, value, span);
        }
        self.leave();
    }

    fn write_many(&mut self, op: Op, mapped: &Mapped, page: u64, slot: usize) {
        let bytes = self.stretch(mapped, page, slot);
        let offset = bytes.start - mapped.first_page * self.page_bytes();
        let (words, buffer) = self.fill(mapped.file, bytes.clone());
        if op == Op::SysIn && self.pipe.1.write_all(&buffer).is_err() {
            return;
        }
        let access = self.access_to(op, mapped, page, slot);
        let pages = page..bytes.end.div_ceil(self.page_bytes());
        mapped.dirty.attempt(pages.clone());
        let begin = self.begin(&access);
        for (watched, value) in &words {
            // The CPU and the kernel copy as they like, for the library too.
            self.oracle.store_begins(mapped.file, watched.page, watched.slot, *value, begin, true);
        }
        let went = match op {
            Op::CopyIn => whole(mapped.mapping.copy_in(offset, &buffer)),
            Op::MapWrite => whole(mapped.mapping.write_at(&buffer, offset)),
            _ => part(mapped.mapping.read_from(self.pipe.0.as_fd(), offset, buffer.len() as u64), buffer.len()),
        };
        let span = self.end(&access, begin, !matches!(went, Went::Through));
        mapped.dirty.attempted(pages, span.1);
        if op == Op::SysIn && !matches!(went, Went::Through) {
            // What was not read is still in there.
            self.pipe = std::io::pipe().unwrap_or_else(|error| panic!("no pipe: {error}"));
        }
        let written = match went {
            Went::Through => buffer.len(),
            Went::Partly(bytes) => bytes,
            Went::Failed(_) => 0,
        };
        for (Watched { page, slot, at }, value) in words {
            let certain = at + WORD as usize <= written;
            self.oracle.store_ends(mapped.file, page, slot, span.0, span.1, Some(certain));
            let end = if certain { End::Done } else { End::Refused };
            let access = self.moved(&access, mapped, page, slot);
            self.note(&access, span, Some(slot), Some(value), end);
            if certain {
                mapped.dirty.stored(&self.oracle, &access, span);
            }
        }
        self.judge_extent(&access, mapped, &bytes, &went, span, true);
        self.leave();
    }

    /// Judges how far an access to several words went; how many bytes that is.
    fn judge_extent(
        &self,
        access: &Access,
        mapped: &Mapped,
        bytes: &Range<u64>,
        went: &Went,
        span: (u64, u64),
        stores: bool,
    ) -> usize {
        let size = self.page_bytes();
        // A system call stops at the first byte that it cannot reach, or some way before: any page may have been the
        // reason, and if one was, so is the last.
        let last = self.moved(access, mapped, (bytes.end - 1) / size, 0);
        let done = match went {
            Went::Through => (bytes.end - bytes.start) as usize,
            Went::Partly(done) => *done,
            Went::Failed(error) => {
                self.note(access, span, None, None, End::Refused);
                self.refused(&last, error, mapped, span, stores);
                return 0;
            }
        };
        let end = bytes.start + done as u64;
        if done > 0 {
            for page in bytes.start / size..end.div_ceil(size) {
                self.oracle.present(&self.moved(access, mapped, page, 0), span);
            }
        }
        // A page that has been put in place for a call, and is gone before the call gets there, ends it.
        // And one that meets poison halfway has done a part: the library repeats what has done nothing.
        let poisoned = self.oracle.overcommitted && access.op == Op::SysOut;
        if end < bytes.end && !mapped.manner.is_direct() && !poisoned {
            self.note(&last, span, None, None, End::Refused);
            self.refused(&last, &Error::System { call: "", errno: Errno::EFAULT as i32 }, mapped, span, stores);
        }
        done
    }

    /// Loads from an address whose mapping may have gone, or be about to, by a system call: that ends in an error
    /// where an instruction would end the process.
    fn raw(&mut self) {
        if self.seen.is_empty() || self.rng.u32(0..8) == 0 {
            self.place();
        }
        if self.seen.is_empty() {
            return;
        }
        let (weak, page) = self.seen[self.rng.usize(0..self.seen.len())].clone();
        // Not kept alive meanwhile: only its address.
        let Some(found) = weak.upgrade().map(|mapped| (mapped.mapping.as_ptr() as u64, mapped.first_page, mapped.file))
        else {
            self.seen.retain(|(seen, _)| seen.strong_count() > 0);
            return;
        };
        let (base, first_page, file) = found;
        if !self.oracle.is_judged(page) {
            return;
        }
        let slot = self.rng.usize(0..SLOTS);
        let at = base + (page - first_page) * self.page_bytes() + SLOT_OFFSETS[slot];
        let access = Access { op: Op::Raw, thread: self.id, file, page, address: Some(at) };
        let mut word = [0; WORD as usize];
        let begin = self.begin(&access);
        let remote = RemoteIoVec { base: at as usize, len: word.len() };
        let read = process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut word)], &[remote]);
        let span = self.end(&access, begin, read.is_err());
        // If it is there still, it has been there all the time. Where threads resolve their own faults an error says
        // no more than that nobody has put the page in place.
        if let Some(mapped) = weak.upgrade().filter(|mapped| read.is_ok() || !mapped.manner.is_direct()) {
            let loaded = match read {
                Ok(_) => Ok(u64::from_le_bytes(word)),
                Err(_) => Err(Error::System { call: "process_vm_readv", errno: Errno::EFAULT as i32 }),
            };
            self.judge_word(&access, &mapped, slot, &loaded, span);
        }
        self.leave();
    }
}

fn whole(result: Result<(), Error>) -> Went {
    match result {
        Ok(()) => Went::Through,
        Err(error) => Went::Failed(error),
    }
}

fn part(result: Result<usize, Error>, all: usize) -> Went {
    match result {
        Ok(bytes) if bytes == all => Went::Through,
        Ok(bytes) => Went::Partly(bytes),
        Err(error) => Went::Failed(error),
    }
}
