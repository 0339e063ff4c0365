//! Rules as dom0 writes them, through QubesDB to the real agent and to real packets.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_core::connection::Flow;
use firewall_core::told::status::{ProblemStatus, State};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::qubesdb::{Behaviour, FakeQubesDb, Lie};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, SILENCE};
use nix::sys::signal::Signal;

use super::cutting::flows_of;
use super::world::*;

const WEB: &[(&str, &[u8])] = &[("0000", b"action=accept proto=tcp dstports=443-443")];
const ALL: &[(&str, &[u8])] = &[("0000", b"action=accept")];
const ONLY_WEB4: [Outcome; 4] = [Outcome::Accepted, PROHIBITED4, PROHIBITED4, PROHIBITED4];
const ONLY_WEB6: [Outcome; 4] = [Outcome::Accepted, PROHIBITED6, PROHIBITED6, PROHIBITED6];

/// A world whose netvm has QubesDB, and an agent that finds it by itself.
struct Qube {
    world: World,
    db: FakeQubesDb,
    /// How often rules of each client were written.
    written: u64,
}

impl Qube {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let socket = world.rig.directory().join("root/var/run/qubes/qubesdb.sock");
        let db = FakeQubesDb::start(&socket)?;
        Ok(Self { world, db, written: 0 })
    }

    fn clients(&self) -> [IpAddr; 2] {
        [self.world.v4, self.world.v6]
    }

    /// Writes rules of both addresses as dom0 does.
    fn write(&mut self, rules: &[(&str, &[u8])]) {
        for client in self.clients() {
            self.db.reload(&client.to_string(), "drop", rules);
        }
        self.written += 1;
    }

    /// Waits until the agent says that they are in force, as users' scripts do.
    fn wait(&self) -> Result<()> {
        for client in self.clients() {
            let key = format!("/qubes-firewall-handled/{client}");
            self.db.wait_for(&key, &self.written.to_string(), PATIENCE)?;
        }
        Ok(())
    }
}

#[test]
fn rules_are_in_force_when_qubesdb_says_that_they_were_handled() -> Result<()> {
    let mut qube = Qube::new("handled")?;
    qube.write(WEB);
    let agent = Agent::start(&qube.world.rig, &[])?;
    ensure!(agent.status()?.agent.source.contains("qubesdb.sock"), "not from QubesDB");
    agent.wait_for_vif(qube.world.client.vif())?;
    qube.wait()?;
    qube.world.check("at first", ONLY_WEB4, ONLY_WEB6);
    for round in 0..10 {
        qube.write(if round % 2 == 0 { ALL } else { WEB });
        qube.wait()?;
        // Nothing else is waited for.
        if round % 2 == 0 {
            qube.world.check("all", ACCEPTED, ACCEPTED);
        } else {
            qube.world.check("the web", ONLY_WEB4, ONLY_WEB6);
        }
    }
    // Half of new rules, and none of them in the end: what was committed is in force.
    qube.db.begin(&qube.world.v4.to_string(), "drop", ALL);
    qube.world.check("half", ONLY_WEB4, ONLY_WEB6);
    Ok(())
}

#[test]
fn a_key_without_a_commit_counts_after_sighup_as_after_a_restart() -> Result<()> {
    for signal in [Some(Signal::SIGHUP), None] {
        let mut qube = Qube::new("uncommitted")?;
        qube.write(WEB);
        let mut agent = Agent::start(&qube.world.rig, &[])?;
        agent.wait_for_vif(qube.world.client.vif())?;
        qube.wait()?;
        for client in qube.clients() {
            qube.db.write(&format!("/qubes-firewall/{client}/0000"), b"action=accept");
        }
        // Written behind the keys: when this is known, they are too, and they do not count.
        qube.db.reload("10.138.0.1", "drop", WEB);
        qube.db.wait_for("/qubes-firewall-handled/10.138.0.1", "1", PATIENCE)?;
        qube.world.check(&format!("before {signal:?}"), ONLY_WEB4, ONLY_WEB6);
        match signal {
            Some(signal) => agent.signal(signal)?,
            None => {
                drop(agent);
                agent = Agent::start(&qube.world.rig, &[])?;
            }
        }
        qube.written += 1;
        qube.wait()?;
        qube.world.check(&format!("after {signal:?}"), ACCEPTED, ACCEPTED);
        // A tree without its commit is no rules to either.
        qube.db.begin("10.138.0.2", "accept", ALL);
        agent.signal(Signal::SIGHUP)?;
        qube.written += 1;
        qube.wait()?;
        let never = "10.138.0.2".parse::<IpAddr>()?;
        ensure!(agent.status()?.clients.iter().all(|it| it.address != never), "not committed");
    }
    Ok(())
}

