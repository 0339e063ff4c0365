//! Sequences in files: those that failed once, and those that fail now.
//! Never plays one but to make it smaller.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::arena::Arena;
use super::outcome::Fault;
use super::sequence::{Sequence, Step};

/// How long a failure is made smaller.
const PATIENCE: Duration = Duration::from_secs(60);

/// All that are kept with the tests.
pub fn kept() -> Result<Vec<Sequence>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attack/kept");
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .context("no `kept`")?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path)?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    };
    paths.iter().filter(|path| path.extension().is_some_and(|it| it == "json")).map(read).collect()
}

/// Writes a sequence that failed to where it can be kept from; returns the path.
pub fn write(sequence: &Sequence) -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/attack");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{}.json", sequence.name.replace(' ', "-")));
    fs::write(&path, serde_json::to_string_pretty(sequence)? + "\n")?;
    Ok(path)
}

/// The smallest sequence found, each played in an arena of its own, that fails as this one
/// does. `None` if this one alone does not fail: then what came before it had a part in that.
pub fn smallest(sequence: &Sequence, label: &str) -> Result<Option<(Sequence, Vec<Fault>)>> {
    let fails = |sequence: &Sequence| -> Result<Option<Vec<Fault>>> {
        let faults = Arena::new(label)?.play(sequence)?;
        Ok((!faults.is_empty()).then_some(faults))
    };
    let Some(mut faults) = fails(sequence)? else { return Ok(None) };
    let mut smallest = sequence.clone();
    let start = Instant::now();
    let mut at = 0;
    while let Some(smaller) = without(&smallest, at)
        && start.elapsed() < PATIENCE
    {
        match fails(&smaller)? {
            Some(now) => (smallest, faults) = (smaller, now),
            None => at += 1,
        }
    }
    Ok(Some((smallest, faults)))
}

/// The sequence without one of its frames or events, counted from the first; `None` behind the
/// last.
fn without(sequence: &Sequence, mut at: usize) -> Option<Sequence> {
    let mut smaller = sequence.clone();
    for index in 0..smaller.steps.len() {
        let frames = match &mut smaller.steps[index] {
            Step::Send(frames) if frames.len() > 1 => frames,
            _ if at == 0 => {
                smaller.steps.remove(index);
                return Some(smaller);
            }
            _ => {
                at -= 1;
                continue;
            }
        };
        if at < frames.len() {
            frames.remove(at);
            return Some(smaller);
        }
        at -= frames.len();
    }
    None
}
