//! How much memory the agent takes.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use firewall_core::told::status::State;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, write_rules};
use firewall_tests::rig::{ClientSpec, Rig};

use super::world::tcp_443;

const CLIENTS: u8 = 50;

#[test]
fn fifty_clients_take_little_memory() -> Result<()> {
    let rig = Rig::new("memory")?;
    let network = |index: u8| Some((IpAddr::V4(Ipv4Addr::new(198, 51, 100, index)), 32));
    let rules = (0..20).map(|index| Rule { network: network(index), ..tcp_443() });
    let rules = Ruleset { default_accept: false, rules: rules.collect() };
    let mut addresses = Vec::new();
    for number in 1..=CLIENTS {
        let spec = ClientSpec { v6: None, ..ClientSpec::numbered(number + 10) };
        for address in spec.addresses() {
            write_rules(rig.directory(), address, &rules.file())?;
            addresses.push(address);
        }
        rig.add_client(&spec)?;
    }
    let agent = Agent::start(&rig, &[])?;
    for address in addresses {
        agent.wait_for_state(address, State::Live)?;
    }
    let figures = ["VmRSS", "RssAnon", "RssFile", "RssShmem"];
    let [all, own, of_files, shared] = figures.map(|figure| agent.memory(figure));
    let (all, own) = (all?, own?);
    println!("{CLIENTS} clients: {all} KiB: {own} own, {} files, {} shared", of_files?, shared?);
    // The code of a debug build alone is larger than a whole release build is in memory.
    let most = if cfg!(debug_assertions) { 40 } else { 20 };
    assert!(all < most * 1024, "{all} KiB");
    assert!(own < 10 * 1024, "{own} KiB");
    Ok(())
}
