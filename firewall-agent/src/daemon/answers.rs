//! What the daemon answers: status, counters, audits.
//! Never changes a policy or a verdict but for an audit, which is an event like all others.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use firewall_common::abi::{Counter, DEFAULT_RULE};
use firewall_common::verdict::Reason;

use tracing::warn;

use super::{Daemon, now};
use crate::edges::control::{Answer, Request};
use crate::edges::metrics;
use firewall_core::client::ClientId;
use firewall_core::events::Event;
use firewall_core::told::SCHEMA;
use firewall_core::told::status::{AgentStatus, AuditStatus, CounterStatus, State, Status};
use firewall_core::told::words::Named;
use firewall_core::world::explaining::Circumstances;

impl Daemon {
    pub(super) async fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Status => {
                self.look();
                Answer::Status(Box::new(self.status(|_| true)))
            }
            Request::Show { client } => {
                self.look();
                Answer::Status(Box::new(self.status(|address| address == *client)))
            }
            Request::Monitor => Answer::News(self.place()),
            Request::Audit { client, seconds } => {
                let length = Duration::from_secs(*seconds);
                // An end is never refused.
                if !length.is_zero()
                    && let Err(why) = self.world.can_audit(*client)
                {
                    return Answer::Audit(Err(why));
                }
                self.follow(Event::Audit { client: *client, length, now: now() }).await;
                Answer::Audit(Ok(AuditStatus {
                    schema: SCHEMA,
                    client: *client,
                    audit_seconds_left: self.audit_seconds(*client),
                }))
            }
            Request::Explain { client, packet } => {
                let circumstances = Circumstances {
                    guards_neighbours: self.options.dataplane.guard_neighbours,
                    mode: self.gate.mode.into(),
                    seconds: now().since_boot().as_secs(),
                };
                let packet = packet.packet();
                Answer::Explanations(self.world.explain(*client, &packet, &circumstances))
            }
        }
    }

    /// Looks at the counters of defaults and rules, to know later when they last moved.
    pub(super) fn look(&mut self) {
        let policies = self.world.policies();
        let maps = &self.dataplane.maps;
        for (client, (generation, rules)) in &policies {
            let default = maps.reason_counter(Some(*client), Reason::Default);
            let rules = (0..*rules).map(|rule| maps.rule_counter(*client, rule));
            let packets = [default].into_iter().chain(rules).map(|it| it.packets);
            self.hits.look(*client, *generation, packets, now());
        }
        self.hits.keep(|client| policies.contains_key(client));
    }

    /// Writes metrics, if somebody wants them.
    pub(super) fn write_metrics(&self) {
        let Some(path) = &self.options.metrics else {
            return;
        };
        if let Err(error) = metrics::write(path, &self.status(|_| true)) {
            warn!(path = %path.display(), %error, "metrics are not written");
        }
    }

    /// In how many seconds the audit of a client ends, if it is audited.
    fn audit_seconds(&self, client: IpAddr) -> Option<u64> {
        let until = self.world.audited_until(client)?;
        Some(until.since(now()).as_secs())
    }

    /// Everything, about some clients.
    fn status(&self, is_wanted: impl Fn(IpAddr) -> bool) -> Status {
        let mut clients = self.world.client_statuses_of(is_wanted);
        for status in &mut clients {
            status.audit_seconds_left = self.audit_seconds(status.address);
            let Some(vif) = status.vif_index else {
                continue;
            };
            let client = ClientId { vif, address: status.address };
            status.counters = self.reason_counters(Some(client));
            status.default_counter =
                status.counters.remove(Reason::Default.name()).unwrap_or_default();
            let age = |index| self.hits.age(client, index, now()).map(|age| age.as_secs());
            status.default_last_seconds_ago = age(0);
            for (index, rule) in (0..DEFAULT_RULE).zip(&mut status.rules) {
                rule.counter = counted(self.dataplane.maps.rule_counter(client, index));
            }
            for (index, rule) in (1..).zip(&mut status.rules) {
                rule.last_seconds_ago = age(index);
            }
        }
        Status {
            schema: SCHEMA,
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                source: self.options.source.name(),
                source_problem: self.world.source_problem().map(str::to_owned),
                mode: self.gate.mode.into(),
                mark_bit: self.options.dataplane.mark_bit,
                verified_instructions: self.verified_instructions,
                caches: self.options.dataplane.caches,
                resolvers: self.world.resolvers().to_vec(),
                gate_problem: self.gate_problem.clone(),
                unpinned_programs: self.dataplane.unpinned(),
                unguarded_uplinks: self.world.unguarded_uplinks(),
                failing: self.world.failing_statuses(now()),
                records: self.told.records,
                records_suppressed: self.told.suppressed,
            },
            vifs: self.world.vif_statuses(),
            clients,
            names: self.world.name_statuses(now()),
            strays: self.reason_counters(None),
        }
    }

    /// One line for whoever asks the service manager.
    pub(super) fn summary(&self) -> String {
        if let Some(problem) = &self.gate_problem {
            return format!("the gate could not be loaded: {problem}");
        }
        if let Some(problem) = self.world.source_problem() {
            return format!("cannot read rules: {problem}");
        }
        let states = self.world.states();
        let count = |state| states.iter().filter(|it| **it == state).count();
        let [live, blocked] = [State::Live, State::Blocked].map(count);
        let waiting = count(State::Waiting);
        let mut text =
            format!("clients: {live} live, {blocked} blocked, {waiting} waiting for rules");
        let failing = self.world.failing_statuses(now()).len();
        if failing > 0 {
            let _ = write!(text, "; {failing} PROBLEMS: see `firewall-agent status`");
        }
        let audited: Vec<String> = self.world.audited().map(|it| it.to_string()).collect();
        if !audited.is_empty() {
            let _ = write!(text, "; AUDIT, nothing is rejected: {}", audited.join(", "));
        }
        text
    }

    /// Counters of all reasons that counted anything.
    fn reason_counters(&self, client: Option<ClientId>) -> BTreeMap<Named<Reason>, CounterStatus> {
        let all = Reason::ALL.iter().map(|&reason| {
            let counter = counted(self.dataplane.maps.reason_counter(client, reason));
            (Named(reason), counter)
        });
        all.filter(|(_, counter)| counter.packets > 0).collect()
    }
}

fn counted(counter: Counter) -> CounterStatus {
    let Counter { packets, bytes } = counter;
    CounterStatus { packets, bytes }
}
