//! What waits in the netvm, for the address of a neighbour, while the list of uplinks changes.
//! Never changes the rules of a client meanwhile.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::ClientStatus;
use firewall_core::uplinks::KEY;
use firewall_tests::packets::{self, UDP};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK, UPLINK_V4};
use firewall_tests::traffic::frames;

use super::scene::{frame, packet};
use super::tunnel::{CANARY, TUNNEL, Tunnel};
use super::world::*;

/// Nobody has this address, and the kernel goes on asking who has.
const HOP: &str = "192.0.2.77";
const CLIENTS_PORT: u16 = 4000;
const PEERS_PORT: u16 = 9;

/// Why a packet is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The client's rules accept it.
    Rules,
    /// A rule of somebody else in the gate accepts what the client's rules deny.
    Others,
    /// It answers a connection towards the client, whose rules accept nothing.
    Answer,
}

impl Why {
    const ALL: [Self; 3] = [Self::Rules, Self::Others, Self::Answer];

    /// How many packets of this kind were seen by the program.
    fn seen(self, client: &ClientStatus) -> u64 {
        match self {
            Self::Rules | Self::Others => client.rules[0].counter.packets,
            Self::Answer => client.counters.get("answer").map_or(0, |it| it.packets),
        }
    }

    /// Makes a packet of this kind one that is forwarded.
    fn prepare(self, tunnel: &Tunnel) -> Result<()> {
        let world = &tunnel.world;
        match self {
            Self::Rules => Ok(()),
            Self::Others => tunnel.netvm().nft(&format!(
                "add rule ip qubes-firewall qubes-forward udp dport {PEERS_PORT} accept"
            )),
            Self::Answer => {
                let (client, netvm) = (world.v4.to_string(), UPLINK_V4.to_string());
                world.rig.internet().ip(&["route", "add", &client, "via", &netvm])?;
                let bind = |at| move || Ok(UdpSocket::bind(at)?);
                let own = world.client.namespace().run(bind((world.v4, CLIENTS_PORT)))?;
                let peer = world.rig.internet().run(bind((SERVER4, PEERS_PORT)))?;
                own.set_read_timeout(Some(PATIENCE))?;
                peer.send_to(b"a question", (world.v4, CLIENTS_PORT))?;
                own.recv_from(&mut [0; 64]).context("the question does not come")?;
                Ok(())
            }
        }
    }
}

/// Has a packet wait while the list changes, or stays, and returns whether the packet leaves.
fn leaves(why: Why, is_listed: bool) -> Result<bool> {
    let mut tunnel = Tunnel::new("waits")?;
    let db = tunnel.qubesdb()?;
    let v4 = tunnel.world.v4;
    if why != Why::Rules {
        db.reload(&v4.to_string(), "drop", &[("0000", b"action=drop")]);
    }
    // There, what others may open towards clients is their own rules' business.
    let agent = tunnel.world.start_with(&["--mode", "qubes"])?;
    agent.wait_for_settled()?;
    let netvm = tunnel.netvm().clone();
    netvm.ip(&["route", "replace", "198.51.100.0/24", "dev", UPLINK])?;
    why.prepare(&tunnel)?;
    netvm.sysctl(&format!("net/ipv4/neigh/{UPLINK}/mcast_solicit"), "100000")?;
    netvm.ip(&["route", "replace", "198.51.100.0/24", "via", HOP, "dev", UPLINK])?;
    tunnel.strays()?;
    let before = why.seen(&agent.client(v4)?);
    let datagram = packets::datagram(CLIENTS_PORT, PEERS_PORT, CANARY);
    let sent = frame(&packet(v4, SERVER4, UDP, &datagram));
    frames::send_raw(tunnel.world.client.namespace(), CLIENT_INTERFACE, &sent)?;
    let is_judged = || agent.client(v4).is_ok_and(|it| why.seen(&it) > before);
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
    Ok(strays.iter().any(|it| it.windows(CANARY.len()).any(|it| it == CANARY)))
}

#[test]
fn what_waits_leaves_by_no_link_that_the_new_list_does_not_name() -> Result<()> {
    for why in Why::ALL {
        for is_listed in [false, true] {
            let has_left = leaves(why, is_listed).with_context(|| format!("{why:?}"))?;
            ensure!(has_left != is_listed, "{why:?}, listed: {is_listed}, left: {has_left}");
        }
    }
    Ok(())
}
