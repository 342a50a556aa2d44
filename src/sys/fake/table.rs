//! The trait, as the pager sees it: ioctls, re-points, messages.

use nix::errno::Errno;

use super::entries::Answer;
use super::space::{Backing, Space};
use super::{Shared, State};
use crate::error::Result;
use crate::sync::{Arc, MutexGuard};
use crate::sys::asynchronous::Asynchronous;
use crate::sys::memory::DeviceMemory;
use crate::sys::{
    Calls, Delivery, Filled, Last, MESSAGES_PER_READ, Mended, Message, Outcome, PageTable, Present, Protection,
    Resolver, Revoked, Rights, Span, Ticket, Tid, Verdict,
};
use crate::units::Addr;

impl Shared {
    /// One ioctl, which answers a fault or does not: refused while an event is under way, and followed by a wake of what
    /// it has done.
    fn ioctl(&self, span: Span<'_>, answers: bool, act: impl FnOnce(&mut Space) -> Answer) -> Result<Outcome, Errno> {
        let (answer, done) = {
            let mut state = self.state.lock();
            state.calls.installs += 1;
            if state.changing > 0 {
                state.refused += u64::from(answers);
                return Ok(Outcome::Retry);
            }
            act(&mut state.space)
        };
        // The kernel has let go of the page table by now: a zap, and a new fault, may come first.
        if done > 0 {
            self.wake_range(span.at(), done);
        }
        answer
    }

    /// One ioctl that fills a run of pages: what it has done counts, whatever has stopped it.
    fn run(&self, span: Span<'_>, act: impl FnOnce(&mut Space) -> Answer) -> Result<Filled, Errno> {
        let mut done = 0;
        let outcome = self.ioctl(span, true, |space| {
            let answer = act(space);
            done = answer.1;
            answer
        });
        if done > 0 { Ok(Filled::Bytes(done)) } else { outcome.map(Filled::Nothing) }
    }

    pub(super) fn point(&self, at: Addr, bytes: u64, backing: Backing, rights: Rights) {
        let mut state = self.state.lock();
        state.calls.repoints += 1;
        let armed = matches!(backing, Backing::Device(_, _, Present::Installed));
        state.space.replace(at, bytes, backing, rights);
        if armed {
            state.space.mark(at, bytes);
        }
        self.announce(state, None);
    }

    fn revoke_range(&self, at: Addr, bytes: u64) -> Revoked {
        self.state.lock().space.replace(at, bytes, Backing::Revoked, Rights::LOAD_STORE);
        self.wake(at, bytes);
        Revoked::Sigbus
    }

    /// mremap(2) of a whole range by the application, which lets the kernel choose where it goes.
    pub(super) fn move_away(&self, at: Addr, bytes: u64) -> Option<Addr> {
        let mut state = self.state.lock();
        let to = state.space.move_away(at, bytes)?;
        self.announce(state, Some(Message::Moved { from: at, to, bytes }));
        Some(to)
    }

    /// Queues the event of what the thread has just moved, and waits until it has been read.
    fn announce(&self, mut state: MutexGuard<'_, State>, event: Option<Message>) {
        state.changing += 1;
        state.events.push_back(event);
        state.events_queued += 1;
        let number = state.events_queued;
        self.readable.notify_all();
        while state.events_read < number {
            self.event_read.wait(&mut state);
        }
        // Not by the reader: until this thread has run again, everything is refused.
        state.changing -= 1;
    }
}

impl PageTable for Shared {
    fn base_page(&self) -> u64 {
        self.base_page
    }

    fn serves_kernel_faults(&self) -> bool {
        true
    }

    fn check_huge(&self) -> Result<()> {
        Ok(())
    }

    fn asynchronous(self: Arc<Self>) -> Result<Arc<dyn PageTable>> {
        Ok(Arc::new(Asynchronous(self)))
    }

    fn has_real_addresses(&self) -> bool {
        false
    }

