//! The fault table, as one pure function: what a fault on a page deserves, given what the
//! extents say now and what its address range points at now. No locks, no descriptors, no time.
//!
//! It is the part of `dax_iomap_pte_fault`, `dax_pfn_mkwrite` and `xfs_filemap_fault` that can be
//! decided by looking.

pub(crate) use crate::sys::{Access, FaultKind};
use crate::units::{BlockIndex, PageIndex};

/// What the extents say of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageState {
    /// No block. Reads as zeros.
    Hole,
    /// A block that has not been written since it was allocated. Reads as zeros, whatever the block holds.
    Unwritten(BlockIndex),
    /// A block with the page's bytes.
    Written(BlockIndex),
}

/// What an address range points at: where its next entry in the page table would come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(not(feature = "inside"), expect(unreachable_pub, reason = "the feature makes it public"))]
pub enum Backing {
    /// Anonymous memory, in which nothing but zeros is ever installed, write-protected.
    Zeros,
    /// This block of the device. It may be stale: pointing installs nothing.
    Block(BlockIndex),
    /// The page's own place, where nobody else's bytes ever are: of a file with windows.
    Own(BlockIndex),
    /// The same, armed: what is present there the kernel installs by itself, write-protected.
    Armed(BlockIndex),
    /// The same, open: what is present there the kernel installs by itself, and lets stores through to it.
    Open(BlockIndex),
}

/// A fault, without its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// What the access wanted.
    pub(crate) access: Access,
    /// What the page table said.
    pub(crate) kind: FaultKind,
}

/// All that the answer depends on, read under one hold of the file's lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct View {
    /// The faulting page, counted in the file.
    pub(crate) page: PageIndex,
    /// The first page wholly past the end: `ceil(i_size / page)`.
    pub(crate) eof: PageIndex,
    /// What the extents say of the page.
    pub(crate) state: PageState,
    /// What the page's address points at.
    pub(crate) backing: Backing,
    /// Some mapping of the file lets stores through to whatever is present, and nobody is told: what is present is written, then.
    pub(crate) open: bool,
}

/// The answer to a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Decision {
    /// The page lies past the end.
    Sigbus,
    /// Install a page of zeros, write-protected. No block is taken for it.
    InstallZeros,
    /// Install the block's page write-protected: the first store shall be noticed.
    InstallReadOnly,
    /// Install the block's page writable, and mark it dirty.
    InstallWritable,
    /// Mark the page dirty and let stores through: the entry is the right one.
    Unprotect,
    /// Wake the thread and install nothing: the entry that the fault was about is gone, and the access
    /// will fault again on what is true now.
    Retry,
    /// First put this under the address, without the lock; then look again.
    Repoint(Backing),
    /// Take a page for the hole, or make the unwritten one written, and install it in its place, as one step: for a store writable, and marked
    /// dirty.
    Take,
    /// First give the hole a zeroed block, take zeros away from every mapping, then look again.
    Allocate,
    /// First zero the page's block and make it written, take zeros away from every mapping, then look again.
    Convert(BlockIndex),
}

/// The fault table. `docs/design.md` lists every row and the cases behind it.
pub(crate) fn decide(fault: Fault, view: &View) -> Decision {
    if view.page >= view.eof {
        return Decision::Sigbus;
    }
    match fault.kind {
        FaultKind::Missing | FaultKind::Minor => no_entry(fault.access, view),
        FaultKind::WriteProtect => mkwrite(view),
    }
}

/// There is no entry: whatever the extents say is to be installed.
fn no_entry(access: Access, view: &View) -> Decision {
    use {Access::*, Backing::*, PageState::*};
    match (access, view.state, view.backing) {
        (Load, Hole | Unwritten(_), Zeros) => Decision::InstallZeros,
        (Load, Hole | Unwritten(_), Block(_)) => Decision::Repoint(Zeros),
        (Load, Written(block), Block(under)) if block == under => Decision::InstallReadOnly,
        (Store, Written(block), Block(under)) if block == under => Decision::InstallWritable,
        // In its own place there is nothing to point elsewhere, and nothing to prepare. Zeros that are nobody's are left there
        // only where the first store to them is a fault, in every mapping of the file.
        (Load, Hole | Unwritten(_), Own(_) | Armed(_) | Open(_)) if view.open => Decision::Take,
        (Load, Hole | Unwritten(_), Own(_) | Armed(_) | Open(_)) => Decision::InstallZeros,
        (Store, Hole | Unwritten(_), Own(_) | Armed(_) | Open(_)) => Decision::Take,
        (Load, Written(block), Own(place) | Armed(place) | Open(place)) if block == place => Decision::InstallReadOnly,
        (Store, Written(block), Own(place) | Armed(place) | Open(place)) if block == place => Decision::InstallWritable,
        // A broken invariant: a page is nowhere but in its place.
        (_, Written(_), Own(_) | Armed(_) | Open(_)) => Decision::Sigbus,
        (_, Written(block), Zeros | Block(_)) => Decision::Repoint(Block(block)),
        (Store, Hole, Zeros | Block(_)) => Decision::Allocate,
        (Store, Unwritten(block), Zeros | Block(_)) => Decision::Convert(block),
    }
}

