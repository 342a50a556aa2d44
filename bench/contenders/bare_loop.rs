//! The floor of every pager that has a thread for its faults: poll, read, one ioctl, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;

use super::floor::{answer_for, memory};
use crate::case::{Case, Work};
use crate::laps::{Contestant, Counts, Ground};
use crate::raw::{self, Answer, Mapped, Memory, Uffd, View};

pub(crate) struct BareLoop {
    work: Work,
    pages: u64,
    memory: Memory,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    uffd: Uffd,
    stop: AtomicBool,
    faults: AtomicU64,
    calls: AtomicU64,
}

fn serve(shared: &Shared, answer: Answer) {
    // Counted here, and published now and then: no other thread's cache line is in the way.
    let (mut faults, mut calls) = (0u64, 0u64);
    while !shared.stop.load(Ordering::Relaxed) {
        calls += 1;
        if !shared.uffd.poll() {
            continue;
        }
        calls += 1;
        let Some((at, minor)) = shared.uffd.read() else { continue };
        faults += 1;
        calls += 1;
        // Before the answer: with it the other thread goes on, and may ask.
        shared.faults.store(faults, Ordering::Relaxed);
        shared.calls.store(calls, Ordering::Relaxed);
        // Once in a long while the kernel has taken an entry away, and unprotecting nothing would go on for ever.
        let answer = if minor { Answer::Continue } else { answer };
        // A thread that is not woken repeats its access if it was somebody else's page.
        shared.uffd.answer(answer, at).expect("one page, once");
    }
}

impl BareLoop {
    pub(crate) fn new(case: &Case) -> anyhow::Result<Self> {
        let features = raw::MINOR_SHMEM | raw::MISSING_SHMEM | raw::WP_SHMEM;
        let uffd = Uffd::open(features).context("userfaultfd with minor faults on shared memory")?;
        let shared = Arc::new(Shared {
            uffd,
            stop: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        });
        let answer = answer_for(case.work);
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || serve(&shared, answer)
        });
        Ok(Self { work: case.work, pages: case.file_pages(), memory: memory(case)?, shared, thread: Some(thread) })
    }
}

/// The ground of both bare contenders.
pub(super) fn registered(uffd: &Uffd, memory: &Memory, work: Work) -> anyhow::Result<Mapped> {
    let map = memory.map()?;
    let mode = match answer_for(work) {
        Answer::Continue => raw::MODE_MINOR,
        Answer::Unprotect => raw::MODE_MINOR | raw::MODE_WP,
        Answer::Zero => raw::MODE_MISSING,
    };
    uffd.register(&map, mode).context("UFFDIO_REGISTER")?;
    if work == Work::WriteAfterProtect {
        uffd.install_all(&map).context("UFFDIO_CONTINUE")?;
        uffd.protect_all(&map).context("UFFDIO_WRITEPROTECT")?;
    }
    Ok(map)
}

impl Contestant for BareLoop {
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>> {
        if self.work.is_hole() {
            self.memory = Memory::sparse(self.pages)?;
        }
        let map = registered(&self.shared.uffd, &self.memory, self.work)?;
        Ok(Box::new(Served { map, shared: &self.shared }))
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Served<'a> {
    map: Mapped,
    shared: &'a Shared,
}

impl Ground for Served<'_> {
    fn view(&self) -> View<'_> {
        self.map.view()
    }

    fn counts(&self) -> Option<Counts> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(Counts { faults: read(&self.shared.faults), calls: read(&self.shared.calls) })
    }
}
