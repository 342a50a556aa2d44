//! The stage that the race is played on: a probe that keeps a log of what happened and holds one
//! thread at one point, and actors that are waited for. Every wait has a limit.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use daxpager::probe::{Event, Point, Probe};

/// After this long something is stuck, and the scene has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// What the pager of a scene calls its threads, so that the probe tells them from others.
pub(crate) const PAGER_THREADS: &str = "race";
/// The thread that changes files.
pub(crate) const CHANGER: &str = "process 2";

/// Whose thread reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Party {
    Pager,
    Changer,
    Other,
}

impl Party {
    fn current() -> Self {
        match thread::current().name() {
            Some(CHANGER) => Party::Changer,
            Some(name) if name.starts_with(PAGER_THREADS) => Party::Pager,
            _ => Party::Other,
        }
    }
}

#[derive(Default)]
struct State {
    log: Vec<(Party, Event)>,
    /// Where the next thread is to be held; once.
    hold: Option<(Party, Point)>,
    held: Option<Event>,
}

/// The observer of a scratch volume.
#[derive(Default)]
pub(crate) struct Stage {
    state: Mutex<State>,
    changed: Condvar,
}

impl Probe for Stage {
    fn at(&self, event: Event) {
        let party = Party::current();
        let mut state = self.lock();
        state.log.push((party, event));
        let hold = state.hold == Some((party, event.point));
        if hold {
            state.hold = None;
            state.held = Some(event);
        }
        self.changed.notify_all();
        if hold {
            // Twice the limit: whoever forgets to release it has failed by then, and must not hang too.
            let _ = self.changed.wait_timeout_while(state, LIMIT * 2, |state| state.held.is_some());
        }
    }
}

impl Stage {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the next thread of `party` that comes to `point`.
    pub(crate) fn hold(&self, party: Party, point: Point) {
        self.lock().hold = Some((party, point));
    }

    /// Waits until a thread is held.
    pub(crate) fn held(&self) -> anyhow::Result<Event> {
        self.wait("a thread to be held", LIMIT, |state| state.held)
    }

    /// Lets the held thread go on.
    pub(crate) fn release(&self) {
        self.lock().held = None;
        self.changed.notify_all();
    }

    /// What has happened so far; a place to look from later.
    pub(crate) fn now(&self) -> usize {
        self.lock().log.len()
    }

    /// Waits until `party` has come to `point` since `from`: when that was, and what it reported.
    pub(crate) fn reached(&self, party: Party, point: Point, from: usize) -> anyhow::Result<(usize, Event)> {
        self.wait(&format!("{party:?} to reach {point:?}"), LIMIT, |state| find(state, party, point, from))
    }

    /// Whether `party` stays away from `point` for `time`. What should not happen can only be waited for.
    pub(crate) fn stays_away(&self, party: Party, point: Point, from: usize, time: Duration) -> bool {
        self.wait("", time, |state| find(state, party, point, from)).is_err()
    }

    fn wait<T>(&self, what: &str, limit: Duration, look: impl Fn(&State) -> Option<T>) -> anyhow::Result<T> {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| look(state).is_none());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        look(&state).with_context(|| format!("waited {} s for {what}", limit.as_secs()))
    }
}

fn find(state: &State, party: Party, point: Point, from: usize) -> Option<(usize, Event)> {
    let mut rest = state.log.iter().enumerate().skip(from);
    let (at, (_, event)) = rest.find(|(_, (who, event))| *who == party && event.point == point)?;
    Some((at, *event))
}

/// A thread that does one thing, and is waited for only so long.
pub(crate) struct Actor<T> {
    name: String,
    done: Receiver<T>,
}

impl<T: Send + 'static> Actor<T> {
    pub(crate) fn start(name: &str, act: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<Self> {
        let (tx, done) = channel();
        let body = move || {
            // Nobody listens any more if the scene has failed.
            let _ = tx.send(act());
        };
        thread::Builder::new().name(name.to_owned()).spawn(body).context("no thread is to be had")?;
        Ok(Self { name: name.to_owned(), done })
    }

    pub(crate) fn wait(self) -> anyhow::Result<T> {
        match self.done.recv_timeout(LIMIT) {
            Ok(result) => Ok(result),
            Err(_) => bail!("waited {} s for {}", LIMIT.as_secs(), self.name),
        }
    }
}
