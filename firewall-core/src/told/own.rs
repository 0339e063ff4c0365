//! What a qube is told about itself: the types of `firewall.Why`'s JSON.
//! Never has a field for anything of others, of the netvm, or of all clients together, as generations
//! are numbered.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firewall_common::verdict::Reason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::Action;
use crate::told::status::{CounterStatus, ProblemStatus, State};
use crate::told::words::Named;

/// Where a packet of a qube is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// Destination address.
    pub destination: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
}

/// What a qube is told about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnStatus {
    /// The version of this form of JSON.
    pub schema: u32,
    /// Name of the qube, as dom0 has introduced it.
    pub qube: String,
    /// The qube's addresses that are clients; none if dom0 has not introduced the qube.
    pub own: Vec<OwnClient>,
    /// What the qube's rules say about a packet; nothing if none was asked about, or if the qube has no
    /// address of its family.
    pub answer: Option<OwnAnswer>,
}

/// One address of the qube.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnClient {
    /// The address.
    pub address: IpAddr,
    /// What is in force for the client.
    pub state: State,
    /// Why the client is blocked; nothing if it is not.
    pub problem: Option<ProblemStatus>,
    /// In how many seconds the client's audit ends; nothing if the client is not audited.
    pub audit_seconds_left: Option<u64>,
    /// What happens when no rule matches.
    pub default: Option<Action>,
    /// Packets that no rule matched.
    pub default_counter: CounterStatus,
    /// How many seconds ago the last packet that no rule matched was seen, to within ten seconds.
    pub default_last_seconds_ago: Option<u64>,
    /// The client's rules, in order.
    pub rules: Vec<OwnRule>,
    /// Packets by reason, where no rule had a say.
    #[schemars(with = "BTreeMap<String, CounterStatus>")]
    pub counters: BTreeMap<Named<Reason>, CounterStatus>,
}

/// One rule of the qube.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnRule {
    /// Number of the rule's key.
    pub number: u16,
    /// The rule as dom0 wrote it.
    pub text: String,
    /// What the rule says about packets that match.
    pub action: Action,
    /// Where the rule's host name leads; empty if the rule has none.
    pub addresses: Vec<IpAddr>,
    /// Whether any packet can reach the rule.
    pub effective: bool,
    /// Packets that the rule decided, since the qube's rules changed last.
    pub counter: CounterStatus,
    /// How many seconds ago the last packet that the rule decided was seen, to within ten seconds.
    pub last_seconds_ago: Option<u64>,
}

/// What the qube's rules say about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnAnswer {
    /// The address that sends the packet.
    pub source: IpAddr,
    /// Where the packet is to go.
    pub destination: IpAddr,
    /// Number of the protocol.
    pub protocol: u8,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
    /// What is said.
    pub says: OwnVerdict,
    /// Number of the deciding rule, if a rule decides.
    pub rule: Option<u16>,
    /// The deciding rule as dom0 wrote it, if a rule decides.
    pub text: Option<String>,
}

/// What is said about a packet of a qube, by the qube's rules alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OwnVerdict {
    /// The rules accept the packet.
    Accepted,
    /// The rules deny the packet.
    Denied,
    /// The rules deny the packet, and it passes, because the qube is audited.
    Audited,
    /// The rules cannot be used: all is denied.
    Blocked,
    /// No rules have come: all is denied.
    Waiting,
    /// The packet is an ICMP error or a redirect, about which rules say nothing.
    NotJudged,
}
