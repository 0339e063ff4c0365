//! Ends, new beginnings and upgrades of the agent, and vifs that come and go, one after the
//! other under traffic: nothing leaks, and nothing that is allowed breaks.

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_common::abi::ABI_VERSION;
use firewall_core::told::status::State;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::{self, Agent, PATIENCE, write_rules};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{Client, ClientSpec};
use firewall_tests::traffic::probe::OpenFlow;
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::world::*;

pub const DENIED: SocketAddr = SocketAddr::new(SERVER4, 82);
pub const ALLOWED: SocketAddr = SocketAddr::new(SERVER4, 83);

/// What can happen to an agent that has nothing wrong with it, and to vifs.
#[derive(Clone, Copy, Debug)]
enum Cycle {
    /// SIGKILL, then a new agent.
    Kill,
    /// SIGTERM, then a new agent.
    Stop,
    /// SIGKILL, and a new agent that is killed while it starts, then another.
    CrashLoop,
    /// SIGTERM, and a new agent that finds everything under the directory of another
    /// version of the maps' layout.
    Upgrade,
    /// A client goes and comes back while the agent runs.
    Vif,
    /// A client goes and comes back while no agent runs.
    VifMeanwhile,
    /// SIGKILL, and a new agent that attaches in the other way.
    OtherWay,
}

const CYCLES: [Cycle; 6] =
    [Cycle::Kill, Cycle::Stop, Cycle::CrashLoop, Cycle::Upgrade, Cycle::Vif, Cycle::VifMeanwhile];

struct Scene<'a> {
    world: &'a World,
    /// How agents attach.
    attach: &'static str,
    agent: Option<Agent>,
    other: Option<Client>,
    random: StdRng,
}

impl Scene<'_> {
    fn go_round(&mut self, cycle: Cycle) -> Result<()> {
        match cycle {
            Cycle::Kill => self.end()?.kill()?,
            Cycle::Stop => ensure!(self.end()?.terminate()?, "not a clean end"),
            Cycle::CrashLoop => {
                self.end()?.kill()?;
                self.start_and_kill()?;
            }
            Cycle::Upgrade => {
                ensure!(self.end()?.terminate()?, "not a clean end");
                let pins = self.world.rig.bpffs().join("firewall");
                fs::rename(pins.join(format!("v{ABI_VERSION}")), pins.join("v0"))?;
            }
            Cycle::Vif => self.replace_other()?,
            Cycle::VifMeanwhile => {
                self.end()?.kill()?;
                self.replace_other()?;
            }
            Cycle::OtherWay => {
                self.end()?.kill()?;
                let other = ways().iter().find(|way| **way != self.attach);
                self.attach = other.unwrap_or(&self.attach);
            }
        }
        if self.agent.is_none() {
            self.agent = Some(Agent::start(&self.world.rig, &["--attach", self.attach])?);
        }
        self.settle()
    }

    fn end(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    /// A new agent that does not live to see its first client, or only just.
    fn start_and_kill(&mut self) -> Result<()> {
        let directory = self.world.rig.directory();
        let mut command = agent::command(&self.world.rig, "run", &["--attach", self.attach])?;
        command.arg("--rules").arg(directory.join("rules"));
        command.arg("--socket").arg(directory.join("control.sock"));
        let mut child = self.world.rig.netvm().spawn(command.stderr(Stdio::null()))?;
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..400)));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The other client goes, comes back, and sends at once what it may not send.
    fn replace_other(&mut self) -> Result<()> {
        if let Some(other) = self.other.take() {
            self.world.rig.remove_client(&other)?;
        }
        let other = self.world.rig.add_client(&ClientSpec::numbered(13))?;
        other.namespace().run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..20 {
                // The answer to the one before can make this call fail.
                let _ = socket.send_to(b"no", DENIED);
            }
            Ok(())
        })?;
        self.other = Some(other);
        Ok(())
    }

    /// Waits until everything is in force again.
    fn settle(&self) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        agent.wait_for_vif(self.world.client.vif())?;
        agent.wait_for_state(self.world.v4, State::Live)?;
        if let Some(other) = &self.other {
            agent.wait_for_vif(other.vif())?;
            for address in other.spec().addresses() {
                agent.wait_for_state(address, State::Live)?;
            }
        }
        Ok(())
    }

    /// Resident memory of the agent, in KiB.
    fn memory(&self) -> Result<u64> {
        self.agent.as_ref().context("no agent runs")?.memory("VmRSS")
    }
}

