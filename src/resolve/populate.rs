//! Faults taken in advance, by the thread that asks for them: the same look, decision and guard as for a fault, for a
//! run of pages at a time, and nobody asleep.

use nix::errno::Errno;

use super::fault_around::alike;
use super::prepare::{Prepared, prepare};
use super::refuse::refilled;
use super::{Preparation, Prepare, SHORTAGES_MAX, back_off_from_shortage, need};
use crate::address::budget;
use crate::address::core::Core;
use crate::address::regions::Region;
use crate::blocks::store::Wanted;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::policy::{Access, Backing, Decision, Fault, FaultKind, PageState, View, decide};
use crate::space::{Claim, Shared, Window};
use crate::sync::{Arc, Ordering};
use crate::sys::{Filled, Outcome, Protection};
use crate::units::{LARGEST_WINDOW, PageIndex, PageRange};

/// What is to be there afterwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// What a load, or a store, to each page would leave there.
    Like(Access),
    /// The blocks that there are, for loads.
    Resident,
}

/// What came of one look.
enum Step {
    /// Everything up to this page is done.
    UpTo(PageIndex),
    Prepare(Preparation),
    /// The kernel refuses for the moment.
    Refused(Errno),
}

/// Installs what is wanted in `range`, which lies in the window. Waits for locks, and for the reader where addresses are
/// pointed elsewhere. What has been installed before an error stays.
pub(crate) fn populate(
    core: &Core,
    inode: &Arc<Inode>,
    window: &Arc<Window>,
    range: PageRange,
    want: Want,
) -> Result<()> {
    let mut left = range;
    let mut refusals = 0;
    while !left.is_empty() {
        let page = left.start;
        let refused = match look(core, inode, window, left, want)? {
            Step::UpTo(page) => {
                left.start = page;
                refusals = 0;
                continue;
            }
            Step::Prepare(need) => match prepare(core, &need) {
                Prepared::Ready => continue,
                Prepared::NoBlock(error) | Prepared::Lost(error) => return Err(error),
                Prepared::NoMemory if refusals >= SHORTAGES_MAX => {
                    return Err(budget::shortage(page));
                }
                Prepared::NoMemory => Errno::ENOMEM,
            },
            Step::Refused(errno) => errno,
        };
        refusals += 1;
        if refusals > SHORTAGES_MAX {
            return Err(Error::system("ioctl(UFFDIO_CONTINUE)", refused));
        }
        back_off_from_shortage(refusals);
    }
    Ok(())
}

fn look(core: &Core, inode: &Arc<Inode>, window: &Arc<Window>, left: PageRange, want: Want) -> Result<Step> {
    let regions = core.regions.read();
    let region = regions.find(window.base()).filter(|region| Arc::ptr_eq(&region.window, window));
    let Some(region) = region else {
        return Err(if window.is_lost() { Error::MappingLost { addr: window.base().0 } } else { core.gone() });
    };
    let shared = inode.space.shared();
    let page = left.start;
    let view = shared.view(page, region.layout.backing(page));
    let access = match want {
        Want::Like(access) => access,
        Want::Resident => Access::Load,
    };
    // As if there were no entry: one that is there is met when the run is installed.
    let decision = decide(Fault { access, kind: FaultKind::Missing }, &view);
    if want == Want::Resident {
        match decision {
            Decision::Sigbus => return Ok(Step::UpTo(left.end)),
            Decision::InstallZeros | Decision::Take | Decision::Repoint(Backing::Zeros) => {
                let end = match shared.extents().run_from(page, left.end) {
                    Some(unwritten) => unwritten.range().end,
                    None => shared.extents().hole_from(page, left.end).end,
                };
                return Ok(Step::UpTo(end.min(left.end)));
            }
            _ => {}
        }
    }
    let prepare = |what| Ok(Step::Prepare(Preparation { inode: inode.clone(), window: window.clone(), page, what }));
    let filling = Filling { core, region, shared: &shared, view: &view, left };
    if decision == Decision::InstallWritable && shared.is_preallocated(filling.step()) {
        return prepare(Prepare::Keep(filling.step()));
    }
    match decision {
        Decision::Sigbus => Err(Error::PastEnd { page: page.0, file_bytes: shared.size() }),
        Decision::InstallReadOnly => filling.blocks(Protection::ReadOnly),
        Decision::InstallWritable => filling.blocks(Protection::Writable),
        Decision::InstallZeros | Decision::Take | Decision::Allocate | Decision::Convert(_) | Decision::Repoint(_) => {
            match need(region, &shared, &view, decision, access, None, u64::MAX) {
                Some(Prepare::Allocate(..)) => {
                    let end = filling.step().end.min(view.eof);
                    prepare(Prepare::Allocate(shared.extents().hole_from(page, end), Wanted::All))
                }
                Some(Prepare::Convert(_)) => prepare(Prepare::Convert(filling.step())),
                Some(other) => prepare(other),
                None if decision == Decision::InstallZeros => filling.zeros(),
                None if decision == Decision::Take => match shared.claim(&inode.store, page, access) {
                    Claim::NoSpace => prepare(Prepare::Allocate(PageRange::one(page), Wanted::All)),
                    Claim::Taken { was_there: false } => filling.in_place(FaultKind::Missing, access),
                    // COPY would want another page first.
                    Claim::Taken { was_there: true } | Claim::Written => filling.in_place(FaultKind::Minor, access),
                },
                None => unreachable!("{decision:?} needs a preparation"),
            }
        }
        Decision::Unprotect | Decision::Retry => unreachable!("{decision:?} answers a write-protect fault"),
    }
}

