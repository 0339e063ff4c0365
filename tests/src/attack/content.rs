//! What an attacker's packet is about: ports, pings, errors that quote somebody's flow, and all
//! the rest, as data and as bytes.
//! Never knows what is around it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::place::{Flow, Place, Ports, SERVED, View, Whose};
use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{self, FRAGMENT, TCP, UDP, V4, V6};

/// SCTP, and the chunk with which an association begins (RFC 9260, section 3.2).
const SCTP: u8 = 132;
const INIT: u8 = 1;
/// IPv4 header of another datagram's later fragment, in units of 8 bytes.
const OFFSET: u16 = 0x1fff;
/// Where conntrack looks for addresses and ports of a quoted packet.
const QUOTED: usize = 8;

/// What follows the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// UDP with so many bytes.
    Udp(Port, u16),
    /// TCP with these flags and so many bytes.
    Tcp(Port, u8, u16),
    /// An echo request with so many bytes.
    Echo(u16),
    /// An ICMP error.
    Error {
        /// Its type,
        kind: u8,
        /// its code,
        code: u8,
        /// and the four bytes behind the checksum, an MTU perhaps; otherwise the mark.
        field: Option<u32>,
        /// What it is about.
        about: Quote,
        /// How many bytes follow the headers that it quotes.
        size: u16,
    },
    /// ICMP of any type and code with so many bytes.
    Icmp(u8, u8, u16),
    /// Neighbour discovery of this type about this address.
    Neighbour(u8, Place),
    /// The beginning of an SCTP association.
    Sctp(Port),
    /// Any protocol with so many bytes.
    Other(u8, u16),
    /// UDP or TCP so large that it stands for many packets, each with its own checksum to be
    /// filled in.
    Large(Flow, u16),
}

/// Which destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Port {
    /// The second half of the mark; its first half is the source port.
    Marked,
    /// The one of the server.
    Served,
    /// This one.
    Is(u16),
}

/// A packet of a flow, as an error quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Whose flow.
    pub whose: Whose,
    /// Which one.
    pub flow: Flow,
    /// Which of its packets.
    pub view: View,
    /// Whether it says that it is a later fragment.
    pub later: bool,
}

/// What a frame is written with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ink<'a> {
    pub(crate) mark: Mark,
    pub(crate) ports: &'a Ports,
    /// Number of the frame in a flood.
    pub(crate) number: Option<u16>,
}

impl Content {
    /// Protocol and bytes, without a checksum.
    pub(crate) fn bytes(self, family: Family, ends: [IpAddr; 2], ink: Ink) -> (u8, Vec<u8>) {
        let mark = |size: u16| ink.mark.bytes(usize::from(size));
        let source = ink.number.map_or(ink.mark.halves()[0], |number| number | 0x8000);
        match self {
            Self::Udp(port, size) => {
                (UDP, packets::datagram(source, port.number(ink.mark), &mark(size)))
            }
            Self::Tcp(port, flags, size) => {
                (TCP, segment(source, port.number(ink.mark), flags, &mark(size), ink.mark))
            }
            Self::Echo(size) => {
                let mut echo = vec![family.echo(), 0, 0, 0];
                echo.extend(mark(4));
                if let Some(number) = ink.number {
                    echo[4..6].copy_from_slice(&number.to_be_bytes());
                }
                echo.extend(mark(size));
                (family.icmp(), echo)
            }
            Self::Error { kind, code, field, about, size } => {
                let mut error = vec![kind, code, 0, 0];
                error.extend(field.map_or(ink.mark.once(), u32::to_be_bytes));
                error.extend(about.bytes(family, ink));
                error.extend(mark(size));
                (family.icmp(), error)
            }
            Self::Icmp(kind, code, size) => {
                (family.icmp(), [vec![kind, code, 0, 0], mark(size.max(4))].concat())
            }
            Self::Neighbour(kind, target) => {
                let number = ink.number.unwrap_or_default();
                let mut message = vec![kind, 0, 0, 0, 0xe0, 0, 0, 0];
                match target.address(family, ink.mark, number) {
                    IpAddr::V4(target) => message.extend(target.octets()),
                    IpAddr::V6(target) => message.extend(target.octets()),
                }
                // The sender's hardware address (RFC 4861, section 4.6.1), or the target's.
                message.extend([if kind == 136 { 2 } else { 1 }, 1]);
                message.extend(mark(6));
                (family.icmp(), message)
            }
            Self::Sctp(port) => (SCTP, init(source, port.number(ink.mark), ink.mark)),
            Self::Other(protocol, size) => (protocol, mark(size.max(4))),
            Self::Large(flow, size) => {
                let [from, to] = ends;
                let (protocol, mut content, at) = match flow {
                    Flow::Tcp => (TCP, segment(source, SERVED, 0x10, &mark(size), ink.mark), 16),
                    Flow::Udp | Flow::Ping => {
                        (UDP, packets::datagram(source, SERVED, &mark(size)), 6)
                    }
                };
                let sum = packets::pseudo_header(from, to, protocol, content.len());
                content[at..at + 2].copy_from_slice(&(!packets::checksum(&sum)).to_be_bytes());
                (protocol, content)
            }
        }
    }
}