/// How many maps the agent has open.
fn count_maps(agent: &Agent) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?;
    // One that was closed meanwhile is none.
    let targets = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().contains("bpf-map")).count())
}

/// How many files the agent may have open from now on.
fn limit_files(agent: &Agent, most: u32) -> Result<()> {
    let (pid, limit) = (agent.pid().to_string(), format!("--nofile={most}:"));
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status()?;
    ensure!(status.success(), "prlimit says {status}");
    Ok(())
}

#[test]
fn rules_are_in_force_but_not_handled_while_connections_cannot_be_read() -> Result<()> {
    let mut qube = Qube::new("unread")?;
    let agent = Agent::start(&qube.world.rig, &[])?;
    agent.wait_for_vif(qube.world.client.vif())?;
    let prepared = count_maps(&agent)?;
    qube.write(ALL);
    qube.wait()?;
    // Each policy takes a map that was made before, and the agent makes others a moment later.
    let deadline = Instant::now() + PATIENCE;
    while count_maps(&agent)? != prepared {
        ensure!(Instant::now() < deadline, "no room is made ready");
        thread::yield_now();
    }
    let to = SocketAddr::new(SERVER4, 80);
    let mut doomed = OpenFlow::open(qube.world.client.namespace(), to, PATIENCE)?;
    ensure!(doomed.exchange(PATIENCE)?, "the connection does not work at first");
    // The kernel gives the agent no socket to read connections with.
    limit_files(&agent, 3)?;
    qube.write(WEB);
    agent.wait_for_log("connections that rules deny are not ended")?;
    ensure!(agent.log().contains("Too many open files"), "{}", agent.log());
    // What is denied is dropped, as for anybody who settles.
    let silent = [Outcome::Accepted, Outcome::Silent, Outcome::Silent, Outcome::Silent];
    qube.world.check("unread", silent, silent);
    let is_there = |flow: &Flow| flow.packet.port == to.port();
    ensure!(flows_of(&qube.world, qube.world.v4)?.iter().any(is_there), "it has ended");
    for client in qube.clients() {
        let handled = qube.db.get(&format!("/qubes-firewall-handled/{client}"));
        assert_eq!(handled.as_deref(), Some("1"), "{client}");
    }
    limit_files(&agent, 1024)?;
    qube.wait()?;
    ensure!(!flows_of(&qube.world, qube.world.v4)?.iter().any(is_there), "it has not ended");
    agent.wait_for("all well", |status| status.agent.failing.is_empty())?;
    qube.world.check("read", ONLY_WEB4, ONLY_WEB6);
    ensure!(!doomed.exchange(SILENCE)?, "the denied connection goes on");
    Ok(())
}

