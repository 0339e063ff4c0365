//! Bytes of an Ethernet frame to a [`Frame`], ARP or a packet, or the reason why it is dropped.
//! Never looks at tables, and never reads beyond what the IP header claims.

mod fragment;
mod icmp;
mod ipv4;
mod ipv6;
mod quote;

use crate::abi::Address;
use crate::verdict::Reason;

pub use self::fragment::Fragment;
pub use self::icmp::{NEIGHBOUR_DISCOVERY, ROUTER_ADVERTISEMENT, is_redirect};
pub use self::ipv6::MAX_EXTENSION_HEADERS;
pub use self::quote::is_error;

/// Length of an Ethernet header, in bytes.
pub const ETHERNET_LENGTH: u32 = 14;
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

/// Length of an IPv4 header without options, in bytes.
const IPV4_LENGTH: u32 = 20;
/// Length of an IPv6 header without extension headers, in bytes.
const IPV6_LENGTH: u32 = 40;
/// Length of a TCP header without options, in bytes.
const TCP_LENGTH: u32 = 20;
/// Where a TCP header has its flags, and two of them (RFC 9293, section 3.1).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Length of a UDP header, in bytes.
const UDP_LENGTH: u32 = 8;
/// Where the sender's protocol address is in an ARP packet.
const ARP_SENDER: u32 = 14;

/// Whom a frame's hardware address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// The netvm's interface.
    Netvm,
    /// The netvm among others: broadcast or multicast.
    Many,
    /// Another machine.
    Other,
}

/// The beginning of a frame, and what is known of it beside its bytes.
pub trait Head {
    /// `N` bytes at an offset that is a constant, counted from the Ethernet header; `None` if they
    /// cannot be had here.
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Length of the frame in bytes.
    fn length(&self) -> u32;

    /// Whether a VLAN tag was taken off the frame and kept beside it.
    fn tag_beside(&self) -> bool {
        false
    }

    /// Whom the frame's hardware address means.
    fn receiver(&self) -> Receiver {
        Receiver::Netvm
    }
}

/// All bytes of a frame: an skb in the kernel, a slice elsewhere.
pub trait Source: Head {
    /// `N` bytes from `offset` on, counted from the Ethernet header; `None` if the
    /// frame ends before.
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Returns `number` unchanged. In the kernel, the verifier forgets here what comparisons told
    /// of the number, and goes on once for all outcomes.
    fn forget(&self, number: u32) -> u32 {
        number
    }
}

impl Head for [u8] {
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes(offset)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

impl Source for [u8] {
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }
}

/// The protocol as rules know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
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

/// What an ICMP packet tells that is judged apart from its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Message {
    /// Nothing, or the packet is not ICMP.
    Plain,
    /// That a packet to its sender met an error: ICMP types 3, 4, 11 and 12, and ICMPv6 types
    /// below 128 (RFC 4443, section 2.1), which are what connection tracking takes for errors
    /// (`icmp_is_err` in include/linux/icmp.h, `nf_conntrack_icmpv6_error`).
    Error,
    /// That an error was met by a packet that was not sent to the one that complains, or that
    /// cannot have been sent by the one that the error goes to.
    ForeignError,
    /// That a packet should go by another way.
    Redirect,
    /// That a hardware address belongs to somebody else than its sender (an ICMPv6 neighbour
    /// advertisement).
    ForeignAdvertisement,
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
    /// Number of the final protocol, as IANA assigns it.
    pub number: u8,
    /// Destination port of TCP and UDP, type of ICMP, 0 otherwise.
    pub port: u16,
    /// Source port of TCP and UDP, code of ICMP, 0 otherwise.
    pub source_port: u16,
    /// Identifier of an ICMP echo request; of a TCP segment that opens a connection 1; 0 otherwise.
    pub identifier: u16,
    /// Which piece of a datagram the packet is. A later fragment has no ports, and `port` means
    /// nothing.
    pub fragment: Fragment,
    /// What the packet tells that is judged apart from its type, if it is ICMP.
    pub message: Message,
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
            identifier: 0,
            fragment: Fragment::WHOLE,
            message: Message::Plain,
        }
    }

    /// Whether the packet is a ping (an ICMP or ICMPv6 echo request), which connection tracking
    /// tells from others by its identifier.
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        self.protocol == Protocol::Icmp && icmp::is_echo_request(self.port, self.source.is_mapped())
    }

    /// Whether the packet is an ICMP or ICMPv6 echo reply.
    #[inline(always)]
    pub fn is_echo_reply(&self) -> bool {
        self.protocol == Protocol::Icmp && icmp::is_echo_reply(self.port, self.source.is_mapped())
    }

    /// Whether the packet is neighbour discovery of IPv6 (RFC 4861).
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        self.number == PROTOCOL_ICMPV6
            && self.protocol == Protocol::Icmp
            && NEIGHBOUR_DISCOVERY.contains(&self.port)
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP (RFC 826).
    Arp {
        /// Whose hardware address the frame tells; 0.0.0.0 in a probe (RFC 5227).
        sender: Address,
    },
    /// An IPv4 or IPv6 packet.
    Ip(Packet),
}

