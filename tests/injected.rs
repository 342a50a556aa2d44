//! What the kernel may do, and does too rarely to be met by chance: refusals, entries that another thread has put
//! there first, shortages, messages late or twice. Nothing of it may be noticed; and with the wake after EEXIST left out, one
//! entry put in is enough.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use daxpager::fake::FakePageTable;
use daxpager::sabotage::Rule;
use daxpager::{Device, Error, File, Injection, Mapping, Pager, Volume};

/// Pages that nobody takes away, then pages that are punched, then pages that are truncated too.
const KEPT: u64 = 3;
const PUNCHED: u64 = 3;
const PAGES: u64 = 8;
const THREADS: u64 = 3;

/// Stores and loads words of its own all over the file until it is told to stop.
fn user(map: &Mapping, thread: u64, stop: &AtomicBool) -> Verdict {
    let mut kept = [0; KEPT as usize];
    for round in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let page = (round * 5 + thread) % PAGES;
        let at = page * PAGE + 8 * thread;
        let value = thread << 32 | round;
        if page < KEPT {
            let seen = map.load(at);
            check(seen == Ok(kept[page as usize]), || format!("page {page}: {seen:x?}, not what was stored"))?;
        }
        let stored = map.store(at, value);
        let seen = map.load(at);
        let fine = match (page, stored, &seen) {
            (_, Ok(()), Ok(word)) if *word == value => true,
            (KEPT.., Ok(()), Ok(0)) => true,
            // Truncated in between.
            (6.., Ok(()) | Err(Error::Bus(_)), Err(Error::Bus(_)) | Ok(0)) => true,
            _ => false,
        };
        check(fine, || format!("page {page}: stored {value:#x}, loaded {seen:x?}"))?;
        if page < KEPT {
            kept[page as usize] = value;
        }
    }
    Ok(())
}

