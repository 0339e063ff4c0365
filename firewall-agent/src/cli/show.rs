//! `status` and `show`: what is in force, as the agent tells it.
//! Never changes anything.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::ask::Ask;
use super::{EXIT_NOT_RUNNING, EXIT_PROBLEM, text};
use crate::control::Request;
use crate::status::Status;
use crate::totals::problems;

/// What to show.
#[derive(Debug, Args)]
pub struct Show {
    /// Only this client.
    pub client: Option<IpAddr>,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// `status`.
pub fn status(ask: &Ask) -> Result<ExitCode> {
    answer(ask, &Request::Status, text::summary)
}

/// `show`.
pub fn show(Show { client, ask }: &Show) -> Result<ExitCode> {
    let request = client.map_or(Request::Status, |client| Request::Show { client });
    answer(ask, &request, |status| match client {
        Some(client) if status.clients.is_empty() => {
            format!("{client} is no client: no vif leads to it, and it has no rules\n")
        }
        _ => {
            let details = |client| text::details(client, &status.names);
            status.clients.iter().map(details).collect::<Vec<_>>().join("\n")
        }
    })
}

fn answer(ask: &Ask, request: &Request, text: impl Fn(&Status) -> String) -> Result<ExitCode> {
    let status: Status = match ask.agent(request)? {
        Ok(status) => status,
        Err(why) => {
            eprintln!("{why}");
            let count = pinned(&ask.pins).unwrap_or_default();
            if count > 0 {
                eprintln!(
                    "{} with the policies that an earlier agent left; nothing else is forwarded",
                    if count == 1 {
                        "1 vif goes on".to_owned()
                    } else {
                        format!("{count} vifs go on")
                    }
                );
            }
            return Ok(ExitCode::from(EXIT_NOT_RUNNING));
        }
    };
    ask.print(&status, || text(&status))?;
    Ok(if problems(&status) == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM) })
}

/// How many vifs an earlier agent left its program pinned for, if that can be seen.
fn pinned(pins: &Path) -> Option<usize> {
    let versions = std::fs::read_dir(pins).ok()?.flatten();
    let links = versions.filter_map(|version| std::fs::read_dir(version.path()).ok());
    let of_vif = |name: std::ffi::OsString| name.to_string_lossy().starts_with("from_client-");
    Some(links.flatten().flatten().filter(|link| of_vif(link.file_name())).count())
}
