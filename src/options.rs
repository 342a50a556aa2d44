//! What an embedder can choose for each mapping.

use crate::units::LARGEST_WINDOW;

/// In which thread the faults of a mapping are resolved. The decisions and the locks are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum Resolve {
    /// In a thread of the pager, while the faulting thread sleeps: two context switches a fault. Serves
    /// faults from inside system calls too.
    #[default]
    PagerThread,
    /// In the thread that faulted, in a SIGBUS handler (`UFFD_FEATURE_SIGBUS`): no context switch, and threads resolve
    /// side by side. What has to wait, to allocate or to re-point is still done by the pager, and waited for.
    ///
    /// - Buffers given to system calls get EFAULT where a page is not installed: nobody can resolve those.
    /// - No thread that touches the mapping through the pointer may block SIGBUS: the kernel ends the process if one does, at any page
    ///   that is not installed. The calls of [`Mapping`](crate::Mapping) work there.
    /// - The process's SIGBUS handler is the library's. The one that was there before is
    ///   called for all that is not ours, and for what ends in a real SIGBUS (past the end of the file, or
    ///   with no block left), as the kernel would have called it: with its mask and flags, and on the alternate stack if it asked for that.
    ///   Whoever installs one later must call ours for what it does not know, or else has the faults of the pointer until
    ///   another such mapping is made: that puts ours in front again.
    /// - The handler needs some 2.5 KiB of stack beside what the kernel saves, and what a [`Probe`](crate::probe::Probe) takes: of the alternate stack
    ///   where the handler that was there before runs on it and 12 KiB are left of it, of the thread's own otherwise.
    /// - A debugger sees each fault as a SIGBUS: `handle SIGBUS nostop noprint pass` in gdb.
    /// - A signal handler that touches the mapping must not interrupt a call of this library.
    /// - On x86-64 only; elsewhere [`Error::MissingFeature`](crate::Error::MissingFeature).
    FaultingThread,
}

/// Where the pages of a volume's files lie on its device. For [`Volume::format_with`](crate::Volume::format_with).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum Allocation {
    /// On single blocks: any page on any block, and a block that one file frees is the next one handed out. It is what devices
    /// are like that have as many blocks as they have bytes. A mapping is as many address ranges as the file is
    /// fragmented, and memory that files have given up stays the device's.
    Blocks,
    /// In windows: each file has ranges of device offsets of its own, page N at place N, and the device, which is sparse, holds the pages
    /// that are there. No block is another file's, ever.
    ///
    /// | | single blocks | windows |
    /// |---|---|---|
    /// | a first store into a hole | handed to a worker | answered at once, by one system call |
    /// | address ranges of a mapping | one for each run of blocks | one for each window: few |
    /// | punch, truncate, remove | the block is free | the memory is the system's again |
    /// | a load of a hole | a page of zeros for each mapping, for as long as it is there | one for all of them; past 64 MiB a volume they are taken back |
    ///
    /// Only on memfds; elsewhere a volume has single blocks whatever is asked for ([`Volume::allocation`](crate::Volume::allocation)).
    /// While a file has a mapping with [`Tracking::Asynchronous`] or [`Tracking::Off`] a load of a hole takes a page, as on tmpfs.
    #[default]
    Windows,
}

/// How stores through a mapping are noticed, for [`Mapping::take_dirty`](crate::Mapping::take_dirty).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum Tracking {
    /// Page by page: the first store to each page is a fault.
    #[default]
    Exact,
    /// The neighbours that are installed along with a page that is stored to are writable as well, and reported
    /// as dirty as well: never too few pages, sometimes too many, and far fewer faults.
    ///
    /// With single blocks, sequential stores into a hole get blocks in growing runs, up to 2 MiB ahead of the store, which
    /// [`File::extents`](crate::File::extents) shows and [`Volume::free_blocks`](crate::Volume::free_blocks) misses. Those that
    /// are all zeros, and have not been reported yet, are given back when a mapping of the file is dropped, when the file is truncated, and
    /// when the volume runs full. They are not dirty any more then, and that goes for pages into which somebody has stored nothing but
    /// zeros. With windows each store into a hole takes its own page.
    Coarse,
    /// By the kernel, in the page table, with no fault that reaches the pager: the first store to a page that has been
    /// installed costs less than a microsecond, and no other thread runs for it. Stores into holes, and to pages that
    /// have not been touched, are faults as ever; sequential ones to blocks that there are install their neighbours, which
    /// are not dirty until they are stored to. For who asks for dirty ranges now and then, and has no use for being
    /// told of the first store to each page.
    ///
    /// [`Mapping::take_dirty`](crate::Mapping::take_dirty) promises more: every store is reported, once, and a page that has only
    /// been loaded is not. Only where the kernel does not say which entries it has taken away are too many pages reported:
    /// then all of them that it may have taken. Never too few.
    ///
    /// What the application drops itself (`MADV_DONTNEED`), and what the kernel swaps out, stays dirty. What it
    /// unmaps, or maps something else over, is nobody's record any more.
    ///
    /// Of a file with windows, the kernel installs what is present by itself after a few first loads in no order. There too many pages are
    /// reported where it has refused to be asked to write-protect what is installed: then those that have been loaded.
    ///
    /// While such a file has such a mapping,
    /// - a load of a hole takes a page, as on tmpfs, in each of its mappings: nobody would be told of a store to zeros that a load has
    ///   left. When the volume is full of what has been stored and written it is a SIGBUS;
    /// - stores into holes take pages ahead: behind a stream of them, up to 2 MiB, and all that is left of 2 MiB of which many pages have
    ///   been stored to. A first store there costs what it costs on tmpfs. None with [`Advice::Random`], and where
    ///   [`MapOptions::fault_around`] is one page.
    ///
    /// [`File::extents`](crate::File::extents) looks at these pages, and calls those that are all zeros holes;
    /// [`File::blocks`](crate::File::blocks) counts them, and [`Volume::free_blocks`](crate::Volume::free_blocks) misses them. They are given
    /// back when the volume runs full, when a mapping of the file is dropped, and when it is truncated; those of loads also when there are more than [`Volume::set_zeros_max`](crate::Volume::set_zeros_max) allows. What has been
    /// stored to stays dirty, be it zeros.
    ///
    /// Takes one more bit a page, and for the pager a second userfaultfd. Needs Linux 6.7
    /// ([`Error::MissingFeature`](crate::Error::MissingFeature)) and /proc.
    Asynchronous,
    /// Not at all, for who wants files that are truncated and punched while they are mapped, and nothing else. Of a file with windows
    /// ([`Allocation::Windows`]) the kernel installs what is present by itself, pages around it as well, and lets stores through: an access
    /// costs what it costs in a mapping of tmpfs, and only what is absent, a hole or past the end, is a fault of the pager's.
    ///
    /// - [`Mapping::take_dirty`](crate::Mapping::take_dirty) is [`Error::NotTracked`](crate::Error::NotTracked).
    /// - While a file has such a mapping, a load of a hole takes a page, as on tmpfs, in each of its mappings: nobody would be told of a
    ///   store to zeros that a load has left. On a full volume it is a SIGBUS, then.
    /// - [`Mapping::populate`](crate::Mapping::populate) takes pages for holes, and no more; [`Advice::Random`] changes nothing.
    ///
    /// Elsewhere, with single blocks or where the system gives memory files huge folios, such a mapping is served as one with
    /// [`Tracking::Coarse`]. It is looked when the mapping is made: `shmem_enabled` must not be switched on while there is one. With
    /// [`MapOptions::read_only`] there is nothing to track, and the mapping is one with [`Tracking::Exact`].
    Off,
}

