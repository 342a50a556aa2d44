//! The contenders, one file each; each runs in a process of its own.

pub(crate) mod bare_handler;
pub(crate) mod bare_loop;
pub(crate) mod dax;
mod floor;
pub(crate) mod kernel;
pub(crate) mod other;
mod steps;

use crate::case::{Case, Contender, Outcome, Regime, Work};
use crate::laps;
use crate::raw::{self, Cpu};

/// Measures a case in this process.
pub(crate) fn measure(case: &Case) -> anyhow::Result<Outcome> {
    match case.regime {
        Regime::Pinned | Regime::Apart => raw::pin(Cpu::Last)?,
        Regime::Free => {}
    }
    let sample = match (&case.contender, case.work) {
        (Contender::Dax(options), _) => return dax::measure(case, *options),
        (Contender::Kernel, Work::Punch | Work::Truncate) => kernel::drop_entries(case)?,
        (Contender::Kernel, Work::ReadCalls | Work::WriteCalls) => kernel::calls(case)?,
        (Contender::Kernel, Work::PunchPages) => kernel::punch_pages(case, 1)?,
        (Contender::Kernel, Work::PunchRuns { run }) => kernel::punch_pages(case, run)?,
        (Contender::Kernel, Work::PunchAmong { mappings, .. }) => kernel::punch_among(case, mappings)?,
        (Contender::Kernel, Work::HoleReadFar) => return steps::with_memory(case, || kernel::holes_far(case)),
        (Contender::KernelAsync, Work::Collect) => kernel::scan(case)?,
        (Contender::Kernel | Contender::KernelOnePage | Contender::KernelAsync | Contender::KernelArmed, _) => {
            laps::run(case, &mut kernel::Kernel::new(case)?)?
        }
        (Contender::BareLoop, _) => laps::run(case, &mut bare_loop::BareLoop::new(case)?)?,
        (Contender::BareHandler, _) => laps::run(case, &mut bare_handler::BareHandler::new(case)?)?,
        (Contender::Other(_, path), _) => return other::measure(case, path),
    };
    Ok(Outcome::Measured(sample))
}
