//! Rules 1 to 3 and 7, each by its race: a thread is parked at a named point, the other side runs, the
//! thread is released, and the bytes are looked at. Then the same with the rule broken, which must be noticed.

mod common;

use common::*;
use daxpager::probe::Point;
use daxpager::sabotage::Rule;
use daxpager::{Error, ExtentKind};

const A: u8 = 0xaa;
const B: u8 = 0xbb;
const MARK: u64 = 0x4d41_524b_4d41_524b;

/// B takes the block that A has just lost, fills it, and must keep it.
fn give_block_to_b(world: &World) -> daxpager::File {
    world.file("b", 1, B)
}

fn b_is_whole(b: &daxpager::File) -> Verdict {
    let bytes = page_of(b, 0);
    check(bytes == vec![B; PAGE as usize], || {
        let at = bytes.iter().position(|byte| *byte != B).unwrap();
        format!("the other file's bytes have changed, at byte {at}")
    })
}

/// The thread's two columns, with a store to a page that has no entry:
///
/// ```text
/// store to A, page 0                        punch A, page 0
///   look up: block 5
///   point the address at it (parked)
///                                             zap, take block 5 away, free it
///                                             B takes block 5
///   look again: a hole. A new block
/// ```
fn store_against_punch_and_reuse(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    let parked = world.park.at_page(Point::Prepared, 0);
    let store = spawn_on(&map, |map| map.store(0, MARK));
    parked.wait();
    a.punch_hole(0, PAGE).unwrap();
    let b = give_block_to_b(world);
    parked.release();
    store.join("the store")?.map_err(|error| format!("the store failed: {error}"))?;
    b_is_whole(&b)?;
    let mut expected = vec![0; PAGE as usize];
    expected[..8].copy_from_slice(&MARK.to_ne_bytes());
    check(page_of(&a, 0) == expected, || "the store is not in the first file's new block, alone".to_owned())?;
    check(map.load(0) == Ok(MARK), || "the store is not in the mapping".to_owned())
}
rule_tests!(store_parked_while_its_block_goes_to_another_file, Rule::Revalidate, 2, store_against_punch_and_reuse);

/// The same for a load: where is a read fault validated? Under the same hold as its install.
fn load_against_punch_and_reuse(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    let parked = world.park.at_page(Point::Prepared, 0);
    let load = spawn_on(&map, |map| map.load(0));
    parked.wait();
    a.punch_hole(0, PAGE).unwrap();
    let _b = give_block_to_b(world);
    parked.release();
    let loaded = load.join("the load")?;
    check(loaded == Ok(0), || format!("a load that was served after the punch gave {loaded:x?}"))?;
    check(map.load(0) == Ok(0), || "the mapping shows another file's bytes".to_owned())
}
rule_tests!(load_parked_while_its_page_is_punched, Rule::Revalidate, 2, load_against_punch_and_reuse);

/// The same against truncate: the answer is SIGBUS then.
fn load_against_truncate_and_reuse(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    let parked = world.park.at_page(Point::Prepared, 0);
    let load = spawn_on(&map, |map| map.load(0));
    parked.wait();
    a.truncate(0).unwrap();
    let _b = give_block_to_b(world);
    parked.release();
    let loaded = load.join("the load")?;
    check(is_bus(&loaded), || format!("a load past the end gave {loaded:x?}"))?;
    check(is_bus(&map.load(0)), || "a load past the end gave bytes".to_owned())
}
rule_tests!(load_parked_while_its_file_is_truncated, Rule::Revalidate, 2, load_against_truncate_and_reuse);

/// A page whose address points at the right block already and has no entry: its fault is answered with
/// nothing to prepare. The page holds `A` up to byte 100, where the file ends.
fn pointed_and_zapped(world: &World) -> (daxpager::File, std::sync::Arc<daxpager::Mapping>) {
    let a = world.file("a", 1, A);
    a.truncate(100).unwrap();
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    // The same size again: the last page is zapped, and keeps its block.
    a.truncate(100).unwrap();
    (a, map)
}

