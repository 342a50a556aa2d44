//! The documents name tests: each exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// `file::name` and `file::module::name` in backquotes, as the documents name tests; a `*` is for several.
fn named_in(text: &str) -> Vec<(String, String)> {
    let quoted = text.split('`').skip(1).step_by(2);
    let names = quoted.filter_map(|quoted| {
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
    add(&mut texts, None, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"));
    texts
}

fn missing(text: &str, tests: &BTreeMap<String, String>) -> Vec<String> {
    let names = named_in(text).into_iter().filter(|(file, _)| tests.contains_key(file));
    let is_there = |text: &str, name: &str| {
        ["fn ", "mod ", "rule_tests!(", "rule_test!("].iter().any(|before| {
            text.match_indices(&format!("{before}{name}")).any(|(at, found)| {
                let next = text[at + found.len()..].chars().next();
                next.is_some_and(|next| !next.is_alphanumeric() && next != '_')
            })
        }) || text.lines().any(|line| line.trim().trim_end_matches(',') == name)
    };
    names.filter(|(file, name)| !is_there(&tests[file], name)).map(|(file, name)| format!("{file}::{name}")).collect()
}

#[test]
fn each_test_that_a_document_names_exists() {
    let tests = tests();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut named = 0;
    for entry in fs::read_dir(docs).unwrap().map(Result::unwrap) {
        let text = fs::read_to_string(entry.path()).unwrap();
        named += named_in(&text).len();
        assert_eq!(missing(&text, &tests), [""; 0], "{}", entry.path().display());
    }
    assert!(named > 100, "only {named} names were found: the reader of the documents is wrong");
}

#[test]
fn a_test_that_is_gone_is_found() {
    let tests = BTreeMap::from([("forks".to_owned(), "fn here() {}\nfn heresy() {}".to_owned())]);
    assert_eq!(missing("`forks::here` and `forks::inside::here`, `sys::other::thing`", &tests), [""; 0]);
    assert_eq!(missing("`forks::her` `forks::gone`", &tests), ["forks::her", "forks::gone"]);
}
