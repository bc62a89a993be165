//! Rules for the source tree itself: direction of imports, ownership of tasks, purity of
//! `protocol`, and the wording of comments. Reads files only. The lengths of files and functions are
//! printed and not judged: `cargo test --test tidy -- --nocapture`.

#![expect(clippy::print_stdout, reason = "the reports are printed")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The modules of `src/`, lowest group first. A module may import modules of lower groups only; see
/// the map in `src/README.md`.
const GROUPS: &[&[&str]] = &[
    &[
        "config",
        "ids",
        "lifecycle",
        "lock",
        "printable",
        "protocol",
        "trace_parent",
        "turn",
        "unix_socket",
    ],
    &["observability"],
    &["auth", "rendezvous", "transport"],
    &["accept"],
    &["cluster", "relay"],
    &["session"],
    &["admin", "monitor"],
    &["node"],
    &["client"],
];

/// A path that may call `tokio::spawn`, or all below it.
struct Spawns {
    path: &'static str,
    at_most: usize,
    reason: &'static str,
}

const SPAWNS: &[Spawns] = &[
    Spawns {
        path: "src/client/gateway.rs",
        at_most: 1,
        reason: "the client library has no Lifecycle; the task ends when its Apps are dropped",
    },
    Spawns {
        path: "src/cluster/client.rs",
        at_most: 1,
        reason: "the ping task holds a Weak reference to its peer and ends with it",
    },
    Spawns {
        path: "src/cluster/connection.rs",
        at_most: 1,
        reason: "drives an HTTP/2 connection and ends with it",
    },
    Spawns {
        path: "src/cluster/server.rs",
        at_most: 1,
        reason: "a bridge call, watched by its connection",
    },
    Spawns {
        path: "src/session",
        at_most: 3,
        reason: "tasks whose handle is awaited by the session or the probe that spawned them",
    },
    Spawns {
        path: "node/src/bench",
        at_most: 5,
        reason: "load generators: they end with the process",
    },
    Spawns {
        path: "node/src/client",
        at_most: 1,
        reason: "one task per attachment of the command-line client, awaited by their counter",
    },
    Spawns {
        path: "node/src/monitor",
        at_most: 1,
        reason: "asks the monitor socket, aborted when the screen closes",
    },
];

/// What `src/protocol` must not contain: clocks, randomness and IO are arguments or actions.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    ".elapsed()",
    "rand::",
    "new_v4",
    "tokio::",
    "tracing::",
    "std::env",
    "std::fs",
    "std::net",
    "std::thread",
];

/// Words that comments of this tree use in place of a definite noun or verb.
const TIC_WORDS: &[&str] = &[
    "told",
    "whoever",
    "nobody",
    "behind",
    "comes",
    "whose",
    "meanwhile",
    "somebody",
    "anybody",
    "stands",
];

/// The most tic words per 10,000 words of comments and documents. To be lowered when the text gets
/// better, never raised.
const MOST_TIC_WORDS: usize = 8;

/// Files of more lines are listed in the report.
const LONG_FILE: usize = 400;
/// Functions of more lines are listed in the report.
const LONG_FUNCTION: usize = 50;

