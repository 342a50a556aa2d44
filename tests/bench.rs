//! The bench as a program: that everything in it runs, and what it says. The figures of these runs mean nothing.

#[path = "common/guard.rs"]
mod guard;
#[path = "common/program.rs"]
mod program;

use std::process::{Command, Output};
use std::time::Duration;

use program::{Scratch, stderr, stdout};

/// How long the program may take: a test's, with all of its runs, is not much longer.
const LIMIT: Duration = Duration::from_secs(500);

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daxpager-bench"));
    command.args(args);
    guard::allow(LIMIT + guard::HANG);
    guard::output_within(LIMIT, command)
}

#[test]
fn every_bar_has_a_line_at_the_end() {
    let (json, page) = (Scratch::new("bars.json"), Scratch::new("bars.html"));
    let output = bench(&["--bars", "--quick", "--json", json.path(), "--html", page.path()]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    let (_, bars) = text.rsplit_once("\n\n").unwrap();
    let lines: Vec<&str> = bars.lines().skip(1).collect();
    let ends = ["ok", "short", "not available", "skipped"];
    assert!(lines.len() >= 20 && lines.iter().all(|line| ends.iter().any(|end| line.ends_with(end))), "{text}");
    let reached = lines.iter().all(|line| line.ends_with("ok"));
    assert_eq!(output.status.code(), Some(i32::from(!reached)), "{text}");
    let json = std::fs::read_to_string(&json.0).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["bars"].as_array().unwrap().len(), lines.len());
    let html = std::fs::read_to_string(&page.0).unwrap();
    assert!(html.contains("<svg") && html.ends_with("</html>\n") && !html.contains("http:"), "{}", html.len());
}

#[test]
fn every_pattern_has_a_table() {
    let output = bench(&["--quick"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    for pattern in
        ["random read", "random write", "sequential read", "sequential write", "write after protect", "hole write"]
    {
        for how in ["1 thread, pinned", "1 thread, free", "2 threads, pinned", "2 threads, free"] {
            assert!(text.contains(&format!("\n{pattern}, {how}, ")), "{pattern}, {how}: {text}");
        }
    }
}

/// A program of somebody else's: a script that knows its place.
#[test]
fn others_take_part() {
    use std::os::unix::fs::PermissionsExt;
    let script = Scratch::new("other");
    std::fs::write(&script.0, "#!/bin/sh\n[ $1 = random-read ] || exit 77\necho \"{\\\"ns_per_page\\\": $2}\"\n")
        .unwrap();
    std::fs::set_permissions(&script.0, PermissionsExt::from_mode(0o755)).unwrap();
    let other = format!("them={}", script.path());
    let output = bench(&["--quick", "--work", "random-read,hole-write", "--regime", "free", "--other", &other]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().filter(|line| line.trim_start().starts_with("them ")).collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].contains(" 512 ") && lines[2].ends_with("not available"), "{text}");
}

#[test]
fn misuse_is_told() {
    for (args, part) in [
        (&["--work", "nothing"][..], "random-read"),
        (&["--rounds", "0"], "--rounds"),
        (&["--bars", "--work", "random-read"], "--bars"),
        (&["--other", "them"], "NAME=PATH"),
        (&["--other", "them=/nowhere/at/all"], "/nowhere/at/all"),
        (&["--json", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["contender", "{}"], "not a case"),
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty());
    }
}
