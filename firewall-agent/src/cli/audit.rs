//! `audit`: lets what a client's rules deny pass for a while.
//! Never begins an audit without a length.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::SignedDuration;

use super::ask::Ask;
use crate::edges::control::Request;
use firewall_core::told::status::AuditStatus;
use firewall_core::world::audits::{LONGEST, NoAudit};

/// Whom to audit.
#[derive(Debug, Args)]
#[group(id = "how", required = true, multiple = false, args = ["length", "off"])]
pub struct Audit {
    /// The client's address.
    pub client: IpAddr,
    /// How long, like 10m or 1h30m; at most 24h.
    #[arg(long = "for", value_name = "LENGTH", value_parser = length)]
    pub length: Option<Duration>,
    /// End it now.
    #[arg(long)]
    pub off: bool,
    /// How to ask.
    #[command(flatten)]
    pub ask: Ask,
}

/// Runs `audit`: begins or ends an audit, and prints what came of that.
pub fn audit(Audit { client, length, off: _, ask }: &Audit) -> Result<ExitCode> {
    let seconds = length.unwrap_or_default().as_secs();
    let request = Request::Audit { client: *client, seconds };
    let answer: Result<AuditStatus, NoAudit> = match ask.agent(&request)? {
        Ok(answer) => answer,
        Err(why) => return ask.not_running(&why),
    };
    let status = answer?;
    ask.print(&status, || match status.audit_seconds_left {
        Some(seconds) => format!(
            "AUDIT of {client} is ON for {seconds} s: what its rules deny passes and is counted.\n\
             See what: firewall-agent monitor --client {client}\n\
             End it:   firewall-agent audit {client} --off\n"
        ),
        None => format!("{client} is not audited: what its rules deny is rejected\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn length(text: &str) -> Result<Duration, String> {
    let parsed: Result<SignedDuration, _> = text.parse();
    let length = parsed.ok().and_then(|length| Duration::try_from(length).ok());
    let length = length.filter(|length| length.as_secs() > 0 && *length <= LONGEST);
    length.ok_or_else(|| "a length like 10m is wanted, from 1s to 24h".to_owned())
}
