//! What a fault needs before it can be answered: a block, a written state, an address range that
//! points at the right part of the device. Nothing here decides anything, and nothing is installed.

use nix::errno::Errno;

use super::{Preparation, Prepare};
use crate::address::budget::is_crowded;
use crate::address::core::Core;
use crate::address::regions::{Region, Regions};
use crate::error::Error;
use crate::inode::Inode;
use crate::policy::Backing;
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::Window;
use crate::sync::{Arc, RwLockWriteGuard};
use crate::sys::{Mended, Present};
use crate::units::{Addr, PageIndex, PageRange};

/// What came of a preparation.
pub(super) enum Prepared {
    /// Done, or no longer wanted: look again.
    Ready,
    /// No block is free, or none with memory behind it.
    NoBlock(Error),
    /// The blocks that there are cannot be zeroed: the device refuses.
    Lost(Error),
    /// The kernel has no memory, or no address range, left for the moment.
    NoMemory,
}

/// Pieces of a mapping that are given up at once when address ranges run out.
const EVICT_PIECES: usize = 256;
/// Address ranges that one re-point may need for a moment.
const REPOINT_PIECES: u64 = 4;
/// The pages around a fault whose blocks are moved together when address ranges run out.
const GATHER_PAGES: u64 = 512;

pub(super) fn prepare(core: &Core, need: &Preparation) -> Prepared {
    match need.what {
        Prepare::Allocate(pages, wanted) => match Inode::fill_hole(&need.inode, pages, wanted) {
            Ok(()) => {
                core.stats.add(&core.stats.allocations);
                Prepared::Ready
            }
            Err(error) => Prepared::NoBlock(error),
        },
        Prepare::Convert(pages) => match need.inode.convert(pages) {
            Ok(()) => {
                core.stats.add(&core.stats.conversions);
                Prepared::Ready
            }
            Err(error) => Prepared::Lost(error),
        },
        Prepare::Keep(pages) => {
            need.inode.keep(pages);
            Prepared::Ready
        }
        Prepare::TakeZerosBack => {
            need.inode.store.take_zeros_back();
            Prepared::Ready
        }
        Prepare::MakeReady => {
            let change = need.inode.space.change();
            let is_ready = change.make_ready(PageRange::one(need.page));
            change.commit(&need.inode.store);
            // Refused for the moment, as memory is: tried again as often, and as long.
            if is_ready { Prepared::Ready } else { Prepared::NoMemory }
        }
        Prepare::Repoint(_, Backing::Armed(_)) if !may_arm(core, need) => {
            need.window.set_not_to_be_armed();
            Prepared::Ready
        }
        Prepare::Repoint(range, first) => repoint(core, need, range, first),
        Prepare::Poison(at) => {
            poison(core, need, at);
            Prepared::Ready
        }
    }
}

/// Whether the kernel may install what is present, at the cost of an address range or two. Not where the system gives huge folios since
/// the volume was made: what is present may be nobody's then. It is asked once for each mapping.
fn may_arm(core: &Core, need: &Preparation) -> bool {
    let gives_huge_folios = || !need.window.has_armed_parts() && need.inode.store.memory.may_get_huge_folios();
    !is_crowded(core, REPOINT_PIECES) && !gives_huge_folios()
}

/// Poisons a page that the device has lost. A write-protect marker may be in the way, and clearing that is safe only while
/// nobody can put an entry there.
fn poison(core: &Core, need: &Preparation, at: Addr) {
    let regions = core.regions.read();
    let Some(region) = regions.find(at).filter(|region| Arc::ptr_eq(&region.window, &need.window)) else { return };
    let change = need.inode.space.change();
    if need.window.is_alive() {
        change.poison(&need.window, need.page, at, region.layout.backing(need.page));
    }
    change.commit(&need.inode.store);
}

/// Points `range` of a mapping at `first` and what follows. Installs nothing, so it needs no L2, and a
/// range that is stale by the time it is in place is harmless: the next access faults.
///
/// ```text
/// this worker                                       reader
///   regions exclusive
///   mremap: the range is in place
///     event queued; every install on this             read: the event
///     userfaultfd would answer EAGAIN
///   mremap returns
///   record it in the layout
///   unlock
/// ```
fn repoint(core: &Core, need: &Preparation, range: PageRange, first: Backing) -> Prepared {
    if core.gathers && need.inode.store.capacity().is_none() && is_crowded(core, REPOINT_PIECES) {
        // Fragmented so much that the process runs out of address ranges: put together
        // what belongs together. The next look sees fewer, longer extents.
        let start = PageIndex(need.page.0 / GATHER_PAGES * GATHER_PAGES);
        need.inode.gather(PageRange::at(start, GATHER_PAGES));
    }
    let mut regions = core.regions.write();
    if is_crowded(core, REPOINT_PIECES) {
        evict(core, &mut regions);
    }
    // Gone, given up, or another worker has been first.
    let still = regions.of(&need.window).filter(|_| need.window.is_alive());
    let Some((range, first)) = still.and_then(|region| still_to_be_pointed(region, need.page, range, first)) else {
        return Prepared::Ready;
    };
    need.inode.probe(Point::Repointing, range.start, None);
    settle(&need.inode, &need.window, range);
    let held = need.inode.broken(Rule::NoWaitUnderLock).then(|| need.inode.space.change());
    let pointed = point(need, range, first);
    if let Some(change) = held {
        change.commit(&need.inode.store);
    }
    match pointed {
        Err(errno) if matches!(first, Backing::Armed(_)) => {
            // As it was, or zeros: the next look puts that right, and does without.
            need.window.set_not_to_be_armed();
            let change = need.inode.space.change();
            need.window.set_unarmed(range);
            change.commit(&need.inode.store);
            need.window.end_arming();
            mend(core, &mut regions, &need.window, range, errno);
            RwLockWriteGuard::unlock_fair(regions);
            Prepared::Ready
        }
        Ok(()) => {
            regions.repointed(&need.window, range, first);
            need.window.end_arming();
            need.window.set_room();
            core.stats.add(&core.stats.repoints);
            RwLockWriteGuard::unlock_fair(regions);
            Prepared::Ready
        }
        Err(errno) => {
            mend(core, &mut regions, &need.window, range, errno);
            // Out of address ranges though the budget was kept: the application has them.
            evict(core, &mut regions);
            RwLockWriteGuard::unlock_fair(regions);
            Prepared::NoMemory
        }
    }
}

