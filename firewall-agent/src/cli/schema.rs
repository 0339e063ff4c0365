//! `schema`: the form of whatever commands print with --json.
//! Never asks anybody: the types know it.

use std::process::ExitCode;

use anyhow::Result;

use super::ask::print;
use firewall_core::told;

/// Runs `schema`: prints the form of all JSON, as a JSON schema.
pub fn schema() -> Result<ExitCode> {
    print(&(serde_json::to_string_pretty(&told::schema::schema())? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
