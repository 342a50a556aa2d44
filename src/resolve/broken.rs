//! What becomes of a fault where a rule is broken on purpose. No fault passes here otherwise.

use super::fault_around::{Answer, Reach};
use super::{Attempt, Hindrance, Preparation, Prepare, act};
use crate::address::core::Core;
use crate::inode::Inode;
use crate::policy::{Access, Backing, Decision, Fault, FaultKind, PageState, View};
use crate::probe::Point;
use crate::sabotage::Rule;
use crate::space::Window;
use crate::sys::RawFault;
use crate::units::PageIndex;

/// Whether a broken rule has every lock dropped between the decision and the install.
pub(super) fn lets_go(inode: &Inode) -> bool {
    inode.broken(Rule::Revalidate) || inode.broken(Rule::GuardThroughInstall) || inode.broken(Rule::UnmapUnderLock)
}

/// The size as the thread's patch reads it: before any lock.
pub(super) fn size_before_lock(inode: &Inode, page: PageIndex) -> Option<u64> {
    if !inode.broken(Rule::SizeUnderLock) {
        return None;
    }
    let size = inode.space.shared().size();
    inode.probe(Point::SizeSeen, page, None);
    Some(size)
}

/// What a broken rule makes of a decision.
pub(super) fn decision(inode: &Inode, fault: Fault, decision: Decision) -> Decision {
    match decision {
        _ if fault.kind != FaultKind::WriteProtect => decision,
        Decision::Sigbus if inode.broken(Rule::SizeOnMkwrite) => Decision::Unprotect,
        Decision::Retry if inode.broken(Rule::MkwriteNeverAllocates) => Decision::Allocate,
        _ => decision,
    }
}

impl Preparation {
    /// What the fault deserved before the preparation, where a broken rule acts upon it.
    pub(super) fn stale_decision(&self, raw: &RawFault) -> Option<Decision> {
        let mkwrite_allocates = self.inode.broken(Rule::MkwriteNeverAllocates) && raw.kind == FaultKind::WriteProtect;
        match (&self.what, raw.access) {
            // A block has been put into the file, and the entry still names the one that was taken away.
            (Prepare::Allocate(..), _) if mkwrite_allocates => Some(Decision::InstallWritable),
            _ if !self.inode.broken(Rule::Revalidate) => None,
            (Prepare::Repoint(_, Backing::Zeros), _) => Some(Decision::InstallZeros),
            (
                Prepare::Repoint(_, Backing::Own(_) | Backing::Armed(_) | Backing::Open(_))
                | Prepare::TakeZerosBack
                | Prepare::MakeReady,
                _,
            ) => None,
            (Prepare::Repoint(_, Backing::Block(_)), Access::Load) => Some(Decision::InstallReadOnly),
            (Prepare::Repoint(_, Backing::Block(_)), Access::Store) => Some(Decision::InstallWritable),
            (Prepare::Allocate(..) | Prepare::Convert(_) | Prepare::Keep(_) | Prepare::Poison(_), _) => None,
        }
    }
}

/// Does what the fault deserved then, under no lock.
pub(super) fn act_unguarded(
    core: &Core,
    raw: &RawFault,
    window: &Window,
    inode: &Inode,
    page: PageIndex,
    decision: Decision,
) -> Result<Attempt, Hindrance> {
    let view = View { page, eof: page.plus(1), state: PageState::Hole, backing: Backing::Zeros, open: false };
    let answer = Answer { window, inode, view, kind: raw.kind, decision, reach: Reach::one(page) };
    act(core, raw, &answer, &inode.space.unguarded())
}
