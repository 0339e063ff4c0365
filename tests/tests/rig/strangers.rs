//! Addresses that are at home behind no vif: what has one goes nowhere and is not answered, whatever rules
//! of others are in the gate.
//! Never lets anybody stand in front of the gate, as Qubes' own rules against spoofing do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::Rule;
use firewall_tests::packets::{self, UDP};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::{
    CLIENT_INTERFACE, ClientSpec, INTERNET_V4, INTERNET_V6, UPLINK_V4, UPLINK_V6,
};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Probe, SILENCE};

use super::scene::{frame, packet};
use super::tunnel::{CANARY, TUNNEL, Tunnel};
use super::world::*;

/// Adds a rule to the gate that is about somebody else.
fn add_a_rule(world: &World, agent: &Agent) -> Result<()> {
    let rule = "add rule ip qubes-firewall qubes-forward ip saddr 10.137.0.99 tcp dport 9 accept";
    world.rig.netvm().nft(rule)?;
    agent.wait_for("the rule to be known", |status| status.agent.added_rules.len() == 1)
}

/// How many packets of strangers were dropped.
fn dropped(agent: &Agent) -> Result<u64> {
    let strays = agent.status()?.strays;
    let unknown = strays.iter().find(|(reason, _)| reason.to_string() == "unknown-source");
    Ok(unknown.map_or(0, |(_, it)| it.packets))
}

#[test]
fn no_client_speaks_as_a_server_to_another_client() -> Result<()> {
    let world = World::new("speaks")?;
    let other = world.rig.add_client(&ClientSpec::numbered(14))?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    agent.wait_for_vif(other.vif())?;
    add_a_rule(&world, &agent)?;
    // A program that another test starts may still hold the socket of the family before.
    let families: [(IpAddr, IpAddr, SocketAddr); 2] = [
        (SERVER4, UPLINK_V4.into(), (Ipv4Addr::UNSPECIFIED, 33333).into()),
        (SERVER6, UPLINK_V6.into(), (Ipv6Addr::UNSPECIFIED, 33334).into()),
    ];
    for (server, translated, own) in families {
        let asker = world.client.namespace().run(|| Ok(UdpSocket::bind(own)?))?;
        asker.set_read_timeout(Some(PATIENCE))?;
        asker.connect(SocketAddr::new(server, 443))?;
        asker.send(b"question")?;
        let mut buffer = [0; 64];
        asker.recv(&mut buffer).context("no answer of the server")?;
        let before = dropped(&agent)?;
        let datagram = packets::datagram(443, own.port(), b"poison");
        let spoofed = frame(&packet(server, translated, UDP, &datagram));
        for _ in 0..3 {
            frames::send_raw(other.namespace(), CLIENT_INTERFACE, &spoofed)?;
        }
        agent.wait_for("the packets", |_| dropped(&agent).is_ok_and(|now| now == before + 3))?;
        asker.set_read_timeout(Some(SILENCE))?;
        ensure!(asker.recv(&mut buffer).is_err(), "{server}: a client spoke as the server");
    }
    Ok(())
}

#[test]
fn nothing_of_a_strangers_address_leaves_as_an_error_either() -> Result<()> {
    for (label, arguments) in [("errors", &[][..]), ("errorsbeside", &["--uplinks", TUNNEL])] {
        let mut tunnel = Tunnel::new(label)?;
        let agent = tunnel.world.start_with(arguments)?;
        tunnel.world.put(&agent, &[])?;
        add_a_rule(&tunnel.world, &agent)?;
        let from = tunnel.world.client.namespace().clone();
        // What is denied and has its own address is answered, so the gate answers.
        let probe = Probe::udp(&from, SocketAddr::new(SERVER4, 443));
        assert_eq!(probe.run(SILENCE)?, PROHIBITED4);
        // Neighbours are known, so nothing would wait.
        tunnel.strays()?;
        let before = dropped(&agent)?;
        let datagram = packets::datagram(4000, 9, CANARY);
        let strangers: [(IpAddr, IpAddr); 2] =
            [(INTERNET_V4.into(), SERVER4), (INTERNET_V6.into(), SERVER6)];
        for (stranger, server) in strangers {
            let spoofed = frame(&packet(stranger, server, UDP, &datagram));
            for _ in 0..3 {
                frames::send_raw(&from, CLIENT_INTERFACE, &spoofed)?;
            }
        }
        agent.wait_for("the packets", |_| dropped(&agent).is_ok_and(|now| now >= before + 6))?;
        let strays = tunnel.strays()?;
        ensure!(strays.is_empty(), "{label}: {} left: {strays:02x?}", strays.len());
        assert_eq!(probe.run(SILENCE)?, PROHIBITED4, "{label}: the gate answers no more");
    }
    Ok(())
}
