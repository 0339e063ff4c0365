//! What waits in the netvm, for the address of a neighbour, while the list of uplinks changes.
//! Never changes the rules of a client meanwhile.

use std::net::UdpSocket;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use firewall_core::uplinks::KEY;
use firewall_tests::packets::{self, UDP};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::{CLIENT_INTERFACE, Rig, UPLINK, UPLINK_V4};
use firewall_tests::traffic::frames;
use nix::sys::signal::Signal;

use super::renamed::renames;
use super::scene::{frame, packet};
use super::tunnel::{CANARY, TUNNEL, Tunnel};
use super::uplinks::chain;
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

/// What happens while a packet waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing.
    None,
    /// A list comes that does not name the link.
    List,
    /// The gate, from which somebody took the list, has it again.
    Mended,
    /// The link, which is in the list, gets another name.
    Renamed,
}

/// Has a packet wait while something changes, and returns whether the packet leaves.
fn leaves(why: Why, change: Change) -> Result<bool> {
    // Tests of one process may run side by side.
    let label = match change {
        Change::None | Change::List => "waits",
        Change::Mended => "waitsmended",
        Change::Renamed => "waitsrenamed",
    };
    let mut tunnel = Tunnel::new(label)?;
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
    let list = |names: &str| {
        db.write(KEY, names.as_bytes());
        agent.wait_for("the list", |status| status.agent.uplinks.is_some())?;
        agent.wait_for_settled()
    };
    match change {
        Change::None | Change::List => {}
        Change::Mended => {
            list(TUNNEL)?;
            agent.signal(Signal::SIGSTOP)?;
            netvm.nft("flush chain ip qubes-firewall uplinks")?;
        }
        Change::Renamed => list(UPLINK)?,
    }
    tunnel.strays()?;
    let datagram = packets::datagram(CLIENTS_PORT, PEERS_PORT, CANARY);
    let sent = frame(&packet(v4, SERVER4, UDP, &datagram));
    frames::send_raw(tunnel.world.client.namespace(), CLIENT_INTERFACE, &sent)?;
    until("the packet waits", || {
        Ok(netvm.ip(&["neighbour", "show", HOP, "dev", UPLINK])?.contains("INCOMPLETE"))
    })?;
    let mut name = UPLINK;
    match change {
        Change::None => {}
        Change::List => list(TUNNEL)?,
        Change::Mended => {
            agent.signal(Signal::SIGCONT)?;
            until("the gate has the list", || Ok(chain(&tunnel, "ip")?.contains(TUNNEL)))?;
            // It is answered after what is done about the gate.
            agent.status()?;
        }
        Change::Renamed => {
            name = "other0";
            netvm.ip(&["link", "set", UPLINK, "name", name])?;
            agent.wait_for("the link is gone from the list", |status| {
                let links = status.agent.uplinks.iter().flat_map(|it| &it.links);
                links.into_iter().all(|link| !link.there)
            })?;
        }
    }
    // Now somebody has it.
    let link = tunnel.world.rig.internet().ip(&["-o", "link", "show", "dev", "eth0"])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    let address = words.nth(1).context("no hardware address")?.to_owned();
    netvm.ip(&["neighbour", "replace", HOP, "lladdr", &address, "dev", name])?;
    if name != UPLINK {
        netvm.ip(&["link", "set", name, "name", UPLINK])?;
    }
    let strays = tunnel.strays()?;
    Ok(strays.iter().any(|it| it.windows(CANARY.len()).any(|it| it == CANARY)))
}

fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        thread::yield_now();
    }
    Ok(())
}

#[test]
fn what_waits_leaves_by_no_link_that_the_new_list_does_not_name() -> Result<()> {
    for why in Why::ALL {
        for change in [Change::None, Change::List] {
            let has_left = leaves(why, change).with_context(|| format!("{why:?}"))?;
            ensure!(has_left == (change == Change::None), "{why:?}, {change:?}, left: {has_left}");
        }
    }
    Ok(())
}

#[test]
fn what_met_a_gate_without_the_list_leaves_by_no_other_link_once_the_gate_is_mended() -> Result<()>
{
    ensure!(!leaves(Why::Rules, Change::Mended)?, "it leaves");
    Ok(())
}

#[test]
fn what_waits_leaves_by_no_link_that_has_another_name_now() -> Result<()> {
    let rig = Rig::new("renames")?;
    if renames(rig.netvm(), "what_waits_leaves_by_no_link_that_has_another_name_now")? {
        ensure!(!leaves(Why::Rules, Change::Renamed)?, "it leaves");
    }
    Ok(())
}
