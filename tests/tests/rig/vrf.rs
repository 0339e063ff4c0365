//! An uplink in a routing domain of its own (VRF), to which clients' packets are led by a rule.
//! Never has a vif in one: a vif that is a port of another link is refused.

use anyhow::Result;
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{INTERNET_V4, INTERNET_V6, UPLINK, UPLINK_V6};
use firewall_tests::traffic::probe::Outcome;

use super::world::*;

const DOMAIN: &str = "vrf0";
const TABLE: &str = "10";

/// Puts the uplink into a domain, with a way back to a client. `false` if the kernel knows none.
fn separate(netvm: &Namespace, vif: &str, clients: [&str; 2]) -> Result<bool> {
    if netvm.ip(&["link", "add", DOMAIN, "type", "vrf", "table", TABLE]).is_err() {
        return Ok(false);
    }
    netvm.ip(&["link", "set", DOMAIN, "up"])?;
    netvm.ip(&["link", "set", UPLINK, "master", DOMAIN])?;
    // The kernel took it away with the link's old domain.
    let address = format!("{UPLINK_V6}/64");
    netvm.ip(&["address", "replace", &address, "dev", UPLINK, "nodad"])?;
    let internet = [INTERNET_V4.to_string(), INTERNET_V6.to_string()];
    for ((family, client), internet) in ["-4", "-6"].into_iter().zip(clients).zip(&internet) {
        let default = ["default", "via", internet, "dev", UPLINK];
        netvm.ip(&[&[family, "route", "replace", "table", TABLE][..], &default].concat())?;
        netvm.ip(&[family, "route", "replace", "table", TABLE, client, "dev", vif])?;
        netvm.ip(&[family, "rule", "add", "iif", vif, "lookup", TABLE])?;
    }
    Ok(true)
}

#[test]
fn by_an_uplink_in_a_vrf_what_is_accepted_leaves_and_nothing_else() -> Result<()> {
    for mode in ["standalone", "qubes"] {
        let world = World::new("vrf")?;
        let clients = [world.v4.to_string(), world.v6.to_string()];
        let clients = clients.each_ref().map(String::as_str);
        if !separate(world.rig.netvm(), world.client.vif(), clients)? {
            firewall_tests::skip("an_uplink_in_a_vrf", "this kernel has none")?;
            return Ok(());
        }
        let agent = Agent::start(&world.rig, &["--mode", mode])?;
        agent.wait_for_vif(world.client.vif())?;
        if mode == "qubes" {
            // Nobody translates there.
            super::service::masquerade(&world.rig)?;
        }
        world.put(&agent, &[tcp_443(), ping()])?;
        use Outcome::Accepted;
        let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
        let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
        world.check(mode, v4, v6);
        world.put(&agent, &[])?;
        world.check(mode, ALL_PROHIBITED4, ALL_PROHIBITED6);
    }
    Ok(())
}
