//! Links that get another name: what is attached stays, is looked after, and is told truly.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use firewall_core::told::status::Status;
use firewall_tests::rig::UPLINK;
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::namespace::Namespace;

use super::filters::filters;
use super::world::*;

/// Gives a link another name.
fn rename(netvm: &Namespace, from: &str, to: &str) -> Result<()> {
    netvm.ip(&["link", "set", from, "name", to]).map(drop)
}

/// Whether the kernel renames a link that is up (since Linux 6.2). If not, that is told.
pub fn renames(netvm: &Namespace, test: &str) -> Result<bool> {
    netvm.ip(&["link", "add", "trial0", "type", "veth", "peer", "name", "trial2"])?;
    netvm.ip(&["link", "set", "trial0", "up"])?;
    let outcome = rename(netvm, "trial0", "trial1");
    let name = if outcome.is_ok() { "trial1" } else { "trial0" };
    netvm.ip(&["link", "delete", name])?;
    if let Err(error) = &outcome {
        firewall_tests::skip(test, &format!("the kernel renames no link that is up: {error}"))?;
    }
    Ok(outcome.is_ok())
}

fn is_vif(status: &Status, name: &str) -> bool {
    status.vifs.iter().any(|vif| vif.name == name && vif.attached.is_some())
}

/// Takes the programs of a link away, and waits until the agent has noticed.
fn take_away(world: &World, agent: &Agent, how: &str, name: &str, programs: &[&str]) -> Result<()> {
    let gone = format!("somebody took the programs away; attaching them again link=\"{name}\"");
    let before = agent.log().matches(&gone).count();
    if how == "clsact" {
        let mut tc = Command::new("tc");
        tc.args(["qdisc", "del", "dev", name, "clsact"]);
        ensure!(world.rig.netvm().spawn(&mut tc)?.wait()?.success(), "tc cannot do it");
    } else {
        let index = world.rig.netvm().run(|| Ok(nix::net::if_::if_nametoindex(name)?))?;
        for program in programs {
            for pin in world.pins(&format!("{program}-{index}"))? {
                fs::remove_file(pin)?;
            }
        }
    }
    agent.wait_for(&format!("{name} is guarded again"), |_| {
        let log = agent.log();
        let again = format!("attached link=\"{name}\"");
        let since = log.rsplit(&gone).next().unwrap_or_default();
        log.matches(&gone).count() > before && since.contains(&again)
    })
}

#[test]
fn a_link_that_is_renamed_stays_guarded_under_its_new_name() -> Result<()> {
    let (v4, v6) = WEB;
    for &how in ways() {
        let world = World::new(&format!("ren{how}"))?;
        let netvm = world.rig.netvm();
        if !renames(netvm, "a_link_that_is_renamed_stays_guarded_under_its_new_name")? {
            return Ok(());
        }
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for_vif(world.client.vif())?;
        world.put(&agent, &[tcp_443()])?;
        let programs = ["from_uplink", "to_uplink"];
        take_away(&world, &agent, how, UPLINK, &programs)?;
        rename(netvm, UPLINK, "enx1")?;
        take_away(&world, &agent, how, "enx1", &programs)?;
        let status = agent.status()?;
        ensure!(status.agent.unguarded_uplinks.is_empty(), "{status:#?}");
        world.check("uplink renamed", v4, v6);
        rename(netvm, world.client.vif(), "vif99.0")?;
        agent.wait_for("vif99.0", |status| is_vif(status, "vif99.0"))?;
        take_away(&world, &agent, how, "vif99.0", &["from_client"])?;
        world.check("vif renamed", v4, v6);
        ensure!(agent.status()?.vifs.len() == 1, "{:#?}", agent.status()?);
    }
    Ok(())
}

#[test]
fn a_vif_that_is_called_otherwise_is_none_and_one_that_is_called_so_becomes_one() -> Result<()> {
    let (v4, v6) = WEB;
    for &how in ways() {
        let world = World::new(&format!("out{how}"))?;
        let netvm = world.rig.netvm();
        if !renames(
            netvm,
            "a_vif_that_is_called_otherwise_is_none_and_one_that_is_called_so_becomes_one",
        )? {
            return Ok(());
        }
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for_vif(world.client.vif())?;
        world.put(&agent, &[tcp_443()])?;
        for round in 1..=2 {
            rename(netvm, world.client.vif(), "wan12")?;
            agent.wait_for("an uplink", |status| {
                let log = agent.log();
                status.vifs.is_empty() && log.matches("attached link=\"wan12\"").count() == round
            })?;
            ensure!(agent.log().matches("IS FORWARDED WITHOUT RULES").count() == round);
            // Only what guards an uplink is there now, and nothing holds the other program.
            let index = netvm.run(|| Ok(nix::net::if_::if_nametoindex("wan12")?))?;
            ensure!(world.pins(&format!("from_client-{index}"))?.is_empty());
            if how == "clsact" {
                ensure!(filters(netvm, "wan12", "ingress")?.contains("from_uplink"));
                ensure!(filters(netvm, "wan12", "egress")?.contains("to_uplink"));
            }
            rename(netvm, "wan12", world.client.vif())?;
            agent.wait_for_vif(world.client.vif())?;
            // The program of an uplink would let nothing out to a client.
            world.check("a vif again", v4, v6);
            ensure!(world.pins(&format!("to_uplink-{index}"))?.is_empty());
            ensure!(!filters(netvm, world.client.vif(), "egress")?.contains("uplink"));
        }
    }
    Ok(())
}

#[test]
fn a_link_that_was_renamed_while_no_agent_ran_is_guarded_for_what_it_is() -> Result<()> {
    let (v4, v6) = WEB;
    for &how in ways() {
        let world = World::new(&format!("off{how}"))?;
        let netvm = world.rig.netvm();
        if !renames(netvm, "a_link_that_was_renamed_while_no_agent_ran_is_guarded_for_what_it_is")?
        {
            return Ok(());
        }
        rename(netvm, world.client.vif(), "wan12")?;
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for("an uplink", |_| agent.log().contains("attached link=\"wan12\""))?;
        for client in [world.v4, world.v6] {
            let web = "policy = drop\n0000 = action=accept proto=tcp dstports=443\ncommit\n";
            firewall_tests::rig::agent::write_rules(world.rig.directory(), client, web)?;
        }
        agent.wait_for("known addresses", |status| {
            [world.v4, world.v6].iter().all(|it| status.clients.iter().any(|at| at.address == *it))
        })?;
        agent.kill()?;
        rename(netvm, "wan12", world.client.vif())?;
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for_vif(world.client.vif())?;
        world.check("a vif now", v4, v6);
    }
    Ok(())
}
