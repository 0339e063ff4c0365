//! Random attacks: a few in every run, for an hour with `--soak`.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use firewall_tests::attack::arena::Arena;
use firewall_tests::attack::generator::Generator;
use firewall_tests::attack::keep;
use firewall_tests::attack::outcome::Score;
use firewall_tests::attack::sequence::Sequence;
use firewall_tests::{rounds, seed};

use super::play::describe;

/// Sequences of a short run.
const SEQUENCES: usize = 30;
/// How long a soak lasts.
const SOAK: Duration = Duration::from_secs(3600);
/// How often it says how far it is.
const MINUTE: Duration = Duration::from_secs(60);
/// It ends when so many sequences have found something.
const ENOUGH: usize = 3;

#[test]
fn nothing_that_a_closed_client_sends_gets_out_or_harms_anybody() -> Result<()> {
    let (seed, start) = (seed(), Instant::now());
    let most = rounds(SEQUENCES, usize::MAX);
    let mut generator = Generator::new(seed);
    let mut arena = Arena::new("attack_random")?;
    let (mut earlier, mut found, mut told) = (Score::default(), Vec::new(), start);
    for _ in 0..most {
        if start.elapsed() > SOAK || found.len() == ENOUGH {
            break;
        }
        let sequence = generator.sequence();
        let faults = arena.play(&sequence)?;
        if !faults.is_empty() {
            earlier = earlier + arena.score();
            found.push(describe(&sequence.name, &faults));
            drop(arena);
            found.push(small(&sequence)?);
            arena = Arena::new("attack_random")?;
        }
        if told.elapsed() > MINUTE {
            told = Instant::now();
            say(start, &(earlier + arena.score()))?;
        }
    }
    let score = earlier + arena.score();
    say(start, &score)?;
    if !found.is_empty() {
        bail!("seed {seed}: {score}\n{}", found.concat());
    }
    Ok(())
}

/// The smallest sequence that finds what this one found, written to a file.
fn small(sequence: &Sequence) -> Result<String> {
    let Some((smallest, faults)) = keep::smallest(sequence, "attack_small")? else {
        let path = keep::write(sequence)?.display().to_string();
        return Ok(format!("  alone it finds nothing; it is in {path}\n"));
    };
    let path = keep::write(&smallest)?.display().to_string();
    let found = describe("the smallest that finds something", &faults);
    Ok(format!("{found}    it is in {path}; in tests/tests/attack/kept it is played each time\n"))
}

/// Past libtest, which keeps what a test prints until its end.
fn say(start: Instant, score: &Score) -> Result<()> {
    let line = format!("attack: {} s: {score}\n", start.elapsed().as_secs());
    Ok(std::io::stdout().lock().write_all(line.as_bytes())?)
}
