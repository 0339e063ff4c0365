//! What only the kernel and the process know, and the world is told for its status.
//! Never remembers anything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::abi::Counter;
use firewall_common::verdict::Reason;

use crate::client::ClientId;
use crate::told::options::OptionStatus;

/// Packets and bytes that met each reason.
pub type ReasonCounters = Vec<(Reason, Counter)>;

/// All that status tells and the world does not know.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Version of the agent.
    pub version: String,
    /// Process number of the agent.
    pub pid: u32,
    /// Options that somebody set.
    pub options: Vec<OptionStatus>,
    /// What is wrong with the keys of QubesDB that set options.
    pub option_problems: Vec<String>,
    /// Names of qubes that dom0 introduced, by address.
    pub introduced: BTreeMap<IpAddr, String>,
    /// Where rules come from.
    pub source: String,
    /// Instructions that the kernel's verifier walked through to accept the program; `None` if the
    /// kernel does not tell.
    pub verified_instructions: Option<u32>,
    /// Whether the program keeps answers for packets like the last ones.
    pub caches: bool,
    /// How many programs end with the agent, because there is no place to pin them.
    pub unpinned_programs: usize,
    /// The kernel's counters.
    pub counters: Counters,
}

/// The kernel's counters.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Counters of clients.
    pub clients: BTreeMap<ClientId, ClientCounters>,
    /// Counters of packets that belong to no known client.
    pub strays: ReasonCounters,
}

/// Counters of one client.
#[derive(Clone, Debug, Default)]
pub struct ClientCounters {
    /// Counters of reasons, of which the default is one.
    pub reasons: ReasonCounters,
    /// Counters of rules, in the order of the ruleset.
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