/// There was an entry when the store came, write-protected.
fn mkwrite(view: &View) -> Decision {
    use {Backing::*, PageState::*};
    match (view.state, view.backing) {
        // The block that the store was aimed at is the block of the page still (or again: then the
        // entry is gone, unprotecting does nothing, and the store faults once more).
        (Written(block), Block(under)) if block == under => Decision::Unprotect,
        // The store found zeros. They are nobody's block, so nothing was taken away from under it; and
        // retrying alone would find the same zeros again, for ever.
        (Hole, Zeros) => Decision::Allocate,
        (Unwritten(block), Zeros) => Decision::Convert(block),
        // The page's own, whatever it has been since: taken away, the entry went with it; then it is taken anew.
        (Written(block), Own(place) | Armed(place)) if block == place => Decision::Unprotect,
        (Hole | Unwritten(_), Own(_) | Armed(_)) => Decision::Take,
        (Written(_), Own(_) | Armed(_)) => Decision::Sigbus,
        // Nothing is write-protected there: a message of what was at the address before.
        (_, Open(_)) => Decision::Retry,
        // The entry named a block that has been taken away. Never allocate here: the store was
        // aimed at that block, and the access will say what it wants when it faults again.
        (Hole | Unwritten(_), Block(_)) => Decision::Retry,
        // Pointed elsewhere since: the entry went with it.
        (Written(_), Zeros | Block(_)) => Decision::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BlockIndex = BlockIndex(7);
    const OTHER: BlockIndex = BlockIndex(8);

    fn view(state: PageState, backing: Backing) -> View {
        View { page: PageIndex(3), eof: PageIndex(4), state, backing, open: false }
    }

    /// Every combination, written out: the table of the design document, row by row.
    #[test]
    fn the_fault_table() {
        use {Access::*, Backing::*, Decision as D, FaultKind::*, PageState::*};
        let rows = [
            // load, no entry
            (Load, Missing, Hole, Zeros, D::InstallZeros),
            (Load, Missing, Hole, Block(B), D::Repoint(Zeros)),
            (Load, Missing, Unwritten(B), Zeros, D::InstallZeros),
            (Load, Missing, Unwritten(B), Block(B), D::Repoint(Zeros)),
            (Load, Missing, Unwritten(B), Block(OTHER), D::Repoint(Zeros)),
            (Load, Missing, Written(B), Zeros, D::Repoint(Block(B))),
            (Load, Missing, Written(B), Block(B), D::InstallReadOnly),
            (Load, Missing, Written(B), Block(OTHER), D::Repoint(Block(B))),
            // store, no entry
            (Store, Missing, Hole, Zeros, D::Allocate),
            (Store, Missing, Hole, Block(B), D::Allocate),
            (Store, Missing, Unwritten(B), Zeros, D::Convert(B)),
            (Store, Missing, Unwritten(B), Block(B), D::Convert(B)),
            (Store, Missing, Unwritten(B), Block(OTHER), D::Convert(B)),
            (Store, Missing, Written(B), Zeros, D::Repoint(Block(B))),
            (Store, Missing, Written(B), Block(B), D::InstallWritable),
            (Store, Missing, Written(B), Block(OTHER), D::Repoint(Block(B))),
            // store, write-protected entry
            (Store, WriteProtect, Hole, Zeros, D::Allocate),
            (Store, WriteProtect, Hole, Block(B), D::Retry),
            (Store, WriteProtect, Unwritten(B), Zeros, D::Convert(B)),
            (Store, WriteProtect, Unwritten(B), Block(B), D::Retry),
            (Store, WriteProtect, Unwritten(B), Block(OTHER), D::Retry),
            (Store, WriteProtect, Written(B), Zeros, D::Retry),
            (Store, WriteProtect, Written(B), Block(B), D::Unprotect),
            (Store, WriteProtect, Written(B), Block(OTHER), D::Retry),
            // in its own place
            (Load, Missing, Hole, Own(B), D::InstallZeros),
            (Load, Missing, Unwritten(B), Own(B), D::InstallZeros),
            (Load, Missing, Written(B), Own(B), D::InstallReadOnly),
            (Load, Missing, Written(B), Own(OTHER), D::Sigbus),
            (Store, Missing, Hole, Own(B), D::Take),
            (Store, Missing, Unwritten(B), Own(B), D::Take),
            (Store, Missing, Written(B), Own(B), D::InstallWritable),
            (Store, Missing, Written(B), Own(OTHER), D::Sigbus),
            (Store, WriteProtect, Hole, Own(B), D::Take),
            (Store, WriteProtect, Unwritten(B), Own(B), D::Take),
            (Store, WriteProtect, Written(B), Own(B), D::Unprotect),
            (Store, WriteProtect, Written(B), Own(OTHER), D::Sigbus),
        ];
        for (access, kind, state, backing, answer) in rows {
            let view = view(state, backing);
            assert_eq!(decide(Fault { access, kind }, &view), answer, "{access:?} {kind:?} {view:?}");
            if kind == Missing {
                let minor = Fault { access, kind: Minor };
                assert_eq!(decide(minor, &view), answer, "minor, {access:?} {view:?}");
            }
            if let Own(place) = backing {
                let armed = View { backing: Armed(place), ..view };
                assert_eq!(decide(Fault { access, kind }, &armed), answer, "armed, {access:?} {kind:?} {view:?}");
                // Where some mapping is open no load leaves zeros that are nobody's; and nothing is write-protected in that one.
                let taken = if answer == D::InstallZeros { D::Take } else { answer };
                let beside = View { open: true, ..view };
                assert_eq!(
                    decide(Fault { access, kind }, &beside),
                    taken,
                    "beside an open one, {access:?} {kind:?} {view:?}"
                );
                let answer = if kind == WriteProtect { D::Retry } else { taken };
                let open = View { backing: Open(place), ..beside };
                assert_eq!(decide(Fault { access, kind }, &open), answer, "open, {access:?} {kind:?} {view:?}");
            }
            let past = View { eof: view.page, ..view };
            assert_eq!(decide(Fault { access, kind }, &past), D::Sigbus, "past the end, {past:?}");
        }
    }
}
