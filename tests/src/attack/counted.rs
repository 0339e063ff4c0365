//! What the agent says that it counted of the attacker's frames.
//! Never says what it should be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::verdict::Reason;
use firewall_core::told::status::{CounterStatus, Status};
use firewall_core::told::totals::Totals;

/// What is counted of the attacker's frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counted {
    /// All of them, and chatter of kernels perhaps.
    pub(crate) all: u64,
    /// What may be such chatter.
    pub(crate) chatter: u64,
    /// Those that passed the rules, or an audit.
    pub(crate) passed: u64,
    /// Each counter by its name.
    counters: BTreeMap<String, u64>,
}

impl Counted {
    /// What a status says of an attacker with these addresses.
    pub(crate) fn of(status: &Status, own: &[IpAddr]) -> Self {
        let mut counted = Self::default();
        for client in status.clients.iter().filter(|client| own.contains(&client.address)) {
            let totals = Totals::of(client);
            let passed = totals.accepted.packets + totals.audited.packets;
            counted.passed += passed;
            counted.all += passed + totals.denied.packets + totals.passed.packets;
            let mut note = |name: &str, counter: &CounterStatus| {
                counted.counters.insert(format!("{} {name}", client.address), counter.packets);
            };
            for (index, rule) in client.rules.iter().enumerate() {
                note(&format!("rule {index}"), &rule.counter);
            }
            note("default", &client.default_counter);
            client.counters.iter().for_each(|(reason, counter)| note(reason.0.name(), counter));
        }
        for (reason, counter) in &status.strays {
            counted.all += counter.packets;
            counted.counters.insert(format!("stray {}", reason.0.name()), counter.packets);
            if [Reason::Arp, Reason::LinkLocal].contains(&reason.0) {
                counted.chatter += counter.packets;
            }
        }
        counted
    }

    /// The counters that have grown since, and by how much.
    pub(crate) fn grown_since(&self, before: &Self) -> String {
        let grown = self.counters.iter().filter_map(|(name, now)| {
            let more = now.saturating_sub(before.counters.get(name).copied().unwrap_or_default());
            (more > 0).then(|| format!("{name} by {more}"))
        });
        grown.collect::<Vec<_>>().join(", ")
    }
}
