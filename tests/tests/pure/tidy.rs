//! The rules of the house that a machine can check.

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
        assert!(lines <= 500, "{}: {lines} lines", file.display());
    });
}

#[test]
fn what_is_pure_mentions_nothing_that_acts() {
    let acts = ["tokio", "aya", "nix", "notify", "rtnetlink", "std::fs", "std::process", "Instant"];
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
fn each_place_that_the_architecture_names_is_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, table) = text.split_once("## Where is what").expect("a table");
    let (table, _) = table.split_once("\n## ").expect("an end");
    let (mut part, mut count) = (root(), 0);
    let places = table.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next());
    for place in places.flat_map(quoted) {
        count += 1;
        if root().join(place).is_dir() {
            part = root().join(place);
        } else {
            let path = part.join("src").join(place);
            assert!(path.exists(), "ARCHITECTURE.md names `{place}`: no {}", path.display());
        }
    }
    assert!(count > 50, "{count}");
}
