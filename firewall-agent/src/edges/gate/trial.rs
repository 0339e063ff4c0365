//! What nftables can do here, found out by having `nft` check texts.
//! Never loads anything.

use super::lacking;
use super::nft::{self, NftError};
use super::rules::{FAMILIES, gate, nat};
use super::table::Table;

/// What `nft --version` prints.
pub async fn version() -> Result<String, NftError> {
    nft::version().await
}

/// The modules that the kernel lacks of those that the gate and NAT need.
pub async fn lacking_modules() -> Vec<&'static str> {
    let gates = FAMILIES.map(|family| gate(family, "vif*", None));
    let tables = gates.into_iter().chain([nat("vif*", &[])]);
    let text: String = tables.map(|table: Table| table.text()).collect();
    lacking::modules(&text).await
}

/// Whether there can be a flowtable.
pub async fn has_flowtable() -> bool {
    let text = "table ip firewall-agent { flowtable probe { hook ingress priority 0; devices = { lo }; }; }";
    nft::is_loadable(text).await
}
