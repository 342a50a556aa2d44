//! Faults, events, signals, and who is woken when.

use super::*;

#[test]
fn a_load_faults_by_what_the_range_points_at_and_repeats_after_an_install() {
    let zeros = Fixture::zeros();
    let load = zeros.load(1);
    let fault = zeros.fault();
    assert_eq!((fault.addr, fault.access, fault.kind), (zeros.at(1), Access::Load, FaultKind::Missing));
    assert_eq!(zeros.table.install_zeros(zeros.page(1), Protection::ReadOnly), Ok(Outcome::Installed));
    assert_eq!(load.join().unwrap(), Ok(0));

    let device = Fixture::device();
    let load = device.load(1);
    let fault = device.fault();
    assert_eq!((fault.addr, fault.access, fault.kind), (device.at(1), Access::Load, FaultKind::Minor));
    assert_eq!(device.install(1, Protection::ReadOnly), Outcome::Installed);
    assert_eq!(load.join().unwrap(), Ok(101));
    assert!(device.fake.is_mapped(device.at(1).0) && !device.fake.is_mapped(device.at(2).0));
}

#[test]
fn unprotecting_nothing_wakes_and_installs_nothing() {
    let test = Fixture::device();
    let store = test.store(0, 1);
    let fault = test.fault();
    assert_eq!(test.table.clear_markers(test.page(0)), Ok(Outcome::Installed));
    assert_eq!((test.fake.waiting(), test.table.runs(fault.tid)), (1, Some(0)));
    assert_eq!(test.unprotect(0), Outcome::Installed);
    // Woken, it faults again, with a new message.
    assert_eq!(test.fault().kind, FaultKind::Minor);
    assert_eq!((test.table.runs(fault.tid), test.table.runs(Tid(99))), (Some(1), None));
    assert!(!test.fake.is_mapped(test.at(0).0));
    assert_eq!(test.install(0, Protection::Writable), Outcome::Installed);
    assert_eq!(store.join().unwrap(), Ok(()));
}

#[test]
fn a_zap_wakes_nobody_and_a_wake_repeats_the_access() {
    let test = Fixture::device();
    let load = test.load(0);
    test.fault();
    test.zap(0);
    assert_eq!((test.fake.waiting(), test.read()), (1, vec![]));
    test.table.wake(test.at(1), BASE_PAGE);
    assert_eq!(test.fake.waiting(), 1);
    test.table.wake(test.at(0), BASE_PAGE);
    test.fault();
    assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Installed);
    assert_eq!(load.join().unwrap(), Ok(100));
}

#[test]
fn faults_are_read_once_in_order_before_events_and_so_many_at_a_time() {
    let test = Fixture::zeros();
    let threads = MESSAGES_PER_READ + 2;
    let loads: Vec<_> = (0..threads)
        .map(|number| {
            let load = test.load(number as u64 % PAGES);
            test.until_waiting(number + 1);
            load
        })
        .collect();
    // A range of its own, so that the sleepers stay what they are.
    let other = test.table.reserve(BASE_PAGE, BASE_PAGE, Rights::LOAD_STORE).unwrap();
    let other = Span::made_up(other, BASE_PAGE);
    let pages = |messages: &[Message]| -> Vec<u64> {
        let page = |message: &Message| match message {
            Message::Fault(fault) => Some(fault.addr.since(test.base) / BASE_PAGE),
            Message::Moved { .. } | Message::Posted(..) => panic!("{message:?} is not to be expected"),
        };
        messages.iter().filter_map(page).collect()
    };
    thread::scope(|scope| {
        let pointing = scope.spawn(|| test.table.point_at_zeros(other, Rights::LOAD_STORE));
        while test.table.poison(other) != Ok(Outcome::Retry) {
            test.table.zap(other).unwrap();
        }
        let (first, second) = (test.read(), test.read());
        let expected: Vec<u64> = (0..threads as u64).map(|number| number % PAGES).collect();
        assert_eq!([pages(&first), pages(&second)].concat(), expected);
        assert_eq!((first.len(), second.len()), (MESSAGES_PER_READ, 2));
        pointing.join().unwrap().unwrap();
    });
    assert_eq!(test.read(), vec![]);
    (0..PAGES).for_each(|page| assert_eq!(test.poison(page), Outcome::Installed));
    loads.into_iter().for_each(|load| assert!(load.join().unwrap().is_err()));
}

