//! What rules want to know about a name, and what they are told.
//! Never asks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::rules::Family;

/// What is asked of DNS: the addresses of a name in one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// The name, lower case, without a dot at the end.
    pub name: String,
    /// Family of the addresses: DNS is asked for A for IPv4, for AAAA for IPv6.
    pub family: Family,
}

/// What rules with a name match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Addresses that an accept rule with the name matches.
    pub accept: BTreeSet<IpAddr>,
    /// Addresses that a drop rule with the name matches; `None`: every address.
    pub drop: Option<BTreeSet<IpAddr>>,
}
