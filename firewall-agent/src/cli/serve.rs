//! `prepare` and `run`, with the options that dom0 sets: one daemon after the other, as these change.
//! Never says what an option means.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use firewall_core::introductions::Introductions;
use firewall_core::options::{PREFIX, Said};
use tracing::warn;

use super::said::{Merged, merge};
use super::{Command, Prepare};
use crate::daemon::{self, End, Heard, Lasting};
use crate::edges::sources::qubesdb::{self, Ended, Own};

/// How long QubesDB may take to say what dom0 does, before it is done without.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `prepare`, whose command line is known to be good.
pub async fn prepare(given: &Prepare, line: &[OsString]) -> Result<()> {
    let own = read(given.qubesdb().as_deref()).await;
    let none = Said::new();
    let said = own.as_ref().and_then(|own| own.as_ref().ok()).map_or(&none, |own| &own.options);
    let Merged { command, heard } = merge(line, said, &none, |_| Ok(()))?;
    heard.problems.iter().for_each(|why| warn!(why, "an option of dom0 does not count"));
    let Command::Prepare(prepare) = command else {
        bail!("the command line is not that of `prepare`");
    };
    let Prepare { pins, root, .. } = &prepare;
    let uplinks = own.map(|own| own.map(|own| own.uplinks));
    daemon::prepare::prepare(prepare.gate(), uplinks, pins, root).await
}

/// Runs `run`, whose command line is known to be good. `socket` is QubesDB's, if there is one.
pub async fn run(line: &[OsString], socket: Option<PathBuf>) -> Result<()> {
    let mut lasting = Lasting::new()?;
    let own = read(socket.as_deref()).await.and_then(Result::ok);
    let mut said = own.map(|own| own.options).unwrap_or_default();
    // What a daemon has started with.
    let mut works = Said::new();
    loop {
        let (options, heard) = hear(line, &said, &works)?;
        let wanted = heard.good.clone();
        let mut refused = None;
        let started = match daemon::start(options, heard, &mut lasting).await {
            Err(why) if wanted != works => {
                let (options, heard) = hear(line, &works, &Said::new())?;
                let heard = without(wanted, heard, &why).with(&said);
                refused = Some(heard.clone());
                daemon::start(options, heard, &mut lasting).await?
            }
            started => {
                works = wanted;
                started?
            }
        };
        let again = |said: &Said| match hear(line, said, &works) {
            // It was tried.
            Ok((_, heard)) => match &refused {
                Some(refused) if refused.good == heard.good => refused.clone().with(said),
                _ => heard,
            },
            Err(error) => {
                Heard { good: works.clone(), problems: vec![error.to_string()], ..Heard::default() }
                    .with(said)
            }
        };
        match started.run(&mut lasting, again).await? {
            End::Asked => return Ok(()),
            End::Options(other) => said = other,
        }
    }
}

/// What a daemon is to run with, if dom0 says this and a daemon ran with what was said before.
fn hear(line: &[OsString], said: &Said, before: &Said) -> Result<(daemon::Options, Heard)> {
    let Merged { command, heard } =
        merge(line, said, before, |command| options(command).map(drop))?;
    Ok((options(command)?, heard))
}

impl Heard {
    /// The same options, and the qubes that dom0 introduces now.
    fn with(self, said: &Said) -> Self {
        Self { introductions: Introductions::of(said), ..self }
    }
}

/// How options are told that no daemon starts with.
fn without(good: Said, heard: Heard, why: &anyhow::Error) -> Heard {
    let keys: Vec<String> = good.keys().map(|name| format!("{PREFIX}{name}")).collect();
    let problem = format!(
        "{}: the agent does not start with that, and goes on with what it had before: {why:#}",
        keys.join(", ")
    );
    let problems = heard.problems.into_iter().chain([problem]).collect();
    Heard { good, problems, ..heard }
}

fn options(command: Command) -> Result<daemon::Options> {
    match command {
        Command::Run(run) => daemon::Options::try_from(run),
        _ => bail!("the command line is not that of `run`"),
    }
}

/// What dom0 says to the netvm now; `None` where there is no QubesDB.
async fn read(socket: Option<&Path>) -> Option<Result<Own, Ended>> {
    let own = qubesdb::own(socket?, PATIENCE).await;
    Some(own.inspect_err(|error| {
        warn!(%error, "{PREFIX}NAME cannot be read yet; options count when they are");
    }))
}
