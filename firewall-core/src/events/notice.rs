//! News worth a line in the log.
//! Never has the words of that line.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Why;
use crate::rules::question::Question;
use crate::told::status::Attachment;

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
    /// Programs were attached to a link.
    Attached {
        /// Interface name.
        link: String,
        /// How.
        how: Attachment,
    },
    /// Programs could not be attached to a link.
    NotAttached {
        /// Interface name.
        link: String,
        /// Whether it is a vif.
        is_vif: bool,
        /// Why.
        why: Why,
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
    /// Somebody changed the gate, and how.
    GateChanged(String),
    /// The gate cannot be looked at, and why.
    GateUnknown(Why),
    /// The gate could not be loaded, and why.
    GateNotLoaded(String),
    /// So many clients still settle when the agent ends.
    Unsettled(usize),
}
