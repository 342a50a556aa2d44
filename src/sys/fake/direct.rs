//! The half of the address space whose faults their own threads resolve: no message, but a call of the resolver in the
//! thread, and a place to wait where that cannot do it.

use std::collections::BTreeMap;

use super::{FakeFault, Shared};
use crate::sync::Arc;
use crate::sys::{Message, RawFault, Resolver, Ticket, Verdict};
use crate::units::Addr;

/// A thread that waits for an answer.
struct Post {
    fault: RawFault,
    read: bool,
    verdict: Option<Verdict>,
}

/// A range, and who resolves its faults.
struct Watched {
    bytes: u64,
    resolver: Arc<dyn Resolver>,
}

#[derive(Default)]
pub(super) struct Direct {
    watched: BTreeMap<usize, Watched>,
    posts: BTreeMap<u64, Post>,
    next_post: u64,
}

impl Direct {
    pub(super) fn watch(&mut self, at: Addr, bytes: u64, resolver: Arc<dyn Resolver>) {
        self.watched.insert(at.0, Watched { bytes, resolver });
    }

    /// A resolver that is running runs on: it finds that its range is gone.
    pub(super) fn unwatch(&mut self, at: Addr) -> Option<impl Sized + use<>> {
        self.watched.remove(&at.0)
    }

    fn resolver(&self, at: Addr) -> Option<Arc<dyn Resolver>> {
        let (base, watched) = self.watched.range(..=at.0).next_back()?;
        (at.since(Addr(*base)) < watched.bytes).then(|| watched.resolver.clone())
    }

    pub(super) fn is_readable(&self) -> bool {
        self.posts.values().any(|post| !post.read)
    }

    pub(super) fn read(&mut self, room: usize) -> impl Iterator<Item = Message> {
        let unread = self.posts.iter_mut().filter(|(_, post)| !post.read).take(room);
        unread.map(|(number, post)| {
            post.read = true;
            Message::Posted(post.fault, Ticket(*number))
        })
    }

    /// Only the first answer counts.
    pub(super) fn answer(&mut self, ticket: Ticket, verdict: Verdict) {
        if let Some(post) = self.posts.get_mut(&ticket.0) {
            post.verdict.get_or_insert(verdict);
        }
    }

    pub(super) fn dismiss(&mut self) {
        for post in self.posts.values_mut() {
            post.verdict.get_or_insert(Verdict::Repeat);
        }
    }
}

impl Shared {
    /// What the SIGBUS handler does. An error if the access is to end in the signal.
    pub(super) fn resolve_directly(&self, fault: RawFault) -> Result<(), FakeFault> {
        let bus = FakeFault::Bus { addr: fault.addr.0 };
        let resolver = self.state.lock().direct.as_ref().and_then(|direct| direct.resolver(fault.addr));
        let verdict = match resolver.ok_or(bus)?.resolve(&fault) {
            Some(verdict) => verdict,
            None => self.wait_for_an_answer(fault),
        };
        match verdict {
            Verdict::Repeat => Ok(()),
            Verdict::Sigbus => Err(bus),
        }
    }

    fn wait_for_an_answer(&self, fault: RawFault) -> Verdict {
        let mut state = self.state.lock();
        let direct = state.direct.as_mut().expect("the range is watched");
        // Posted while the range is watched, as the handler does: who ends the range dismisses the posts after that.
        if direct.resolver(fault.addr).is_none() {
            return Verdict::Repeat;
        }
        let number = direct.next_post;
        direct.next_post += 1;
        direct.posts.insert(number, Post { fault, read: false, verdict: None });
        self.readable.notify_all();
        let verdict = loop {
            let post = state.direct.as_ref().and_then(|direct| direct.posts.get(&number));
            match post.and_then(|post| post.verdict) {
                Some(verdict) => break verdict,
                None => self.woken.wait(&mut state),
            }
        };
        state.direct.as_mut().and_then(|direct| direct.posts.remove(&number));
        if let Some(thread) = state.threads.get_mut(&fault.tid) {
            thread.runs += 1;
        }
        verdict
    }
}
