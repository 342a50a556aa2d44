//! What the contenders that are not the library have in common.

use crate::case::{Case, Work};
use crate::raw::{self, Answer};

/// What the bare contenders answer a fault of this work with.
pub(super) fn answer_for(work: Work) -> Answer {
    match work {
        Work::WriteAfterProtect => Answer::Unprotect,
        work if work.is_hole() => Answer::Zero,
        _ => Answer::Continue,
    }
}

/// The memory of the contenders that are not the library.
pub(super) fn memory(case: &Case) -> anyhow::Result<raw::Memory> {
    match case.work {
        work if work.is_hole() => raw::Memory::sparse(case.file_pages()),
        _ => raw::Memory::resident(case.file_pages()),
    }
}
