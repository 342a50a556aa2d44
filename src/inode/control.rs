//! Changes: the right-hand door. Every operation takes L1, so that there is one change at a time per
//! file, prepares what it needs, and makes each step visible through one [`Change`](crate::space::Change).
//! Nothing here installs a page.

use std::ops::Range;

use crate::blocks::Run;
use crate::blocks::store::Reservation;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::policy::PageState;
use crate::sabotage::Rule;
use crate::space::extents::Extent;
use crate::space::{Change, Shared};
use crate::sys::access::buffer;
use crate::units::{BlockIndex, MAX_FILE_BYTES, PageIndex, PageRange};

/// Bytes that are copied at once between a user's buffer and the device.
pub(crate) const COPY_BYTES: u64 = 64 << 10;

/// A range of bytes that is not empty and ends within the largest file.
pub(crate) fn checked_range(offset: u64, len: u64) -> Result<Range<u64>> {
    if len == 0 {
        return Err(Error::EmptyRange { offset });
    }
    match offset.checked_add(len) {
        Some(end) if end <= MAX_FILE_BYTES => Ok(offset..end),
        _ => Err(Error::RangeOverflow { offset, len }),
    }
}

/// The first `COPY_BYTES` of `range`, ending at a page border where it can.
fn first_chunk(range: &Range<u64>, page_bytes: u64) -> Range<u64> {
    let step = COPY_BYTES.max(page_bytes);
    range.start..range.end.min((range.start / step + 1) * step)
}

impl Inode {
    /// ftruncate(2), in the order of `xfs_setattr_size`.
    pub(crate) fn truncate(&self, len: u64) -> Result<()> {
        if len > MAX_FILE_BYTES {
            return Err(Error::RangeOverflow { offset: 0, len });
        }
        let _l1 = self.change.write();
        let page = self.page();
        // What lies behind goes anyway.
        self.give_back_preallocated(PageRange::new(PageIndex(0), page.ceil(len)));
        let old = self.space.shared().size();
        let mut change = self.invalidate(PageRange::from(page.page_of(old.min(len))));
        if len > old {
            self.grow(&mut change, len);
        } else {
            change.set_size(len);
            change.unmap(PageRange::from(page.ceil(len)));
            if !self.broken(Rule::ZeroTailOnTruncate) {
                self.zero_tail(&mut change, len, u64::MAX);
            }
        }
        change.try_commit(&self.store)
    }

    /// Makes the file `len` bytes long, which is more than it has. What was stored past the old end
    /// within its last page is gone, and pages that were past it are poisoned no longer.
    fn grow(&self, change: &mut Change<'_>, len: u64) {
        let old = change.size();
        let page = self.page();
        self.zero_stored_past(change, old, u64::MAX);
        change.set_size(len);
        change.zap(PageRange::new(page.ceil(old), page.ceil(len)));
    }

    /// Zeroes what has been stored past the end of the file, from byte `end` to the end of its page, or up to `until`.
    fn zero_stored_past(&self, change: &mut Change<'_>, end: u64, until: u64) {
        if self.broken(Rule::ZeroTailOnGrowth) {
            return;
        }
        let page = self.page();
        let from = if self.broken(Rule::ZeroOnlyTheTail) { page.offset_of(page.page_of(end)) } else { end };
        self.zero_tail(change, from, until);
    }

    /// Zeroes from byte `from` to the end of its page, or up to `until`; nothing where `from` is a
    /// page border. The page is zapped first, so a store to the tail comes wholly before, and is
    /// zeroed, or wholly after.
    fn zero_tail(&self, change: &mut Change<'_>, from: u64, until: u64) {
        let page = self.page();
        let last = page.page_of(from);
        let until = until.saturating_sub(page.offset_of(last)).min(page.bytes());
        if page.within(from) < until && (page.within(from) != 0 || self.broken(Rule::ZeroOnlyTheTail)) {
            change.zap(PageRange::one(last));
            self.zero_part(change, last, page.within(from)..until);
        }
    }