#[test]
fn no_module_imports_upwards() {
    let groups: BTreeMap<&str, usize> = GROUPS
        .iter()
        .enumerate()
        .flat_map(|(group, modules)| modules.iter().map(move |module| (*module, group)))
        .collect();
    let mut faults = Vec::new();
    for file in rust_files("src") {
        let module = top_module(&file.path);
        if module == "lib" {
            continue;
        }
        let Some(group) = groups.get(module.as_str()) else {
            faults.push(format!("{}: module {module} is in no group", file.path));
            continue;
        };
        for (number, line) in file.code() {
            for imported in imports(line) {
                let is_lower = groups.get(imported).is_some_and(|other| other < group);
                if imported != module && !is_lower {
                    faults.push(format!("{}:{number}: {module} imports {imported}", file.path));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_task_has_an_owner() {
    let mut counts = vec![0; SPAWNS.len()];
    let mut faults = Vec::new();
    for file in rust_files("src").into_iter().chain(rust_files("node/src")) {
        for (number, line) in file.production_code() {
            if !line.contains("tokio::spawn(") && !line.contains("task::spawn(") {
                continue;
            }
            let is_below = |allowed: &Spawns| Path::new(&file.path).starts_with(allowed.path);
            match SPAWNS.iter().position(is_below) {
                Some(index) => counts[index] += 1,
                None => faults.push(format!(
                    "{}:{number}: spawn by Lifecycle, or add the file to SPAWNS with a reason",
                    file.path
                )),
            }
        }
    }
    for (allowed, count) in SPAWNS.iter().zip(counts) {
        if count > allowed.at_most {
            let Spawns { path, at_most, reason } = allowed;
            faults.push(format!("{path}: {count} bare spawns, {at_most} allowed ({reason})"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_protocol_is_pure() {
    let mut faults = Vec::new();
    for file in rust_files("src/protocol") {
        for (number, line) in file.production_code() {
            for impure in IMPURE.iter().filter(|impure| line.contains(**impure)) {
                faults.push(format!("{}:{number}: {impure}", file.path));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_of_the_library_opens_with_its_purpose() {
    let has_doc = |file: &File| file.text.starts_with("//!") || file.text.starts_with("#![doc");
    let without: Vec<_> = rust_files("src")
        .into_iter()
        .filter(|file| !file.is_test() && !has_doc(file))
        .map(|file| file.path)
        .collect();
    assert!(without.is_empty(), "without a module doc: {without:?}");
}

#[test]
fn a_cited_section_names_its_document() {
    const DOCUMENTS: &[&str] = &["RFC", "README.md", "specification"];
    let mut faults = Vec::new();
    for file in ["src", "node", "proto", "tests"].into_iter().flat_map(text_files) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| cites_a_section(line)) {
            let context = &lines[index.saturating_sub(1)..=index];
            let names = |document: &&str| context.iter().any(|line| line.contains(*document));
            if !DOCUMENTS.iter().any(names) && !file.path.ends_with("README.md") {
                faults.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn comments_use_no_more_tic_words_than_before() {
    let mut by_folder: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for file in ["src", "node", "proto", "tests"].into_iter().flat_map(text_files) {
        let (words, tics) = by_folder.entry(file.folder()).or_default();
        for word in file.prose().flat_map(words_of) {
            *words += 1;
            *tics += usize::from(TIC_WORDS.contains(&word.as_str()));
        }
    }
    println!("tic words per 10,000 words of comments and documents");
    for (folder, (words, tics)) in &by_folder {
        println!("{:>6} {tics:>4} of {words:>6}  {folder}", per_10_000(*tics, *words));
    }
    let words = by_folder.values().map(|(words, _)| words).sum();
    let tics = by_folder.values().map(|(_, tics)| tics).sum();
    let rate = per_10_000(tics, words);
    println!("{rate:>6} {tics:>4} of {words:>6}  in all");
    assert!(
        rate <= MOST_TIC_WORDS,
        "{rate} tic words per 10,000, {MOST_TIC_WORDS} allowed: name the thing, do not describe it"
    );
}

#[test]
fn lengths_are_reported() {
    let files: Vec<File> =
        ["src", "node/src", "proto/src"].into_iter().flat_map(rust_files).collect();
    let mut lines: Vec<(usize, &str)> =
        files.iter().map(|file| (file.text.lines().count(), file.path.as_str())).collect();
    let mut functions: Vec<(usize, String)> = files.iter().flat_map(File::functions).collect();
    assert!(
        !lines.is_empty() && !functions.is_empty(),
        "the source tree is not where it should be"
    );
    lines.sort_unstable();
    functions.sort_unstable();
    let lengths = |all: &[usize]| {
        let at = |percent: usize| all[(all.len() - 1) * percent / 100];
        format!("{}: median {}, 95 % {}, longest {}", all.len(), at(50), at(95), at(100))
    };
    println!("files, {}", lengths(&lines.iter().map(|(length, _)| *length).collect::<Vec<_>>()));
    for (length, path) in lines.iter().rev().take_while(|(length, _)| *length > LONG_FILE) {
        println!("{length:>6}  {path}");
    }
    println!(
        "functions, {}",
        lengths(&functions.iter().map(|(length, _)| *length).collect::<Vec<_>>())
    );
    for (length, name) in functions.iter().rev().take_while(|(length, _)| *length > LONG_FUNCTION) {
        println!("{length:>6}  {name}");
    }
}

/// A file of the repository.
struct File {
    /// Relative to the root of the repository.
    path: String,
    text: String,
}

impl File {
    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs")
    }

    /// The lines that are not comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Code outside of tests, which are the last part of a file or files of their own.
    fn production_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.is_test();
        self.code().take_while(move |(_, line)| !is_test && !line.starts_with("#[cfg(test)]"))
    }

    /// The lines of a document, or the comments of a source file.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let is_document = Path::new(&self.path).extension().is_some_and(|it| it == "md");
        self.text.lines().filter_map(move |line| {
            if is_document { Some(line) } else { line.trim_start().strip_prefix("//") }
        })
    }

    /// `src/<module>`, or the first folder.
    fn folder(&self) -> String {
        match self.path.split_once('/') {
            Some(("src", _)) => format!("src/{}", top_module(&self.path)),
            Some((folder, _)) => folder.to_owned(),
            None => self.path.clone(),
        }
    }

    /// The number of lines of each function, with its place. Relies on the indentation of rustfmt.
    fn functions(&self) -> Vec<(usize, String)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let begins = lines.iter().enumerate().filter(|(_, line)| is_function(line));
        let length = |index: usize, line: &str| {
            let end = format!("{}}}", &line[..indentation(line).end]);
            let rest = &lines[index..];
            rest.iter().position(|line| *line == end).map_or(1, |last| last + 1)
        };
        begins
            .map(|(index, line)| (length(index, line), format!("{}:{}", self.path, index + 1)))
            .collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<File> {
    files(folder, &["rs"])
}

fn text_files(folder: &str) -> Vec<File> {
    files(folder, &["rs", "proto", "md"])
}

fn files(folder: &str, extensions: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry of a folder").path();
            if path.is_dir() {
                folders.extend(is_source(&path).then_some(path));
            } else if path.extension().is_some_and(|it| extensions.iter().any(|known| it == *known))
            {
                found.push(read(&path));
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// Not what is built or measured.
fn is_source(folder: &Path) -> bool {
    !["target", "results", "corpus"].iter().any(|other| folder.ends_with(other))
}

fn read(path: &Path) -> File {
    let text = fs::read_to_string(path).expect("a text file");
    let path = path.strip_prefix(root()).expect("a path below the root").display().to_string();
    File { path, text }
}

/// `session` of `src/session/mod.rs`, `ids` of `src/ids.rs`.
fn top_module(path: &str) -> String {
    let name = path.split('/').nth(1).unwrap_or_default();
    name.strip_suffix(".rs").unwrap_or(name).to_owned()
}

/// The modules of the crate that a line of code names, `use crate::{…}` not being in use.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|it: char| !it.is_ascii_lowercase() && it != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn cites_a_section(line: &str) -> bool {
    let is_comment = line.trim_start().starts_with("//");
    let cites = |word: &str| {
        line.split(word).skip(1).any(|rest| rest.starts_with(|it: char| it.is_ascii_digit()))
    };
    is_comment && (cites("section ") || cites("sections "))
}

fn words_of(line: &str) -> impl Iterator<Item = String> {
    line.split(|it: char| !it.is_ascii_alphabetic() && it != '\'')
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
}

fn per_10_000(tics: usize, words: usize) -> usize {
    (tics * 10_000).div_ceil(words.max(1))
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_modifier = |word: &str| word.starts_with("pub") || ["async", "const"].contains(&word);
    line.ends_with(['{', '(', '}'])
        && words.find(|word| !is_modifier(word)).is_some_and(|word| word == "fn")
}

fn indentation(line: &str) -> Range<usize> {
    0..line.len() - line.trim_start().len()
}