/// Reads a frame of the kind that nearly all are of: a packet that is whole, without options or
/// extension headers, and judged by its type if it is ICMP. `None` is any other frame. What this
/// reads is what [`parse`] reads, but for [`Packet::identifier`], which stays 0.
#[inline(always)]
pub fn parse_plain(source: &(impl Head + ?Sized)) -> Option<Packet> {
    if source.receiver() != Receiver::Netvm || source.tag_beside() {
        return None;
    }
    match u16::from_be_bytes(source.head(ETHERNET_LENGTH - 2)?) {
        ETHERTYPE_IPV4 => ipv4::parse_plain(source),
        ETHERTYPE_IPV6 => ipv6::parse_plain(source),
        _ => None,
    }
}

/// Reads the ports, or ICMP type and code, at `offset`, which is a constant.
#[inline(always)]
fn parse_plain_ports(
    source: &(impl Head + ?Sized),
    mut packet: Packet,
    offset: u32,
    end: u32,
) -> Option<Packet> {
    match packet.protocol {
        Protocol::Tcp | Protocol::Udp if offset + 4 <= end => {
            let [s0, s1, d0, d1] = source.head(offset)?;
            packet.source_port = u16::from_be_bytes([s0, s1]);
            packet.port = u16::from_be_bytes([d0, d1]);
        }
        Protocol::Icmp if offset + 2 <= end => {
            let [kind, code] = source.head(offset)?;
            (packet.port, packet.source_port) = (kind.into(), code.into());
            if !icmp::is_plain(packet.port, packet.source.is_mapped()) {
                return None;
            }
        }
        Protocol::Other => {}
        Protocol::Tcp | Protocol::Udp | Protocol::Icmp => return None,
    }
    Some(packet)
}

/// Reads a frame. An error is the reason to drop it.
#[inline(always)]
pub fn parse(source: &(impl Source + ?Sized)) -> Result<Frame, Reason> {
    if source.receiver() == Receiver::Other {
        return Err(Reason::OtherHost);
    }
    if source.tag_beside() {
        return Err(Reason::Tagged);
    }
    let ethertype = source.head::<2>(ETHERNET_LENGTH - 2).ok_or(Reason::Truncated)?;
    match u16::from_be_bytes(ethertype) {
        ETHERTYPE_IPV4 => received(source, ipv4::parse(source)?),
        ETHERTYPE_IPV6 => received(source, ipv6::parse(source)?),
        ETHERTYPE_ARP => parse_arp(source),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD => Err(Reason::Tagged),
        _ => Err(Reason::ForeignEthertype),
    }
}

/// A packet for one machine in a frame for many is refused (RFC 1122, section 3.3.6): the kernel
/// would not forward it, and would throw TCP away without an answer (`tcp_v4_rcv`), so that
/// connection tracking kept the flow for minutes.
#[inline(always)]
fn received(source: &(impl Head + ?Sized), packet: Packet) -> Result<Frame, Reason> {
    if source.receiver() == Receiver::Many && !packet.destination.is_multicast() {
        return Err(Reason::Malformed);
    }
    Ok(Frame::Ip(packet))
}

/// ARP for IPv4 over Ethernet (RFC 826); the kernel knows no other on such a link.
#[inline(always)]
fn parse_arp(source: &(impl Source + ?Sized)) -> Result<Frame, Reason> {
    let sender = source.bytes::<4>(ETHERNET_LENGTH + ARP_SENDER).ok_or(Reason::Truncated)?;
    Ok(Frame::Arp { sender: Address::from_ipv4(sender) })
}

/// Sets the ports, or ICMP type and code, from the header at `offset`. A first fragment
/// without them is dropped: IPv4's are never so short, and RFC 7112 forbids IPv6's. Of an IPv6
/// fragment, the kernel wants the whole header (`ipv6frag_thdr_truncated`).
#[inline(always)]
fn read_ports(
    source: &(impl Source + ?Sized),
    packet: &mut Packet,
    offset: u32,
    end: u32,
) -> Result<(), Reason> {
    if packet.fragment.is_later() {
        return Ok(());
    }
    match packet.protocol {
        Protocol::Tcp | Protocol::Udp => {
            let needed = match packet.protocol {
                _ if packet.fragment.is_whole() || packet.source.is_mapped() => 4,
                Protocol::Tcp => TCP_LENGTH,
                _ => UDP_LENGTH,
            };
            if offset + needed > end {
                return Err(Reason::Truncated);
            }
            let [s0, s1, d0, d1] = source.bytes(offset).ok_or(Reason::Truncated)?;
            packet.source_port = u16::from_be_bytes([s0, s1]);
            packet.port = u16::from_be_bytes([d0, d1]);
            let is_tcp = packet.protocol == Protocol::Tcp && offset + TCP_LENGTH <= end;
            if is_tcp && let Some([flags]) = source.bytes(offset + TCP_FLAGS) {
                packet.identifier = u16::from(flags & (SYN | ACK) == SYN);
            }
        }
        Protocol::Icmp => return icmp::read(source, packet, offset, end),
        // As with the whole headers above.
        Protocol::Other if !packet.fragment.is_whole() && !packet.source.is_mapped() => {
            if offset + 1 > end {
                return Err(Reason::Truncated);
            }
        }
        Protocol::Other => {}
    }
    Ok(())
}