#[test]
fn everything_is_refused_while_an_event_is_unread() {
    let test = Fixture::device();
    let load = test.load(0);
    test.fault();
    thread::scope(|scope| {
        let pointing = scope.spawn(|| test.table.point_at_zeros(test.page(2), Rights::LOAD_STORE));
        test.table.wait();
        assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Retry);
        assert_eq!(test.table.install_zeros(test.page(2), Protection::ReadOnly), Ok(Outcome::Retry));
        assert_eq!(
            (test.poison(0), test.protect(0), test.unprotect(0)),
            (Outcome::Retry, Outcome::Retry, Outcome::Retry)
        );
        test.zap(0);
        assert_eq!(test.fake.waiting(), 1);
        assert_eq!(test.read(), vec![]);
        pointing.join().unwrap().unwrap();
    });
    assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Installed);
    assert_eq!(load.join().unwrap(), Ok(100));
    assert_eq!(test.fake.table().calls().repoints, 2);
}

#[test]
fn sigbus_reaches_one_thread_of_a_page_and_none_that_is_awake() {
    let test = Fixture::device();
    let first = test.load(0);
    let fault = test.fault();
    let second = test.load(0);
    test.until_waiting(2);
    assert_eq!(test.table.raise_sigbus(fault.tid, fault.addr), Delivery::Sent);
    assert_eq!(first.join().unwrap(), Err(test.bus(0)));
    assert_eq!((test.fake.waiting(), test.fake.stray_signals()), (1, 0));
    assert_eq!(test.install(0, Protection::ReadOnly), Outcome::Installed);
    assert_eq!(second.join().unwrap(), Ok(100));

    assert_eq!(test.fake.load(test.at(0).0), Ok(100));
    let own = test.fake.shared.state.lock().tid();
    assert_eq!(test.table.raise_sigbus(own, test.at(3)), Delivery::Awake);
    assert_eq!((test.fake.load(test.at(0).0), test.fake.stray_signals()), (Ok(100), 0));
    assert_eq!(test.table.raise_sigbus(Tid(99), test.at(0)), Delivery::Unreachable);
}

/// A thread looks, finds nothing, and falls asleep; in between the page is poisoned. The kernel's last
/// look takes poison for nothing, so the thread sleeps on a page that needs no install any more,
/// and only a wake gets it out: the case behind "EEXIST, and then a wake".
#[test]
fn the_last_look_takes_poison_for_nothing_and_an_entry_for_done() {
    let test = Fixture::device();
    let fall_asleep = |kind, page| {
        let mut state = test.fake.shared.state.lock();
        let seen = state.space.backing(test.at(page).0).unwrap();
        let fault = RawFault { addr: test.at(page), access: Access::Store, kind, tid: Tid(1) };
        state.fall_asleep(fault, &seen, false).is_some()
    };
    assert!(fall_asleep(FaultKind::Minor, 0));
    assert_eq!(test.poison(0), Outcome::Installed);
    assert!(fall_asleep(FaultKind::Minor, 0));
    assert_eq!(test.install(1, Protection::ReadOnly), Outcome::Installed);
    assert!(!fall_asleep(FaultKind::Minor, 1) && fall_asleep(FaultKind::WriteProtect, 1));
    assert_eq!(test.unprotect(1), Outcome::Installed);
    assert!(!fall_asleep(FaultKind::WriteProtect, 1));
    // A range that has changed is looked at anew.
    let mut state = test.fake.shared.state.lock();
    let fault = RawFault { addr: test.at(2), access: Access::Load, kind: FaultKind::Minor, tid: Tid(1) };
    assert_eq!(state.fall_asleep(fault, &Backing::Zeros, false), None);
}

#[test]
fn kicks_end_a_wait_and_calls_are_counted() {
    let test = Fixture::zeros();
    test.table.kick();
    test.table.wait();
    test.table.install_zeros(test.page(0), Protection::ReadOnly).map(drop).unwrap();
    test.zap(0);
    test.table.wake(test.base, BASE_PAGE);
    assert_eq!(test.read(), vec![]);
    let calls = test.table.calls();
    assert_eq!((calls.polls, calls.reads, calls.installs), (1, 1, 1));
    assert_eq!((calls.wakes, calls.zaps, calls.repoints), (1, 1, 0));
    assert_eq!((test.table.base_page(), test.table.serves_kernel_faults()), (BASE_PAGE, true));
    assert_eq!(test.table.check_huge(), Ok(()));
    assert_eq!(test.table.reserve(0, BASE_PAGE, Rights::LOAD_STORE), Err(Errno::EINVAL));
}
