//! What a program without `unsafe` cannot do: the programs in `tests/fences` are built as an embedder's are, with the library as it comes
//! by default, and each fails on the very lines that say so, for the reason that they name:
//!
//! ```text
//! use daxpager::checked; //~ E0432 daxpager::checked
//! ```
//!
//! The features for tests and programs are off in there. Cargo keeps such a build apart from those of the tests, in the same folder, and
//! takes what both have in common from it. It needs no network.

#[path = "common/guard.rs"]
mod guard;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// For all that the library depends on, on a machine with other things to do.
const BUILD: Duration = Duration::from_secs(900);
/// The one that builds.
const PLAIN: &str = "plain";
const FENCED: [&str; 3] = ["names", "types", "borrows"];

/// An error of the compiler: its line, its code, and what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Complaint {
    line: usize,
    code: String,
    text: String,
}

/// What the lines of a program say that the compiler will say.
fn expected(source: &str) -> Vec<Complaint> {
    let lines = source.lines().enumerate();
    let marked = lines.filter_map(|(at, line)| {
        let (code, text) = line.split_once("//~ ")?.1.split_once(' ')?;
        Some(Complaint { line: at + 1, code: code.to_owned(), text: text.to_owned() })
    });
    marked.collect()
}

/// What it has said of the program `name`, in lines like `fences/names.rs:5:7: error[E0432]: unresolved import`.
fn said(output: &str, name: &str) -> Vec<Complaint> {
    let of_program = format!("fences/{name}.rs:");
    let errors = output.lines().filter_map(|line| {
        let (line, rest) = line.split_once(&of_program)?.1.split_once(':')?;
        let (code, text) = rest.split_once(": error")?.1.split_once(": ")?;
        let code = code.trim_matches(['[', ']']).to_owned();
        Some(Complaint { line: line.parse().ok()?, code, text: text.to_owned() })
    });
    errors.collect()
}

/// What of one has no counterpart in the other.
fn differences(expected: &[Complaint], said: &[Complaint]) -> Vec<String> {
    let is_of = |expected: &Complaint, said: &Complaint| {
        expected.line == said.line && expected.code == said.code && said.text.contains(&expected.text)
    };
    let missing = expected.iter().filter(|expected| !said.iter().any(|said| is_of(expected, said)));
    let strange = said.iter().filter(|said| !expected.iter().any(|expected| is_of(expected, said)));
    missing
        .map(|it| format!("is let through: {it:?}"))
        .chain(strange.map(|it| format!("was not meant: {it:?}")))
        .collect()
}

/// A package of all of them, with the library as its dependency.
fn package(dir: &Path) {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut manifest = format!(
        "[package]\nname = \"fences\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[profile.dev]\nopt-level = 1\n\
         [dependencies]\ndaxpager = {{ path = {ours:?} }}\n"
    );
    for name in FENCED.into_iter().chain([PLAIN]) {
        let path = ours.join(format!("tests/fences/{name}.rs"));
        manifest.push_str(&format!("[[bin]]\nname = \"fence-{name}\"\npath = {path:?}\n"));
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    std::fs::copy(ours.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
}

fn cargo(dir: &Path, target: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).args(["--offline", "--message-format", "short", "--target-dir"]).arg(target).current_dir(dir);
    // Of the build of the tests, which may be for another machine, or for a sanitizer.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

#[test]
fn a_program_without_unsafe_sees_nothing_of_the_inside() {
    guard::allow(2 * BUILD + guard::HANG);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fences");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    package(&dir);
    let plain = format!("fence-{PLAIN}");
    let built = guard::output_within(BUILD, cargo(&dir, target, &["build", "--bin", &plain]));
    assert!(built.status.success(), "{}", guard::text(&built));
    let ran = guard::output(Command::new(target.join("debug").join(plain)));
    assert!(ran.status.success() && guard::text(&ran).contains("no unsafe needed"), "{}", guard::text(&ran));
    // All of them, whichever fails first.
    let built = guard::text(&guard::output_within(BUILD, cargo(&dir, target, &["build", "--keep-going", "--bins"])));
    for name in FENCED {
        let source = std::fs::read_to_string(format!("{}/tests/fences/{name}.rs", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let expected = expected(&source);
        assert!(expected.len() >= 4, "{name}: only {} lines are marked", expected.len());
        assert_eq!(differences(&expected, &said(&built, name)), [""; 0], "{name}.rs:\n{built}");
    }
}

#[test]
fn what_is_let_through_is_noticed() {
    let expected = expected("use a; //~ E0432 a::b\nfine();\nbad(); //~ E0599 bad\n");
    assert_eq!(expected.iter().map(|it| it.line).collect::<Vec<_>>(), [1, 3]);
    let output = "warning: x\n/d/fences/names.rs:1:5: error[E0432]: unresolved import `a::b`: no `b`\n\
        /d/fences/names.rs:3:2: error[E0599]: no method named `bad` found\n/d/fences/types.rs:9:1: error[E0603]: private\n";
    let said = said(output, "names");
    assert_eq!(said.len(), 2);
    assert_eq!(differences(&expected, &said), [""; 0]);
    // Let through; for another reason; on another line; one more.
    assert_eq!(differences(&expected, &said[..1]).len(), 1);
    let other = |line, code: &str, text: &str| Complaint { line, code: code.to_owned(), text: text.to_owned() };
    assert_eq!(differences(&expected, &[said[0].clone(), other(3, "E0061", "bad")]).len(), 2);
    assert_eq!(differences(&expected, &[said[0].clone(), other(2, "E0599", "bad")]).len(), 2);
    let one_more = [said.clone(), vec![other(2, "", "usage of an `unsafe` block")]].concat();
    assert_eq!(differences(&expected, &one_more).len(), 1);
}
