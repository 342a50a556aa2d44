//! A plain reader of `use` lines and paths: enough to say which file of a crate names which.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The files of a crate, by their paths below its folder.
pub(crate) struct Tree {
    texts: BTreeMap<String, String>,
}

/// One file names something in another.
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) line: usize,
    pub(crate) to: String,
    /// As it is written, but for braces.
    pub(crate) path: String,
}

impl Tree {
    pub(crate) fn of(files: impl Iterator<Item = (String, String)>) -> Self {
        Self { texts: files.collect() }
    }

    /// All `.rs` files below a folder, and those that they mount from elsewhere (`#[path]`), by the names of their modules.
    pub(crate) fn read(folder: &Path) -> Self {
        fn add(texts: &mut BTreeMap<String, String>, root: &Path, folder: &Path) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    add(texts, root, &path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    texts.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut texts = BTreeMap::new();
        add(&mut texts, folder, folder);
        let mounts: Vec<(String, String)> = texts
            .iter()
            .flat_map(|(file, text)| mounts(file, text).into_iter().map(|mount| (file.clone(), mount)))
            .map(|(file, (module, path))| (module, fs::read_to_string(folder.join(file).with_file_name(path)).unwrap()))
            .collect();
        texts.extend(mounts);
        Self { texts }
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// What each file names in another; once for each line and file.
    pub(crate) fn imports(&self) -> Vec<Import> {
        let mut imports: Vec<Import> = Vec::new();
        for (from, text) in &self.texts {
            let module = module_of(from);
            let own = |name: &str| self.file_of(&[&module[..], &[name.to_owned()]].concat()).is_some();
            for (line, path) in paths(&code(text), own) {
                let Some(to) = self.target(from, &path) else { continue };
                let same = |import: &Import| import.from == *from && import.line == line && import.to == to;
                if to != *from && !imports.iter().any(same) {
                    imports.push(Import { from: from.clone(), line, to, path });
                }
            }
        }
        imports
    }

    /// The file in which a path ends that is written in `from`: that of the longest part which is a module.
    fn target(&self, from: &str, path: &str) -> Option<String> {
        let mut parts: Vec<&str> = path.split("::").collect();
        let mut module = module_of(from);
        match parts[0] {
            "crate" => module.clear(),
            "self" => {}
            "super" => {
                module.pop();
            }
            // A module of its own, or another crate.
            own => {
                module.push(own.to_owned());
                self.file_of(&module)?;
            }
        }
        parts.remove(0);
        for part in parts {
            match part {
                "super" => drop(module.pop()),
                part => module.push(part.to_owned()),
            }
        }
        loop {
            if let Some(file) = self.file_of(&module) {
                return Some(file);
            }
            module.pop()?;
        }
    }

    fn file_of(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        let names = match module {
            [] => self.files().filter(|file| is_root(file)).map(str::to_owned).collect(),
            _ => vec![format!("{path}.rs"), format!("{path}/mod.rs")],
        };
        names.into_iter().find(|name| self.texts.contains_key(name))
    }
}

/// What cargo begins with.
fn is_root(file: &str) -> bool {
    ["lib.rs", "main.rs", "fault.rs"].contains(&file)
}

/// The modules that a file mounts from outside of its folder, by the names of the files that they would be, and where they are.
fn mounts(file: &str, text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mount = |at: usize| {
        let path = lines[at].strip_prefix("#[path = \"")?.strip_suffix("\"]")?;
        let is_for_tests = at > 0 && lines[at - 1] == "#[cfg(test)]";
        let name = lines.get(at + 1)?.rsplit(' ').next()?.strip_suffix(';')?;
        let module = [module_of(file), vec![name.to_owned()]].concat().join("/");
        (path.starts_with("../") && !is_for_tests).then(|| (format!("{module}.rs"), path.to_owned()))
    };
    (0..lines.len()).filter_map(mount).collect()
}

fn module_of(file: &str) -> Vec<String> {
    if is_root(file) {
        return Vec::new();
    }
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

/// The text with comments, strings and unit tests blanked, line for line.
fn code(text: &str) -> String {
    let plain = blank_comments_and_strings(text);
    let mut rest = plain.as_str();
    let mut code = String::new();
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, from) = rest.split_at(at);
        code.push_str(before);
        let end = end_of_item(from);
        code.extend(from[..end].chars().filter(|c| *c == '\n'));
        rest = &from[end..];
    }
    code + rest
}

/// Where the item ends that begins here: behind its braces, or its semicolon.
fn end_of_item(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

fn blank_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    while at < chars.len() {
        let end = if starts(at, "//") {
            (at..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len())
        } else if starts(at, "/*") {
            (at + 2..chars.len()).find(|i| starts(*i, "*/")).map_or(chars.len(), |i| i + 2)
        } else if starts(at, "r#\"") {
            (at + 3..chars.len()).find(|i| starts(*i, "\"#")).map_or(chars.len(), |i| i + 2)
        } else if chars[at] == '"' {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            end + 1
        } else if starts(at, "'\"'") {
            at + 3
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        out.extend(chars[at..end.min(chars.len())].iter().filter(|c| **c == '\n'));
        out.push(' ');
        at = end;
    }
    out
}

/// The paths of `use` items, and those from `crate`, `super` or a module of the file's own anywhere else, with their lines.
fn paths(code: &str, is_own: impl Fn(&str) -> bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut plain = String::new();
    let mut rest = code;
    let line = |rest: &str| code[..code.len() - rest.len()].matches('\n').count() + 1;
    while let Some(at) = next_word(rest, "use") {
        plain.push_str(&rest[..at]);
        let from = &rest[at..];
        let end = from.find(';').unwrap_or(from.len());
        let mut used = Vec::new();
        expand("", &from[3..end], &mut used);
        found.extend(used.into_iter().map(|path| (line(from), path)));
        plain.extend(from[..end].chars().filter(|c| *c == '\n'));
        rest = &from[end..];
    }
    plain.push_str(rest);
    for (index, text) in plain.lines().enumerate() {
        let mut from = text;
        while let Some(at) = from.find("::") {
            let start = from[..at].rfind(|c| !is_of_path(c)).map_or(0, |at| at + 1);
            let end = from[at..].find(|c| !is_of_path(c)).map_or(from.len(), |end| at + end);
            let path = from[start..end].trim_end_matches(':');
            let first = path.split("::").next().unwrap_or_default();
            if ["crate", "super"].contains(&first) || is_own(first) {
                found.push((index + 1, path.to_owned()));
            }
            from = &from[end..];
        }
    }
    found
}

fn is_of_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

/// Where a word is that nothing is glued to in front; and behind, if it is one of letters.
fn next_word(text: &str, word: &str) -> Option<usize> {
    let fits = |at: usize| {
        let behind = text[at + word.len()..].chars().next();
        !text[..at].chars().next_back().is_some_and(is_of_path)
            && (word.ends_with(':') || behind.is_some_and(char::is_whitespace))
    };
    text.match_indices(word).map(|(at, _)| at).find(|at| fits(*at))
}

/// `a::{b, c as d}` as `a::b` and `a::c`.
fn expand(before: &str, tree: &str, into: &mut Vec<String>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let name = tree.split(" as ").next().unwrap_or(tree).trim();
        let path = format!("{before}{name}");
        return into.push(path.trim_end_matches("::self").to_owned());
    };
    let before = format!("{before}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 || at == inner.len() => {
                if !inner[start..at].trim().is_empty() {
                    // A brace that was trimmed at the very end is not missed: nothing follows it.
                    expand(&before, &inner[start..at], into);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}
