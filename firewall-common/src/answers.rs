//! Answers of connections that are opened towards clients: by which key a connection is noted, and
//! how many answers may be lost.
//! Never lets a packet pass: whether a connection is there, connection tracking says.

use crate::abi::{Address, FlowKey, MAX_CLIENTS};
use crate::packet::{Packet, Protocol};

/// Answers of one client that can be on their way to the uplink at once: more than wait for the
/// address of a neighbour (`neigh/default/unres_qlen_bytes`, about 100 packets of full size).
pub const ANSWERS_BURST: u64 = 1_000;
/// Answers of one client that can be lost on their way in a second, before what looks like an answer
/// is told as denied.
pub const ANSWERS_PER_SECOND: u64 = 20;

/// Connections towards clients that are known at once, of all clients together.
pub const MAX_OPENINGS: usize = 1 << 15;

/// The bit of `skb->tc_index` that says, without [`STAMPED`](crate::abi::STAMPED), that the other
/// bits are the index of a client that sent the packet as an answer.
pub const ANSWERING: u32 = 1 << 14;
const _: () = assert!(MAX_CLIENTS <= ANSWERING as usize, "an index does not fit beside the bit");

/// One end of a connection: an address, and a UDP or TCP port.
pub type End = (Address, u16);

/// The key of a connection that a peer opened towards a client behind `vif`. `packet` is any packet
/// of the connection, in either direction. Of ICMP, and of what has no ports, the two addresses say
/// enough. `forget` returns its number; see [`Source::forget`](crate::packet::Source::forget).
#[inline(always)]
pub fn key(
    vif: u32,
    (peer, peers_port): End,
    own_port: u16,
    packet: &Packet,
    forget: impl Fn(u32) -> u32,
) -> FlowKey {
    // The verifier need not go each way of these on its own.
    let mask = forget(match packet.protocol {
        Protocol::Tcp | Protocol::Udp => 0xffff,
        Protocol::Icmp | Protocol::Other => 0,
    }) as u16;
    let family = forget(if peer.is_mapped() { 0 } else { 256 });
    let protocol = u32::from(packet.number) | family;
    FlowKey {
        vif,
        destination: peer,
        port: peers_port & mask,
        source_port: own_port & mask,
        protocol,
    }
}
