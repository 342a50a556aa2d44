//! Which files of the library choose their locks and atomics themselves, and not through `src/sync.rs`: those that are listed here, with
//! the reason in `sync.rs`.

use std::fs;
use std::path::Path;

/// What runs in a signal handler or for a kernel that the schedule checker has not got; files, and folders with all that is in them.
const THEIR_OWN: [&str; 9] = [
    "sync.rs",
    "sync/",
    "sys/access/",
    "sys/conformance.rs",
    "sys/fork.rs",
    "sys/memory/",
    "sys/passing.rs",
    "sys/sent.rs",
    "sys/trap/",
];
const ALSO: [&str; 1] = ["sys/userfault/"];

/// The lines that name primitives of somebody else's: of the standard library, `parking_lot` or `crossbeam`. Comments may.
fn named(text: &str) -> Vec<String> {
    // Tests of a module run under no checker.
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap().split("\n#[cfg(all(test").next().unwrap();
    let code = text.lines().map(|line| line.split("//").next().unwrap().trim());
    let foreign = |line: &&str| {
        ["std::sync", "core::sync", "std::thread", "parking_lot", "crossbeam", "loom::", "shuttle::"]
            .iter()
            .any(|name| line.contains(name))
            || (line.starts_with("use std::{") && (line.contains("sync") || line.contains("thread")))
    };
    code.filter(foreign).map(str::to_owned).collect()
}

fn sources(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => sources(&path, each),
            path => each(&path),
        }
    }
}

#[test]
fn nobody_else_has_primitives_of_his_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut used) = (0, Vec::new());
    let allowed: Vec<&str> = THEIR_OWN.into_iter().chain(ALSO).collect();
    sources(&src, &mut |path| {
        files += 1;
        let named = named(&fs::read_to_string(path).unwrap());
        let path = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let by = allowed.iter().find(|name| path == **name || (name.ends_with('/') && path.starts_with(**name)));
        match by {
            Some(name) if !named.is_empty() => used.push(*name),
            Some(_) => {}
            None => assert_eq!(named, [""; 0], "src/{path} is not listed: by crate::sync, or say in sync.rs why not"),
        }
    });
    assert!(files > 50, "only {files} files were found");
    let idle: Vec<_> = allowed.iter().filter(|name| !used.contains(name)).collect();
    assert!(idle.is_empty(), "listed, and need not be: {idle:?}");
    let reasons = fs::read_to_string(src.join("sync.rs")).unwrap();
    let without: Vec<_> = allowed.iter().filter(|name| name.starts_with("sys/")).filter(|name| !reasons.contains(**name)).collect();
    assert!(without.is_empty(), "no reason in sync.rs: {without:?}");
}

#[test]
fn an_import_is_found_however_it_is_written() {
    let found = [
        "use std::sync::Mutex;",
        "    use parking_lot::RwLock;",
        "static A: std::sync::atomic::AtomicU8 = x;",
        "use std::{fmt, sync::Arc};",
        "std::thread::yield_now();",
        "use crossbeam::channel; // as before",
    ];
    for line in found {
        assert_eq!(named(&format!("//! Doc.\n\n{line}\n")).len(), 1, "{line}");
    }
    let not_found = ["// std::sync::Mutex", "use crate::sync::Mutex;", "/// As `parking_lot`.", "use std::fmt;"];
    for line in not_found {
        assert_eq!(named(line), [""; 0], "{line}");
    }
    assert_eq!(named("fn a() {}\n#[cfg(test)]\nmod tests {\n    use std::sync::Mutex;\n}\n"), [""; 0]);
}
