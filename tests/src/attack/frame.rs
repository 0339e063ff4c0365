//! What the attacker can send, as data, and the bytes that it comes to.
//! Never sends anything, and never corrects what is meant to be wrong.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::attacker::Offload;
use super::content::{Content, Ink, Port};
use super::mark::Mark;
use super::place::{Flow, Place};
use crate::packets::family::{Family, PerFamily as _};
use crate::packets::fragments::piece;
use crate::packets::{
    self, AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, TCP, UDP, V4, V6, VIF,
};

const ETHERNET: usize = 14;
/// IPv4 option for experiments (RFC 4727), and one to route by the sender's will.
const EXPERIMENT: u8 = 158;
const LOOSE_SOURCE_ROUTE: u8 = 131;
/// IPv6 option for experiments that whoever does not know it skips (RFC 4727).
const EXPERIMENT6: u8 = 0x1e;
/// How much of a large packet goes into each of the frames that it stands for.
const SEGMENT: u16 = 1200;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// An IP packet.
    Ip(Packet),
    /// ARP: the operation (1 asks, 2 answers), whose hardware address it tells, and the target.
    Arp(u16, Place, Place),
    /// Another ethertype with so many bytes.
    Other(u16, u16),
}

/// An IP packet, or a fragment of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Source address.
    pub from: Place,
    /// Destination address.
    pub to: Place,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Between the IP header and the content, in order.
    pub headers: Vec<Header>,
    /// What it is all about.
    pub content: Content,
    /// The checksum of the content.
    pub checksum: Checksum,
    /// Which part of the packet this is, if it is a fragment.
    pub piece: Option<Piece>,
    /// What is wrong with the frame, one after the other.
    pub flaws: Vec<Flaw>,
}

/// Options, and headers that hide what comes behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Header {
    /// An option: of IPv4, or in a hop-by-hop header.
    Options,
    /// A loose source route, or a routing header.
    Route,
    /// An authentication header.
    Authentication,
    /// IPv6 destination options; nothing in IPv4.
    Destination,
    /// The header of a fragment that is the whole packet; nothing in IPv4.
    Atomic,
}

/// What is said to be the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checksum {
    /// The right one.
    Right,
    /// Another one.
    Wrong,
    /// None.
    Zero,
}

/// A part of what follows the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// What all fragments of one packet share.
    pub identification: u16,
    /// Where it starts, in units of 8 bytes.
    pub start: u16,
    /// Where it ends, in units of 8 bytes; beyond the end is the end.
    pub end: u16,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flaw {
    /// The byte at this place is another one.
    Byte(u16, u8),
    /// It ends after so many bytes, but not before the IP header begins.
    Cut(u16),
    /// So many bytes follow it.
    Padding(u16),
    /// It is for the hardware address of somebody else.
    OtherHost,
    /// It has a VLAN tag.
    Tagged,
}

impl Packet {
    /// A packet of the attacker, with nothing special about it.
    pub fn new(family: Family, to: Place, content: Content) -> Self {
        Self {
            family,
            from: Place::Own,
            to,
            hops: 64,
            headers: Vec::new(),
            content,
            checksum: Checksum::Right,
            piece: None,
            flaws: Vec::new(),
        }
    }

    /// The part of it between these places, in units of 8 bytes.
    #[must_use]
    pub fn piece(mut self, identification: u16, start: u16, end: u16) -> Self {
        self.piece = Some(Piece { identification, start, end });
        self
    }

    /// Whether nothing but rules can stop it on its way to where nobody answers.
    pub(crate) fn is_plain(&self) -> bool {
        let plain = Self::new(self.family, Place::Nobody, self.content);
        matches!(self.content, Content::Udp(Port::Marked, 0..=1000)) && *self == plain
    }

    fn bytes(&self, ink: Ink) -> Vec<u8> {
        let number = ink.number.unwrap_or_default();
        let [from, to] = [self.from, self.to].map(|it| it.address(self.family, ink.mark, number));
        let (protocol, mut content) = self.content.bytes(self.family, [from, to], ink);
        if !matches!(self.content, Content::Large(..)) {
            content = packets::sealed(from, to, protocol, &content);
        }
        self.spoil_checksum(protocol, &mut content);
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut packet = V4::new(from, to, protocol, &content);
                (packet.ttl, packet.identification) = (self.hops, ink.mark.halves()[0]);
                self.headers.iter().for_each(|it| it.add_to_v4(&mut packet, ink.mark));
                packet.packet()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let packet = V6::new(from, to, protocol, &content);
                let packet = V6 { hop_limit: self.hops, ..packet };
                let packet =
                    self.headers.iter().fold(packet, |packet, it| it.add_to_v6(packet, ink.mark));
                packet.packet()
            }
            _ => Vec::new(),
        };
        if let Some(Piece { identification, start, end }) = self.piece {
            let header = self.family.of([20, 40]);
            let length = packet.len() - header;
            let start = (usize::from(start) * 8).min(length / 8 * 8);
            let end = (usize::from(end) * 8).clamp(start, length);
            let identification = identification.wrapping_add(number);
            packet = piece(&packet, identification, start..end);
        }
        packet
    }

    fn spoil_checksum(&self, protocol: u8, content: &mut [u8]) {
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            _ if protocol == self.family.icmp() => 2,
            _ => return,
        };
        let Some(checksum) = content.get_mut(at..at + 2) else { return };
        match self.checksum {
            Checksum::Right => {}
            Checksum::Wrong => checksum[0] ^= 0x55,
            Checksum::Zero => checksum.fill(0),
        }
    }

    /// What the kernel has to be told beside the frame.
    fn offload(&self) -> Offload {
        let Content::Large(flow, _) = self.content else { return Offload::default() };
        if self.piece.is_some() || !self.headers.is_empty() || !self.flaws.is_empty() {
            return Offload::default();
        }
        let network = ETHERNET as u16 + self.family.of([20, 40]);
        match flow {
            Flow::Tcp => Offload::tcp(self.family, network, SEGMENT),
            Flow::Udp | Flow::Ping => Offload::udp(network, SEGMENT),
        }
    }
}

