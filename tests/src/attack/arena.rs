//! A netvm with the real agent, a host outside, two honest clients and the attacker; a sequence
//! is played there, and everything that must hold is looked at after each of its steps.
//! Never looks into the firewall: what it sees is what there is for anybody to see.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::control::{self, Request};
use firewall_core::told::status::{AuditStatus, State};
use firewall_core::world::audits::NoAudit;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::attacker::{Attacker, Offload};
use super::content::Ink;
use super::counted::Counted;
use super::frame::Frame;
use super::honest::{Party, mtu};
use super::mark::Mark;
use super::may::{May, Now};
use super::outcome::{Fault, Score};
use super::place::{ATTACKER, HONEST, Ports, SERVED, SERVER, Whose};
use super::sequence::{Rules, Sequence, Step};
use super::tables::Tables;
use super::watch::{Seen, Watch};
use crate::oracle::{Rule, Ruleset};
use crate::rig::agent::{Agent, write_rules};
use crate::rig::server::EchoServer;
use crate::rig::{Client, ClientSpec, Rig, UPLINK_V4, UPLINK_V6};

/// How many frames a flood sends before it is looked at: fewer than a kernel queues.
const GUST: usize = 200;
/// How long an audit lasts that is not ended, in seconds.
const AUDIT: u64 = 3600;

/// The place.
pub struct Arena {
    agent: Option<Agent>,
    attacker: Attacker,
    /// Whether what the attacker opened while it was open has ended.
    is_cut: bool,
    own: Vec<IpAddr>,
    vif: String,
    watch: Watch,
    parties: Vec<Party>,
    ports: Ports,
    way_back: [i32; 2],
    now: Now,
    score: Score,
    _servers: Vec<EchoServer>,
    rig: Rig,
}

impl Arena {
    /// Makes it, with everybody's flows open and the attacker closed. The calling thread stays
    /// on one processor.
    pub fn new(label: &str) -> Result<Self> {
        stay_on_this_processor()?;
        let rig = Rig::new(label)?;
        let mut servers = Vec::new();
        for server in SERVER {
            rig.add_internet_address(server)?;
            servers.push(EchoServer::start(rig.internet(), SocketAddr::new(server, SERVED))?);
        }
        // Whatever else arrives is not answered.
        rig.silence_nobody()?;
        let clients: Vec<Client> = HONEST
            .iter()
            .map(|number| rig.add_client(&ClientSpec::numbered(*number)))
            .collect::<Result<_>>()?;
        let client = rig.add_client(&ClientSpec::numbered(ATTACKER))?;
        let own = client.spec().addresses();
        let everything = ruleset(&[Rule::all(true)]);
        for address in clients.iter().flat_map(|client| client.spec().addresses()) {
            write_rules(rig.directory(), address, &everything.file())?;
        }
        for address in &own {
            write_rules(rig.directory(), *address, &ruleset(&[]).file())?;
        }
        let agent = Agent::start(&rig, &[])?;
        for client in &clients {
            agent.wait_for_vif(client.vif())?;
            for address in client.spec().addresses() {
                agent.wait_for_state(address, State::Live)?;
            }
        }
        let mut parties = Vec::new();
        for (index, client) in (0..).zip(&clients) {
            let (whose, own) = (Whose::Honest(index), client.spec().addresses());
            parties.push(Party::new(client.vif(), whose, client.namespace(), &own)?);
        }
        let own_of_netvm = [UPLINK_V4.into(), UPLINK_V6.into()];
        parties.push(Party::new("the netvm", Whose::Netvm, rig.netvm(), &own_of_netvm)?);
        let mut ports = Ports::default();
        for party in &parties {
            ports.0.extend(party.ports()?.0);
        }
        let mut arena = Self {
            agent: Some(agent),
            attacker: Attacker::new(&client)?,
            own,
            is_cut: true,
            vif: client.vif().to_owned(),
            watch: Watch::new(&rig, &client, &clients)?,
            parties,
            ports,
            way_back: way_back(&rig)?,
            now: Now { in_force: Rules::Deny, written: Rules::Deny, is_audited: false },
            score: Score::default(),
            _servers: servers,
            rig,
        };
        arena.wait_until_in_force()?;
        let harm = arena.harm()?;
        ensure!(harm.is_empty(), "honest flows do not work at first: {harm:?}");
        arena.score = Score::default();
        Ok(arena)
    }

    /// What was done here so far.
    pub fn score(&self) -> Score {
        Score { sent: self.attacker.sent, ..self.score }
    }

    /// Where the agent writes its log.
    pub fn log(&self) -> PathBuf {
        self.rig.directory().join("agent.log")
    }

