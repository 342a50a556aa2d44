//! Each rule of the fake on its own. That the rules are the kernel's is for `sys::conformance` to say.

mod entries;
mod messages;

use nix::errno::Errno;

use super::space::Backing;
use super::*;
use crate::sync::thread::JoinHandle;
use crate::sys::memory::DeviceMemory;
use crate::sys::{
    Access, Delivery, FaultKind, Last, MESSAGES_PER_READ, Message, Outcome, PageTable, Protection, RawFault, Rights,
    Span, Tid,
};
use crate::units::Addr;

/// Pages of the range that a test plays with; the device has as many blocks, of one page each.
const PAGES: u64 = 4;

/// A range on the fake, with the test itself as the pager.
struct Fixture {
    fake: FakePageTable,
    table: Arc<dyn PageTable>,
    device: Arc<DeviceMemory>,
    base: Addr,
}

impl Fixture {
    /// The range points at zeros.
    fn zeros() -> Self {
        let fake = FakePageTable::new();
        let table = fake.table();
        let device = Arc::new(DeviceMemory::heap(PAGES * BASE_PAGE, BASE_PAGE).unwrap());
        (0..PAGES).for_each(|block| device.write(block * BASE_PAGE, &(100 + block).to_ne_bytes()).unwrap());
        let base = table.reserve(PAGES * BASE_PAGE, BASE_PAGE, Rights::LOAD_STORE).unwrap();
        Self { fake, table, device, base }
    }

    /// Page N of the range points at block N.
    fn device() -> Self {
        let this = Self::zeros();
        this.pointed(|this| this.table.point_at_device(this.pages(0, PAGES), &this.device, 0, Rights::LOAD_STORE));
        this
    }

    /// Re-points with somebody to read the event.
    fn pointed(&self, point: impl FnOnce(&Self) -> Result<(), Errno> + Send) {
        thread::scope(|scope| {
            let pointing = scope.spawn(|| point(self));
            self.table.wait();
            assert_eq!(self.read(), vec![]);
            pointing.join().unwrap().unwrap();
        });
    }

    fn pages(&self, page: u64, count: u64) -> Span<'static> {
        Span::made_up(self.at(page), count * BASE_PAGE)
    }

    fn page(&self, page: u64) -> Span<'static> {
        self.pages(page, 1)
    }

    fn at(&self, page: u64) -> Addr {
        self.base.plus(page * BASE_PAGE)
    }

    fn read(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        self.table.read(&mut messages).unwrap();
        messages
    }

    /// Waits for the one fault that is about to come.
    fn fault(&self) -> RawFault {
        self.table.wait();
        match self.read()[..] {
            [Message::Fault(fault)] => fault,
            ref other => panic!("one fault was expected: {other:?}"),
        }
    }

    fn load(&self, page: u64) -> JoinHandle<Result<u64, FakeFault>> {
        let (fake, at) = (self.fake.clone(), self.at(page).0);
        thread::spawn(move || fake.load(at))
    }

    fn store(&self, page: u64, value: u64) -> JoinHandle<Result<(), FakeFault>> {
        let (fake, at) = (self.fake.clone(), self.at(page).0);
        thread::spawn(move || fake.store(at, value))
    }

    /// Until so many threads are asleep.
    fn until_waiting(&self, threads: usize) {
        while self.fake.waiting() != threads {
            thread::yield_now();
        }
    }

    fn install(&self, page: u64, protection: Protection) -> Outcome {
        self.table.install(self.page(page), protection).unwrap()
    }

    fn poison(&self, page: u64) -> Outcome {
        self.table.poison(self.page(page)).unwrap()
    }

    fn protect(&self, page: u64) -> Outcome {
        self.table.protect(self.page(page)).unwrap()
    }

    fn unprotect(&self, page: u64) -> Outcome {
        self.table.unprotect(self.page(page)).unwrap()
    }

    fn zap(&self, page: u64) {
        self.table.zap(self.page(page)).unwrap();
    }

    fn block(&self, block: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read(block * BASE_PAGE, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn bus(&self, page: u64) -> FakeFault {
        FakeFault::Bus { addr: self.at(page).0 }
    }

    /// The kind of fault that a store to the page meets. The thread is sent away with a SIGBUS.
    fn store_fault(&self, page: u64) -> FaultKind {
        let store = self.store(page, 1);
        let fault = self.fault();
        assert_eq!(self.table.raise_sigbus(fault.tid, fault.addr), Delivery::Sent);
        assert_eq!(store.join().unwrap(), Err(self.bus(page)));
        fault.kind
    }
}
