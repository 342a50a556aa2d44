//! An observer panics: in a thread of the pager, or while mappings are revoked; at addresses that have come free meanwhile there is a guard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use daxpager::Error;
use daxpager::probe::{Event, Point, Probe};

use super::call::Call;
use super::stage::{GUARD_BYTES, Scene, Stage, check_ended, wait_for};
use crate::machine::page_bytes;
use crate::neighbour::guards::Guards;
use crate::oracle::{Kind, lock};

const PAGES: u64 = 64;
const SAID: &str = "an observer that panics";

/// Panics at the next so many events of one kind.
struct Panics {
    point: Point,
    times: AtomicU64,
    /// The addresses of a mapping, at which guards are put first, if they are free.
    at: AtomicU64,
    guards: Mutex<Guards>,
    placed: AtomicU64,
}

impl Probe for Panics {
    fn at(&self, event: Event) {
        let one_less = |left: u64| left.checked_sub(1);
        if event.point != self.point || self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
            return;
        }
        let at = self.at.load(Ordering::SeqCst) as usize;
        let placed = lock(&self.guards).place(at, (PAGES * page_bytes()) as usize, GUARD_BYTES);
        self.placed.fetch_max(placed.unwrap_or(0) as u64, Ordering::SeqCst);
        std::panic::panic_any(SAID);
    }
}

/// Points in threads of the pager. In the handler of a thread that faults nothing may be allocated, and a panic is.
const SERVING: [Point; 3] = [Point::FaultRead, Point::FaultTaken, Point::Prepared];
/// Points of a change: each mapping that is revoked is one.
const CHANGING: [Point; 3] = [Point::Published, Point::Invalidated, Point::Freed];

pub(super) fn run(scene: &mut Scene) -> anyhow::Result<()> {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(SAID) {
            others(panic);
        }
    }));
    let revoking = scene.rng.u32(0..3) > 0;
    let points = if revoking { CHANGING } else { SERVING };
    let point = points[scene.rng.usize(0..points.len())];
    let guards = Mutex::new(Guards::new(scene.rng.u64(..)));
    let zero = || AtomicU64::new(0);
    let panics = Arc::new(Panics { point, times: zero(), at: zero(), guards, placed: zero() });
    let stage = Stage::new(scene, PAGES, Some(panics.clone()))?;
    panics.at.store(stage.map.as_ptr() as u64, Ordering::SeqCst);
    let call = Call::begin(scene, &stage.map)?;
    if !revoking {
        stage.file.punch_hole(7 * page_bytes(), page_bytes())?;
    }
    scene.step(&format!("the observer panics at {point:?}"));
    panics.times.store(scene.rng.u64(1..=2), Ordering::SeqCst);
    let (limit, map) = (scene.limit, stage.map.clone());
    if !revoking {
        // Served, or ended with the pager.
        let loading = std::thread::Builder::new().spawn(move || map.load(7 * page_bytes()))?;
        if !wait_for(limit, || loading.is_finished()) {
            scene.found(Kind::Hang, "a load that ends with the pager", "it goes on and on");
            return Ok(());
        }
    }
    let Stage { volume, file, pager, map } = stage;
    let ending = std::thread::Builder::new().spawn(move || pager.shutdown().map(drop))?;
    if !wait_for(limit, || ending.is_finished()) {
        scene.found(Kind::Hang, "a pager that ends", "it goes on and on");
        return Ok(());
    }
    // What is called from here on is not told.
    panics.times.store(0, Ordering::SeqCst);
    match ending.join() {
        Ok(Ok(()) | Err(Error::PagerGone { .. })) => {}
        Ok(Err(error)) => scene.found(Kind::Error, "a pager that ends", &error.to_string()),
        Err(_) => scene.found(Kind::Error, "a panic that ends the pager, and no caller of it", "a panic"),
    }
    let check = |scene: &Scene| {
        let placed = panics.placed.load(Ordering::SeqCst);
        if placed > 0 {
            let found = format!("{placed} bytes of it could be mapped by somebody else, when an observer was told");
            scene.found(Kind::Harm, "addresses that stay a mapping's until it is dropped", &found);
        }
        if let Some(harm) = lock(&panics.guards).harm() {
            let found = format!("{harm}, after an observer has panicked at {point:?}");
            scene.found(Kind::Harm, "bytes that nobody has written to", &found);
        }
    };
    check(scene);
    scene.place_guards(&map, "when the pager had ended by a panic");
    let _ = call.go_on(scene);
    check_ended(scene, &map, &file);
    check(scene);
    drop((map, file, volume));
    Ok(())
}
