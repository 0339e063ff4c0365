//! The firewalls that are measured, by name.
//! Never sets one up.

use std::fmt;
use std::str::FromStr;

/// What forwards and filters; a number is that of its rules, one for each host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    /// Nothing but forwarding.
    None,
    /// Masquerade.
    Nat,
    /// Masquerade, and the frame of the stock chain with a single accept.
    Accept,
    /// Masquerade, and that frame with the rules of today's qubes-firewall.
    Stock(usize),
    /// Masquerade, and a verdict map of nftables, which hashes address and port.
    Hash(usize),
    /// Masquerade, and a map of nftables for intervals of addresses and ports.
    Intervals(usize),
    /// Masquerade, and rules of iptables.
    Iptables(usize),
    /// The agent, and its rules accept everything.
    OursAccept,
    /// The agent.
    Ours(usize),
    /// The agent, without a limit on how many denied packets it has rejected.
    OursRejecting(usize),
    /// The agent with its XDP stage.
    OursXdp(usize),
    /// A program at tc that drops everything: what no firewall there can go below.
    Drop,
    /// A program in native XDP that drops everything.
    XdpDrop,
}

impl fmt::Display for Firewall {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(to, "none"),
            Self::Nat => write!(to, "nat"),
            Self::Accept => write!(to, "accept"),
            Self::Stock(rules) => write!(to, "stock-{rules}"),
            Self::Hash(rules) => write!(to, "hash-{rules}"),
            Self::Intervals(rules) => write!(to, "intervals-{rules}"),
            Self::Iptables(rules) => write!(to, "iptables-{rules}"),
            Self::OursAccept => write!(to, "ours-accept"),
            Self::Ours(rules) => write!(to, "ours-{rules}"),
            Self::OursRejecting(rules) => write!(to, "rejecting-{rules}"),
            Self::OursXdp(rules) => write!(to, "xdp-{rules}"),
            Self::Drop => write!(to, "drop"),
            Self::XdpDrop => write!(to, "xdp-drop"),
        }
    }
}

impl FromStr for Firewall {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || format!("`{text}` is none of {}", ALL.map(|it| it.to_string()).join(", "));
        let (kind, number) = text.split_once('-').unwrap_or((text, ""));
        let rules = || number.parse().map_err(|_| refusal());
        match (kind, number) {
            ("none", "") => Ok(Self::None),
            ("nat", "") => Ok(Self::Nat),
            ("accept", "") => Ok(Self::Accept),
            ("ours", "accept") => Ok(Self::OursAccept),
            ("stock", _) => Ok(Self::Stock(rules()?)),
            ("hash", _) => Ok(Self::Hash(rules()?)),
            ("intervals", _) => Ok(Self::Intervals(rules()?)),
            ("iptables", _) => Ok(Self::Iptables(rules()?)),
            ("ours", _) => Ok(Self::Ours(rules()?)),
            ("rejecting", _) => Ok(Self::OursRejecting(rules()?)),
            ("xdp", "drop") => Ok(Self::XdpDrop),
            ("xdp", _) => Ok(Self::OursXdp(rules()?)),
            ("drop", "") => Ok(Self::Drop),
            _ => Err(refusal()),
        }
    }
}

/// What is measured unless somebody chooses.
pub const ALL: [Firewall; 18] = [
    Firewall::None,
    Firewall::Nat,
    Firewall::Accept,
    Firewall::Stock(10),
    Firewall::Stock(100),
    Firewall::Stock(1_000),
    Firewall::Stock(10_000),
    Firewall::Hash(10_000),
    Firewall::Intervals(1_000),
    Firewall::Iptables(1_000),
    Firewall::OursAccept,
    Firewall::Ours(10),
    Firewall::Ours(1_000),
    Firewall::Ours(10_000),
    Firewall::OursRejecting(10),
    Firewall::OursXdp(10),
    Firewall::Drop,
    Firewall::XdpDrop,
];

impl Firewall {
    /// How many rules it has; `None` if it does without.
    pub fn rules(self) -> Option<usize> {
        match self {
            Self::None
            | Self::Nat
            | Self::Accept
            | Self::OursAccept
            | Self::Drop
            | Self::XdpDrop => None,
            Self::Stock(rules)
            | Self::Hash(rules)
            | Self::Intervals(rules)
            | Self::Iptables(rules)
            | Self::Ours(rules)
            | Self::OursRejecting(rules)
            | Self::OursXdp(rules) => Some(rules),
        }
    }

    /// Whether anything comes through it.
    pub fn forwards(self) -> bool {
        !matches!(self, Self::Drop | Self::XdpDrop)
    }

    /// Whether it has a program in native XDP.
    pub fn is_in_xdp(self) -> bool {
        matches!(self, Self::OursXdp(_) | Self::XdpDrop)
    }

    /// Whether packets leave with the netvm's address.
    pub fn translates(self) -> bool {
        self != Self::None
    }
}
