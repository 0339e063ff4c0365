//! The end of this firewall in a netvm: another one is to follow, and finds a netvm that
//! forwards nothing and has no program of ours.
//! Never opens anything: that is for whoever follows.

use std::path::Path;

use anyhow::{Context as _, Result};
use tracing::info;

use crate::edges::dataplane;
use crate::edges::gate;

/// Closes the gate first, then detaches all programs that are pinned in a directory; an error if
/// either cannot be done. Whoever follows finds the tables of today's firewall
/// under their names, and in them nothing but a closed chain to which it adds its rules.
pub async fn hand_over(pins: &Path) -> Result<()> {
    gate::close().await.context("cannot close the gate")?;
    dataplane::detach_all(pins).context("cannot detach the programs")?;
    info!("nothing is forwarded until another firewall has loaded its rules");
    Ok(())
}