/// Sends what is denied and what is allowed, until it is done; returns how much was allowed.
pub fn send(
    client: &Client,
    allowed: &EchoServer,
    done: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    client.namespace().run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_nonblocking(true)?;
        while !done.load(Ordering::Relaxed) {
            let _ = socket.send_to(b"no", DENIED);
            // The answer to the one before can make this call fail; then it was not sent.
            if socket.send_to(b"yes", ALLOWED).is_ok() {
                let sent = sent.fetch_add(1, Ordering::Relaxed) + 1;
                // Few enough on their way for any socket's buffer: what does not arrive then
                // was lost in the netvm.
                let arrives = allowed.wait_until(|it| it.udp_packets + 32 > sent, PATIENCE);
                ensure!(arrives, "{sent} sent, {:?} arrived", allowed.received());
            }
        }
        Ok(())
    })
}

#[test]
fn nothing_leaks_and_nothing_breaks_while_agents_and_vifs_come_and_go() -> Result<()> {
    come_and_go("cycles", ways()[0], &CYCLES, rounds(30, 1000))
}

/// A filter is replaced in its place, as the program under a link of tcx is.
#[test]
fn nothing_leaks_and_nothing_breaks_by_clsact_alone() -> Result<()> {
    come_and_go("cyclescl", "clsact", &CYCLES, rounds(30, 1000))
}

/// With clsact first: the kernel stops a link's queues while it gets the qdisc, which is once
/// (`qdisc_graft` in net/sched/sch_api.c), and packets are lost then.
#[test]
fn nothing_leaks_and_nothing_breaks_when_agents_attach_in_another_way() -> Result<()> {
    if !has_tcx() {
        firewall_tests::skip(
            "nothing_leaks_and_nothing_breaks_when_agents_attach_in_another_way",
            "the kernel has no tcx",
        )?;
        return Ok(());
    }
    come_and_go("cyclesway", "clsact", &[Cycle::OtherWay], rounds(10, 300))
}

/// Goes through some of these cycles.
fn come_and_go(label: &str, attach: &'static str, cycles: &[Cycle], count: usize) -> Result<()> {
    let world = World::new(label)?;
    let denied = EchoServer::start(world.rig.internet(), DENIED)?;
    let allowed = EchoServer::start(world.rig.internet(), ALLOWED)?;
    let udp = Rule { proto: Some(Proto::Udp), ports: Some((83, 83)), ..Rule::all(true) };
    let rules = Ruleset { default_accept: false, rules: vec![udp, tcp_443()] };
    let numbers = [world.client.spec(), ClientSpec::numbered(13)];
    for client in numbers.iter().flat_map(ClientSpec::addresses) {
        write_rules(world.rig.directory(), client, &rules.file())?;
    }
    let agent = Some(Agent::start(&world.rig, &["--attach", attach])?);
    let random = StdRng::seed_from_u64(seed());
    let mut scene = Scene { world: &world, attach, agent, other: None, random };
    scene.replace_other()?;
    scene.settle()?;
    let to = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let pins = world.pins("")?.len();
    let memory = scene.memory()?;
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| send(&world.client, &allowed, &done, &sent));
        let mut all_rounds = || -> Result<()> {
            for round in 0..count {
                let cycle = *cycles.choose(&mut scene.random).context("no cycle")?;
                let before = sent.load(Ordering::Relaxed);
                scene.go_round(cycle).with_context(|| format!("round {round}, {cycle:?}"))?;
                ensure!(flow.exchange(PATIENCE)?, "round {round}, {cycle:?} broke a connection");
                let leaked = denied.received().udp_packets;
                ensure!(leaked == 0, "round {round}, {cycle:?}: {leaked} packets leaked");
                ensure!(sent.load(Ordering::Relaxed) > before, "round {round}: no traffic");
            }
            Ok(())
        };
        let outcome = all_rounds();
        done.store(true, Ordering::Relaxed);
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        outcome
    })?;
    let sent = sent.load(Ordering::Relaxed);
    if !allowed.wait_until(|it| it.udp_packets == sent, PATIENCE) {
        bail!("{sent} allowed, {} arrived", allowed.received().udp_packets);
    }
    assert_eq!(world.pins("")?.len(), pins);
    let later = scene.memory()?;
    println!("{count} rounds, {sent} packets, resident memory {memory} KiB, then {later} KiB");
    assert!(later < memory + memory / 4, "{memory} KiB, then {later} KiB");
    Ok(())
}
