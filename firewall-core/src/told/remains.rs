//! What is told when no agent runs: the types of `status` and `show` by the kernel's tables alone.
//! Never guesses: a rule's text is only what a file says now.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::verdict::Reason;
use schemars::JsonSchema;
use serde::Serialize;

use super::status::CounterStatus;
use super::words::Named;

/// Everything that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Remains {
    /// The version of this form of JSON.
    pub schema: u32,
    /// Why no agent tells.
    pub agent_problem: String,
    /// Whether the gate is there.
    pub gate: GateState,
    /// Whether this is a Whonix gateway in mode `whonix`: there the gate stands in front of Tor, and
    /// nothing is forwarded.
    pub gateway: bool,
    /// Families (`ip`, `ip6`) in which nothing closes, or why nobody knows. Of a Whonix gateway,
    /// `inet` is what enters it.
    pub gate_problem: Option<String>,
    /// Why the kernel does not tell which programs are attached.
    pub programs_problem: Option<String>,
    /// What the kernel lacks, if no agent can run on it.
    pub kernel_problem: Option<String>,
    /// Vifs with a program.
    pub vifs: Vec<RemainingVif>,
}

impl Remains {
    /// Whether it is certain that a client's packets need a program that accepts them.
    pub fn is_closed(&self) -> bool {
        self.gate == GateState::Closed
    }
}

/// Whether the gate is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GateState {
    /// Nothing is forwarded from a client but what vifs' programs accept, and answers.
    Closed,
    /// Whatever no program drops is forwarded.
    Open,
    /// Nobody knows whether the gate is there; `gate_problem` says why.
    Unknown,
}

/// A vif with a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingVif {
    /// Interface index of the vif.
    pub index: u32,
    /// Name of the vif; nothing if it is gone.
    pub name: Option<String>,
    /// Why the tables of the vif's program cannot be read.
    pub problem: Option<String>,
    /// The clients behind the vif.
    pub clients: Vec<RemainingClient>,
}

/// What is in force for a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingClient {
    /// The client's address.
    pub address: IpAddr,
    /// What is in force for the client.
    pub state: RemainingState,
    /// Whether what the client may not send is dropped and not rejected for now.
    pub settling: bool,
    /// Whether the client is audited, unless that has ended by itself.
    pub audited: bool,
    /// Number of the client's policy.
    pub generation: u32,
    /// The rules that can decide, by their index.
    pub rules: Vec<RemainingRule>,
    /// Packets by reason, where no rule had a say.
    #[schemars(with = "BTreeMap<String, CounterStatus>")]
    pub counters: BTreeMap<Named<Reason>, CounterStatus>,
}

/// What is in force for a client, as the kernel's tables tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RemainingState {
    /// The client's policy decides.
    Live,
    /// Everything is rejected.
    Blocked,
    /// Everything is dropped.
    Waiting,
    /// The tables have a number there that means none of these.
    Unknown,
}

/// A rule, known by its index only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingRule {
    /// Index of the rule in the policy's ruleset.
    pub index: u32,
    /// What the client's file of rules says at this index now; nothing if there is no such rule.
    pub text_now: Option<String>,
    /// Packets that the rule decided.
    pub counter: CounterStatus,
}
