//! Whonix' rules, the agent, its table and vifs that come, go and are replaced in any order under
//! traffic: nothing that is denied comes to Tor at any moment.
//! Never counts what a qube gets back: only what was handed to a socket.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_common::abi::ABI_VERSION;
use firewall_core::told::status::State;
use firewall_tests::oracle::Ruleset;
use firewall_tests::rig::agent::{self, Agent, PATIENCE, write_rules};
use firewall_tests::rig::{CLIENT_INTERFACE, Client};
use firewall_tests::traffic::frames::Sender;
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::flood::{self, ALLOWED};
use firewall_tests::whonix::tables::VIF_GROUP;
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use super::whonix_matrix::dns;

/// Rounds of packets that meet each state of things.
const ENOUGH: u64 = 20;

/// What can happen to a gateway.
#[derive(Clone, Copy, Debug)]
enum Cycle {
    /// Whonix' rules are loaded again.
    Reloaded,
    /// They are gone for a while.
    Unloaded,
    /// They are gone, and the agent starts before they are back.
    WhonixLater,
    /// SIGKILL; Whonix' rules are loaded again; a new agent.
    Killed,
    /// SIGTERM, and a new agent.
    Stopped,
    /// SIGKILL, and a new agent that is killed while it starts, then another.
    CrashLoop,
    /// SIGTERM, and a new agent that finds the maps of another version.
    Upgraded,
    /// Somebody deletes one table of ours, then the next.
    TablesDeleted,
    /// Somebody flushes one table of ours, then the next.
    TablesFlushed,
    /// Somebody deletes all tables of ours at once.
    AllDeleted,
    /// The same while no agent runs; and Whonix' rules are loaded again.
    AllDeletedMeanwhile,
    /// The other qube goes and comes back.
    Vif,
    /// The same while no agent runs.
    VifMeanwhile,
}

use Cycle::*;

const CYCLES: [Cycle; 13] = [
    Reloaded,
    Unloaded,
    WhonixLater,
    Killed,
    Stopped,
    CrashLoop,
    Upgraded,
    TablesDeleted,
    TablesFlushed,
    AllDeleted,
    AllDeletedMeanwhile,
    Vif,
    VifMeanwhile,
];

struct Scene<'a> {
    gateway: &'a Gateway,
    agent: Option<Agent>,
    other: Option<Client>,
    random: StdRng,
    sent: &'a AtomicU64,
}

