//! What others take away from a running agent, and that it comes back.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use firewall_common::abi::ABI_VERSION;
use firewall_core::told::status::Status;
use firewall_tests::rig::UPLINK;
use firewall_tests::rig::agent::Agent;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::files::cli;
use super::world::*;

const GONE: &str = "somebody took the programs away";

fn all_is_attached(status: &Status) -> bool {
    status.vifs.iter().all(|vif| vif.attached.is_some())
        && status.agent.unguarded_uplinks.is_empty()
}

/// Whether anything is pinned: filters of clsact are not. If not, that is told.
fn pins(test: &str) -> Result<bool> {
    if !has_tcx() {
        firewall_tests::skip(test, "the kernel has no tcx, and nothing is pinned")?;
    }
    Ok(has_tcx())
}

/// Waits until the agent has noticed so many losses and mended them.
fn wait_for_repair(agent: &Agent, losses: usize) -> Result<()> {
    agent.wait_for("attached again", |status| {
        let log = agent.log();
        // It says so before it does something about it.
        let since = log.rsplit(GONE).next().unwrap_or_default();
        log.matches(GONE).count() >= losses
            && since.contains("attached link=")
            && all_is_attached(status)
    })
}

#[test]
fn programs_that_somebody_took_away_come_back() -> Result<()> {
    if !pins("programs_that_somebody_took_away_come_back")? {
        return Ok(());
    }
    let world = World::new("taken")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    world.check("at first", v4, v6);
    for (round, program) in ["from_client-", "from_uplink-", "to_uplink-"].iter().enumerate() {
        // Some kernels give each namespace links of their own, which have pins as well.
        let link = if round == 0 { world.client.vif() } else { UPLINK };
        let index = world.rig.netvm().run(|| Ok(nix::net::if_::if_nametoindex(link)?))?;
        let pins = world.pins(program)?;
        let pin = pins.iter().find(|pin| pin.ends_with(format!("{program}{index}")));
        // The last reference to the link: the kernel detaches the program.
        fs::remove_file(pin.with_context(|| format!("{pins:?} of {program}"))?)?;
        wait_for_repair(&agent, round + 1)?;
        world.check(program, v4, v6);
    }
    Ok(())
}

#[test]
fn filters_that_somebody_removed_come_back() -> Result<()> {
    let world = World::new("filters")?;
    let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    world.check("at first", v4, v6);
    let mut tc = std::process::Command::new("tc");
    tc.args(["qdisc", "del", "dev", world.client.vif(), "clsact"]);
    ensure!(world.rig.netvm().spawn(&mut tc)?.wait()?.success(), "tc cannot do it");
    wait_for_repair(&agent, 1)?;
    world.check("again", v4, v6);
    Ok(())
}

#[test]
fn without_a_place_for_pins_the_agent_holds_its_programs_and_says_so() -> Result<()> {
    if !pins("without_a_place_for_pins_the_agent_holds_its_programs_and_says_so")? {
        return Ok(());
    }
    let world = World::new("unmounted")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443()])?;
    let (v4, v6) = WEB;
    // Of a vif, and of an uplink, two each; more where a kernel makes links by itself.
    let all = world.pins("")?.len();
    ensure!(all >= 4, "{all} pins");
    umount2(world.rig.bpffs(), MntFlags::MNT_DETACH)?;
    agent.wait_for("all unpinned", |status| status.agent.unpinned_programs == all)?;
    wait_for_repair(&agent, 1)?;
    world.check("unmounted", v4, v6);
    mount(Some("bpf"), world.rig.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)?;
    agent.wait_for("pinned", |status| status.agent.unpinned_programs == 0)?;
    world.check("mounted again", v4, v6);
    agent.kill()?;
    world.check("without an agent", v4, v6);
    let agent = world.start()?;
    agent.wait_for("all attached", all_is_attached)?;
    let log = agent.log();
    let last = log.rsplit("running").next().context("no log")?;
    ensure!(!last.contains("ERROR"), "{log}");
    Ok(())
}

#[test]
fn what_does_not_work_is_told_and_tried_again_until_it_does() -> Result<()> {
    let world = World::new("failing")?;
    // A pin that nobody can remove as one: it is a directory.
    let pins = world.rig.bpffs().join("firewall").join(format!("v{ABI_VERSION}"));
    let odd = pins.join("from_client-4711");
    fs::create_dir_all(&odd)?;
    let agent = world.start()?;
    let stays = "pins of an earlier agent, or what it let pass, may stay";
    agent.wait_for("told", |status| status.agent.failing.iter().any(|it| it.what == stays))?;
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 1, "{text}");
    ensure!(text.contains(&format!("PROBLEM: {stays}: ")), "{text}");
    ensure!(text.contains("Is a directory") && text.contains("it is tried again in "), "{text}");
    fs::remove_dir(odd)?;
    agent.wait_for("over", |status| status.agent.failing.is_empty())?;
    assert_eq!(cli(&agent, &["status"])?.0, 0);
    agent.wait_for_log(&format!("over: {stays}"))
}
