//! Faults that their own threads resolve: a userfaultfd with `UFFD_FEATURE_SIGBUS` raises a SIGBUS in
//! place of a message, and the handler in [`super::access`] asks here what to do about it.
//!
//! All of this runs in a signal handler. It allocates nothing and waits for no lock; what the resolver cannot do at
//! once goes to a slot ([`slots`]), and the thread sleeps there until the pager has answered.
//!
//! ```text
//! thread                                            pager
//!   SIGBUS
//!     directory: whose address is it?
//!     resolver: busy, or a block is wanted
//!     post the fault in a slot, kick
//!     sleep at the slot                               read: the slot's fault
//!                                                     serve it, answer the slot, wake
//!   repeat the access, or pass the SIGBUS on
//! ```

mod directory;
mod registers;
mod slots;

use nix::errno::Errno;

use super::{Access, RawFault, Resolver, Tid, Verdict};
use crate::sync::Arc;
use crate::sync::plain::yield_now;
use crate::units::Addr;
pub(super) use registers::SUPPORTED;
pub(super) use slots::{answer, dismiss, take_posted};

/// Something that is told when there is a fault in a slot.
pub(super) trait Kick: Send + Sync {
    fn kick(&self);
}

/// A range whose faults are resolved by the threads that have them.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) bytes: u64,
    /// Whose slots its faults go to.
    pub(super) owner: usize,
    pub(super) kick: Arc<dyn Kick>,
    pub(super) resolver: Arc<dyn Resolver>,
}

/// From now on faults in the range are its resolver's.
pub(super) fn watch(at: Addr, watched: &Watched) {
    // Whoever has put in a handler since the library's would have all of the range's faults.
    super::access::go_in_front();
    // Before a handler wants one.
    slots::make();
    directory::change_all(|directory| drop(directory.insert(at.0, Arc::new(watched.clone()))));
}

/// No resolver is running for the range any more when this returns, and none of its faults is about to be posted; a thread
/// that has posted one may still wait. Called under locks that resolvers try to take: they do not wait for them.
pub(super) fn unwatch(at: Addr) {
    let mut gone = Vec::with_capacity(directory::COPIES);
    directory::change_all(|directory| gone.extend(directory.remove(&at.0)));
    for watched in gone {
        // The last one is dropped here: what it frees is nothing for a signal handler.
        while Arc::strong_count(&watched) > 1 {
            yield_now();
        }
        // Acquires what the handler has done.
        drop(watched);
    }
}

/// What a thread wanted that was interrupted by a page fault at `addr`; `None` where that is not known.
pub(super) fn access(addr: usize, context: &libc::ucontext_t) -> Option<Access> {
    registers::fault(addr, context).map(|fault| fault.access)
}

/// What is to become of an access that was interrupted by a SIGBUS at `addr`. `None` if it is not ours.
pub(super) fn resolve(addr: usize, context: &libc::ucontext_t) -> Option<Verdict> {
    let fault = registers::fault(addr, context)?;
    let errno = Errno::last_raw();
    let verdict = serve(fault);
    Errno::set_raw(errno);
    verdict
}

fn serve(mut fault: RawFault) -> Option<Verdict> {
    let watched = directory::find(fault.addr, fault.tid)?;
    if let Some(verdict) = watched.resolver.resolve(&fault) {
        return Some(verdict);
    }
    fault.tid = Tid(nix::unistd::gettid().as_raw() as u32);
    let Some(slot) = slots::post(watched.owner, &fault) else {
        // Every slot is taken: the access repeats, and finds out. Nobody is waited for in here: the thread leaves the handler, and its signals
        // have their turn.
        drop(watched);
        yield_now();
        return Some(Verdict::Repeat);
    };
    watched.kick.kick();
    drop(watched);
    Some(slot.wait())
}
