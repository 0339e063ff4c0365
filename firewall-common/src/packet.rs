//! Bytes of an Ethernet frame to a [`Packet`], or the reason why it is dropped.
//! Never looks at tables, and never reads beyond what the IP header claims.
//!
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 7112 (first fragments),
//! RFC 4302 (AH ends the walk: it is a protocol like ESP).

use crate::abi::Address;
use crate::verdict::Reason;

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_LENGTH: u32 = 14;
/// Where the ports are without options or extension headers.
const PLAIN_IPV4: u32 = ETHERNET_LENGTH + IPV4_LENGTH;
const PLAIN_IPV6: u32 = ETHERNET_LENGTH + IPV6_LENGTH;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;

const HEADER_HOP_BY_HOP: u8 = 0;
const HEADER_ROUTING: u8 = 43;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_DESTINATION: u8 = 60;

/// ICMPv6 types (RFC 4861) that tell others where to send.
pub const ROUTER_ADVERTISEMENT: u16 = 134;
/// See [`ROUTER_ADVERTISEMENT`].
pub const NEIGHBOUR_ADVERTISEMENT: u16 = 136;
/// See [`ROUTER_ADVERTISEMENT`].
pub const REDIRECT: u16 = 137;

/// Most IPv6 extension headers in front of the final protocol. RFC 8200 foresees at
/// most five that are not protocols of their own (section 4.1).
pub const MAX_EXTENSION_HEADERS: u32 = 8;

const IPV4_LENGTH: u32 = 20;
const IPV6_LENGTH: u32 = 40;
/// Where the sender's protocol address is in an ARP packet.
const ARP_SENDER: u32 = 14;
/// Where the target is in a neighbour advertisement (RFC 4861, section 4.4).
const ADVERTISEMENT_TARGET: u32 = 8;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// Where the bytes of a frame come from: an skb in the kernel, a slice elsewhere.
pub trait Source {
    /// `N` bytes from `offset` on, counted from the Ethernet header; `None` if the
    /// frame ends before.
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The same at an offset that is a constant, where the kernel may need no call.
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes(offset)
    }

    /// Length of the frame in bytes.
    fn length(&self) -> u32;

    /// Whether a VLAN tag was taken off the frame and kept beside it.
    fn tag_beside(&self) -> bool {
        false
    }

    /// Whether the frame is addressed to another machine.
    fn other_host(&self) -> bool {
        false
    }
}

impl Source for [u8] {
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

/// The protocol as rules know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, by destination port.
    Tcp,
    /// UDP, by destination port.
    Udp,
    /// ICMP over IPv4 or ICMPv6 over IPv6, by type.
    Icmp,
    /// Anything else, given by its number in [`Packet::number`].
    Other,
}

/// What rules can see of a packet. Ports are in the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The final protocol, behind all extension headers.
    pub protocol: Protocol,
    /// Its number as IANA assigns it.
    pub number: u8,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
    /// Source port of TCP and UDP, code of ICMP, 0 otherwise.
    pub source_port: u16,
    /// Whose hardware address an ICMPv6 neighbour advertisement tells; all zero otherwise.
    pub neighbour: Address,
    /// A fragment other than the first: it has no ports, and `port` means nothing.
    pub later_fragment: bool,
}