/// What of a re-point is to be done still, as the layout is now. In its place a page is pointed at once, from zeros, and armed once: what
/// is armed is the kernel's to install, and lies beyond `settle`.
fn still_to_be_pointed(
    region: &Region,
    page: PageIndex,
    range: PageRange,
    first: Backing,
) -> Option<(PageRange, Backing)> {
    let layout = &region.layout;
    match (first, layout.backing(page)) {
        (Backing::Armed(_), now @ (Backing::Own(_) | Backing::Armed(_))) => {
            let piece = range.intersect(layout.piece(page));
            let range = match now {
                // Told of again, perhaps.
                Backing::Armed(_) => region.window.unarmed_around(page, piece)?,
                _ => piece,
            };
            Some((range, layout.to_be_armed(range.start)?))
        }
        (Backing::Armed(_), _) => None,
        (Backing::Own(_) | Backing::Open(_), Backing::Own(_) | Backing::Armed(_) | Backing::Open(_)) => None,
        (Backing::Own(_) | Backing::Open(_) | Backing::Zeros | Backing::Block(_), _) => Some((range, first)),
    }
}

/// Before a range is pointed elsewhere: the page table is the record of what has been stored to through an asynchronous
/// mapping, and a re-point takes the markers away with the entries. There may be some even where the layout was wrong when the
/// re-point was found to be needed: another worker may have put it right since, and faults have been answered. With
/// `regions` held exclusively, so nothing is installed before the re-point.
fn settle(inode: &Inode, window: &Window, range: PageRange) {
    if window.may_have_unread(range) {
        let change = inode.space.change();
        window.zap(range);
        change.commit(&inode.store);
    }
}

fn point(need: &Preparation, range: PageRange, first: Backing) -> Result<(), Errno> {
    let page = need.inode.page();
    let span = need.window.span(range);
    let rights = need.window.rights();
    let in_place = |block, present| {
        let (offset, memory) = (page.device_offset(block), &need.inode.store.memory);
        need.window.table.point_in_place(span, memory, offset, rights, present)
    };
    match first {
        Backing::Zeros => need.window.table.point_at_zeros(span, rights),
        Backing::Own(block) => in_place(block, Present::Told),
        Backing::Open(block) => in_place(block, Present::Open),
        Backing::Armed(block) => {
            // Before it is: whoever punches looks.
            match need.window.is_asynchronous() {
                true => need.inode.space.shared().is_about_to_be_armed(&need.window, range),
                false => need.window.set_armed(range),
            }
            in_place(block, Present::Installed)
        }
        Backing::Block(block) => {
            let offset = page.device_offset(block);
            need.window.table.point_at_device(span, &need.inode.store.memory, offset, rights)
        }
    }
}

/// After a re-point has failed: makes sure that the range is ours and recorded as what it is, or gives the
/// mapping up.
fn mend(core: &Core, regions: &mut Regions, window: &Arc<Window>, range: PageRange, why: Errno) {
    let Some(region) = regions.of(window) else { return };
    let span = window.span(range);
    let (at, bytes) = (span.at(), span.bytes());
    if why == Errno::ENOMEM && region.inode.broken(Rule::MendWhatIsOurs) {
        return core.give_up_what_is_ours(regions, window, at, bytes);
    }
    match window.table.mend(span, window.rights()) {
        Ok(Mended::Zeros) => regions.repointed(window, range, Backing::Zeros),
        Ok(Mended::Untouched) => {}
        Ok(Mended::Lost) => _ = core.give_up(regions, window, at, bytes, None),
        // The kernel does not tell. If the range is gone, an access is a SIGSEGV; if it is there, the next re-point tells.
        Err(_) => {}
    }
}

/// For another pager of the process, which needs address ranges.
pub(crate) fn give_up_ranges(core: &Core) {
    core.share.heard();
    let mut regions = core.regions.write();
    evict(core, &mut regions);
    RwLockWriteGuard::unlock_fair(regions);
}

/// Gives up some of the address ranges of the mapping that has the most: they point at zeros again,
/// in one piece, and the next faults there put right what is still wanted. Always safe: it
/// only takes entries away.
fn evict(core: &Core, regions: &mut Regions) {
    let Some(region) = regions.most_pieces() else { return };
    let start = region.eviction_cursor();
    let span = region.layout.span(start, EVICT_PIECES);
    if span.is_empty() || region.layout.pieces() < 2 {
        return;
    }
    let window = region.window.clone();
    settle(&region.inode, &window, span);
    region.evicted_up_to(span.end);
    match window.table.join_to_zeros(window.span(span), window.rights()) {
        Ok(()) => {
            regions.repointed(&window, span, Backing::Zeros);
            core.stats.add(&core.stats.evictions);
        }
        Err(errno) => mend(core, regions, &window, span, errno),
    }
}
