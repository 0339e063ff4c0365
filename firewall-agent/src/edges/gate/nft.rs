//! The program `nft`: it loads text, and lists tables as JSON.
//! Never knows what is in the text or the tables.

use std::io;
use std::process::Stdio;

use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// `nft` did not do what it was asked for.
#[derive(Debug, Error)]
pub enum NftError {
    /// There is no `nft`, or no talking to `nft`.
    #[error("cannot run `nft`: {0}; is nftables installed?")]
    Start(#[from] io::Error),
    /// `nft` refused; what it says, without blanks around.
    #[error("`nft` says: {0}")]
    Refused(String),
    /// `nft` did nothing, and did not say so.
    #[error("`nft` says that it loaded the rules, and they are not there")]
    Idle,
}

/// Loads a text in one transaction: as a whole or not at all.
pub(super) async fn load(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).await
}

/// Whether a text could be loaded; `false` as well if `nft` cannot be run.
pub(super) async fn is_loadable(text: &str) -> bool {
    run(&["-c", "-f", "-"], text).await.is_ok()
}

/// What `nft` says of its version.
pub(super) async fn version() -> Result<String, NftError> {
    let version = listed(&["--version"]).await?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&version).trim().to_owned())
}

/// All tables, without what is in them, as libnftables-json(5) describes.
pub(super) async fn list_tables() -> Result<Vec<u8>, NftError> {
    Ok(listed(&["-j", "list", "tables"]).await?.unwrap_or_default())
}

/// The chains of all tables, as libnftables-json(5) describes.
pub(super) async fn list_chains() -> Result<Vec<u8>, NftError> {
    Ok(listed(&["-j", "list", "chains"]).await?.unwrap_or_default())
}

/// A table as it is in force, as libnftables-json(5) describes, without the elements of sets that have
/// a name; `None` if there is none.
pub(super) async fn list(family: &str, name: &str) -> Result<Option<Vec<u8>>, NftError> {
    listed(&["-j", "-t", "list", "table", family, name]).await
}

/// A table in the words in which rules are written, with the number of each, without what changes by
/// itself, like counters, and without the elements of sets that have a name; `None` if there is none.
pub(super) async fn text(family: &str, name: &str) -> Result<Option<String>, NftError> {
    let text = listed(&["-s", "-a", "-t", "list", "table", family, name]).await?;
    Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
}

async fn listed(arguments: &[&str]) -> Result<Option<Vec<u8>>, NftError> {
    // Messages are to be those of everywhere.
    let output = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    let says = String::from_utf8_lossy(&output.stderr);
    match says.contains("No such file or directory") {
        true => Ok(None),
        false => Err(NftError::Refused(says.trim().to_owned())),
    }
}

async fn run(arguments: &[&str], text: &str) -> Result<(), NftError> {
    let mut nft = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let written = match nft.stdin.take() {
        Some(mut stdin) => stdin.write_all(text.as_bytes()).await,
        None => Ok(()),
    };
    let output = nft.wait_with_output().await?;
    if output.status.success() {
        return Ok(written?);
    }
    // Why it did not read all, it says itself.
    Err(NftError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
