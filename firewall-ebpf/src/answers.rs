//! Connections that are opened towards clients, by which their answers are known: each is noted
//! when its first packet leaves by the client's vif. A note outlives its connection, so answers come
//! out of a budget, into which each that leaves the netvm is given back.
//! Never lets a packet pass: whether a connection is there, the gate asks connection tracking.

use core::ptr;

use aya_ebpf::programs::TcContext;
use firewall_common::abi::{FlowKey, OPENING, STAMPED};
use firewall_common::answers::{ANSWERING, ANSWERS_BURST, ANSWERS_PER_SECOND, key};
use firewall_common::packet::{self, Head, Packet, Protocol, Receiver};

use crate::budget;
use crate::clock::{SECOND, coarse};
use crate::forget::forget;
use crate::maps::{ANSWER_BUDGETS, OPENINGS};
use crate::skb::Skb;
use crate::uplink;

/// Added to the protocol's number in a key, it makes one that no entry has: of ICMP, only an echo
/// reply answers anything, and others may begin something (`icmp_new` in
/// net/netfilter/nf_conntrack_proto_icmp.c).
const NEVER: u32 = 1024;

/// Nanoseconds of budget that an answer takes.
const ANSWER_INTERVAL: u64 = SECOND / ANSWERS_PER_SECOND;

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
    let (vif, peer) = (leaving.0.arrival().interface, (packet.source, packet.source_port));
    let key = key(vif, peer, packet.port, &packet, forget);
    // Without an entry, answers are told as denied.
    let _ = OPENINGS.insert(&key, &0, 0);
}

/// Whether a client's packet goes the other way of a connection that was noted, and the budget of
/// the client, whose index this is, has room. Takes the packet out of the budget.
#[inline(always)]
pub fn takes_answer(vif: u32, packet: &Packet, client: u32) -> bool {
    let key = key_of_answer(vif, packet);
    // SAFETY: the key lives as long as the call.
    unsafe { take_answer(&raw const key, client) != 0 }
}

/// Whether a client's packet goes the other way of a connection that was noted.
#[inline(always)]
pub fn may_be_answer(vif: u32, packet: &Packet) -> bool {
    is_noted(&key_of_answer(vif, packet))
}

/// Gives back into its client's budget an answer that leaves the netvm.
#[inline(always)]
pub fn give_back(context: &TcContext) {
    // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
    let skb = unsafe { &mut *context.skb.skb };
    let index = skb.tc_index;
    if index & (STAMPED | ANSWERING) != ANSWERING || uplink::is_later_fragment(context) {
        return;
    }
    // Once: behind a link that stands on another one (a VLAN, a macvlan), the packet leaves again.
    skb.tc_index = 0;
    let Some(next) = ANSWER_BUDGETS.get_ptr_mut(index & !ANSWERING) else {
        return;
    };
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    let next = unsafe { &mut *next };
    *next = next.saturating_sub(ANSWER_INTERVAL);
}

#[inline(always)]
fn key_of_answer(vif: u32, packet: &Packet) -> FlowKey {
    let peer = (packet.destination, packet.port);
    let mut key = key(vif, peer, packet.source_port, packet, forget);
    let is_never = packet.protocol == Protocol::Icmp && !packet.is_echo_reply();
    key.protocol |= forget(if is_never { NEVER } else { 0 });
    key
}

#[inline(always)]
fn is_noted(key: &FlowKey) -> bool {
    // SAFETY: only whether there is an entry matters.
    unsafe { OPENINGS.get(key) }.is_some()
}

/// Takes an answer with this key out of a client's budget; 0 is that there is no such connection, or
/// no room. A function of its own, so that the way of accepted packets does not make room for its
/// registers.
///
/// # Safety
///
/// `key` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn take_answer(key: *const FlowKey, client: u32) -> i32 {
    if key.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise. The verifier of Linux 6.1 takes no key from a function's caller, so
    // the key is copied, and the compiler must not think better of that.
    let key = unsafe { ptr::read_volatile(key) };
    if !is_noted(&key) {
        return 0;
    }
    let Some(next) = ANSWER_BUDGETS.get_ptr_mut(client) else {
        return 0;
    };
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    i32::from(budget::take(unsafe { &mut *next }, coarse(), ANSWER_INTERVAL, ANSWERS_BURST))
}
