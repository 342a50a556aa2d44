//! Changes of files: everything that a file and a volume offer beside accesses.

use std::ops::Range;

use daxpager::Error;

use super::{Hand, Watched, word_at};
use crate::mix::Offsets;
use crate::op::Op;
use crate::oracle::trace::End;
use crate::oracle::{Access, Change, Effect, Kind, lock};
use crate::raw::with_first_bytes;
use crate::word::{CHURN, Origin, SLOT_OFFSETS, SLOTS, WORD, uncut};

/// Pages of a file that comes and goes.
const CHURN_PAGES: u64 = 4;
/// Pages that one write covers at most.
const WRITE_PAGES: u64 = 3;

/// What a change does, as far as the oracle minds.
struct Plan {
    op: Op,
    file: u8,
    /// Pages of which any watched word may change.
    pages: Range<u64>,
    /// The size that it gives the file, if it is about that.
    size: Option<u64>,
    /// The effect on what lies behind this byte is not certain: it is past the end.
    certain_before: u64,
}

impl Hand {
    /// One change, drawn.
    pub(super) fn change(&mut self) {
        let world = self.world.clone();
        let op = self.draw(&world.mix.changes);
        let file = self.rng.u8(0..world.mix.files as u8);
        match op {
            Op::Truncate => self.truncate(file),
            Op::Punch => self.punch(file),
            Op::ZeroRange => self.zero_range(file),
            Op::Allocate => self.allocate(file),
            Op::FileWrite => self.file_write(file),
            Op::FileRead => self.file_read(file),
            Op::FileReadMapped | Op::FileWriteMapped => self.through_mapped_buffer(op, file),
            Op::Churn => self.churn(),
            _ => self.inspect(file),
        }
        self.pause(world.mix.change_pause_us);
    }

    /// A byte of a file, which cuts no watched word in two; `most` at most.
    fn offset_up_to(&mut self, most: u64) -> u64 {
        let size = self.page_bytes();
        let drawn = match self.world.mix.offsets {
            Offsets::Border(page) => (page * size + self.rng.u64(0..=40)).saturating_sub(20),
            Offsets::Anywhere if self.rng.u32(0..3) == 0 => self.rng.u64(0..=most / size) * size,
            Offsets::Anywhere if self.rng.u32(0..2) == 0 => self.rng.u64(0..=most.min(self.world.mix.hot_pages * size)),
            Offsets::Anywhere => self.rng.u64(0..=most),
        };
        uncut(drawn.min(most), size)
    }

    /// Some bytes of a file, not none.
    fn some_bytes(&mut self) -> Range<u64> {
        let size = self.page_bytes();
        let most = self.world.mix.pages * size;
        let least = if self.oracle.buffer_pages { size } else { 0 };
        if self.rng.u32(0..3) == 0 {
            let page = self.rng.u64(least / size..self.world.mix.hot_pages);
            return page * size..(page + 1) * size;
        }
        let (a, b) = (self.offset_up_to(most), self.offset_up_to(most));
        let bytes = match (a.min(b), a.max(b)) {
            (start, end) if start < end => start..end,
            (start, _) if start + size <= most => start..start + size,
            (start, _) => start.saturating_sub(size)..start.max(size),
        };
        // Page 0 is somebody's buffer.
        if bytes.start < least { least..bytes.end.max(least + size) } else { bytes }
    }

    fn pages_touched(&self, bytes: Range<u64>) -> Range<u64> {
        let size = self.page_bytes();
        bytes.start / size..bytes.end.div_ceil(size).min(self.world.mix.pages)
    }

    /// Makes a change, and tells the oracle of it before and after.
    fn make(
        &mut self,
        plan: &Plan,
        effect: impl Fn(u64) -> Effect,
        act: impl FnOnce(&daxpager::File) -> daxpager::Result<()>,
    ) -> bool {
        let size = self.page_bytes();
        let byte = |page: u64, slot: usize| page * size + SLOT_OFFSETS[slot];
        let oracle = self.oracle.clone();
        let access = Access { op: plan.op, thread: self.id, file: plan.file, page: plan.pages.start, address: None };
        let begin = self.begin(&access);
        let change = Change { op: plan.op, thread: self.id, file: plan.file, pages: plan.pages.clone() };
        oracle.change_begins(&change, begin, |page, slot| {
            if oracle.is_judged(page) { effect(byte(page, slot)) } else { Effect::Nothing }
        });
        if let Some(bytes) = plan.size {
            oracle.size_begins(plan.file, bytes, begin);
        }
        let world = self.world.clone();
        let done = act(&world.files[plan.file as usize]);
        let span = self.end(&access, begin, done.is_err());
        if plan.size.is_some() {
            oracle.size_ends(plan.file, span.1, done.is_ok());
        }
        // Without a turn the size may have been another meanwhile.
        let inside = *oracle.files[plan.file as usize].sizes_between(span.0, span.1).start();
        let certain_before = if plan.size.is_some() { plan.certain_before } else { plan.certain_before.min(inside) };
        oracle.change_ends(&change, span, done.is_ok(), |page, slot| byte(page, slot) + WORD <= certain_before);
        if let Err(error) = &done {
            self.failed(&access, error);
        }
        self.leave();
        done.is_ok()
    }