    /// Plays a sequence, closes the attacker again, and says what must not be. An error is one
    /// of the place itself.
    pub fn play(&mut self, sequence: &Sequence) -> Result<Vec<Fault>> {
        let mut faults = Vec::new();
        let closing = [Step::Start, Step::Audit(false), Step::Rules(Rules::Deny)];
        let last_look = Step::Send(Vec::new());
        for step in sequence.steps.iter().chain(&closing).chain([&last_look]) {
            let found = self.step(step);
            faults.extend(found.with_context(|| format!("`{}`, {step:?}", sequence.name))?);
        }
        faults.extend(self.too_much()?);
        faults.extend(self.harm()?.into_iter().map(Fault::Harmed));
        self.score.sequences += 1;
        Ok(faults)
    }

    fn step(&mut self, step: &Step) -> Result<Vec<Fault>> {
        match step {
            Step::Send(frames) => {
                let frames: Vec<(&Frame, Option<u16>)> =
                    frames.iter().map(|it| (it, None)).collect();
                self.send(&frames)
            }
            Step::Flood(frame, count) => {
                let numbered: Vec<(&Frame, Option<u16>)> =
                    (0..*count).map(|number| (frame, Some(number))).collect();
                let mut faults = Vec::new();
                for gust in numbered.chunks(GUST) {
                    faults.extend(self.send(gust)?);
                }
                faults.extend(self.too_much()?);
                Ok(faults)
            }
            Step::Rules(rules) => self.set_rules(*rules),
            Step::Audit(on) => self.audit(*on),
            Step::Kill => {
                if let Some(agent) = self.agent.take() {
                    agent.kill()?;
                }
                Ok(Vec::new())
            }
            Step::Start => self.start(),
        }
    }

    /// Sends, waits until all of it has been handled, and looks at what came of it.
    fn send(&mut self, frames: &[(&Frame, Option<u16>)]) -> Result<Vec<Fault>> {
        let may = self.now.may();
        let mark = if may == May::Nothing { Mark::Canary } else { Mark::Open };
        let before = self.counted()?;
        let sent_before = self.attacker.sent;
        for (frame, number) in frames {
            let ink = Ink { mark, ports: &self.ports, number: *number };
            let (bytes, offload) = frame.build(ink);
            self.attacker.send(&bytes, offload)?;
        }
        let sent = self.attacker.sent - sent_before;
        let seen = self.look()?;
        let after = self.counted()?;
        let mut faults = self.judge(&seen);
        let (Some(before), Some(after)) = (before, after) else { return Ok(faults) };
        let all = after.all - before.all;
        let chatter = after.chatter - before.chatter;
        let passed = after.passed - before.passed;
        // The last frame of a look is the attacker's as well, and counted.
        if !(sent + 1..=sent + 1 + chatter).contains(&all) {
            let grown = after.grown_since(&before);
            let text = format!("{all} frames counted, {} sent; grown: {grown}", sent + 1);
            faults.push(Fault::Untrue(text));
        }
        if may == May::Nothing && seen.canary > 0 && passed == 0 {
            let text = format!("{} frames left, and all are counted as denied", seen.leaks.len());
            faults.push(Fault::Untrue(text));
        }
        let plain = |(frame, _): &(&Frame, Option<u16>)| matches!(frame, Frame::Ip(packet) if packet.is_plain());
        if may == May::Everything && frames.iter().all(plain) && (passed, seen.open) != (sent, sent)
        {
            let left = seen.open;
            let text =
                format!("{sent} plain packets sent, {passed} counted as passed, {left} left");
            faults.push(Fault::Untrue(text));
        }
        Ok(faults)
    }

    fn look(&mut self) -> Result<Seen> {
        let attacker = &mut self.attacker;
        let send = |frame: &[u8]| {
            attacker.send(frame, Offload::default())?;
            Ok(())
        };
        let seen = self.watch.look(send)?;
        self.score.seen += seen.frames;
        self.score.canary += seen.canary;
        self.score.harms += seen.errors.len() as u64;
        Ok(seen)
    }

    fn judge(&self, seen: &Seen) -> Vec<Fault> {
        let leaks = seen.leaks.iter().cloned().map(Fault::Leaked);
        let errors = seen.errors.iter().map(|error| Fault::Harmed(format!("it got {error}")));
        leaks.chain(errors).collect()
    }

    /// What the agent says that it counted, if one runs.
    fn counted(&self) -> Result<Option<Counted>> {
        let Some(agent) = &self.agent else { return Ok(None) };
        Ok(Some(Counted::of(&agent.status()?, &self.own)))
    }

    fn set_rules(&mut self, rules: Rules) -> Result<Vec<Fault>> {
        if self.now.written == rules {
            return Ok(Vec::new());
        }
        for address in self.own.clone() {
            self.write(address, rules)?;
        }
        self.now.written = rules;
        if self.agent.is_some() {
            self.now.in_force = rules;
        }
        Ok(Vec::new())
    }

