//! What is said about one packet: the types of `explain`'s JSON, and what the gate makes of a
//! verdict.
//! Never judges a packet, and never formats text for people.

use std::net::IpAddr;

use firewall_common::packet::{Fragment, Message, Packet, Protocol};
use firewall_common::verdict::{Decision, Reason, Verdict};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::protocol::protocol;
use crate::rules::Action;
use crate::rules::explain::Aspect;
use crate::told::gateway::PacketInGateway;
use crate::told::passage::Loss;
use crate::told::status::{Mode, ProblemStatus, State};
use crate::told::words::{self, Named};
use crate::tor::Fate;

/// What rules can see of a packet.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct PacketStatus {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, as the client wrote it.
    pub destination: IpAddr,
    /// Number of the final protocol, as IANA assigns it.
    pub protocol: u8,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
    /// Source port of TCP and UDP, code of ICMP; nothing if it is not known.
    pub source_port: Option<u16>,
    /// Whether the packet is the first of several fragments.
    pub first_fragment: bool,
    /// Whether the packet is a fragment other than the first.
    pub later_fragment: bool,
    /// What the packet tells that is judged apart from its type, if it is ICMP.
    pub message: Option<MessageStatus>,
}

/// What an ICMP packet tells that is judged apart from its type.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum MessageStatus {
    /// An error about a packet that was sent to the one that complains.
    Error,
    /// An error about a packet that was not sent to the one that complains.
    ForeignError,
    /// That packets should go by another way (a redirect).
    Redirect,
    /// A neighbour advertisement (ICMPv6) of somebody else's address.
    ForeignAdvertisement,
}

impl PacketStatus {
    /// A whole packet, of which nothing else is known.
    pub fn plain(source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Self {
        Self {
            source,
            destination,
            protocol,
            port,
            source_port: None,
            first_fragment: false,
            later_fragment: false,
            message: None,
        }
    }

    /// The packet as the evaluator takes it.
    pub fn packet(&self) -> Packet {
        let Self { source, destination, protocol: number, port, .. } = *self;
        let protocol = protocol(number, source.is_ipv4());
        let message = match self.message {
            None => Message::Plain,
            Some(MessageStatus::Error) => Message::Error,
            Some(MessageStatus::ForeignError) => Message::ForeignError,
            Some(MessageStatus::Redirect) => Message::Redirect,
            Some(MessageStatus::ForeignAdvertisement) => Message::ForeignAdvertisement,
        };
        Packet {
            protocol,
            number,
            port: if protocol == Protocol::Other { 0 } else { port },
            source_port: self.source_port.unwrap_or(0),
            message,
            fragment: if self.later_fragment { Fragment::LATER } else { Fragment::WHOLE },
            ..Packet::of_addresses(source.into(), destination.into())
        }
    }
}

impl From<&Packet> for PacketStatus {
    fn from(packet: &Packet) -> Self {
        let Packet { source, destination, protocol: _, number, port, .. } = *packet;
        let message = match packet.message {
            Message::Plain => None,
            Message::Error => Some(MessageStatus::Error),
            Message::ForeignError => Some(MessageStatus::ForeignError),
            Message::Redirect => Some(MessageStatus::Redirect),
            Message::ForeignAdvertisement => Some(MessageStatus::ForeignAdvertisement),
        };
        Self {
            source: source.into(),
            destination: destination.into(),
            protocol: number,
            port,
            source_port: Some(packet.source_port),
            first_fragment: packet.fragment.is_fragment() && !packet.fragment.is_later(),
            later_fragment: packet.fragment.is_later(),
            message,
        }
    }
}

/// A verdict with its evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Judgement {
    /// What the program does with the packet.
    #[serde(with = "words")]
    #[schemars(with = "Named<Verdict>")]
    pub verdict: Verdict,
    /// Why the packet meets this verdict, in the word of counters and drop records.
    #[serde(with = "words")]
    #[schemars(with = "Named<Reason>")]
    pub reason: Reason,
    /// Index of the deciding rule, if a rule decides.
    pub rule_index: Option<u32>,
    /// Number of the policy that decides; 0 if none does.
    pub generation: u32,
}

impl From<&Decision> for Judgement {
    fn from(decision: &Decision) -> Self {
        let Decision { verdict, reason, rule, generation, .. } = *decision;
        Self { verdict, reason, rule_index: (reason == Reason::Rule).then_some(rule), generation }
    }
}

/// What the agent says about a packet that comes in by one vif, or what a file of rules says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The client's address.
    pub client: IpAddr,
    /// Name of the client's vif; nothing if there is none, or for a file.
    pub vif: Option<String>,
    /// Interface index of the client's vif; nothing if there is none, or for a file.
    pub vif_index: Option<u32>,
    /// What is in force for the client.
    pub state: State,
    /// Why the client is blocked; nothing if it is not.
    pub problem: Option<ProblemStatus>,
    /// Whether connections are being ended just now; until then what is denied is dropped.
    pub settling: bool,
    /// Whether IPv6 neighbour discovery in which a client speaks for others is dropped.
    pub guards_neighbours: bool,
    /// What the evaluator says, on the agent's own policy.
    pub judgement: Judgement,
    /// Number of the deciding rule, if a rule decides.
    pub rule: Option<u16>,
    /// The rules that were tried, in order; the last one decides, unless the default does.
    pub tried: Vec<TriedStatus>,
    /// How many rules the client has.
    pub rules: usize,
    /// What happens when no rule matches; nothing if no rules are in force.
    pub default: Option<Action>,
    /// Who translates addresses; nothing for a file.
    pub mode: Option<Mode>,
    /// How many rules others added to the agent's tables. What such a rule does is not looked at.
    pub added_rules: usize,
    /// What rules of whatever client accepted lately and did not leave; nothing if all left, if too
    /// little was sent to tell, or for a file.
    pub lost: Option<Loss>,
    /// Whether the destination is the address of another client.
    pub to_client: bool,
    /// Names of the only links by which clients' packets may leave, beside those to other clients;
    /// nothing if any will do.
    pub uplinks: Option<Vec<String>>,
    /// The real DNS server behind the virtual one that the packet is for.
    pub redirected_to: Option<IpAddr>,
    /// In a Whonix gateway, what becomes of the packet there; nothing elsewhere.
    pub gateway: Option<PacketInGateway>,
}

