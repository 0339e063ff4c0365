//! What only the kernel and the process know, and the world is told for its status.
//! Never remembers anything.

use std::collections::BTreeMap;

use firewall_common::abi::Counter;
use firewall_common::verdict::Reason;

use crate::client::ClientId;

/// How often each reason was met.
pub type ReasonCounters = Vec<(Reason, Counter)>;

/// All that status tells and the world does not know.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Version of the agent.
    pub version: String,
    /// Process of the agent.
    pub pid: u32,
    /// Where rules come from.
    pub source: String,
    /// Bit of the packet mark that the gate looks for, as a mask.
    pub mark_bit: u32,
    /// Instructions that the kernel's verifier walked through to accept the program.
    pub verified_instructions: Option<u32>,
    /// Whether the program keeps answers for packets like the last ones.
    pub caches: bool,
    /// Programs that end with the agent, because there is no place to pin them.
    pub unpinned_programs: usize,
    /// The kernel's counters.
    pub counters: Counters,
}

/// The kernel's counters.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Those of clients.
    pub clients: BTreeMap<ClientId, ClientCounters>,
    /// Those of packets that belong to no known client.
    pub strays: ReasonCounters,
}

/// Counters of one client.
#[derive(Clone, Debug, Default)]
pub struct ClientCounters {
    /// Those of reasons; the default is one of them.
    pub reasons: ReasonCounters,
    /// Those of rules, in order.
    pub rules: Vec<Counter>,
}

impl Counters {
    /// How many packets each client's default and rules have decided about, in this order.
    pub fn decided(&self) -> BTreeMap<ClientId, Vec<u64>> {
        let clients = self.clients.iter().map(|(client, ClientCounters { reasons, rules })| {
            let mut defaults = reasons.iter().filter(|(reason, _)| *reason == Reason::Default);
            let default = defaults.next().map_or(0, |(_, counter)| counter.packets);
            let rules = rules.iter().map(|counter| counter.packets);
            (*client, [default].into_iter().chain(rules).collect())
        });
        clients.collect()
    }
}
