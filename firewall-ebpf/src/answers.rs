//! Connections that are opened towards clients, by which their answers are known: each is noted
//! when its first packet leaves by the client's vif.
//! Never lets a packet pass: whether a connection is there, the gate asks connection tracking.

use aya_ebpf::programs::TcContext;
use firewall_common::abi::{Address, FlowKey, OPENING};
use firewall_common::packet::{self, Head, Packet, Protocol, Receiver};

use crate::clock::coarse;
use crate::forget::forget;
use crate::maps::FLOWS;
use crate::skb::Skb;

/// Added to a protocol's number in a key: a flow to the netvm itself has other keys.
const TOWARDS_CLIENT: u32 = 512;

/// Added to the protocol's number in a key, it makes one that no entry has: a ping is nobody's
/// answer.
const NEVER: u32 = 1024;

/// A packet on its way out, whose hardware address is the client's.
struct Leaving<'a>(Skb<'a, true>);

impl Head for Leaving<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.head(offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.0.length()
    }

    #[inline(always)]
    fn tag_beside(&self) -> bool {
        self.0.tag_beside()
    }

    #[inline(always)]
    fn receiver(&self) -> Receiver {
        Receiver::Netvm
    }
}

/// Notes the connection of a packet, if nftables says that the packet is its first one. One that is
/// not plain (with options, in fragments) is not noted: its answers are told as denied.
#[inline(always)]
pub fn note(context: &TcContext) {
    // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
    let skb = unsafe { &mut *context.skb.skb };
    if skb.priority != OPENING {
        return;
    }
    skb.priority = 0;
    let leaving = Leaving(Skb::new(context));
    let Some(packet) = packet::parse_plain(&leaving) else {
        return;
    };
    let key =
        key(leaving.0.arrival().interface, packet.source, &packet, packet.source_port, packet.port);
    // Without an entry, answers are told as denied.
    let _ = FLOWS.insert(&key, &coarse(), 0);
}

/// Whether a client's packet goes the other way of a connection that was noted.
#[inline(always)]
pub fn is_answer(vif: u32, packet: &Packet) -> bool {
    let mut key = key(vif, packet.destination, packet, packet.port, packet.source_port);
    key.protocol |= forget(if packet.is_echo_request() { NEVER } else { 0 });
    // SAFETY: the key lives as long as the call.
    unsafe { is_noted(&raw const key) != 0 }
}

/// Whether there is a connection with this key; 0 is no. A function of its own, so that the way of
/// accepted packets does not make room for its registers.
///
/// # Safety
///
/// `key` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn is_noted(key: *const FlowKey) -> i32 {
    // SAFETY: the caller's promise.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    // SAFETY: only whether there is an entry matters.
    i32::from(unsafe { FLOWS.get(key) }.is_some())
}

/// The key of a connection with a peer. Of ICMP, and of what has no ports, the two addresses say
/// enough.
#[inline(always)]
fn key(vif: u32, peer: Address, packet: &Packet, peers_port: u16, own_port: u16) -> FlowKey {
    // The verifier need not go each way of these on its own.
    let mask = forget(match packet.protocol {
        Protocol::Tcp | Protocol::Udp => 0xffff,
        Protocol::Icmp | Protocol::Other => 0,
    }) as u16;
    let family = forget(if peer.is_mapped() { 0 } else { 256 });
    let protocol = u32::from(packet.number) | family | TOWARDS_CLIENT;
    FlowKey {
        vif,
        destination: peer,
        port: peers_port & mask,
        source_port: own_port & mask,
        protocol,
    }
}
