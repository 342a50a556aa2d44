//! What a core dump of a process has of its mappings: nothing, unless [`MapOptions::dumped`] asks for it.
#![allow(unsafe_code, reason = "a process that dies")]

mod blackbox;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{Allocation, Device, File, MapOptions, Mapping, Pager, Resolve, Tracking, Volume};

/// A file on tmpfs that is gone when the test is over.
struct Shm(PathBuf);

impl Shm {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/dev/shm/daxpager-dumps-{}-{name}", std::process::id())))
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An address range of this process, from proc(5).
struct Range {
    start: usize,
    end: usize,
    line: String,
    is_dumped: bool,
}

fn ranges() -> Vec<Range> {
    let mut all: Vec<Range> = Vec::new();
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            all.last_mut().unwrap().is_dumped = !flags.split_whitespace().any(|flag| flag == "dd");
        } else if let Some((start, end)) = line.split_whitespace().next().and_then(|first| first.split_once('-')) {
            let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).unwrap());
            all.push(Range { start, end, line: line.to_owned(), is_dumped: false });
        }
    }
    all
}

/// Every part of a mapping is dumped, or none is, and of a device nothing else is.
#[track_caller]
fn assert_dumped(maps: &[(&Mapping, bool)], device: &str) {
    let mut parts = 0;
    for range in ranges() {
        let of = |map: &Mapping| {
            let base = map.as_ptr() as usize;
            range.start < base + map.len() as usize && base < range.end
        };
        let wanted = maps.iter().find(|(map, _)| of(map)).map(|(_, dumped)| *dumped);
        parts += usize::from(wanted.is_some());
        if wanted.is_some() || range.line.contains(device) {
            assert_eq!(range.is_dumped, wanted.unwrap_or(false), "{}", range.line);
        }
    }
    assert!(parts > maps.len(), "{parts} address ranges of {} mappings", maps.len());
}

/// Whatever a mapping is pointed at, for as long as it is there.
fn the_choice_is_kept(device: Device, name: &str) {
    let p = host_page();
    let volume = Volume::format_with(device, Allocation::Blocks);
    // So few that ranges are given up, which joins what lay apart.
    let pager = Pager::builder().address_ranges_max(64).start().unwrap();
    for resolve in [Resolve::PagerThread, Resolve::FaultingThread] {
        for tracking in [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous] {
            let options = MapOptions::new().resolve(resolve).tracking(tracking);
            let (file, other) = (volume.create("file").unwrap(), volume.create("other").unwrap());
            // Each page is a range of its own.
            for page in 0..64 {
                put(&file, &pattern(p, page), 2 * page * p);
                put(&other, &pattern(p, page), page * p);
            }
            file.truncate(200 * p).unwrap();
            let [dumped, plain, read_only] = [options.dumped(true), options, options.read_only(true).dumped(true)]
                .map(|options| pager.map_with(&file, 0..256 * p, &options).unwrap());
            let maps = [(&dumped, true), (&plain, false), (&read_only, true)];
            for round in 0..2 {
                for (map, _) in maps {
                    (0..200).for_each(|page| touch(map, page * p));
                    assert!(map.load(250 * p).is_err());
                }
                assert_dumped(&maps, name);
                for map in [&dumped, &plain] {
                    (130..160).for_each(|page| map.store(page * p, 7).unwrap());
                }
                assert_dumped(&maps, name);
                file.punch_hole(round * p, 150 * p).unwrap();
                file.zero_range(20 * p, 9 * p, true).unwrap();
                assert_dumped(&maps, name);
            }
            drop((dumped, plain, read_only, file, other));
            volume.remove("file").unwrap();
            volume.remove("other").unwrap();
        }
    }
    assert!(pager.stats().evictions > 0, "{}", pager.describe());
    // After the end of the pager there is nothing to see.
    let file = volume.create("file").unwrap();
    put(&file, &pattern(4 * p, 1), 0);
    let map = pager.map_with(&file, 0..8 * p, &MapOptions::new().dumped(true)).unwrap();
    touch(&map, p);
    assert_dumped(&[(&map, true)], name);
    pager.shutdown().unwrap();
    let base = map.as_ptr() as usize;
    let left: Vec<Range> = ranges().into_iter().filter(|range| range.start == base).collect();
    assert!(left.len() == 1 && !left[0].is_dumped, "{}", left[0].line);
}

#[test]
fn the_choice_is_kept_on_a_memfd() {
    the_choice_is_kept(Device::memfd("dumps", 4096 * host_page()).unwrap(), "/memfd:dumps ");
}

#[test]
fn the_choice_is_kept_on_a_file() {
    let shm = Shm::new("kept");
    the_choice_is_kept(Device::open(&shm.0, 4096 * host_page()).unwrap(), shm.0.to_str().unwrap());
}

