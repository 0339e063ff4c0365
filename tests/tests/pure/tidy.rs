//! The rules of the house that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn each_source(check: impl Fn(&Path, &str)) {
    let crates =
        ["firewall-common", "firewall-core", "firewall-ebpf", "firewall-agent", "xtask", "tests"];
    let files: Vec<PathBuf> = crates.iter().flat_map(|name| sources(&root().join(name))).collect();
    assert!(files.len() > 30, "{files:?}");
    for file in files {
        check(&file, &fs::read_to_string(&file).expect("text"));
    }
}

#[test]
fn every_file_says_what_it_owns_and_can_be_read_in_one_sitting() {
    each_source(|file, text| {
        assert!(text.starts_with("//! "), "{}: no first line of documentation", file.display());
        let lines = text.lines().count();
        assert!(lines <= 400, "{}: {lines} lines", file.display());
    });
}

#[test]
fn what_is_pure_mentions_nothing_that_acts() {
    let acts =
        ["tokio", "aya", "nix::", "notify", "rtnetlink", "std::fs", "std::process", "Instant"];
    each_source(|file, text| {
        let path = file.to_string_lossy();
        let is_common = path.contains("firewall-common/src/");
        let is_pure = path.contains("firewall-core/src/") || text.starts_with("//! PURE");
        if !is_pure && !is_common {
            return;
        }
        for word in acts {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let found = code.filter(|line| line.contains(word)).count();
            assert_eq!(found, 0, "{path} mentions {word}");
        }
        assert!(!is_common || !text.contains("std::"), "{path} is not no_std");
    });
}

#[test]
fn what_is_pure_depends_on_nothing_that_acts() {
    let crates: [(&str, &[&str]); 2] = [
        ("firewall-common", &["zerocopy"]),
        ("firewall-core", &["firewall-common", "ipnet", "schemars", "serde", "thiserror"]),
    ];
    for (owner, pure) in crates {
        let manifest = root().join(owner).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        let (_, dependencies) = manifest.split_once("[dependencies]").expect("dependencies");
        let lines = dependencies.lines().take_while(|line| !line.starts_with("[lints]"));
        let names = lines.filter_map(|line| line.split(['.', ' ']).next());
        for name in names.filter(|it| !it.is_empty()) {
            assert!(pure.contains(&name), "{owner} depends on {name}");
        }
    }
}

#[test]
fn nothing_panics_below_the_tests() {
    each_source(|file, text| {
        let path = file.to_string_lossy();
        let parts = ["firewall-agent/src", "firewall-core/src", "firewall-common/src"];
        if !parts.iter().any(|part| path.contains(part)) {
            return;
        }
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!("] {
            assert!(!product.contains(word), "{path} has {word}");
        }
    });
}

#[test]
fn versions_that_belong_together_stay_pinned() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    for pin in [
        "aya = \"=0.14.0\"",
        "aya-ebpf = \"=0.2.1\"",
        "aya-log = \"=0.3.0\"",
        "aya-log-ebpf = \"=0.2.0\"",
        "aya-obj = \"=0.3.0\"",
    ] {
        assert!(manifest.contains(pin), "{pin}");
    }
}

/// What stands between backticks in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn each_test_that_security_names_exists() {
    let security = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let (_, proofs) = security.split_once("## What proves it").expect("a table");
    let (proofs, _) = proofs.split_once("\n## ").expect("an end");
    let files = ["tests", "firewall-agent", "firewall-common", "firewall-core"]
        .map(|part| sources(&root().join(part)));
    let texts = files.iter().flatten().map(|file| fs::read_to_string(file).expect("text"));
    let tests: String = texts.collect();
    let rows = proofs.lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    // A whole ring ends with colons.
    let names = cells.flat_map(|(_, cell)| quoted(cell)).filter(|name| !name.ends_with("::"));
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 100, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("fn {name}(")), "SECURITY.md names the test `{name}`");
    }
}

#[test]
fn each_place_of_the_architecture_is_there_and_each_file_is_in_one() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, table) = text.split_once("## Where is what").expect("a table");
    let (table, _) = table.split_once("\n## ").expect("an end");
    let (mut part, mut places) = (root(), BTreeSet::new());
    // The row of a part is followed by those of what is in it, if there are any.
    let mut parts: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let names = table.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next());
    for name in names.flat_map(quoted) {
        if root().join(name).is_dir() {
            part = root().join(name);
            parts.insert(part.clone(), 0);
        } else {
            let path = part.join(name.trim_end_matches('/'));
            assert!(path.exists(), "ARCHITECTURE.md names `{name}`: no {}", path.display());
            places.insert(path);
            *parts.entry(part.clone()).or_default() += 1;
        }
    }
    assert!(places.len() > 40, "{places:?}");
    places.extend(parts.into_iter().filter(|(_, count)| *count == 0).map(|(part, _)| part));
    each_source(|file, _| {
        let is_root =
            ["lib.rs", "main.rs", "mod.rs", "build.rs"].iter().any(|it| file.ends_with(it));
        let is_in_one = file.ancestors().any(|it| places.contains(it));
        assert!(is_root || is_in_one, "{} is in no row of ARCHITECTURE.md", file.display());
    });
}

/// CONTRIBUTING has one word for each thing, and names others that are not to be used for it.
#[test]
fn one_word_stands_for_one_thing() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("CONTRIBUTING.md");
    let (_, table) = text.split_once("## Words").expect("a table");
    let (table, _) = table.split_once("\n## ").expect("an end");
    let cells = table.lines().filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | "));
    // What has a gloss in parentheses is another thing's word as well.
    let words = cells.skip(1).flat_map(|(_, cell)| cell.split(", "));
    let words = words.filter(|it| it.chars().all(char::is_alphanumeric) && !it.is_empty());
    let words: Vec<String> = words.map(str::to_owned).collect();
    assert!(words.len() > 3, "{words:?}");
    each_source(|file, text| {
        let path = file.to_string_lossy();
        if path.contains("/tests/") || path.contains("/xtask/") {
            return;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let spoken = line.split(|it: char| !it.is_alphanumeric() && it != '"' && it != '-');
            for word in spoken {
                assert!(!words.iter().any(|it| it == word), "{path}:{number} says `{word}`");
            }
        }
    });
}