    fn reserve(&self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno> {
        self.state.lock().space.reserve(bytes, align.max(self.base_page), rights)
    }

    fn point_at_device(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        if offset.checked_add(span.bytes()).is_none_or(|end| end > device.len_bytes()) {
            return Err(Errno::EFAULT);
        }
        self.point_in_place(span, device, offset, rights, Present::Told)
    }

    fn show(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        let backing = Backing::Device(device.clone(), offset, present);
        self.state.lock().space.replace(span.at(), span.bytes(), backing, rights);
        Ok(())
    }

    fn point_in_place(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        let backing = Backing::Device(device.clone(), offset, present);
        self.point(span.at(), span.bytes(), backing, rights);
        Ok(())
    }

    fn make_run_present(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.run(span, |space| {
            // One VMA, or nothing.
            if space.one_area(span.at(), span.bytes()).is_none() {
                return (Ok(Outcome::Gone), 0);
            }
            let mut done = 0;
            for page in space.base.pages(span.at(), span.bytes()) {
                match space.install_zeros(Addr(page), protection == Protection::ReadOnly) {
                    (Ok(Outcome::Installed), bytes) => done += bytes,
                    (other, _) => return (other, done),
                }
            }
            (Ok(Outcome::Installed), done)
        })
    }

    fn be_told(&self, span: Span<'_>, _: Rights) -> Result<(), Errno> {
        self.state.lock().space.be_told(span.at(), span.bytes())
    }

    /// The pages' bytes go a moment later, and until then nobody installs them: no one can tell.
    fn page_goes(&self, span: Span<'_>) -> u64 {
        let mut state = self.state.lock();
        state.space.page_goes(span.at(), span.bytes());
        state.goings += 1;
        state.goings
    }

    fn goings(&self) -> u64 {
        self.state.lock().goings
    }

    fn point_at_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.point(span.at(), span.bytes(), Backing::Zeros, rights);
        Ok(())
    }

    fn mend(&self, _: Span<'_>, _: Rights) -> Result<Mended, Errno> {
        // A re-point that fails has changed nothing here.
        Ok(Mended::Untouched)
    }

    fn revoke_moved(&self, at: Addr, bytes: u64) -> Option<Revoked> {
        let mapped = self.state.lock().space.is_mapped(at, bytes);
        mapped.then(|| self.revoke_range(at, bytes))
    }

    fn revoke(&self, span: Span<'_>) -> Revoked {
        self.revoke_range(span.at(), span.bytes())
    }

    fn unmap(&self, last: Last<'_>) {
        let (at, bytes) = last.range();
        self.state.lock().space.unmap(at, bytes);
        self.wake(at, bytes);
    }

    fn install(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.ioctl(span, true, |space| space.install(span.at(), span.bytes(), protection == Protection::ReadOnly))
    }

    fn install_run(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.run(span, |space| space.install(span.at(), span.bytes(), protection == Protection::ReadOnly))
    }

