//! A pager's state as text, for a bug report about threads that hang. Locks are asked, or tried; none is waited for.

use std::fmt::{self, Write};

use crate::address::budget;
use crate::address::core::Core;
use crate::address::regions::{Region, Regions};
use crate::address::stats::Kind;
use crate::options::Allocation;
use crate::sync::{Held, RwLockReadGuard, thread};
use crate::sys::sent;

/// Mappings that are listed.
const MAPPINGS_MAX: usize = 16;
/// How often the map of regions is tried.
const TRIES: u32 = 100;

/// Everything that can be told without waiting.
pub(super) fn describe(core: &Core) -> String {
    let mut text = String::new();
    write_all(core, &mut text).expect("a string takes what is written to it");
    text
}

fn write_all(core: &Core, out: &mut String) -> fmt::Result {
    writeln!(out, "pager: {}", life(core))?;
    let stats = core.stats.snapshot();
    write!(out, "faults read: {}", stats.all_faults())?;
    Kind::ALL.iter().try_for_each(|kind| write!(out, "; {} {}", kind.name(), stats.faults_of(*kind)))?;
    writeln!(out, "\nqueued: {}", core.queue.len())?;
    write!(out, "done:")?;
    core.stats.named().iter().try_for_each(|(name, count)| write!(out, " {name} {count}"))?;
    writeln!(out, "\ncalls: {:?}", core.calls())?;
    let numbering = if core.numbering.is_locked() { "held" } else { "free" };
    writeln!(out, "numbering of messages: {numbering}")?;
    writeln!(out, "signals of this process's pagers that came too late, and were dropped: {}", sent::dropped())?;
    // Before it is tried, or it would be seen held by this very call.
    let held = Held::of(&core.regions);
    match try_regions(core) {
        None => writeln!(out, "map of regions: {held}; mappings not known"),
        Some(regions) => {
            let (mappings, ranges) = (regions.len(), regions.pieces());
            let (own, all) = (core.address_ranges_max, core.process_ranges_max);
            writeln!(
                out,
                "map of regions: {held}; {mappings} mappings in {ranges} address ranges of at most {own}; all pagers: {} of at most {all}",
                budget::total()
            )?;
            write_mappings(&regions, out)
        }
    }
}

/// The map of regions, unless it stays taken: most holds are over in a moment.
fn try_regions(core: &Core) -> Option<RwLockReadGuard<'_, Regions>> {
    (0..TRIES).find_map(|_| {
        let regions = core.regions.try_read();
        if regions.is_none() {
            thread::yield_now();
        }
        regions
    })
}

fn life(core: &Core) -> String {
    let state = match (core.is_stopping(), core.is_revoked()) {
        (false, _) => "alive",
        (true, false) => "stopping",
        (true, true) => "revoked",
    };
    match core.failure.try_lock() {
        Some(failure) => match &*failure {
            Some(reason) => format!("{state}, because {reason}"),
            None => state.to_owned(),
        },
        None => format!("{state}, about to say why"),
    }
}

fn write_mappings(regions: &Regions, out: &mut String) -> fmt::Result {
    regions.iter().take(MAPPINGS_MAX).try_for_each(|region| write_mapping(region, out))?;
    match regions.len().saturating_sub(MAPPINGS_MAX) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

fn write_mapping(region: &Region, out: &mut String) -> fmt::Result {
    let (window, inode) = (&region.window, &region.inode);
    let state = match (window.is_lost(), window.is_alive()) {
        (true, _) => "lost",
        (false, true) => "alive",
        (false, false) => "ending",
    };
    writeln!(
        out,
        "  {:?}, {} bytes: file {} from page {}, {}, {state}; L1 {}, L2 {}, grace {}",
        window.base(),
        window.bytes(),
        inode.number(),
        window.pages().start.0,
        allocation_of(region),
        Held::of(&inode.change),
        inode.space.held(),
        inode.describe_grace(),
    )
}

/// Where the file's pages lie, and what of the mapping the kernel installs by itself.
fn allocation_of(region: &Region) -> String {
    let pieces = region.layout.pieces();
    match region.inode.store.allocation() {
        (Allocation::Windows, _) => {
            if region.window.is_open() {
                return format!("windows in {pieces} address ranges, open: no store is noticed");
            }
            let armed = region.inode.page().bytes_of(region.window.armed_pages());
            format!("windows in {pieces} address ranges, {armed} bytes armed")
        }
        (Allocation::Blocks, Some(why)) => format!("single blocks in {pieces} address ranges, as {why}"),
        (Allocation::Blocks, None) => format!("single blocks in {pieces} address ranges"),
    }
}
