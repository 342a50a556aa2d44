//! Messages that their threads have left behind: of a fault that another thread's answer has ended. On the fake page
//! table, where a thread can be held just before it falls asleep.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use daxpager::fake::FakePageTable;
use daxpager::probe::Point;
use daxpager::{Device, File, Pager, Volume};

/// A pager on the fake, a file of holes mapped, and another file that can take the blocks.
struct Stage {
    park: Arc<Park>,
    fake: FakePageTable,
    volume: Volume,
    pager: Pager,
    file: File,
    map: daxpager::Mapping,
}

impl Stage {
    fn new(blocks: u64) -> Self {
        let (park, fake) = (Arc::new(Park::default()), FakePageTable::new());
        let volume = Volume::format_with_probe(Device::heap(blocks * PAGE, PAGE).unwrap(), park.clone());
        let pager = Pager::builder().workers(3).probe(park.clone()).reader_answers(false).start_on_fake(&fake).unwrap();
        let file = volume.create("a").unwrap();
        file.truncate(8 * PAGE).unwrap();
        let map = pager.map(&file, 0..8 * PAGE).unwrap();
        Self { park, fake, volume, pager, file, map }
    }

    fn page(&self, page: u64) -> usize {
        self.map.as_ptr() as usize + (page * PAGE) as usize
    }

    /// Another thread stores to page 0, and so ends every store that waits there.
    fn store_beside(&self) {
        let (fake, at) = (self.fake.clone(), self.page(0) + 8);
        spawn(move || fake.store(at, 8)).join("a store beside").unwrap().unwrap();
    }
}

/// A worker holds the message of a store to page 0. The thread's store is done, thanks to another's, and it loads page
/// 1; that message is unread. Page 0 is punched, its block is another file's, and there is none left: the worker finds
/// the volume full. The thread sleeps in a fault, but not in that one: its load ends well, and no signal is sent.
#[test]
fn a_sigbus_is_not_sent_to_a_thread_that_sleeps_in_another_fault() {
    let stage = Stage::new(2);
    let hog = stage.volume.create("hog").unwrap();
    hog.write_at(&[1; 8], 0).unwrap();
    let first = stage.park.at_page(Point::FaultTaken, 0);
    let may_load = Arc::new(AtomicBool::new(false));
    let (gate, next) = (may_load.clone(), stage.page(1));
    stage.fake.before_sleep(move |at| {
        while at == next && !gate.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    });
    let (fake, at) = (stage.fake.clone(), [stage.page(0), stage.page(1)]);
    let thread = spawn(move || (fake.store(at[0], 7), fake.load(at[1])));
    first.wait();
    stage.store_beside();
    // The reader is held in a third thread's fault: what comes now stays unread.
    let reader = stage.park.at_page(Point::FaultRead, 5);
    let (fake, at) = (stage.fake.clone(), stage.page(5));
    let third = spawn(move || fake.load(at));
    reader.wait();
    may_load.store(true, Ordering::SeqCst);
    until("the thread sleeps in its load", || (stage.fake.waiting() == 2).then_some(()));
    stage.file.punch_hole(0, PAGE).unwrap();
    hog.write_at(&[1; 8], PAGE).unwrap();
    first.release();
    let outcome = thread.within(HANG);
    reader.release();
    assert_eq!(outcome, Some((Ok(()), Ok(0))), "a store, then a load");
    assert_eq!(third.join("a load").unwrap(), Ok(0));
    assert_eq!(stage.fake.stray_signals(), 0);
}

/// A worker holds the message of a store that is done, and the thread has sent another message since. The page has
/// been punched: the first message ends without a block and without a wake. (With a wake, many threads that
/// store to one page, and one worker, can keep each other from ever getting there.)
#[test]
fn a_message_with_a_successor_wakes_nobody() {
    let stage = Stage::new(8);
    let first = stage.park.at_page(Point::FaultTaken, 0);
    let (fake, at) = (stage.fake.clone(), [stage.page(0), stage.page(1)]);
    let thread = spawn(move || (fake.store(at[0], 7), fake.store(at[1], 7)));
    first.wait();
    let second = stage.park.at_page(Point::FaultTaken, 1);
    stage.store_beside();
    second.wait();
    stage.file.punch_hole(0, PAGE).unwrap();
    let before = stage.pager.stats();
    first.release();
    let after = until("the first message has been served", || {
        let after = stage.pager.stats();
        (after.rounds > before.rounds && after.queued == 0).then_some(after)
    });
    second.release();
    assert_eq!(after.calls.wakes, before.calls.wakes);
    assert_eq!(thread.join("two stores").unwrap(), (Ok(()), Ok(())));
    assert_eq!((stage.pager.stats().calls.wakes, stage.file.blocks()), (before.calls.wakes, 1));
}