    /// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
    pub(crate) fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        let bytes = checked_range(offset, len)?;
        let _l1 = self.change.write();
        let page = self.page();
        let mut change = self.invalidate(page.touched(&bytes));
        let whole = page.whole(&bytes);
        if !whole.is_empty() {
            change.unmap(whole);
        }
        self.zero_edges(&mut change, &bytes);
        change.try_commit(&self.store)
    }

    /// Zeroes what `bytes` covers of pages that it does not cover wholly. In place, and with no zap:
    /// a store to the same bytes comes before or after, byte by byte, as in the kernel.
    fn zero_edges(&self, change: &mut Change<'_>, bytes: &Range<u64>) {
        let page = self.page();
        let (first, last) = (page.page_of(bytes.start), page.page_of(bytes.end - 1));
        let mut edges = vec![first];
        if last != first {
            edges.push(last);
        }
        for edge in edges {
            let start = page.offset_of(edge);
            let part = bytes.start.saturating_sub(start)..(bytes.end - start).min(page.bytes());
            if part != (0..page.bytes()) {
                self.zero_part(change, edge, part);
            }
        }
    }

    /// fallocate(2) with `FALLOC_FL_ZERO_RANGE`: reads as a hole, but keeps and gets blocks.
    pub(crate) fn zero_range(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let bytes = checked_range(offset, len)?;
        let _l1 = self.change.write();
        let page = self.page();
        self.have_places_for_blocks(page.touched(&bytes))?;
        let (mut reserved, old) = self.reserve_holes(page.touched(&bytes))?;
        let mut change = self.invalidate(page.touched(&bytes).and(page.page_of(old)));
        change.keep(page.touched(&bytes));
        let whole = page.whole(&bytes);
        let written: Vec<Extent> = change.extents().within(whole).filter(|extent| extent.written).collect();
        for extent in written {
            change.unwrite(extent);
        }
        self.zero_edges(&mut change, &bytes);
        self.fill_with_unwritten(&mut change, page.touched(&bytes), &mut reserved);
        if !keep_size && bytes.end > change.size() {
            self.grow(&mut change, bytes.end);
        }
        change.try_commit(&self.store)
    }

    /// fallocate(2) without a mode, or with `FALLOC_FL_KEEP_SIZE`.
    pub(crate) fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let bytes = checked_range(offset, len)?;
        let _l1 = self.change.write();
        let page = self.page();
        self.have_places_for_blocks(page.touched(&bytes))?;
        let (mut reserved, old) = self.reserve_holes(page.touched(&bytes))?;
        // Holes and unwritten pages look the same in every mapping: only growth has anything to zap.
        let grows = !keep_size && bytes.end > old;
        let zapped = if grows { PageRange::from(page.page_of(old)) } else { PageRange::at(PageIndex(0), 0) };
        let mut change = self.invalidate(zapped);
        change.keep(page.touched(&bytes));
        self.fill_with_unwritten(&mut change, page.touched(&bytes), &mut reserved);
        if grows {
            self.grow(&mut change, bytes.end);
        }
        change.try_commit(&self.store)
    }

    /// Blocks for every hole of `range`, and the size, as they are now. Under L1 holes only become fewer, as a store may fill
    /// one; but for what has been preallocated for stores, which therefore counts as holes. Counted
    /// anew when that has been given back for lack of space.
    fn reserve_holes(&self, range: PageRange) -> Result<(Reservation, u64)> {
        let reserved = self.store.reserve_counted(|| self.space.shared().holes_at_most(range))?;
        Ok((reserved, self.space.shared().size()))
    }

    fn fill_with_unwritten(&self, change: &mut Change<'_>, range: PageRange, reserved: &mut Reservation) {
        for hole in change.extents().holes(range) {
            let mut at = hole.start;
            while at < hole.end {
                let run = change.extents().take(reserved, at, hole.end.0 - at.0);
                change.put(Extent { page: at, run, written: false });
                at = at.plus(run.blocks);
            }
        }
    }

    /// pread(2). Bytes are copied out under L2 into a buffer of our own, and from there to the user's
    /// with L1 alone: the user's may lie in a mapping, and touching it may need a fault served.
    pub(crate) fn read_at(&self, into: &mut [u8], offset: u64) -> Result<usize> {
        let straight =
            self.store.capacity().is_some() && !buffer::may_be_missing(into) && !self.broken(Rule::NoCopyUnderLock);
        let _l1 = self.change.read();
        let (end, windows) = {
            let shared = self.space.shared();
            let end = shared.size().min(offset.saturating_add(into.len() as u64)).max(offset);
            let places = shared.extents().windows().filter(|_| straight);
            let pages = self.page().touched(&(offset..end));
            (end, places.map(|places| places.windows(pages).collect::<Vec<_>>()))
        };
        if let Some(windows) = windows {
            self.read_places(&windows, offset..end, &mut into[..(end - offset) as usize])?;
            return Ok((end - offset) as usize);
        }
        let mut bounce = vec![0; COPY_BYTES.min(end - offset) as usize];
        let mut at = offset;
        while at < end {
            let chunk = at..end.min(at + COPY_BYTES);
            let bytes = &mut bounce[..(chunk.end - chunk.start) as usize];
            let shared = self.space.shared();
            self.copy_out(&shared, chunk.clone(), bytes)?;
            let user = &mut into[(at - offset) as usize..(chunk.end - offset) as usize];
            if self.broken(Rule::NoCopyUnderLock) {
                user.copy_from_slice(bytes);
            }
            drop(shared);
            buffer::give(user, bytes).map_err(|addr| Error::BadBuffer { addr })?;
            at = chunk.end;
        }
        Ok((end - offset) as usize)
    }

    /// The memory that the device has for the file. With L1 alone, which keeps its blocks and places where they are.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let _l1 = self.change.read();
        let all = PageRange::from(PageIndex(0));
        let runs: Vec<(BlockIndex, u64)> = {
            let shared = self.space.shared();
            match shared.extents().windows() {
                Some(places) => places.windows(all).map(|(pages, start)| (start, pages.pages())).collect(),
                None => shared.extents().within(all).map(|extent| (extent.run.start, extent.run.blocks)).collect(),
            }
        };
        let page = self.page();
        let resident = |(start, pages)| self.store.memory.resident_in(page.device_offset(start), page.bytes_of(pages));
        runs.into_iter().map(resident).sum()
    }

    /// The bytes of a range of a file with windows, straight from the device, under L1: in its place each page has its bytes, or zeros, or
    /// nothing, which reads as zeros; and L1 keeps away whoever takes bytes away.
    fn read_places(&self, windows: &[(PageRange, BlockIndex)], bytes: Range<u64>, into: &mut [u8]) -> Result<()> {
        let page = self.page();
        let mut at = bytes.start;
        for &(pages, block) in windows {
            let part = bytes.start.max(page.offset_of(pages.start))..bytes.end.min(page.offset_of(pages.end));
            let (from, to) = ((part.start - bytes.start) as usize, (part.end - bytes.start) as usize);
            into[(at - bytes.start) as usize..from].fill(0);
            let within = part.start - page.offset_of(pages.start);
            self.store.memory.read(page.device_offset(block) + within, &mut into[from..to])?;
            at = part.end;
        }
        into[(at - bytes.start) as usize..].fill(0);
        Ok(())
    }

    /// Writes to the device with L1 alone where all of a file with windows is written and its size stays: L1 keeps away whoever takes
    /// bytes away, and nothing is to be published. Whether that was so; if not, nothing has been done. Not from the user's buffer itself:
    /// write(2) touches it with the device's own lock held, which a punch of any file waits for.
    fn write_places(&self, bytes: Range<u64>, from: &[u8]) -> Result<bool> {
        if self.store.capacity().is_none() || buffer::may_be_missing(from) || self.broken(Rule::NoCopyUnderLock) {
            return Ok(false);
        }
        let page = self.page();
        let run = {
            let shared = self.space.shared();
            let pages = page.touched(&bytes);
            // What nobody has asked for may be taken back at any time.
            let run = shared.extents().run_from(pages.start, pages.end).filter(|_| !shared.is_preallocated(pages));
            run.filter(|run| run.written && run.range().end == pages.end && bytes.end <= shared.size())
        };
        let Some(run) = run else { return Ok(false) };
        let mut at = page.device_offset(run.run.start) + page.within(bytes.start);
        let mut bounce = Vec::with_capacity((from.len() as u64).min(COPY_BYTES) as usize);
        for piece in from.chunks(COPY_BYTES as usize) {
            bounce.clear();
            bounce.extend_from_slice(piece);
            self.store.memory.write(at, &bounce)?;
            at += piece.len() as u64;
        }
        Ok(true)
    }

    /// The bytes of a range, under L2. Holes and unwritten pages read as zeros.
    pub(crate) fn copy_out(&self, shared: &Shared<'_>, bytes: Range<u64>, into: &mut [u8]) -> Result<()> {
        let page = self.page();
        let mut at = 0;
        for (index, part) in page.slices(bytes) {
            let len = (part.end - part.start) as usize;
            let piece = &mut into[at..at + len];
            match shared.extents().state(index) {
                PageState::Written(block) => self.store.memory.read(page.device_offset(block) + part.start, piece)?,
                PageState::Hole | PageState::Unwritten(_) => piece.fill(0),
            }
            at += len;
        }
        Ok(())
    }

    /// pwrite(2). All blocks are reserved before anything changes, so a full volume changes nothing.
    pub(crate) fn write_at(&self, from: &[u8], offset: u64) -> Result<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        let bytes = checked_range(offset, from.len() as u64)?;
        // Before anything changes. What is gone by the time that it is copied is an error in the middle.
        buffer::check(from).map_err(|addr| Error::BadBuffer { addr })?;
        let _l1 = self.change.write();
        if self.write_places(bytes.clone(), from)? {
            return Ok(from.len());
        }
        self.have_places_for_blocks(self.page().touched(&bytes))?;
        let (mut reserved, _) = self.reserve_holes(self.page().touched(&bytes))?;
        let mut bounce = vec![0; COPY_BYTES.max(self.page().bytes()).min(from.len() as u64) as usize];
        let mut left = bytes.clone();
        while !left.is_empty() {
            let chunk = first_chunk(&left, self.page().bytes());
            let user = &from[(chunk.start - offset) as usize..(chunk.end - offset) as usize];
            let copy = &mut bounce[..user.len()];
            // The user's buffer may lie in a mapping: touched with no lock but L1.
            buffer::take(copy, user).map_err(|addr| Error::BadBuffer { addr })?;
            self.write_chunk(chunk.clone(), copy, user, &mut reserved)?;
            left.start = chunk.end;
        }
        Ok(from.len())
    }

    /// Writes some bytes and makes them visible as one step. `user` is where they came from. If the device refuses, the pages before
    /// the one that it has refused are written, and visible.
    fn write_chunk(&self, mut bytes: Range<u64>, copy: &[u8], user: &[u8], reserved: &mut Reservation) -> Result<()> {
        if self.write_in_place(bytes.clone(), copy)? {
            return Ok(());
        }
        let page = self.page();
        let pages = page.touched(&bytes);
        let stale_holes = self.holes_before_lock(pages);
        let is_ready = |change: &Change<'_>| {
            // While they are absent.
            if bytes.end > change.size() {
                change.lift_poison_past_end(PageRange::new(page.ceil(change.size()), page.ceil(bytes.end)));
            }
            change.make_ready(pages)
        };
        let mut change = self.change_when(|| self.invalidate(pages), is_ready)?;
        for hole in stale_holes.into_iter().flat_map(PageRange::iter) {
            if let PageState::Written(block) = change.extents().state(hole) {
                let _ = self.store.zero_block(block);
            }
        }
        let read_again;
        let copy = if self.broken(Rule::NoCopyUnderLock) {
            read_again = user.to_vec();
            &read_again[..]
        } else {
            copy
        };
        let mut left = bytes.clone();
        let mut written = Ok(());
        while !left.is_empty() && written.is_ok() {
            let rest = &copy[(left.start - bytes.start) as usize..];
            written = self.write_some(&mut change, left.clone(), rest, reserved).map(|done| left.start += done);
        }
        if written.is_err() && change.is_open() {
            self.keep_what_is_there(&mut change, page.touched(&left), reserved);
        }
        bytes.end = left.start;
        if !bytes.is_empty() && bytes.end > change.size() {
            let old = change.size();
            // The gap between the old end and the first byte written reads as zeros, and so does what
            // was stored past the new end while that was past the old end.
            self.zero_stored_past(&mut change, old, bytes.start);
            change.set_size(bytes.end);
            change.zap(PageRange::new(page.ceil(old), page.ceil(bytes.end)));
            self.zero_stored_past(&mut change, bytes.end, u64::MAX);
        }
        let committed = change.try_commit(&self.store);
        written.and(committed)
    }

    /// The device has refused to write pages that some mapping lets stores through to as soon as they are there. What is there of them and in
    /// the file is written, whatever it holds, as somebody may have stored to it; what is past the end goes.
    fn keep_what_is_there(&self, change: &mut Change<'_>, pages: PageRange, reserved: &mut Reservation) {
        let page = self.page();
        let eof = page.ceil(change.size());
        for index in pages.iter() {
            if matches!(change.extents().state(index), PageState::Written(_)) {
                continue;
            }
            let run = block_for(change, index, reserved);
            if index < eof && self.store.is_present_anywhere(run) {
                change.put(Extent { page: index, run, written: true });
                continue;
            }
            not_used(change, index, run, reserved);
            if index >= eof {
                change.take_from_device(index, run);
            }
        }
    }

    /// Changes a word as one step beside the stores of a mapping that lets them through. A page that there is none of is made first, and
    /// written from then on.
    pub(crate) fn change_word_beside_stores(
        &self,
        change: &mut Change<'_>,
        index: PageIndex,
        within: u64,
        to: impl Fn(u64) -> Option<u64>,
        reserved: &mut Reservation,
    ) -> Result<u64> {
        let run = block_for(change, index, reserved);
        if !matches!(change.extents().state(index), PageState::Written(_)) {
            if !self.store.refill(run.start) {
                not_used(change, index, run, reserved);
                return Err(self.store.lost(run.start));
            }
            change.put(Extent { page: index, run, written: true });
        }
        self.store.memory.change_word(self.page().device_offset(run.start) + within, to)
    }

    /// Writes the first of `bytes` under L2 held exclusively: whole pages, as many as one write reaches, or a part of one. How many
    /// bytes that were; if the device refuses, none.
    fn write_some(
        &self,
        change: &mut Change<'_>,
        bytes: Range<u64>,
        copy: &[u8],
        reserved: &mut Reservation,
    ) -> Result<u64> {
        let page = self.page();
        let whole = page.whole(&bytes);
        if whole.start == page.page_of(bytes.start)
            && whole.pages() > 1
            && let Some(pages) = self.write_run(change, whole, copy, reserved)
        {
            return Ok(page.bytes_of(pages));
        }
        let Some((index, part)) = page.slices(bytes).next() else { return Ok(0) };
        let len = part.end - part.start;
        self.write_page(change, index, part, &copy[..len as usize], reserved)?;
        Ok(len)
    }

    /// Writes the first of `pages` that lie on blocks which follow each other, in one state, all by one write: how many those
    /// are. `None` if the device refuses: which page it is, and which can be written, is found out one by one. What has got to the
    /// device by then is of blocks that nobody sees, or is written once more.
    fn write_run(
        &self,
        change: &mut Change<'_>,
        pages: PageRange,
        copy: &[u8],
        reserved: &mut Reservation,
    ) -> Option<u64> {
        let page = self.page();
        let first = change.extents().within(pages).next();
        let here = first.filter(|extent| extent.page == pages.start);
        let run = match here {
            Some(extent) => extent.run,
            None => {
                let end = first.map_or(pages.end, |extent| extent.page);
                change.extents().take(reserved, pages.start, end.0 - pages.start.0)
            }
        };
        let bytes = &copy[..page.bytes_of(run.blocks) as usize];
        let extent = Extent { page: pages.start, run, written: true };
        if here == Some(extent) {
            self.store.memory.write(page.device_offset(run.start), bytes).ok()?;
            change.keep(extent.range());
            return Some(run.blocks);
        }
        if self.store.memory.fill(page.device_offset(run.start), bytes).is_err() {
            if here.is_none() {
                reserved.put_back(run);
            }
            return None;
        }
        change.keep(extent.range());
        change.put(extent);
        if !self.broken(Rule::ZapZerosOnAllocate) {
            change.zap_zeros(extent.range());
        }
        Some(run.blocks)
    }

    /// What is a hole before the lock is taken. Only for a broken rule.
    fn holes_before_lock(&self, range: PageRange) -> Vec<PageRange> {
        if !self.broken(Rule::ZeroWhatIsAHole) {
            return Vec::new();
        }
        self.space.shared().extents().holes(range)
    }

    /// Writes if all pages have written blocks and the size stays: then nothing is to be published,
    /// and faults need not be kept out. Whether that was so; if not, nothing has been done.
    fn write_in_place(&self, bytes: Range<u64>, copy: &[u8]) -> Result<bool> {
        let shared = self.space.shared();
        if bytes.end > shared.size() {
            return Ok(false);
        }
        self.write_written(&shared, bytes, copy)
    }

    /// Writes under L2 held shared if every page has a written block, and says whether.
    pub(crate) fn write_written(&self, shared: &Shared<'_>, bytes: Range<u64>, copy: &[u8]) -> Result<bool> {
        let page = self.page();
        if shared.is_preallocated(page.touched(&bytes)) {
            // Written by somebody who relies on the block: to be told so exclusively.
            return Ok(false);
        }
        let written = |index| matches!(shared.extents().state(index), PageState::Written(_));
        if !page.touched(&bytes).iter().all(written) {
            return Ok(false);
        }
        for extent in shared.extents().within(page.touched(&bytes)) {
            let part = bytes.start.max(page.offset_of(extent.page))..bytes.end.min(page.offset_of(extent.range().end));
            let piece = &copy[(part.start - bytes.start) as usize..(part.end - bytes.start) as usize];
            match self.store.memory.write(page.device_offset(extent.run.start) + page.within(part.start), piece) {
                Ok(()) => {}
                // All of a page is written anew, and seen again in every mapping: to be told so exclusively.
                Err(Error::DeviceLost { .. }) if !page.whole(&part).is_empty() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Writes a part of one page under L2 held exclusively, giving it a block if it has none. If the device refuses, the page
    /// stays what it was.
    pub(crate) fn write_page(
        &self,
        change: &mut Change<'_>,
        index: PageIndex,
        part: Range<u64>,
        bytes: &[u8],
        reserved: &mut Reservation,
    ) -> Result<()> {
        let page = self.page();
        change.keep(PageRange::one(index));
        let whole = part == (0..page.bytes());
        let write = |block| self.store.memory.write(page.device_offset(block) + part.start, bytes);
        // Filled before it is published; zeroed first where the bytes do not cover it.
        // In its place there are zeros, or nothing.
        let in_place = change.extents().windows().is_some();
        let fill = |block| match whole {
            true => self.store.memory.fill(page.device_offset(block), bytes),
            false if in_place => write(block),
            false => self.store.zero_block(block).and_then(|()| write(block)),
        };
        if let PageState::Written(block) = change.extents().state(index) {
            match write(block) {
                // Lost, and wholly written anew. Zapped: its poison goes.
                Err(Error::DeviceLost { .. }) if whole => {}
                other => return other,
            }
        }
        let run = block_for(change, index, reserved);
        if let Err(error) = fill(run.start) {
            not_used(change, index, run, reserved);
            return Err(error);
        }
        change.put(Extent { page: index, run, written: true });
        if !self.broken(Rule::ZapZerosOnAllocate) {
            change.zap_zeros(PageRange::one(index));
        }
        Ok(())
    }
}

/// The block of a page, or one of those that are reserved if it has none.
fn block_for(change: &Change<'_>, index: PageIndex, reserved: &mut Reservation) -> Run {
    match change.extents().state(index) {
        PageState::Written(block) | PageState::Unwritten(block) => Run { start: block, blocks: 1 },
        PageState::Hole => change.extents().take(reserved, index, 1),
    }
}

/// Nothing has come of that, and the page is what it was.
fn not_used(change: &Change<'_>, index: PageIndex, run: Run, reserved: &mut Reservation) {
    if change.extents().state(index) == PageState::Hole {
        reserved.put_back(run);
    }
}
