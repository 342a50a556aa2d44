//! The kernel's page table and the fake one, side by side: the same steps, the same answers.
//!
//! An access that faults is recorded and then taken out of its fault by a SIGBUS, which changes nothing
//! in the page table; so every step has one outcome, and no timing in it.

use nix::errno::Errno;
use proptest::prelude::*;

use super::fake::{FakeFault, FakePageTable};
use super::memory::DeviceMemory;
use super::userfault::Userfault;
use super::{
    Access, Delivery, FaultKind, Filled, Message, Outcome, PageTable, Place, Present, Protection, Revoked, Rights,
    Scan, Span, access,
};
use crate::sync::plain::{AtomicBool, Ordering};
use crate::sync::{Arc, thread};
use crate::units::Addr;

const PAGES: u64 = 3;
const BLOCKS: u64 = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    InstallReadOnly(u64, u64),
    InstallWritable(u64, u64),
    InstallZeros(u64),
    InstallWritableZeros(u64),
    /// Takes the pages out of the device that a range of a sparse one shows.
    Punch(u64, u64),
    /// Writes to the device's block itself: it has a page then.
    Fill(u64, u64),
    Poison(u64, u64),
    Protect(u64, u64),
    Unprotect(u64, u64),
    ClearMarkers(u64, u64),
    Zap(u64, u64),
    PointAtDevice(u64, u64, u64),
    PointAtZeros(u64, u64),
    /// At the range's own part of the device.
    PointInPlace(u64, u64, Present),
    /// Of what is present, where it points at the device.
    BeTold(u64, u64),
    /// Pages of zeros, up to the first that is there.
    MakeRunPresent(u64, u64, Protection),
    Revoke(u64, u64),
    Scan(Scan, u64, u64),
    Load(u64),
    Store(u64, u64),
    Exchange(u64, u64, u64),
}

/// What can be seen of a step, with addresses counted from the range's start.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Outcome(Result<Outcome, Errno>),
    Done(Result<(), Errno>),
    Filled(Result<Filled, Errno>),
    /// Pages of the range.
    Found(Result<Vec<u64>, Errno>),
    Access {
        faults: Vec<(FaultKind, Access, u64)>,
        end: Result<u64, u64>,
    },
}

/// A load, a store, or an exchange.
#[derive(Clone, Copy)]
enum Word {
    Load,
    Store(u64),
    Exchange(u64, u64),
}

enum Cpu {
    Real,
    Fake(FakePageTable),
}

impl Cpu {
    fn access(&self, place: &Place, at: usize, word: Word) -> Result<u64, usize> {
        let part = || place.part((at - place.at().0) as u64, 8).expect("a word of a real range");
        match self {
            Cpu::Real => match word {
                Word::Load => access::load(part()),
                Word::Store(value) => access::store(part(), value).map(|()| 0),
                Word::Exchange(expected, new) => access::exchange(part(), expected, new),
            },
            Cpu::Fake(fake) => match word {
                Word::Load => fake.load(at),
                Word::Store(value) => fake.store(at, value).map(|()| 0),
                Word::Exchange(expected, new) => fake.compare_exchange(at, expected, new),
            }
            .map_err(|fault| match fault {
                FakeFault::Bus { addr } => addr,
                FakeFault::Segv { addr } => panic!("SIGSEGV at {addr:#x}"),
            }),
        }
    }
}

/// A page table, a range of it, and a device.
struct Subject {
    cpu: Cpu,
    table: Arc<dyn PageTable>,
    device: Arc<DeviceMemory>,
    place: Place,
    base: Addr,
    sparse: bool,
}

impl Subject {
    fn new(cpu: Cpu, table: Arc<dyn PageTable>, device: DeviceMemory) -> Self {
        let page = table.base_page();
        // On the kernel the page cache must have every page, as it always has for the fake.
        device.populate(0, BLOCKS * page).unwrap();
        (0..BLOCKS).for_each(|block| device.write(block * page, &(1000 + block).to_ne_bytes()).unwrap());
        let place = Place::reserve(&table, PAGES * page, page, Rights::LOAD_STORE).unwrap();
        Self { cpu, table, device: Arc::new(device), base: place.at(), place, sparse: false }
    }

