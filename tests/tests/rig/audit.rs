//! Audits with real packets: what passes meanwhile, and that they end, whatever happens to
//! the agent.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use firewall_agent::edges::control::{self, Request};
use firewall_core::told::status::AuditStatus;
use firewall_core::world::audits::NoAudit;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::files::cli;
use super::world::*;

/// Begins or ends an audit, waits until what is denied by then has ended, and returns in how
/// many seconds the audit ends.
fn audit(agent: &Agent, client: IpAddr, seconds: u64) -> Result<Option<u64>> {
    let request = Request::Audit { client, seconds };
    let answer: Result<AuditStatus, NoAudit> = control::ask(&agent.socket(), &request)?;
    agent.wait_for_settled()?;
    Ok(answer?.audit_seconds_left)
}

fn families(world: &World) -> [(IpAddr, IpAddr, Outcome); 2] {
    [(world.v4, SERVER4, PROHIBITED4), (world.v6, SERVER6, PROHIBITED6)]
}

/// Probes until the answer is another than before.
fn wait_for(probe: &Probe, outcome: Outcome) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = probe.run(SILENCE)?;
        if now == outcome {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "never {outcome}: {now}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_audit_lets_denied_connections_pass_counts_them_and_cuts_them_at_its_end() -> Result<()> {
    let world = World::new("audit")?;
    let agent = world.start()?;
    world.put(&agent, &[ping()])?;
    for (client, server, prohibited) in families(&world) {
        let from = world.client.namespace();
        let to = SocketAddr::new(server, 443);
        assert_eq!(Probe::tcp(from, to).run(SILENCE)?, prohibited);
        let before = agent.client(client)?.default_counter.packets;
        let (code, text) = cli(&agent, &["audit", &client.to_string(), "--for", "1h"])?;
        assert_eq!(code, 0, "{text}");
        assert!(text.starts_with(&format!("AUDIT of {client} is ON for 3600 s")), "{text}");
        let mut flow = OpenFlow::open(from, to, PATIENCE)?;
        ensure!(flow.exchange(PATIENCE)?, "an audited connection does not work");
        assert_eq!(Probe::udp(from, to).run(SILENCE)?, Outcome::Accepted);
        // It is counted as denied, and beside that as audited.
        let status = agent.client(client)?;
        let audited = status.counters["audit"].packets;
        assert!(audited >= 5, "{status:?}");
        assert_eq!(status.default_counter.packets, before + audited);
        let (code, text) = cli(&agent, &["status"])?;
        assert_eq!(code, 1);
        let problem = format!("PROBLEM: {client} is audited: what its rules deny passes for ");
        assert!(text.contains(&problem), "{text}");
        agent.wait_for_log("AUDIT: what its rules deny PASSES")?;
        let (code, text) = cli(&agent, &["audit", &client.to_string(), "--off"])?;
        assert_eq!((code, text.contains("is not audited")), (0, true), "{text}");
        ensure!(!flow.exchange(SILENCE)?, "the connection goes on");
        assert_eq!(Probe::tcp(from, to).run(SILENCE)?, prohibited);
        assert_eq!(agent.client(client)?.audit_seconds_left, None);
        assert_eq!(cli(&agent, &["status"])?.0, 0);
    }
    Ok(())
}

#[test]
fn an_audit_ends_by_itself_and_what_was_opened_meanwhile_ends_with_it() -> Result<()> {
    let world = World::new("auditend")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    let from = world.client.namespace();
    for (client, server, prohibited) in families(&world) {
        let to = SocketAddr::new(server, 443);
        audit(&agent, client, 2)?;
        let mut flow = OpenFlow::open(from, to, PATIENCE)?;
        ensure!(flow.exchange(PATIENCE)?, "an audited connection does not work");
        agent.wait_for("the audit over", |status| {
            status
                .clients
                .iter()
                .all(|client| client.audit_seconds_left.is_none() && !client.settling)
        })?;
        ensure!(!flow.exchange(SILENCE)?, "the connection goes on");
        assert_eq!(Probe::tcp(from, to).run(SILENCE)?, prohibited);
    }
    agent.wait_for_log("audit ended")
}

#[test]
fn an_audit_ends_in_time_although_the_agent_was_killed() -> Result<()> {
    let world = World::new("auditkill")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    let from = world.client.namespace();
    let probes = families(&world).map(|(_, server, prohibited)| {
        (Probe::tcp(from, SocketAddr::new(server, 443)), prohibited)
    });
    for (client, ..) in families(&world) {
        audit(&agent, client, 5)?;
    }
    agent.kill()?;
    for (probe, _) in &probes {
        assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "the audit has ended too early");
    }
    for (probe, prohibited) in &probes {
        wait_for(probe, *prohibited)?;
    }
    // The next agent knows nothing of it.
    let agent = world.start()?;
    for (client, ..) in families(&world) {
        agent.wait_for_state(client, firewall_core::told::status::State::Live)?;
        assert_eq!(agent.client(client)?.audit_seconds_left, None);
    }
    for (probe, prohibited) in &probes {
        assert_eq!(probe.run(SILENCE)?, *prohibited);
    }
    Ok(())
}

#[test]
fn a_new_agent_audits_nobody() -> Result<()> {
    let world = World::new("auditnew")?;
    let agent = world.start()?;
    world.put(&agent, &[])?;
    audit(&agent, world.v4, 3600)?;
    let probe = Probe::tcp(world.client.namespace(), SocketAddr::new(SERVER4, 443));
    assert_eq!(probe.run(SILENCE)?, Outcome::Accepted);
    agent.kill()?;
    assert_eq!(probe.run(SILENCE)?, Outcome::Accepted);
    let agent = world.start()?;
    agent.wait_for_state(world.v4, firewall_core::told::status::State::Live)?;
    assert_eq!(probe.run(SILENCE)?, PROHIBITED4);
    Ok(())
}

#[test]
fn an_audit_that_makes_no_sense_is_refused() -> Result<()> {
    let world = World::new("auditno")?;
    let agent = world.start()?;
    let v4 = world.v4.to_string();
    for (arguments, code) in [
        (["audit", "10.137.0.99", "--for", "1m"].as_slice(), 2),
        (&["audit", &v4, "--for", "1m"], 2),
        (&["audit", &v4], 2),
        (&["audit", &v4, "--for", "25h"], 2),
        (&["audit", &v4, "--for", "0s"], 2),
        (&["audit", &v4, "--for", "1m", "--off"], 2),
        (&["audit", &v4, "--off"], 0),
    ] {
        assert_eq!(cli(&agent, arguments)?.0, code, "{arguments:?}");
    }
    Ok(())
}
