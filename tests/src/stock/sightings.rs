//! What became of a probe, read from frames around the netvm.
//! Never sends anything, and never judges.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packets::{ICMP, ICMPV6, TCP, UDP};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const IPV6_HEADER: usize = 40;
/// Where the packet begins that an ICMP error quotes.
const QUOTE: usize = 8;
/// Time to live of a probe that was forwarded once. What the netvm sends by itself has
/// more, and its identification may be anybody's token by chance.
const FORWARDED: u8 = 63;

/// What happened to a probe, as its surroundings can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// It left by the uplink.
    Left {
        /// With this source,
        from: IpAddr,
        /// and to there.
        to: IpAddr,
    },
    /// It reached another client, or came back to its own.
    Delivered,
    /// The client got an ICMP error about it.
    Error {
        /// Type of the error.
        kind: u8,
        /// Its code.
        code: u8,
    },
    /// The netvm itself answered.
    Answered,
}

/// Everything that happened to a probe; nothing is silence.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome(pub BTreeSet<Event>);

impl Outcome {
    /// Nothing was seen of it.
    pub fn is_silent(&self) -> bool {
        self.0.is_empty()
    }

    /// "Administratively prohibited", as a firewall says.
    pub fn is_rejected(&self) -> bool {
        let prohibited = [(3, 13), (1, 1)].map(|(kind, code)| Event::Error { kind, code });
        prohibited.iter().any(|it| self.0.contains(it))
    }

    /// It left by the uplink.
    pub fn has_left(&self) -> bool {
        self.0.iter().any(|it| matches!(it, Event::Left { .. }))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("silent");
        }
        for (index, event) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            match event {
                Event::Left { from, to } => write!(f, "left from {from} to {to}"),
                Event::Delivered => f.write_str("delivered to a client"),
                Event::Error { kind, code } => write!(f, "icmp error {kind}/{code}"),
                Event::Answered => f.write_str("answered by the netvm"),
            }?;
        }
        Ok(())
    }
}

/// A frame on the netvm's uplink, or on its interface to another client: a probe, by its
/// token.
pub fn leaving(frame: &[u8]) -> Option<(u16, Event)> {
    let packet = Packet::read(frame)?;
    let event = Event::Left { from: packet.source, to: packet.destination };
    (packet.hops == FORWARDED).then_some((packet.token, event))
}

/// A frame that a client got: an error about a probe, an answer, or the probe itself.
pub fn arriving(frame: &[u8], own: IpAddr) -> Option<(u16, Event)> {
    let packet = Packet::read(frame)?;
    if packet.source == own && packet.hops == FORWARDED {
        return Some((packet.token, Event::Delivered));
    }
    let body = packet.body;
    let number = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?))
    };
    match packet.protocol {
        TCP | UDP => Some((number(2)?, Event::Answered)),
        ICMP | ICMPV6 => {
            let (kind, code) = (*body.first()?, *body.get(1)?);
            match (packet.protocol, kind, code) {
                // What the kernel says about routes is no firewall's word, and the number
                // of such errors is limited for the whole machine. Errors about fragments
                // come long after.
                (ICMP, 3, 0 | 1) | (ICMP, 5, _) | (ICMP, 11, 1) => None,
                (ICMPV6, 3, 1) | (ICMPV6, 133..=137, _) => None,
                (ICMP, 3 | 4 | 11 | 12, _) | (ICMPV6, 0..128, _) => {
                    let quoted = Packet::read_ip(body.get(QUOTE..)?)?;
                    Some((quoted.token, Event::Error { kind, code }))
                }
                _ => Some((number(4)?, Event::Answered)),
            }
        }
        _ => None,
    }
}

/// What tells a packet, whole or quoted.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    hops: u8,
    token: u16,
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    fn read(frame: &'a [u8]) -> Option<Self> {
        let ethertype = frame.get(ETHERNET - 2..ETHERNET)?;
        let ethertype = u16::from_be_bytes(ethertype.try_into().ok()?);
        matches!(ethertype, IPV4 | IPV6).then(|| Self::read_ip(&frame[ETHERNET..]))?
    }

    fn read_ip(packet: &'a [u8]) -> Option<Self> {
        let number = |at: usize| -> Option<u16> {
            Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
        };
        match packet.first()? >> 4 {
            4 => {
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets).into())
                };
                Some(Self {
                    source: address(12)?,
                    destination: address(16)?,
                    protocol: *packet.get(9)?,
                    hops: *packet.get(8)?,
                    token: number(4)?,
                    body: packet.get(usize::from(packet[0] & 0xf) * 4..)?,
                })
            }
            6 => {
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).into())
                };
                Some(Self {
                    source: address(8)?,
                    destination: address(24)?,
                    protocol: *packet.get(6)?,
                    hops: *packet.get(7)?,
                    token: number(2)?,
                    body: packet.get(IPV6_HEADER..)?,
                })
            }
            _ => None,
        }
    }
}