/// A process with a mapping of each kind dies, while a thread waits in a fault that nobody will answer. Its core has what was in the page
/// table, of the mapping that asks for it; no hole has got a block by it.
#[test]
fn a_core_has_what_a_mapping_shows() {
    let pattern_of_cores = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let name = pattern_of_cores.trim_end();
    if name.is_empty() || name.starts_with('|') || name.contains('/') {
        return guard::not_run(&format!("core dumps go elsewhere: /proc/sys/kernel/core_pattern is {name:?}"));
    }
    let p = host_page();
    let folder = std::env::temp_dir().join(format!("daxpager-dumps-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let _gone = at_end(|| drop(fs::remove_dir_all(&folder)));
    let shm = Shm::new("core");
    let mut command = child::command("inside::a_core_has_what_a_mapping_shows");
    command.current_dir(&folder).env("DEVICE", &shm.0);
    let outcome = child::finish(command);
    outcome.assert_killed_after("dies", libc::SIGABRT);
    let at = |key| outcome.value(key).parse::<u64>().unwrap();
    let cores: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [core] = &cores[..] else { panic!("the dumps are {cores:?}") };
    let core = Core::open(core);

    let page_of = |map: u64, page: u64| core.bytes(map + page * p, p);
    for dumped in [at("memfd"), at("named")] {
        assert_bytes(&page_of(dumped, 0).unwrap(), &pattern(p, 1), "a page that was loaded");
        let mut stored = zeros(p);
        stored[..8].copy_from_slice(&7u64.to_ne_bytes());
        assert_bytes(&page_of(dumped, 3).unwrap(), &stored, "a hole that was stored to");
        // A page that nobody has touched, a hole that was loaded, one that was not, a page past the end, and one behind it.
        for page in [1, 2, 4, 6, 1000] {
            let got = page_of(dumped, page).unwrap_or_else(|| zeros(p));
            assert_bytes(&got, &zeros(p), &format!("page {page}"));
        }
    }
    assert!((0..8).all(|page| page_of(at("plain"), page).is_none()), "nobody has asked for this one");
    let blocks = fs::metadata(&shm.0).unwrap().blocks();
    assert_eq!(blocks, at("blocks"), "the dump has changed the device");
    assert!(core.taken() < 256 << 20, "the dump takes {} bytes", core.taken());
}

/// A core dump, elf(5).
struct Core {
    file: fs::File,
    /// Where a part begins in memory and in the file, and how long it is in there.
    parts: Vec<(u64, u64, u64)>,
}

impl Core {
    fn open(path: &Path) -> Self {
        let file = fs::File::open(path).unwrap();
        let number = |at: u64, bytes: usize| {
            let mut number = [0; 8];
            file.read_exact_at(&mut number[..bytes], at).unwrap();
            u64::from_le_bytes(number)
        };
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        assert!(number(0, 4) == 0x464c_457f && count < 0xffff);
        const PT_LOAD: u64 = 1;
        let headers = (0..count).map(|index| table + index * size).filter(|at| number(*at, 4) == PT_LOAD);
        let parts = headers.map(|at| (number(at + 16, 8), number(at + 8, 8), number(at + 32, 8))).collect();
        Self { file, parts }
    }

    /// What it has of the process's memory there.
    fn bytes(&self, addr: u64, len: u64) -> Option<Vec<u8>> {
        let (start, offset, _) =
            self.parts.iter().find(|(start, _, bytes)| *start <= addr && addr + len <= start + bytes)?;
        let mut bytes = zeros(len);
        self.file.read_exact_at(&mut bytes, offset + (addr - start)).unwrap();
        Some(bytes)
    }

    /// Bytes on disk.
    fn taken(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }
}

/// What the children do.
mod inside {
    use daxpager::probe::Point;
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

    use super::*;

    fn mapping(pager: &Pager, file: &File, dumped: bool) -> Mapping {
        let p = host_page();
        let options = MapOptions::new().fault_around(0).dumped(dumped);
        let map = pager.map_with(file, 0..(1 << 30), &options).unwrap();
        touch(&map, 0);
        touch(&map, 2 * p);
        map.store(3 * p, 7).unwrap();
        assert!(map.load(6 * p).is_err());
        map
    }

    #[test]
    #[ignore = "run in a child"]
    fn a_core_has_what_a_mapping_shows() {
        assert_is_child();
        setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY).unwrap();
        // Files with a name and huge pages, too.
        fs::write("/proc/self/coredump_filter", "0x7f").unwrap();
        let p = host_page();
        let device = PathBuf::from(std::env::var_os("DEVICE").unwrap());
        let memfd = Device::memfd("dumped", 1 << 30).unwrap();
        let park = Park::new();
        let pager = Pager::builder().probe(park.clone()).start().unwrap();
        let volumes = [memfd, Device::open(&device, 1 << 30).unwrap()]
            .map(|device| Volume::format_with_probe(device, park.clone()));
        let [memfd, named] = volumes.each_ref().map(|volume| {
            let file = volume.create("file").unwrap();
            put(&file, &pattern(2 * p, 1), 0);
            file.truncate(6 * p).unwrap();
            file
        });
        let (in_memfd, in_named, plain) =
            (mapping(&pager, &memfd, true), mapping(&pager, &named, true), mapping(&pager, &memfd, false));
        let trap = park.trap(Point::Decided, 5);
        std::thread::scope(|scope| {
            scope.spawn(|| touch(&in_memfd, 5 * p));
            trap.wait();
            for (key, map) in [("memfd", &in_memfd), ("named", &in_named), ("plain", &plain)] {
                println!("\n{key}={}", map.as_ptr() as usize);
            }
            println!("blocks={}\ndies", fs::metadata(&device).unwrap().blocks());
            std::process::abort();
        });
    }
}
