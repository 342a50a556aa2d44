//! A probe that holds threads at named points until the test lets them go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::release_on_panic;
use daxpager::PageIndex;
use daxpager::probe::{Event, Point, Probe};

/// Nobody is held for longer than this, and nobody waits for longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The probe. Give it to `Volume::format_with_probe` and set traps. When the thread that has made it panics, nobody
/// is held any more.
pub(crate) struct Park {
    slots: Mutex<Slots>,
    changed: Condvar,
    /// Traps that are set, so that the probe costs nothing where there is none.
    armed: AtomicUsize,
    let_go: Arc<AtomicBool>,
    _on_panic: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Slots {
    next: usize,
    slots: BTreeMap<usize, Slot>,
    /// What went by while a trap was set: for the message when it was not reached.
    recent: Vec<(Event, Name)>,
}

/// What went by that is kept at most. Probes run in a signal handler, too, where nothing is allocated.
const RECENT: usize = 50;

/// The beginning of a thread's name.
#[derive(Clone, Copy)]
struct Name([u8; 24]);

impl Name {
    fn of(name: &str) -> Self {
        let mut kept = [0; 24];
        let len = name.len().min(kept.len());
        kept[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self(kept)
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(String::from_utf8_lossy(&self.0).trim_end_matches('\0'))
    }
}

type Wanted = Box<dyn Fn(&Event, &str) -> bool + Send>;

struct Slot {
    wanted: Wanted,
    phase: Phase,
}

enum Phase {
    Armed,
    Parked(Event),
    Released,
    /// The test did not let go in time, so the thread went on by itself.
    Expired,
}

impl Park {
    pub(crate) fn new() -> Arc<Self> {
        let let_go = Arc::new(AtomicBool::new(false));
        // No lock: the panic may be one under it. Who is held looks.
        let on_panic = release_on_panic({
            let let_go = let_go.clone();
            move || let_go.store(true, Ordering::SeqCst)
        });
        Arc::new(Self {
            slots: Mutex::default(),
            changed: Condvar::new(),
            armed: AtomicUsize::new(0),
            let_go,
            _on_panic: on_panic,
        })
    }

    /// Will hold the first thread that gets to `point` for `page`.
    pub(crate) fn trap(self: &Arc<Self>, point: Point, page: u64) -> Trap {
        self.trap_if(move |event, _| event.point == point && event.page == PageIndex(page))
    }

    /// The same for one of the threads whose name starts with `thread`.
    pub(crate) fn trap_thread(self: &Arc<Self>, point: Point, page: u64, thread: &'static str) -> Trap {
        self.trap_if(move |event, name| {
            event.point == point && event.page == PageIndex(page) && name.starts_with(thread)
        })
    }

    /// Will hold the first thread for which `wanted` is true of the event and the thread's name.
    pub(crate) fn trap_if(self: &Arc<Self>, wanted: impl Fn(&Event, &str) -> bool + Send + 'static) -> Trap {
        let mut slots = self.lock();
        let id = slots.next;
        slots.next += 1;
        slots.recent.clear();
        slots.recent.reserve(RECENT);
        slots.slots.insert(id, Slot { wanted: Box::new(wanted), phase: Phase::Armed });
        self.armed.fetch_add(1, Ordering::SeqCst);
        Trap { park: self.clone(), id }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, slots: MutexGuard<'a, Slots>, time: Duration) -> MutexGuard<'a, Slots> {
        self.changed.wait_timeout(slots, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Probe for Park {
    fn at(&self, event: Event) {
        if self.armed.load(Ordering::SeqCst) == 0 || self.let_go.load(Ordering::SeqCst) {
            return;
        }
        let thread = thread::current();
        let name = thread.name().unwrap_or("");
        let mut slots = self.lock();
        if slots.recent.len() < RECENT {
            slots.recent.push((event, Name::of(name)));
        }
        let hit = |slot: &Slot| matches!(slot.phase, Phase::Armed) && (slot.wanted)(&event, name);
        let Some(id) = slots.slots.iter().find(|(_, slot)| hit(slot)).map(|(id, _)| *id) else { return };
        slots.slots.get_mut(&id).unwrap().phase = Phase::Parked(event);
        self.changed.notify_all();
        let since = Instant::now();
        while slots.slots.get(&id).is_some_and(|slot| matches!(slot.phase, Phase::Parked(_))) {
            match PATIENCE.checked_sub(since.elapsed()) {
                _ if self.let_go.load(Ordering::SeqCst) => return,
                Some(left) => slots = self.wait(slots, left.min(Duration::from_millis(20))),
                None => slots.slots.get_mut(&id).unwrap().phase = Phase::Expired,
            }
        }
    }
}

/// A place where one thread will be held, once. Dropping it lets the thread go.
pub(crate) struct Trap {
    park: Arc<Park>,
    id: usize,
}

impl Trap {
    /// Waits until a thread is held.
    ///
    /// # Panics
    /// If none has come within 20 s.
    #[track_caller]
    pub(crate) fn wait(&self) -> Event {
        self.wait_or(|| false).unwrap()
    }

    /// Waits until a thread is held, or `done`: the thread took another way and will not come. Nobody
    /// else is held then.
    #[track_caller]
    pub(crate) fn wait_or(&self, mut done: impl FnMut() -> bool) -> Option<Event> {
        let since = Instant::now();
        let mut slots = self.park.lock();
        loop {
            match slots.slots[&self.id].phase {
                Phase::Armed => {}
                Phase::Parked(event) => return Some(event),
                Phase::Released | Phase::Expired => panic!("the thread was held, and nobody looked for 20 s"),
            }
            if done() {
                slots.slots.get_mut(&self.id).unwrap().phase = Phase::Released;
                return None;
            }
            assert!(since.elapsed() < PATIENCE, "no thread came by in 20 s; what did: {:#?}", slots.recent);
            slots = self.park.wait(slots, Duration::from_millis(1));
        }
    }

    pub(crate) fn is_holding(&self) -> bool {
        matches!(self.park.lock().slots[&self.id].phase, Phase::Parked(_))
    }

    /// Lets the thread go.
    ///
    /// # Panics
    /// If it had to go by itself because the test took longer than 20 s: the test waited for it.
    #[track_caller]
    pub(crate) fn release(self) {
        let expired = {
            let mut slots = self.park.lock();
            let phase = &mut slots.slots.get_mut(&self.id).unwrap().phase;
            let expired = matches!(phase, Phase::Expired);
            *phase = Phase::Released;
            expired
        };
        self.park.changed.notify_all();
        assert!(!expired, "what the test did meanwhile waited for the held thread");
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.park.lock().slots.remove(&self.id);
        self.park.armed.fetch_sub(1, Ordering::SeqCst);
        self.park.changed.notify_all();
    }
}
