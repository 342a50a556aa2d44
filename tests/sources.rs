//! Where the library gets its locks, atomics and threads from: `src/sync.rs`, and from nowhere else. And who has those that no schedule
//! checker sees (`sync::plain`): those that are listed here, each with its reason in `sync.rs`.

use std::fs;
use std::path::Path;

/// Files, and folders with all that is in them.
const PLAIN: [&str; 9] = [
    "sys/access/",
    "sys/conformance.rs",
    "sys/fork.rs",
    "sys/memory/",
    "sys/passing.rs",
    "sys/process.rs",
    "sys/sent.rs",
    "sys/trap/",
    "sys/userfault/",
];
/// A test, which is compiled into no library.
const NO_REASON: &str = "sys/conformance.rs";

/// What is compiled, without comments. Tests of a module run under no checker.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap().split("\n#[cfg(all(test").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap().trim())
}

/// The lines that name primitives of somebody else's: of the standard library, `parking_lot`, `crossbeam` or a checker.
fn named(text: &str) -> Vec<String> {
    let foreign = |line: &&str| {
        ["std::sync", "core::sync", "std::thread", "parking_lot", "crossbeam", "loom::", "shuttle::"]
            .iter()
            .any(|name| line.contains(name))
            || (line.starts_with("use std::{") && (line.contains("sync") || line.contains("thread")))
    };
    code(text).filter(foreign).map(str::to_owned).collect()
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
fn primitives_come_from_one_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut used) = (0, Vec::new());
    sources(&src, &mut |path| {
        files += 1;
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(&src).unwrap().to_str().unwrap();
        if path == "sync.rs" || path.starts_with("sync/") {
            return;
        }
        assert_eq!(named(&text), [""; 0], "src/{path}: by crate::sync");
        let plain: Vec<&str> = code(&text).filter(|line| line.contains("plain::")).collect();
        let listed = PLAIN.iter().find(|name| path == **name || (name.ends_with('/') && path.starts_with(**name)));
        match listed {
            Some(name) if !plain.is_empty() => used.push(*name),
            Some(_) => {}
            None => assert_eq!(plain, [""; 0], "src/{path} is not listed: say in sync.rs why no checker sees it"),
        }
    });
    assert!(files > 50, "only {files} files were found");
    let idle: Vec<_> = PLAIN.iter().filter(|name| !used.contains(name)).collect();
    assert!(idle.is_empty(), "listed, and need not be: {idle:?}");
    let reasons = fs::read_to_string(src.join("sync.rs")).unwrap();
    let without: Vec<_> =
        PLAIN.iter().filter(|name| **name != NO_REASON && !reasons.contains(&format!("`{name}`"))).collect();
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

/// The lines that hide something public from the documentation alone: it is behind a feature, or in a module that is.
fn hidden(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_fenced = |at: &usize| lines[..*at].iter().rev().take(2).any(|line| line.starts_with("#[cfg(feature"));
    (0..lines.len()).filter(|at| lines[*at].starts_with("#[doc(hidden)]")).filter(|at| !is_fenced(at)).collect()
}

#[test]
fn what_is_hidden_is_behind_a_feature() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&src, &mut |path| {
        // A module of the feature `shuttle` alone.
        if !path.ends_with("volume/invariants.rs") {
            assert_eq!(hidden(&fs::read_to_string(path).unwrap()), [0; 0], "{}", path.display());
        }
    });
    assert_eq!(hidden("/// Doc.\n#[cfg(feature = \"inside\")]\n#[doc(hidden)]\npub fn a() {}"), [0; 0]);
    assert_eq!(hidden("#[cfg(feature = \"inside\")]\npub mod a;\n\n#[doc(hidden)]\npub mod b;\n"), [3]);
}
