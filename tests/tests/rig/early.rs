//! The XDP stage in front of vifs: real drivers, and taps to tell where a packet ended.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::{Attachment, Status};
use firewall_tests::packets::{self, VIF};
use firewall_tests::rig::CLIENT_INTERFACE;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::kernel::Native;
use nix::sys::signal::Signal;

use super::world::*;

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 99));

/// Whether a packet with a wrong source gets as far as a tap: behind native XDP and in front
/// of tc. One with the right source does, whatever its verdict.
fn reaches_taps(world: &World) -> Result<bool> {
    let to_vif = |source| {
        let mut frame = packets::plain(source, SERVER4, packets::UDP, 7);
        frame[..VIF.len()].copy_from_slice(&VIF);
        frame
    };
    let (wrong, right) = (to_vif(STRANGER), to_vif(world.v4));
    let mut tap = frames::capture(world.rig.netvm(), world.client.vif())?;
    let sender = frames::Sender::open(world.client.namespace(), CLIENT_INTERFACE)?;
    sender.send(&wrong)?;
    sender.send(&right)?;
    let first = tap.wait_for(|frame| frame == wrong || frame == right, PATIENCE)?;
    Ok(first.context("neither packet came")? == wrong)
}

/// Waits until such a packet does: the kernel detaches a stage that nothing refers to any more
/// when it comes to it.
fn wait_for_taps(world: &World) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !reaches_taps(world)? {
        ensure!(Instant::now() < deadline, "the stage is still there");
    }
    Ok(())
}

fn strays(status: &Status) -> u64 {
    status.strays.get("unknown-source").map_or(0, |counter| counter.packets)
}

/// How programs are attached by default, without a stage and with it.
fn plain_and_staged() -> (Option<Attachment>, Option<Attachment>) {
    match has_tcx() {
        true => (Some(Attachment::Tcx), Some(Attachment::XdpAndTcx)),
        false => (Some(Attachment::Clsact), Some(Attachment::XdpAndClsact)),
    }
}

fn attached(status: &Status, vif: &str) -> Option<Attachment> {
    status.vifs.iter().find(|it| it.name == vif)?.attached
}

#[test]
fn the_xdp_stage_drops_in_front_of_all_else_and_changes_no_verdict() -> Result<()> {
    let world = World::new("early")?;
    let (plain, staged) = plain_and_staged();
    let vif = world.client.vif();
    let (v4, v6) = WEB;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    ensure!(reaches_taps(&world)?, "without the stage taps see all");
    assert_eq!(attached(&agent.status()?, vif), plain);
    agent.kill()?;

    let agent = Agent::start(&world.rig, &["--xdp"])?;
    agent.wait_for("the stage", |status| attached(status, vif) == staged)?;
    // Of a client that settles, what is denied is dropped by the stage as well.
    agent.wait_for_settled()?;
    ensure!(!reaches_taps(&world)?, "not dropped by XDP");
    assert_eq!(strays(&agent.status()?), 1);
    world.check("behind the stage", v4, v6);
    agent.kill()?;
    ensure!(!reaches_taps(&world)?, "not dropped by XDP when the agent is gone");
    world.check("without an agent", v4, v6);

    // A new one takes it over, with maps of its own.
    let agent = Agent::start(&world.rig, &["--xdp"])?;
    agent.wait_for("the stage", |status| attached(status, vif) == staged)?;
    // Of a client that settles, what is denied is dropped by the stage as well.
    agent.wait_for_settled()?;
    ensure!(!reaches_taps(&world)?, "not dropped by the new agent's XDP");
    assert_eq!(strays(&agent.status()?), 1);
    agent.kill()?;

    let agent = world.start()?;
    assert_eq!(attached(&agent.status()?, vif), plain);
    wait_for_taps(&world)?;
    world.check("without the stage", v4, v6);
    Ok(())
}

