//! The contenders, one file each; each runs in a process of its own.

pub(crate) mod bare_handler;
pub(crate) mod bare_loop;
#[path = "dax/world.rs"]
pub(crate) mod dax;
#[path = "dax/special.rs"]
pub(crate) mod dax_special;
pub(crate) mod kernel;
pub(crate) mod other;

use crate::case::{Case, Contender, Outcome, Regime, Work};
use crate::laps;
use crate::raw::{self, Answer, Cpu};

/// Measures a case in this process.
pub(crate) fn measure(case: &Case) -> anyhow::Result<Outcome> {
    match case.regime {
        Regime::Pinned | Regime::Apart => raw::pin(Cpu::Last)?,
        Regime::Free => {}
    }
    let sample = match (&case.contender, case.work) {
        (Contender::Dax(options), _) => return dax::measure(case, *options),
        (Contender::Kernel, Work::Punch | Work::Truncate) => kernel::drop_entries(case)?,
        (Contender::KernelAsync, Work::Collect) => kernel::scan(case)?,
        (Contender::Kernel | Contender::KernelOnePage | Contender::KernelAsync, _) => {
            laps::run(case, &mut kernel::Kernel::new(case)?)?
        }
        (Contender::BareLoop, _) => laps::run(case, &mut bare_loop::BareLoop::new(case)?)?,
        (Contender::BareHandler, Work::HoleWrite) => {
            return Ok(Outcome::NotAvailable("the bare handler installs, and allocates nothing".into()));
        }
        (Contender::BareHandler, _) => laps::run(case, &mut bare_handler::BareHandler::new(case)?)?,
        (Contender::Other(_, path), _) => return other::measure(case, path),
    };
    Ok(Outcome::Measured(sample))
}

/// What the bare contenders answer a fault of this work with.
fn answer_for(work: Work) -> Answer {
    match work {
        Work::WriteAfterProtect => Answer::Unprotect,
        Work::HoleWrite => Answer::Zero,
        _ => Answer::Continue,
    }
}

/// The pages that the file of a case has.
fn file_pages(case: &Case) -> u64 {
    match case.work {
        Work::SparseRead { file_pages } => file_pages,
        _ => case.pages,
    }
}

/// The memory of the contenders that are not the library.
fn memory(case: &Case) -> anyhow::Result<raw::Memory> {
    match case.work {
        Work::HoleWrite => raw::Memory::sparse(file_pages(case)),
        _ => raw::Memory::resident(file_pages(case)),
    }
}
