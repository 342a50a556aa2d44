//! The floor of every pager that answers in the thread that faults: a signal, and in its handler one ioctl.

use anyhow::Context;

use super::bare_loop::registered;
use super::floor::{answer_for, memory};
use crate::case::{Case, Work};
use crate::laps::{Contestant, Counts, Ground};
use crate::raw::{self, Mapped, Memory, Uffd, View};

pub(crate) struct BareHandler {
    work: Work,
    pages: u64,
    memory: Memory,
    uffd: Uffd,
}

impl BareHandler {
    pub(crate) fn new(case: &Case) -> anyhow::Result<Self> {
        let features = raw::SIGBUS | raw::MINOR_SHMEM | raw::MISSING_SHMEM | raw::WP_SHMEM;
        let uffd = Uffd::open(features).context("userfaultfd with UFFD_FEATURE_SIGBUS")?;
        raw::answer_sigbus(&uffd, answer_for(case.work)).context("sigaction")?;
        Ok(Self { work: case.work, pages: case.file_pages(), memory: memory(case)?, uffd })
    }
}

impl Contestant for BareHandler {
    fn ground(&mut self) -> anyhow::Result<Box<dyn Ground + '_>> {
        if self.work.is_hole() {
            self.memory = Memory::sparse(self.pages)?;
        }
        Ok(Box::new(Handled { map: registered(&self.uffd, &self.memory, self.work)? }))
    }
}

struct Handled {
    map: Mapped,
}

impl Ground for Handled {
    fn view(&self) -> View<'_> {
        self.map.view()
    }

    fn counts(&self) -> Option<Counts> {
        // The ioctl. The return from the signal is not a call of the handler's.
        Some(Counts { faults: raw::handled(), calls: raw::handled() })
    }
}
