//! How a running agent is asked, and how answers are printed.
//! Never says what an answer means.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{DEFAULT_PINS, DEFAULT_SOCKET, EXIT_NOT_RUNNING};
use crate::edges::control::{self, ControlError, Request};
use firewall_core::told::failure::ErrorStatus;

/// How to ask a running agent.
#[derive(Debug, Args)]
pub struct Ask {
    /// Control socket of the agent.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Print JSON instead of text; docs/json.md describes it.
    #[arg(long)]
    pub json: bool,
    /// Where links are pinned; tells what goes on when no agent runs.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_PINS)]
    pub pins: PathBuf,
}

impl Ask {
    /// The agent's answer, or inside the reason why no agent runs. An error if the answer is not
    /// understood, or the socket cannot be used.
    pub fn agent<T: DeserializeOwned>(&self, request: &Request) -> Result<Result<T, String>> {
        match control::ask(&self.socket, request) {
            Ok(answer) => Ok(Ok(answer)),
            Err(error @ ControlError::NotRunning(_)) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that no agent runs, and why that is known; returns the exit code for that.
    pub fn not_running(&self, why: &str) -> Result<ExitCode> {
        eprintln!("{why}");
        if self.json {
            print_error(why)?;
        }
        Ok(ExitCode::from(EXIT_NOT_RUNNING))
    }

    /// Prints an answer, as JSON or as text for people, as was asked for.
    pub fn print(&self, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(answer)? + "\n" } else { text() };
        print(&text)
    }
}

/// Prints, as JSON, why there is no answer.
pub fn print_error(why: &str) -> Result<()> {
    print(&(serde_json::to_string(&ErrorStatus::new(why))? + "\n"))
}

/// Prints to standard output. Whoever reads only the beginning is no error (`| head`).
pub fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
