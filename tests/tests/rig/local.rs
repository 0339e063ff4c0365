//! What the kernel takes for its own beside its addresses, and so delivers and never forwards.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use firewall_common::verdict::Reason;
use firewall_tests::frames;
use firewall_tests::packets::{self, UDP};
use firewall_tests::rig::CLIENT_INTERFACE;

use super::scene::*;

#[test]
fn broadcast_and_anycast_addresses_of_networks_are_the_netvms_own() -> Result<()> {
    let scene = Scene::new("locals", &[])?;
    // The uplink's networks.
    for (family, to) in [(0, "192.0.2.255"), (1, "2001:db8:ffff::"), (1, "fe80::")] {
        let ends = scene.families()[family];
        let to: IpAddr = to.parse()?;
        let told = || -> Result<(u64, u64)> {
            let status = scene.agent.client(ends.from)?;
            let local = status.counters.get(Reason::Local.name()).map_or(0, |it| it.packets);
            Ok((local, status.default_counter.packets))
        };
        let (local, denied) = told()?;
        let packet = packet(ends.from, to, UDP, &packets::datagram(40000, 7777, b"hello"));
        let client = scene.world.client.namespace();
        frames::send_raw(client, CLIENT_INTERFACE, &frame(&packet))?;
        scene.agent.wait_for(&format!("{to} is local"), |status| {
            let clients = status.clients.iter().filter(|it| it.address == ends.from);
            let mut counters = clients.filter_map(|it| it.counters.get(Reason::Local.name()));
            counters.any(|it| it.packets > local)
        })?;
        let (_, now) = told().context("no status")?;
        assert_eq!(now, denied, "{to}: judged by rules");
    }
    Ok(())
}
