//! The IPv4 header (RFC 791): addresses, options, and which fragment a packet is.
//! Never reads what follows the header.

use super::{
    ETHERNET_LENGTH, Fragment, Head, IPV4_LENGTH, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    Packet, Protocol, Source, parse_plain_ports, read_ports,
};
use crate::abi::Address;
use crate::verdict::Reason;

/// The first byte of a header without options: the version, and its length in units of 4 bytes.
const PLAIN: u8 = 0x45;
/// Of the word with a fragment's place: more fragments follow (RFC 791, section 3.1).
const MORE: u16 = 0x2000;
/// That, and all bits of the place: one of them is set in each fragment.
const PIECE: u16 = 0x3fff;
/// IPv4 options have 40 bytes at the most.
const MAX_OPTION_WORDS: u32 = 10;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// Reads a packet, from the Ethernet header on.
#[inline(always)]
pub(super) fn parse(source: &(impl Source + ?Sized)) -> Result<Packet, Reason> {
    let header = source.head::<{ IPV4_LENGTH as usize }>(ETHERNET_LENGTH);
    let header = header.ok_or(Reason::Truncated)?;
    let [version_ihl, _, len0, len1, id0, id1, frag0, frag1, ..] = header;
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
    let place = u16::from_be_bytes([frag0, frag1]);
    let mut packet = packet_of(&header);
    if place & PIECE != 0 {
        // The kernel would drop such a packet before it puts fragments together.
        if !is_sum_right(source, &header, header_length) {
            return Err(Reason::Malformed);
        }
        packet.fragment = Fragment::new(
            u32::from(u16::from_be_bytes([id0, id1])),
            // 13 bits that count units of 8 bytes.
            place << 3,
            (total_length - header_length) as u16,
            place & MORE != 0,
        )?;
    }
    read_ports(source, &mut packet, ETHERNET_LENGTH + header_length, end)?;
    Ok(packet)
}

/// Reads a packet without options that is whole; see [`super::parse_plain`].
#[inline(always)]
pub(super) fn parse_plain(source: &(impl Head + ?Sized)) -> Option<Packet> {
    let header = source.head::<{ IPV4_LENGTH as usize }>(ETHERNET_LENGTH)?;
    let [version_ihl, _, len0, len1, _, _, frag0, frag1, ..] = header;
    let total_length = u32::from(u16::from_be_bytes([len0, len1]));
    let end = ETHERNET_LENGTH + total_length;
    if version_ihl != PLAIN || total_length < IPV4_LENGTH || end > source.length() {
        return None;
    }
    if u16::from_be_bytes([frag0, frag1]) & PIECE != 0 {
        return None;
    }
    parse_plain_ports(source, packet_of(&header), ETHERNET_LENGTH + IPV4_LENGTH, end)
}

/// What the fixed header tells of a packet that may be whole.
#[inline(always)]
fn packet_of(header: &[u8; IPV4_LENGTH as usize]) -> Packet {
    let [_, _, _, _, _, _, _, _, _, number, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    Packet {
        protocol: match number {
            PROTOCOL_TCP => Protocol::Tcp,
            PROTOCOL_UDP => Protocol::Udp,
            PROTOCOL_ICMP => Protocol::Icmp,
            _ => Protocol::Other,
        },
        number,
        ..Packet::of_addresses(
            Address::from_ipv4([s0, s1, s2, s3]),
            Address::from_ipv4([d0, d1, d2, d3]),
        )
    }
}

/// Whether the checksum of an IPv4 header holds (RFC 791, section 3.1): the sum of all its words
/// in one's complement has all bits set.
// A function of its own in the kernel as well: its stack is not needed by anything else.
#[inline(never)]
fn is_sum_right(
    source: &(impl Source + ?Sized),
    header: &[u8; IPV4_LENGTH as usize],
    length: u32,
) -> bool {
    let add = |sum: u32, word: &[u8]| match word {
        [high, low] => sum + u32::from(u16::from_be_bytes([*high, *low])),
        _ => sum,
    };
    let mut sum = header.chunks_exact(2).fold(0, add);
    let mut offset = IPV4_LENGTH;
    for _ in 0..MAX_OPTION_WORDS {
        if offset >= length {
            break;
        }
        let Some([a, b, c, d]) = source.bytes::<4>(ETHERNET_LENGTH + offset) else {
            return false;
        };
        sum = add(add(sum, &[a, b]), &[c, d]);
        offset += 4;
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
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
            offset = source.forget(offset + 1);
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
        offset = source.forget(offset + u32::from(length));
        if offset > end {
            return Err(Reason::Malformed);
        }
    }
    Ok(())
}