#[test]
fn where_xdp_cannot_be_packets_meet_tc_alone() -> Result<()> {
    let world = World::new("no_early")?;
    let (plain, _) = plain_and_staged();
    let vif = world.client.vif();
    // A driver without native XDP, and a program of somebody else.
    world.rig.netvm().ip(&["link", "add", "vif77.0", "type", "bridge"])?;
    world.rig.netvm().ip(&["link", "set", "vif77.0", "up"])?;
    let others = Native::open(world.rig.netvm(), vif)?;
    let agent = Agent::start(&world.rig, &["--xdp"])?;
    for name in [vif, "vif77.0"] {
        agent.wait_for("attached", |status| attached(status, name) == plain)?;
    }
    agent.wait_for("told twice", |_| agent.log().matches("no XDP stage").count() == 2)?;
    world.put(&agent, &[tcp_443()])?;
    ensure!(reaches_taps(&world)?, "dropped by a program that does not");
    let (v4, v6) = WEB;
    world.check("behind another program", v4, v6);
    drop(others);
    Ok(())
}

#[test]
fn the_xdp_stage_comes_back_and_goes_with_its_vif_and_with_a_firewall_that_opens() -> Result<()> {
    let world = World::new("early_ends")?;
    let (_, staged) = plain_and_staged();
    let vif = world.client.vif();
    let options = ["--xdp", "--mode", "qubes", "--open-on-stop"];
    let agent = Agent::start(&world.rig, &options)?;
    agent.wait_for("the stage", |status| attached(status, vif) == staged)?;
    world.put(&agent, &[tcp_443()])?;
    ensure!(!reaches_taps(&world)?, "not dropped by XDP");
    let stages = || world.pins("from_client_early-");
    assert_eq!(stages()?.len(), 1);
    world.rig.netvm().ip(&["link", "add", "vif78.0", "type", "veth", "peer", "name", "peer78"])?;
    agent.wait_for("another", |status| attached(status, "vif78.0").is_some())?;
    assert_eq!(stages()?.len(), 2);
    world.rig.netvm().ip(&["link", "del", "vif78.0"])?;
    agent.wait_for("gone", |status| !status.vifs.iter().any(|it| it.name == "vif78.0"))?;
    assert_eq!(stages()?.len(), 1);
    // The last reference to the link: the kernel detaches the program. The agent, which would
    // put another there, comes to see it only later.
    agent.signal(Signal::SIGSTOP)?;
    stages()?.iter().try_for_each(fs::remove_file)?;
    wait_for_taps(&world)?;
    agent.signal(Signal::SIGCONT)?;
    agent.wait_for("again", |status| {
        attached(status, vif) == staged && stages().is_ok_and(|it| it.len() == 1)
    })?;
    ensure!(!reaches_taps(&world)?, "not dropped by XDP");
    ensure!(agent.terminate()?, "not a clean end");
    wait_for_taps(&world)?;
    Ok(())
}

#[test]
fn by_clsact_it_is_said_as_truly_whether_there_is_a_stage() -> Result<()> {
    let world = World::new("early_cls")?;
    let vif = world.client.vif();
    let (v4, v6) = WEB;
    let mut is_put = false;
    for (options, expected, is_seen) in [
        (&["--attach", "clsact"][..], Attachment::Clsact, true),
        (&["--attach", "clsact", "--xdp"], Attachment::XdpAndClsact, false),
        (&["--attach", "clsact"], Attachment::Clsact, true),
    ] {
        let agent = Agent::start(&world.rig, options)?;
        agent.wait_for("attached", |status| attached(status, vif) == Some(expected))?;
        if !is_put {
            world.put(&agent, &[tcp_443()])?;
            is_put = true;
        }
        agent.wait_for_settled()?;
        // The kernel detaches the stage of the agent before when it comes to it.
        if is_seen {
            wait_for_taps(&world)?;
        }
        assert_eq!(reaches_taps(&world)?, is_seen, "{options:?}");
        world.check("by clsact", v4, v6);
        agent.kill()?;
        assert_eq!(reaches_taps(&world)?, is_seen, "{options:?}, without an agent");
    }
    Ok(())
}
