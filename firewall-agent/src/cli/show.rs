//! `status` and `show`: what is in force, as the agent tells it, or the kernel without it.
//! Never changes anything.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::ask::Ask;
use super::colour::Colours;
use super::who::{self, Who};
use super::{DEFAULT_RULES, EXIT_NOT_RUNNING, EXIT_PROBLEM, remains, text};
use crate::edges::control::Request;
use firewall_core::told::status::Status;
use firewall_core::told::totals::problems;

/// What to show.
#[derive(Debug, Args)]
pub struct Show {
    /// Only this client: its address, or the name of a qube that dom0 has introduced.
    pub client: Option<Who>,
    /// If no agent runs: where to look for the rules' texts.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_RULES)]
    pub rules: PathBuf,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// Runs `status`: prints whether all is well.
pub fn status(ask: &Ask) -> Result<ExitCode> {
    answer(ask, &Request::Status, None, text::summary)
}

/// Runs `show`: prints clients with their rules.
pub fn show(show: &Show) -> Result<ExitCode> {
    let Show { client, rules: _, ask } = show;
    let request = match client {
        Some(Who::Address(client)) => Request::Show { client: *client },
        // Only all of it has names.
        Some(Who::Name(_)) | None => Request::Status,
    };
    answer(ask, &request, Some(show), |status| match client {
        Some(Who::Name(name)) if status.clients.is_empty() => format!("{}\n", who::nobody(name)),
        Some(Who::Address(client)) if status.clients.is_empty() => format!(
            "{}.\n\
             A qube's address is in its settings; `firewall-agent show` lists all clients.\n",
            text::nobody(status, *client)
        ),
        _ => {
            let colours = Colours::of_stdout();
            let details = |client| text::details(client, &status.names, colours);
            status.clients.iter().map(details).collect::<Vec<_>>().join("\n")
        }
    })
}

/// Asks the agent; if none runs, the kernel.
fn answer(
    ask: &Ask,
    request: &Request,
    show: Option<&Show>,
    text: impl Fn(&Status) -> String,
) -> Result<ExitCode> {
    let who = show.and_then(|show| show.client.as_ref());
    let mut status: Status = match ask.agent(request)? {
        Ok(status) => status,
        Err(why) => {
            let rules = show.map_or(Path::new(DEFAULT_RULES), |show| &show.rules);
            let client = match who {
                Some(Who::Name(name)) => {
                    let nobody = who::unknown_without_agent(name);
                    return ask.not_running(&format!("{why}; {nobody}"));
                }
                Some(Who::Address(client)) => Some(*client),
                None => None,
            };
            let remains = remains::remains(why, &ask.pins, rules, client)?;
            ask.print(&remains, || remains::text(&remains))?;
            let code = if remains.is_closed() { EXIT_NOT_RUNNING } else { EXIT_PROBLEM };
            return Ok(ExitCode::from(code));
        }
    };
    if let Some(who) = who {
        status.clients.retain(|client| who.is(client));
    }
    ask.print(&status, || text(&status))?;
    Ok(if problems(&status) == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_PROBLEM) })
}
