//! All memory of the agent. It is told what happened and answers what to do.
//! Never does I/O, never reads a clock, never sleeps.
//!
//! Clients come from links (vif and address), rules come from a source, by address. What
//! is in force for a client follows from both: no rules yet: waiting; rules that cannot
//! be used: blocked; else its policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use firewall_common::abi::{ACTION_ACCEPT, Local};
use firewall_common::packet::Packet;
use firewall_common::policy;

use crate::client::{ClientId, Links, Vif};
use crate::events::{Effect, Event, Notice, Task, Why};
use crate::names::Names;
use crate::names::rebinding::Guard;
use crate::rules::check::{self, PolicyTables, ProvedPolicy};
use crate::rules::compile;
use crate::rules::resolve::{self, Surroundings};
use crate::rules::source::SourceError;
use crate::rules::{Family, Rule, Ruleset};
use crate::told::status::{Attachment, ProblemStatus};

pub mod audits;
pub mod explaining;
mod installing;
mod naming;
mod renaming;
mod retries;
mod settling;
mod statuses;

use self::installing::InForce;
use self::retries::Retries;
use self::settling::Settling;

/// What a client's rules come to.
#[derive(Clone, Debug)]
enum Standing {
    Waiting,
    Blocked(ProblemStatus),
    Live(Arc<Live>),
}

#[derive(Debug)]
struct Live {
    ruleset: Ruleset,
    policy: ProvedPolicy,
}

/// How programs were attached to a link, or why not.
type Attached = Result<Attachment, Why>;

#[derive(Debug)]
struct KnownVif {
    vif: Vif,
    attached: Option<Attached>,
}

/// Until both are known, what an earlier agent left in force goes on as it is.
#[derive(Debug, Default)]
struct Awaited {
    rules: bool,
    links: Option<Links>,
}

#[derive(Debug)]
enum Phase {
    Starting(Awaited),
    Running,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Starting(Awaited::default())
    }
}

/// All memory of the agent.
#[derive(Debug, Default)]
pub struct World {
    phase: Phase,
    source_problem: Option<String>,
    vifs: BTreeMap<u32, KnownVif>,
    uplinks: BTreeMap<u32, (String, Option<Attached>)>,
    locals: BTreeMap<IpAddr, Local>,
    /// Addresses of clients that the source names.
    named: BTreeSet<IpAddr>,
    /// These and those of clients that are there, as the kernel knows them.
    connected: BTreeSet<IpAddr>,
    rulesets: BTreeMap<IpAddr, Result<Ruleset, SourceError>>,
    standings: BTreeMap<IpAddr, Standing>,
    clients: BTreeMap<ClientId, InForce>,
    /// Clients that are audited.
    audits: BTreeMap<IpAddr, audits::Audit>,
    surroundings: Surroundings,
    /// DNS servers that the agent asks.
    servers: Vec<IpAddr>,
    names: Names,
    /// Whether other names may matter now.
    are_names_old: bool,
    generation: u32,
    settling: Settling,
    retries: Retries,
}

impl World {
    /// A world that lets these names lead into private networks.
    pub fn new(guard: Guard) -> Self {
        Self { names: Names::new(guard), ..Self::default() }
    }

