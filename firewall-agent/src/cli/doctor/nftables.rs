//! What nftables can do here, and what of the gate and of others is in force.
//! Never loads a rule: `nft` is told to check only.

use std::path::Path;

use firewall_core::told::examination::Check;

use super::{bad, good, odd};
use crate::edges::gate::{self, trial};
use firewall_core::tor;

/// What is looked at of nftables.
pub(super) async fn checks(root: &Path) -> Vec<Check> {
    vec![version().await, modules().await, flowtable().await, in_force(root).await, others().await]
}

async fn version() -> Check {
    match trial::version().await {
        Ok(version) => good("nft", version),
        Err(error) => bad("nft", error.to_string(), "without nftables there is no gate"),
    }
}

async fn modules() -> Check {
    let lacking = trial::lacking_modules().await;
    match lacking.is_empty() {
        true => good("modules of nftables", "all that the gate and NAT need"),
        false => bad(
            "modules of nftables",
            format!("the kernel has no {}", lacking.join(", ")),
            "load what is missing with `modprobe`; meanwhile nothing is forwarded from clients (nft_masq and \
             nft_nat are needed in mode standalone only)",
        ),
    }
}

async fn flowtable() -> Check {
    match trial::has_flowtable().await {
        true => good("flowtable", "there; not used"),
        false => good("flowtable", "none; not used"),
    }
}

async fn in_force(root: &Path) -> Check {
    let subject = "gate";
    match gate::open_families(root.join(tor::MARKER).exists()).await {
        Ok(open) if open.is_empty() => {
            good(subject, "closed: nothing is forwarded without a permit")
        }
        Ok(open) => bad(
            subject,
            format!("OPEN for {}", open.join(", ")),
            "nothing of this firewall stops what clients send; is its service running?",
        ),
        Err(error) => {
            bad(subject, error.to_string(), "whether anything stops what clients send is NOT KNOWN")
        }
    }
}

async fn others() -> Check {
    let subject = "chains of others";
    match gate::between().await {
        Ok(chains) if chains.is_empty() => good(subject, "none on the way of clients' packets"),
        Ok(chains) => {
            let chains = chains.iter().map(ToString::to_string);
            good(subject, format!("packets come by {}", chains.collect::<Vec<_>>().join("; ")))
        }
        Err(error) => odd(subject, error.to_string(), "nobody knows what else packets come by"),
    }
}
