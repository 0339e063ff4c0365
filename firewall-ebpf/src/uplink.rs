//! What must not pass interfaces that are no vifs: clients' addresses at the wrong end, more VLAN
//! tags than are read, and what was accepted by what is not in force any more.
//! Never reads more of a packet than its VLAN tags and IP addresses, and drops nothing else.

use aya_ebpf::bindings::bpf_hdr_start_off::BPF_HDR_START_NET;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_skb_load_bytes_relative;
use aya_ebpf::programs::TcContext;
use firewall_common::abi::Address;
use firewall_common::packet::{Frame, Packet};
use firewall_common::verdict::{Decision, Reason, Verdict};

use crate::skb::{self, Skb};
use crate::tables::{is_connected, is_stale};
use crate::{budget, report};

/// `skb->protocol` (uapi/linux/if_ether.h), as it is in memory.
const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const PROTOCOL_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// 802.1Q, 802.1ad and what came before that.
const VLAN_PROTOCOLS: [u32; 3] =
    [0x8100_u16.to_be() as u32, 0x88a8_u16.to_be() as u32, 0x9100_u16.to_be() as u32];
/// Most tags behind the first one.
const MAX_TAGS: u32 = 4;
/// Length of a tag, in bytes.
const TAG_LENGTH: u32 = 4;

/// Where in the IP headers the two addresses are.
const IPV4_ADDRESSES: u32 = 12;
const IPV6_ADDRESSES: u32 = 8;

/// Where an IPv4 header has flags and fragment offset, and which bits are the offset (RFC 791).
const IPV4_FRAGMENT: u32 = 6;
const IPV4_OFFSET: u16 = 0x1fff;
/// Where an IPv6 header says what follows, and where a fragment header that follows has the offset,
/// and in which bits (RFC 8200, section 4.5).
const IPV6_NEXT_HEADER: u32 = 6;
const FRAGMENT_HEADER: u8 = 44;
const IPV6_FRAGMENT: u32 = 42;
const IPV6_OFFSET: u16 = 0xfff8;

/// Which of a packet's addresses must not be a client's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source of a packet that comes in.
    Source,
    /// The destination of a packet that goes out.
    Destination,
}

/// Whether a packet is a later fragment of what came as one packet: it was counted with its first
/// one, from which it has its stamp.
#[inline(always)]
pub fn is_later_fragment(context: &TcContext) -> bool {
    // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
    match unsafe { (*context.skb.skb).protocol } {
        PROTOCOL_IPV4 => {
            let field = load::<u16>(context, IPV4_FRAGMENT).map_or(0, u16::from_be);
            field & IPV4_OFFSET != 0
        }
        PROTOCOL_IPV6 if load::<u8>(context, IPV6_NEXT_HEADER) == Some(FRAGMENT_HEADER) => {
            let field = load::<u16>(context, IPV6_FRAGMENT).map_or(0, u16::from_be);
            field & IPV6_OFFSET != 0
        }
        _ => false,
    }
}

/// Drops a packet that a client sent if what accepted the packet is not in force any more: the
/// packet waited meanwhile, for the address of a neighbour or for the rest of its fragments.
/// Returns what tc is to do.
#[inline(always)]
pub fn check_stamp(context: &TcContext) -> i32 {
    let stamp = skb::stamp_of(context);
    if is_stale(stamp) {
        return drop_for(context, Reason::Outdated, &Err(Reason::Outdated));
    }
    count_leaving(context, stamp);
    TC_ACT_UNSPEC
}

/// Counts a packet that leaves, if a client sent the packet, and rules accepted it.
#[inline(always)]
pub fn count_leaving(context: &TcContext, stamp: u32) {
    if stamp != 0 && !is_later_fragment(context) {
        report::count_leaving();
    }
}

/// Drops a packet with a client's address at the wrong end, or with more VLAN tags than are read.
/// Returns what tc is to do.
#[inline(always)]
pub fn check(context: &TcContext, end: End) -> i32 {
    let Some((protocol, offset)) = behind_tags(context) else {
        return drop_for(context, Reason::Tagged, &Err(Reason::Tagged));
    };
    let Some((source, destination)) = addresses(context, protocol, offset) else {
        return TC_ACT_UNSPEC;
    };
    let (address, reason) = match end {
        End::Source => (&source, Reason::ConnectedSource),
        End::Destination => (&destination, Reason::ConnectedDestination),
    };
    if !is_connected(address) {
        return TC_ACT_UNSPEC;
    }
    let packet = Packet::of_addresses(source, destination);
    drop_for(context, reason, &Ok(Frame::Ip(packet)))
}

#[inline(always)]
fn drop_for(context: &TcContext, reason: Reason, frame: &Result<Frame, Reason>) -> i32 {
    let decision = Decision::stray(Verdict::Drop, reason);
    let now = budget::time_of(&decision);
    report::report(Skb::<true>::new(context).arrival(), frame, &decision, now);
    TC_ACT_SHOT
}

/// What is behind VLAN tags, and where, from the network header on. The kernel has taken
/// the first tag off; it takes the others off later if they carry no identifier, and then
/// takes what is inside for its own. `None` if there are more tags than anybody needs, or
/// the packet ends within one.
#[inline(always)]
fn behind_tags(context: &TcContext) -> Option<(u32, u32)> {
    // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
    let mut protocol = unsafe { (*context.skb.skb).protocol };
    let mut offset = 0;
    for _ in 0..=MAX_TAGS {
        if !VLAN_PROTOCOLS.contains(&protocol) {
            return Some((protocol, offset));
        }
        // Two bytes of the tag, then the protocol behind it.
        protocol = u32::from(load::<u16>(context, offset + 2)?);
        offset += TAG_LENGTH;
    }
    None
}

/// Source and destination of the IP header at `offset`, counted from the network header:
/// an uplink need not be an Ethernet.
#[inline(always)]
fn addresses(context: &TcContext, protocol: u32, offset: u32) -> Option<(Address, Address)> {
    match protocol {
        PROTOCOL_IPV4 => {
            let [source, destination] = load::<[[u8; 4]; 2]>(context, offset + IPV4_ADDRESSES)?;
            Some((Address::from_ipv4(source), Address::from_ipv4(destination)))
        }
        PROTOCOL_IPV6 => {
            let [source, destination] = load::<[[u32; 4]; 2]>(context, offset + IPV6_ADDRESSES)?;
            Some((Address { words: source }, Address { words: destination }))
        }
        _ => None,
    }
}

/// Plain bytes from the network header on.
#[inline(always)]
fn load<T: Copy + Default>(context: &TcContext, offset: u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: writes as many bytes as the value has, and any bytes are a value of the
    // integers that it is made of.
    let failed = unsafe {
        bpf_skb_load_bytes_relative(
            context.skb.skb.cast(),
            offset,
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        )
    };
    (failed == 0).then_some(value)
}
