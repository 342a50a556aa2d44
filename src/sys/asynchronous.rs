//! The page table of mappings whose stores the kernel lets through by itself (`Tracking::Asynchronous`).
//!
//! It is the same address space and the same channel, with one difference: ranges that point at the device let
//! a store through a write-protected entry without a message, and the entry is the record of it. Ranges that
//! point at zeros stay as they are: a store there needs a block.

use nix::errno::Errno;

use super::memory::DeviceMemory;
use super::{
    Calls, Delivery, Filled, Last, Mended, Message, Outcome, PageTable, Present, Protection, Resolver, Revoked, Rights,
    Scan, Span, Ticket, Tid, Verdict,
};
use crate::error::Result;
use crate::sync::Arc;
use crate::units::Addr;

/// A page table that has such ranges too: those that are made with [`Rights::unnoticed`].
pub(super) trait Twin: PageTable {
    /// As [`PageTable::make_present`].
    fn make_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno>;

    /// As [`PageTable::make_run_present`].
    fn make_run_present_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno>;

    /// As [`PageTable::install`], for a range that lets stores through by itself.
    fn install_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno>;

    /// As [`PageTable::install_run`], likewise.
    fn install_run_unnoticed(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno>;

    /// As [`PageTable::scan`].
    fn scan_unnoticed(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno>;
}

/// See the module.
pub(super) struct Asynchronous<T>(pub(super) Arc<T>);

impl<T: Twin> Asynchronous<T> {
    /// Zeros and device are watched by different userfaultfds, and a thread sleeps at the one of the range that it
    /// has faulted on. What is done through the other wakes nobody there.
    fn wake_after(&self, span: Span<'_>, outcome: Result<Outcome, Errno>) -> Result<Outcome, Errno> {
        if outcome == Ok(Outcome::Installed) {
            self.0.wake(span.at(), span.bytes());
        }
        outcome
    }
}

impl<T: Twin + 'static> PageTable for Asynchronous<T> {
    fn base_page(&self) -> u64 {
        self.0.base_page()
    }

    fn serves_kernel_faults(&self) -> bool {
        self.0.serves_kernel_faults()
    }

    fn check_huge(&self) -> Result<()> {
        self.0.check_huge()
    }

    fn asynchronous(self: Arc<Self>) -> Result<Arc<dyn PageTable>> {
        Ok(self)
    }

    fn scan(&self, scan: Scan, span: Span<'_>, each: &mut dyn FnMut(Addr, u64)) -> Result<(), Errno> {
        self.0.scan_unnoticed(scan, span, each)
    }

    fn has_real_addresses(&self) -> bool {
        self.0.has_real_addresses()
    }

    fn reserve(&self, bytes: u64, align: u64, rights: Rights) -> Result<Addr, Errno> {
        self.0.reserve(bytes, align, rights)
    }

    fn point_at_device(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
    ) -> Result<(), Errno> {
        self.0.point_at_device(span, device, offset, rights.unnoticed())?;
        self.0.wake(span.at(), span.bytes());
        Ok(())
    }

    fn show(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        self.0.show(span, device, offset, rights.unnoticed(), present)
    }

    fn point_in_place(
        &self,
        span: Span<'_>,
        device: &Arc<DeviceMemory>,
        offset: u64,
        rights: Rights,
        present: Present,
    ) -> Result<(), Errno> {
        self.0.point_in_place(span, device, offset, rights.unnoticed(), present)?;
        self.0.wake(span.at(), span.bytes());
        Ok(())
    }

    fn page_goes(&self, span: Span<'_>) -> u64 {
        self.0.page_goes(span)
    }

    fn goings(&self) -> u64 {
        self.0.goings()
    }

    fn point_at_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.0.point_at_zeros(span, rights)?;
        self.0.wake(span.at(), span.bytes());
        Ok(())
    }

    fn join_to_zeros(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.0.join_to_zeros(span, rights)?;
        self.0.wake(span.at(), span.bytes());
        Ok(())
    }

    fn mend(&self, span: Span<'_>, rights: Rights) -> Result<Mended, Errno> {
        let mended = self.0.mend(span, rights)?;
        // Only where the range is another now. A thread that is woken for nothing faults anew, and its wait begins anew.
        if mended != Mended::Untouched {
            self.0.wake(span.at(), span.bytes());
        }
        Ok(mended)
    }

    fn revoke(&self, span: Span<'_>) -> Revoked {
        self.0.revoke(span)
    }

    fn revoke_moved(&self, at: Addr, bytes: u64) -> Option<Revoked> {
        self.0.revoke_moved(at, bytes)
    }

    fn unmap(&self, last: Last<'_>) {
        self.0.unmap(last);
    }

    fn install(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.0.install_unnoticed(span, protection)
    }

    fn install_run(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.0.install_run_unnoticed(span, protection)
    }

    fn install_zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.0.install_zeros(span, protection)
    }

    fn make_present(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        self.0.make_present_unnoticed(span, protection)
    }

    fn make_run_present(&self, span: Span<'_>, protection: Protection) -> Result<Filled, Errno> {
        self.0.make_run_present_unnoticed(span, protection)
    }

    fn be_told(&self, span: Span<'_>, rights: Rights) -> Result<(), Errno> {
        self.0.be_told(span, rights.unnoticed())
    }

    fn poison(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.wake_after(span, self.0.poison(span))
    }

    #[cfg(feature = "sabotage")]
    fn put_quietly(&self, span: Span<'_>, entry: super::inject::Entry) -> Result<Outcome, Errno> {
        self.0.put_quietly(span, entry)
    }

    fn refuse_own(&self, at: Addr) -> bool {
        self.0.refuse_own(at)
    }

    fn unprotect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.wake_after(span, self.0.unprotect(span))
    }

    fn clear_markers(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.0.clear_markers(span)
    }

    fn protect(&self, span: Span<'_>) -> Result<Outcome, Errno> {
        self.0.protect(span)
    }

    fn zap(&self, span: Span<'_>) -> Result<(), Errno> {
        self.0.zap(span)
    }

    fn wake(&self, at: Addr, bytes: u64) {
        self.0.wake(at, bytes);
    }

    fn raise_sigbus(&self, tid: Tid, at: Addr) -> Delivery {
        self.0.raise_sigbus(tid, at)
    }

    fn begin_passing(&self, at: Addr, bytes: u64) {
        self.0.begin_passing(at, bytes);
    }

    fn end_passing(&self, at: Addr, bytes: u64) {
        self.0.end_passing(at, bytes);
    }

    fn outlook(&self, tid: Tid) -> Delivery {
        self.0.outlook(tid)
    }

    fn may_wait(&self, tid: Tid) -> bool {
        self.0.may_wait(tid)
    }

    fn runs(&self, tid: Tid) -> Option<u64> {
        self.0.runs(tid)
    }

    fn wait(&self) {
        self.0.wait();
    }

    fn read(&self, into: &mut Vec<Message>) -> Result<(), Errno> {
        self.0.read(into)
    }

    fn kick(&self) {
        self.0.kick();
    }

    fn watch(&self, at: Addr, bytes: u64, resolver: Arc<dyn Resolver>) {
        self.0.watch(at, bytes, resolver);
    }

    fn unwatch(&self, at: Addr) {
        self.0.unwatch(at);
    }

    fn answer(&self, ticket: Ticket, verdict: Verdict) {
        self.0.answer(ticket, verdict);
    }

    fn dismiss(&self) {
        self.0.dismiss();
    }

    fn calls(&self) -> Calls {
        self.0.calls()
    }
}