    /// On a device in which nothing is, and whose first blocks the whole range shows.
    fn sparse(cpu: Cpu, table: Arc<dyn PageTable>, device: DeviceMemory) -> Self {
        let bytes = PAGES * table.base_page();
        let place = Place::reserve(&table, bytes, table.base_page(), Rights::LOAD_STORE).unwrap();
        let device = Arc::new(device);
        table.show(place.span(place.at(), bytes), &device, 0, Rights::LOAD_STORE, Present::Told).unwrap();
        Self { cpu, table, device, base: place.at(), place, sparse: true }
    }

    /// A page of zeros, of the device's if the range shows it.
    fn zeros(&self, span: Span<'_>, protection: Protection) -> Result<Outcome, Errno> {
        if self.sparse { self.table.make_present(span, protection) } else { self.table.install_zeros(span, protection) }
    }

    fn sparse_kernel(asynchronous: bool) -> Self {
        access::enable().unwrap();
        let table: Arc<dyn PageTable> = Userfault::open(false).unwrap();
        let table = if asynchronous { table.asynchronous().unwrap() } else { table };
        let bytes = BLOCKS * table.base_page();
        Self::sparse(Cpu::Real, table, DeviceMemory::memfd("conformance", bytes).unwrap())
    }

    fn sparse_fake(asynchronous: bool) -> Self {
        let fake = FakePageTable::new();
        let table = if asynchronous { fake.table().asynchronous().unwrap() } else { fake.table() };
        let (bytes, block) = (BLOCKS * table.base_page(), table.base_page());
        Self::sparse(Cpu::Fake(fake), table, DeviceMemory::sparse_heap(bytes, bytes, block).unwrap())
    }

    /// With ranges that let stores through by themselves, or without.
    fn kernel(asynchronous: bool) -> Self {
        access::enable().unwrap();
        let table: Arc<dyn PageTable> = Userfault::open(false).unwrap();
        let table = if asynchronous { table.asynchronous().unwrap() } else { table };
        let bytes = BLOCKS * table.base_page();
        Self::new(Cpu::Real, table, DeviceMemory::memfd("conformance", bytes).unwrap())
    }

    fn fake(asynchronous: bool) -> Self {
        let fake = FakePageTable::new();
        let table = if asynchronous { fake.table().asynchronous().unwrap() } else { fake.table() };
        let (bytes, block) = (BLOCKS * table.base_page(), table.base_page());
        Self::new(Cpu::Fake(fake), table, DeviceMemory::heap(bytes, block).unwrap())
    }