impl Packet {
    /// A packet of which nothing but the addresses is known.
    #[inline(always)]
    pub const fn of_addresses(source: Address, destination: Address) -> Self {
        Self {
            source,
            destination,
            protocol: Protocol::Other,
            number: 0,
            port: 0,
            source_port: 0,
            neighbour: Address::NONE,
            later_fragment: false,
        }
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP.
    Arp {
        /// Whose hardware address it tells; 0.0.0.0 in a probe (RFC 5227).
        sender: Address,
    },
    /// An IPv4 or IPv6 packet.
    Ip(Packet),
}

/// Reads a frame. An error is the reason to drop it.
#[inline(always)]
pub fn parse(source: &(impl Source + ?Sized)) -> Result<Frame, Reason> {
    if source.other_host() {
        return Err(Reason::OtherHost);
    }
    if source.tag_beside() {
        return Err(Reason::Tagged);
    }
    let ethertype = source.head::<2>(ETHERNET_LENGTH - 2).ok_or(Reason::Truncated)?;
    match u16::from_be_bytes(ethertype) {
        ETHERTYPE_IPV4 => parse_ipv4(source).map(Frame::Ip),
        ETHERTYPE_IPV6 => parse_ipv6(source).map(Frame::Ip),
        ETHERTYPE_ARP => parse_arp(source),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD => Err(Reason::Tagged),
        _ => Err(Reason::ForeignEthertype),
    }
}

/// ARP for IPv4 over Ethernet (RFC 826); the kernel knows no other on such a link.
#[inline(always)]
fn parse_arp(source: &(impl Source + ?Sized)) -> Result<Frame, Reason> {
    let sender = source.bytes::<4>(ETHERNET_LENGTH + ARP_SENDER).ok_or(Reason::Truncated)?;
    Ok(Frame::Arp { sender: Address::from_ipv4(sender) })
}

#[inline(always)]
fn parse_ipv4(source: &(impl Source + ?Sized)) -> Result<Packet, Reason> {
    let header = source.head::<{ IPV4_LENGTH as usize }>(ETHERNET_LENGTH);
    let header = header.ok_or(Reason::Truncated)?;
    let [version_ihl, _, len0, len1, _, _, frag0, frag1, _, number, _, _, addresses @ ..] = header;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    if version_ihl >> 4 != 4 {
        return Err(Reason::Malformed);
    }
    let header_length = u32::from(version_ihl & 0x0f) * 4;
    let total_length = u32::from(u16::from_be_bytes([len0, len1]));
    if header_length < IPV4_LENGTH || total_length < header_length {
        return Err(Reason::Malformed);
    }
    let end = ETHERNET_LENGTH + total_length;
    if end > source.length() {
        return Err(Reason::Truncated);
    }
    if header_length > IPV4_LENGTH {
        check_options(source, ETHERNET_LENGTH + header_length)?;
    }
    let fragment = u16::from_be_bytes([frag0, frag1]);
    let mut packet = Packet {
        source: Address::from_ipv4([s0, s1, s2, s3]),
        destination: Address::from_ipv4([d0, d1, d2, d3]),
        protocol: match number {
            PROTOCOL_TCP => Protocol::Tcp,
            PROTOCOL_UDP => Protocol::Udp,
            PROTOCOL_ICMP => Protocol::Icmp,
            _ => Protocol::Other,
        },
        number,
        port: 0,
        source_port: 0,
        neighbour: Address::NONE,
        later_fragment: fragment & 0x1fff != 0,
    };
    read_ports(source, &mut packet, ETHERNET_LENGTH + header_length, end)?;
    Ok(packet)
}

/// Walks the options between the fixed header and `end`. A source route would let the
/// packet go elsewhere than its destination says.
#[inline(always)]
fn check_options(source: &(impl Source + ?Sized), end: u32) -> Result<(), Reason> {
    let mut offset = ETHERNET_LENGTH + IPV4_LENGTH;
    // 40 bytes of options hold at most 40 of them.
    for _ in 0..40 {
        if offset >= end {
            return Ok(());
        }
        let [kind] = source.bytes::<1>(offset).ok_or(Reason::Truncated)?;
        if kind == OPTION_END {
            return Ok(());
        }
        if kind == OPTION_NOP {
            offset += 1;
            continue;
        }
        if kind == OPTION_LSRR || kind == OPTION_SSRR {
            return Err(Reason::SourceRoute);
        }
        if offset + 1 >= end {
            return Err(Reason::Malformed);
        }
        let [length] = source.bytes::<1>(offset + 1).ok_or(Reason::Truncated)?;
        if length < 2 {
            return Err(Reason::Malformed);
        }
        offset += u32::from(length);
        if offset > end {
            return Err(Reason::Malformed);
        }
    }
    Ok(())
}

#[inline(always)]
fn parse_ipv6(source: &(impl Source + ?Sized)) -> Result<Packet, Reason> {
    let [v0, _, _, _, len0, len1, first, _] =
        source.head::<8>(ETHERNET_LENGTH).ok_or(Reason::Truncated)?;
    if v0 >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let end = ETHERNET_LENGTH + IPV6_LENGTH + u32::from(u16::from_be_bytes([len0, len1]));
    if end > source.length() {
        return Err(Reason::Truncated);
    }
    let mut packet = Packet {
        source: address(source.head(ETHERNET_LENGTH + 8))?,
        destination: address(source.head(ETHERNET_LENGTH + 24))?,
        protocol: Protocol::Other,
        number: first,
        port: 0,
        source_port: 0,
        neighbour: Address::NONE,
        later_fragment: false,
    };
    if packet.source.is_mapped() || packet.destination.is_mapped() {
        return Err(Reason::MappedAddress);
    }
    let offset = walk_headers(source, &mut packet, end)?;
    packet.protocol = match packet.number {
        PROTOCOL_TCP => Protocol::Tcp,
        PROTOCOL_UDP => Protocol::Udp,
        PROTOCOL_ICMPV6 => Protocol::Icmp,
        _ => Protocol::Other,
    };
    read_ports(source, &mut packet, offset, end)?;
    Ok(packet)
}

#[inline(always)]
fn address(bytes: Option<[u8; 16]>) -> Result<Address, Reason> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes.ok_or(Reason::Truncated)?;
    let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
    Ok(Address { words: words.map(u32::from_ne_bytes) })
}

