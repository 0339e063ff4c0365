//! PURE: all memory of the agent. It is told what happened and answers what to do.
//! Never does I/O, never reads a clock, never sleeps.
//!
//! Clients come from links (vif and address), rules come from a source, by address. What
//! is in force for a client follows from both: no rules yet: waiting; rules that cannot
//! be used: blocked; else its policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use firewall_common::abi::ACTION_ACCEPT;
use firewall_common::packet::Packet;
use firewall_common::policy;

use crate::events::{ClientId, Effect, Event, Installation, Links, Notice, SourceError, Vif};
use crate::rules::check::{self, PolicyTables, ProvedPolicy};
use crate::rules::compile;
use crate::rules::resolve::{self, Surroundings};
use crate::rules::{Destination, Family, Ruleset};
use crate::status::{
    ClientStatus, CounterStatus, PolicyStatus, ProblemStatus, RuleStatus, State, VifStatus,
};

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
type Attached = Result<String, String>;

#[derive(Debug)]
struct KnownVif {
    vif: Vif,
    attached: Option<Attached>,
}

#[derive(Debug)]
struct InForce {
    generation: u32,
    /// Set when the kernel's tables could not take what the rules come to.
    refused: Option<String>,
}

/// All memory of the agent.
#[derive(Debug, Default)]
pub struct World {
    vifs: BTreeMap<u32, KnownVif>,
    uplinks: BTreeMap<u32, (String, Option<Attached>)>,
    locals: BTreeSet<IpAddr>,
    connected: BTreeSet<IpAddr>,
    rulesets: BTreeMap<IpAddr, Result<Ruleset, SourceError>>,
    standings: BTreeMap<IpAddr, Standing>,
    clients: BTreeMap<ClientId, InForce>,
    surroundings: Surroundings,
    generation: u32,
}

