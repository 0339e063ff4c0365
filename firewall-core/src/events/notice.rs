//! News worth a line in the log.
//! Never words that line: `daemon/notices.rs` of firewall-agent does.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Why;
use crate::rules::question::Question;
use crate::told::added::AddedRule;
use crate::told::passage::Loss;
use crate::told::status::Attachment;
use crate::tor::{Access, Each};
use crate::uplinks::Uplinks;

/// News worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A policy is in force for a client's address.
    Live {
        /// The client's address.
        client: IpAddr,
        /// How many rules the client has.
        rules: usize,
        /// In how many cells policy and rules were compared.
        cells_checked: usize,
    },
    /// A client's address is blocked.
    Blocked {
        /// The client's address.
        client: IpAddr,
        /// Why the client is blocked.
        why: String,
    },
    /// A client's address has no rules any more.
    Waiting {
        /// The client's address.
        client: IpAddr,
    },
    /// What a client's rules deny passes.
    Audited {
        /// The client's address.
        client: IpAddr,
        /// For how long from now on it passes.
        left: Duration,
    },
    /// What a client's rules deny is rejected again.
    AuditEnded {
        /// The client's address.
        client: IpAddr,
    },
    /// So many connections that rules deny have been ended.
    Ended(usize),
    /// Something does not work and is tried again; or it works again.
    Failing {
        /// What is so as long as it does not work.
        what: String,
        /// Why it does not work; `None`: it works again.
        why: Option<String>,
    },
    /// Programs were attached to a link.
    Attached {
        /// Interface name.
        link: String,
        /// How the programs are attached.
        how: Attachment,
    },
    /// Programs could not be attached to a link.
    NotAttached {
        /// Interface name.
        link: String,
        /// Whether the link is a vif.
        is_vif: bool,
        /// Why the programs could not be attached.
        why: Why,
    },
    /// Somebody took the programs of a link away.
    Detached {
        /// Interface name.
        link: String,
    },
    /// A link has another name.
    Renamed {
        /// The name that the link had.
        from: String,
        /// The name that the link has now.
        to: String,
        /// Whether the link was a vif.
        was_vif: bool,
        /// Whether the link is a vif now.
        is_vif: bool,
    },
    /// A vif is a port of another link now, or not any more.
    Port {
        /// Name of the vif.
        vif: String,
        /// Name of the link that the vif is a port of; `None`: the vif is no port any more.
        of: Option<String>,
    },
    /// Why the source of rules cannot be read; `None`: it can be read again.
    Source(Option<String>),
    /// A name leads elsewhere now.
    Name {
        /// The name.
        question: Question,
        /// Addresses that are new.
        added: BTreeSet<IpAddr>,
        /// Addresses that the name does not lead to any more.
        gone: BTreeSet<IpAddr>,
    },
    /// A name cannot be resolved, or rules may not use all that it leads to.
    NameProblem {
        /// The name.
        question: Question,
        /// What is wrong; `None`: nothing any more.
        why: Option<String>,
    },
    /// By which links alone clients' packets may leave now; `None`: by any.
    Uplinks(Option<Uplinks>),
    /// What is wrong with the key that lists them; `None`: nothing any more.
    UplinksProblem(Option<String>),
    /// What clients whose default is `drop` may do now with Tor's services.
    TorServices(Each<Access>),
    /// What is wrong with the keys that say so; none: nothing any more.
    TorProblems(Vec<String>),
    /// Why denied packets are not answered; `None`: they are, now.
    Silent(Option<String>),
    /// A client's rules count as handled, though there is no answer about some names yet.
    Unanswered {
        /// The client's address.
        client: IpAddr,
        /// The names.
        names: BTreeSet<Question>,
    },
    /// How somebody changed the gate.
    GateChanged(String),
    /// Where others appended rules behind the last ones of the gate.
    GateAppended(String),
    /// Others' rules in the gate are not those that were there before.
    AddedRules {
        /// Rules that are new.
        added: Vec<AddedRule>,
        /// Rules that are there no more.
        gone: Vec<AddedRule>,
    },
    /// Of what rules accepted, not everything left.
    Lost(Loss),
    /// Why it cannot be read which virtual resolvers somebody leads to a real one; `None`: it can be
    /// again.
    ResolversProblem(Option<String>),
    /// Why the gate cannot be looked at.
    GateUnknown(Why),
    /// Why the gate could not be loaded.
    GateNotLoaded(String),
    /// So many clients still settle when the agent ends.
    Unsettled(usize),
}
