//! Sums of what the agent tells: what became of a client's packets, and how much is
//! wrong.
//! Never asks the agent.

use std::ops::{AddAssign, SubAssign};

use firewall_common::verdict::Reason;

use crate::rules::Action;
use crate::told::added::Warning;
use crate::told::status::{AgentStatus, ClientStatus, CounterStatus, Status};

/// Packets of a client since its policy went into force. Each packet is in one of these sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that rules accepted.
    pub accepted: CounterStatus,
    /// Packets that were rejected or dropped, for whatever reason.
    pub denied: CounterStatus,
    /// Packets that rules denied, but an audit let through.
    pub audited: CounterStatus,
    /// Packets that were handed on because they are not the rules' business.
    pub passed: CounterStatus,
}

/// Where the counter of a reason belongs.
enum Kind {
    Denied,
    Audited,
    Passed,
    /// It counts packets a second time, or rules count them.
    Elsewhere,
}

fn kind(reason: Reason) -> Kind {
    match reason {
        Reason::Rule | Reason::Default | Reason::OverBudget => Kind::Elsewhere,
        Reason::Audit => Kind::Audited,
        Reason::Arp | Reason::Local | Reason::Answer | Reason::Fragment | Reason::IcmpError => {
            Kind::Passed
        }
        Reason::Blocked
        | Reason::Waiting
        | Reason::UnknownSource
        | Reason::ForeignNeighbour
        | Reason::LinkLocal
        | Reason::OtherHost
        | Reason::Tagged
        | Reason::ForeignEthertype
        | Reason::Truncated
        | Reason::Malformed
        | Reason::SourceRoute
        | Reason::RoutingHeader
        | Reason::TooManyHeaders
        | Reason::MappedAddress
        | Reason::ConnectedSource
        | Reason::ConnectedDestination
        | Reason::StrayFragment
        | Reason::TooManyFragments
        | Reason::ForeignError
        | Reason::Redirect
        | Reason::TooMany
        | Reason::Settling
        | Reason::Outdated
        | Reason::Inconsistent => Kind::Denied,
    }
}

impl Totals {
    /// The sums of one client.
    pub fn of(client: &ClientStatus) -> Self {
        let mut totals = Self::default();
        let rules = client.rules.iter().map(|rule| (rule.action, rule.counter));
        let default = client.default.iter().map(|it| (*it, client.default_counter));
        for (action, counter) in rules.chain(default) {
            *match action {
                Action::Accept => &mut totals.accepted,
                Action::Drop => &mut totals.denied,
            } += counter;
        }
        for &reason in Reason::ALL {
            let counter = client.counters.get(reason.name()).copied().unwrap_or_default();
            match kind(reason) {
                Kind::Denied => totals.denied += counter,
                Kind::Passed => totals.passed += counter,
                Kind::Audited => {
                    totals.audited += counter;
                    totals.denied -= counter;
                }
                Kind::Elsewhere => {}
            }
        }
        totals
    }
}

/// How many things need attention: clients, vifs, uplinks, names, parts of the agent, and what others
/// added to the gate and opens it.
pub fn problems(status: &Status) -> usize {
    let needs =
        |client: &&ClientStatus| client.problem.is_some() || client.audit_seconds_left.is_some();
    let clients = status.clients.iter().filter(needs).count();
    let vifs = status.vifs.iter().filter(|vif| vif.problem.is_some() || vif.port_of.is_some());
    let vifs = vifs.count();
    let uplinks = status.agent.unguarded_uplinks.len();
    let names = status.names.iter().filter(|name| name.problem.is_some()).count();
    let AgentStatus { gate_problem, source_problem, uplinks_problem, resolvers_problem, .. } =
        &status.agent;
    let agent = [gate_problem, source_problem, uplinks_problem, resolvers_problem];
    let unpinned = usize::from(status.agent.unpinned_programs > 0);
    let failing = status.agent.failing.len();
    let opens = |warning| match warning {
        Some(Warning::OpensAll | Warning::LeavesElsewhere) => true,
        Some(Warning::NeverReached | Warning::SeesOnlyDenied) | None => false,
    };
    // Where Whonix is and the mode is another, nothing of the rules is enforced.
    let gateway = status.agent.gateway.as_ref();
    let gateway = gateway.map_or(0, |it| it.problems.len() + usize::from(!it.enforced));
    let added = status.agent.added_rules.iter().filter(|rule| opens(rule.warning)).count();
    let agent = agent.into_iter().flatten().count();
    let options = status.agent.option_problems.len();
    clients + vifs + uplinks + names + unpinned + failing + added + agent + gateway + options
}

impl AddAssign for CounterStatus {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Not below zero: counters are read one after the other while packets come.
impl SubAssign for CounterStatus {
    fn sub_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_sub(other.packets);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}
