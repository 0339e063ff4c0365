//! What dom0 wrote, and the stages from text to policy. Each stage is a type:
//! text → [`Ruleset`] → [`resolve::ResolvedRuleset`] → [`compile::Policy`] →
//! [`check::ProvedPolicy`].
//! Never touches files, sockets, clocks or the kernel, in this module or below it.

pub mod check;
pub mod compile;
pub mod explain;
pub mod hidden;
pub mod hint;
pub mod lint;
pub mod parse;
pub mod problem;
pub mod question;
pub mod relevant;
pub mod resolve;
pub mod socks;
pub mod source;
mod value;
pub mod wider;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tor;

/// IPv4 or IPv6. A client's address decides the family of all its rules.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// What a rule says. dom0's `drop` makes a reject on the wire.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// `action=accept`
    Accept,
    /// `action=drop`
    Drop,
}

impl Action {
    /// The word dom0 uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        }
    }
}

/// All of a client's rules, in order, and what happens when none matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// What happens when no rule matches: Qubes' key `policy`.
    pub default: Action,
    /// The rules, in the order of their numbers. The index in this list is the index of the rule in
    /// counters, drop records and policies.
    pub rules: Vec<Rule>,
}

/// Numbers from here on are none of dom0's: rules that stand behind all of a client's own that say
/// more than its default.
pub const IMPLIED: u16 = 10_000;

impl Ruleset {
    /// The rules as they are in a Whonix gateway: where the default is `drop`, each service of Tor
    /// that qubes may use without a rule has one, behind all others. Rules at the end that drop all
    /// are a default in other words, which Qubes' own tools write for each qube that they limit.
    pub fn in_gateway(&self, services: &tor::Each<tor::Access>) -> Self {
        let says_more = self.rules.iter().rposition(|rule| !rule.drops_all());
        let (own, last) = self.rules.split_at(says_more.map_or(0, |at| at + 1));
        let drops = self.default == Action::Drop || !last.is_empty();
        let allowed = (IMPLIED..)
            .zip(tor::Service::ALL)
            .filter(|(_, service)| drops && *services.of(*service) == tor::Access::Allow);
        let implied = allowed.map(|(number, service)| Rule::implied(number, service));
        let rules = own.iter().cloned().chain(implied).chain(last.iter().cloned()).collect();
        Self { default: self.default, rules }
    }
}

/// One line that dom0 wrote. A packet must match all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Number of the key, 0 to 9999. Gaps are normal. From [`IMPLIED`] on, no key.
    pub number: u16,
    /// The line as dom0 wrote it.
    pub text: String,
    /// What the rule says about packets that match.
    pub action: Action,
    /// Destination of packets that match.
    pub destination: Destination,
    /// Whether the rule is restricted to DNS to the resolvers (`specialtarget=dns`).
    pub dns: bool,
    /// Protocols and ports of packets that match.
    pub service: Service,
}

impl Rule {
    /// Whether this is a bare `action=drop`.
    fn drops_all(&self) -> bool {
        let Self { number: _, text: _, action, destination, dns, service } = self;
        *action == Action::Drop
            && *destination == Destination::Any
            && !dns
            && *service == Service::ANY
    }

    fn implied(number: u16, service: tor::Service) -> Self {
        let ports = service.ports();
        let all = ports.first().zip(ports.last()).map(|(first, last)| *first.start()..=*last.end());
        Self {
            number,
            text: format!("action=accept {} (allowed in this gateway)", service.name()),
            action: Action::Accept,
            destination: Destination::Tor(service),
            dns: false,
            service: Service { tcp: all, ..Service::NONE },
        }
    }
}

/// The destination of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every address.
    Any,
    /// `dst4=` or `dst6=`, host bits cleared.
    Network(IpNet),
    /// `dsthost=`, lower case, without a dot at the end.
    Name(String),
    /// A service of Tor in a Whonix gateway: no rule of dom0's says so.
    Tor(tor::Service),
}

/// Protocols with ports or types. `None` is "not this protocol".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// TCP destination ports.
    pub tcp: Option<RangeInclusive<u16>>,
    /// UDP destination ports.
    pub udp: Option<RangeInclusive<u16>>,
    /// ICMP types (ICMPv6 types for an IPv6 client).
    pub icmp: Option<RangeInclusive<u16>>,
    /// Whether all other protocols match.
    pub other: bool,
}

impl Service {
    /// Every protocol, with every port and type.
    pub const ANY: Self = Self {
        tcp: Some(0..=u16::MAX),
        udp: Some(0..=u16::MAX),
        icmp: Some(0..=u16::MAX),
        other: true,
    };

    /// No protocol.
    pub const NONE: Self = Self { tcp: None, udp: None, icmp: None, other: false };

    /// Port 53 of TCP and of UDP, as far as this service has it.
    pub fn only_dns(&self) -> Self {
        let port = |range: &Option<RangeInclusive<u16>>| {
            range.as_ref().filter(|ports| ports.contains(&53)).map(|_| 53..=53)
        };
        Self { tcp: port(&self.tcp), udp: port(&self.udp), icmp: None, other: false }
    }
    /// All of this service but port 53 of TCP and of UDP: what is below, with what has no ports, and
    /// what is above.
    pub fn without_dns(&self) -> [Self; 2] {
        let common = |range: &Option<RangeInclusive<u16>>, first: u16, last: u16| {
            let range = range.as_ref()?;
            let common = first.max(*range.start())..=last.min(*range.end());
            (!common.is_empty()).then_some(common)
        };
        let (tcp, udp) = (common(&self.tcp, 0, 52), common(&self.udp, 0, 52));
        let below = Self { tcp, udp, ..self.clone() };
        let (tcp, udp) = (common(&self.tcp, 54, u16::MAX), common(&self.udp, 54, u16::MAX));
        [below, Self { tcp, udp, ..Self::NONE }]
    }
}
