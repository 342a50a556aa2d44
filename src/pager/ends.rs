//! How mappings end: unmapped, lost to the application, condemned with the pager. Each leaves its file and the page table
//! in one hold of the file's lock: entries of a mapping that its file does not know are found by no invalidation.

use nix::errno::Errno;

use super::core::Core;
use super::regions::{Region, Regions};
use crate::error::{Error, Result};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::Window;
use crate::sync::{Arc, Ordering, RwLockWriteGuard};
use crate::sys::{Outcome, PageTable};
use crate::units::{Addr, PageIndex, PageRange};
use crate::volume::inode::Inode;

/// How often, and how long apart, a range is tried to be condemned while the kernel refuses: about a second.
const CONDEMN_TRIES: u32 = 10_000;
const CONDEMN_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);
/// How often, and how long apart, an address range is asked for that no region has: about a second.
const ROOM_TRIES: u32 = 10_000;
const ROOM_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);

impl Core {
    /// Makes every mapping end in SIGBUS. Waits for locks, so it is a worker's: whoever holds one may be
    /// waiting for the reader, which goes on reading meanwhile.
    pub(crate) fn condemn(&self) {
        // The last reference to a removed file frees its blocks: dropped after the lock.
        let mut dropped = Vec::new();
        let mut regions = self.regions.write();
        while let Some(region) = regions.first() {
            let (window, inode) = (region.window.clone(), region.inode.clone());
            let mut change = inode.space.change();
            change.remove_window(&window);
            window.table.unwatch(window.base());
            // Its entries go under the lock under which it leaves: no invalidation finds them from then on.
            if !self.switches.broken(Rule::CondemnBeforeClose) && !window.table.condemn(window.base(), window.bytes()) {
                window.set_lost();
            }
            change.commit(&inode.store);
            dropped.extend(regions.remove(&window));
        }
        // Under the lock: whoever maps looks at it under the lock.
        self.condemned.store(true, Ordering::Release);
        RwLockWriteGuard::unlock_fair(regions);
        self.kick();
    }

    /// Unmaps a mapping. An invalidation like any other (rule 7): no install reaches the range once it has
    /// left the file and the map of regions, and only then is the address given back.
    ///
    /// ```text
    /// unmap                                             fault
    ///   regions exclusive (waits)                         regions shared
    ///                                                       L2 shared: decide, install
    ///                                                       unlock both
    ///     leave the map
    ///     L2 exclusive: leave the file; munmap; wake; unlock
    ///   unlock                                            regions shared: nobody's address. Wake
    /// ```
    pub(crate) fn unmap(&self, window: &Arc<Window>, inode: &Arc<Inode>) {
        let tell = |point| inode.probe(point, window.pages().start, None);
        tell(Point::BeforeUnmap);
        if inode.broken(Rule::UnmapUnderLock) && !window.is_lost() {
            window.table.unmap(window.base(), window.bytes());
            window.set_lost();
        }
        let mut regions = self.regions.write();
        let removed = regions.remove(window);
        let mut change = inode.space.change();
        change.remove_window(window);
        window.table.unwatch(window.base());
        // Under L2: no invalidation finds the entries any more, and what they name may be freed once it is dropped.
        if !window.is_lost() {
            window.table.unmap(window.base(), window.bytes());
        }
        change.commit(&inode.store);
        tell(Point::Unmapped);
        RwLockWriteGuard::unlock_fair(regions);
        // The last reference to a removed file frees its blocks: after the lock.
        drop(removed);
        // With the mapping gone: its entries are, too.
        inode.give_back_ahead(PageRange::from(PageIndex(0)));
    }

