//! What happened outside, as edges tell it.
//! Never says when, but of denied packets: time is told beside each event.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use firewall_common::abi::DropRecord;
use thiserror::Error;

use super::Task;
use crate::client::{ClientId, Links};
use crate::connection::Flow;
use crate::names::answer::{Outcome, Remembered};
use crate::rules::Ruleset;
use crate::rules::question::Question;
use crate::rules::source::SourceError;
use crate::told::added::AddedRule;
use crate::told::passage::BaseChain;
use crate::told::status::Attachment;
use crate::tor::Keys;
use crate::uplinks::{BadUplinks, Uplinks};

/// Something happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// Links or their addresses changed; this is all of them.
    Links(Links),
    /// All rules there are: an address that is not named has none.
    AllRules(BTreeMap<IpAddr, Result<Ruleset, SourceError>>),
    /// A client's rules were written, or removed.
    Rules {
        /// The client's address.
        client: IpAddr,
        /// The rules; `None` if there are none any more.
        rules: Option<Result<Ruleset, SourceError>>,
    },
    /// Addresses of clients, present or not, as the source knows them.
    Connected(BTreeSet<IpAddr>),
    /// By which links alone clients' packets may leave, as the netvm's own key says; `None` if there
    /// is no such key, or it is empty.
    Uplinks(Result<Option<Uplinks>, BadUplinks>),
    /// What qubes whose default is `drop` may do with Tor's services, as the own keys of a Whonix
    /// gateway say.
    TorServices(Keys),
    /// Why the source of rules cannot be read; what it said before stays. `None`: it can be read
    /// again.
    Source(Option<String>),
    /// The DNS servers that the netvm names.
    Servers {
        /// Servers that clients can mean by `specialtarget=dns`.
        of_clients: Vec<IpAddr>,
        /// Servers that the agent can ask.
        own: Vec<IpAddr>,
    },
    /// What an earlier agent knew about names.
    Remembered(Vec<Remembered>),
    /// What came of questions.
    Answered(Vec<(Question, Outcome)>),
    /// Names are to be asked anew, whatever is known.
    AskAll,
    /// A part of what [`Effect::ReadFlows`](super::Effect::ReadFlows) asks for.
    Flows(Vec<Flow>),
    /// All that [`Effect::ReadFlows`](super::Effect::ReadFlows) asks for was told; or why that
    /// cannot be told.
    FlowsRead(Result<(), Why>),
    /// A part of what [`Effect::ReadConnections`](super::Effect::ReadConnections) asks for.
    Connections(Vec<Flow>),
    /// All that [`Effect::ReadConnections`](super::Effect::ReadConnections) asks for was told; or
    /// why that cannot be told.
    ConnectionsRead(Result<(), Why>),
    /// What came of [`Effect::Disconnect`](super::Effect::Disconnect).
    Disconnected {
        /// How many connections are gone.
        gone: usize,
        /// Who opened connections that could not be ended, and why they could not.
        refused: BTreeMap<IpAddr, String>,
    },
    /// Somebody wants what a client's rules deny to pass for a while.
    Audit {
        /// The client's address.
        client: IpAddr,
        /// For how long from now on; zero ends the audit.
        length: Duration,
    },
    /// Time has passed.
    Time,
    /// A program was attached to a link, or could not be.
    Attached {
        /// Interface index.
        link: u32,
        /// How the program is attached, or why it is not.
        outcome: Result<Attachment, Why>,
    },
    /// Somebody took the programs of these links away, by interface index.
    Detached(BTreeSet<u32>),
    /// What was put in force could not be; the client has what it had before.
    Refused {
        /// The client.
        client: ClientId,
        /// Why the kernel refused.
        why: String,
        /// Whether it may work later with the same rules.
        may_pass: bool,
    },
    /// What came of a task.
    Tried {
        /// The task.
        task: Task,
        /// Whether it is done, or why not.
        outcome: Result<(), Why>,
    },
    /// All that came of an event is done; whether the kernel's maps hold what was replaced, and may
    /// have let pass what is to pass no more.
    Done {
        /// Whether the kernel's maps hold such a thing.
        has_replaced: bool,
    },
    /// Nothing is left to do; whether the kernel's maps hold nothing that was replaced, and have room
    /// ready for the next policies.
    Resting {
        /// Whether the kernel's maps are in order.
        is_prepared: bool,
    },
    /// How the gate was found.
    Gate(GateLook),
    /// Which virtual resolvers no rule of nftables leads elsewhere, or why that cannot be read.
    NotRedirected(Result<BTreeSet<Ipv4Addr>, Why>),
    /// How many frames got a permit so far, and how many frames of these left.
    Passage([u64; 2]),
    /// What else in nftables packets of clients come by ([`Effect::LookBetween`](super::Effect::LookBetween)).
    Between(Result<Vec<BaseChain>, Why>),
    /// What came of [`Effect::AnswerDenied`](super::Effect::AnswerDenied).
    AnswersDenied(Result<(), Why>),
    /// What came of [`Effect::LoadGate`](super::Effect::LoadGate).
    GateLoaded(Result<(), Why>),
    /// Packets were denied.
    Denied {
        /// What the kernel program tells of the packets.
        records: Vec<DropRecord>,
        /// When the agent read this, in milliseconds since 1970.
        time_ms: u64,
    },
    /// How many packets each client's default and rules have decided about, in this order.
    Counted(BTreeMap<ClientId, Vec<u64>>),
    /// Whoever runs the agent wants everything to be read again.
    Reload,
    /// It is time to write what is not written, and to read again what may have changed unnoticed.
    Resync,
    /// The agent ends.
    Stopping {
        /// Whether the firewall opens with that.
        opens: bool,
    },
}

/// How the gate was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateLook {
    /// The gate is as it is to be, with these rules of others.
    Whole(Vec<AddedRule>),
    /// Nothing of the gate is missing or different, but others appended rules behind its last ones:
    /// where.
    Appended(String),
    /// Somebody changed the gate: what is missing or different.
    Changed(String),
    /// Why the gate cannot be looked at.
    Unknown(Why),
}

/// Why an edge could not do something, in its own words: people are told them, and nothing is
/// decided by these.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Why(pub String);

impl Why {
    /// What an edge's error says.
    pub fn of(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}