/// Releases the parked fault when the punch is through, or, when the punch waits for the fault, at
/// once: both are right. B takes the block afterwards in either case.
fn punch_around(world: &World, a: &daxpager::File, parked: &Trap) -> Result<daxpager::File, String> {
    let punch = spawn_on(a, |a| a.punch_hole(0, PAGE));
    let waits = punch.within(watch()).is_none();
    if waits {
        parked.release();
        punch.join("the punch")?.unwrap();
    }
    let b = give_block_to_b(world);
    parked.release();
    Ok(b)
}

/// Checked under the lock, then the lock dropped, then installed: as good as not checked.
///
/// ```text
/// store to A, page 0                        punch A, page 0
///   L2 shared: block 5; parked
///                                             L2 exclusive: waits
///   install block 5, wake
///   unlock
///                                             zap, free block 5
/// ```
fn store_decided_against_punch(world: &mut World) -> Verdict {
    let (a, map) = pointed_and_zapped(world);
    let parked = world.park.at_page(Point::Decided, 0);
    let store = spawn_on(&map, |map| map.store(8, MARK));
    parked.wait();
    let b = punch_around(world, &a, &parked)?;
    store.join("the store")?.map_err(|error| format!("the store failed: {error}"))?;
    b_is_whole(&b)?;
    map.store(16, MARK).map_err(|error| error.to_string())?;
    b_is_whole(&b)?;
    check(page_of(&a, 0)[16..24] == MARK.to_ne_bytes(), || "a later store is lost".to_owned())
}
rule_tests!(store_parked_between_check_and_install, Rule::GuardThroughInstall, 2, store_decided_against_punch);

/// The thread's case itself: a write-protect fault. Its entry is gone when it is resolved, and
/// unprotecting nothing does nothing (the kernel's pte_same). But a load may have put zeros there since:
/// then unprotecting makes a page of zeros writable that belongs to nobody, and the store is lost.
fn mkwrite_against_punch_and_load(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    let parked = world.park.at_page(Point::Decided, 0);
    let store = spawn_on(&map, |map| map.store(0, MARK));
    parked.wait();
    let punch = spawn_on(&a, |a| a.punch_hole(0, PAGE));
    if punch.within(watch()).is_some() {
        // Nothing keeps the punch out. The zeros that this load gets wake the store, which is served anew;
        // the first service of it is still parked when the page is punched and read once more.
        check(map.load(8) == Ok(0), || "a punched page does not read as zeros".to_owned())?;
        store.join("the store")?.unwrap();
        a.punch_hole(0, PAGE).unwrap();
        check(map.load(8) == Ok(0), || "a punched page does not read as zeros".to_owned())?;
        let answered = world.park.at_page(Point::Answered, 0);
        parked.release();
        answered.wait();
        answered.release();
        map.store(16, MARK).unwrap();
        return check(page_of(&a, 0)[16..24] == MARK.to_ne_bytes(), || {
            "a store went into a page of zeros that is nobody's, and is lost".to_owned()
        });
    }
    parked.release();
    punch.join("the punch")?.unwrap();
    store.join("the store")?.unwrap();
    map.store(8, MARK).unwrap();
    check(page_of(&a, 0)[8..16] == MARK.to_ne_bytes(), || "a later store is lost".to_owned())
}
rule_tests!(
    mkwrite_parked_while_its_page_is_punched_and_read,
    Rule::GuardThroughInstall,
    2,
    mkwrite_against_punch_and_load
);