/// Walks extension headers from `packet.number` to the final protocol, sets that, and
/// returns where its own header begins. Stops at a later fragment: what follows is data.
#[inline(always)]
fn walk_headers(
    source: &(impl Source + ?Sized),
    packet: &mut Packet,
    end: u32,
) -> Result<u32, Reason> {
    let mut offset = ETHERNET_LENGTH + IPV6_LENGTH;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match packet.number {
            HEADER_ROUTING => return Err(Reason::RoutingHeader),
            HEADER_HOP_BY_HOP | HEADER_DESTINATION => {
                let [next, length] = extension(source, offset, end)?;
                packet.number = next;
                offset += (u32::from(length) + 1) * 8;
                if offset > end {
                    return Err(Reason::Truncated);
                }
            }
            HEADER_FRAGMENT => {
                let [next, _, frag0, frag1, _, _, _, _] = extension(source, offset, end)?;
                packet.number = next;
                offset += 8;
                // Offset 0 without "more" is a whole packet (an atomic fragment, RFC 6946).
                if u16::from_be_bytes([frag0, frag1]) & 0xfff8 != 0 {
                    packet.later_fragment = true;
                    return Ok(offset);
                }
            }
            _ => return Ok(offset),
        }
    }
    Err(Reason::TooManyHeaders)
}

/// The first bytes of an extension header, which is never shorter than 8 bytes.
#[inline(always)]
fn extension<const N: usize>(
    source: &(impl Source + ?Sized),
    offset: u32,
    end: u32,
) -> Result<[u8; N], Reason> {
    if offset + 8 > end {
        return Err(Reason::Truncated);
    }
    source.bytes::<N>(offset).ok_or(Reason::Truncated)
}

/// Sets the ports, or ICMP type and code, from the header at `offset`. A first fragment
/// without them is dropped: IPv4's are never so short, and RFC 7112 forbids IPv6's.
#[inline(always)]
fn read_ports(
    source: &(impl Source + ?Sized),
    packet: &mut Packet,
    offset: u32,
    end: u32,
) -> Result<(), Reason> {
    if packet.later_fragment {
        return Ok(());
    }
    match packet.protocol {
        Protocol::Tcp | Protocol::Udp => {
            if offset + 4 > end {
                return Err(Reason::Truncated);
            }
            let ports = match offset {
                PLAIN_IPV4 => source.head::<4>(PLAIN_IPV4),
                PLAIN_IPV6 => source.head::<4>(PLAIN_IPV6),
                _ => source.bytes::<4>(offset),
            };
            let [s0, s1, d0, d1] = ports.ok_or(Reason::Truncated)?;
            packet.source_port = u16::from_be_bytes([s0, s1]);
            packet.port = u16::from_be_bytes([d0, d1]);
        }
        Protocol::Icmp => {
            if offset + 2 > end {
                return Err(Reason::Truncated);
            }
            let [kind, code] = source.bytes::<2>(offset).ok_or(Reason::Truncated)?;
            packet.port = u16::from(kind);
            packet.source_port = u16::from(code);
            let target = offset + ADVERTISEMENT_TARGET;
            let is_advertisement =
                packet.number == PROTOCOL_ICMPV6 && packet.port == NEIGHBOUR_ADVERTISEMENT;
            // One without a target tells nothing.
            if is_advertisement && target + 16 <= end {
                packet.neighbour = address(source.bytes(target))?;
            }
        }
        Protocol::Other => {}
    }
    Ok(())
}
