//! How mappings end: unmapped, lost to the application, revoked with the pager. Each leaves its file and the page table
//! in one hold of the file's lock: entries of a mapping that its file does not know are found by no invalidation.

use nix::errno::Errno;

use crate::address::core::Core;
use crate::address::regions::Regions;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::Window;
use crate::sync::{Arc, Ordering, RwLockWriteGuard};
use crate::sys::{PageTable, Place, Revoked, Rights};
use crate::units::{Addr, PageIndex, PageRange};

/// How often, and how long apart, a range is tried to be revoked while the kernel refuses: about a second.
const REVOKE_TRIES: u32 = 10_000;
const REVOKE_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);
/// How often, and how long apart, an address range is asked for that no region has: about a second.
const ROOM_TRIES: u32 = 10_000;
const ROOM_BACK_OFF: std::time::Duration = std::time::Duration::from_micros(100);

impl Core {
    /// Makes every mapping end in SIGBUS. Waits for locks, so it is a worker's: whoever holds one may be
    /// waiting for the reader, which goes on reading meanwhile. The addresses stay taken: [`Core::unmap`] alone gives them
    /// back. Waits, too, while the process has no address range left with which to take one out of service.
    pub(crate) fn revoke(&self) {
        let mut regions = self.regions.write();
        while let Some(region) = regions.first() {
            let (window, inode) = (region.window.clone(), region.inode.clone());
            let mut change = inode.space.change();
            change.remove_window(&window);
            if self.switches.broken(Rule::RevokeOnce) && !window.is_lost() {
                give_back_too_early(&window);
                window.set_lost();
                change.commit(&inode.store);
                regions.remove(&window);
                continue;
            }
            // Its entries go under the lock under which it leaves: no invalidation finds them from then on.
            let done = self.switches.broken(Rule::RevokeBeforeClose) || self.take_out_of_service(&window);
            if done {
                // Before an observer is told, which may panic: nothing is revoked twice.
                regions.remove(&window);
                change.commit(&inode.store);
                continue;
            }
            change.commit(&inode.store);
            RwLockWriteGuard::unlock_fair(regions);
            crate::sync::back_off(REVOKE_BACK_OFF);
            regions = self.regions.write();
        }
        // Under the lock: whoever maps looks at it under the lock.
        self.revoked.store(true, Ordering::Release);
        RwLockWriteGuard::unlock_fair(regions);
        self.kick();
    }

    /// Unmaps a mapping. An invalidation like any other (rule 7): no install reaches the range once it has
    /// left the file and the map of regions. Only then is the address given back, if nobody else has the window. A worker may, that has
    /// a late fault of it in its hands: then accesses are a SIGBUS until that is done, and gives the address back.
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
    pub(crate) fn unmap(&self, window: &mut Arc<Window>, inode: &Arc<Inode>) {
        let first = window.pages().start;
        let tell = |point| inode.probe(point, first, None);
        tell(Point::BeforeUnmap);
        if inode.broken(Rule::UnmapUnderLock) {
            give_back_too_early(window);
        }
        let mut regions = self.regions.write();
        regions.remove(window);
        let mut change = inode.space.change();
        change.remove_window(window);
        // Under L2: no invalidation finds the entries any more, and what they name may be freed once it is dropped.
        match Arc::get_mut(window) {
            Some(window) => window.place.give_back(),
            // If the kernel has no room for that the entries are gone even so.
            None => _ = self.take_out_of_service(window),
        }
        change.commit(&inode.store);
        tell(Point::Unmapped);
        RwLockWriteGuard::unlock_fair(regions);
        // With the mapping gone: its entries are, too.
        inode.give_back_preallocated(PageRange::from(PageIndex(0)));
    }

    /// The application has moved a part of a mapping away (mremap): the kernel has moved entries with
    /// it that no invalidation will find. The mapping is given up, and what was moved is revoked.
    pub(crate) fn lose(&self, from: Addr, to: Addr, bytes: u64) {
        let mut regions = self.regions.write();
        let window = regions.find(from).map(|region| region.window.clone());
        let given_up = window.is_some_and(|window| self.give_up(&mut regions, &window, from, bytes, Some(to)));
        if !given_up {
            // Of a mapping that has been given up already.
            Self::revoke_if_ours(&*self.table, to, bytes);
            if let Some(direct) = self.direct() {
                Self::revoke_if_ours(&*direct, to, bytes);
            }
        }
        RwLockWriteGuard::unlock_fair(regions);
    }