impl From<Packet> for Frame {
    fn from(packet: Packet) -> Self {
        Self::Ip(packet)
    }
}

impl Frame {
    /// Its bytes, and what the kernel has to be told beside them.
    pub(crate) fn build(&self, ink: Ink) -> (Vec<u8>, Offload) {
        let (ethertype, payload, flaws, offload) = match self {
            Self::Ip(packet) => {
                let ethertype = packet.family.ethertype();
                (ethertype, packet.bytes(ink), &packet.flaws[..], packet.offload())
            }
            Self::Arp(operation, sender, target) => {
                let arp = arp(*operation, *sender, *target, ink);
                (0x0806, arp, &[][..], Offload::default())
            }
            Self::Other(ethertype, size) => {
                let payload = ink.mark.bytes(usize::from(*size));
                (*ethertype, payload, &[][..], Offload::default())
            }
        };
        let mut frame = packets::ethernet(ethertype, &payload);
        frame[..6].copy_from_slice(&VIF);
        flaws.iter().for_each(|flaw| flaw.apply(&mut frame, ink.mark));
        (frame, offload)
    }
}

impl Flaw {
    fn apply(self, frame: &mut Vec<u8>, mark: Mark) {
        match self {
            Self::Byte(at, value) => {
                if let Some(byte) = frame.get_mut(usize::from(at)) {
                    *byte = value;
                }
            }
            // The kernel itself drops a tag that is not whole, and nobody counts it.
            Self::Cut(length) => frame.truncate(usize::from(length).max(ETHERNET + 6)),
            Self::Padding(length) => frame.extend(mark.bytes(usize::from(length))),
            Self::OtherHost => frame[..6].copy_from_slice(&[0, 0x16, 0x3e, 0x5e, 0x6c, 12]),
            Self::Tagged => {
                frame.splice(12..12, [0x81, 0, 0, 5]);
            }
        }
    }
}

impl Header {
    fn add_to_v4(self, packet: &mut V4, mark: Mark) {
        let [a, b, c, d] = mark.once();
        match self {
            Self::Options => packet.options.extend([EXPERIMENT, 6, a, b, c, d]),
            Self::Route => packet.options.extend([LOOSE_SOURCE_ROUTE, 7, 4, a, b, c, d]),
            Self::Authentication => {
                let mut header = vec![packet.protocol];
                header.extend(authentication(mark));
                header.append(&mut packet.payload);
                (packet.protocol, packet.payload) = (AUTHENTICATION, header);
            }
            Self::Destination | Self::Atomic => {}
        }
    }

    fn add_to_v6(self, packet: V6, mark: Mark) -> V6 {
        let [a, b, c, d] = mark.once();
        let options = [0, EXPERIMENT6, 4, a, b, c, d];
        match self {
            Self::Options => packet.with(HOP_BY_HOP, &options),
            Self::Destination => packet.with(DESTINATION, &options),
            Self::Route => packet.with(ROUTING, &[0, 253, 0, a, b, c, d]),
            Self::Authentication => packet.with(AUTHENTICATION, &authentication(mark)),
            Self::Atomic => packet.with(FRAGMENT, &[0, 0, 0, a, b, c, d]),
        }
    }
}

/// All but the first byte of an authentication header with 12 bytes of proof.
fn authentication(mark: Mark) -> Vec<u8> {
    [vec![4, 0, 0], mark.bytes(20)].concat()
}

fn arp(operation: u16, sender: Place, target: Place, ink: Ink) -> Vec<u8> {
    let octets = |place: Place| match place.address(Family::V4, ink.mark, ink.number.unwrap_or(0)) {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    // Hardware is Ethernet, 6 bytes; protocol is IPv4, 4 bytes (RFC 826).
    let mut arp = vec![0, 1, 8, 0, 6, 4];
    arp.extend(operation.to_be_bytes());
    // A hardware address that its owner made up has this bit.
    arp.extend([2, 0]);
    arp.extend(ink.mark.once());
    arp.extend(octets(sender));
    arp.extend([0; 6]);
    arp.extend(octets(target));
    arp
}