/// A write-protect fault that is taken up after its block has gone to another file. It must
/// not allocate: the store was aimed at a block that is gone, and fault and block no longer belong together.
///
/// ```text
/// store to A, page 0 (entry: block 5)       punch A, page 0
///   write-protect fault (parked)
///                                             zap, free block 5; B takes it
///   a hole: allocate? block 6 goes into the
///   file, and the entry is made writable:
///   block 5's
/// ```
fn mkwrite_after_reuse(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    let parked = world.park.at_page(Point::FaultTaken, 0);
    let store = spawn_on(&map, |map| map.store(0, MARK));
    parked.wait();
    a.punch_hole(0, PAGE).unwrap();
    let b = give_block_to_b(world);
    parked.release();
    store.join("the store")?.map_err(|error| format!("the store failed: {error}"))?;
    b_is_whole(&b)?;
    check(page_of(&a, 0)[..8] == MARK.to_ne_bytes(), || "the store is not in the file".to_owned())
}
rule_tests!(mkwrite_taken_up_after_its_block_is_gone, Rule::MkwriteNeverAllocates, 3, mkwrite_after_reuse);

// A retry that wakes nobody: the same, and the thread sleeps for ever on a fault that is answered.
rule_test!(mkwrite_is_woken_to_fault_again, Rule::WakeOnRetry, 3, mkwrite_after_reuse);

/// The patch of the thread: i_size is read, then compared, with no lock that truncate holds.
fn size_read_too_early(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    a.truncate(2 * PAGE).unwrap();
    let map = world.map(&a, 2);
    let parked = world.park.at_page(Point::SizeSeen, 1);
    let load = spawn_on(&map, |map| map.load(PAGE));
    // With the rule intact nobody looks at the size before the lock, and nobody comes here.
    if parked.caught_within(watch()).is_some() {
        a.truncate(PAGE).unwrap();
        parked.release();
    } else {
        parked.release();
        a.truncate(PAGE).unwrap();
    }
    let _ = load.join("the load")?;
    let after = map.load(PAGE);
    check(is_bus(&after), || format!("after the truncate, a load past the end gave {after:x?}"))
}
rule_tests!(an_isize_check_outside_the_lock_is_not_enough, Rule::SizeUnderLock, 2, size_read_too_early);

/// A write-protect fault past the end. The page table would save us there (nothing is mapped, so nothing
/// is made writable); what is wrong is that the page counts as written.
fn mkwrite_past_the_end(world: &mut World) -> Verdict {
    let a = world.file("a", 2, A);
    let map = world.map(&a, 2);
    map.load(PAGE).unwrap();
    let parked = world.park.at_page(Point::FaultTaken, 1);
    let store = spawn_on(&map, |map| map.store(PAGE, MARK));
    parked.wait();
    a.truncate(PAGE).unwrap();
    parked.release();
    let stored = store.join("the store")?;
    check(matches!(stored, Err(Error::Bus(_))), || format!("a store past the end: {stored:?}"))?;
    let dirty = map.take_dirty().unwrap();
    check(dirty.is_empty(), || format!("pages past the end count as written: {dirty:?}"))
}
rule_tests!(a_mkwrite_looks_at_the_size, Rule::SizeOnMkwrite, 3, mkwrite_past_the_end);

/// Zapped first and published afterwards: a fault in between installs the old block again.
fn fault_between_zap_and_publish(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    let parked = world.park.at_page(Point::BeforeInvalidate, 0);
    let punch = spawn_on(&a, |a| a.punch_hole(0, PAGE));
    parked.wait();
    map.load(0).unwrap();
    parked.release();
    punch.join("the punch")?.unwrap();
    let _b = give_block_to_b(world);
    let loaded = map.load(0);
    check(loaded == Ok(0), || format!("a punched page shows {loaded:x?}"))
}
rule_tests!(published_before_zapped, Rule::PublishBeforeZap, 2, fault_between_zap_and_publish);

