//! Tor in a Whonix gateway: its ports, at which addresses, what becomes there of a packet that rules
//! accept, and what of it qubes may reach without a rule.
//! Never judges a packet.
//!
//! Source: `whonix-gateway-firewall` of whonix-firewall (64ef2fc), which leads packets to Tor in
//! front of all of its filters, and `torrc.d/65_gateway.conf` of anon-gw-anonymizer-config (0e39ae9).

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use firewall_common::packet::{Message, Packet, Protocol};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What every Whonix gateway has, below the root of its files.
pub const MARKER: &str = "usr/share/anon-gw-base-files/gateway";

/// The DNS server that the gateway itself may ask: Tor's, on loopback. It answers by UDP alone.
pub const DNS_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5400);

/// The port of DNS, which is led to Tor wherever a packet goes to.
const DNS: u16 = 53;
/// The gateway's own port for that.
pub const DNS_PORT: u16 = 5300;

/// Where ports of Tor are Tor's, and not ports of a host in the internet: the gateway's addresses
/// in Qubes (10.137.0.0/16, of disposables 10.138.0.0/16, and both as the end of Qubes' network of
/// IPv6), and outside of Qubes.
pub const ADDRESSES: [(IpAddr, u8); 6] = [
    (IpAddr::V4(Ipv4Addr::new(10, 137, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(10, 138, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(10, 152, 152, 10)), 32),
    (IpAddr::V6(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0)), 112),
    (IpAddr::V6(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa8a, 0)), 112),
    (IpAddr::V6(Ipv6Addr::new(0xfd19, 0xc33d, 0x88bc, 0, 0, 0, 0, 0x10)), 128),
];

const SOCKS_PORTS: [RangeInclusive<u16>; 7] =
    [9050..=9050, 9100..=9111, 9114..=9115, 9117..=9118, 9122..=9125, 9150..=9150, 9152..=9229];
const CONTROL_PORTS: [RangeInclusive<u16>; 1] = [9051..=9051];

/// What of Tor qubes reach by ports of its own. dom0 has no word for these in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// SOCKS, and HTTP's CONNECT: Tor is told in the stream where to go.
    Socks,
    /// The filter in front of Tor's control port.
    Control,
}

impl Service {
    /// All of them, in the order of their rules.
    pub const ALL: [Self; 2] = [Self::Socks, Self::Control];

    /// The word that people read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Socks => "tor-socks",
            Self::Control => "tor-control",
        }
    }

    /// The key of the gateway itself that says who may use it: dom0 writes it for `qvm-features
    /// GATEWAY vm-config.firewall-tor-socks`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Socks => "/vm-config/firewall-tor-socks",
            Self::Control => "/vm-config/firewall-tor-control",
        }
    }

    /// The TCP ports.
    pub fn ports(self) -> &'static [RangeInclusive<u16>] {
        match self {
            Self::Socks => &SOCKS_PORTS,
            Self::Control => &CONTROL_PORTS,
        }
    }
}

/// What qubes whose default is `drop` may do with a service that no rule of theirs names.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// What the default says: nothing.
    #[default]
    Deny,
    /// Use it: behind all of their rules stands one more that accepts it.
    Allow,
}

/// Neither `deny` nor `allow`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is neither `deny` nor `allow`")]
pub struct NoAccess(pub String);

impl Access {
    /// Reads what a key says; `None` if the text is empty.
    pub fn parse(text: &str) -> Result<Option<Self>, NoAccess> {
        if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    /// What two wishes come to, of which each may be none: whoever denies wins.
    pub fn both(one: Option<Self>, other: Option<Self>) -> Self {
        match (one, other) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other).unwrap_or_default(),
        }
    }
}

impl Display for Access {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}

impl FromStr for Access {
    type Err = NoAccess;

    fn from_str(text: &str) -> Result<Self, NoAccess> {
        match text {
            "deny" => Ok(Self::Deny),
            "allow" => Ok(Self::Allow),
            other => Err(NoAccess(other.to_owned())),
        }
    }
}

/// Something for each service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Each<T> {
    /// For SOCKS and HTTP's CONNECT.
    pub socks: T,
    /// For the control port.
    pub control: T,
}

impl<T> Each<T> {
    /// What it is for one service.
    pub fn of(&self, service: Service) -> &T {
        match service {
            Service::Socks => &self.socks,
            Service::Control => &self.control,
        }
    }
}

/// What keys of a gateway say of each service; `None` of one that is not there, or empty.
pub type Keys = Each<Result<Option<Access>, NoAccess>>;

/// What a Whonix gateway does with a packet that rules accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Tor's TransPort gets the connection, and goes where the packet is for.
    TransPort,
    /// Tor's DNSPort gets the question, wherever it is for.
    DnsPort,
    /// Tor gets the connection and is told in the stream where to go, which rules cannot see.
    Socks,
    /// The filter in front of Tor's control port gets the connection.
    Control,
    /// Neighbour discovery: the gateway's own kernel.
    Neighbour,
    /// An ICMP error: the gateway takes those of "too big" about a connection that it knows.
    Related,
    /// The gateway drops the packet.
    Dropped,
}

impl Fate {
    /// What becomes of a packet that rules accept: the first one, if it is one of a connection.
    /// `is_own` is whether it is for an address of the gateway itself.
    pub fn of(packet: &Packet, is_own: bool) -> Self {
        let destination: IpAddr = packet.destination.into();
        let to_tor = is_tors(destination);
        match packet.protocol {
            // From a link, the kernel takes nothing that is for loopback (`ipv6_rcv`, and
            // `ip_route_input_slow` behind the redirections).
            _ if destination.is_ipv6() && destination.is_loopback() => Self::Dropped,
            Protocol::Tcp if to_tor && has(Service::Control, packet.port) => Self::Control,
            Protocol::Tcp if to_tor && has(Service::Socks, packet.port) => Self::Socks,
            Protocol::Tcp => Self::TransPort,
            Protocol::Udp if packet.port == DNS => Self::DnsPort,
            Protocol::Udp if packet.port == DNS_PORT && is_own && !destination.is_loopback() => {
                Self::DnsPort
            }
            Protocol::Icmp if packet.is_neighbour_discovery() => Self::Neighbour,
            Protocol::Icmp if packet.message == Message::Error => Self::Related,
            Protocol::Udp | Protocol::Icmp | Protocol::Other => Self::Dropped,
        }
    }
}

fn has(service: Service, port: u16) -> bool {
    service.ports().iter().any(|range| range.contains(&port))
}

/// Whether ports of Tor are Tor's at an address.
fn is_tors(address: IpAddr) -> bool {
    let networks = ADDRESSES.into_iter().filter_map(|(first, bits)| IpNet::new(first, bits).ok());
    networks.into_iter().any(|network| network.contains(&address))
}
