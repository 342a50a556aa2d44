//! What is there, and what an ioctl makes of it.

use super::*;

#[test]
fn a_store_through_a_protected_entry_faults_until_it_is_unprotected() {
    let test = Fixture::device();
    assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Installed);
    let store = test.store(0, 7);
    let fault = test.fault();
    assert_eq!((fault.access, fault.kind), (Access::Store, FaultKind::WriteProtect));
    assert_eq!(test.unprotect(0), Outcome::Installed);
    assert_eq!(store.join().unwrap(), Ok(()));
    assert_eq!((test.block(0), test.fake.load(test.at(0).0)), (7, Ok(7)));
    assert_eq!(test.fake.compare_exchange(test.at(0).0, 7, 8), Ok(7));
    assert_eq!(test.fake.compare_exchange(test.at(0).0, 7, 9), Ok(8));
    assert_eq!(test.protect(0), Outcome::Installed);
    assert_eq!(test.store_fault(0), FaultKind::WriteProtect);
    assert_eq!(test.block(0), 8);
}

#[test]
fn unprotected_zeros_swallow_stores() {
    let test = Fixture::zeros();
    assert_eq!(test.table.install_zeros(test.page(0), Protection::ReadOnly), Ok(Outcome::Installed));
    assert_eq!(test.table.install_zeros(test.page(0), Protection::ReadOnly), Ok(Outcome::AlreadyPresent));
    assert_eq!(test.store_fault(0), FaultKind::WriteProtect);
    assert_eq!(test.unprotect(0), Outcome::Installed);
    assert_eq!(test.fake.store(test.at(0).0, 5), Ok(()));
    assert_eq!((test.fake.load(test.at(0).0), test.block(0)), (Ok(5), 100));
    test.zap(0);
    let load = test.load(0);
    test.fault();
    assert_eq!(test.table.install_zeros(test.page(0), Protection::ReadOnly), Ok(Outcome::Installed));
    assert_eq!(load.join().unwrap(), Ok(0));
}

#[test]
fn an_install_over_an_entry_is_refused_and_wakes_nobody() {
    let test = Fixture::device();
    assert_eq!(test.install(1, Protection::ReadOnly), Outcome::Installed);
    let store = test.store(1, 1);
    test.until_waiting(1);
    assert_eq!(test.install(1, Protection::Writable), Outcome::AlreadyPresent);
    assert_eq!(test.poison(1), Outcome::AlreadyPresent);
    assert_eq!(test.table.install_zeros(test.page(1), Protection::ReadOnly), Ok(Outcome::AlreadyPresent));
    // Nor does protecting what is protected wake anybody.
    assert_eq!(test.protect(1), Outcome::Installed);
    assert_eq!(test.fake.waiting(), 1);
    // A range is installed up to the first entry.
    let two = test.table.install(test.pages(0, 2), Protection::Writable);
    assert_eq!((two, test.fake.is_mapped(test.at(0).0)), (Ok(Outcome::AlreadyPresent), true));
    assert_eq!(test.fake.waiting(), 1);
    let _ = test.table.revoke(test.page(1));
    assert_eq!(store.join().unwrap(), Err(test.bus(1)));
}

#[test]
fn installs_need_a_range_of_the_right_kind() {
    let zeros = Fixture::zeros();
    assert_eq!(zeros.table.install(zeros.page(0), Protection::Writable), Err(Errno::EINVAL));
    let device = Fixture::device();
    assert_eq!(device.table.install_zeros(device.page(0), Protection::ReadOnly), Ok(Outcome::AlreadyPresent));
    // Not one VMA any more: nothing is done.
    let _ = device.table.revoke(device.page(1));
    let two = device.table.install(device.pages(0, 2), Protection::Writable);
    assert_eq!((two, device.fake.is_mapped(device.at(0).0)), (Ok(Outcome::Gone), false));
    for page in [1, PAGES] {
        assert_eq!(device.install(page, Protection::Writable), Outcome::Gone);
        assert_eq!(device.table.install_zeros(device.page(page), Protection::ReadOnly), Ok(Outcome::Gone));
        assert_eq!(device.poison(page), Outcome::Gone);
        assert_eq!(device.protect(page), Outcome::Gone);
        assert_eq!(device.unprotect(page), Outcome::Gone);
    }
}

