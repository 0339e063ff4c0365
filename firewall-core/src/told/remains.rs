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
    /// The version of this form.
    pub schema: u32,
    /// Why the agent does not tell.
    pub agent_problem: String,
    /// Whether the gate is there.
    pub gate: GateState,
    /// Families (`ip`, `ip6`) in which nothing closes, or why nobody knows.
    pub gate_problem: Option<String>,
    /// Why the kernel does not tell which programs are attached.
    pub programs_problem: Option<String>,
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
    /// `gate_problem` says why nobody knows.
    Unknown,
}

/// A vif with a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingVif {
    /// Its interface index.
    pub index: u32,
    /// Its name, if it is still there.
    pub name: Option<String>,
    /// Why the tables of its program cannot be read.
    pub problem: Option<String>,
    /// Its clients.
    pub clients: Vec<RemainingClient>,
}

/// What is in force for a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingClient {
    /// Its address.
    pub address: IpAddr,
    /// What is in force.
    pub state: RemainingState,
    /// Whether what it may not send is dropped and not rejected for now.
    pub settling: bool,
    /// Whether it is audited, unless that has ended by itself.
    pub audited: bool,
    /// Number of its policy.
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
    /// Its policy decides.
    Live,
    /// Everything is rejected.
    Blocked,
    /// Everything is dropped.
    Waiting,
    /// The tables have another number there.
    Unknown,
}

/// A rule, known by its index only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RemainingRule {
    /// Its index.
    pub index: u32,
    /// What the client's file of rules says at this index now, if there is one.
    pub text_now: Option<String>,
    /// Packets it decided.
    pub counter: CounterStatus,
}
