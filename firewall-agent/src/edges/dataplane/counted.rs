//! What the programs counted for clients, by reason and by rule.
//! Never changes a counter.

use firewall_common::abi::Counter;
use firewall_common::verdict::{Reason, reason_counter, rule_counter};

use super::maps::Maps;
use firewall_core::client::ClientId;

impl Maps {
    /// What was counted for a reason; without a client, for packets of nobody known. Zeros if
    /// nothing is in force for the client.
    pub fn reason_counter(&self, client: Option<ClientId>, reason: Reason) -> Counter {
        match client.map(|client| self.in_force.get(&client)) {
            None => self.counters.load(reason_counter(0, reason)),
            Some(None) => Counter::default(),
            Some(Some(it)) => self.counters.load(reason_counter(it.counters.start, reason)),
        }
    }

    /// What was counted for the rule with this index; zeros if the client has no such rule.
    pub fn rule_counter(&self, client: ClientId, rule: u32) -> Counter {
        let Some(in_force) = self.in_force.get(&client) else {
            return Counter::default();
        };
        let index = rule_counter(in_force.counters.start, rule);
        if in_force.counters.contains(&index) {
            self.counters.load(index)
        } else {
            Counter::default()
        }
    }

    /// How many frames got a permit, and how many of those left.
    pub fn passage(&self) -> [u64; 2] {
        self.passage.get(&0, 0).unwrap_or_default()
    }
}