/// A rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TriedStatus {
    /// Number of the rule's key.
    pub number: u16,
    /// The rule as dom0 wrote it.
    pub text: String,
    /// What of the packet the rule does not match; empty if the rule decides.
    pub differs: Vec<DifferenceStatus>,
}

/// What of a packet a rule does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DifferenceStatus {
    /// What of the packet differs.
    pub aspect: Aspect,
    /// Why the rule does not match, for people.
    pub why: String,
}

/// One packet, and all that can be said about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// The version of this form of JSON.
    pub schema: u32,
    /// The client that sends the packet.
    pub client: IpAddr,
    /// The name that was asked for, if it was no address.
    pub name: Option<String>,
    /// The packet; nothing if the frame holds none that rules can judge.
    pub packet: Option<PacketStatus>,
    /// What becomes of the packet.
    pub outcome: Outcome,
    /// In a Whonix gateway, what becomes of the packet there; nothing elsewhere.
    pub gateway: Option<PacketInGateway>,
    /// What decides: the agent's judgement, or the kernel's if no agent runs.
    pub judgement: Judgement,
    /// What the agent says, or a file of rules; nothing if neither does.
    pub agent: Option<Explanation>,
    /// Why no agent says anything; and that the gate is not there, or why nobody knows, if so.
    pub agent_problem: Option<String>,
    /// What the kernel's own tables say, by the same evaluator.
    pub kernel: Option<Judgement>,
    /// Why the kernel's own tables cannot be read.
    pub kernel_problem: Option<String>,
    /// Whether agent and kernel say the same, if both say something.
    pub agree: Option<bool>,
    /// The connection that the packet belongs to, if the kernel knows one.
    pub connection: Option<Connection>,
    /// Why the kernel's table of connections cannot be read.
    pub connection_problem: Option<String>,
}

impl Explained {
    /// What rules accepted lately and did not leave, if the packet goes the way of it: on with a permit.
    pub fn lost(&self) -> Option<&Loss> {
        let is_accepted = match self.judgement.verdict {
            Verdict::Accept | Verdict::Audit => self.outcome == Outcome::Forwarded,
            Verdict::Reject | Verdict::Pass | Verdict::Related | Verdict::Drop => false,
        };
        self.agent.as_ref()?.lost.as_ref().filter(|_| is_accepted)
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The gate forwards the packet.
    Forwarded,
    /// In a Whonix gateway: Tor gets the packet, at the port that `gateway` tells.
    Tor,
    /// The packet is for the netvm itself, whose own input rules decide.
    Local,
    /// Connection tracking decides: the gate forwards an ICMP error about a connection that is
    /// known, and drops any other.
    Related,
    /// The gate rejects the packet: the client gets an ICMP error.
    Rejected,
    /// The packet ends silently.
    Dropped,
}

/// How a packet belongs to a connection that the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// The client opened the connection, and the packet is another one of it.
    Opened,
    /// The connection was opened towards the client, and the packet answers.
    Answers,
}

impl Outcome {
    /// What the gate makes of a verdict.
    pub fn of(
        judgement: &Judgement,
        connection: Option<Connection>,
        to_client: bool,
        is_first_fragment: bool,
    ) -> Self {
        let answers = connection == Some(Connection::Answers);
        match (judgement.verdict, judgement.reason) {
            // A denied fragment is not handed on to be rejected.
            (Verdict::Reject, _) if is_first_fragment => Self::Dropped,
            (Verdict::Related, _) => Self::Related,
            (Verdict::Accept, Reason::Local) => Self::Local,
            // nftables lets nothing new from one client to another.
            (Verdict::Accept | Verdict::Audit, _) if to_client && !answers => Self::Dropped,
            (Verdict::Accept | Verdict::Audit, _) => Self::Forwarded,
            (Verdict::Reject, _) if answers => Self::Forwarded,
            // Right behind the others of its datagram it would pass; alone it does not.
            (Verdict::Pass, Reason::Fragment) => Self::Dropped,
            (Verdict::Reject, _) => Self::Rejected,
            (Verdict::Pass, _) => Self::Local,
            (Verdict::Drop, _) => Self::Dropped,
        }
    }

    /// What a Whonix gateway makes of a verdict.
    pub fn in_gateway(
        judgement: &Judgement,
        PacketInGateway { fate, silent }: PacketInGateway,
        is_first_fragment: bool,
    ) -> Self {
        match (judgement.verdict, judgement.reason) {
            (Verdict::Accept | Verdict::Audit, _) => match fate {
                Fate::TransPort | Fate::DnsPort | Fate::Socks | Fate::Control => Self::Tor,
                Fate::Neighbour => Self::Local,
                Fate::Related => Self::Related,
                Fate::Dropped => Self::Dropped,
            },
            (Verdict::Related, _) => Self::Related,
            (Verdict::Reject, _) if silent || is_first_fragment => Self::Dropped,
            (Verdict::Reject, _) => Self::Rejected,
            (Verdict::Pass, Reason::Fragment) | (Verdict::Drop, _) => Self::Dropped,
            (Verdict::Pass, _) => Self::Local,
        }
    }
}