    fn range(&self, page: u64, count: u64) -> Span<'_> {
        self.place.span(self.base.plus(page * self.table.base_page()), count * self.table.base_page())
    }

    /// Runs `act` in another thread, and plays the pager meanwhile: reads, and ends every fault.
    fn attended<T: Send>(&self, act: impl FnOnce() -> T + Send) -> (T, Vec<(FaultKind, Access, u64)>) {
        let done = AtomicBool::new(false);
        let mut faults = Vec::new();
        let result = thread::scope(|scope| {
            let actor = scope.spawn(|| {
                let result = act();
                done.store(true, Ordering::Release);
                self.table.kick();
                result
            });
            let mut messages = Vec::new();
            while !done.load(Ordering::Acquire) {
                self.table.wait();
                self.table.read(&mut messages).unwrap();
                for message in messages.drain(..) {
                    let Message::Fault(fault) = message else { continue };
                    let seen = (fault.kind, fault.access, fault.addr.since(self.base));
                    // Another test's signal can interrupt the wait: the thread faults again, before its SIGBUS.
                    if faults.last() != Some(&seen) {
                        faults.push(seen);
                    }
                    // The message is there a moment before its thread is asleep. The second of two for one access, read at
                    // once, is of a thread that has taken its SIGBUS for the first.
                    while self.table.raise_sigbus(fault.tid, fault.addr) == Delivery::Awake
                        && !done.load(Ordering::Acquire)
                    {
                        thread::yield_now();
                    }
                }
            }
            actor.join().unwrap()
        });
        // The kick may have come after the last look: none is left for the next wait.
        self.table.kick();
        self.table.wait();
        (result, faults)
    }

    fn access(&self, page: u64, word: Word) -> Seen {
        let at = self.range(page, 1).at();
        let (end, faults) = self.attended(|| self.cpu.access(&self.place, at.0, word));
        Seen::Access { faults, end: end.map_err(|addr| Addr(addr).since(self.base)) }
    }

    fn run(&self, step: Step) -> Seen {
        let table = &*self.table;
        let on =
            |page, count, act: &dyn Fn(Span<'_>) -> Result<Outcome, Errno>| Seen::Outcome(act(self.range(page, count)));
        match step {
            Step::InstallReadOnly(page, count) => on(page, count, &|span| table.install(span, Protection::ReadOnly)),
            Step::InstallWritable(page, count) => on(page, count, &|span| table.install(span, Protection::Writable)),
            Step::InstallZeros(page) => on(page, 1, &|span| self.zeros(span, Protection::ReadOnly)),
            Step::InstallWritableZeros(page) => on(page, 1, &|span| self.zeros(span, Protection::Writable)),
            Step::Punch(page, count) => {
                let span = self.range(page, count);
                table.page_goes(span);
                Seen::Done(self.device.punch(page * table.base_page(), span.bytes()))
            }
            Step::Fill(block, value) => {
                self.device.write(block * table.base_page(), &value.to_ne_bytes()).unwrap();
                Seen::Done(Ok(()))
            }
            Step::Poison(page, count) => on(page, count, &|span| table.poison(span)),
            Step::Protect(page, count) => on(page, count, &|span| table.protect(span)),
            Step::Unprotect(page, count) => on(page, count, &|span| table.unprotect(span)),
            Step::ClearMarkers(page, count) => on(page, count, &|span| table.clear_markers(span)),
            Step::Zap(page, count) => Seen::Done(table.zap(self.range(page, count))),
            Step::PointAtDevice(page, count, block) => {
                let span = self.range(page, count);
                let offset = block * table.base_page();
                Seen::Done(self.attended(|| table.point_at_device(span, &self.device, offset, Rights::LOAD_STORE)).0)
            }
            Step::PointAtZeros(page, count) => {
                let span = self.range(page, count);
                Seen::Done(self.attended(|| table.point_at_zeros(span, Rights::LOAD_STORE)).0)
            }
            Step::PointInPlace(page, count, present) => {
                let span = self.range(page, count);
                let offset = page * table.base_page();
                let point = || table.point_in_place(span, &self.device, offset, Rights::LOAD_STORE, present);
                Seen::Done(self.attended(point).0)
            }
            Step::BeTold(page, count) => Seen::Done(table.be_told(self.range(page, count), Rights::LOAD_STORE)),
            Step::MakeRunPresent(page, count, protection) => {
                let filled = table.make_run_present(self.range(page, count), protection);
                Seen::Filled(filled)
            }
            Step::Revoke(page, count) => {
                assert_eq!(table.revoke(self.range(page, count)), Revoked::Sigbus);
                Seen::Done(Ok(()))
            }
            Step::Scan(scan, page, count) => {
                let span = self.range(page, count);
                let mut found = Vec::new();
                let scanned = table.scan(scan, span, &mut |at, bytes| {
                    let first = at.since(self.base) / table.base_page();
                    found.extend(first..first + bytes / table.base_page());
                });
                Seen::Found(scanned.map(|()| found))
            }
            Step::Load(page) => self.access(page, Word::Load),
            Step::Store(page, value) => self.access(page, Word::Store(value)),
            Step::Exchange(page, expected, new) => self.access(page, Word::Exchange(expected, new)),
        }
    }

    fn device_words(&self) -> Vec<u64> {
        let word = |block| {
            let mut bytes = [0; 8];
            self.device.read(block * self.table.base_page(), &mut bytes).unwrap();
            u64::from_ne_bytes(bytes)
        };
        (0..BLOCKS).map(word).collect()
    }
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES;
    let range = (0..PAGES, 1..=PAGES);
    prop_oneof![
        3 => range.clone().prop_map(|(page, count)| Step::InstallReadOnly(page, count)),
        3 => range.clone().prop_map(|(page, count)| Step::InstallWritable(page, count)),
        3 => page.clone().prop_map(Step::InstallZeros),
        2 => range.clone().prop_map(|(page, count)| Step::Poison(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::Protect(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::Unprotect(page, count)),
        1 => range.clone().prop_map(|(page, count)| Step::ClearMarkers(page, count)),
        3 => range.clone().prop_map(|(page, count)| Step::Zap(page, count)),
        2 => (range.clone(), 0..=BLOCKS - PAGES)
            .prop_map(|((page, count), block)| Step::PointAtDevice(page, count, block)),
        1 => range.clone().prop_map(|(page, count)| Step::PointAtZeros(page, count)),
        2 => (prop_oneof![Just(Scan::TakeWritten), Just(Scan::Absent), Just(Scan::Marked)], range)
            .prop_map(|(scan, (page, count))| Step::Scan(scan, page, count)),
        2 => page.clone().prop_map(Step::Load),
        2 => (page.clone(), 1..100u64).prop_map(|(page, value)| Step::Store(page, value)),
        1 => (page, 0..4u64, 1..4u64).prop_map(|(page, expected, new)| Step::Exchange(page, expected, new)),
    ]
}

/// Most of the range points at the device to begin with, so that there is something to play with. Revoked
/// pages refuse everything, so they come at random only once.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = || proptest::collection::vec(step(), 1..40);
    (run(), (0..PAGES, 1..=PAGES), run()).prop_map(|(before, (page, count), after)| {
        let mut steps = vec![Step::PointAtDevice(0, 2, 0)];
        steps.extend(before);
        steps.push(Step::Revoke(page, count));
        steps.extend(after);
        clip(&mut steps);
        steps
    })
}

/// What is done to a range that shows a sparse device for good. Nothing that a step reaches ends past it.
fn sparse_steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..PAGES;
    let range = (0..PAGES, 1..=PAGES).prop_map(|(page, count)| (page, count.min(PAGES - page)));
    let step = prop_oneof![
        2 => range.clone().prop_map(|(page, count)| Step::InstallReadOnly(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::InstallWritable(page, count)),
        3 => page.clone().prop_map(Step::InstallZeros),
        3 => page.clone().prop_map(Step::InstallWritableZeros),
        3 => range.clone().prop_map(|(page, count)| Step::Punch(page, count)),
        2 => (page.clone(), 100..200u64).prop_map(|(page, value)| Step::Fill(page, value)),
        1 => range.clone().prop_map(|(page, count)| Step::Poison(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::Protect(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::Unprotect(page, count)),
        1 => range.clone().prop_map(|(page, count)| Step::ClearMarkers(page, count)),
        2 => range.clone().prop_map(|(page, count)| Step::Zap(page, count)),
        1 => (range.clone(), prop_oneof![Just(Present::Told), Just(Present::Installed)])
            .prop_map(|((page, count), present)| Step::PointInPlace(page, count, present)),
        1 => range.clone().prop_map(|(page, count)| Step::BeTold(page, count)),
        2 => (range, prop_oneof![Just(Protection::ReadOnly), Just(Protection::Writable)])
            .prop_map(|((page, count), protection)| Step::MakeRunPresent(page, count, protection)),
        2 => page.clone().prop_map(Step::Load),
        2 => (page.clone(), 1..100u64).prop_map(|(page, value)| Step::Store(page, value)),
        1 => (page, 0..4u64, 1..4u64).prop_map(|(page, expected, new)| Step::Exchange(page, expected, new)),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Whether the kernel merges two anonymous VMAs depends on what has been in them, and an install or a poison
/// serves one VMA only. The core never has it serve more than one page of zeros, and neither do the steps.
fn clip(steps: &mut [Step]) {
    let mut zeros = [true; PAGES as usize];
    for step in steps {
        match step {
            Step::InstallReadOnly(page, count) | Step::InstallWritable(page, count) | Step::Poison(page, count) => {
                let device = zeros[*page as usize..].iter().take(*count as usize).take_while(|zeros| !**zeros);
                *count = device.count().max(1) as u64;
            }
            Step::PointAtDevice(page, count, _) | Step::Revoke(page, count) | Step::PointAtZeros(page, count) => {
                let range = *page as usize..(*page + *count).min(PAGES) as usize;
                zeros[range].fill(matches!(step, Step::PointAtZeros(..)));
            }
            _ => {}
        }
    }
}

/// What the steps leave behind shows in scans, and in a load and a store of every page.
fn epilogue() -> impl Iterator<Item = Step> {
    let scans = [Step::Scan(Scan::Absent, 0, PAGES), Step::Scan(Scan::TakeWritten, 0, PAGES)];
    let accesses = (0..PAGES).flat_map(|page| [Step::Load(page), Step::Store(page, 7), Step::Load(page)]);
    scans.into_iter().chain(accesses).chain([Step::Scan(Scan::TakeWritten, 0, PAGES)])
}

fn compare(steps: &[Step], kernel: &Subject, fake: &Subject) -> Result<(), TestCaseError> {
    for (number, step) in steps.iter().copied().chain(epilogue()).enumerate() {
        let (real, fake) = (kernel.run(step), fake.run(step));
        prop_assert_eq!(real, fake, "kernel, fake: step {}, {:?}", number, step);
    }
    prop_assert_eq!(kernel.device_words(), fake.device_words());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does(steps in steps()) {
        compare(&steps, &Subject::kernel(false), &Subject::fake(false))?;
    }

    /// Where the device has some pages and not others: which faults are missing, what COPY and CONTINUE find, what a punch leaves.
    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does_on_a_sparse_device(steps in sparse_steps()) {
        compare(&steps, &Subject::sparse_kernel(false), &Subject::sparse_fake(false))?;
    }

    /// Where the kernel installs what the device has: what is protected then, and what leaves no marker.
    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does_where_that_installs(steps in sparse_steps()) {
        let arm = Step::PointInPlace(0, PAGES, Present::Installed);
        let steps: Vec<Step> = std::iter::once(arm).chain(steps).collect();
        compare(&steps, &Subject::sparse_kernel(false), &Subject::sparse_fake(false))?;
    }

    /// The same, where it lets the first store to each page through by itself, and its page table is the record of it.
    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does_in_place_asynchronously(steps in sparse_steps(), arms in any::<bool>()) {
        let arm = arms.then_some(Step::PointInPlace(0, PAGES, Present::Installed));
        let take = |at: usize| (at % 5 == 4).then_some(Step::Scan(Scan::TakeAll, 0, PAGES));
        let steps = steps.into_iter().enumerate().flat_map(|(at, step)| [Some(step), take(at)]).flatten();
        let steps: Vec<Step> = arm.into_iter().chain(steps).collect();
        compare(&steps, &Subject::sparse_kernel(true), &Subject::sparse_fake(true))?;
    }

    /// Where it does, and lets stores through. It installs what is around a page as well, which shows in what finds an entry in its way:
    /// there is nothing of that kind here.
    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does_where_that_lets_stores_through(steps in sparse_steps()) {
        let meets = |step: &Step| matches!(step, Step::InstallReadOnly(..) | Step::InstallWritable(..) | Step::Poison(..));
        let open = Step::PointInPlace(0, PAGES, Present::Open);
        let changes = |step: &Step| matches!(step, Step::PointInPlace(..) | Step::BeTold(..));
        let rest = steps.into_iter().filter(|step| !meets(step) && !changes(step));
        let steps: Vec<Step> = std::iter::once(open).chain(rest).collect();
        compare(&steps, &Subject::sparse_kernel(false), &Subject::sparse_fake(false))?;
    }

    #[test]
    #[cfg_attr(emulated, ignore = "needs userfaultfd")]
    fn the_fake_does_what_the_kernel_does_asynchronously(steps in steps()) {
        compare(&steps, &Subject::kernel(true), &Subject::fake(true))?;
    }
}

/// Everything is refused from the moment a re-point has queued its event until that has been read and the
/// thread has run again; taking entries away and waking are not.
fn refused_while_an_event_is_unread(subject: &Subject) -> Vec<Seen> {
    let point = |page, block| {
        let span = subject.range(page, 1);
        subject.table.point_at_device(span, &subject.device, block * span.bytes(), Rights::LOAD_STORE)
    };
    subject.attended(|| point(0, 0)).0.unwrap();
    let steps = [
        Step::InstallWritable(0, 1),
        Step::InstallZeros(1),
        Step::Poison(0, 1),
        Step::Protect(0, 1),
        Step::Unprotect(0, 1),
        Step::ClearMarkers(0, 1),
        Step::Zap(0, 1),
    ];
    thread::scope(|scope| {
        let pointing = scope.spawn(|| point(2, 2));
        // The event alone ends the wait: nobody has faulted, and nobody kicks.
        subject.table.wait();
        let mut seen: Vec<Seen> = steps.iter().map(|step| subject.run(*step)).collect();
        let mut messages = Vec::new();
        while !pointing.is_finished() {
            subject.table.read(&mut messages).unwrap();
        }
        assert_eq!(messages, vec![], "our own moves are not reported");
        pointing.join().unwrap().unwrap();
        seen.extend(steps.iter().map(|step| subject.run(*step)));
        seen
    })
}

#[test]
#[cfg_attr(emulated, ignore = "needs userfaultfd")]
fn both_refuse_while_an_event_is_unread() {
    let kernel = refused_while_an_event_is_unread(&Subject::kernel(false));
    assert_eq!(kernel[..6], vec![Seen::Outcome(Ok(Outcome::Retry)); 6]);
    assert_eq!(kernel, refused_while_an_event_is_unread(&Subject::fake(false)));
}
