//! The words between the world and the edges: what happened, and what to do.
//! Never holds behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use firewall_common::abi::Local;

use thiserror::Error;

use crate::client::{ClientId, Links};
use crate::connection::Flow;
use crate::names::answer::{Outcome, Remembered};
use crate::rules::Ruleset;
use crate::rules::check::ProvedPolicy;
use crate::rules::question::Question;
use crate::rules::source::SourceError;
use crate::time::Moment;
use crate::told::status::Attachment;

/// What the daemon does for the world and may have to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// [`Effect::ReadLinks`].
    Links,
    /// [`Effect::SetLocals`].
    Locals,
    /// [`Effect::SetConnected`].
    Connected,
    /// [`Effect::Put`].
    Put(ClientId),
    /// [`Effect::Audit`].
    Audit(ClientId),
    /// [`Effect::Remove`].
    Remove(ClientId),
    /// [`Effect::Settled`].
    Settled(ClientId),
    /// Waiting until no packet can see what was replaced, and making room of it.
    Tidy,
    /// Making room ready for the next policies, when nobody waits for it.
    Prepare,
    /// [`Effect::ReadConnections`].
    ReadConnections,
    /// Ending the connections that a client must not have any more: [`Effect::Disconnect`].
    Cut(ClientId),
    /// [`Effect::ReadFlows`].
    ReadFlows,
    /// [`Effect::Forget`].
    Forget(u32),
    /// [`Effect::TakenOver`].
    TakenOver,
}

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
    /// The source cannot be read, and why; what it said before stays. `None`: it can be again.
    Source(Option<String>),
    /// The DNS servers that the netvm names.
    Servers {
        /// Those that clients can mean.
        of_clients: Vec<IpAddr>,
        /// Those that the agent can ask.
        own: Vec<IpAddr>,
    },
    /// What an earlier agent knew about names.
    Remembered {
        /// Its answers.
        names: Vec<Remembered>,
        /// When this is.
        now: Moment,
    },
    /// What came of questions.
    Answered {
        /// The questions.
        outcomes: Vec<(Question, Outcome)>,
        /// When.
        now: Moment,
    },
    /// Names are to be asked anew, whatever is known.
    AskAll,
    /// What connections there are, of those that were asked for: [`Effect::ReadFlows`].
    InUse {
        /// Who opened them, and to where.
        flows: BTreeSet<(IpAddr, IpAddr)>,
        /// When that was asked.
        now: Moment,
    },
    /// A part of what [`Effect::ReadConnections`] asks for.
    Connections(Vec<Flow>),
    /// All of it was told; or it cannot be, and why.
    ConnectionsRead {
        /// Whether it was all.
        outcome: Result<(), Why>,
        /// When.
        now: Moment,
    },
    /// What came of [`Effect::Disconnect`].
    Disconnected {
        /// How many connections are gone.
        gone: usize,
        /// Who opened those that are not, and why.
        refused: BTreeMap<IpAddr, String>,
    },
    /// Somebody wants what a client's rules deny to pass for a while.
    Audit {
        /// The client's address.
        client: IpAddr,
        /// How long; zero ends it.
        length: Duration,
        /// When.
        now: Moment,
    },
    /// Time has passed.
    Time(Moment),
    /// A program was attached to a link, or could not be.
    Attached {
        /// Interface index.
        link: u32,
        /// How, or why not.
        outcome: Result<Attachment, Why>,
    },
    /// Somebody took the programs of these links away, by interface index.
    Detached(BTreeSet<u32>),
    /// What was put in force could not be; the client has what it had before.
    Refused {
        /// The client.
        client: ClientId,
        /// Why.
        why: String,
        /// Whether it may work later with the same rules.
        may_pass: bool,
        /// When.
        now: Moment,
    },
    /// What came of a task.
    Tried {
        /// The task.
        task: Task,
        /// Whether it is done, or why not.
        outcome: Result<(), Why>,
        /// When.
        now: Moment,
    },
}

/// Why an edge could not do something, in its own words: people are told them, and nothing is
/// decided by them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Why(pub String);