/// Takes pages away, and has stores noticed anew.
fn disturb(file: &File, map: &Mapping, rounds: u64) -> Verdict {
    for _ in 0..rounds {
        for page in KEPT..PAGES {
            file.punch_hole(page * PAGE, PAGE).map_err(|error| error.to_string())?;
        }
        for page in 0..KEPT {
            map.store(page * PAGE + 8 * THREADS, 1).map_err(|error| error.to_string())?;
        }
        file.truncate((KEPT + PUNCHED) * PAGE).map_err(|error| error.to_string())?;
        file.truncate(PAGES * PAGE).map_err(|error| error.to_string())?;
        match map.take_dirty() {
            // The kernel, as far as it can tell, has refused for a long time.
            Ok(_) | Err(Error::System { errno: libc::EAGAIN, .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn storm(world: &World, rounds: u64, hang: Duration) -> Verdict {
    let a = world.volume.create("a").unwrap();
    a.truncate(PAGES * PAGE).unwrap();
    let maps = [world.map(&a, PAGES), world.map(&a, PAGES)];
    let stop = Arc::new(AtomicBool::new(false));
    let users: Vec<_> = (0..THREADS)
        .map(|thread| {
            let map = maps[thread as usize % 2].clone();
            let stop = stop.clone();
            spawn(move || user(&map, thread, &stop))
        })
        .collect();
    let disturbed = spawn({
        let (a, map) = (a.clone(), maps[0].clone());
        move || disturb(&a, &map, rounds)
    });
    let hangs = |who| format!("hang: {who} sleeps\n{}", world.pager().describe());
    let disturbed = disturbed.within(hang).ok_or_else(|| hangs("who punches and truncates"));
    stop.store(true, Ordering::Relaxed);
    for user in users {
        user.within(hang).ok_or_else(|| hangs("a thread"))??;
    }
    disturbed??;
    a.truncate(0).unwrap();
    until("the blocks", || (world.volume.used_blocks() == 0).then_some(()));
    Ok(())
}

/// Everybody goes on and sees what is right; and what was to be put in has been.
fn survives(name: &str, injection: Injection) {
    for reader_answers in [true, false] {
        let world = World::injected(4 * PAGES, None, reader_answers, Injection { seed: 1, ..injection });
        let verdict = storm(&world, 400, HANG);
        let injected = world.pager().injected();
        println!("{injected:?}\n{}", world.pager().describe());
        if let Err(violation) = verdict {
            std::mem::forget(world);
            panic!("{violation}");
        }
        let put_in = injected.iter().filter(|(what, _)| name == "all" || *what == name);
        put_in.for_each(|(what, count)| assert!(*count > 0, "no {what} was put in"));
    }
}

#[test]
fn refusals_are_survived() {
    survives("again", Injection { again_ppm: 200_000, ..Injection::default() });
}

#[test]
fn entries_that_were_there_first_are_survived() {
    survives("exist", Injection { exist_ppm: 200_000, ..Injection::default() });
}

#[test]
fn shortages_of_memory_are_survived() {
    survives("nomem", Injection { nomem_ppm: 50_000, ..Injection::default() });
}

#[test]
fn ranges_that_are_half_done_are_survived() {
    survives("partial", Injection { partial_ppm: 200_000, ..Injection::default() });
}

#[test]
fn late_messages_are_survived() {
    survives("delay", Injection { delay_ppm: 200_000, ..Injection::default() });
}

#[test]
fn messages_delivered_twice_are_survived() {
    survives("duplicate", Injection { duplicate_ppm: 200_000, ..Injection::default() });
}

#[test]
fn all_of_it_at_once_is_survived() {
    let injection = Injection {
        again_ppm: 100_000,
        exist_ppm: 100_000,
        nomem_ppm: 20_000,
        partial_ppm: 100_000,
        delay_ppm: 100_000,
        duplicate_ppm: 100_000,
        ..Injection::default()
    };
    survives("all", injection);
}

/// On a full volume every store ends in one SIGBUS and every load in zeros, whatever becomes of the messages. A signal too
/// many would meet a thread outside of its access, and end the process.
#[test]
fn a_full_volume_with_messages_late_and_twice() {
    let injection = Injection { delay_ppm: 200_000, duplicate_ppm: 200_000, ..Injection::default() };
    let world = World::injected(1, None, true, injection);
    world.file("hog", 1, 1);
    let a = world.volume.create("a").unwrap();
    a.truncate(2 * PAGE).unwrap();
    let map = world.map(&a, 2);
    let users: Vec<_> = (0..3)
        .map(|thread| {
            let (a, map) = (a.clone(), map.clone());
            spawn(move || {
                for round in 0..300 {
                    assert_eq!(map.load(round % 2 * PAGE + 8 * thread), Ok(0));
                    let stored = map.store(round / 2 % 2 * PAGE + 8 * thread, 1);
                    assert!(matches!(stored, Err(Error::Bus(_))), "{stored:?}");
                    a.punch_hole(0, PAGE).unwrap();
                }
            })
        })
        .collect();
    users.iter().for_each(|user| user.join("a store on a full volume").unwrap());
    assert_eq!(a.blocks(), 0);
}

/// Rule 6 on the kernel's page table, at once: an entry is there, nobody is woken, and the library does not either.
#[test]
fn a_wake_left_out_after_eexist_is_noticed() {
    let injection = Injection { exist_ppm: 200_000, ..Injection::default() };
    let world = World::injected(4 * PAGES, Some(Rule::WakeAfterEexist), true, injection);
    let verdict = storm(&world, 100, Duration::from_secs(2));
    // Threads hang in it.
    std::mem::forget(world);
    assert!(verdict.as_ref().is_err_and(|violation| violation.contains("hang")), "{verdict:?}");
}

/// The same with one load, on the fake page table: it ends if, and only if, the library wakes it.
#[test]
fn the_first_entry_put_in_is_enough() {
    for broken in [false, true] {
        let fake = FakePageTable::new();
        let volume = Volume::format(Device::heap(PAGE, PAGE).unwrap());
        volume.sabotage(Rule::WakeAfterEexist, broken);
        let injection = Injection { exist_ppm: 1_000_000, ..Injection::default() };
        // Not dropped where a thread hangs in it.
        let pager = std::mem::ManuallyDrop::new(Pager::builder().inject(injection).start_on_fake(&fake).unwrap());
        let a = volume.create("a").unwrap();
        a.truncate(PAGE).unwrap();
        let map = std::mem::ManuallyDrop::new(pager.map(&a, 0..PAGE).unwrap());
        let (at, waiting) = (map.as_ptr() as usize, fake.clone());
        let load = spawn(move || fake.load(at));
        until("the entry", || waiting.is_mapped(at).then_some(()));
        let ended = load.within(if broken { WATCH } else { HANG });
        assert_eq!((ended, pager.injected()[1]), ((!broken).then_some(Ok(0)), ("exist", 1)));
    }
}
