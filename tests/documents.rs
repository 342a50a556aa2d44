//! The documents name tests, scenarios of the model and files: each exists. And their prose is no wider than the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Characters of a line of prose. Tables and code may be wider.
const WIDTH_MAX: usize = 120;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, and its text.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let others = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    let texts: Vec<_> = docs.chain(others).map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    assert!(texts.len() > 8, "only {} documents were found", texts.len());
    texts
}

/// What stands in backquotes. A block of code is one such text.
fn quoted_in(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `file::name` and `file::module::name` in backquotes, as the documents name tests; a `*` is for several.
fn named_in(text: &str) -> Vec<(String, String)> {
    let names = quoted_in(text).filter_map(|quoted| {
        let (file, test) = quoted.split_once("::")?;
        let plain =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == ':');
        (plain(file) && plain(test)).then(|| (file.to_owned(), test.rsplit("::").next().unwrap().to_owned()))
    });
    names.collect()
}

/// The text of each test file, with what lies in the folder of the same name.
fn tests() -> BTreeMap<String, String> {
    fn add(texts: &mut BTreeMap<String, String>, name: Option<&str>, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let name = name.unwrap_or(&stem);
            if path.is_dir() {
                add(texts, Some(name), &path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.entry(name.to_owned()).or_default().push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut texts = BTreeMap::new();
    add(&mut texts, None, &root().join("tests"));
    texts
}

fn missing(text: &str, tests: &BTreeMap<String, String>) -> Vec<String> {
    let names = named_in(text).into_iter().filter(|(file, _)| tests.contains_key(file));
    let is_there = |text: &str, name: &str| {
        ["fn ", "mod ", "rule_tests!(", "rule_test!(", "windows_tests!("].iter().any(|before| {
            text.match_indices(&format!("{before}{name}")).any(|(at, found)| {
                let next = text[at + found.len()..].chars().next();
                next.is_some_and(|next| !next.is_alphanumeric() && next != '_')
            })
        }) || text.lines().any(|line| line.trim().trim_end_matches(',') == name)
    };
    names.filter(|(file, name)| !is_there(&tests[file], name)).map(|(file, name)| format!("{file}::{name}")).collect()
}

/// The scenarios of the model, by the lines that list them.
fn scenarios() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("tests/model/scenarios/mod.rs")).unwrap();
    let names = text.split("name: \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    names.collect()
}

/// `model::two_stores` is the scenario "two stores": those that are not there.
fn missing_scenarios(text: &str, scenarios: &BTreeSet<String>) -> Vec<String> {
    let named = named_in(text).into_iter().filter(|(file, _)| file == "model").map(|(_, name)| name);
    named.filter(|name| !scenarios.contains(name) && !scenarios.contains(&name.replace('_', " "))).collect()
}

/// Files and folders in backquotes, as seen from here or from `src`: those that are not there.
fn missing_files(text: &str) -> Vec<String> {
    let is_path = |text: &&str| {
        (text.ends_with(".rs") || text.ends_with('/') && text.len() > 1)
            && text.chars().all(|c| c.is_ascii_lowercase() || "_./".contains(c))
            && !text.starts_with('/')
    };
    let is_there = |path: &&str| [root().join(path), root().join("src").join(path)].iter().any(|path| path.exists());
    quoted_in(text).filter(is_path).filter(|path| !is_there(path)).map(str::to_owned).collect()
}

/// The numbers of the lines of prose that are too long.
fn wide_lines(text: &str) -> Vec<usize> {
    let mut code = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence && !line.trim_start().starts_with('|') && line.chars().count() > WIDTH_MAX
    });
    lines.map(|(at, _)| at + 1).collect()
}

#[test]
fn each_test_that_a_document_names_exists() {
    let tests = tests();
    let mut named = 0;
    for (path, text) in documents() {
        named += named_in(&text).len();
        assert_eq!(missing(&text, &tests), [""; 0], "{}", path.display());
    }
    assert!(named > 100, "only {named} names were found: the reader of the documents is wrong");
}

#[test]
fn each_scenario_that_a_document_names_exists_and_each_has_a_row() {
    let scenarios = scenarios();
    assert!(scenarios.len() > 10, "only {} scenarios were found", scenarios.len());
    for (path, text) in documents() {
        assert_eq!(missing_scenarios(&text, &scenarios), [""; 0], "{}", path.display());
    }
    let models = fs::read_to_string(root().join("docs/models.md")).unwrap();
    for name in &scenarios {
        assert!(models.contains(&format!("\n| {name} | ")), "docs/models.md has no row for {name}");
    }
}

#[test]
fn each_file_that_a_document_names_exists() {
    for (path, text) in documents() {
        assert_eq!(missing_files(&text), [""; 0], "{}", path.display());
    }
}

#[test]
fn no_line_of_prose_is_too_wide() {
    for (path, text) in documents() {
        assert_eq!(wide_lines(&text), [0; 0], "{}: lines of more than {WIDTH_MAX} characters", path.display());
    }
}

// What these tests are worth.

#[test]
fn a_test_that_is_gone_is_found() {
    let tests = BTreeMap::from([("forks".to_owned(), "fn here() {}\nfn heresy() {}".to_owned())]);
    assert_eq!(missing("`forks::here` and `forks::inside::here`, `sys::other::thing`", &tests), [""; 0]);
    assert_eq!(missing("`forks::her` `forks::gone`", &tests), ["forks::her", "forks::gone"]);
}

#[test]
fn a_scenario_that_is_gone_is_found() {
    let scenarios = BTreeSet::from(["two stores".to_owned(), "write_at".to_owned()]);
    assert_eq!(missing_scenarios("`model::two_stores` `model::write_at` `races::gone`", &scenarios), [""; 0]);
    assert_eq!(missing_scenarios("`model::two_stores`, `model::three_stores`", &scenarios), ["three_stores"]);
}

#[test]
fn a_file_that_is_gone_is_found() {
    assert_eq!(missing_files("`src/lib.rs` `sys/mod.rs` `tests/model/` `/` `a = b/`"), [""; 0]);
    assert_eq!(missing_files("`src/control.rs` in `attic/`"), ["src/control.rs", "attic/"]);
}

#[test]
fn a_wide_line_is_found() {
    let (fits, wide) = ("ä".repeat(WIDTH_MAX), "ä".repeat(WIDTH_MAX + 1));
    assert_eq!(wide_lines(&format!("{fits}\n| {wide} |\n```text\n{wide}\n```\n")), [0; 0]);
    assert_eq!(wide_lines(&format!("{fits}\n```text\n```\n- {wide}\n")), [4]);
}
