//! The library, as a contender.

mod many;
mod memory;
mod patterns;
mod special;
mod world;

use super::steps;
use crate::case::{Case, Options, Outcome, Work};
use crate::machine::is_lacking;

pub(crate) fn measure(case: &Case, options: Options) -> anyhow::Result<Outcome> {
    let measured = match case.work {
        Work::Collect => special::collect(case, options).map(Outcome::Measured),
        Work::Punch | Work::PunchPages | Work::PunchRuns { .. } | Work::Truncate => {
            special::take_away(case, options).map(Outcome::Measured)
        }
        Work::PunchAmong { mappings, own_files } => {
            many::punch_among(case, options, mappings, own_files).map(Outcome::Measured)
        }
        Work::ManyFiles => many::files(case, options).map(Outcome::Measured),
        Work::HoleReadFar => steps::with_memory(case, || memory::holes_far(case, options)),
        Work::StoreThenLoad => memory::store_then_load(case, options).map(Outcome::Measured),
        Work::WriteThenLoad => memory::write_then_load(case, options).map(Outcome::Measured),
        Work::ReadCalls | Work::WriteCalls => special::calls(case, options).map(Outcome::Measured),
        Work::Extents { extents, blocks } => special::extents(case, options, (extents, blocks)),
        Work::MapSparse => special::map_sparse(case, options).map(Outcome::Measured),
        Work::HugeRead => special::huge(case, options),
        Work::ReadBesidePuncher => special::beside_puncher(case, options).map(Outcome::Measured),
        _ => patterns::measure(case, options).map(Outcome::Measured),
    };
    match measured {
        Err(error) if is_lacking(&error) => Ok(Outcome::Skipped(format!("{error:#}"))),
        measured => measured,
    }
}