#[test]
fn poison_ends_accesses_until_it_is_zapped_or_installed_over() {
    let test = Fixture::device();
    let load = test.load(0);
    test.fault();
    assert_eq!(test.poison(0), Outcome::Installed);
    assert_eq!(load.join().unwrap(), Err(test.bus(0)));
    assert_eq!(test.poison(0), Outcome::AlreadyPresent);
    assert_eq!((test.unprotect(0), test.protect(0)), (Outcome::Installed, Outcome::Installed));
    assert_eq!(test.fake.store(test.at(0).0, 1), Err(test.bus(0)));
    test.zap(0);
    assert_eq!(test.store_fault(0), FaultKind::Minor);
    assert_eq!(test.poison(0), Outcome::Installed);
    assert_eq!(test.install(0, Protection::Writable), Outcome::Installed);
    assert_eq!(test.fake.load(test.at(0).0), Ok(100));
}

#[test]
fn a_marker_outlives_a_zap_and_goes_with_unprotect_or_an_install() {
    let test = Fixture::device();
    let marked = || test.poison(0) == Outcome::AlreadyPresent && !test.fake.is_mapped(test.at(0).0);
    assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Installed);
    test.zap(0);
    assert!(marked());
    test.zap(0);
    assert!(marked());
    assert_eq!(test.store_fault(0), FaultKind::Minor);
    assert_eq!(test.unprotect(0), Outcome::Installed);
    assert!(!test.fake.is_mapped(test.at(0).0));
    assert_eq!(test.protect(0), Outcome::Installed);
    assert!(marked());
    assert_eq!(test.install(0, Protection::Writable), Outcome::Installed);
    assert_eq!(test.fake.store(test.at(0).0, 1), Ok(()));
    // A writable entry leaves none.
    test.zap(0);
    assert_eq!(test.poison(0), Outcome::Installed);
    // Neither do zeros, however they are protected.
    let zeros = Fixture::zeros();
    assert_eq!(zeros.protect(0), Outcome::Installed);
    assert_eq!(zeros.table.install_zeros(zeros.page(0), Protection::ReadOnly), Ok(Outcome::Installed));
    zeros.zap(0);
    assert_eq!(zeros.poison(0), Outcome::Installed);
}

#[test]
fn a_device_page_may_be_larger_than_the_base_page() {
    let fake = FakePageTable::new();
    let (table, huge) = (fake.table(), 4 * BASE_PAGE);
    let device = Arc::new(DeviceMemory::heap(2 * huge, huge).unwrap());
    let base = table.reserve(2 * huge, huge, Rights::LOAD_STORE).unwrap();
    thread::scope(|scope| {
        let pointing =
            scope.spawn(|| table.point_at_device(Span::made_up(base, 2 * huge), &device, 0, Rights::LOAD_STORE));
        table.wait();
        table.read(&mut Vec::new()).unwrap();
        pointing.join().unwrap().unwrap();
        let (first, last) = (base.plus(huge), base.plus(2 * huge - 8));
        let stores = [first, last].map(|at| {
            scope.spawn({
                let fake = &fake;
                move || fake.store(at.0, 3)
            })
        });
        while fake.waiting() != 2 {
            thread::yield_now();
        }
        assert_eq!(table.install(Span::made_up(first, huge), Protection::Writable), Ok(Outcome::Installed));
        stores.into_iter().for_each(|store| store.join().unwrap().unwrap());
    });
    assert_eq!(fake.load(base.plus(2 * huge - 8).0), Ok(3));
    assert!(!fake.is_mapped(base.0));
}