    fn truncate(&mut self, file: u8) {
        let (size, least) = (self.page_bytes(), self.world.mix.least_pages * self.page_bytes());
        let len = self.offset_up_to(self.world.mix.pages * size).max(least);
        self.truncate_to(file, len);
    }

    pub(super) fn truncate_to(&mut self, file: u8, len: u64) {
        let size = self.page_bytes();
        let oracle = self.oracle.clone();
        let _turn = lock(&oracle.files[file as usize].turn);
        let low = oracle.files[file as usize].size_now().min(len);
        let plan = Plan {
            op: Op::Truncate,
            file,
            pages: low / size..self.world.mix.pages,
            size: Some(len),
            certain_before: u64::MAX,
        };
        let effect = |byte| if byte >= low { Effect::Zero } else { Effect::Nothing };
        self.make(&plan, effect, |file| file.truncate(len));
    }

    fn punch(&mut self, file: u8) {
        let bytes = self.some_bytes();
        self.punch_bytes(file, bytes);
    }

    fn punch_bytes(&mut self, file: u8, bytes: Range<u64>) {
        let (start, len) = (bytes.start, bytes.end - bytes.start);
        self.zeroing(Op::Punch, file, bytes, |file| file.punch_hole(start, len));
    }

    /// A change that zeroes some bytes, and leaves the size alone.
    fn zeroing(
        &mut self,
        op: Op,
        file: u8,
        bytes: Range<u64>,
        act: impl FnOnce(&daxpager::File) -> daxpager::Result<()>,
    ) {
        let plan = Plan { op, file, pages: self.pages_touched(bytes.clone()), size: None, certain_before: u64::MAX };
        let effect = |byte| if bytes.contains(&byte) { Effect::Zero } else { Effect::Nothing };
        self.make(&plan, effect, act);
    }

    /// A change that may make the file longer: what it does to a byte of the old file, and behind it.
    ///
    /// Bytes from the old end to the new one are zero afterwards, but for what the change itself puts there.
    /// What was stored past the new end, within its page, may have been taken away.
    fn growing(
        &mut self,
        op: Op,
        file: u8,
        bytes: &Range<u64>,
        inside: impl Fn(u64) -> Effect,
        act: impl FnOnce(&daxpager::File) -> daxpager::Result<()>,
    ) -> bool {
        let oracle = self.oracle.clone();
        let _turn = lock(&oracle.files[file as usize].turn);
        let old = oracle.files[file as usize].size_now();
        let grows = bytes.end > old;
        let size = self.page_bytes();
        let pages = match grows {
            true => (old.min(bytes.start) / size)..(bytes.end / size + 1).min(self.world.mix.pages),
            false => self.pages_touched(bytes.clone()),
        };
        let new = old.max(bytes.end);
        let plan = Plan { op, file, pages, size: Some(new), certain_before: new };
        let effect = |byte| match bytes.contains(&byte) {
            true => inside(byte),
            false if grows && byte >= old => Effect::Zero,
            false => Effect::Nothing,
        };
        self.make(&plan, effect, act)
    }

    fn zero_range(&mut self, file: u8) {
        let bytes = self.some_bytes();
        let (start, len, keep) = (bytes.start, bytes.end - bytes.start, self.rng.bool());
        if !keep {
            self.growing(Op::ZeroRange, file, &bytes, |_| Effect::Zero, |file| file.zero_range(start, len, false));
            return;
        }
        self.zeroing(Op::ZeroRange, file, bytes, |file| file.zero_range(start, len, true));
    }

