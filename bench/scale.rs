//! How large everything is that is measured.

use crate::args::Args;

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Pages touched of most things.
    pub(crate) pages: u64,
    /// Pages of the file of which a few are read.
    pub(crate) sparse_file_pages: u64,
    /// Pages touched of a file of many extents.
    pub(crate) extent_pages: u64,
    /// The most extents.
    pub(crate) extents_max: u64,
    /// Pages in use of the terabyte.
    pub(crate) terabyte_pages: u64,
    /// Holes loaded, 2 MiB apart: a terabyte of them.
    pub(crate) holes_far: u64,
    /// The most mappings at once. Each is at least one address range of the 65,530 that a process has.
    pub(crate) mappings: u64,
    /// Times that a page is punched among them.
    pub(crate) punches: u64,
    /// The most files at once.
    pub(crate) files: u64,
    /// Pages of 4 KiB read of huge pages.
    pub(crate) huge_pages: u64,
}

impl Scale {
    pub(crate) fn new(args: &Args) -> Self {
        let pages = args.pages();
        match args.quick {
            true => Self {
                pages,
                sparse_file_pages: 16 * pages,
                extent_pages: 256,
                extents_max: 1000,
                terabyte_pages: 4096,
                holes_far: 4096,
                mappings: 1000,
                punches: 128,
                files: 100_000,
                huge_pages: 4096,
            },
            false => Self {
                pages,
                sparse_file_pages: 16 * pages,
                extent_pages: 2048,
                extents_max: 1_000_000,
                terabyte_pages: 262_144,
                holes_far: 524_288,
                mappings: 10_000,
                punches: 1024,
                files: 1_000_000,
                huge_pages: 12_288,
            },
        }
    }
}