/// How a mapping is to be. For [`Pager::map_with`](crate::Pager::map_with).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOptions {
    pub(crate) resolve: Resolve,
    pub(crate) tracking: Tracking,
    /// In bytes.
    pub(crate) fault_around: u64,
    pub(crate) read_only: bool,
    pub(crate) dumped: bool,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self {
            resolve: Resolve::default(),
            tracking: Tracking::default(),
            fault_around: LARGEST_WINDOW,
            read_only: false,
            dumped: false,
        }
    }
}

impl MapOptions {
    /// Resolved by the pager's threads, tracked exactly, with fault-around.
    pub fn new() -> Self {
        Self::default()
    }

    /// In which thread faults are resolved.
    pub fn resolve(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        self
    }

    /// How stores are noticed.
    pub fn tracking(mut self, tracking: Tracking) -> Self {
        self.tracking = tracking;
        self
    }

    /// How many bytes one fault may install at most, when the faults before it were sequential: 2 MiB unless set,
    /// and no more than that. Anything up to the size of a page turns fault-around off.
    pub fn fault_around(mut self, bytes: u64) -> Self {
        self.fault_around = bytes.min(LARGEST_WINDOW);
        self
    }

    /// Whether the mapping is for loads only, as one of mmap(2) without `PROT_WRITE`: a store through its address is a
    /// SIGSEGV, a system call that would write there gets EFAULT, and the library's own calls that would store give
    /// [`Error::ReadOnlyMapping`](crate::Error::ReadOnlyMapping). It stays so whatever becomes of the file; after the end of the pager every
    /// access is a SIGBUS, stores too. Other mappings of the file, and its own calls, are not concerned: what they store
    /// is seen here. Nothing is ever dirty in such a mapping, so [`MapOptions::tracking`] changes nothing.
    ///
    /// This is the way to protect a mapping: mprotect(2) by the application lasts until the address is
    /// next pointed elsewhere, which no one outside can foresee.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether what the mapping shows is in a core dump of the process. It is not unless asked for: a dump would be as long as the
    /// mapping.
    ///
    /// A dump has the pages that are in the page table at that moment, and zeros for all others, though they may have bytes:
    /// nobody serves faults in a process that is dying. No hole gets a block, and the dump waits for nobody. Which kinds of
    /// memory are dumped at all says `/proc/PID/coredump_filter` (core(5)): shared memory without a name, as a memfd is,
    /// by default; a device with a name where bit 3 is set, one on hugetlbfs where bit 6 is.
    pub fn dumped(mut self, dumped: bool) -> Self {
        self.dumped = dumped;
        self
    }

    /// Without what means nothing beside the rest.
    pub(crate) fn settled(mut self) -> Self {
        if self.read_only {
            self.tracking = Tracking::Exact;
        }
        self
    }
}

/// How a range of a mapping will be accessed. For [`Mapping::advise`](crate::Mapping::advise); as `MADV_...` of madvise(2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Nothing is known: fault-around as the faults suggest.
    Normal,
    /// From its start to its end: each fault installs as much as [`MapOptions::fault_around`](crate::MapOptions::fault_around)
    /// allows, the first one too.
    Sequential,
    /// In no order: each fault installs one page. Of a file with windows the kernel installs by itself what is there, from the first
    /// fault in a part on.
    Random,
    /// Soon: the blocks that there are get installed for loads, now.
    WillNeed,
    /// Not soon: the entries of this mapping are taken away, now. The bytes and the dirty pages stay, other mappings too;
    /// the next access faults.
    DontNeed,
}
