//! The volume, the pager, the files and the mappings of one mix.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use daxpager::probe::{Event, Point, Probe};
use daxpager::{Allocation, Device, File, Mapping, Pager, Volume};
use fastrand::Rng;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::inject::{Inject, Put};
use crate::manner::Manner;
use crate::mix::Mix;
use crate::oracle::Oracle;
use crate::oracle::dirty::{DirtyRecord, Limit};
use crate::oracle::trace::{Entry as TraceEntry, PAGER, What};

/// A mapping that threads share.
pub(crate) struct Mapped {
    pub(crate) mapping: Mapping,
    pub(crate) file: u8,
    pub(crate) first_page: u64,
    pub(crate) pages: u64,
    pub(crate) manner: Manner,
    pub(crate) dirty: DirtyRecord,
}

pub(crate) type Place = RwLock<Option<Arc<Mapped>>>;

pub(crate) struct World {
    pub(crate) mix: Mix,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) files: Vec<File>,
    pub(crate) mappings: Vec<Place>,
    pub(crate) pager: Pager,
    pub(crate) volume: Volume,
    /// The device as any process sees it, without the library.
    pub(crate) device: fs::File,
    /// Every second thread has all signals blocked.
    pub(crate) masked: bool,
}

/// Writes what the pager tells into the traces of the pages, and delays it where that is asked for.
struct Observer {
    oracle: Arc<Oracle>,
    put: Put,
    random: AtomicU64,
}

impl Observer {
    /// Splitmix: any thread may draw at any time.
    fn draw(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn delay(&self, point: Point) {
        let Some(delay) = self.put.delay_at(point) else { return };
        let drawn = self.draw();
        if drawn % 1_000_000 < u64::from(delay.ppm) {
            std::thread::sleep(Duration::from_micros((drawn >> 32) % u64::from(delay.us_max) + 1));
        }
    }
}

impl Probe for Observer {
    fn at(&self, event: Event) {
        // Files are numbered from 1 in the order of their making; those that come and go have later numbers.
        let file = event.file.map(|number| number - 1).filter(|file| *file < self.oracle.files.len() as u64);
        if let Some(file) = file
            && event.page.0 < self.oracle.files[file as usize].pages()
        {
            let (ticket, ns) = (self.oracle.tick(), self.oracle.ns());
            let (what, value) = (What::Point(event.point), event.block.map(|block| block.0));
            let entry = TraceEntry { ticket, began: ticket, ns, thread: PAGER, what, slot: None, value };
            self.oracle.note(file as u8, event.page.0, entry);
        }
        self.delay(event.point);
    }
}

/// A device, and its file besides, to be read without the library.
fn open_device(allocation: Allocation, bytes: u64) -> anyhow::Result<(Device, fs::File)> {
    if allocation == Allocation::Blocks {
        let memfd = memfd_create("daxpager-stress", MFdFlags::MFD_CLOEXEC).context("memfd_create")?;
        let device = fs::File::from(memfd);
        return Ok((Device::from_file(device.try_clone()?, "daxpager-stress", bytes)?, device));
    }
    // Windows are for files that nobody else has: this one is reached as a debugger reaches it.
    static DEVICES: AtomicU64 = AtomicU64::new(0);
    let name = format!("daxpager-stress-{}", DEVICES.fetch_add(1, Ordering::Relaxed));
    let device = Device::memfd(&name, bytes)?;
    let target = format!("/memfd:{name} (deleted)");
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|link| link.as_os_str() == target.as_str()) {
            return Ok((device, fs::File::open(path)?));
        }
    }
    bail!("{target} is not among the process's files")
}

impl World {
    pub(crate) fn build(mix: Mix, oracle: Arc<Oracle>, put: &Put) -> anyhow::Result<Self> {
        let (opened, device) = open_device(mix.allocation, mix.device_blocks() * oracle.page_bytes)?;
        let seed = AtomicU64::new(mix.seed);
        let observer = Arc::new(Observer { oracle: oracle.clone(), put: put.clone(), random: seed });
        let volume = Volume::format_observed(opened, mix.allocation, observer.clone());
        ensure!(
            volume.allocation() == (mix.allocation, None),
            "the volume is not as it was to be: {:?}",
            volume.allocation()
        );
        volume.set_zeros_max_even_one(mix.zeros_bytes);
        let mut builder = Pager::builder()
            .workers(mix.workers)
            .thread_name("stress")
            .measure_latencies()
            .require_kernel_faults()
            .reader_answers(mix.reader_answers)
            .probe(observer);
        if let Some(ranges) = mix.address_ranges_max {
            builder = builder.address_ranges_max(ranges);
        }
        if mix.gather_blocks {
            builder = builder.gather_blocks();
        }
        let pager = put.configure(builder, mix.seed).start()?;
        let files = (0..mix.files).map(|file| volume.create(&format!("file-{file}"))).collect::<Result<Vec<_>, _>>()?;
        let places = mix.files * mix.mappings_per_file;
        let world = Self {
            oracle,
            files,
            mappings: (0..places).map(|_| Place::default()).collect(),
            pager,
            volume,
            device,
            masked: put.has(Inject::Masked),
            mix,
        };
        let mut rng = Rng::with_seed(!world.mix.seed);
        for (place, file) in (0..world.mix.mappings_per_file).flat_map(|_| 0..world.mix.files).enumerate() {
            let mapped = world.map(file as u8, 0..world.mix.pages, world.mix.manners.next(&mut rng))?;
            world.exchange(place, Some(Arc::new(mapped)));
        }
        Ok(world)
    }

    /// Maps some pages of a file.
    pub(crate) fn map(&self, file: u8, pages: std::ops::Range<u64>, manner: Manner) -> daxpager::Result<Mapped> {
        let page = self.oracle.page_bytes;
        let bytes = pages.start * page..pages.end * page;
        let mapping = self.pager.map_with(&self.files[file as usize], bytes, &manner.options())?;
        let count = pages.end - pages.start;
        let at = mapping.as_ptr() as u64;
        self.oracle.mapped(at..at + count * page, manner.text());
        let limit = Limit::of(manner, self.mix.remappers > 0 && self.mix.manners.have_messages());
        let dirty = DirtyRecord::new(pages.clone(), limit);
        Ok(Mapped { mapping, file, first_page: pages.start, pages: count, manner, dirty })
    }

    pub(crate) fn mapped(&self, place: usize) -> Option<Arc<Mapped>> {
        self.mappings[place].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn exchange(&self, place: usize, mapped: Option<Arc<Mapped>>) -> Option<Arc<Mapped>> {
        std::mem::replace(&mut *self.mappings[place].write().unwrap_or_else(PoisonError::into_inner), mapped)
    }

    /// Some mapping of `file` from its first page on.
    pub(crate) fn mapping_of(&self, file: u8) -> Option<Arc<Mapped>> {
        (0..self.mappings.len())
            .filter_map(|place| self.mapped(place))
            .find(|mapped| mapped.file == file && mapped.first_page == 0)
    }
}
