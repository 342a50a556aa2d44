//! What becomes of a process with a pager in a control group that is frozen, or that has no memory left.
#![allow(unsafe_code, reason = "system calls into a mapping")]

mod blackbox;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blackbox::child::assert_is_child;
use blackbox::*;
use daxpager::{Device, MapOptions, Mapping, Pager, Volume};

/// A control group that is gone when the test is over, with whatever is left in it.
struct Group(PathBuf);

impl Group {
    /// One of the hierarchy that has `file` in its groups.
    fn with(file: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (folder, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then_some(folder)
        });
        let mut refused = format!("no control group has {file}");
        for hierarchy in hierarchies {
            let name = format!("daxpager-test-{}-{file}", std::process::id());
            let folder = Path::new(hierarchy).join(name);
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let group = Self(folder);
                    if group.0.join(file).exists() {
                        return Ok(group);
                    }
                }
                Err(error) => refused = format!("{}: {error}", folder.display()),
            }
        }
        Err(refused)
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap_or_else(|error| panic!("{value:?} to {file}: {error}"));
    }

    /// The command, with the name of the group that it is to join.
    fn command(&self, name: &str) -> Command {
        let mut command = child::command(name);
        command.env("GROUP", &self.0);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has been killed is in it until it has been waited for.
        for _ in 0..1000 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

/// The whole process stops for a second, in whatever it is at, and goes on.
///
/// The kernel calls a group frozen when each thread is. One that is in a fault of a system call is not: with the freezer's signal up
/// the kernel neither lets it sleep nor ends the call, and who would answer is frozen. It spins until the group is thawed. So the group
/// is looked at by what another thread of it does.
fn frozen(file: &str, freeze: &str, thaw: &str) {
    let group = match Group::with(file) {
        Ok(group) => group,
        Err(why) => return guard::not_run(&why),
    };
    let progress = std::env::temp_dir().join(format!("daxpager-test-{}-{file}", std::process::id()));
    fs::write(&progress, "").unwrap();
    let _gone = at_end(|| drop(fs::remove_file(&progress)));
    let done = || fs::read_to_string(&progress).unwrap();
    let mut command = group.command("inside::system_calls_into_holes_go_on_after_a_freeze");
    command.env("PROGRESS", &progress);
    let child = std::thread::spawn(|| child::finish(command));
    let _thawed = at_end(|| group.set(file, thaw));
    until("the child is at work", || {
        assert!(!child.is_finished(), "the child has ended too early");
        (!done().is_empty()).then_some(())
    });
    for _ in 0..3 {
        // In the midst of it.
        std::thread::sleep(Duration::from_millis(100));
        group.set(file, freeze);
        until("the child does nothing", || {
            let before = done();
            std::thread::sleep(Duration::from_millis(200));
            (done() == before).then_some(())
        });
        let before = done();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(done(), before, "the child is not frozen");
        group.set(file, thaw);
        until("the child does something", || (done() != before).then_some(()));
    }
    join_thread(child).assert_success();
}

#[test]
fn a_frozen_group_goes_on() {
    frozen("cgroup.freeze", "1", "0");
}

/// The same by the freezer of the first version.
#[test]
fn a_group_of_the_old_freezer_goes_on() {
    frozen("freezer.state", "FROZEN", "THAWED");
}

/// A block that the group has no room for: the kernel ends the process, and nothing hangs.
#[test]
fn a_group_without_memory_ends_with_sigkill() {
    let limits = ["memory.max", "memory.limit_in_bytes"];
    let found = limits.iter().find_map(|file| Some((file, Group::with(file).ok()?)));
    let Some((file, group)) = found else {
        return guard::not_run("no control group with a limit on memory can be made");
    };
    group.set(file, "50331648");
    // Swap would be room. Where there is none there may be no such file.
    for swap in ["memory.swap.max", "memory.memsw.limit_in_bytes"] {
        let limit = if swap.ends_with("max") { "0" } else { "50331648" };
        let _ = fs::write(group.0.join(swap), limit);
    }
    let outcome = child::finish(group.command("inside::a_group_without_memory_ends_with_sigkill"));
    outcome.assert_killed_after("at 4 MiB", libc::SIGKILL);
    assert!(!outcome.output.contains("at 96 MiB"), "{}", outcome.output);
}

/// What the children do.
mod inside {
    use std::os::fd::AsFd;
    use std::time::Instant;

    use super::*;

    fn join_group() {
        let group = PathBuf::from(std::env::var_os("GROUP").unwrap());
        fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }

    fn zeros_into(map: &Mapping, offset: u64, len: u64) -> usize {
        map.read_from(fs::File::open("/dev/zero").unwrap().as_fd(), offset, len).unwrap()
    }

    #[test]
    #[ignore = "run in a child"]
    fn system_calls_into_holes_go_on_after_a_freeze() {
        assert_is_child();
        let rig = Rig::new(64);
        let p = rig.page;
        let maps: Vec<_> = (0..3)
            .map(|index| {
                let file = rig.file(&format!("{index}"));
                file.truncate(8 * p).unwrap();
                (rig.pager.map(&file, 0..8 * p).unwrap(), file)
            })
            .collect();
        let (stop, done) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
        std::thread::scope(|scope| {
            let _stop = at_end(|| stop.store(true, Ordering::Relaxed));
            for ((map, file), done) in maps.iter().zip(&done) {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        (0..8).for_each(|page| assert_eq!(zeros_into(map, page * p, 8), 8));
                        file.punch_hole(0, 8 * p).unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let progress = std::env::var_os("PROGRESS").unwrap();
            let begun = Instant::now();
            join_group();
            // By a clock that goes on while the process is frozen, which it is for some four seconds.
            while begun.elapsed() < Duration::from_secs(6) {
                fs::write(&progress, format!("{:?}", begun.elapsed())).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
            let before = done.each_ref().map(|done| done.load(Ordering::Relaxed));
            for (done, before) in done.iter().zip(before) {
                until("each thread goes on", || (done.load(Ordering::Relaxed) > before + 10).then_some(()));
            }
        });
        rig.assert_blocks_add_up();
    }

    #[test]
    #[ignore = "run in a child"]
    fn a_group_without_memory_ends_with_sigkill() {
        assert_is_child();
        join_group();
        let volume = Volume::format(Device::memfd("group", 128 << 20).unwrap());
        let pager = Pager::builder().start().unwrap();
        let file = volume.create("file").unwrap();
        file.truncate(128 << 20).unwrap();
        let map = pager.map_with(&file, 0..128 << 20, &MapOptions::new()).unwrap();
        for at in (0..128 << 20).step_by(host_page() as usize) {
            map.store(at, 1).unwrap();
            if at % (4 << 20) == 0 {
                println!("at {} MiB", at >> 20);
            }
        }
    }
}
