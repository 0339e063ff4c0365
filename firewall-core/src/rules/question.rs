//! What rules want to know about a name, and what they are told.
//! Never asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::rules::Family;

/// What is asked of DNS: the addresses of a name in one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// The name, as in the rule.
    pub name: String,
    /// A for IPv4, AAAA for IPv6.
    pub family: Family,
}

/// What rules with a name match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Where an accept rule leads.
    pub accept: BTreeSet<IpAddr>,
    /// What a drop rule closes; `None`: everything.
    pub drop: Option<BTreeSet<IpAddr>>,
}