/// Freed before it is zapped, a block has two owners.
fn store_between_free_and_zap(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.store(0, 1).unwrap();
    let parked = world.park.at_page(Point::Freed, 0);
    let punch = spawn_on(&a, |a| a.punch_hole(0, PAGE));
    parked.wait();
    let b = give_block_to_b(world);
    let store = spawn_on(&map, |map| map.store(0, MARK));
    let stored = store.within(watch());
    parked.release();
    punch.join("the punch")?.unwrap();
    if stored.is_none() {
        store.join("the store")?.unwrap();
    }
    b_is_whole(&b)
}
rule_tests!(zapped_before_freed, Rule::ZapBeforeFree, 3, store_between_free_and_zap);

/// Publish and zap under two holds instead of one: in between, one mapping shows the new
/// file and another the old.
fn two_mappings_between_publish_and_zap(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let (old, new) = (world.map(&a, 1), world.map(&a, 1));
    old.load(0).unwrap();
    // The second time, if there is one: then the lock has been dropped.
    let times = std::sync::atomic::AtomicU64::new(0);
    let in_between =
        world.park.at(Point::Published, move |_| times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1);
    let punch = spawn_on(&a, |a| a.punch_hole(0, PAGE));
    let was_in_between = in_between.caught_within(watch()).is_some();
    let first = new.load(0).unwrap();
    let second = old.load(0).unwrap();
    in_between.release();
    punch.join("the punch")?.unwrap();
    check(!(first == 0 && second != 0), || {
        format!("a mapping shows {second:x} after another has shown the hole (parked: {was_in_between})")
    })
}
rule_tests!(published_and_zapped_under_one_hold, Rule::InvalidateUnderLock, 2, two_mappings_between_publish_and_zap);

/// A block with another file's old bytes goes under a hole.
fn secrets_in_a_new_block(world: &mut World) -> Verdict {
    let b = world.file("b", 2, B);
    b.truncate(0).unwrap();
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let map = world.map(&a, 1);
    map.store(8, MARK).unwrap();
    let loaded = map.load(0);
    check(loaded == Ok(0), || format!("beside the store, a new block shows {loaded:x?}"))
}
rule_tests!(a_new_block_is_zeroed, Rule::ZeroNewBlock, 2, secrets_in_a_new_block);

/// The same for blocks that were allocated before they are written.
fn secrets_in_an_unwritten_block(world: &mut World) -> Verdict {
    let b = world.file("b", 2, B);
    b.truncate(0).unwrap();
    let a = world.volume.create("a").unwrap();
    a.allocate(0, PAGE, false).unwrap();
    let map = world.map(&a, 1);
    check(map.load(0) == Ok(0), || "an unwritten page does not read as zeros".to_owned())?;
    check(a.extents()[0].kind == ExtentKind::Unwritten, || "a load has written to it".to_owned())?;
    map.store(8, MARK).unwrap();
    let loaded = map.load(0);
    check(loaded == Ok(0), || format!("beside the store, an unwritten block shows {loaded:x?}"))
}
rule_tests!(an_unwritten_block_is_zeroed, Rule::ZeroUnwritten, 2, secrets_in_an_unwritten_block);

/// Two faults on one hole: one block. The loser must not zero what the winner has stored.
fn two_stores_into_one_hole(world: &mut World) -> Verdict {
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGE).unwrap();
    let (one, two) = (world.map(&a, 1), world.map(&a, 1));
    let winner = world.park.at_page(Point::Allocated, 0);
    let first = spawn(move || one.store(0, MARK));
    winner.wait();
    let loser = world.park.at_page(Point::Allocated, 0);
    let second = spawn(move || two.store(8, MARK));
    loser.wait();
    winner.release();
    first.join("the first store")?.unwrap();
    loser.release();
    second.join("the second store")?.unwrap();
    let mut expected = vec![0; PAGE as usize];
    expected[..8].copy_from_slice(&MARK.to_ne_bytes());
    expected[8..16].copy_from_slice(&MARK.to_ne_bytes());
    check(page_of(&a, 0) == expected, || "one of two stores into a hole is gone".to_owned())?;
    check(world.volume.used_blocks() == 1, || format!("{} blocks for one page", world.volume.used_blocks()))
}
rule_tests!(the_loser_of_two_faults_leaves_the_block_alone, Rule::LoserLeavesBlock, 4, two_stores_into_one_hole);