impl World {
    /// Takes in what happened and answers what to do, in this order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Links(links) => self.links(links),
            Event::Rules { client, rules } => self.rules(client, rules),
            Event::Surroundings(surroundings) => self.surroundings(surroundings),
            Event::Attached { link, outcome } => {
                if let Some(known) = self.vifs.get_mut(&link) {
                    known.attached = Some(outcome);
                } else if let Some((_, attached)) = self.uplinks.get_mut(&link) {
                    *attached = Some(outcome);
                }
                Vec::new()
            }
            Event::Refused { client, why } => self.refused(client, why),
        }
    }

    fn links(&mut self, links: Links) -> Vec<Effect> {
        let mut effects = Vec::new();
        if links.locals != self.locals {
            self.locals = links.locals;
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
        for client in gone {
            self.clients.remove(&client);
            effects.push(Effect::Remove(client));
        }
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
            if !self.clients.contains_key(&client) {
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

    fn rules(
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
        let mut effects = self.judge(client);
        effects.extend(self.connected());
        effects
    }

    /// Which addresses belong to clients: those behind vifs, and those that have rules, as
    /// dom0 writes them for qubes that are not running too.
    fn connected(&mut self) -> Option<Effect> {
        let present = self.clients.keys().map(|client| client.address);
        let connected: BTreeSet<IpAddr> = present.chain(self.rulesets.keys().copied()).collect();
        if connected == self.connected {
            return None;
        }
        self.connected = connected;
        Some(Effect::SetConnected(self.connected.clone()))
    }

    fn surroundings(&mut self, surroundings: Surroundings) -> Vec<Effect> {
        if self.surroundings == surroundings {
            return Vec::new();
        }
        self.surroundings = surroundings;
        let mut effects = vec![Effect::Redirect(self.surroundings.redirections())];
        let affected = self.rulesets.iter().filter_map(|(&client, rules)| {
            let before = match self.standings.get(&client) {
                Some(Standing::Live(live)) => Some(Arc::clone(live.policy.policy())),
                Some(Standing::Waiting | Standing::Blocked(_)) | None => None,
            };
            rules.is_ok().then_some((client, before))
        });
        for (client, before) in affected.collect::<Vec<_>>() {
            let standing = self.standing(client);
            let unchanged = match (&standing, before) {
                (Standing::Live(live), Some(before)) => *live.policy.policy() == before,
                _ => false,
            };
            if !unchanged {
                effects.extend(self.stand(client, standing));
            }
        }
        effects
    }

    /// A client whose policy does not fit into the kernel's tables is blocked. If even
    /// that does not fit, the kernel does not know the client, and drops its packets.
    fn refused(&mut self, client: ClientId, why: String) -> Vec<Effect> {
        let Some(in_force) = self.clients.get_mut(&client) else {
            return Vec::new();
        };
        let first = in_force.refused.is_none();
        in_force.refused = Some(why.clone());
        let mut effects = vec![Effect::Tell(Notice::Blocked { client: client.address, why })];
        if first {
            let generation = in_force.generation;
            let installation = Installation::Blocked;
            effects.push(Effect::Put { client, installation, generation });
            effects.push(Effect::Settle(client));
        }
        effects
    }

    /// Works out what a client's rules come to, and puts it in force on all its vifs.
    fn judge(&mut self, address: IpAddr) -> Vec<Effect> {
        let standing = self.standing(address);
        self.stand(address, standing)
    }

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
        let before = self.standings.insert(address, standing);
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

    /// Whatever is new may deny what the client has open: it settles each time.
    fn put(&mut self, client: ClientId) -> [Effect; 2] {
        // 0 is "no policy" in drop records.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        let installation = match self.standings.get(&client.address) {
            None | Some(Standing::Waiting) => Installation::Waiting,
            Some(Standing::Blocked(_)) => Installation::Blocked,
            Some(Standing::Live(live)) => Installation::Policy {
                policy: live.policy.clone(),
                rules: u32::try_from(live.ruleset.rules.len()).unwrap_or(u32::MAX),
            },
        };
        self.clients.insert(client, InForce { generation, refused: None });
        [Effect::Put { client, installation, generation }, Effect::Settle(client)]
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
        move |packet| {
            let destination = IpAddr::from(packet.destination);
            if packet.destination.is_multicast() || self.locals.contains(&destination) {
                return false;
            }
            let answer = tables.as_ref().and_then(|tables| policy::answer(tables, 0, packet));
            answer.is_none_or(|answer| answer.action != ACTION_ACCEPT)
        }
    }

    /// Resolvers and names as last told.
    pub fn known_surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Name of a link.
    pub fn link_name(&self, link: u32) -> Option<&str> {
        let vif = self.vifs.get(&link).map(|known| known.vif.name.as_str());
        vif.or_else(|| self.uplinks.get(&link).map(|(name, _)| name.as_str()))
    }

    /// Key number of a rule, given its index and the generation of the policy it is in.
    pub fn rule_number(
        &self,
        vif: u32,
        address: IpAddr,
        generation: u32,
        index: u32,
    ) -> Option<u16> {
        let in_force = self.clients.get(&ClientId { vif, address })?;
        let Some(Standing::Live(live)) = self.standings.get(&address) else {
            return None;
        };
        let rule = live.ruleset.rules.get(usize::try_from(index).ok()?)?;
        (in_force.generation == generation).then_some(rule.number)
    }

    /// Links that are not guarded against clients' addresses, with the reason.
    pub fn unguarded_uplinks(&self) -> BTreeMap<String, String> {
        let failed = self.uplinks.values().filter_map(|(name, attached)| match attached {
            Some(Err(why)) => Some((name.clone(), why.clone())),
            Some(Ok(_)) | None => None,
        });
        failed.collect()
    }

    /// Interface indices of all links that programs are attached to.
    pub fn links_in_use(&self) -> Vec<u32> {
        self.vifs.keys().chain(self.uplinks.keys()).copied().collect()
    }

    /// All vifs.
    pub fn vif_statuses(&self) -> Vec<VifStatus> {
        let vifs = self.vifs.values().map(|known| VifStatus {
            index: known.vif.index,
            name: known.vif.name.clone(),
            attached: known.attached.clone().and_then(Result::ok),
            problem: known.attached.clone().and_then(Result::err),
            addresses: known.vif.addresses.iter().copied().collect(),
        });
        vifs.collect()
    }

    /// All clients, and addresses with rules but no vif. Counters are left at zero.
    pub fn client_statuses(&self) -> Vec<ClientStatus> {
        let present = self.clients.iter().map(|(client, in_force)| {
            self.client_status(client.address, Some((client.vif, in_force)))
        });
        let has_vif: BTreeSet<IpAddr> = self.clients.keys().map(|client| client.address).collect();
        let absent = self.rulesets.keys().filter(|address| !has_vif.contains(address));
        let absent = absent.map(|&address| self.client_status(address, None));
        present.chain(absent).collect()
    }

    fn client_status(&self, address: IpAddr, present: Option<(u32, &InForce)>) -> ClientStatus {
        let standing = self.standings.get(&address).unwrap_or(&Standing::Waiting);
        let refused = present.and_then(|(_, in_force)| in_force.refused.clone());
        let refused = refused.map(|reason| ProblemStatus {
            origin: "the kernel's tables".to_owned(),
            line: None,
            text: String::new(),
            reason,
        });
        let (state, problem) = match (standing, refused) {
            (_, Some(problem)) => (State::Blocked, Some(problem)),
            (Standing::Blocked(problem), None) => (State::Blocked, Some(problem.clone())),
            (Standing::Waiting, None) => (State::Waiting, None),
            (Standing::Live(_), None) => (State::Live, None),
        };
        let live = match standing {
            Standing::Live(live) => Some(live),
            Standing::Waiting | Standing::Blocked(_) => None,
        };
        ClientStatus {
            address,
            vif: present.and_then(|(vif, _)| self.link_name(vif)).map(str::to_owned),
            vif_index: present.map(|(vif, _)| vif),
            state: if present.is_none() && problem.is_none() { State::Absent } else { state },
            problem,
            generation: present.map(|(_, in_force)| in_force.generation),
            default: live.map(|live| live.ruleset.default.name().to_owned()),
            default_counter: CounterStatus::default(),
            rules: live.map(|live| self.rule_statuses(live)).unwrap_or_default(),
            policy: live.map(|live| policy_status(&live.policy)),
            counters: BTreeMap::new(),
        }
    }

    fn rule_statuses(&self, live: &Live) -> Vec<RuleStatus> {
        let effective = live.policy.policy().effective_rules();
        let rules = (0..).zip(&live.ruleset.rules).map(|(index, rule)| RuleStatus {
            number: rule.number,
            text: rule.text.clone(),
            unresolved: match &rule.destination {
                Destination::Name(name) if !self.surroundings.names.contains_key(name) => {
                    Some(name.clone())
                }
                Destination::Any | Destination::Network(_) | Destination::Name(_) => None,
            },
            effective: effective.contains(&index),
            counter: CounterStatus::default(),
        });
        rules.collect()
    }
}

fn policy_status(policy: &ProvedPolicy) -> PolicyStatus {
    let proof = policy.proof();
    let policy = policy.policy();
    PolicyStatus {
        prefixes: policy.prefixes.len(),
        classes: policy.classes.len(),
        segments: policy.segments.len(),
        cells_checked: proof.cells_checked,
        complete: proof.complete,
    }
}
