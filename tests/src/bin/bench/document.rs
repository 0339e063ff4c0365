//! All measurements, one after the other, into docs/performance.md and the files beside it.
//! Never writes outside of the marked places of the document.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::machine::machine;
use crate::show::Report;
use crate::{Arguments, plots};

/// The commands, in the order in which they are run.
const ALL: [&str; 7] = ["prog", "net", "tcp", "flood", "update", "handled", "scale"];

/// Measures everything, and writes it down.
pub fn everything(quick: bool) -> Result<()> {
    for (number, name) in ALL.iter().enumerate() {
        eprintln!("{name}: {} of {}", number + 1, ALL.len());
        let words = ["bench", name].into_iter().chain(quick.then_some("--quick"));
        let command = Arguments::parse_from(words).command.context("no command")?;
        let report = command.measure().context(*name)?;
        println!("{}\n", report.text);
        write(name, &report)?;
    }
    Ok(())
}

/// Writes one kind of measurement down.
pub fn write(name: &str, report: &Report) -> Result<()> {
    let Report { text, json } = report;
    let lines = text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    put(name, &format!("```text\n{lines}\n```"))?;
    put("machine", &machine())?;
    let directory = docs().join("performance");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("{name}.json")), format!("{json:#}\n"))?;
    plots::draw(name, json, &directory)
}

/// Replaces what is between two marks of the document.
fn put(name: &str, text: &str) -> Result<()> {
    let path = docs().join("performance.md");
    let before = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let marked = before.split_once(&begin).and_then(|(head, rest)| {
        let (_, tail) = rest.split_once(&end)?;
        Some(format!("{head}{begin}\n{text}\n{end}{tail}"))
    });
    fs::write(&path, marked.with_context(|| format!("no `{begin}` in {}", path.display()))?)?;
    Ok(())
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}