#[test]
fn a_policy_that_the_kernel_refuses_for_now_is_in_force_by_itself_when_it_does_not() -> Result<()> {
    let mut qube = Qube::new("refused")?;
    qube.write(ALL);
    let agent = Agent::start(&qube.world.rig, &[])?;
    agent.wait_for_vif(qube.world.client.vif())?;
    qube.wait()?;
    // Each map is a file; those of the first rules were made before, the next ones cannot be.
    limit_files(&agent, 3)?;
    qube.write(WEB);
    agent.wait_for_log("no room is ready for the next policies")?;
    // Each took a room of its own; with a file less, `status` cannot be asked.
    for client in qube.clients() {
        agent.wait_for_log(&format!("policy proved client={client} rules=1 cells_checked=6"))?;
    }
    qube.write(&[("0000", b"action=accept"), ("0001", b"action=drop proto=udp")]);
    for client in qube.clients() {
        let problem = format!("blocked client={client} why=");
        agent.wait_for_log(&problem)?;
        let log = agent.log();
        let line = log.lines().find(|line| line.contains(&problem)).unwrap_or_default();
        ensure!(line.contains("Too many open files") && line.contains("tried again"), "{line}");
    }
    // Neither the old rules nor the new ones are in force, but none at all.
    qube.world.check("refused", SILENT, SILENT);
    limit_files(&agent, 1024)?;
    for client in qube.clients() {
        agent.wait_for_state(client, State::Live)?;
    }
    qube.wait()?;
    agent.wait_for("all well", |status| status.agent.failing.is_empty())?;
    qube.world.check("not refused", ACCEPTED, ACCEPTED);
    Ok(())
}

/// What can be wrong with a rule; the facts are those of today's agent, which dies of some.
const MALFORMED: &[&str] = &[
    "",
    " action=accept",
    "action=accept ",
    "action=accept  proto=tcp",
    "action=accept tcp",
    "action=accept action=drop",
    "action=accept comment=a",
    "action=accept dpi=http",
    "action=accept dst4=0.0.0.0/33",
    "action=accept dst4=1.2.3.4 dsthost=a.example",
    "action=accept dst4=1.2.3.4=5",
    "action=accept dst4=1.2.3.400/32",
    "action=accept dst4=192.0.2.1/32; drop",
    "action=accept dst4=host.example",
    "action=accept dsthost=",
    "action=accept dsthost=.a",
    "action=accept dsthost=01.2.3.4",
    "action=accept dsthost=1.2",
    "action=accept dsthost=\u{e9}",
    "action=accept dstports=80-81-82",
    "action=accept expire=1",
    "action=accept foo=bar",
    "action=accept icmptype=8 proto=tcp",
    "action=accept proto=47",
    "action=accept proto=bogus",
    "action=accept proto=icmp dstports=80-80",
    "action=accept proto=icmp icmptype=300",
    "action=accept proto=icmp specialtarget=dns",
    "action=accept proto=tcp dstports=1-65536",
    "action=accept proto=tcp dstports=90-80",
    "action=accept proto=tcp dstports=http",
    "action=accept specialtarget=foo",
    "action=maybe",
    "proto=tcp",
];

#[test]
fn every_malformed_rule_blocks_its_client_alone_and_the_daemon_lives() -> Result<()> {
    let mut qube = Qube::new("malformed")?;
    qube.write(WEB);
    let agent = Agent::start(&qube.world.rig, &[])?;
    agent.wait_for_vif(qube.world.client.vif())?;
    qube.wait()?;
    let (bad, good) = (qube.world.v4, qube.world.v6);
    let generation = agent.client(good)?.generation;
    let handled = format!("/qubes-firewall-handled/{bad}");
    let mut count = 1;
    let mut check = |policy: &str, rules: &[(&str, &[u8])], quoted: &str| -> Result<()> {
        qube.db.reload(&bad.to_string(), policy, rules);
        count += 1;
        qube.db.wait_for(&handled, &count.to_string(), PATIENCE)?;
        let client = agent.client(bad)?;
        ensure!(client.state == State::Blocked, "`{quoted}` does not block: {client:?}");
        let ProblemStatus { origin, text, reason, .. } = client.problem.context("no reason")?;
        ensure!(text == quoted && !reason.is_empty(), "`{quoted}`: `{text}`, {reason}");
        ensure!(origin.starts_with(&format!("/qubes-firewall/{bad}")), "{origin}");
        ensure!(agent.client(good)?.generation == generation, "`{quoted}` touched {good}");
        Ok(())
    };
    for &rule in MALFORMED {
        check("drop", &[("0000", rule.as_bytes())], rule)?;
    }
    check("reject", ALL, "reject")?;
    check("", ALL, "")?;
    for key in ["00000", "10000", "abcd", "0000/x", "000"] {
        check("drop", &[(key, b"action=accept")], "action=accept")?;
    }
    check("drop", &[("0000", b"action=accept dsthost=\xff")], "action=accept dsthost=\u{fffd}")?;
    let address = bad.to_string();
    for odd in ["", "10.137.0.12 999.1.2.3 fe80::1 \u{e9}", "10.137.0.12 10.137.0.12"] {
        qube.db.write("/connected-ips", odd.as_bytes());
        qube.db.write("/connected-ips6", odd.as_bytes());
    }
    qube.db.write("/qubes-firewall/nonsense", b"");
    qube.db.write("/qubes-firewall/nonsense/0000", b"action=accept");
    qube.world.check("the good one", ALL_PROHIBITED4, ONLY_WEB6);
    qube.db.reload(&address, "drop", WEB);
    agent.wait_for_state(bad, State::Live)?;
    qube.world.check("both", ONLY_WEB4, ONLY_WEB6);
    Ok(())
}

