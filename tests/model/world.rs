//! A small world for one schedule: a volume of a few blocks, a pager, and the fake page table under it.

use std::cell::Cell;
use std::sync::Arc;

use daxpager::fake::{FakeFault, FakePageTable};
use daxpager::probe::Probe;
use daxpager::sabotage::Rule;
use daxpager::{
    Allocation, Device, File, Injection, Invariants, MapOptions, Mapping, Pager, PagerBuilder, Tracking, Volume,
};
use shuttle::thread::{self, JoinHandle};

use crate::hunt::watch;

pub const PAGE: u64 = 4096;

/// What no thread ever stores: it is there from the beginning, in a word of its own.
pub const OLD: u64 = 0x01d;

thread_local! {
    /// How mappings are made, in whatever scenario is run next.
    static OPTIONS: Cell<MapOptions> = Cell::new(MapOptions::new());
    /// Where the pages of files lie.
    static ALLOCATION: Cell<Allocation> = const { Cell::new(Allocation::Blocks) };
}

/// Whether a load of a hole takes a page, in whatever scenario is run next: a store to what it left would not be noticed.
pub fn loads_take_pages() -> bool {
    let options = OPTIONS.get();
    allocation() == Allocation::Windows && options == options.tracking(Tracking::Asynchronous)
}

/// Where they lie in whatever scenario is run next.
pub fn allocation() -> Allocation {
    ALLOCATION.get()
}

/// Has `run` make its volumes like this.
pub fn with_allocation<T>(allocation: Allocation, run: impl FnOnce() -> T) -> T {
    let before = ALLOCATION.replace(allocation);
    let done = run();
    ALLOCATION.set(before);
    done
}

/// Places on a device of windows, at least.
const PLACES: u64 = 64;

/// Has `run` make its mappings like this.
pub fn with_options<T>(options: MapOptions, run: impl FnOnce() -> T) -> T {
    let before = OPTIONS.replace(options);
    let done = run();
    OPTIONS.set(before);
    done
}

pub struct World {
    pub fake: FakePageTable,
    pub volume: Volume,
    pub pager: Pager,
    broken: Option<Rule>,
    moves: bool,
}

/// How a [`World`] is to be.
#[derive(Default)]
pub struct Plan {
    pub blocks: u64,
    pub workers: usize,
    pub injection: Option<Injection>,
    /// Whether the application moves mappings, so that installs may be refused.
    pub moves: bool,
    /// Told of what the pager's threads do, and may hold them.
    pub probe: Option<Arc<dyn Probe>>,
}

impl Plan {
    pub fn blocks(blocks: u64) -> Self {
        Plan { blocks, workers: 1, ..Plan::default() }
    }

    pub fn build(self, broken: Option<Rule>) -> World {
        let fake = FakePageTable::new();
        let bytes = self.blocks * PAGE;
        let allocation = ALLOCATION.get();
        let device = match allocation {
            Allocation::Windows => Device::sparse_heap(bytes, (16 * bytes).max(PLACES * PAGE), PAGE),
            _ => Device::heap(bytes, PAGE),
        };
        let volume = Volume::format_with(device.unwrap(), allocation);
        assert_eq!(volume.allocation(), (allocation, None));
        // Without the question to the kernel of how many address ranges there may be.
        let mut builder: PagerBuilder = Pager::builder().workers(self.workers).address_ranges_max(1000);
        if let Some(injection) = self.injection {
            builder = builder.inject(injection);
        }
        if let Some(probe) = self.probe {
            builder = builder.probe(probe);
        }
        let pager = builder.start_on_fake(&fake).unwrap();
        if let Some(rule) = broken {
            volume.sabotage(rule, true);
            pager.sabotage(rule, true);
        }
        watch(Invariants::new(&volume, &fake));
        World { fake, volume, pager, broken, moves: self.moves }
    }
}

impl World {
    /// A file with [`OLD`] in word `2` of each of its pages.
    pub fn file(&self, name: &str, pages: u64) -> File {
        let file = self.volume.create(name).unwrap();
        for page in 0..pages {
            file.write_at(&OLD.to_ne_bytes(), page * PAGE + 16).unwrap();
        }
        file
    }

    pub fn mapping(&self, file: &File, pages: u64) -> Mapping {
        self.pager.map_with(file, 0..pages * PAGE, &OPTIONS.get()).unwrap()
    }

    pub fn map(&self, file: &File, pages: u64) -> View {
        self.view(file, self.mapping(file, pages))
    }

    /// A mapping whose stores are noticed like that, whatever the others do.
    pub fn map_tracked(&self, file: &File, pages: u64, tracking: Tracking) -> View {
        let options = OPTIONS.get().tracking(tracking);
        self.view(file, self.pager.map_with(file, 0..pages * PAGE, &options).unwrap())
    }

    fn view(&self, file: &File, map: Mapping) -> View {
        View { fake: self.fake.clone(), file: file.clone(), base: map.as_ptr() as usize, map: Arc::new(map) }
    }

    /// Ends it all: every mapping is revoked and every thread of the pager ends, and none of them has panicked.
    pub fn end(self) {
        assert_eq!(self.fake.stray_signals(), 0, "a SIGBUS has hit a thread that was in no fault");
        if self.broken.is_none() && !self.moves {
            assert_eq!(self.fake.refused(), 0, "the pager's own re-points are in the way of its installs");
        }
        self.pager.shutdown().unwrap();
        if self.broken != Some(Rule::RevokeBeforeClose) {
            assert_eq!(self.fake.waiting(), 0);
        }
    }
}

/// A mapping as the threads of a scenario share it.
#[derive(Clone)]
pub struct View {
    pub fake: FakePageTable,
    pub file: File,
    pub base: usize,
    pub map: Arc<Mapping>,
}

impl View {
    fn at(&self, page: u64, word: u64) -> usize {
        self.base + (page * PAGE + word * 8) as usize
    }

    pub fn load(&self, page: u64, word: u64) -> Result<u64, FakeFault> {
        self.fake.load(self.at(page, word))
    }

    pub fn store(&self, page: u64, word: u64, value: u64) -> Result<(), FakeFault> {
        self.fake.store(self.at(page, word), value)
    }

    /// The SIGBUS of an access to that word.
    pub fn bus<T>(&self, page: u64, word: u64) -> Result<T, FakeFault> {
        Err(FakeFault::Bus { addr: self.at(page, word) })
    }

    /// A thread of the scenario.
    pub fn spawn(&self, body: impl FnOnce(View) + Send + 'static) -> JoinHandle<()> {
        let view = self.clone();
        thread::spawn(move || body(view))
    }

    /// A thread that stores a value of its own twice into one word, and sees it or a hole's zeros.
    pub fn writer(&self, page: u64, word: u64, value: u64) -> JoinHandle<()> {
        self.spawn(move |view| {
            for value in [value, value + 1] {
                view.store(page, word, value).unwrap();
                let seen = view.load(page, word).unwrap();
                assert!(seen == value || seen == 0, "stored {value:#x}, and sees {seen:#x}");
            }
        })
    }
}

pub fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
