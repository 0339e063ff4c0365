//! Packets that wait in the netvm for the hardware address of the next hop, and leave only if
//! what accepted them is still in force then.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::control::{self, Request};
use firewall_core::told::status::{AuditStatus, State};
use firewall_core::world::audits::NoAudit;
use firewall_tests::oracle::Ruleset;
use firewall_tests::packets;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK};
use firewall_tests::traffic::frames;
use nix::sys::signal::Signal;

use super::scene::*;

/// A next hop on the uplink that never answers, by its IPv4 address.
const HOP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The IPv6 address of such a next hop.
const HOP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x77);
/// How many packets wait; a queue has room for 200 KiB (`unres_qlen_bytes` in ip-sysctl.rst).
const WAITING: u64 = 3;

/// The next hop on the way to nobody, and how often the kernel asks for it before it gives up:
/// once a second, longer than any test.
fn lead_to_the_hop(scene: &Scene) -> Result<()> {
    let netvm = scene.world.rig.netvm();
    let ways = [
        ("ipv4", HOP4.to_string(), "203.0.113.0/24"),
        ("ipv6", HOP6.to_string(), "2001:db8:2::/48"),
    ];
    for (family, hop, to) in ways {
        netvm.sysctl(&format!("net/{family}/neigh/{UPLINK}/mcast_solicit"), "1000")?;
        netvm.ip(&["route", "replace", to, "via", &hop, "dev", UPLINK])?;
    }
    Ok(())
}

fn hop_of(ends: &Ends) -> String {
    ends.family.of([HOP4.to_string(), HOP6.to_string()])
}

/// The hardware address of the internet.
fn address_of_internet(scene: &Scene) -> Result<String> {
    let link = scene.world.rig.internet().ip(&["-o", "link", "show", "dev", "eth0"])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).context("no hardware address")?.to_owned())
}

/// How many packets were dropped because they waited for too long.
fn outdated(agent: &Agent) -> Result<u64> {
    let status = agent.status()?;
    Ok(status.strays.get("outdated").map_or(0, |counter| counter.packets))
}

/// Sends packets of the client that wait from then on.
fn let_wait(scene: &Scene, ends: &Ends) -> Result<()> {
    let (netvm, client) = (scene.world.rig.netvm(), scene.world.client.namespace());
    let hop = hop_of(ends);
    if !netvm.ip(&["neighbour", "show", &hop, "dev", UPLINK])?.is_empty() {
        netvm.ip(&["neighbour", "del", &hop, "dev", UPLINK])?;
    }
    for number in 0..WAITING {
        let datagram = packets::datagram(20_000 + u16::try_from(number)?, 443, b"waits");
        let packet = ends.packet(packets::UDP, &datagram);
        frames::send_raw(client, CLIENT_INTERFACE, &frame(&packet))?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = netvm.ip(&["neighbour", "show", &hop, "dev", UPLINK])?;
        if shown.contains("INCOMPLETE") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no packet waits for {hop}: {shown}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The next hop is there; returns how many packets left. All others were dropped as outdated.
fn let_go(scene: &Scene, ends: &Ends) -> Result<u64> {
    let address = address_of_internet(scene)?;
    let mut out = frames::capture(scene.world.rig.internet(), "eth0")?;
    let before = outdated(&scene.agent)?;
    let hop = hop_of(ends);
    let netvm = scene.world.rig.netvm();
    netvm.ip(&["neighbour", "replace", &hop, "lladdr", &address, "dev", UPLINK])?;
    let left = scene.until_uplink_is_empty(&mut out)?.len() as u64;
    let dropped = outdated(&scene.agent)? - before;
    ensure!(left + dropped == WAITING, "{left} left, {dropped} were dropped");
    Ok(left)
}

#[test]
fn what_waited_for_a_neighbour_does_not_leave_after_a_rule_change() -> Result<()> {
    let scene = Scene::new("waiting", &[udp_443()])?;
    lead_to_the_hop(&scene)?;
    let agent = &scene.agent;
    let denied = Ruleset { default_accept: false, rules: Vec::new() };
    let accepted = Ruleset { default_accept: false, rules: vec![udp_443()] };
    for ends in scene.families() {
        let client = ends.from;
        let audit = |seconds| -> Result<()> {
            let request = Request::Audit { client, seconds };
            let answer: Result<AuditStatus, NoAudit> = control::ask(&agent.socket(), &request)?;
            answer?;
            agent.wait_for_settled()
        };
        let_wait(&scene, &ends)?;
        assert_eq!(let_go(&scene, &ends)?, WAITING, "{client}: although nothing changed");

        let_wait(&scene, &ends)?;
        agent.put(client, &denied)?;
        assert_eq!(let_go(&scene, &ends)?, 0, "{client}: although nothing is accepted any more");

        audit(3600)?;
        let_wait(&scene, &ends)?;
        assert_eq!(let_go(&scene, &ends)?, WAITING, "{client}: although the audit goes on");

        let_wait(&scene, &ends)?;
        audit(0)?;
        assert_eq!(let_go(&scene, &ends)?, 0, "{client}: although the audit ended");

        agent.put(client, &accepted)?;
        let_wait(&scene, &ends)?;
        fs::remove_file(agent.rules_of(client))?;
        agent.wait_for_state(client, State::Waiting)?;
        assert_eq!(let_go(&scene, &ends)?, 0, "{client}: although it has no rules any more");
    }
    Ok(())
}

#[test]
fn what_a_client_left_behind_does_not_leave_after_the_client() -> Result<()> {
    for family in Family::BOTH {
        let scene = Scene::new("waitgone", &[udp_443()])?;
        lead_to_the_hop(&scene)?;
        let ends = scene.ends(family);
        let_wait(&scene, &ends)?;
        scene.world.rig.remove_client(&scene.world.client)?;
        scene.agent.wait_for("without clients", |status| status.vifs.is_empty())?;
        assert_eq!(let_go(&scene, &ends)?, 0, "{}: although it is gone", ends.from);
    }
    Ok(())
}

#[test]
fn what_an_earlier_agent_accepted_does_not_leave_under_another_ones_rules() -> Result<()> {
    let mut scene = Scene::new("waitagent", &[udp_443()])?;
    lead_to_the_hop(&scene)?;
    for ends in scene.families() {
        let_wait(&scene, &ends)?;
        scene.agent.signal(Signal::SIGKILL)?;
        scene.agent.wait()?;
        let denied = Ruleset { default_accept: false, rules: Vec::new() };
        write_rules(scene.world.rig.directory(), ends.from, &denied.file())?;
        scene.agent = scene.world.start()?;
        scene.agent.wait_for_state(ends.from, State::Live)?;
        let left = let_go(&scene, &ends)?;
        assert_eq!(left, 0, "{}: although another agent's rules deny it", ends.from);
    }
    Ok(())
}
