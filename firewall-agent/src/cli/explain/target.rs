//! Where a packet is to go, as a person writes it: `HOST[:PORT]/PROTO`.
//! Never looks a name up.

use std::net::IpAddr;
use std::str::FromStr;

use firewall_common::packet;

use firewall_core::protocol::{ICMP, ICMPV6, TCP, UDP};
use firewall_core::told::explanation::{MessageStatus, PacketStatus};

/// Echo requests: what `ping` sends.
const PING: u8 = 8;
const PING_V6: u8 = 128;

/// The destination of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host that the packet is to go to.
    pub host: Host,
    /// The protocol of the packet, and its port or type.
    pub service: Service,
}

/// A host, by its address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// The host with this address.
    Address(IpAddr),
    /// The host with this name, lower case, without a dot at the end.
    Name(String),
}

/// A protocol, with the port or type that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// TCP, to a port.
    Tcp(u16),
    /// UDP, to a port.
    Udp(u16),
    /// ICMP of the address's family, of a type; without one a ping.
    Icmp(Option<u8>),
    /// Another protocol, by its number.
    Other(u8),
}

impl Target {
    /// The packet that the client `source` would send to the address `destination`.
    pub fn packet(&self, source: IpAddr, destination: IpAddr) -> PacketStatus {
        let is_v4 = destination.is_ipv4();
        let (protocol, port) = match self.service {
            Service::Tcp(port) => (TCP, port),
            Service::Udp(port) => (UDP, port),
            Service::Icmp(kind) if is_v4 => (ICMP, kind.unwrap_or(PING).into()),
            Service::Icmp(kind) => (ICMPV6, kind.unwrap_or(PING_V6).into()),
            Service::Other(number) => (number, 0),
        };
        // An error of the kind that can pass: about a packet that was sent to the client.
        let message = match self.service {
            Service::Icmp(_) if packet::is_error(port, is_v4) => Some(MessageStatus::Error),
            Service::Icmp(_) if packet::is_redirect(port, is_v4) => Some(MessageStatus::Redirect),
            _ => None,
        };
        PacketStatus { message, ..PacketStatus::plain(source, destination, protocol, port) }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, protocol) = text.rsplit_once('/').ok_or_else(|| {
            format!("`{text}` names no protocol: add /tcp, /udp or /icmp, like {text}/tcp")
        })?;
        let (host, port) = split(place)?;
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) if is_name(host) => Host::Name(host.trim_end_matches('.').to_lowercase()),
            Err(_) => return Err(format!("`{host}` is neither an address nor a name")),
        };
        let needed = |protocol: &str| match (port, &host) {
            (Some(port), _) => Ok(port),
            (None, Host::Address(IpAddr::V6(v6))) => {
                Err(format!("{protocol} needs a port: [{v6}]:443/{protocol}"))
            }
            (None, _) => Err(format!("{protocol} needs a port: {place}:443/{protocol}")),
        };
        let service = match protocol {
            "tcp" => Service::Tcp(needed("tcp")?),
            "udp" => Service::Udp(needed("udp")?),
            _ if port.is_some() => return Err(format!("{protocol} has no ports: {text}")),
            "icmp" => Service::Icmp(None),
            _ => match protocol.strip_prefix("icmp:") {
                Some(kind) => Service::Icmp(Some(number(kind, "a type of ICMP")?)),
                None => of_number(number(protocol, "tcp, udp, icmp or the number of a protocol")?)?,
            },
        };
        Ok(Self { host, service })
    }
}

/// A protocol by its number; the three that rules know by name need more than that.
fn of_number(number: u8) -> Result<Service, String> {
    match number {
        TCP => Err("write tcp, with a port, instead of 6".to_owned()),
        UDP => Err("write udp, with a port, instead of 17".to_owned()),
        ICMP | ICMPV6 => Ok(Service::Icmp(None)),
        _ => Ok(Service::Other(number)),
    }
}

fn number(text: &str, what: &str) -> Result<u8, String> {
    text.parse().map_err(|_| format!("`{text}` is not {what}"))
}

/// Host and port. An IPv6 address with a port stands in brackets.
fn split(place: &str) -> Result<(&str, Option<u16>), String> {
    let port = |text: &str| {
        text.parse().map(Some).map_err(|_| format!("`{text}` is not a port from 0 to 65535"))
    };
    if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("`[` without `]`")?;
        return match rest.strip_prefix(':') {
            Some(text) => Ok((host, port(text)?)),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!("`{rest}` behind `]`; a port follows `:`")),
        };
    }
    match place.split_once(':') {
        Some((host, text)) if !text.contains(':') => Ok((host, port(text)?)),
        Some(_) | None => Ok((place, None)),
    }
}

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(is_allowed)
}