    /// Ends a mapping of which a part is not ours any more: `bytes` from `hole` on, which are at `moved` now if
    /// the application has moved them. The rest is taken out of service in place, and given back when the mapping is dropped.
    /// `false` if there is no such region, or the kernel has no room for that: then its faults are poisoned one by one.
    pub(crate) fn give_up(
        &self,
        regions: &mut Regions,
        window: &Arc<Window>,
        hole: Addr,
        bytes: u64,
        moved: Option<Addr>,
    ) -> bool {
        let Some(inode) = regions.of(window).map(|region| region.inode.clone()) else { return false };
        let end = window.base().plus(window.bytes());
        let bytes = hole.plus(bytes).min(end).since(hole);
        window.set_lost();
        let mut change = inode.space.change();
        change.remove_window(window);
        if let Some(to) = moved {
            Self::revoke_if_ours(&*window.table, to, bytes);
        }
        // MREMAP_DONTUNMAP leaves the range where it was, too; and a worker that had not heard of the move may have
        // pointed it elsewhere since.
        if !Self::revoke_if_ours(&*window.table, hole, bytes) {
            window.place.set_foreign(hole, bytes);
        }
        let done = self.take_out_of_service(window);
        change.commit(&inode.store);
        window.table.wake(window.base(), window.bytes());
        if done {
            regions.remove(window);
        }
        done
    }

    /// Gives a mapping up that is all ours, and its addresses with it; all but a part, whose faults are nobody's from then on. For
    /// [`Rule::MendWhatIsOurs`].
    pub(crate) fn give_up_what_is_ours(&self, regions: &mut Regions, window: &Arc<Window>, part: Addr, bytes: u64) {
        let Some(inode) = regions.of(window).map(|region| region.inode.clone()) else { return };
        window.set_lost();
        let mut change = inode.space.change();
        change.remove_window(window);
        window.place.set_foreign(part, bytes);
        give_back_too_early(window);
        change.commit(&inode.store);
        regions.remove(window);
    }

    /// An address range that no region has, and the map of regions held exclusively from before there is a range.
    ///
    /// The kernel gives out the addresses of a region only if the application has moved it away (mremap), and its event has not been
    /// taken up: by its address the event would be taken for one of the new mapping. So the range is given
    /// back until the region has gone. One that stays was unmapped by the application, and is given up.
    pub(crate) fn room_for(
        &self,
        table: &Arc<dyn PageTable>,
        bytes: u64,
        align: u64,
        rights: Rights,
    ) -> Result<(RwLockWriteGuard<'_, Regions>, Place)> {
        for tries_left in (0..ROOM_TRIES).rev() {
            let mut regions = self.regions.write();
            self.check_alive()?;
            let place = Place::reserve(table, bytes, align, rights).map_err(|errno| Error::system("mmap", errno))?;
            #[cfg(feature = "sabotage")]
            let place = {
                let mut place = place;
                if self.switches.broken(Rule::MadeUpAddresses) {
                    place.take_for_real();
                }
                place
            };
            let base = place.at();
            let Some(stale) = regions.overlapping(base, bytes).map(|region| region.window.clone()) else {
                return Ok((regions, place));
            };
            drop(place);
            let hole = base.max(stale.base());
            let end = base.plus(bytes).min(stale.base().plus(stale.bytes()));
            if tries_left == 1 {
                self.give_up(&mut regions, &stale, hole, end.since(hole), None);
            }
            RwLockWriteGuard::unlock_fair(regions);
            crate::sync::back_off(ROOM_BACK_OFF);
        }
        Err(Error::system("mmap", Errno::EAGAIN))
    }

    /// Revokes a range that is in no region, if it is registered with the table: its addresses may be
    /// somebody else's by now. Whether it was.
    fn revoke_if_ours(table: &dyn PageTable, at: Addr, bytes: u64) -> bool {
        for _ in 0..REVOKE_TRIES {
            match table.revoke_moved(at, bytes) {
                None => return false,
                Some(Revoked::Sigbus | Revoked::Segv) => return true,
                Some(Revoked::Refused) => crate::sync::back_off(REVOKE_BACK_OFF),
            }
        }
        true
    }

    /// Makes every access to a mapping end in SIGBUS, with its addresses kept, under L2 held exclusively. `false` if the kernel has
    /// no room for that. The entries are gone even so.
    fn take_out_of_service(&self, window: &Window) -> bool {
        let mut done = true;
        for part in window.place.own_parts() {
            match window.table.revoke(part) {
                Revoked::Sigbus => {}
                Revoked::Segv | Revoked::Refused if self.switches.broken(Rule::RevokeInPlace) => {
                    window.place.give_back_too_early(part);
                    window.set_lost();
                }
                // Calls that come from now on are an error; an access of ours that is under way ends in one.
                Revoked::Segv => window.set_lost(),
                Revoked::Refused => {
                    // Of what the application has unmapped the kernel has taken them.
                    let _ = window.table.zap(part);
                    done = false;
                }
            }
        }
        done
    }
}

/// Gives the addresses of a mapping back that is there still, as rules do that are broken on purpose.
fn give_back_too_early(window: &Window) {
    window.place.own_parts().into_iter().for_each(|part| window.place.give_back_too_early(part));
}
