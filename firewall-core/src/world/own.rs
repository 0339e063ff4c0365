//! What a qube may be told about itself: its own rules, with what they have decided and would decide.
//! Never looks at an address but by the qube's name, and asks nobody but the qube's own rules: whether a
//! destination is the netvm, or another client, makes no difference.

use std::net::IpAddr;

use firewall_common::packet::{Packet, is_error, is_redirect};
use ipnet::IpNet;

use super::World;
use super::presence::Presence;
use crate::client::ClientId;
use crate::protocol::{ICMP, ICMPV6};
use crate::readings::Readings;
use crate::rules::Action;
use crate::rules::explain::tries;
use crate::time::Moment;
use crate::told::SCHEMA;
use crate::told::explanation::PacketStatus;
use crate::told::own::{Aim, OwnAnswer, OwnClient, OwnRule, OwnStatus, OwnVerdict};
use crate::told::status::{ClientStatus, ProblemStatus, RuleStatus, State};

impl World {
    /// What the qube of this name is told about itself, and about a packet that it would send.
    pub fn own(&self, now: Moment, readings: &Readings, qube: &str, aim: Option<Aim>) -> OwnStatus {
        let is_own =
            |it: &Presence| readings.introduced.get(&it.address).is_some_and(|it| it == qube);
        let own: Vec<Presence> = self.presences().into_iter().filter(is_own).collect();
        let answer = aim.and_then(|aim| {
            let is_of_family = |it: &&Presence| it.address.is_ipv4() == aim.destination.is_ipv4();
            Some(self.own_answer(now, *own.iter().find(is_of_family)?, aim))
        });
        let own = own.into_iter().map(|it| {
            let is_refused = it.client().is_some_and(|it| self.is_refused(it));
            own_client(self.client_status(it, now, readings), is_refused)
        });
        OwnStatus { schema: SCHEMA, qube: qube.to_owned(), own: own.collect(), answer }
    }

    fn is_refused(&self, client: ClientId) -> bool {
        self.clients.installed().refusal(client).is_some()
    }

    fn own_answer(&self, now: Moment, presence: Presence, aim: Aim) -> OwnAnswer {
        let Presence { address: source, .. } = presence;
        let Aim { destination, protocol, port } = aim;
        let packet = PacketStatus::plain(source, destination, protocol, port).packet();
        let (says, rule) = match self.state(presence).0 {
            _ if is_message(aim) => (OwnVerdict::NotJudged, None),
            State::Blocked => (OwnVerdict::Blocked, None),
            State::Waiting => (OwnVerdict::Waiting, None),
            State::Live | State::Absent => self.by_own_rules(now, source, &packet),
        };
        let (rule, text) = rule.unzip();
        OwnAnswer { source, destination, protocol, port, says, rule, text }
    }

    /// What rules say alone, and which one decides, by its number and text.
    fn by_own_rules(
        &self,
        now: Moment,
        client: IpAddr,
        packet: &Packet,
    ) -> (OwnVerdict, Option<(u16, String)>) {
        let Some(live) = self.standings.live(client) else {
            return (OwnVerdict::Waiting, None);
        };
        let resolved = self.standings.resolve(client, &live.ruleset);
        let tries = tries(&live.ruleset, &resolved, packet);
        let last = tries.last().filter(|last| last.differs.is_empty());
        let rule = last.and_then(|last| live.ruleset.rules.get(last.rule));
        let is_audited = self.audit_status(now, client).audit_seconds_left.is_some();
        let says = match rule.map_or(live.ruleset.default, |rule| rule.action) {
            Action::Accept => OwnVerdict::Accepted,
            Action::Drop if is_audited => OwnVerdict::Audited,
            Action::Drop => OwnVerdict::Denied,
        };
        (says, rule.map(|rule| (rule.number, rule.text.clone())))
    }
}

/// Whether a packet is ICMP that is judged by what it tells, whatever rules say.
fn is_message(Aim { destination, protocol, port }: Aim) -> bool {
    let is_v4 = destination.is_ipv4();
    let is_icmp = protocol == if is_v4 { ICMP } else { ICMPV6 };
    is_icmp && (is_error(port, is_v4) || is_redirect(port, is_v4))
}

/// What a qube is told about one of its addresses. What is left out here numbers or names what belongs
/// to others.
fn own_client(client: ClientStatus, is_refused: bool) -> OwnClient {
    let ClientStatus {
        address,
        name: _,
        vif: _,
        vif_index: _,
        state,
        problem,
        settling: _,
        audit_seconds_left,
        generation: _,
        default,
        default_counter,
        default_last_seconds_ago,
        rules,
        policy: _,
        counters,
    } = client;
    OwnClient {
        address,
        state,
        // Why the kernel refuses may be what others have there.
        problem: problem.map(|it| if is_refused { refused() } else { it }),
        audit_seconds_left,
        default,
        default_counter,
        default_last_seconds_ago,
        rules: rules.into_iter().map(own_rule).collect(),
        counters,
    }
}

fn refused() -> ProblemStatus {
    ProblemStatus {
        origin: "the netvm".to_owned(),
        line: None,
        text: String::new(),
        reason: "it cannot put these rules in force for now, and says there why".to_owned(),
    }
}

fn own_rule(rule: RuleStatus) -> OwnRule {
    let RuleStatus {
        number,
        text,
        action,
        name,
        destinations,
        effective,
        hidden_by: _,
        bypassed: _,
        counter,
        last_seconds_ago,
    } = rule;
    // DNS servers are the netvm's own affair.
    let addresses = name.map(|_| destinations.iter().map(IpNet::addr).collect());
    let addresses = addresses.unwrap_or_default();
    OwnRule { number, text, action, addresses, effective, counter, last_seconds_ago }
}
