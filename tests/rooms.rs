//! The rooms of the house have an order, and nothing imports from above (`docs/design.md`, "Rooms").

#[path = "rooms/reader.rs"]
mod reader;

use std::collections::BTreeMap;
use std::path::Path;

use reader::{Import, Tree};

/// Lowest first. A room imports from those before it, and from itself.
const ROOMS: [&str; 18] = [
    "units", "sync", "probe", "sabotage", "error", "options", "sys", "policy", "blocks", "space", "inode", "address",
    "resolve", "pager", "file", "mapping", "volume", "lib",
];

/// The room of a file of `src`, by its path there.
fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// What is wrong with the order of the rooms: one line for each import.
fn upward(tree: &Tree, rooms: &[&str]) -> Vec<String> {
    let floor = |file: &str| rooms.iter().position(|room| *room == room_of(file));
    let homeless = tree.files().filter(|file| floor(file).is_none()).map(|file| format!("{file} is in no room"));
    let above = tree.imports().into_iter().filter(|import| floor(&import.to) > floor(&import.from));
    let told = above.map(|Import { from, line, to, path }| format!("{from}:{line} imports {path} from {to}, above it"));
    homeless.chain(told).collect()
}

/// The files of a circle of imports, if there is one.
fn circle(tree: &Tree) -> Option<Vec<String>> {
    let mut to: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for import in tree.imports() {
        to.entry(import.from).or_default().push(import.to);
    }
    // From each file the files that it reaches, by the shortest way.
    for start in to.keys() {
        let mut came: BTreeMap<&String, &String> = BTreeMap::new();
        let mut next = vec![start];
        while let Some(file) = next.pop() {
            for found in to.get(file).into_iter().flatten() {
                if found == start {
                    let mut way = vec![start.clone(), file.clone()];
                    while let Some(before) = came.get(way.last().unwrap()) {
                        way.push((*before).clone());
                    }
                    way.reverse();
                    return Some(way);
                }
                if !came.contains_key(found) {
                    came.insert(found, file);
                    next.push(found);
                }
            }
        }
    }
    None
}

fn of(folder: &str) -> Tree {
    Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
}

#[test]
fn nothing_imports_from_above() {
    let tree = of("src");
    assert!(tree.imports().len() > 300, "{} imports were read", tree.imports().len());
    let wrong = upward(&tree, &ROOMS);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_no_circles_in_the_programs() {
    for folder in ["bench", "bin/demo", "bin/stress"] {
        let tree = of(folder);
        assert!(tree.imports().len() > 5, "{folder}: {} imports were read", tree.imports().len());
        assert_eq!(circle(&tree), None, "{folder}");
    }
}

#[test]
fn every_room_is_there_and_in_the_drawing() {
    let tree = of("src");
    let design = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/design.md")).unwrap();
    for room in ROOMS {
        assert!(tree.files().any(|file| room_of(file) == room), "{room} has no file");
        assert!(design.contains(&format!("`{room}`")), "docs/design.md does not draw `{room}`");
    }
}

// What the test is worth: each is a house that has been broken on purpose.

fn house(files: &[(&str, &str)]) -> Tree {
    Tree::of(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
}

#[test]
fn an_import_from_above_is_named_with_both_files_and_the_line() {
    let rooms = ["low", "high", "lib"];
    let tree = house(&[
        ("lib.rs", "mod high;\nmod low;\n"),
        ("high/mod.rs", "pub(crate) mod part;\nuse crate::low::Thing;\n"),
        ("high/part.rs", "pub(crate) struct Part;"),
        ("low.rs", "\nuse std::fmt;\nuse crate::{\n    high::part::Part as Other,\n};\n"),
    ]);
    assert_eq!(upward(&tree, &rooms), ["low.rs:3 imports crate::high::part::Part from high/part.rs, above it"]);
}

#[test]
fn paths_within_the_code_are_imports_too() {
    let rooms = ["low", "high", "lib"];
    let code = "fn f() {\n    crate::high::call();\n}\n";
    let tree = house(&[("lib.rs", ""), ("high.rs", ""), ("low/mod.rs", "mod deep;"), ("low/deep.rs", code)]);
    assert_eq!(upward(&tree, &rooms), ["low/deep.rs:2 imports crate::high::call from high.rs, above it"]);
    let code = "fn f() {\n    super::super::high::call();\n}\n";
    let tree = house(&[("lib.rs", ""), ("high.rs", ""), ("low/mod.rs", "mod deep;"), ("low/deep.rs", code)]);
    assert_eq!(upward(&tree, &rooms), ["low/deep.rs:2 imports super::super::high::call from high.rs, above it"]);
}

#[test]
fn what_a_comment_a_string_or_a_unit_test_says_is_no_import() {
    let rooms = ["low", "high", "lib"];
    let low = r#"
// use crate::high::A;
/* use crate::high::B; */
const TEXT: &str = "use crate::high::C; \" crate::high::D";
const QUOTE: char = '"';
/// [`crate::high::E`]
fn f<'a>(x: &'a str) {}
#[cfg(test)]
mod tests {
    use crate::high::F;
}
"#;
    let tree = house(&[("lib.rs", ""), ("high.rs", ""), ("low.rs", low)]);
    assert_eq!(upward(&tree, &rooms), Vec::<String>::new());
}

#[test]
fn a_file_in_no_room_is_named() {
    let tree = house(&[("lib.rs", ""), ("attic.rs", "")]);
    assert_eq!(upward(&tree, &["low", "lib"]), ["attic.rs is in no room"]);
}

#[test]
fn a_module_of_the_files_own_is_an_import_without_a_use_line() {
    let round = [("main.rs", "mod a;\nfn main() {\n    a::go()\n}"), ("a.rs", "use crate::CONSTANT;")];
    assert_eq!(circle(&house(&round)), Some(vec!["a.rs".into(), "main.rs".into(), "a.rs".into()]));
    let straight = [("main.rs", "mod a;\nfn main() {\n    a::go(b::a::C)\n}"), ("a.rs", "")];
    assert_eq!(circle(&house(&straight)), None);
}

#[test]
fn what_is_mounted_from_elsewhere_is_read_there() {
    let folder = std::env::temp_dir().join(format!("daxpager-rooms-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("one")).unwrap();
    let files = [
        ("one/main.rs", "#[path = \"../both.rs\"]\nmod shared;\nmod a;\n"),
        ("one/a.rs", "use crate::shared::S;"),
        ("both.rs", "use crate::a::A;"),
    ];
    files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    let found = circle(&Tree::read(&folder.join("one")));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found, Some(vec!["a.rs".into(), "shared.rs".into(), "a.rs".into()]));
}

#[test]
fn circles_are_found() {
    let straight = [("main.rs", "mod a;\nmod b;\nuse a::A;"), ("a.rs", "use crate::b::B;"), ("b.rs", "")];
    assert_eq!(circle(&house(&straight)), None);
    let round = [("main.rs", "mod a;\nmod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "use super::a::A;")];
    assert_eq!(circle(&house(&round)), Some(vec!["a.rs".into(), "b.rs".into(), "a.rs".into()]));
}