    fn allocate(&mut self, file: u8) {
        let bytes = self.some_bytes();
        let (start, len, keep) = (bytes.start, bytes.end - bytes.start, self.rng.bool());
        if keep {
            // What the file shows stays the same.
            let plan = Plan { op: Op::Allocate, file, pages: 0..0, size: None, certain_before: 0 };
            self.make(&plan, |_| Effect::Nothing, |file| file.allocate(start, len, true));
            return;
        }
        // In the old file nothing changes; between its end and the new one everything is zero.
        let oracle = self.oracle.clone();
        let _turn = lock(&oracle.files[file as usize].turn);
        let old = oracle.files[file as usize].size_now();
        let new = old.max(bytes.end);
        let size = self.page_bytes();
        let pages = if new > old { old / size..(new / size + 1).min(self.world.mix.pages) } else { 0..0 };
        let plan = Plan { op: Op::Allocate, file, pages, size: Some(new), certain_before: new };
        let effect = |byte| if byte >= old { Effect::Zero } else { Effect::Nothing };
        self.make(&plan, effect, |file| file.allocate(start, len, false));
    }

    /// Some bytes that one write covers.
    fn bytes_to_write(&mut self) -> Range<u64> {
        let mut bytes = self.some_bytes();
        let most = self.rng.u64(1..=WRITE_PAGES) * self.page_bytes();
        bytes.end = uncut(bytes.end.min(bytes.start + most), self.page_bytes());
        debug_assert!(bytes.start < bytes.end, "a page is longer than a word");
        bytes
    }

    fn file_write(&mut self, file: u8) {
        let bytes = self.bytes_to_write();
        let (words, buffer) = self.fill(file, bytes.clone());
        let size = self.page_bytes();
        let inside = |byte: u64| {
            let found = words.iter().find(|(at, _)| at.page * size + SLOT_OFFSETS[at.slot] == byte);
            found.map_or(Effect::Nothing, |(_, word)| Effect::Store(*word))
        };
        self.growing(Op::FileWrite, file, &bytes, inside, |file| file.write_at(&buffer, bytes.start).map(drop));
    }

