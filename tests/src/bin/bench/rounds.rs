//! How firewalls are measured beside each other: all are set up, then measured round after round.
//! Never knows what is measured.

use anyhow::Result;
use indicatif::ProgressBar;

use crate::firewalls::Firewall;

/// How often everything is measured, unless somebody chooses; and for a first look.
#[derive(clap::Args)]
pub struct Rounds<const USUAL: usize, const FEW: usize> {
    /// Rounds; each measures everything once, or both ways.
    #[arg(long, default_value_t = USUAL)]
    rounds: usize,
    /// Fewer rounds, and of what else there is a number of, for a first look.
    #[arg(long)]
    pub quick: bool,
}

impl<const USUAL: usize, const FEW: usize> Rounds<USUAL, FEW> {
    /// How many rounds.
    pub fn count(&self) -> usize {
        if self.quick { self.rounds.min(FEW) } else { self.rounds }
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