#[test]
fn a_range_that_is_pointed_elsewhere_has_no_entry_and_its_waiters_stay() {
    let test = Fixture::device();
    (0..2).for_each(|page| assert_eq!(test.install(page, Protection::Writable), Outcome::Installed));
    let load = test.load(2);
    test.fault();
    test.pointed(|test| test.table.point_at_device(test.pages(1, 2), &test.device, 2 * BASE_PAGE, Rights::LOAD_STORE));
    assert_eq!(test.fake.waiting(), 1);
    assert!(test.fake.is_mapped(test.at(0).0) && !test.fake.is_mapped(test.at(1).0));
    assert_eq!(test.install(1, Protection::ReadOnly), Outcome::Installed);
    assert_eq!(test.install(2, Protection::ReadOnly), Outcome::Installed);
    assert_eq!((test.fake.load(test.at(1).0), load.join().unwrap()), (Ok(102), Ok(103)));
    let past_the_end = test.table.point_at_device(test.pages(0, 2), &test.device, 3 * BASE_PAGE, Rights::LOAD_STORE);
    assert_eq!(past_the_end, Err(Errno::EFAULT));
}

const LOAD: Rights = Rights { read_only: true, ..Rights::LOAD_STORE };

#[test]
fn a_range_for_loads_alone_stays_so_as_it_was_pointed() {
    let test = Fixture::device();
    let segv = |page: u64| Err(FakeFault::Segv { addr: test.at(page).0 });
    test.pointed(|test| test.table.point_at_device(test.pages(1, 1), &test.device, BASE_PAGE, LOAD));
    test.pointed(|test| test.table.point_at_zeros(test.page(2), LOAD));
    // With nothing installed and with an entry that is writable: no fault, and no message.
    for _ in 0..2 {
        assert_eq!((test.fake.store(test.at(1).0, 7), test.fake.store(test.at(2).0, 7)), (segv(1), segv(2)));
        assert_eq!(test.fake.compare_exchange(test.at(1).0, 101, 7), Err(FakeFault::Segv { addr: test.at(1).0 }));
        assert_eq!(test.read(), vec![]);
        let _ = (
            test.install(1, Protection::Writable),
            test.table.install_zeros(test.page(2), Protection::ReadOnly).unwrap(),
        );
    }
    assert_eq!((test.fake.load(test.at(1).0), test.fake.load(test.at(2).0)), (Ok(101), Ok(0)));
    // The neighbour is another area, though it goes on where this one ends.
    assert_eq!(test.table.install(test.pages(0, 2), Protection::Writable), Ok(Outcome::Gone));
    assert_eq!(test.install(0, Protection::Writable), Outcome::Installed);
    assert_eq!(test.fake.store(test.at(0).0, 7), Ok(()));
}

#[test]
fn unmap_ends_in_segv_and_the_address_is_handed_out_again() {
    let test = Fixture::device();
    let (asleep, unread) = (test.load(0), test.load(1));
    test.until_waiting(2);
    test.table.unmap(Last::made_up(test.base, PAGES * BASE_PAGE));
    assert_eq!(asleep.join().unwrap(), Err(FakeFault::Segv { addr: test.at(0).0 }));
    assert_eq!(unread.join().unwrap(), Err(FakeFault::Segv { addr: test.at(1).0 }));
    // The messages went with those who waited.
    assert_eq!(test.read(), vec![]);
    let smaller = test.table.reserve(BASE_PAGE, 16 * BASE_PAGE, Rights::LOAD_STORE).unwrap();
    assert!(smaller.0.is_multiple_of(16 * BASE_PAGE as usize) && smaller != test.base);
    assert_eq!(test.table.reserve(PAGES * BASE_PAGE, BASE_PAGE, Rights::LOAD_STORE), Ok(test.base));
    assert_ne!(test.table.reserve(PAGES * BASE_PAGE, BASE_PAGE, Rights::LOAD_STORE), Ok(test.base));
}

#[test]
fn revoked_ranges_end_in_sigbus_with_no_pager() {
    let test = Fixture::device();
    assert_eq!(test.install(1, Protection::Writable), Outcome::Installed);
    let load = test.load(0);
    test.until_waiting(1);
    let _ = test.table.revoke(test.pages(0, PAGES));
    assert_eq!(load.join().unwrap(), Err(test.bus(0)));
    assert_eq!(test.fake.load(test.at(1).0), Err(test.bus(1)));
}