    fn file_read(&mut self, file: u8) {
        let bytes = self.bytes_to_write();
        let mut buffer = vec![0xee; (bytes.end - bytes.start) as usize];
        let page = bytes.start / self.page_bytes();
        let access = Access { op: Op::FileRead, thread: self.id, file, page, address: None };
        let begin = self.begin(&access);
        let read = self.world.files[file as usize].read_at(&mut buffer, bytes.start);
        let span = self.end(&access, begin, read.is_err());
        match read {
            Ok(read) => {
                self.judge_count(&access, &bytes, read as u64, span);
                self.judge_buffer(&access, bytes.start..bytes.start + read as u64, &buffer, span);
            }
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
    }

    /// A read ends where the file does.
    fn judge_count(&self, access: &Access, bytes: &Range<u64>, read: u64, span: (u64, u64)) {
        let sizes = self.oracle.files[access.file as usize].sizes_between(span.0, span.1);
        let count = |size: u64| size.clamp(bytes.start, bytes.end) - bytes.start;
        if !(count(*sizes.start())..=count(*sizes.end())).contains(&read) {
            let expected = format!("{} to {} bytes", count(*sizes.start()), count(*sizes.end()));
            let found =
                format!("{read} bytes read from byte {} on, between tickets {} and {}", bytes.start, span.0, span.1);
            self.oracle.report(access, Kind::Error, crate::oracle::Evidence::Text { expected, found });
        }
    }

    /// Reads or writes with the first page of a mapping of the same file as the buffer. The page is punched
    /// first, so that touching it needs a fault served, under whatever the call holds.
    fn through_mapped_buffer(&mut self, op: Op, file: u8) {
        const BYTES: u64 = 1024;
        let Some(mapped) = self.world.mapping_of(file) else { return };
        if self.masked && mapped.manner.is_direct() {
            // The buffer is touched as by any code: the kernel ends a process that does so with SIGBUS blocked.
            return;
        }
        let (size, oracle) = (self.page_bytes(), self.oracle.clone());
        let _buffer = lock(&oracle.files[file as usize].buffer);
        self.punch_bytes(file, 0..size);
        let offset = self.rng.u64(1..self.world.mix.pages) * size + self.rng.u64(0..size / BYTES) * BYTES;
        let bytes = offset..offset + BYTES;
        if op == Op::FileWriteMapped {
            // The buffer is a hole.
            let write = |file: &daxpager::File| {
                with_first_bytes(&mapped.mapping, BYTES, |buffer| file.write_at(buffer, offset)).map(drop)
            };
            self.growing(op, file, &bytes, |_| Effect::Zero, write);
            return;
        }
        let access = Access { op, thread: self.id, file, page: offset / size, address: None };
        let begin = self.begin(&access);
        let from = &self.world.files[file as usize];
        let read = with_first_bytes(&mapped.mapping, BYTES, |buffer| from.read_at(buffer, offset));
        let span = self.end(&access, begin, read.is_err());
        let mut buffer = [0; BYTES as usize];
        match read.and_then(|read| mapped.mapping.read_at(&mut buffer, 0).map(|()| read)) {
            Ok(read) => {
                self.judge_count(&access, &bytes, read as u64, span);
                self.judge_buffer(&access, bytes.start..bytes.start + read as u64, &buffer, span);
            }
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
    }

    /// Judges all watched words of some bytes that were read.
    fn judge_buffer(&self, access: &Access, bytes: Range<u64>, buffer: &[u8], span: (u64, u64)) {
        for Watched { page, slot, at } in self.watched(bytes) {
            let (access, value) = (Access { page, ..*access }, word_at(buffer, at));
            self.note(&access, span, Some(slot), Some(value), End::Done);
            self.oracle.judge(&access, slot, value, span);
        }
    }

    /// A file that comes, is written, and goes: its blocks are somebody else's at once.
    fn churn(&mut self) {
        let name = format!("churn-{}-{}", self.id, self.sequence);
        let access = Access { op: Op::Churn, thread: self.id, file: CHURN, page: 0, address: None };
        let pages = self.rng.u64(1..=CHURN_PAGES);
        let mut buffer = vec![0; (pages * self.page_bytes()) as usize];
        self.sequence += 1;
        for Watched { page, slot, at } in self.watched(0..pages * self.page_bytes()) {
            let origin = Origin {
                file: CHURN,
                page: page as u16,
                slot: slot as u8,
                thread: self.id,
                generation: 0,
                sequence: self.sequence,
            };
            buffer[at..at + WORD as usize].copy_from_slice(&origin.encode().to_le_bytes());
        }
        let begin = self.begin(&access);
        let done = self.write_and_remove(&name, &buffer);
        self.end(&access, begin, done.is_err());
        match done {
            Ok(true) => {}
            Ok(false) => {
                let (expected, found) = ("the bytes that were written".to_owned(), "others".to_owned());
                self.oracle.report(&access, Kind::Foreign, crate::oracle::Evidence::Text { expected, found });
            }
            Err(error) => self.failed(&access, &error),
        }
        self.leave();
    }

    /// Whether the file, which nobody else knows, had what was written to it.
    fn write_and_remove(&self, name: &str, buffer: &[u8]) -> Result<bool, Error> {
        let file = self.world.volume.create(name)?;
        let written = file.write_at(buffer, 0);
        let mut read = vec![0; buffer.len()];
        let same = file.read_at(&mut read, 0).map(|_| read == buffer);
        let removed = self.world.volume.remove(name);
        drop(file);
        written?;
        removed?;
        same
    }

    /// Looks at what a file is made of: its extents lie in order, without a gap, and reach its end.
    fn inspect(&mut self, file: u8) {
        let access = Access { op: Op::Inspect, thread: self.id, file, page: 0, address: None };
        let begin = self.begin(&access);
        let (extents, list) = (self.world.files[file as usize].extents(), self.world.volume.list());
        let len = self.world.files[file as usize].len();
        let span = self.end(&access, begin, false);
        let end = extents.iter().try_fold(0, |end, extent| (extent.offset == end).then_some(end + extent.len));
        let least = *self.oracle.files[file as usize].sizes_between(span.0, span.1).start();
        let lengths = self.oracle.files[file as usize].sizes_between(span.0, span.1);
        let there =
            self.world.volume.open(&format!("file-{file}")).is_ok_and(|open| open.number() == u64::from(file) + 1);
        if end.is_none_or(|end| end < least) || list.len() < self.world.mix.files || !there || !lengths.contains(&len) {
            let files = self.world.mix.files;
            let expected = format!("extents without a gap up to byte {least}, {lengths:?} bytes, and {files} files");
            let found = format!("{extents:?}, {len} bytes; {list:?}");
            self.oracle.report(&access, Kind::Error, crate::oracle::Evidence::Text { expected, found });
        }
        self.leave();
    }
}

const _: () = assert!(SLOTS <= 8, "a word has three bits for its slot");
