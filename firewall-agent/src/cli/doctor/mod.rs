//! `doctor`: what this machine has of what the firewall needs, what was tried, and what that means; for a
//! person in a new netvm, and for reports of faults.
//! Never changes anything, and never tells a secret: addresses only if they are not to be masked.

mod agent;
mod kernel;
mod mask;
mod nftables;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use firewall_core::told::SCHEMA;
use firewall_core::told::examination::{Check, Examination, Health};
use nix::unistd::geteuid;

use self::mask::Mask;
use super::EXIT_PROBLEM;
use super::ask::Ask;
use super::colour::{BAD, Colours};

/// What to look at.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Write `address-1`, `address-2` and so on for addresses, for a report that strangers read. Names of
    /// qubes and of hosts are never told.
    #[arg(long)]
    pub mask: bool,
    /// Where Qubes' own files are looked for: its marker, QubesDB.
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    pub root: PathBuf,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// Runs `doctor`.
pub async fn doctor(doctor: &Doctor) -> Result<ExitCode> {
    ensure!(geteuid().is_root(), "only root may look at all of it: run it with sudo");
    let mut checks = kernel::checks(&doctor.ask.pins);
    checks.extend(nftables::checks(&doctor.root).await);
    checks.extend(agent::checks(doctor).await);
    if doctor.mask {
        let mut mask = Mask::default();
        for check in &mut checks {
            check.found = mask.text(&check.found);
            check.meaning = check.meaning.as_deref().map(|meaning| mask.text(meaning));
        }
    }
    let problems = checks.iter().filter(|check| check.health == Health::Bad).count();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let examination =
        Examination { schema: SCHEMA, version, masked: doctor.mask, problems, checks };
    doctor.ask.print(&examination, || text(&examination, Colours::of_stdout()))?;
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM) })
}

/// An examination as people read it.
fn text(examination: &Examination, colours: Colours) -> String {
    let Examination { version, problems, checks, .. } = examination;
    let mut text = format!("firewall-agent {version}\n");
    let widest = checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
    for Check { subject, health, found, meaning } in checks {
        let word = format!("{:<7}", health.told());
        let word = if *health == Health::Bad { colours.paint(BAD, &word) } else { word };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word}  {subject:<widest$}  {found}");
        if let Some(meaning) = meaning {
            let _ = writeln!(text, "{:7}  {:widest$}    {meaning}", "", "");
        }
    }
    let _ = match problems {
        0 => writeln!(text, "no problem found"),
        1 => writeln!(text, "1 problem"),
        more => writeln!(text, "{more} problems"),
    };
    text
}

/// Something that is as it should be.
fn good(subject: &str, found: impl Into<String>) -> Check {
    check(subject, Health::Good, found, None)
}

/// Something that is worth a note.
fn odd(subject: &str, found: impl Into<String>, meaning: &str) -> Check {
    check(subject, Health::Odd, found, Some(meaning))
}

/// Something that does not work.
fn bad(subject: &str, found: impl Into<String>, meaning: &str) -> Check {
    check(subject, Health::Bad, found, Some(meaning))
}

fn check(subject: &str, health: Health, found: impl Into<String>, meaning: Option<&str>) -> Check {
    // A text of several lines, of `nft` say, is one here.
    let found = found.into().split_whitespace().collect::<Vec<_>>().join(" ");
    Check { subject: subject.to_owned(), health, found, meaning: meaning.map(str::to_owned) }
}