    /// Writes rules, and waits until an agent has put them in force.
    fn write(&self, address: IpAddr, rules: Rules) -> Result<()> {
        let directory = self.rig.directory();
        let accepted = match rules {
            Rules::Accept => vec![Rule::all(true)],
            Rules::Deny | Rules::Broken | Rules::Gone => Vec::new(),
        };
        match (rules, &self.agent) {
            (Rules::Accept | Rules::Deny, Some(agent)) => agent.put(address, &ruleset(&accepted)),
            (Rules::Accept | Rules::Deny, None) => {
                write_rules(directory, address, &ruleset(&accepted).file())
            }
            (Rules::Broken, agent) => {
                write_rules(directory, address, "action=perhaps\n")?;
                agent.as_ref().map_or(Ok(()), |it| it.wait_for_state(address, State::Blocked))
            }
            (Rules::Gone, agent) => {
                std::fs::remove_file(directory.join("rules").join(address.to_string()))?;
                agent.as_ref().map_or(Ok(()), |it| it.wait_for_state(address, State::Waiting))
            }
        }
    }

    fn audit(&mut self, on: bool) -> Result<Vec<Fault>> {
        let Some(agent) = &self.agent else { return Ok(Vec::new()) };
        let seconds = if on { AUDIT } else { 0 };
        let mut is_audited = false;
        for client in &self.own {
            let request = Request::Audit { client: *client, seconds };
            let answer: Result<AuditStatus, NoAudit> = control::ask(&agent.socket(), &request)?;
            is_audited |= answer.is_ok_and(|it| it.audit_seconds_left.is_some());
        }
        self.now.is_audited = is_audited;
        Ok(Vec::new())
    }

    fn start(&mut self) -> Result<Vec<Fault>> {
        if self.agent.is_some() {
            return Ok(Vec::new());
        }
        self.agent = Some(Agent::start(&self.rig, &[])?);
        // A new agent audits nobody.
        self.now = Now { in_force: self.now.written, written: self.now.written, is_audited: false };
        self.wait_until_in_force()?;
        Ok(Vec::new())
    }

    /// Waits until a new agent has everything in force.
    fn wait_until_in_force(&self) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        for number in HONEST {
            let client = ClientSpec::numbered(number);
            agent.wait_for_vif(&format!("vif{number}.0"))?;
            for address in client.addresses() {
                agent.wait_for_state(address, State::Live)?;
            }
        }
        agent.wait_for_vif(&self.vif)?;
        let state = match self.now.in_force {
            Rules::Deny | Rules::Accept => State::Live,
            Rules::Broken => State::Blocked,
            Rules::Gone => State::Waiting,
        };
        self.own.iter().try_for_each(|address| agent.wait_for_state(*address, state))
    }

    /// What a closed attacker has more of than its share. What an open one opens is its own, until
    /// an agent has cut that.
    fn too_much(&mut self) -> Result<Vec<Fault>> {
        if self.now.may() != May::Nothing {
            self.is_cut = false;
            return Ok(Vec::new());
        }
        if let Some(agent) = &self.agent {
            agent.wait_for_settled()?;
            self.is_cut = true;
        }
        if !self.is_cut {
            return Ok(Vec::new());
        }
        let tables = Tables::of(self.rig.netvm())?;
        Ok(tables.too_much().into_iter().map(Fault::TookTooMuch).collect())
    }

    /// Uses all honest flows; what is wrong with them. Where somebody is harmed, nobody else is
    /// asked: each answer that does not come takes its time.
    fn harm(&mut self) -> Result<Vec<String>> {
        let mut harm = Vec::new();
        for party in &mut self.parties {
            self.score.exchanges += 1;
            harm = party.exchange()?;
            if !harm.is_empty() {
                break;
            }
        }
        let way_back = way_back(&self.rig)?;
        if way_back != self.way_back {
            let before = self.way_back;
            harm.push(format!("the server: MTU {way_back:?} instead of {before:?}"));
        }
        self.score.harms += harm.len() as u64;
        Ok(harm)
    }
}

/// Keeps the calling thread on its processor, so that the kernel handles what it sends in order.
fn stay_on_this_processor() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// The MTU from the server back to the netvm, in both families.
fn way_back(rig: &Rig) -> Result<[i32; 2]> {
    rig.internet().run(|| Ok([mtu(UPLINK_V4.into())?, mtu(UPLINK_V6.into())?]))
}

fn ruleset(rules: &[Rule]) -> Ruleset {
    Ruleset { default_accept: false, rules: rules.to_vec() }
}