/// A write to a part of a hole is held before it takes the lock. A store to another part fills the hole. The write
/// goes on: the page is no hole any more, and the store stays.
fn write_beside_a_store(world: &mut World) -> Verdict {
    let a = world.file("a", 0, 0);
    a.truncate(PAGE).unwrap();
    let map = world.map(&a, 1);
    let trap = world.park.at_page(Point::BeforeInvalidate, 0);
    let write = {
        let a = a.clone();
        spawn(move || a.write_at(&[7; 8], 64))
    };
    trap.wait();
    map.store(0, 9).map_err(|error| error.to_string())?;
    trap.release();
    write.join("the write")?.unwrap();
    let words = (map.load(0), map.load(64));
    check(words == (Ok(9), Ok(u64::from_ne_bytes([7; 8]))), || format!("a store and a write to one page: {words:?}"))
}

rule_tests!(a_write_zeroes_no_store, Rule::ZeroWhatIsAHole, 4, write_beside_a_store);

/// A block goes under a hole: zeros that other mappings show must go.
fn zeros_in_another_mapping(world: &mut World) -> Verdict {
    let a = world.volume.create("a").unwrap();
    a.truncate(2 * PAGE).unwrap();
    let (reader, writer) = (world.map(&a, 2), world.map(&a, 2));
    check(reader.load(0) == Ok(0) && reader.load(PAGE) == Ok(0), || "a hole is not zero".to_owned())?;
    writer.store(0, MARK).unwrap();
    let loaded = reader.load(0);
    check(loaded == Ok(MARK), || format!("after a store through another mapping: {loaded:x?}"))?;
    a.write_at(&MARK.to_ne_bytes(), PAGE).unwrap();
    let loaded = reader.load(PAGE);
    check(loaded == Ok(MARK), || format!("after a write over a hole: {loaded:x?}"))
}
rule_tests!(a_block_under_a_hole_replaces_zeros_everywhere, Rule::ZapZerosOnAllocate, 3, zeros_in_another_mapping);

/// What was behind the new end must be gone when the file grows again.
fn down_and_up(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.load(0).unwrap();
    a.truncate(96).unwrap();
    let past = map.load(96);
    check(past == Ok(0), || format!("behind the new end, in its page: {past:x?}"))?;
    a.truncate(PAGE).unwrap();
    let tail = map.load(96);
    check(tail == Ok(0), || format!("truncated down and up: {tail:x?}"))
}
rule_tests!(the_tail_is_zeroed_on_truncate, Rule::ZeroTailOnTruncate, 2, down_and_up);