impl Why {
    /// What an edge's error says.
    pub fn of(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// What to put in force for a client.
#[derive(Clone, Debug)]
pub enum Installation {
    /// Drop everything; no rules are known.
    Waiting,
    /// Reject everything.
    Blocked,
    /// Let a policy decide.
    Policy {
        /// The policy.
        policy: ProvedPolicy,
        /// How many rules to count.
        rules: u32,
    },
}

/// Something the daemon must do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Tell which links there are now.
    ReadLinks,
    /// The netvm's own addresses are now these.
    SetLocals(BTreeMap<IpAddr, Local>),
    /// These addresses, and no others, belong to clients, present or not.
    SetConnected(BTreeSet<IpAddr>),
    /// Virtual resolvers lead to these real ones.
    Redirect(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// Put something in force for a client.
    Put {
        /// The client.
        client: ClientId,
        /// What.
        installation: Installation,
        /// Its number.
        generation: u32,
    },
    /// Let what a client's policy denies pass, and tell it.
    Audit {
        /// The client.
        client: ClientId,
        /// Until then, in seconds since the machine booted; 0: not any more.
        until: u32,
    },
    /// A client is gone: remove all that is in force for it.
    Remove(ClientId),
    /// Tell what these addresses have open, part by part.
    ReadConnections(BTreeSet<IpAddr>),
    /// End these connections.
    Disconnect(Vec<Flow>),
    /// A client has nothing open any more that it must not have: its denied packets are to be
    /// rejected again.
    Settled(ClientId),
    /// What a client's rules come to is in force: tell the source.
    Handled(IpAddr),
    /// Tell the source what the names in a client's rules lead to.
    Publish {
        /// The client's address.
        client: IpAddr,
        /// Addresses by name, as far as names are resolved.
        names: BTreeMap<String, BTreeSet<IpAddr>>,
    },
    /// Ask these DNS servers from now on, and forget what was asked before.
    SetServers(Vec<IpAddr>),
    /// Ask DNS.
    Ask(Question),
    /// Find out which connections lead to these addresses.
    ReadFlows {
        /// The addresses.
        to: BTreeSet<IpAddr>,
        /// When this is asked.
        now: Moment,
    },
    /// Keep this for a later agent.
    Remember(Vec<Remembered>),
    /// Attach the program to a vif.
    Attach {
        /// Interface index.
        vif: u32,
        /// Interface name.
        name: String,
    },
    /// Attach the programs that guard clients' addresses to another link.
    AttachUplink {
        /// Interface index.
        uplink: u32,
        /// Interface name.
        name: String,
    },
    /// A link is gone: remove what is left of it.
    Forget {
        /// Interface index.
        link: u32,
    },
    /// Everything that is there is in force for the first time: what an earlier agent left
    /// for other links can go.
    TakenOver,
    /// Tell whoever reads the log.
    Tell(Notice),
}

/// News worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A policy is in force for a client's address.
    Live {
        /// The address.
        client: IpAddr,
        /// How many rules it has.
        rules: usize,
        /// In how many cells policy and rules were compared.
        cells_checked: usize,
    },
    /// A client's address is blocked.
    Blocked {
        /// The address.
        client: IpAddr,
        /// Why.
        why: String,
    },
    /// A client's address has no rules any more.
    Waiting {
        /// The address.
        client: IpAddr,
    },
    /// What a client's rules deny passes.
    Audited {
        /// The address.
        client: IpAddr,
        /// For how long from now on.
        left: Duration,
    },
    /// What a client's rules deny is rejected again.
    AuditEnded {
        /// The address.
        client: IpAddr,
    },
    /// So many connections that rules deny have been ended.
    Ended(usize),
    /// Something does not work and is tried again; or it works again.
    Failing {
        /// What is so as long as it does not work.
        what: String,
        /// Why; `None`: it works again.
        why: Option<String>,
    },
    /// Somebody took the programs of a link away.
    Detached {
        /// Interface name.
        link: String,
    },
    /// A link has another name.
    Renamed {
        /// The name it had.
        from: String,
        /// The name it has.
        to: String,
        /// Whether it was a vif.
        was_vif: bool,
        /// Whether it is one now.
        is_vif: bool,
    },
    /// The source of rules cannot be read, or can be again.
    Source(Option<String>),
    /// A name leads elsewhere now.
    Name {
        /// The name.
        question: Question,
        /// Addresses that are new.
        added: BTreeSet<IpAddr>,
        /// Addresses that it does not lead to any more.
        gone: BTreeSet<IpAddr>,
    },
    /// A name cannot be resolved, or rules may not use all that it leads to.
    NameProblem {
        /// The name.
        question: Question,
        /// What is wrong; `None`: nothing any more.
        why: Option<String>,
    },
}
