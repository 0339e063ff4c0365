//! What `cargo xtask xen` runs inside of Xen: in dom0 the checks, in a guest whatever these ask for.
//! Never runs on the machine itself.

mod checks;
mod console;
mod domain;
mod guest;
mod netvm;
mod order;
mod outside;
mod pattern;
mod seen;
mod stage;
mod wait;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::checks::CHECKS;
use self::domain::Boot;
use self::order::{Answer, Order};
use self::stage::Stage;

/// Checks of the firewall on vifs of Xen; `cargo xtask xen` runs them.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say which checks there are.
    List,
    /// Be a guest: obey the console.
    Guest,
    /// Be dom0: start guests, and run checks.
    Dom0 {
        #[command(flatten)]
        boot: Boot,
        /// Only checks whose name contains one of these.
        filters: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::List => {
            CHECKS.iter().for_each(|check| println!("{:<10} {}", check.name, check.about));
            Ok(())
        }
        Command::Guest => guest::obey(),
        Command::Dom0 { boot, filters } => dom0(&boot, &filters),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("CHECK FAILED stage | everything is there | {}", line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// Runs the checks, one after the other; each says a line.
fn dom0(boot: &Boot, filters: &[String]) -> Result<()> {
    let mut stage = Stage::new(boot)?;
    let is_wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|it| name.contains(it.as_str()));
    for check in CHECKS.iter().filter(|check| is_wanted(check.name)) {
        let begin = Instant::now();
        println!("checking {}", check.name);
        let (outcome, seen) = match (check.run)(&mut stage) {
            Ok(seen) => ("ok", seen),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        println!("CHECK {outcome} {} | {} | {}", check.name, check.about, line(&seen));
        if outcome != "ok" {
            stage.netvm.last_words().iter().for_each(|line| println!("netvm| {line}"));
            if let Ok(Answer::Text(text)) = stage.work.ask(Order::Neighbours) {
                text.lines().for_each(|line| println!("work| {line}"));
            }
        }
        println!("in {} seconds", begin.elapsed().as_secs());
    }
    Ok(())
}

/// A text in one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}
