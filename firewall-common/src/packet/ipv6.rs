//! The IPv6 header and its extension headers (RFC 8200): addresses, the final protocol, and
//! which fragment a packet is.
//! Never reads what follows the headers.
//!
//! An authentication header (RFC 4302) is walked over, as the kernel does in IPv6 and in IPv6
//! only (`ipv6_ext_hdr` in net/ipv6/exthdrs_core.c).

use super::{
    ETHERNET_LENGTH, Fragment, Head, IPV6_LENGTH, Message, PROTOCOL_ICMPV6, PROTOCOL_TCP,
    PROTOCOL_UDP, Packet, Protocol, Source, parse_plain_ports, read_ports,
};
use crate::abi::Address;
use crate::verdict::Reason;

/// Most IPv6 extension headers in front of the final protocol. RFC 8200 foresees at
/// most five that are not protocols of their own (section 4.1).
pub const MAX_EXTENSION_HEADERS: u32 = 8;

const HEADER_HOP_BY_HOP: u8 = 0;
const HEADER_ROUTING: u8 = 43;
const HEADER_FRAGMENT: u8 = 44;
const HEADER_AUTHENTICATION: u8 = 51;
const HEADER_DESTINATION: u8 = 60;

/// Of the word with a fragment's place: more fragments follow (RFC 8200, section 4.5).
const MORE: u16 = 1;

/// Reads a packet, from the Ethernet header on.
#[inline(always)]
pub(super) fn parse(source: &(impl Source + ?Sized)) -> Result<Packet, Reason> {
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
        number: first,
        ..Packet::of_addresses(
            address(source.head(ETHERNET_LENGTH + 8))?,
            address(source.head(ETHERNET_LENGTH + 24))?,
        )
    };
    if packet.source.is_mapped() || packet.destination.is_mapped() {
        return Err(Reason::MappedAddress);
    }
    let (offset, is_authenticated) = walk_headers(source, &mut packet, end)?;
    packet.protocol = protocol_of(packet.number);
    read_ports(source, &mut packet, offset, end)?;
    // The gate takes what is behind an authentication header for no ICMPv6 at all
    // (`nft_set_pktinfo_ipv6`), and would not ask connection tracking.
    if is_authenticated && packet.message == Message::Error {
        packet.message = Message::ForeignError;
    }
    Ok(packet)
}

/// Reads a packet without extension headers; see [`super::parse_plain`].
#[inline(always)]
pub(super) fn parse_plain(source: &(impl Head + ?Sized)) -> Option<Packet> {
    let [v0, _, _, _, len0, len1, number, _] = source.head::<8>(ETHERNET_LENGTH)?;
    let end = ETHERNET_LENGTH + IPV6_LENGTH + u32::from(u16::from_be_bytes([len0, len1]));
    if v0 >> 4 != 6 || is_extension(number) || end > source.length() {
        return None;
    }
    let packet = Packet {
        protocol: protocol_of(number),
        number,
        ..Packet::of_addresses(
            address(source.head(ETHERNET_LENGTH + 8)).ok()?,
            address(source.head(ETHERNET_LENGTH + 24)).ok()?,
        )
    };
    if packet.source.is_mapped() || packet.destination.is_mapped() {
        return None;
    }
    parse_plain_ports(source, packet, ETHERNET_LENGTH + IPV6_LENGTH, end)
}

/// Whether a number is that of a header in front of the final protocol's.
#[inline(always)]
fn is_extension(number: u8) -> bool {
    matches!(
        number,
        HEADER_HOP_BY_HOP
            | HEADER_ROUTING
            | HEADER_FRAGMENT
            | HEADER_AUTHENTICATION
            | HEADER_DESTINATION
    )
}

/// The protocol that a number stands for.
#[inline(always)]
fn protocol_of(number: u8) -> Protocol {
    match number {
        PROTOCOL_TCP => Protocol::Tcp,
        PROTOCOL_UDP => Protocol::Udp,
        PROTOCOL_ICMPV6 => Protocol::Icmp,
        _ => Protocol::Other,
    }
}

/// An IPv6 address.
#[inline(always)]
pub(super) fn address(bytes: Option<[u8; 16]>) -> Result<Address, Reason> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes.ok_or(Reason::Truncated)?;
    let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
    Ok(Address { words: words.map(u32::from_ne_bytes) })
}

/// Walks extension headers from `packet.number` to the final protocol, sets that, and
/// returns where its own header begins, and whether that is behind an authentication header.
/// Stops at a later fragment: what follows is data.
#[inline(always)]
fn walk_headers(
    source: &(impl Source + ?Sized),
    packet: &mut Packet,
    end: u32,
) -> Result<(u32, bool), Reason> {
    let mut offset = ETHERNET_LENGTH + IPV6_LENGTH;
    let mut authenticated = 0;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match packet.number {
            HEADER_ROUTING => return Err(Reason::RoutingHeader),
            HEADER_HOP_BY_HOP | HEADER_DESTINATION => {
                let [next, length] = extension(source, offset, end)?;
                packet.number = next;
                offset = source.forget(offset + (u32::from(length) + 1) * 8);
                if offset > end {
                    return Err(Reason::Truncated);
                }
            }
            HEADER_AUTHENTICATION => {
                let [next, length] = extension(source, offset, end)?;
                packet.number = next;
                authenticated = source.forget(1);
                // In units of 4 bytes, less 2 (RFC 4302, section 2.2).
                offset = source.forget(offset + (u32::from(length) + 2) * 4);
                if offset > end {
                    return Err(Reason::Truncated);
                }
            }
            HEADER_FRAGMENT => {
                let [next, _, frag0, frag1, id0, id1, id2, id3] = extension(source, offset, end)?;
                packet.number = next;
                let is_first_header = offset == ETHERNET_LENGTH + IPV6_LENGTH;
                offset = source.forget(offset + 8);
                if offset > end {
                    return Err(Reason::Truncated);
                }
                let place = u16::from_be_bytes([frag0, frag1]);
                let (start, more) = (place & !7, place & MORE != 0);
                // The kernel would drop a packet with wrong options in front of this header
                // before it puts fragments together, and none of another fragment.
                let is_whole = start == 0 && !more;
                if !(is_first_header || is_whole) || packet.fragment.is_fragment() {
                    return Err(Reason::Malformed);
                }
                let identification = u32::from_be_bytes([id0, id1, id2, id3]);
                let length = (end - offset) as u16;
                packet.fragment = Fragment::new(identification, start, length, more)?;
                if start != 0 {
                    return Ok((offset, false));
                }
            }
            _ => return Ok((offset, authenticated != 0)),
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
