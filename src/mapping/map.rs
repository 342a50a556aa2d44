//! How a mapping comes to be.

use std::ops::Range;

use super::Mapping;
use crate::address::core::Core;
use crate::address::regions::Region;
use crate::error::{Error, Result};
use crate::file::File;
use crate::inode::Inode;
use crate::options::{MapOptions, Tracking};
use crate::pager::Pager;
use crate::policy::Backing;
use crate::space::Window;
use crate::sync::Arc;
use crate::sys::limits::{self, Wanted};
use crate::sys::{Mended, Present, Rights};
use crate::units::{PageRange, TABLE_BYTES};

/// Mappings.
impl Pager {
    /// Maps a range of a file, in bytes. It must be made of whole pages, and may reach past the end of the
    /// file: there, accesses are a SIGBUS until the file has grown. Takes no memory to speak of, however
    /// long the range. The mapping is not inherited by child processes.
    ///
    /// # Errors
    /// [`Error::EmptyRange`], [`Error::RangeOverflow`], [`Error::Misaligned`]; [`Error::PagerGone`];
    /// [`Error::Limit`], or [`Error::System`] where the limit is not known, when addresses are short: a mapping counts as so many bytes of
    /// private memory for `RLIMIT_AS` and `RLIMIT_DATA`, after mlockall(2) for `RLIMIT_MEMLOCK`, and under
    /// `vm.overcommit_memory=2`;
    /// [`Error::NoPlaces`] for a range that lies far beyond what a device of windows has offsets for;
    /// [`Error::MissingFeature`] for a device of huge pages on a kernel without.
    pub fn map(&self, file: &File, range: Range<u64>) -> Result<Mapping> {
        self.map_with(file, range, &MapOptions::default())
    }

    /// As [`Pager::map`], with a choice of how faults are resolved and stores are noticed.
    ///
    /// # Errors
    /// As [`Pager::map`], and [`Error::MissingFeature`] for an option that this kernel lacks something for. Where the first mapping of its
    /// kind has to open something: [`Error::NoUserfaultfd`], [`Error::NoKernelFaults`]. See [`PagerBuilder::prepare`](crate::PagerBuilder::prepare).
    pub fn map_with(&self, file: &File, range: Range<u64>, options: &MapOptions) -> Result<Mapping> {
        let bytes = range.end.saturating_sub(range.start);
        self.try_map(file, range, options).map_err(|error| limits::explain(error, Wanted::Memory(bytes)))
    }

    fn try_map(&self, file: &File, range: Range<u64>, options: &MapOptions) -> Result<Mapping> {
        self.home.check()?;
        file.inode().home().check()?;
        let inode = (**file.inode()).clone();
        let page = inode.page();
        let len = range.end.saturating_sub(range.start);
        let range = crate::inode::control::checked_range(range.start, len)?;
        if page.within(range.start) != 0 || page.within(len) != 0 {
            return Err(Error::Misaligned { offset: range.start, len, page_bytes: page.bytes() });
        }
        if inode.store.memory.is_huge() {
            self.core.table.check_huge()?;
        }
        let options = &options.settled();
        let lets_stores_through = match options.tracking {
            Tracking::Exact | Tracking::Coarse => false,
            Tracking::Asynchronous => inode.store.capacity().is_some(),
            // What is present is written then: not where a write makes pages present that it does not touch.
            Tracking::Off => inode.store.may_arm() && !inode.store.memory.may_get_huge_folios(),
        };
        let table = self.table_for(options)?;
        let pages = PageRange::at(page.page_of(range.start), page.pages_in(len));
        inode.have_places(pages)?;
        Inode::is_mapped(&inode);
        // Before the address is: until the region is known, a fault there would be at an unknown address.
        let align = alignment(&inode, range.start, len);
        let (mut regions, place) = self.core.room_for(&table, len, align, Rights::of(options))?;
        let base = place.at();
        let window = Window::new(table.clone(), *options, place, pages, page);
        let window = window.map(|window| if lets_stores_through { window.letting_stores_through() } else { window });
        let unarmed = inode.store.may_arm().then(|| inode.space.unarmed());
        let window = window.and_then(|window| match unarmed {
            Some(unarmed) if !window.is_open() => window.with_armed_parts(unarmed),
            Some(_) | None => Ok(window),
        });
        let window = Arc::new(window.map_err(|errno| Error::system("mmap", errno))?);
        let mut region = Region::new(Arc::clone(&inode), window.clone());
        show_places(&inode, &window, &mut region)?;
        let mut change = inode.space.change();
        change.add_window(&inode.store, window.clone());
        change.commit(&inode.store);
        regions.insert(region);
        window.table.watch(base, len, Arc::<Core>::clone(&self.core));
        drop(regions);
        Ok(Mapping::new(self.home, Arc::clone(&self.core), inode, window))
    }
}

/// What the address is to be a multiple of. Of a large part of a file with windows pages lie within a table of the page table's lowest
/// level as they do in the window: parts of it are moved table by table then.
fn alignment(inode: &Inode, start: u64, len: u64) -> u64 {
    let is_whole = start.is_multiple_of(TABLE_BYTES) && len >= TABLE_BYTES;
    if inode.store.may_arm() && is_whole { TABLE_BYTES.max(inode.page().bytes()) } else { inode.page().bytes() }
}

/// Has a mapping of a file with windows show them, for good. Before anybody has its address.
fn show_places(inode: &Inode, window: &Window, region: &mut Region) -> Result<()> {
    let windows: Vec<_> = {
        let shared = inode.space.shared();
        shared.extents().windows().map_or_else(Vec::new, |places| places.windows(window.pages()).collect())
    };
    let (present, first): (_, fn(_) -> _) = match window.is_open() {
        true => (Present::Open, Backing::Open),
        false => (Present::Told, Backing::Own),
    };
    for (pages, block) in windows {
        let offset = inode.page().device_offset(block);
        let (span, memory) = (window.span(pages), &inode.store.memory);
        if let Err(errno) = window.table.show(span, memory, offset, window.rights(), present) {
            // What the kernel has unmapped may be somebody else's by now.
            if window.table.mend(span, window.rights()) == Ok(Mended::Lost) {
                window.place.set_foreign(span.at(), span.bytes());
            }
            return Err(Error::system("mmap", errno));
        }
        region.layout.set(pages, first(block));
    }
    Ok(())
}
