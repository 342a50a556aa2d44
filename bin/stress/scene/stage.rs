//! What scenes stand on: a pager with files, what is said of it, and what must not be harmed.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daxpager::probe::Probe;
use daxpager::sabotage::Rule;
use daxpager::{Allocation, Device, File, MapOptions, Mapping, Pager, Resolve, Tracking, Volume};
use fastrand::Rng;

use crate::machine::page_bytes;
use crate::neighbour::guards::{GUARD, Guards};
use crate::oracle::Kind;

/// What begins a line that says what is done next, and one that says what was wrong.
pub(crate) const STEP: &str = "step";
pub(crate) const FOUND: &str = "found";

/// One scene, under way.
pub(super) struct Scene {
    pub(super) rng: Rng,
    pub(super) guards: Guards,
    pub(super) rules: Vec<Rule>,
    /// A call that takes longer hangs.
    pub(super) limit: Duration,
}

/// One line; nobody to hear it is nothing to fail for.
fn line(words: [&str; 4]) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", words.join("\t").replace('\n', " "));
    let _ = out.flush();
}

impl Scene {
    pub(super) fn step(&self, text: &str) {
        line([STEP, text, "", ""]);
    }

    pub(super) fn found(&self, kind: Kind, expected: &str, found: &str) {
        line([FOUND, kind.name(), expected, found]);
    }

    #[cfg(feature = "sabotage")]
    pub(super) fn break_rules(&self, volume: &Volume, pager: &Pager) {
        for rule in &self.rules {
            volume.sabotage(*rule, true);
            pager.sabotage(*rule, true);
        }
    }

    #[cfg(not(feature = "sabotage"))]
    pub(super) fn break_rules(&self, _volume: &Volume, _pager: &Pager) {
        debug_assert!(self.rules.is_empty(), "refused with the arguments");
    }

    pub(super) fn check_guards(&self, after: &str) {
        if let Some(harm) = self.guards.harm() {
            self.found(Kind::Harm, "bytes that nobody has written to", &format!("{harm}, after {after}"));
        }
    }

    /// Bytes that came out of a mapping or a file of ours.
    pub(super) fn check_bytes(&self, bytes: &[u8], from: &str) {
        if let Some(at) = bytes.iter().position(|byte| *byte >= GUARD) {
            let found = format!("{:#x}, a guard's, at byte {at} of {} from {from}", bytes[at], bytes.len());
            self.found(Kind::Harm, "the bytes of a file", &found);
        }
    }

    /// Puts guards where a mapping is, if its addresses are free: they must not be, while it lives.
    pub(super) fn place_guards(&mut self, map: &Mapping, why: &str) {
        let (at, bytes) = (map.as_ptr() as usize, map.len() as usize);
        // Not all of it: where memory is short, what is harmed and whoever sees it need some, too.
        if let Some(placed) = self.guards.place(at, bytes.min(4 * GUARD_BYTES), GUARD_BYTES) {
            let found = format!("{placed} bytes from {at:#x} on could be mapped by somebody else, {why}");
            self.found(Kind::Harm, "addresses that stay a mapping's until it is dropped", &found);
        }
    }
}

/// Guards are placed in pieces: not all of a mapping may have come free, nor be to be had.
pub(super) const GUARD_BYTES: usize = 64 << 10;

/// A pager, two files, and a mapping of all of one.
pub(super) struct Stage {
    pub(super) volume: Volume,
    pub(super) file: File,
    pub(super) pager: Pager,
    pub(super) map: Arc<Mapping>,
}

/// The byte that is all over a page.
pub(super) fn byte_of(page: u64) -> u8 {
    1 + (page % 100) as u8
}

impl Stage {
    pub(super) fn new(scene: &mut Scene, pages: u64, probe: Option<Arc<dyn Probe>>) -> daxpager::Result<Self> {
        let page = page_bytes();
        let resolve = if scene.rng.bool() && cfg!(target_arch = "x86_64") {
            Resolve::FaultingThread
        } else {
            Resolve::PagerThread
        };
        let tracking = [Tracking::Exact, Tracking::Coarse, Tracking::Asynchronous][scene.rng.usize(0..3)];
        scene.step(&format!("begins, with {resolve:?} and {tracking:?}"));
        let options = MapOptions::new().resolve(resolve).tracking(tracking);
        let device = Device::memfd("scene", 2 * pages * page)?;
        let mut builder = Pager::builder().workers(1 + scene.rng.usize(0..2)).thread_name("scn").prepare(&options);
        let volume = match probe {
            Some(probe) => {
                builder = builder.probe(probe.clone());
                Volume::format_observed(device, Allocation::Blocks, probe)
            }
            None => Volume::format_with(device, Allocation::Blocks),
        };
        let file = volume.create("file")?;
        for index in 0..pages {
            file.write_at(&vec![byte_of(index); page as usize], index * page)?;
        }
        let pager = builder.start()?;
        scene.break_rules(&volume, &pager);
        let map = Arc::new(pager.map_with(&file, 0..pages * page, &options)?);
        let stage = Self { volume, file, pager, map };
        stage.load_all(scene, &[]);
        Ok(stage)
    }

    /// Loads a word of each page; those of `changed` may have any value that is a file's.
    pub(super) fn load_all(&self, scene: &Scene, changed: &[u64]) {
        for index in 0..self.map.len() / page_bytes() {
            match self.map.load(index * page_bytes()) {
                Ok(word) if changed.contains(&index) => {
                    scene.check_bytes(&word.to_ne_bytes(), &format!("a load of page {index}"))
                }
                Ok(word) if word == u64::from_ne_bytes([byte_of(index); 8]) => {}
                Ok(word) => {
                    scene.check_bytes(&word.to_ne_bytes(), &format!("a load of page {index}"));
                    scene.found(Kind::Lost, "what was written to the file", &format!("{word:#x} in page {index}"));
                }
                Err(error) => return scene.found(Kind::Error, "a mapping that works", &error.to_string()),
            }
        }
    }
}

/// Every access is an error once the pager has ended.
pub(super) fn check_ended(scene: &Scene, map: &Mapping, file: &File) {
    let page = page_bytes();
    let mut bytes = [0; 64];
    let loaded = map.load(0).map(|word| format!("load: {word:#x}"));
    let stored = map.store(page, 1).map(|()| "store: done".to_owned());
    let copied = map.copy_in(2 * page, &[1; 64]).map(|()| "copy_in: done".to_owned());
    let read = map.copy_out(3 * page, &mut bytes).map(|()| format!("copy_out: {bytes:x?}"));
    for went in [loaded, stored, copied, read].into_iter().flatten() {
        scene.found(Kind::NoSigbus, "an error from each call once the pager has ended", &went);
    }
    scene.check_guards("calls on a mapping whose pager has ended");
    if file.write_at(&[1; 8], 0).is_err() {
        scene.found(Kind::Error, "a file that can be written to without its pager", "an error");
    }
}

/// Waits for something, as long as a call may take.
pub(super) fn wait_for(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !is_so() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}
