//! What an ICMP error quotes: whether that packet can have met the one that complains.
//! Never decides whether the error passes.
//!
//! Connection tracking finds the connection of an error by the packet quoted in it, whoever
//! sends the error (`nf_conntrack_inet_error` in net/netfilter/nf_conntrack_proto_icmp.c). So
//! it has to be known before that the quoted packet can have come to the one that complains.

use super::{ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH, Packet, Source, ipv6};
use crate::abi::Address;

/// ICMP errors: unreachable, source quench, time exceeded, parameter problem (RFC 792).
const IPV4_ERRORS: [u16; 4] = [3, 4, 11, 12];
/// All ICMPv6 types below this are errors (RFC 4443, section 2.1).
const IPV6_INFORMATIONAL: u16 = 128;

/// What of an ICMP error precedes the quoted packet, in bytes (RFC 792, RFC 4443).
const HEADER_LENGTH: u32 = 8;
/// What of the quoted packet must be there behind its IP header, in bytes (RFC 792).
const QUOTED_LENGTH: u32 = 8;
/// The longest IP packet that an IPv4 error is in (RFC 1812, section 4.3.2.3), in bytes.
const IPV4_LONGEST: u32 = 576;
/// The longest IP packet that an IPv6 error is in (RFC 4443, section 2.4), in bytes.
const IPV6_LONGEST: u32 = 1280;

/// Whether a type of ICMP, or of ICMPv6, is that of errors.
#[inline(always)]
pub fn is_error(kind: u16, is_ipv4: bool) -> bool {
    if is_ipv4 { IPV4_ERRORS.contains(&kind) } else { kind < IPV6_INFORMATIONAL }
}

/// Whether the packet that an error, at `offset`, quotes was sent to the error's source by the
/// error's destination. It was not if it is not there as far as an error has to quote it, or if
/// the error is longer than any may be, or is for many.
// A function of its own in the kernel as well: its stack is not needed by anything else.
#[inline(never)]
pub(super) fn is_own(
    source: &(impl Source + ?Sized),
    packet: &Packet,
    offset: u32,
    end: u32,
) -> bool {
    // No error is so long that it would have to be cut into pieces.
    if !packet.fragment.is_whole() || packet.destination.is_multicast() {
        return false;
    }
    let quoted = offset + HEADER_LENGTH;
    let to = if packet.source.is_mapped() {
        ipv4_destination(source, packet, quoted, end)
    } else {
        ipv6_destination(source, packet, quoted, end)
    };
    to.is_some_and(|to| to == packet.source)
}

/// Destination of the IPv4 packet quoted at `offset`, if the destination of the error sent it.
#[inline(always)]
fn ipv4_destination(
    source: &(impl Source + ?Sized),
    packet: &Packet,
    offset: u32,
    end: u32,
) -> Option<Address> {
    if end > ETHERNET_LENGTH + IPV4_LONGEST || offset + IPV4_LENGTH + QUOTED_LENGTH > end {
        return None;
    }
    let [version_ihl] = source.bytes::<1>(offset)?;
    let length = u32::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || length < IPV4_LENGTH || offset + length + QUOTED_LENGTH > end {
        return None;
    }
    // Nobody complains about later fragments (RFC 1122, section 3.2.2).
    if u16::from_be_bytes(source.bytes::<2>(offset + 6)?) & 0x1fff != 0 {
        return None;
    }
    if Address::from_ipv4(source.bytes(offset + 12)?) != packet.destination {
        return None;
    }
    Some(Address::from_ipv4(source.bytes(offset + 16)?))
}

/// Destination of the IPv6 packet quoted at `offset`, if the destination of the error sent it.
#[inline(always)]
fn ipv6_destination(
    source: &(impl Source + ?Sized),
    packet: &Packet,
    offset: u32,
    end: u32,
) -> Option<Address> {
    if end > ETHERNET_LENGTH + IPV6_LONGEST || offset + IPV6_LENGTH + QUOTED_LENGTH > end {
        return None;
    }
    let [version] = source.bytes::<1>(offset)?;
    if version >> 4 != 6 || ipv6::address(source.bytes(offset + 8)).ok()? != packet.destination {
        return None;
    }
    let to = ipv6::address(source.bytes(offset + 24)).ok()?;
    // An address of this form is IPv4's in the tables.
    (!to.is_mapped()).then_some(to)
}