    fn install_zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.ioctl(span, true, |space| space.install_zeros(span.at(), protection == Protection::ReadOnly))
    }

    fn poison(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.ioctl(span, true, |space| space.poison(span.at(), span.bytes()))
    }

    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, span: Span<'_>, entry: crate::sys::inject::Entry) -> Result<Outcome, Errno> {
        use crate::sys::inject::Entry;
        // Only what is reported as done is woken.
        self.ioctl(span, false, |space| match entry {
            Entry::Page(protection) => {
                (space.install(span.at(), span.bytes(), protection == Protection::ReadOnly).0, 0)
            }
            Entry::Zeros => (space.install_zeros(span.at(), true).0, 0),
            Entry::Poison => (space.poison(span.at(), span.bytes()).0, 0),
        })
    }

    fn refuse_own(&self, _: Addr) -> bool {
        false
    }

    fn unprotect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.ioctl(span, true, |space| space.write_protect(span.at(), span.bytes(), false))
    }

    fn clear_markers(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.ioctl(span, false, |space| (space.write_protect(span.at(), span.bytes(), false).0, 0))
    }

    fn protect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        // As it wakes nobody, nothing of it is reported as done.
        self.ioctl(span, false, |space| (space.write_protect(span.at(), span.bytes(), true).0, 0))
    }

    fn zap(&self, span: Span<'_>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        state.calls.zaps += 1;
        state.space.zap(span.at(), span.bytes());
        Ok(())
    }

    fn wake(&self, at: Addr, bytes: u64) {
        self.state.lock().calls.wakes += 1;
        self.wake_range(at, bytes);
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(thread) = state.threads.get_mut(&tid) else { return Delivery::Unreachable };
        let asleep = state.sleepers.values_mut().find(|sleeper| sleeper.fault.tid == tid && sleeper.is_asleep());
        let Some(sleeper) = asleep else { return Delivery::Awake };
        sleeper.woken = true;
        if sleeper.fault.addr != at {
            state.strays += 1;
        }
        // A signal that is pending already is not queued twice.
        thread.signal.get_or_insert(at.0);
        self.woken.notify_all();
        Delivery::Sent
    }

    fn begin_passing(&self, at: Addr, bytes: u64) {
        self.state.lock().passing.push(at.0..at.plus(bytes).0);
    }

    fn end_passing(&self, at: Addr, bytes: u64) {
        let range = at.0..at.plus(bytes).0;
        let mut state = self.state.lock();
        let found = state.passing.iter().position(|passing| *passing == range);
        found.map(|found| state.passing.swap_remove(found));
    }

    fn outlook(&self, tid: Tid) -> Delivery {
        if self.may_wait(tid) { Delivery::Sent } else { Delivery::Awake }
    }

    fn may_wait(&self, tid: Tid) -> bool {
        self.state.lock().sleepers.values().any(|sleeper| sleeper.fault.tid == tid && sleeper.is_asleep())
    }

    fn runs(&self, tid: Tid) -> Option<u64> {
        self.state.lock().threads.get(&tid).map(|thread| thread.runs)
    }

    fn wait(&self) {
        let mut state = self.state.lock();
        state.calls.polls += 1;
        while !state.kicked && !state.is_readable() {
            self.readable.wait(&mut state);
        }
        state.kicked = false;
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.calls.reads += 1;
        let mut room = MESSAGES_PER_READ;
        // Faults before events, whatever came first.
        let unread = state.sleepers.values_mut().filter(|sleeper| !sleeper.read && !sleeper.woken);
        for sleeper in unread.take(room) {
            sleeper.read = true;
            into.push(Message::Fault(sleeper.fault));
            room -= 1;
        }
        if let Some(direct) = &mut state.direct {
            let before = into.len();
            into.extend(direct.read(room));
            room -= into.len() - before;
        }
        for event in state.events.drain(..room.min(state.events.len())) {
            state.events_read += 1;
            self.event_read.notify_all();
            // Those of our own re-points are not reported.
            into.extend(event);
        }
        Ok(())
    }

    fn kick(&self) {
        self.state.lock().kicked = true;
        self.readable.notify_all();
    }

    fn watch(&self, at: Addr, bytes: u64, resolver: Arc<dyn Resolver>) {
        if let Some(direct) = &mut self.state.lock().direct {
            direct.watch(at, bytes, resolver);
        }
    }

    fn unwatch(&self, at: Addr) {
        // What it was the last one to own is dropped without the lock.
        let gone = self.state.lock().direct.as_mut().and_then(|direct| direct.unwatch(at));
        drop(gone);
    }

    fn answer(&self, ticket: Ticket, verdict: Verdict) {
        if let Some(direct) = &mut self.state.lock().direct {
            direct.answer(ticket, verdict);
        }
        self.woken.notify_all();
    }

    fn dismiss(&self) {
        if let Some(direct) = &mut self.state.lock().direct {
            direct.dismiss();
        }
        self.woken.notify_all();
    }

    fn calls(&self) -> Calls {
        self.state.lock().calls
    }
}
