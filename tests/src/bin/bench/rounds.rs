//! How firewalls are measured beside each other: all are set up, then measured round after round.
//! Never knows what is measured.

use anyhow::Result;
use indicatif::ProgressBar;

use crate::firewalls::Firewall;

/// How often everything is measured, unless somebody chooses; and for a first look.
#[derive(clap::Args)]
pub struct Rounds<const USUAL: usize, const FEW: usize> {
    /// Rounds; each measures everything once, or both ways. Without it, as many as suit what is
    /// measured.
    // No default of clap's: it keeps one for all kinds together, whatever their numbers are.
    #[arg(long)]
    rounds: Option<usize>,
    /// Fewer rounds, and of what else there is a number of, for a first look.
    #[arg(long)]
    pub quick: bool,
}

impl<const USUAL: usize, const FEW: usize> Rounds<USUAL, FEW> {
    /// How many rounds.
    pub fn count(&self) -> usize {
        let count = self.rounds.unwrap_or(USUAL);
        if self.quick { count.min(FEW) } else { count }
    }

    /// Goes through all rounds.
    pub fn each(&self, bar: &ProgressBar, mut round: impl FnMut() -> Result<()>) -> Result<()> {
        let count = self.count();
        for number in 1..=count {
            bar.set_message(format!("round {number} of {count}"));
            round()?;
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// Sets firewalls up, each under a label of its own that begins like this; some cannot be had on every
/// machine.
pub fn set_up<T>(
    firewalls: &[Firewall],
    label: &str,
    bar: &ProgressBar,
    mut make: impl FnMut(Firewall, &str) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    let mut made = Vec::new();
    for firewall in firewalls {
        bar.set_message(format!("setting up {firewall}"));
        made.extend(make(*firewall, &format!("{label}{}", made.len()))?);
        bar.inc(1);
    }
    Ok(made)
}

/// Has another one begin, so that nobody always comes after the same.
pub fn turn<T>(places: &mut [T]) {
    if !places.is_empty() {
        places.rotate_left(1);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Rounds;

    #[derive(Parser)]
    struct Line<const USUAL: usize, const FEW: usize> {
        #[command(flatten)]
        rounds: Rounds<USUAL, FEW>,
    }

    #[test]
    fn each_kind_has_rounds_of_its_own() {
        fn check<const USUAL: usize, const FEW: usize>(words: &[&str], expected: usize) {
            let line = ["bench"].into_iter().chain(words.iter().copied());
            assert_eq!(Line::<USUAL, FEW>::parse_from(line).rounds.count(), expected, "{words:?}");
        }
        check::<40, 7>(&[], 40);
        check::<25, 5>(&[], 25);
        check::<25, 5>(&["--quick"], 5);
        check::<40, 7>(&["--quick"], 7);
        check::<40, 7>(&["--quick", "--rounds", "3"], 3);
        check::<40, 7>(&["--rounds", "100"], 100);
    }
}
