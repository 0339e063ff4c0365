//! What others' rules in the gate, and in front of it, make of packets, and what is told of that.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::passage::Loss;
use firewall_core::told::status::State;
use firewall_tests::oracle::Rule;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{ClientSpec, UPLINK};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::clients::{neighbour, put};
use super::files::cli;
use super::world::*;

#[test]
fn a_client_without_rules_is_opened_by_a_rule_of_others_and_by_nothing_else() -> Result<()> {
    let world = World::new("attached")?;
    let agent = world.start()?;
    let spec = ClientSpec::numbered(13);
    let client = world.rig.add_client(&spec)?;
    agent.wait_for_vif(client.vif())?;
    let address = spec.v4.context("no IPv4 address")?.into();
    agent.wait_for_state(address, State::Waiting)?;
    let web = Probe::tcp(client.namespace(), SocketAddr::new(SERVER4, 443));
    assert_eq!(web.run(SILENCE)?, Outcome::Silent, "without rules");
    let add = format!("add rule ip qubes-firewall qubes-forward ip saddr {address} accept");
    for round in 0..2 {
        world.rig.netvm().nft(&add)?;
        agent.wait_for("the rule to be known", |status| status.agent.added_rules.len() == 1)?;
        assert_eq!(web.run(PATIENCE)?, Outcome::Accepted, "round {round}");
        // Of another client without rules, and of its other family, nobody says so.
        let other = Probe::tcp(client.namespace(), SocketAddr::new(SERVER6, 443));
        assert_eq!(other.run(PATIENCE)?, PROHIBITED6, "round {round}");
        world.rig.netvm().nft("flush chain ip qubes-firewall qubes-forward")?;
        agent.wait_for("the rule to be gone", |status| status.agent.added_rules.is_empty())?;
        assert_eq!(web.run(SILENCE)?, Outcome::Silent, "round {round}, without it");
    }
    Ok(())
}

#[test]
fn what_only_a_rule_of_others_let_pass_ends_with_that_rule() -> Result<()> {
    let world = World::new("undone")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    let netvm = world.rig.netvm();
    netvm.nft(&format!("add rule ip qubes-firewall qubes-forward ip saddr {} accept", world.v4))?;
    agent.wait_for("the rule to be known", |status| status.agent.added_rules.len() == 1)?;
    let to = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
    ensure!(flow.exchange(PATIENCE)?, "it was open");
    netvm.nft("flush chain ip qubes-firewall qubes-forward")?;
    agent.wait_for("the rule to be gone", |status| status.agent.added_rules.is_empty())?;
    // The kernel knows the connection as before; it is the client's own, and no answer.
    ensure!(!flow.exchange(SILENCE)?, "it goes on without the rule");
    Ok(())
}

#[test]
fn a_rule_of_another_meaning_with_a_comment_of_ours_is_replaced() -> Result<()> {
    let world = World::new("forged")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    let mut nft = Command::new("nft");
    nft.args(["-a", "list", "chain", "ip", "qubes-firewall", "forward"]).stdout(Stdio::piped());
    let output = world.rig.netvm().spawn(&mut nft)?.wait_with_output()?;
    let listed = String::from_utf8(output.stdout)?;
    let rule = listed.lines().find(|line| line.contains("not from a qube")).context("no rule")?;
    let comment = rule.split('"').rev().nth(1).context("no comment")?;
    let handle = rule.rsplit(' ').next().context("no handle")?;
    world.rig.netvm().nft(&format!(
        "replace rule ip qubes-firewall forward handle {handle} accept comment \"{comment}\""
    ))?;
    agent.wait_for_log("lets everything pass")?;
    agent.wait_for("the gate to be whole", |status| status.agent.gate_problem.is_none())?;
    let probe = Probe::udp(world.client.namespace(), SocketAddr::new(SERVER4, 443));
    let closed = || probe.run(SILENCE).is_ok_and(|it| it == PROHIBITED4);
    agent.wait_for("what is denied to be rejected", |_| closed())
}

#[test]
fn what_is_accepted_and_does_not_leave_is_told_with_what_is_in_between() -> Result<()> {
    let world = World::new("between")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let from = world.client.namespace();
    let send = || Probe::udp(from, SocketAddr::new(SERVER4, 443));
    world.rig.netvm().nft(
        "table inet others {
            chain strict { type filter hook forward priority -5; meta l4proto udp drop; }
        }",
    )?;
    let is_named = |lost: &Loss| {
        let chain = "forward, priority -5: table inet others, chain strict";
        lost.between.iter().any(|it| it.to_string() == chain)
            && lost.left_frames < lost.accepted_frames
    };
    agent.wait_for("the chain in between to be named", |status| {
        for _ in 0..10 {
            let _ = send().run(std::time::Duration::from_millis(1));
        }
        status.agent.lost.as_ref().is_some_and(is_named)
    })?;
    agent.wait_for_log("not all that rules accepted left")?;
    let (client, chain) = (world.v4.to_string(), "table inet others");
    let explain = ["explain", "--from", &client, "--to", "198.51.100.7:443/udp"];
    agent.wait_for("it to be explained", |_| {
        for _ in 0..10 {
            let _ = send().run(std::time::Duration::from_millis(1));
        }
        // How the text is broken into lines is not asked.
        let text = cli(&agent, &explain).map(|(_, text)| text).unwrap_or_default();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        text.contains(&format!("In between: forward, priority -5: {chain}, chain strict"))
    })?;
    world.rig.netvm().nft("delete table inet others")?;
    agent.wait_for("it to be over", |status| {
        ensure_sent(&send);
        status.agent.lost.is_none()
    })?;
    ensure!(send().run(PATIENCE)? == Outcome::Accepted);
    Ok(())
}

fn ensure_sent(send: &impl Fn() -> Probe) {
    for _ in 0..10 {
        assert_eq!(send().run(PATIENCE).expect("a probe"), Outcome::Accepted);
    }
}

#[test]
fn fragments_of_one_client_do_not_stand_in_for_what_another_loses() -> Result<()> {
    let world = World::new("standin")?;
    let agent = world.start()?;
    let (other, addresses) = neighbour(&world, &agent)?;
    world.put(&agent, &[Rule::all(true)])?;
    put(&agent, addresses, &[Rule::all(true)])?;
    world.rig.netvm().ip(&["link", "set", UPLINK, "mtu", "1280"])?;
    // Without "do not fragment".
    other.namespace().sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    let bound = |at: &Namespace| at.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?));
    let (lost, whole) = (bound(world.client.namespace())?, bound(other.namespace())?);
    let to = SocketAddr::new(SERVER4, 443);
    world.rig.netvm().nft(&format!(
        "table inet others {{
            chain strict {{ type filter hook forward priority -5; ip saddr {} drop; }}
        }}",
        world.v4
    ))?;
    agent.wait_for("the loss to be told", |status| {
        for _ in 0..10 {
            // One in two fragments for each that is lost.
            let _ = (lost.send_to(b"lost", to), whole.send_to(&[7; 1400], to));
        }
        status.agent.lost.as_ref().is_some_and(|it| it.left_frames < it.accepted_frames)
    })
}