#[test]
fn while_qubesdb_is_away_or_lies_what_is_in_force_stays_and_status_says_so() -> Result<()> {
    let mut qube = Qube::new("away")?;
    qube.write(WEB);
    let agent = Agent::start(&qube.world.rig, &[])?;
    agent.wait_for_vif(qube.world.client.vif())?;
    qube.wait()?;
    let ways = [
        Behaviour { hangs_up_after: Some(0), ..Behaviour::default() },
        Behaviour { lie: Some(Lie::OtherPath), ..Behaviour::default() },
        Behaviour { lie: Some(Lie::Endless), ..Behaviour::default() },
    ];
    for behaviour in ways {
        let name = format!("{behaviour:?}");
        qube.db.behave(behaviour);
        qube.db.hang_up();
        agent.wait_for("a problem", |status| status.agent.source_problem.is_some())?;
        qube.world.check(&name, ONLY_WEB4, ONLY_WEB6);
        // What dom0 writes meanwhile counts when QubesDB is itself again.
        for client in qube.clients() {
            qube.db.reload(&client.to_string(), "drop", ALL);
        }
        qube.world.check(&name, ONLY_WEB4, ONLY_WEB6);
        qube.db.behave(Behaviour::default());
        agent.wait_for("no problem", |status| status.agent.source_problem.is_none())?;
        qube.world.check("again", ACCEPTED, ACCEPTED);
        for client in qube.clients() {
            let before = agent.client(client)?.generation;
            qube.db.reload(&client.to_string(), "drop", WEB);
            agent.wait_for("the web", |status| {
                let mut clients = status.clients.iter();
                clients.any(|it| it.address == client && it.generation != before && !it.settling)
            })?;
        }
    }
    // A daemon that is slow delays nothing but itself.
    let slow = Behaviour { delay: Duration::from_secs(3), ..Behaviour::default() };
    qube.db.behave(slow);
    qube.db.write("/connected-ips", b"10.137.0.12");
    agent.status()?;
    qube.world.check("slow", ONLY_WEB4, ONLY_WEB6);
    Ok(())
}

#[test]
fn trees_of_clients_that_are_gone_stay_in_qubesdb_and_nowhere_else() -> Result<()> {
    let mut qube = Qube::new("stale")?;
    for number in 1..=100 {
        qube.db.reload(&format!("10.138.0.{number}"), "drop", WEB);
    }
    qube.write(WEB);
    let agent = Agent::start(&qube.world.rig, &[])?;
    agent.wait_for_vif(qube.world.client.vif())?;
    qube.wait()?;
    qube.world.check("among the dead", ONLY_WEB4, ONLY_WEB6);
    let status = agent.status()?;
    let in_force = status.clients.iter().filter(|client| client.generation.is_some());
    assert_eq!(in_force.count(), 2);
    // Not named by dom0 as connected: nobody's address.
    qube.db.write("/connected-ips", b"");
    agent.wait_for("100 absent", |status| {
        status.clients.iter().filter(|client| client.state == State::Absent).count() == 100
    })?;
    Ok(())
}
