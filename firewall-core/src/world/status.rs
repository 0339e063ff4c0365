//! What the world tells about everything, in one pass: its own memory, and what only the kernel
//! and the process know.
//! Never changes anything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::abi::Counter;
use firewall_common::verdict::Reason;

use super::World;
use super::presence::Presence;
use super::standings::Live;
use crate::client::ClientId;
use crate::readings::{ClientCounters, Readings, ReasonCounters};
use crate::rules::check::ProvedPolicy;
use crate::rules::hidden::{self, Never};
use crate::rules::resolve::spares_dns;
use crate::rules::{Destination, Rule, socks};
use crate::time::Moment;
use crate::told::SCHEMA;
use crate::told::status::{
    AgentStatus, AuditStatus, ClientStatus, CounterStatus, PolicyStatus, RuleStatus, Status,
};
use crate::told::words::Named;

impl World {
    /// All that the world tells; of clients only those with an address, if one is given.
    pub fn status(&self, now: Moment, readings: &Readings, of: Option<IpAddr>) -> Status {
        let wanted = self.presences().into_iter();
        let wanted = wanted.filter(|presence| of.is_none_or(|of| presence.address == of));
        Status {
            schema: SCHEMA,
            agent: self.agent_status(now, readings),
            vifs: self.links.vif_statuses(&self.clients.installed().all().collect::<Vec<_>>()),
            clients: wanted.map(|it| self.client_status(it, now, readings)).collect(),
            names: self.naming.statuses(now, |question| self.standings.users(question)),
            strays: counted(&readings.counters.strays),
        }
    }

    /// What is told of a client's audit.
    pub fn audit_status(&self, now: Moment, client: IpAddr) -> AuditStatus {
        let audit_seconds_left = self.audit_seconds_left(now, client);
        AuditStatus { schema: SCHEMA, client, audit_seconds_left }
    }

    /// Clients that have counters, with how many rules each of them counts.
    pub fn counting(&self) -> BTreeMap<ClientId, u32> {
        let rules = |client: ClientId| self.standings.live(client.address).map(Live::count);
        let all = self.clients.installed().all();
        all.map(|client| (client, rules(client).unwrap_or(0))).collect()
    }

    fn agent_status(&self, now: Moment, readings: &Readings) -> AgentStatus {
        AgentStatus {
            version: readings.version.clone(),
            pid: readings.pid,
            options: readings.options.clone(),
            option_problems: readings.option_problems.clone(),
            source: readings.source.clone(),
            source_problem: self.source.problem().map(str::to_owned),
            mode: self.gate.mode(),
            verified_instructions: readings.verified_instructions,
            caches: readings.caches,
            resolvers: self.standings.surroundings().resolvers.clone(),
            uplinks: self.uplinks_status(),
            uplinks_problem: self.limit.problem().map(str::to_owned),
            gateway: self.gateway_status(),
            gate_problem: self.gate.problem().map(str::to_owned),
            resolvers_problem: self.gate.resolvers_problem().map(str::to_owned),
            added_rules: self.gate.added().to_vec(),
            lost: self.passage.lost().cloned(),
            unpinned_programs: readings.unpinned_programs,
            unguarded_uplinks: self.links.unguarded(),
            failing: self.retries.statuses(now),
            records: self.denials.records(),
            records_suppressed: self.denials.suppressed(),
        }
    }

    pub(super) fn client_status(
        &self,
        presence: Presence,
        now: Moment,
        readings: &Readings,
    ) -> ClientStatus {
        let Presence { address, vif } = presence;
        let (state, problem) = self.state(presence);
        let live = self.standings.live(address);
        let client = presence.client();
        let read = client.and_then(|client| readings.counters.clients.get(&client));
        let mut counters = read.map(|read| counted(&read.reasons)).unwrap_or_default();
        let default_counter = counters.remove(Reason::Default.name()).unwrap_or_default();
        ClientStatus {
            address,
            name: readings.introduced.get(&address).cloned(),
            vif: vif.and_then(|vif| self.links.name(vif)).map(str::to_owned),
            vif_index: vif,
            state,
            problem,
            settling: client.is_some_and(|client| self.is_settling(client)),
            audit_seconds_left: self.audit_seconds_left(now, address),
            generation: client.and_then(|client| self.clients.installed().generation(client)),
            default: live.map(|live| live.ruleset.default),
            default_counter,
            default_last_seconds_ago: self.hit_seconds_ago(now, client, 0),
            rules: live
                .map(|live| self.rule_statuses(presence, live, now, read))
                .unwrap_or_default(),
            policy: live.map(|live| policy_status(&live.policy)),
            counters,
        }
    }

    fn rule_statuses(
        &self,
        presence: Presence,
        live: &Live,
        now: Moment,
        read: Option<&ClientCounters>,
    ) -> Vec<RuleStatus> {
        let rules = &live.ruleset.rules;
        let resolved = self.standings.resolve(presence.address, &live.ruleset);
        let hidden = hidden::hidden(&resolved.rules);
        let is_open =
            self.judges_all() && socks::is_open(presence.address.into(), live.policy.policy());
        let each = rules.iter().zip(resolved.rules).zip(hidden).zip(1..);
        let statuses = each.map(|(((rule, resolved), never), index)| RuleStatus {
            number: rule.number,
            text: rule.text.clone(),
            action: rule.action,
            name: match &rule.destination {
                Destination::Name(name) => Some(name.clone()),
                Destination::Any | Destination::Network(_) | Destination::Tor(_) => None,
            },
            destinations: match &rule.destination {
                // Its prefixes are cut around the virtual resolvers.
                Destination::Network(network) if spares_dns(rule) => vec![*network],
                Destination::Any
                | Destination::Network(_)
                | Destination::Name(_)
                | Destination::Tor(_) => resolved.networks(),
            },
            effective: never.is_none(),
            bypassed: is_open && socks::is_bypassed(rule),
            hidden_by: match never {
                Some(Never::Hidden(by)) => numbers(rules, &by),
                Some(Never::MatchesNothing) | None => Vec::new(),
            },
            counter: read.and_then(|it| it.rules.get(index - 1)).map(told).unwrap_or_default(),
            last_seconds_ago: self.hit_seconds_ago(now, presence.client(), index),
        });
        statuses.collect()
    }

    /// How many seconds ago a counter of a client was seen to have moved: 0 is the default's,
    /// those of rules follow.
    fn hit_seconds_ago(&self, now: Moment, client: Option<ClientId>, index: usize) -> Option<u64> {
        Some(self.hits.age(client?, index, now)?.as_secs())
    }

    /// In how many seconds the audit of a client ends, if it is audited.
    fn audit_seconds_left(&self, now: Moment, client: IpAddr) -> Option<u64> {
        self.clients.audits().until(client).map(|until| until.since(now).as_secs())
    }
}

fn numbers(rules: &[Rule], by: &[usize]) -> Vec<u16> {
    by.iter().filter_map(|by| rules.get(*by)).map(|rule| rule.number).collect()
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

fn told(counter: &Counter) -> CounterStatus {
    let Counter { packets, bytes } = *counter;
    CounterStatus { packets, bytes }
}

/// Counters of all reasons that counted anything.
fn counted(reasons: &ReasonCounters) -> BTreeMap<Named<Reason>, CounterStatus> {
    let counted = reasons.iter().filter(|(_, counter)| counter.packets > 0);
    counted.map(|(reason, counter)| (Named(*reason), told(counter))).collect()
}