    /// The application has moved a part of a mapping away (mremap): the kernel has moved entries with
    /// it that no invalidation will find. The mapping is given up, and what was moved is condemned.
    pub(crate) fn lose(&self, from: Addr, to: Addr, bytes: u64) {
        let mut regions = self.regions.write();
        let window = regions.find(from).map(|region| region.window.clone());
        let dropped = window.and_then(|window| self.give_up(&mut regions, &window, from, bytes, Some(to)));
        if dropped.is_none() {
            // Of a mapping that has been given up already.
            Self::condemn_if_ours(&*self.table, to, bytes);
            if let Some(direct) = self.direct() {
                Self::condemn_if_ours(&*direct, to, bytes);
            }
        }
        RwLockWriteGuard::unlock_fair(regions);
        drop(dropped);
    }

    /// Ends a mapping of which a part is not ours any more: `bytes` from `hole` on, which are at `moved` now if
    /// the application has moved them. The rest is unmapped. What has been moved goes first: when the
    /// mapping says that it is lost, no entry of it is left.
    pub(crate) fn give_up(
        &self,
        regions: &mut Regions,
        window: &Arc<Window>,
        hole: Addr,
        bytes: u64,
        moved: Option<Addr>,
    ) -> Option<Region> {
        let removed = regions.remove(window)?;
        let (base, end) = (window.base(), window.base().plus(window.bytes()));
        let after = hole.plus(bytes).min(end);
        let rest = [(base, hole), (after, end)].into_iter().filter(|(start, end)| start < end);
        let mut change = removed.inode.space.change();
        change.remove_window(window);
        window.table.unwatch(window.base());
        for (start, end) in rest.clone() {
            // What the kernel refuses is unmapped in a moment.
            let _ = window.table.zap(start, end.since(start));
        }
        if let Some(to) = moved {
            Self::condemn_if_ours(&*window.table, to, bytes);
            // MREMAP_DONTUNMAP leaves the range where it was, too; and a worker that had not heard of the move may have
            // pointed it elsewhere since.
            Self::condemn_if_ours(&*window.table, hole, bytes);
        }
        change.commit(&removed.inode.store);
        window.set_lost();
        for (start, end) in rest {
            window.table.unmap(start, end.since(start));
        }
        window.table.wake(base, window.bytes());
        Some(removed)
    }

    /// An address range that no region has, and the map of regions held exclusively from before there is a range.
    ///
    /// The kernel gives out the addresses of a region only if the application has moved it away (mremap), and its event has not been
    /// taken up: by its address the event would be taken for one of the new mapping. So the range is given
    /// back until the region has gone. One that stays was unmapped by the application, and is given up.
    pub(crate) fn room_for(
        &self,
        table: &dyn PageTable,
        bytes: u64,
        align: u64,
    ) -> Result<(RwLockWriteGuard<'_, Regions>, Addr)> {
        for tries_left in (0..ROOM_TRIES).rev() {
            let mut regions = self.regions.write();
            self.check_alive()?;
            let base = table.reserve(bytes, align).map_err(|errno| Error::system("mmap", errno))?;
            let Some(stale) = regions.overlapping(base, bytes).map(|region| region.window.clone()) else {
                return Ok((regions, base));
            };
            table.unmap(base, bytes);
            let hole = base.max(stale.base());
            let end = base.plus(bytes).min(stale.base().plus(stale.bytes()));
            let dropped = (tries_left == 1).then(|| self.give_up(&mut regions, &stale, hole, end.since(hole), None));
            RwLockWriteGuard::unlock_fair(regions);
            drop(dropped);
            crate::sync::back_off(ROOM_BACK_OFF);
        }
        Err(Error::system("mmap", Errno::EAGAIN))
    }

    /// Condemns a range that is in no region, if it is registered with the table: its address may be
    /// somebody else's by now.
    fn condemn_if_ours(table: &dyn PageTable, at: Addr, bytes: u64) {
        for _ in 0..CONDEMN_TRIES {
            match table.protect(at, bytes) {
                Ok(Outcome::Installed | Outcome::AlreadyPresent) => {
                    table.condemn(at, bytes);
                    return;
                }
                // The thread that has called mremap has not run again.
                Ok(Outcome::Retry) => crate::sync::back_off(CONDEMN_BACK_OFF),
                Ok(Outcome::Gone) | Err(_) => return,
            }
        }
    }
}
