//! Plays sequences one after the other, and says which of them found something.
//! Never goes on in a place that something was wrong with.

use anyhow::Result;
use firewall_tests::attack::arena::Arena;
use firewall_tests::attack::outcome::Fault;
use firewall_tests::attack::sequence::Sequence;

/// No more than so many faults of one sequence are printed.
const MOST_PRINTED: usize = 3;

/// Asserts that none of these finds anything. Each that does is followed by a new place, so
/// that the others are not blamed for it.
#[track_caller]
pub fn check(label: &str, sequences: &[Sequence]) {
    let found = try_all(label, sequences).expect("a working place");
    let text: String = found.iter().map(|(name, faults)| describe(name, faults)).collect();
    assert!(found.is_empty(), "{} of {} found:\n{text}", found.len(), sequences.len());
}

fn try_all(label: &str, sequences: &[Sequence]) -> Result<Vec<(String, Vec<Fault>)>> {
    let mut arena = Arena::new(label)?;
    let mut found = Vec::new();
    for sequence in sequences {
        let faults = arena.play(sequence)?;
        if !faults.is_empty() {
            found.push((sequence.name.clone(), faults));
            drop(arena);
            arena = Arena::new(label)?;
        }
    }
    Ok(found)
}

/// What a sequence found, for a person.
pub fn describe(name: &str, faults: &[Fault]) -> String {
    let lines = faults.iter().take(MOST_PRINTED).map(|fault| format!("    {fault}\n"));
    let more = faults.len().saturating_sub(MOST_PRINTED);
    let more = if more > 0 { format!("    and {more} more\n") } else { String::new() };
    format!("  {name}:\n{}{more}", lines.collect::<String>())
}