impl Port {
    fn number(self, mark: Mark) -> u16 {
        match self {
            Self::Marked => mark.halves()[1],
            Self::Served => SERVED,
            Self::Is(port) => port,
        }
    }
}

impl Quote {
    /// IP header, and the first 8 bytes behind it.
    fn bytes(self, family: Family, ink: Ink) -> Vec<u8> {
        let address = |place: Place| place.address(family, ink.mark, ink.number.unwrap_or(0));
        let [inside, outside, server] =
            [self.whose.inside(), Place::Uplink, Place::Server].map(address);
        let port = ink.ports.of(self.whose, family, self.flow);
        let (from, to, is_answer) = match self.view {
            View::Sent => (inside, server, false),
            View::SentOn => (outside, server, false),
            View::Answer => (server, outside, true),
            View::AnswerIn => (server, inside, true),
        };
        let (source, destination) = if is_answer { (SERVED, port) } else { (port, SERVED) };
        let content = match self.flow {
            Flow::Udp => packets::datagram(source, destination, &ink.mark.bytes(8)),
            Flow::Tcp => segment(source, destination, 0x10, &[], ink.mark),
            Flow::Ping => {
                let kind = family.of(if is_answer { [0, 129] } else { [8, 128] });
                let [high, low] = port.to_be_bytes();
                vec![kind, 0, 0, 0, high, low, 0, 1]
            }
        };
        let protocol = self.flow.protocol(family);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let fragment = if self.later { OFFSET } else { 0 };
                let packet = V4 { fragment, ..V4::new(from, to, protocol, &content) };
                packet.packet()[..20 + QUOTED].to_vec()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let packet = V6::new(from, to, protocol, &content);
                if self.later {
                    let packet = packet.with(FRAGMENT, &packets::fragment(9, true));
                    return packet.packet()[..48 + QUOTED].to_vec();
                }
                packet.packet()[..40 + QUOTED].to_vec()
            }
            _ => Vec::new(),
        }
    }
}

/// A TCP segment whose numbers are the mark.
fn segment(source: u16, destination: u16, flags: u8, data: &[u8], mark: Mark) -> Vec<u8> {
    let mut segment = packets::segment(source, destination, data);
    segment[4..12].copy_from_slice(&mark.bytes(8));
    segment[13] = flags;
    segment
}

/// An SCTP packet that begins an association, with the checksum that it has in place of one that
/// covers addresses.
fn init(source: u16, destination: u16, mark: Mark) -> Vec<u8> {
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    // No tag and no checksum yet; then the chunk: tag, window, streams, first number.
    packet.extend([0; 8]);
    packet.extend([INIT, 0, 0, 20]);
    packet.extend(mark.once());
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1]);
    packet.extend(mark.once());
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The checksum of SCTP (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
    let add = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_is_that_of_its_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}
