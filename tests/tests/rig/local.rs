//! What the kernel takes for its own beside its addresses, and so delivers and never forwards.

use std::net::IpAddr;

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_core::told::status::Status;
use firewall_tests::packets::{self, TCP, UDP};
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK_ANYCAST, UPLINK_BROADCAST};
use firewall_tests::traffic::frames;

use super::scene::*;

#[test]
fn broadcast_and_anycast_addresses_of_networks_are_the_netvms_own() -> Result<()> {
    let scene = Scene::new("locals", &[])?;
    let places: [IpAddr; 3] = [UPLINK_BROADCAST.into(), UPLINK_ANYCAST.into(), "fe80::".parse()?];
    for to in places {
        let from = scene.ends(to.into()).from;
        let send = |protocol, payload: &[u8]| {
            let packet = packet(from, to, protocol, payload);
            let client = scene.world.client.namespace();
            frames::send_raw(client, CLIENT_INTERFACE, &frame(&packet))
        };
        let before = scene.agent.status()?;
        let local = packets_of(&before, Some(from), Reason::Local);
        let malformed = packets_of(&before, None, Reason::Malformed);
        send(UDP, &packets::datagram(40000, 7777, b"hello"))?;
        scene.agent.wait_for(&format!("{to} is local"), |status| {
            packets_of(status, Some(from), Reason::Local) > local
        })?;
        // Nobody answers TCP to many.
        send(TCP, &packets::segment(40000, 7777, b"hello"))?;
        scene.agent.wait_for(&format!("TCP to {to} is dropped"), |status| {
            packets_of(status, None, Reason::Malformed) > malformed
        })?;
        let denied = |status: &Status| {
            let client = status.clients.iter().find(|it| it.address == from);
            client.map(|it| it.default_counter.packets)
        };
        assert_eq!(denied(&scene.agent.status()?), denied(&before), "{to}: judged by rules");
    }
    Ok(())
}

/// What was counted for a reason, of a client or of packets without one.
fn packets_of(status: &Status, client: Option<IpAddr>, reason: Reason) -> u64 {
    let counters = match client {
        None => Some(&status.strays),
        Some(_) => {
            let client = status.clients.iter().find(|it| Some(it.address) == client);
            client.map(|it| &it.counters)
        }
    };
    let counter = counters.and_then(|it| it.get(reason.name()));
    counter.map_or(0, |it| it.packets)
}