/// A store past the end, in the last page, succeeds and is gone on any later growth.
fn stores_past_the_end(world: &mut World) -> Verdict {
    type Growth = (&'static str, fn(&daxpager::File));
    let growths: [Growth; 4] = [
        ("truncate", |a| a.truncate(PAGE).unwrap()),
        ("write_at", |a| assert_eq!(a.write_at(&[7], PAGE - 1), Ok(1))),
        ("allocate", |a| a.allocate(PAGE, PAGE, false).unwrap()),
        ("zero_range", |a| a.zero_range(PAGE, PAGE, false).unwrap()),
    ];
    for (name, grow) in growths {
        let a = world.file(name, 1, A);
        a.truncate(96).unwrap();
        let map = world.map(&a, 2);
        map.store(104, MARK).unwrap();
        check(a.len() == 96, || "a store has changed the size".to_owned())?;
        grow(&a);
        let (kept, tail) = (map.load(88), map.load(104));
        check(kept == Ok(u64::from_ne_bytes([A; 8])), || format!("{name}: what the file held became {kept:x?}"))?;
        check(tail == Ok(0), || format!("{name}: what was stored past the end has come into the file: {tail:x?}"))?;
    }
    Ok(())
}
rule_tests!(the_tail_is_zeroed_on_growth, Rule::ZeroTailOnGrowth, 16, stores_past_the_end);
rule_tests!(only_the_tail_is_zeroed_on_growth, Rule::ZeroOnlyTheTail, 16, stores_past_the_end);

/// Collected dirty pages are forgotten before they are protected: a store in between is kept. With the
/// rule intact nobody comes to the point in between, and the store comes after: noticed again.
fn store_while_collecting(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    let map = world.map(&a, 1);
    map.store(0, 1).unwrap();
    let parked = world.park.at_page(Point::Collecting, 0);
    let collect = spawn_on(&map, |map| map.take_dirty().unwrap());
    let _ = parked.caught_within(watch());
    map.store(8, MARK).unwrap();
    parked.release();
    let first = collect.join("take_dirty")?;
    let second = map.take_dirty().unwrap();
    check(!first.is_empty(), || "a store before take_dirty is not in it".to_owned())?;
    // The store came after the protection: it belongs to the second collection.
    check(second == vec![0..PAGE], || format!("a store during take_dirty is in neither: {second:?}"))
}

rule_tests!(dirty_pages_are_forgotten_before_they_are_protected, Rule::ForgetBeforeProtect, 2, store_while_collecting);

/// Every way in which an entry becomes writable marks the page.
fn every_store_is_dirty(world: &mut World) -> Verdict {
    let a = world.file("a", 1, A);
    a.truncate(4 * PAGE).unwrap();
    a.allocate(2 * PAGE, PAGE, false).unwrap();
    let map = world.map(&a, 4);
    map.load(0).unwrap();
    for page in 0..4 {
        // after a load, into a hole, into an unwritten page, into a hole again
        map.store(page * PAGE, MARK).unwrap();
        let dirty = map.take_dirty().unwrap();
        check(dirty == vec![page * PAGE..(page + 1) * PAGE], || format!("after a store to page {page}: {dirty:?}"))?;
        check(map.take_dirty().unwrap().is_empty(), || "taken twice".to_owned())?;
    }
    Ok(())
}
rule_tests!(every_store_marks_its_page, Rule::MarkDirty, 8, every_store_is_dirty);

/// The races again where files have windows: no block goes to another file there, so these are the ones about what a mapping shows.
mod in_windows {
    use super::*;

    windows_tests!(installed_under_the_guard, Rule::GuardThroughInstall, 2, late_install_of_a_punched_page);
    windows_tests!(the_size_is_read_under_the_lock, Rule::SizeUnderLock, 2, size_read_too_early);
    windows_tests!(a_mkwrite_looks_at_the_size, Rule::SizeOnMkwrite, 3, mkwrite_past_the_end);
    windows_tests!(published_before_punched, Rule::PublishBeforeZap, 2, fault_between_zap_and_publish);
    windows_tests!(published_and_punched_under_one_hold, Rule::InvalidateUnderLock, 2, store_between_publish_and_punch);
    windows_tests!(a_write_zeroes_no_store, Rule::ZeroWhatIsAHole, 4, write_beside_a_store);
    windows_tests!(the_tail_is_zeroed_on_truncate, Rule::ZeroTailOnTruncate, 2, down_and_up);
    windows_tests!(the_tail_is_zeroed_on_growth, Rule::ZeroTailOnGrowth, 16, stores_past_the_end);
    windows_tests!(only_the_tail_is_zeroed_on_growth, Rule::ZeroOnlyTheTail, 16, stores_past_the_end);
    windows_tests!(dirty_pages_are_forgotten_first, Rule::ForgetBeforeProtect, 2, store_while_collecting);
    windows_tests!(every_store_marks_its_page, Rule::MarkDirty, 8, every_store_is_dirty);
    windows_tests!(zeros_are_looked_at_again, Rule::LookAgainAtZeros, 4, store_to_zeros_that_are_taken_back);

    windows_tests!(what_is_punched_is_armed_again, Rule::ArmWhatIsPunched, 64, store_to_what_is_there_again);

    /// The kernel installs what is present: writable, if it finds no marker where there has been a writable entry.
    fn store_to_what_is_there_again(world: &mut World) -> Verdict {
        let a = world.file("a", 64, A);
        let map = world.map(&a, 64);
        (1..40).rev().for_each(|page| _ = map.load(page * PAGE).unwrap());
        let backing = map.backing_at(50 * PAGE);
        check(matches!(backing, Some(daxpager::Backing::Armed(_))), || format!("not armed: {backing:?}"))?;
        map.store(50 * PAGE, MARK).unwrap();
        a.punch_hole(50 * PAGE, PAGE).unwrap();
        a.write_at(&[A; 8], 50 * PAGE).unwrap();
        map.store(50 * PAGE + 8, MARK).unwrap();
        let dirty = map.take_dirty().unwrap();
        check(dirty == vec![50 * PAGE..51 * PAGE], || format!("a store is in no collection: {dirty:?}"))
    }

    /// Installed late, the page is there and the file knows nothing of it: no punch takes it away again.
    fn late_install_of_a_punched_page(world: &mut World) -> Verdict {
        let (a, map) = pointed_and_zapped(world);
        let parked = world.park.at_page(Point::Decided, 0);
        let store = spawn_on(&map, |map| map.store(8, MARK));
        parked.wait();
        let _b = punch_around(world, &a, &parked)?;
        store.join("the store")?.map_err(|error| format!("the store failed: {error}"))?;
        let (shown, blocks) = (map.load(8).unwrap(), a.blocks());
        check(shown == 0 || blocks == 1, || format!("{blocks} blocks, and a load gives {shown:x}"))?;
        a.punch_hole(0, PAGE).unwrap();
        let shown = map.load(8).unwrap();
        check(shown == 0, || format!("a punched page shows {shown:x}"))
    }

    /// Under two holds a store in between takes the hole, and the punch takes its page: it is written then, and shows zeros.
    fn store_between_publish_and_punch(world: &mut World) -> Verdict {
        let a = world.file("a", 1, A);
        let map = world.map(&a, 1);
        map.load(0).unwrap();
        // The second time, if there is one: then the lock has been dropped.
        let times = std::sync::atomic::AtomicU64::new(0);
        let in_between =
            world.park.at(Point::Published, move |_| times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1);
        let punch = spawn_on(&a, |a| a.punch_hole(0, PAGE));
        in_between.caught_within(watch());
        let store = spawn_on(&map, |map| map.store(0, MARK));
        let stored = store.within(watch());
        in_between.release();
        punch.join("the punch")?.unwrap();
        if stored.is_none() {
            store.join("the store")?.unwrap();
        }
        let (loaded, blocks) = (map.load(0).unwrap(), a.blocks());
        check(loaded == MARK || blocks == 0, || format!("{blocks} block, and a load gives {loaded:x}"))
    }

    /// A load takes back the zeros of another page, which is stored to at that moment.
    fn store_to_zeros_that_are_taken_back(world: &mut World) -> Verdict {
        world.volume.set_zeros_max_even_one(PAGE);
        let a = world.volume.create("a").unwrap();
        a.truncate(2 * PAGE).unwrap();
        let map = world.map(&a, 2);
        map.load(0).unwrap();
        let parked = world.park.at_page(Point::BeforeZerosGo, 0);
        let load = spawn_on(&map, |map| map.load(PAGE));
        parked.wait();
        map.store(0, MARK).unwrap();
        parked.release();
        let loaded = load.join("the load")?;
        check(loaded == Ok(0), || format!("a hole shows {loaded:x?}"))?;
        let now = map.load(0);
        check(now == Ok(MARK), || format!("the store is lost: {now:x?}"))
    }
}
