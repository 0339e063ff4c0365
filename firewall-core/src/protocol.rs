//! Numbers of protocols, as IANA assigns them, and the protocols that rules know.
//! Never looks at a packet.

use firewall_common::packet::Protocol;

/// Number of ICMP.
pub const ICMP: u8 = 1;
/// Number of TCP.
pub const TCP: u8 = 6;
/// Number of UDP.
pub const UDP: u8 = 17;
/// Number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The protocol with this number, as rules of a family know it.
pub fn protocol(number: u8, is_ipv4: bool) -> Protocol {
    match (number, is_ipv4) {
        (TCP, _) => Protocol::Tcp,
        (UDP, _) => Protocol::Udp,
        (ICMP, true) | (ICMPV6, false) => Protocol::Icmp,
        _ => Protocol::Other,
    }
}