impl Scene<'_> {
    fn go_round(&mut self, cycle: Cycle) -> Result<()> {
        match cycle {
            Reloaded => {
                for _ in 0..5 {
                    self.gateway.load_whonix()?;
                }
            }
            Unloaded => {
                self.gateway.unload_whonix()?;
                self.let_pass()?;
                self.gateway.load_whonix()?;
            }
            WhonixLater => {
                self.end()?.kill()?;
                self.gateway.unload_whonix()?;
                self.let_pass()?;
                self.start()?;
                self.let_pass()?;
                self.gateway.load_whonix()?;
            }
            Killed => {
                self.end()?.kill()?;
                self.allowed_comes().context("killed")?;
                self.gateway.load_whonix()?;
            }
            Stopped => {
                ensure!(self.end()?.terminate()?, "not a clean end");
                self.allowed_comes().context("stopped")?;
            }
            CrashLoop => {
                self.end()?.kill()?;
                self.start_and_kill()?;
            }
            Upgraded => {
                ensure!(self.end()?.terminate()?, "not a clean end");
                let pins = self.gateway.rig.bpffs().join("firewall");
                fs::rename(pins.join(format!("v{ABI_VERSION}")), pins.join("v0"))?;
            }
            TablesDeleted => self.spoil_tables("delete")?,
            TablesFlushed => self.spoil_tables("flush")?,
            AllDeleted => self.spoil(&self.our_tables()?, "delete")?,
            AllDeletedMeanwhile => {
                let tables = self.our_tables()?;
                self.end()?.kill()?;
                let orders: String =
                    tables.iter().map(|it| format!("delete table {it}\n")).collect();
                self.gateway.netvm().nft(&orders)?;
                self.gateway.load_whonix()?;
            }
            Vif => self.replace_other()?,
            VifMeanwhile => {
                self.end()?.kill()?;
                self.replace_other()?;
            }
        }
        self.let_pass()?;
        if self.agent.is_none() {
            self.start()?;
        }
        self.settle()
    }

    fn end(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    fn start(&mut self) -> Result<()> {
        self.agent = Some(Agent::start(&self.gateway.rig, &["--mode", "whonix"])?);
        Ok(())
    }

    /// A new agent that does not live to see its first client, or only just.
    fn start_and_kill(&mut self) -> Result<()> {
        let directory = self.gateway.rig.directory();
        let mut command = agent::command(&self.gateway.rig, "run", &["--mode", "whonix"])?;
        command.arg("--rules").arg(directory.join("rules"));
        command.arg("--socket").arg(directory.join("control.sock"));
        let mut child = self.gateway.netvm().spawn(command.stderr(Stdio::null()))?;
        std::thread::sleep(Duration::from_millis(self.random.random_range(0..400)));
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Tables that are neither Whonix' nor Qubes' nor the rig's.
    fn our_tables(&self) -> Result<Vec<String>> {
        let json: Value = serde_json::from_str(&self.gateway.nft(&["-j", "list", "tables"])?)?;
        let others = ["inet filter", "inet nat", "ip6 nat", "ip qubes", "ip6 qubes"];
        let tables = json["nftables"].as_array().into_iter().flatten();
        let tables = tables.filter_map(|it| {
            let table = it.get("table")?;
            Some(format!("{} {}", table["family"].as_str()?, table["name"].as_str()?))
        });
        let others = others.into_iter().chain(["inet watch", "inet counted"]);
        let others: Vec<&str> = others.collect();
        Ok(tables.filter(|it| !others.contains(&it.as_str())).collect())
    }

    /// Somebody spoils each table of ours in turn, and it is as it was soon.
    fn spoil_tables(&self, how: &str) -> Result<()> {
        for table in self.our_tables()? {
            self.spoil(&[table], how)?;
        }
        Ok(())
    }

    /// Somebody spoils these tables of ours at once, and they are as they were soon.
    fn spoil(&self, tables: &[String], how: &str) -> Result<()> {
        ensure!(!tables.is_empty(), "we have no table");
        let list = || tables.iter().map(|it| self.rules_of(it)).collect::<Result<Vec<_>>>();
        let before = list()?;
        let orders: String = tables.iter().map(|it| format!("{how} table {it}\n")).collect();
        self.gateway.netvm().nft(&orders)?;
        let deadline = Instant::now() + PATIENCE;
        while list().ok().as_ref() != Some(&before) {
            ensure!(Instant::now() < deadline, "{how} {tables:?}: not mended");
            self.let_pass()?;
        }
        Ok(())
    }

    /// Every rule of a table, without what counts or numbers it.
    fn rules_of(&self, table: &str) -> Result<usize> {
        if !self.our_tables()?.iter().any(|it| it == table) {
            return Ok(0);
        }
        let words: Vec<&str> =
            ["-s", "list", "table"].into_iter().chain(table.split(' ')).collect();
        Ok(self.gateway.nft(&words)?.lines().count())
    }

    /// The other qube goes and comes back, and sends at once what it may not send.
    fn replace_other(&mut self) -> Result<()> {
        let other = self.other.take().context("no other qube")?;
        self.gateway.rig.remove_client(&other)?;
        let other = self.gateway.rig.add_client(&other.spec())?;
        self.gateway.netvm().ip(&["link", "set", other.vif(), "group", VIF_GROUP])?;
        let frames = flood::frames(&other.spec().addresses())?;
        let sender = Sender::open(other.namespace(), CLIENT_INTERFACE)?;
        for frame in frames.iter().cycle().take(frames.len() * 10) {
            sender.send(frame)?;
        }
        self.other = Some(other);
        Ok(())
    }

    /// Waits until the qube has sent some more.
    fn let_pass(&self) -> Result<()> {
        let before = self.sent.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while self.sent.load(Ordering::Relaxed) < before + ENOUGH {
            ensure!(Instant::now() < deadline, "the qube does not send");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits until everything is in force again, and what is allowed comes to Tor.
    fn settle(&self) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent runs")?;
        let other = self.other.as_ref().context("no other qube")?;
        for client in [&self.gateway.qubes[0], other] {
            agent.wait_for_vif(client.vif())?;
            for address in client.spec().addresses() {
                agent.wait_for_state(address, State::Live)?;
            }
        }
        self.allowed_comes().with_context(|| agent.log())
    }

    /// Waits until what is allowed comes to Tor; nothing else may have come, ever.
    fn allowed_comes(&self) -> Result<()> {
        let before = self.gateway.counted_kinds()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.gateway.counted_kinds()?;
            let denied = now.iter().filter(|(name, _)| *name != ALLOWED);
            let denied: Vec<_> = denied.filter(|(_, packets)| **packets > 0).collect();
            ensure!(denied.is_empty(), "came to Tor: {denied:?}");
            if now.get(ALLOWED) > before.get(ALLOWED).map(|it| it + ENOUGH).as_ref() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nothing that is allowed comes");
            self.let_pass()?;
        }
    }
}

#[test]
fn whatever_comes_and_goes_behind_whonix_nothing_that_is_denied_comes_to_tor() -> Result<()> {
    let gateway = Gateway::new("whonixlife")?;
    gateway.count_kinds()?;
    let frames = flood::frames(&gateway.qubes[0].spec().addresses())?;
    gateway.all_kinds_come(&gateway.qubes[0], &frames)?;
    let rules = Ruleset { default_accept: false, rules: vec![dns()] };
    for client in gateway.qubes.iter().flat_map(|it| it.spec().addresses()) {
        write_rules(gateway.rig.directory(), client, &rules.file())?;
    }
    let random = StdRng::seed_from_u64(seed());
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let other = Some(gateway.qubes[1].clone());
    let mut scene = Scene { gateway: &gateway, agent: None, other, random, sent: &sent };
    scene.start()?;
    let count = rounds(22, 1000);
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| flood::send(&gateway.qubes[0], &frames, &done, &sent));
        let mut all_rounds = || -> Result<()> {
            scene.settle().context("at first")?;
            for round in 0..count {
                // Each at least once, then any.
                let next = CYCLES.get(round).or_else(|| CYCLES.choose(&mut scene.random));
                let cycle = *next.context("no cycle")?;
                scene.go_round(cycle).with_context(|| format!("round {round}, {cycle:?}"))?;
            }
            Ok(())
        };
        let outcome = all_rounds();
        done.store(true, Ordering::Relaxed);
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        outcome
    })?;
    let sent = sent.load(Ordering::Relaxed);
    println!("{count} rounds, {sent} packets of each kind, none that is denied came to Tor");
    Ok(())
}
