//! What a kernel is without, for real, as the virtual machines of `cargo xtask vm` leave it out: it is
//! named, and what cannot be enforced is closed. On a kernel that has all, that nothing is named.
//! Never pretends: `closed.rs` does.

use std::env;
use std::process::Stdio;

use anyhow::{Result, bail, ensure};
use firewall_core::told::status::{ClientStatus, State, Status};
use firewall_tests::oracle::Ruleset;
use firewall_tests::rig::agent::{self, Agent, write_rules};
use firewall_tests::rig::{UPLINK_V4, UPLINK_V6};
use firewall_tests::traffic::probe::Outcome;

use super::world::*;

/// The module that the kernel is without; nothing if it has all that the agent can use.
const VARIABLE: &str = "FIREWALL_WITHOUT";

/// A world whose clients get answers although nobody translates their addresses.
fn routed_world() -> Result<World> {
    let world = World::new("without")?;
    let ways = [(world.v4, UPLINK_V4.to_string()), (world.v6, UPLINK_V6.to_string())];
    for (client, netvm) in ways {
        world.rig.internet().ip(&["route", "add", &client.to_string(), "via", &netvm])?;
    }
    Ok(world)
}

/// No gate: neither `prepare` nor `run` is content, and nothing of a client leaves.
fn refuses_the_gate(mode: &str, named: &str) -> Result<()> {
    let world = routed_world()?;
    world.check("before", ACCEPTED, ACCEPTED);
    for name in ["prepare", "run"] {
        let mut command = agent::command(&world.rig, name, &["--mode", mode])?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = world.rig.netvm().spawn(&mut command)?.wait_with_output()?;
        let says = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{name}: {says}");
        ensure!(says.contains(named) && says.contains("modprobe"), "{name}: {says}");
        world.check(name, SILENT, SILENT);
    }
    Ok(())
}

/// The agent runs; something of its status names what the kernel is without.
fn runs_and_names(named: &str) -> Result<(World, Agent)> {
    let world = routed_world()?;
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    for client in [world.v4, world.v6] {
        // That a client has settled is not waited for.
        let rules = Ruleset { default_accept: false, rules: vec![tcp_443()] };
        write_rules(world.rig.directory(), client, &rules.file())?;
        let is_live = |it: &ClientStatus| it.address == client && it.state == State::Live;
        agent.wait_for("the rules", |status| status.clients.iter().any(is_live))?;
    }
    let names = |status: &Status| format!("{status:?}").contains(named);
    agent.wait_for(named, names)?;
    Ok((world, agent))
}

#[test]
fn what_the_kernel_is_without_is_named_and_what_cannot_be_enforced_is_closed() -> Result<()> {
    use Outcome::{Accepted, Silent};
    let without = env::var(VARIABLE).unwrap_or_default();
    match without.as_str() {
        "" => {
            let world = routed_world()?;
            let agent = world.start_with(&["--mode", "qubes"])?;
            world.put(&agent, &[tcp_443()])?;
            agent.wait_for_settled()?;
            let status = agent.status()?;
            ensure!(status.agent.gate_problem.is_none(), "{status:?}");
            ensure!(status.vifs.iter().all(|vif| vif.problem.is_none()), "{status:?}");
            let (v4, v6) = WEB;
            world.check("all is there", v4, v6);
        }
        "nft_ct" => refuses_the_gate("qubes", "nft_ct")?,
        "nft_reject" => refuses_the_gate("qubes", "nft_reject_ipv4")?,
        "nft_masq" => refuses_the_gate("standalone", "nft_masq")?,
        "cls_bpf" => {
            // Where there is no tcx either, no program can be attached, and the gate rejects.
            let (world, _agent) = runs_and_names("cls_bpf")?;
            world.check("no program", ALL_PROHIBITED4, ALL_PROHIBITED6);
        }
        "nf_conntrack_netlink" => {
            // What rules deny may be open, so the client settles for ever, and is denied silently.
            let (world, agent) = runs_and_names("nf_conntrack_netlink")?;
            let expected = [Accepted, Silent, Silent, Silent];
            world.check("settling", expected, expected);
            ensure!(agent.client(world.v4)?.settling, "the client has settled");
        }
        other => bail!("nobody knows what is to become of `{other}` ({VARIABLE})"),
    }
    Ok(())
}
