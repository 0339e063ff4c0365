//! A vif that is a port of a bridge.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::packets;
use firewall_tests::rig::agent::{Agent, binary};
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{CLIENT_INTERFACE, VIF_MAC};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::SILENCE;

use super::scene::packet;
use super::world::*;

/// What `status` prints, and its exit code.
fn status(world: &World) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(binary()?);
    command.arg("status").arg("--socket").arg(world.rig.directory().join("control.sock"));
    command.stdout(std::process::Stdio::piped());
    let output = world.rig.netvm().spawn(&mut command)?.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

/// A bridge in the netvm, with a port that leads to another machine.
fn bridge(world: &World, machine: &Namespace) -> Result<()> {
    let netvm = world.rig.netvm();
    // With the vif's hardware address, so that the kernel takes for its own what the client sends.
    netvm.ip(&["link", "add", "br0", "address", VIF_MAC, "type", "bridge"])?;
    let peer = ["type", "veth", "peer", "name", "lan0", "netns", machine.name()];
    netvm.ip(&[&["link", "add", "lan", "master", "br0"][..], &peer].concat())?;
    netvm.ip(&["link", "set", "lan", "up"])?;
    netvm.ip(&["link", "set", "br0", "up"])?;
    machine.ip(&["link", "set", "lan0", "up"])?;
    Ok(())
}

/// The routes and neighbours by which the netvm reaches the client.
fn reach(world: &World, dev: &str) -> Result<()> {
    for (family, address) in [("-4", world.v4), ("-6", world.v6)] {
        let (address, mac) = (address.to_string(), world.client.mac());
        let netvm = world.rig.netvm();
        netvm.ip(&[family, "route", "replace", &address, "dev", dev])?;
        let link = ["lladdr", &mac, "dev", dev, "nud", "permanent"];
        netvm.ip(&[&[family, "neighbour", "replace", &address][..], &link].concat())?;
    }
    Ok(())
}

fn unknown_sources(agent: &Agent) -> Result<u64> {
    let strays = agent.status()?.strays;
    Ok(strays.get("unknown-source").map_or(0, |counter| counter.packets))
}

#[test]
fn nothing_of_a_vif_that_is_a_port_of_a_bridge_is_forwarded_and_status_says_so() -> Result<()> {
    let world = World::new("bridged")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let (vif, from) = (world.client.vif(), world.client.namespace());
    let machine = world.rig.internet();
    bridge(&world, machine)?;
    agent.wait_for("programs on the bridge", |status| status.agent.unguarded_uplinks.is_empty())?;
    world.check("no port yet", WEB.0, WEB.1);
    world.rig.netvm().ip(&["link", "set", vif, "master", "br0"])?;
    agent.wait_for("a port", |status| {
        let mut vifs = status.vifs.iter();
        vifs.any(|it| it.name == vif && it.port_of.as_deref() == Some("br0"))
    })?;
    // Where the netvm reaches the client by the vif, and where it does by the bridge.
    for dev in [vif, "br0"] {
        reach(&world, dev)?;
        let before = unknown_sources(&agent)?;
        world.check(&format!("a port, reached by {dev}"), SILENT, SILENT);
        ensure!(unknown_sources(&agent)? > before, "not counted");
    }
    // Nothing gets to the other ports of the bridge either, to whomever it is addressed.
    let mut arrivals = frames::capture(machine, "lan0")?;
    let group: IpAddr = [239, 1, 2, 3].into();
    for (mac, to) in [
        ([0xff; 6], IpAddr::from([255; 4])),
        ([0x01, 0, 0x5e, 1, 2, 3], group),
        ([0x02, 0, 0, 0, 0, 9], SERVER4),
    ] {
        let datagram = packets::datagram(40000, 443, &[0x5a; 32]);
        let packet = packet(world.v4, to, packets::UDP, &datagram);
        let frame = [&mac[..], &[0, 0x16, 0x3e, 0x5e, 0x6c, 12, 8, 0], &packet].concat();
        frames::send_raw(from, CLIENT_INTERFACE, &frame)?;
    }
    let leaked = arrivals.wait_for(|frame| frame.ends_with(&[0x5a; 32]), SILENCE)?;
    ensure!(leaked.is_none(), "a frame crossed the bridge: {leaked:x?}");
    let (code, text) = status(&world)?;
    let problem = format!("PROBLEM: {vif} is a port of br0, so nothing of it is forwarded");
    ensure!(text.contains(&problem) && text.contains("nomaster"), "{text}");
    ensure!(code != Some(0), "{code:?}");
    world.rig.netvm().ip(&["link", "set", vif, "nomaster"])?;
    reach(&world, vif)?;
    agent.wait_for("no port", |status| status.vifs.iter().all(|it| it.port_of.is_none()))?;
    agent.wait_for_vif(vif)?;
    agent.wait_for_state(world.v4, State::Live)?;
    agent.wait_for_state(world.v6, State::Live)?;
    world.check("no port any more", WEB.0, WEB.1);
    Ok(())
}