    /// Takes in what happened and answers what to do, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Links(links) => {
                let told = self.works(Task::Links);
                told.into_iter().chain(self.links(links)).collect()
            }
            Event::AllRules(rules) => self.all_rules(rules),
            Event::Rules { client, rules } => self.rules(client, rules),
            Event::Connected(named) => {
                self.named = named;
                self.connected().into_iter().collect()
            }
            Event::Source(problem) => self.source(problem),
            Event::Servers { of_clients, own } => self.servers(of_clients, own),
            Event::Remembered { names, now } => {
                self.names.recall(names, now);
                Vec::new()
            }
            Event::Answered { outcomes, now } => self.answered(outcomes, now),
            Event::AskAll => self.ask_all().into(),
            Event::InUse { flows, now } => self.in_use(&flows, now),
            Event::Connections(flows) => self.connections(flows).into_iter().collect(),
            Event::ConnectionsRead { outcome, now } => self.connections_read(outcome, now),
            Event::Disconnected { gone, refused } => {
                self.disconnected(gone, refused);
                Vec::new()
            }
            Event::Audit { client, length, now } => self.audit(client, length, now),
            Event::Time(now) => self.time(now),
            Event::Attached { link, outcome } => {
                if let Some(known) = self.vifs.get_mut(&link) {
                    known.attached = Some(outcome);
                } else if let Some((_, attached)) = self.uplinks.get_mut(&link) {
                    *attached = Some(outcome);
                }
                Vec::new()
            }
            Event::Detached(links) => self.detached(&links),
            Event::Refused { client, why, may_pass, now } => {
                self.refused(client, why, may_pass, now)
            }
            Event::Tried { task, outcome, now } => self.tried(task, outcome, now),
        }
    }

    fn links(&mut self, links: Links) -> Vec<Effect> {
        match &mut self.phase {
            Phase::Starting(awaited) => {
                awaited.links = Some(links);
                self.take_over()
            }
            Phase::Running => self.follow_links(links),
        }
    }

    /// Begins to put things in force, once it is known what. A vif that was policed by an
    /// earlier agent is not to be without its rules until then.
    fn take_over(&mut self) -> Vec<Effect> {
        let Phase::Starting(Awaited { rules: true, links }) = &mut self.phase else {
            return Vec::new();
        };
        let Some(links) = links.take() else {
            return Vec::new();
        };
        self.phase = Phase::Running;
        let mut effects = self.follow_links(links);
        effects.push(Effect::TakenOver);
        effects
    }

    fn follow_links(&mut self, links: Links) -> Vec<Effect> {
        let mut effects = self.renamed(&links);
        if links.locals != self.locals {
            self.locals = links.locals;
            self.names.retry();
            effects.push(Effect::SetLocals(self.locals.clone()));
        }
        let wanted = |vif: &Vif| {
            let index = vif.index;
            let clients = vif.addresses.iter();
            clients.map(move |&address| ClientId { vif: index, address }).collect::<Vec<_>>()
        };
        let now: BTreeSet<ClientId> = links.vifs.iter().flat_map(wanted).collect();
        let gone: Vec<ClientId> =
            self.clients.keys().filter(|client| !now.contains(client)).copied().collect();
        let has_room = !gone.is_empty();
        for client in gone {
            self.forget(client);
            effects.push(Effect::Remove(client));
        }
        effects.extend(self.handled_by_now());
        effects.extend(self.end_audits_of_absent());
        let present: BTreeSet<u32> = links.vifs.iter().map(|vif| vif.index).collect();
        self.vifs.retain(|&link, _| {
            let stays = present.contains(&link);
            if !stays {
                effects.push(Effect::Forget { link });
            }
            stays
        });
        self.uplinks.retain(|&link, _| {
            let stays = links.uplinks.contains_key(&link);
            if !stays {
                effects.push(Effect::Forget { link });
            }
            stays
        });
        for (uplink, name) in links.uplinks {
            let known = self.uplinks.get(&uplink);
            // What could not be attached is tried again whenever links are read.
            if known.is_none_or(|(_, attached)| matches!(attached, Some(Err(_)))) {
                effects.push(Effect::AttachUplink { uplink, name: name.clone() });
                self.uplinks.insert(uplink, (name, None));
            }
        }
        // First what is in force, then the program: one that takes over from an earlier
        // agent's knows its clients from its first packet on.
        for client in now {
            let known = self.clients.get(&client);
            if known.is_none_or(|in_force| has_room && in_force.refused.is_some()) {
                effects.extend(self.put(client));
            }
        }
        effects.extend(self.connected());
        for vif in links.vifs {
            let known = self.vifs.remove(&vif.index);
            let attached = match known.map(|known| known.attached) {
                Some(attached @ (None | Some(Ok(_)))) => attached,
                None | Some(Some(Err(_))) => {
                    effects.push(Effect::Attach { vif: vif.index, name: vif.name.clone() });
                    None
                }
            };
            self.vifs.insert(vif.index, KnownVif { vif, attached });
        }
        effects
    }

    fn all_rules(&mut self, rules: BTreeMap<IpAddr, Result<Ruleset, SourceError>>) -> Vec<Effect> {
        let gone = self.rulesets.keys().filter(|client| !rules.contains_key(client));
        let gone: Vec<IpAddr> = gone.copied().collect();
        let mut effects: Vec<Effect> =
            gone.into_iter().flat_map(|client| self.replace_rules(client, None)).collect();
        for (client, rules) in rules {
            effects.extend(self.replace_rules(client, Some(rules)));
            effects.extend(self.handled(client));
        }
        if let Phase::Starting(awaited) = &mut self.phase {
            awaited.rules = true;
        }
        effects.extend(self.take_over());
        effects
    }

    fn rules(
        &mut self,
        client: IpAddr,
        rules: Option<Result<Ruleset, SourceError>>,
    ) -> Vec<Effect> {
        let mut effects = self.replace_rules(client, rules);
        effects.extend(self.handled(client));
        effects
    }

    fn replace_rules(
        &mut self,
        client: IpAddr,
        rules: Option<Result<Ruleset, SourceError>>,
    ) -> Vec<Effect> {
        if self.rulesets.get(&client) == rules.as_ref() {
            return Vec::new();
        }
        match rules {
            Some(rules) => self.rulesets.insert(client, rules),
            None => self.rulesets.remove(&client),
        };
        self.are_names_old = true;
        let standing = self.standing(client);
        self.stand(client, standing)
    }

    fn source(&mut self, problem: Option<String>) -> Vec<Effect> {
        if self.source_problem == problem {
            return Vec::new();
        }
        self.source_problem.clone_from(&problem);
        vec![Effect::Tell(Notice::Source(problem))]
    }

    /// Which addresses belong to clients: those behind vifs, and those that the source
    /// names, which knows of clients that are not running too.
    fn connected(&mut self) -> Option<Effect> {
        let present = self.clients.keys().map(|client| client.address);
        let connected: BTreeSet<IpAddr> = present.chain(self.named.iter().copied()).collect();
        if connected == self.connected {
            return None;
        }
        self.connected = connected;
        self.are_names_old = true;
        Some(Effect::SetConnected(self.connected.clone()))
    }

    /// Works out anew what some clients' rules come to, and puts in force what changed.
    fn reconsider(&mut self, which: impl Fn(IpAddr, &Ruleset) -> bool) -> Vec<Effect> {
        let usable = self.rulesets.iter().filter_map(|(client, rules)| match rules {
            Ok(rules) if which(*client, rules) => Some(*client),
            Ok(_) | Err(_) => None,
        });
        let mut effects = Vec::new();
        for client in usable.collect::<Vec<_>>() {
            let standing = self.standing(client);
            let is_unchanged = match (&standing, self.standings.get(&client)) {
                (Standing::Live(now), Some(Standing::Live(before))) => {
                    now.policy.policy() == before.policy.policy()
                }
                _ => false,
            };
            if !is_unchanged {
                effects.extend(self.stand(client, standing));
            }
        }
        effects
    }

    fn detached(&mut self, links: &BTreeSet<u32>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for &link in links {
            if let Some(known) = self.vifs.get_mut(&link) {
                known.attached = None;
                let name = known.vif.name.clone();
                effects.push(Effect::Tell(Notice::Detached { link: name.clone() }));
                effects.push(Effect::Attach { vif: link, name });
            } else if let Some((name, attached)) = self.uplinks.get_mut(&link) {
                *attached = None;
                effects.push(Effect::Tell(Notice::Detached { link: name.clone() }));
                effects.push(Effect::AttachUplink { uplink: link, name: name.clone() });
            }
        }
        effects
    }

    /// A client is gone, and with it all that was to be done for it but its removal.
    fn forget(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.settle_no_more(client);
        self.retries.done(Task::Put(client));
        self.retries.done(Task::Audit(client));
    }

    /// Puts what a client's rules come to in force on all its vifs.
    fn stand(&mut self, address: IpAddr, standing: Standing) -> Vec<Effect> {
        let notice = match &standing {
            Standing::Waiting => Notice::Waiting { client: address },
            Standing::Blocked(problem) => {
                let ProblemStatus { origin, reason, .. } = problem;
                Notice::Blocked { client: address, why: format!("{origin}: {reason}") }
            }
            Standing::Live(live) => Notice::Live {
                client: address,
                rules: live.ruleset.rules.len(),
                cells_checked: live.policy.proof().cells_checked,
            },
        };
        let is_blocked = matches!(standing, Standing::Blocked(_));
        let before = match standing {
            // No client is remembered for having had rules once.
            Standing::Waiting => self.standings.remove(&address),
            Standing::Blocked(_) | Standing::Live(_) => self.standings.insert(address, standing),
        };
        let mut effects = vec![Effect::Tell(notice)];
        if is_blocked && matches!(before, Some(Standing::Blocked(_))) {
            // For another reason, but in force is the same.
            return effects;
        }
        let clients = self.clients.keys().filter(|client| client.address == address);
        let clients: Vec<ClientId> = clients.copied().collect();
        effects.extend(clients.into_iter().flat_map(|client| self.put(client)));
        effects
    }

    fn standing(&self, address: IpAddr) -> Standing {
        let ruleset = match self.rulesets.get(&address) {
            None => return Standing::Waiting,
            Some(Err(SourceError { origin, error })) => {
                return Standing::Blocked(ProblemStatus {
                    origin: origin.clone(),
                    line: error.line,
                    text: error.text.clone(),
                    reason: error.problem.to_string(),
                });
            }
            Some(Ok(ruleset)) => ruleset,
        };
        let blocked = |reason: String| {
            let origin = format!("rules of {address}");
            Standing::Blocked(ProblemStatus { origin, line: None, text: String::new(), reason })
        };
        let resolved = resolve::resolve(Family::from(address), ruleset, &self.surroundings);
        let policy = match compile::compile(&resolved) {
            Ok(policy) => policy,
            Err(error) => return blocked(error.to_string()),
        };
        match check::prove(&resolved, policy) {
            Ok(policy) => Standing::Live(Arc::new(Live { ruleset: ruleset.clone(), policy })),
            Err(error) => blocked(error.to_string()),
        }
    }

    /// Whether what is in force for a client now denies a packet of it, by the function
    /// that the kernel runs. What is not the rules' business is not denied.
    pub fn judge_of(&self, client: ClientId) -> impl Fn(&Packet) -> bool {
        let refused = self.clients.get(&client).is_none_or(|it| it.refused.is_some());
        let live = match self.standings.get(&client.address) {
            Some(Standing::Live(live)) if !refused => Some(live),
            Some(Standing::Waiting | Standing::Blocked(_) | Standing::Live(_)) | None => None,
        };
        let tables = live.map(|live| PolicyTables::new(live.policy.policy()));
        let is_audited = live.is_some() && self.audits.contains_key(&client.address);
        move |packet| {
            let destination = IpAddr::from(packet.destination);
            let is_own =
                packet.destination.is_multicast() || self.locals.contains_key(&destination);
            if is_own || is_audited {
                return false;
            }
            let answer = tables.as_ref().and_then(|tables| policy::answer(tables, 0, packet));
            answer.is_none_or(|answer| answer.action != ACTION_ACCEPT)
        }
    }

    /// Name of a link.
    pub fn link_name(&self, link: u32) -> Option<&str> {
        let vif = self.vifs.get(&link).map(|known| known.vif.name.as_str());
        vif.or_else(|| self.uplinks.get(&link).map(|(name, _)| name.as_str()))
    }

    /// A rule, given its index and the generation of the policy it is in.
    pub fn rule(&self, vif: u32, address: IpAddr, generation: u32, index: u32) -> Option<&Rule> {
        let in_force = self.clients.get(&ClientId { vif, address })?;
        let Some(Standing::Live(live)) = self.standings.get(&address) else {
            return None;
        };
        let rule = live.ruleset.rules.get(usize::try_from(index).ok()?)?;
        (in_force.generation == generation).then_some(rule)
    }

    /// Interface indices of all links that programs are attached to.
    pub fn links_in_use(&self) -> Vec<u32> {
        self.vifs.keys().chain(self.uplinks.keys()).copied().collect()
    }
}
