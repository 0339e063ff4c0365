//! Frames, built byte by byte, so that they can be wrong in any way a test wants.
//! Never corrects anything but lengths and the IPv4 header checksum.

pub mod family;
pub mod fragments;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// Encapsulated IPv6.
pub const IPV6_IN_IP: u8 = 41;
/// IPv6 hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 routing header.
pub const ROUTING: u8 = 43;
/// IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
/// Generic routing encapsulation.
pub const GRE: u8 = 47;
/// Encapsulating security payload.
pub const ESP: u8 = 50;
/// IPv6 authentication header.
pub const AUTHENTICATION: u8 = 51;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// IPv6 "no next header".
pub const NO_NEXT: u8 = 59;
/// IPv6 destination options.
pub const DESTINATION: u8 = 60;

/// Hardware address that every vif has.
pub const VIF: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// An Ethernet frame around anything. The destination is all zero: the loopback device,
/// on which programs are tested, takes it for its own.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 6];
    frame.extend([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x01]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 header with options and payload.
#[derive(Clone, Debug)]
pub struct V4 {
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// Protocol.
    pub protocol: u8,
    /// Options; padded to a multiple of four bytes.
    pub options: Vec<u8>,
    /// The field that fragments of one packet share.
    pub identification: u16,
    /// The field with flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl V4 {
    /// A plain packet.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Self {
        Self {
            source,
            destination,
            protocol,
            options: Vec::new(),
            identification: 0x1234,
            fragment: 0,
            ttl: 64,
            payload: payload.to_vec(),
        }
    }

    /// The packet, without Ethernet.
    pub fn packet(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = 5 + options.len() / 4;
        let total = (words * 4 + self.payload.len()) as u16;
        let mut header = vec![0x40 | words as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend(self.identification.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(&self.payload);
        header
    }

    /// The packet in a frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(0x0800, &self.packet())
    }
}

/// An IPv6 header with extension headers and payload.
#[derive(Clone, Debug)]
pub struct V6 {
    /// Source.
    pub source: Ipv6Addr,
    /// Destination.
    pub destination: Ipv6Addr,
    /// Extension headers in order: their number, and all bytes but the first (the number
    /// of what follows).
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// How many routers it may pass.
    pub hop_limit: u8,
    /// What follows the headers.
    pub protocol: u8,
    /// The rest.
    pub payload: Vec<u8>,
}

impl V6 {
    /// A plain packet.
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Self {
        let payload = payload.to_vec();
        Self { source, destination, extensions: Vec::new(), hop_limit: 64, protocol, payload }
    }

    /// With one more extension header: options of 8 bytes, or a fragment header.
    #[must_use]
    pub fn with(mut self, number: u8, rest: &[u8]) -> Self {
        self.extensions.push((number, rest.to_vec()));
        self
    }

    /// The packet, without Ethernet.
    pub fn packet(&self) -> Vec<u8> {
        let mut chain: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        chain.push(self.protocol);
        let mut body = Vec::new();
        for ((_, rest), next) in self.extensions.iter().zip(&chain[1..]) {
            body.push(*next);
            body.extend(rest);
        }
        body.extend(&self.payload);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([chain[0], self.hop_limit]);
        packet.extend(self.source.octets());
        packet.extend(self.destination.octets());
        packet.extend(body);
        packet
    }

    /// The packet in a frame.
    pub fn frame(&self) -> Vec<u8> {
        ethernet(0x86dd, &self.packet())
    }
}

/// All but the first byte of an options header with `words` times 8 bytes beyond the
/// first 8, filled with padding.
pub fn options(words: u8) -> Vec<u8> {
    let mut rest = vec![words];
    let padding = 6 + usize::from(words) * 8;
    // PadN: type, length, zeros. One can hold 255 bytes.
    let mut left = padding;
    while left > 0 {
        if left == 1 {
            rest.push(0);
            break;
        }
        let length = (left - 2).min(255);
        rest.extend([1, length as u8]);
        rest.extend(vec![0; length]);
        left -= 2 + length;
    }
    rest
}

/// All but the first byte of a fragment header: offset in units of 8 bytes.
pub fn fragment(offset: u16, more: bool) -> Vec<u8> {
    let field = offset << 3 | u16::from(more);
    let mut rest = vec![0];
    rest.extend(field.to_be_bytes());
    rest.extend([0xca, 0xfe, 0xba, 0xbe]);
    rest
}

/// All but the first byte of an authentication header of 24 bytes.
pub fn authentication() -> Vec<u8> {
    let mut header = vec![4, 0, 0];
    header.resize(23, 9);
    header
}

/// A TCP header (a SYN).
pub fn tcp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// A UDP header without payload.
pub fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 8, 0, 0]);
    header
}

/// A UDP header with its data; no checksum.
pub fn datagram(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source, destination);
    datagram.extend((data.len() as u16 + 8).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// A TCP segment of an established connection: an ACK with its data; no checksum.
pub fn segment(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let mut segment = ports(source, destination);
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

/// What follows an IP header, with the checksum that these addresses ask for. Protocols
/// without one are left as they are.
pub fn sealed(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (at, pseudo) = match protocol {
        TCP => (16, true),
        UDP => (6, true),
        ICMP => (2, false),
        ICMPV6 => (2, true),
        _ => return payload.to_vec(),
    };
    let mut covered = Vec::new();
    if pseudo {
        covered = pseudo_header(source, destination, protocol, payload.len());
    }
    let mut payload = payload.to_vec();
    payload[at..at + 2].copy_from_slice(&[0, 0]);
    covered.extend(&payload);
    // A UDP checksum of 0 would mean "none".
    let sum = match checksum(&covered) {
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    payload
}

/// What a checksum covers beside the packet itself (RFC 8200, section 8.1). That of IPv4 is
/// shorter, and has the same sum.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend((length as u32).to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// An ICMP or ICMPv6 header, 8 bytes.
pub fn icmp(kind: u8, code: u8) -> Vec<u8> {
    vec![kind, code, 0, 0, 0x13, 0x37, 0, 1]
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// A plain packet of either family in a frame. The port is the ICMP type where the
/// protocol is the family's ICMP.
pub fn plain(source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let payload = match (protocol, source) {
        (TCP, _) => tcp(40000, port),
        (UDP, _) => udp(40000, port),
        (ICMP, IpAddr::V4(_)) | (ICMPV6, IpAddr::V6(_)) => icmp(port as u8, 0),
        _ => vec![0x11; 24],
    };
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            V4::new(source, destination, protocol, &payload).frame()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            V6::new(source, destination, protocol, &payload).frame()
        }
        _ => Vec::new(),
    }
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
