//! ICMP and ICMPv6: type, code, and what a message tells beside them.
//! Never decides who may tell what.

use core::ops::RangeInclusive;

use super::{Message, Packet, Source, ipv6, quote};
use crate::verdict::Reason;

/// ICMPv6 types of neighbour discovery (RFC 4861): from router solicitations to redirects.
pub const NEIGHBOUR_DISCOVERY: RangeInclusive<u16> = 133..=137;
/// The ICMPv6 type of router advertisements (RFC 4861).
pub const ROUTER_ADVERTISEMENT: u16 = 134;
/// The ICMPv6 type of neighbour advertisements (RFC 4861).
const NEIGHBOUR_ADVERTISEMENT: u16 = 136;
/// The ICMP type of redirects (RFC 792).
const IPV4_REDIRECT: u16 = 5;
/// The ICMPv6 type of redirects (RFC 4861).
const IPV6_REDIRECT: u16 = 137;
/// The ICMP type of echo requests (RFC 792).
const IPV4_ECHO_REQUEST: u16 = 8;
/// The ICMPv6 type of echo requests (RFC 4443).
const IPV6_ECHO_REQUEST: u16 = 128;
/// The ICMP type of echo replies (RFC 792).
const IPV4_ECHO_REPLY: u16 = 0;
/// The ICMPv6 type of echo replies (RFC 4443).
const IPV6_ECHO_REPLY: u16 = 129;

/// Length of an ICMPv6 header (RFC 4443, section 2.1), in bytes; of a first fragment, the kernel
/// wants all of it (`ipv6frag_thdr_truncated`).
const ICMPV6_LENGTH: u32 = 8;

/// Where the target is in a neighbour advertisement (RFC 4861, section 4.4).
const ADVERTISEMENT_TARGET: u32 = 8;

/// Whether a type of ICMP, or of ICMPv6, is that of echo requests.
#[inline(always)]
pub(super) const fn is_echo_request(kind: u16, is_ipv4: bool) -> bool {
    kind == if is_ipv4 { IPV4_ECHO_REQUEST } else { IPV6_ECHO_REQUEST }
}

/// Whether a type of ICMP, or of ICMPv6, is that of echo replies.
#[inline(always)]
pub(super) const fn is_echo_reply(kind: u16, is_ipv4: bool) -> bool {
    kind == if is_ipv4 { IPV4_ECHO_REPLY } else { IPV6_ECHO_REPLY }
}

/// Whether a type of ICMP, or of ICMPv6, is that of redirects.
#[inline(always)]
pub const fn is_redirect(kind: u16, is_ipv4: bool) -> bool {
    kind == if is_ipv4 { IPV4_REDIRECT } else { IPV6_REDIRECT }
}

/// Whether a message of this type is judged by its type.
#[inline(always)]
pub(super) fn is_plain(kind: u16, is_ipv4: bool) -> bool {
    !quote::is_error(kind, is_ipv4)
        && !is_redirect(kind, is_ipv4)
        && (is_ipv4 || kind != NEIGHBOUR_ADVERTISEMENT)
}

/// Sets type, code and what else an ICMP message tells, from the header at `offset`.
#[inline(always)]
pub(super) fn read(
    source: &(impl Source + ?Sized),
    packet: &mut Packet,
    offset: u32,
    end: u32,
) -> Result<(), Reason> {
    let is_whole = packet.fragment.is_whole() || packet.source.is_mapped();
    if offset + if is_whole { 2 } else { ICMPV6_LENGTH } > end {
        return Err(Reason::Truncated);
    }
    let [kind, code] = source.bytes::<2>(offset).ok_or(Reason::Truncated)?;
    let (kind, is_v4) = (u16::from(kind), packet.source.is_mapped());
    packet.port = source.forget(kind.into()) as u16;
    packet.source_port = u16::from(code);
    if quote::is_error(kind, is_v4) {
        let is_own = quote::is_own(source, packet, offset, end);
        packet.message = if is_own { Message::Error } else { Message::ForeignError };
    } else if is_redirect(kind, is_v4) {
        packet.message = Message::Redirect;
    } else if is_echo_request(kind, is_v4) && offset + 6 <= end {
        let identifier = source.bytes::<2>(offset + 4).ok_or(Reason::Truncated)?;
        packet.identifier = u16::from_be_bytes(identifier);
    } else if !is_v4 && kind == NEIGHBOUR_ADVERTISEMENT {
        let target = offset + ADVERTISEMENT_TARGET;
        // One without a target tells nothing.
        if target + 16 <= end {
            let is_own = ipv6::address(source.bytes(target))? == packet.source;
            if !is_own {
                packet.message = Message::ForeignAdvertisement;
            }
        }
    }
    Ok(())
}
