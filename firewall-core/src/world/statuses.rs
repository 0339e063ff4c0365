//! What the world tells about itself.
//! Never changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{InForce, Live, Standing, World};
use crate::client::ClientId;
use crate::events::Why;
use crate::rules::check::ProvedPolicy;
use crate::rules::hidden::{self, Never};
use crate::rules::question::Question;
use crate::rules::{Destination, Family, resolve};
use crate::time::Moment;
use crate::told::status::{
    ClientStatus, CounterStatus, NameAddress, NameStatus, PolicyStatus, ProblemStatus, RuleStatus,
    State, VifStatus,
};

impl World {
    /// DNS servers that clients can mean.
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.surroundings.resolvers
    }

    /// Why the source of rules cannot be read; what it said before is in force.
    pub fn source_problem(&self) -> Option<&str> {
        self.source_problem.as_deref()
    }

    /// Links that are not guarded against clients' addresses, with the reason.
    pub fn unguarded_uplinks(&self) -> BTreeMap<String, String> {
        let failed = self.uplinks.values().filter_map(|(name, attached)| match attached {
            Some(Err(why)) => Some((name.clone(), why.to_string())),
            Some(Ok(_)) | None => None,
        });
        failed.collect()
    }

    /// All vifs.
    pub fn vif_statuses(&self) -> Vec<VifStatus> {
        let vifs = self.vifs.values().map(|known| VifStatus {
            index: known.vif.index,
            name: known.vif.name.clone(),
            attached: known.attached.as_ref().and_then(|it| it.as_ref().ok()).copied(),
            problem: known.attached.as_ref().and_then(|it| it.as_ref().err()).map(Why::to_string),
            addresses: known.vif.addresses.iter().copied().collect(),
        });
        vifs.collect()
    }

    /// All clients, and addresses with rules but no vif. Counters are left
    /// at zero, and audits out.
    pub fn client_statuses(&self) -> Vec<ClientStatus> {
        self.client_statuses_of(|_| true)
    }

    /// The same of some of them.
    pub fn client_statuses_of(&self, is_wanted: impl Fn(IpAddr) -> bool) -> Vec<ClientStatus> {
        let wanted = self.standings().into_iter().filter(|(address, _)| is_wanted(*address));
        wanted.map(|(address, present)| self.client_status(address, present)).collect()
    }

    /// What is in force for each of them.
    pub fn states(&self) -> Vec<State> {
        let all = self.standings().into_iter();
        all.map(|(address, present)| self.state(address, present).0).collect()
    }

    /// Generation and number of rules of each client's policy.
    pub fn policies(&self) -> BTreeMap<ClientId, (u32, u32)> {
        let policies = self.clients.iter().filter_map(|(client, in_force)| {
            let rules = self.live(client.address)?.ruleset.rules.len();
            Some((*client, (in_force.generation, u32::try_from(rules).unwrap_or(u32::MAX))))
        });
        policies.collect()
    }

    /// All clients, and addresses with rules but no vif.
    pub(super) fn standings(&self) -> Vec<(IpAddr, Option<(u32, &InForce)>)> {
        let present = self.clients.iter();
        let present =
            present.map(|(client, in_force)| (client.address, Some((client.vif, in_force))));
        let has_vif: BTreeSet<IpAddr> = self.clients.keys().map(|client| client.address).collect();
        let absent = self.rulesets.keys().filter(|address| !has_vif.contains(address));
        present.chain(absent.map(|address| (*address, None))).collect()
    }

    /// All names that matter, as they are at a time.
    pub fn name_statuses(&self, now: Moment) -> Vec<NameStatus> {
        let statuses = self.names.iter().map(|(question, name)| {
            let refused = self.names.refused(question);
            let addresses = name.seen.iter().map(|(&address, &seen)| NameAddress {
                address,
                age_seconds: seconds(now, seen),
                in_answer: name.is_current(&address),
                usable: !refused.contains(&address),
            });
            NameStatus {
                name: question.name.clone(),
                family: question.family,
                addresses: addresses.collect(),
                answered_seconds_ago: name.answer.as_ref().map(|answer| seconds(now, answer.at)),
                next_seconds_left: name.due.since(now).as_secs(),
                failures: name.failures,
                problem: self.name_problem(question),
                refused: name.refused,
                users: self.users(question),
            }
        });
        statuses.collect()
    }

    /// Numbers of the rules that use a name, by client.
    pub(super) fn users(&self, question: &Question) -> BTreeMap<IpAddr, Vec<u16>> {
        let of_family =
            self.rulesets.iter().filter(|(client, _)| Family::from(**client) == question.family);
        let users = of_family.filter_map(|(client, rules)| {
            let rules = rules.as_ref().ok()?.rules.iter();
            let using = rules.filter(|rule| match &rule.destination {
                Destination::Name(name) => *name == question.name,
                Destination::Any | Destination::Network(_) => false,
            });
            let numbers: Vec<u16> = using.map(|rule| rule.number).collect();
            (!numbers.is_empty()).then_some((*client, numbers))
        });
        users.collect()
    }

    /// What is in force for one of them, and why it is blocked.
    pub(super) fn state(
        &self,
        address: IpAddr,
        present: Option<(u32, &InForce)>,
    ) -> (State, Option<ProblemStatus>) {
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
        let is_absent = present.is_none() && problem.is_none();
        (if is_absent { State::Absent } else { state }, problem)
    }

    fn client_status(&self, address: IpAddr, present: Option<(u32, &InForce)>) -> ClientStatus {
        let (state, problem) = self.state(address, present);
        let live = self.live(address);
        ClientStatus {
            address,
            vif: present.and_then(|(vif, _)| self.link_name(vif)).map(str::to_owned),
            vif_index: present.map(|(vif, _)| vif),
            state,
            problem,
            settling: present.is_some_and(|(vif, _)| self.is_settling(ClientId { vif, address })),
            audit_seconds_left: None,
            generation: present.map(|(_, in_force)| in_force.generation),
            default: live.map(|live| live.ruleset.default),
            default_counter: CounterStatus::default(),
            default_last_seconds_ago: None,
            rules: live.map(|live| self.rule_statuses(address, live)).unwrap_or_default(),
            policy: live.map(|live| policy_status(&live.policy)),
            counters: BTreeMap::new(),
        }
    }

    /// What rules of a client that can be used come to.
    pub(super) fn live(&self, client: IpAddr) -> Option<&Live> {
        match self.standings.get(&client) {
            Some(Standing::Live(live)) => Some(live),
            Some(Standing::Waiting | Standing::Blocked(_)) | None => None,
        }
    }

    fn rule_statuses(&self, client: IpAddr, live: &Live) -> Vec<RuleStatus> {
        let rules = &live.ruleset.rules;
        let resolved = resolve::resolve(Family::from(client), &live.ruleset, &self.surroundings);
        let hidden = hidden::hidden(&resolved.rules);
        let numbers = |by: Vec<usize>| {
            by.into_iter().filter_map(|by| rules.get(by)).map(|rule| rule.number).collect()
        };
        let each = rules.iter().zip(resolved.rules).zip(hidden);
        let statuses = each.map(|((rule, resolved), never)| RuleStatus {
            number: rule.number,
            text: rule.text.clone(),
            action: rule.action,
            name: match &rule.destination {
                Destination::Name(name) => Some(name.clone()),
                Destination::Any | Destination::Network(_) => None,
            },
            destinations: resolved.networks(),
            effective: never.is_none(),
            hidden_by: match never {
                Some(Never::Hidden(by)) => numbers(by),
                Some(Never::MatchesNothing) | None => Vec::new(),
            },
            counter: CounterStatus::default(),
            last_seconds_ago: None,
        });
        statuses.collect()
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

/// Whole seconds from one point in time to a later one.
fn seconds(now: Moment, before: Moment) -> u64 {
    now.since(before).as_secs()
}