/// Whether a page was put there; if not, there was one. `Err` is how the look ends otherwise.
fn copied(outcome: Result<Outcome, Errno>) -> Result<bool, Result<Step>> {
    match outcome {
        Ok(Outcome::Installed) => Ok(true),
        Ok(Outcome::AlreadyPresent) => Ok(false),
        Ok(Outcome::Retry) => Err(Ok(Step::Refused(Errno::EAGAIN))),
        Ok(Outcome::Gone) => Err(Err(Error::system("ioctl(UFFDIO_COPY)", Errno::ENOENT))),
        Err(Errno::ENOMEM) => Err(Ok(Step::Refused(Errno::ENOMEM))),
        Err(errno) => Err(Err(Error::system("ioctl(UFFDIO_COPY)", errno))),
    }
}

/// One run, under the guard it was looked at under.
struct Filling<'a> {
    core: &'a Core,
    region: &'a Region,
    shared: &'a Shared<'a>,
    view: &'a View,
    left: PageRange,
}

impl Filling<'_> {
    /// What is done under one hold of the lock at most.
    fn step(&self) -> PageRange {
        let most = self.region.inode.page().pages_in(LARGEST_WINDOW).max(1);
        PageRange::at(self.left.start, most).intersect(self.left)
    }

    /// The page that has been taken, for a store writable.
    fn in_place(&self, kind: FaultKind, access: Access) -> Result<Step> {
        let (window, page) = (&self.region.window, self.view.page);
        let (protection, mark) = (Protection::of(access), access == Access::Store);
        match copied(self.shared.install_in_place(window, (page, self.view.backing), kind, protection, mark)) {
            Ok(true) => {
                self.core.stats.add(&self.core.stats.installs);
                Ok(Step::UpTo(page.plus(1)))
            }
            Ok(false) if window.is_open() || !mark => Ok(Step::UpTo(page.plus(1))),
            // Zeros, write-protected.
            Ok(false) => self.unprotect(PageRange::one(page)),
            Err(end) => end,
        }
    }

    fn zeros(&self) -> Result<Step> {
        let window = &self.region.window;
        let page = self.view.page;
        let bytes = self.region.inode.page().bytes();
        for within in (0..bytes).step_by(window.table.base_page() as usize) {
            let installed = match self.view.backing {
                Backing::Own(_) | Backing::Armed(_) | Backing::Open(_) => {
                    self.shared.install_zeros_in_place(window, (page, self.view.backing), FaultKind::Missing)
                }
                Backing::Zeros | Backing::Block(_) => {
                    self.shared.install_zeros(window, window.addr_of(page).plus(within))
                }
            };
            match copied(installed) {
                Ok(true) => self.core.stats.add(&self.core.stats.zeros),
                Ok(false) => {}
                Err(end) => return end,
            }
        }
        Ok(Step::UpTo(page.plus(1)))
    }

    fn blocks(&self, protection: Protection) -> Result<Step> {
        let window = &self.region.window;
        let pages = alike(self.region, self.shared, self.view, self.step().pages());
        let mark = protection == Protection::Writable;
        if window.is_the_kernels_record(self.view.page, self.view.backing) {
            return self.left_to_the_kernel(pages, protection);
        }
        let mut at = pages.start;
        let mut met = false;
        let mut longest = pages.pages();
        let mut refilled_at = None;
        while at < pages.end {
            let run = PageRange::at(at, longest).intersect(pages);
            match self.shared.install_run(window, run, protection, mark) {
                Ok(Filled::Bytes(bytes)) => {
                    let done = self.region.inode.page().pages_in(bytes);
                    self.core.stats.installs.fetch_add(done, Ordering::Relaxed);
                    at = at.plus(done);
                }
                Ok(Filled::Nothing(Outcome::AlreadyPresent)) => {
                    met = true;
                    at = at.plus(1);
                }
                // What has been done so far is done: or a run of many pages that are there would never be through.
                Ok(Filled::Nothing(Outcome::Retry)) | Err(Errno::ENOMEM) if at > pages.start => break,
                Ok(Filled::Nothing(Outcome::Retry)) => return Ok(Step::Refused(Errno::EAGAIN)),
                Err(Errno::ENOMEM) => return Ok(Step::Refused(Errno::ENOMEM)),
                // It may be of another page of the run.
                Ok(Filled::Nothing(Outcome::Gone | Outcome::Installed)) | Err(_) if run.pages() > 1 => longest = 1,
                Ok(Filled::Nothing(Outcome::Gone | Outcome::Installed)) => {
                    return Err(Error::system("ioctl(UFFDIO_CONTINUE)", Errno::ENOENT));
                }
                Err(Errno::EFAULT) if refilled_at != Some(at) && self.refilled(at) => refilled_at = Some(at),
                Err(errno) => return Err(self.refused(at, errno)),
            }
        }
        if met && mark && !window.is_open() {
            // What was there may be write-protected.
            return self.unprotect(PageRange::new(pages.start, at));
        }
        Ok(Step::UpTo(at))
    }

    /// Pages that are there are the kernel's to install. One that has been taken may not be there yet.
    fn left_to_the_kernel(&self, pages: PageRange, protection: Protection) -> Result<Step> {
        let window = &self.region.window;
        let mark = protection == Protection::Writable;
        if mark {
            window.mark_dirty_range(pages);
        }
        for page in pages.iter() {
            let place = (page, self.view.backing);
            if let Err(end) = copied(self.shared.install_in_place(window, place, FaultKind::Missing, protection, mark))
            {
                return if page > pages.start { Ok(Step::UpTo(page)) } else { end };
            }
        }
        Ok(Step::UpTo(pages.end))
    }

    fn refilled(&self, page: PageIndex) -> bool {
        refilled(self.core, &self.region.inode, &self.shared.view(page, self.region.layout.backing(page)))
    }

    fn refused(&self, page: PageIndex, errno: Errno) -> Error {
        match (errno, self.shared.extents().state(page)) {
            (Errno::EFAULT, PageState::Written(block)) => self.region.inode.store.lost(block),
            _ => Error::system("ioctl(UFFDIO_CONTINUE)", errno),
        }
    }

    fn unprotect(&self, pages: PageRange) -> Result<Step> {
        match self.shared.unprotect(&self.region.window, pages, true) {
            Ok(Outcome::Installed | Outcome::AlreadyPresent) => Ok(Step::UpTo(pages.end)),
            Ok(Outcome::Retry) => Ok(Step::Refused(Errno::EAGAIN)),
            Ok(Outcome::Gone) => Err(Error::system("ioctl(UFFDIO_WRITEPROTECT)", Errno::ENOENT)),
            Err(errno) => Err(Error::system("ioctl(UFFDIO_WRITEPROTECT)", errno)),
        }
    }
}
