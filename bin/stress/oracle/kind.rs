//! What may be violated, and what shows it.

use std::ops::RangeInclusive;

/// What has been violated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Foreign,
    Stale,
    Lost,
    Torn,
    Sigbus,
    NoSigbus,
    Dirty,
    Blocks,
    Hang,
    Harm,
    Error,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Foreign => "foreign",
            Kind::Stale => "stale",
            Kind::Lost => "lost",
            Kind::Torn => "torn",
            Kind::Sigbus => "sigbus",
            Kind::NoSigbus => "no-sigbus",
            Kind::Dirty => "dirty",
            Kind::Blocks => "blocks",
            Kind::Hang => "hang",
            Kind::Harm => "harm",
            Kind::Error => "error",
        }
    }

    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        use Kind::*;
        let all = [Foreign, Stale, Lost, Torn, Sigbus, NoSigbus, Dirty, Blocks, Hang, Harm, Error];
        all.into_iter().find(|kind| kind.name() == name)
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Kind::Foreign => "another file's or another page's bytes",
            Kind::Stale => "a value from before an invalidation that had completed",
            Kind::Lost => "a store that had completed is gone",
            Kind::Torn => "a word that nobody has stored",
            Kind::Sigbus => "SIGBUS inside the file",
            Kind::NoSigbus => "an access beyond the end of the file went through",
            Kind::Dirty => "the dirty ranges are not the pages that were stored to",
            Kind::Blocks => "the volume's blocks do not add up",
            Kind::Hang => "a thread waits for too long",
            Kind::Harm => "something that is none of the library's has been harmed",
            Kind::Error => "an error that must not be",
        }
    }
}

/// What shows it.
pub(crate) enum Evidence {
    Word { slot: usize, value: u64, allowed: Vec<u64>, span: (u64, u64) },
    Size { sizes: RangeInclusive<u64>, span: (u64, u64) },
    Text { expected: String, found: String },
}
