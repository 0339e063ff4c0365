//! What waits in the netvm, for the address of a neighbour, while the list of uplinks changes.
//! Never changes the rules of a client.

use anyhow::{Context as _, Result, ensure};
use firewall_core::uplinks::KEY;
use firewall_tests::packets::{self, UDP};
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK};
use firewall_tests::traffic::frames;

use super::scene::{frame, packet};
use super::tunnel::{CANARY, TUNNEL, Tunnel};
use super::world::*;

#[test]
fn what_waits_leaves_by_no_link_that_the_new_list_does_not_name() -> Result<()> {
    const HOP: &str = "192.0.2.77";
    for is_listed in [false, true] {
        let mut tunnel = Tunnel::new("waits")?;
        let db = tunnel.qubesdb()?;
        let agent = tunnel.world.start()?;
        tunnel.world.check("at first", ACCEPTED, ACCEPTED);
        let netvm = tunnel.netvm().clone();
        // Nobody has this address, and the kernel goes on asking who has.
        netvm.sysctl(&format!("net/ipv4/neigh/{UPLINK}/mcast_solicit"), "100000")?;
        netvm.ip(&["route", "replace", "198.51.100.0/24", "via", HOP, "dev", UPLINK])?;
        tunnel.strays()?;
        let before = agent.client(tunnel.world.v4)?.rules[0].counter.packets;
        let datagram = packets::datagram(4000, 9, CANARY);
        let sent = frame(&packet(tunnel.world.v4, SERVER4, UDP, &datagram));
        frames::send_raw(tunnel.world.client.namespace(), CLIENT_INTERFACE, &sent)?;
        let is_judged = || {
            let client = agent.client(tunnel.world.v4);
            client.is_ok_and(|it| it.rules[0].counter.packets > before)
        };
        agent.wait_for("the packet to be judged", |_| is_judged())?;
        if is_listed {
            db.write(KEY, TUNNEL.as_bytes());
            agent.wait_for("the list", |status| status.agent.uplinks.is_some())?;
            agent.wait_for_settled()?;
        }
        // Now somebody has it.
        let link = tunnel.world.rig.internet().ip(&["-o", "link", "show", "dev", "eth0"])?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        let address = words.nth(1).context("no hardware address")?.to_owned();
        netvm.ip(&["neighbour", "replace", HOP, "lladdr", &address, "dev", UPLINK])?;
        let strays = tunnel.strays()?;
        let has_left = strays.iter().any(|it| it.windows(CANARY.len()).any(|it| it == CANARY));
        ensure!(has_left != is_listed, "listed: {is_listed}, left: {has_left}");
    }
    Ok(())
}
