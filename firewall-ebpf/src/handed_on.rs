//! What is handed on and can take room or time that all share: fragments, ICMP errors, and what is
//! for the netvm itself. Each client has its share.
//! Never lets pass what was to be dropped, and has no say about a whole packet that is accepted.

use aya_ebpf::Global;
use firewall_common::abi::{
    DEFAULT_RULE, FLOW_SECONDS, FLOWS_BURST, FlowKey, MAX_BUDGETS, NOTICES_BURST,
    NOTICES_PER_SECOND, TCP_SECONDS,
};
use firewall_common::fragments::{Piece, Turn};
use firewall_common::packet::{Packet, Protocol};
use firewall_common::verdict::{Decision, Reason, Verdict};

use crate::answers;
use crate::budget::take;
use crate::clock::{SECOND, coarse};
use crate::fragments;
use crate::maps::{FLOWS, PASS_BUDGETS};

/// Nanoseconds of budget that a new flow takes which counts as one. The agent sets the number
/// before loading.
#[unsafe(no_mangle)]
static LOCAL_INTERVAL: Global<u64> = Global::new(50_000_000);

/// As how many flows one counts that conntrack keeps for longer than for 30 seconds without an
/// answer: TCP in mid-stream (300 s, `nf_conntrack_tcp_timeout_unacknowledged`), a TCP connection
/// that begins (60 s, or 120 where nothing answers), other protocols (600 s,
/// `nf_conntrack_generic_timeout`).
const MID_STREAM: u64 = 10;
const OPENING: u64 = 2;
const OTHER: u64 = 20;

/// Nanoseconds of budget that a notice takes.
const NOTICE_INTERVAL: u64 = SECOND / NOTICES_PER_SECOND;

/// What becomes of a packet that is to be handed on. A denied fragment is dropped: if it were
/// handed on to be rejected, it would wait for the rest of its datagram.
#[inline(always)]
pub fn limit(vif: u32, packet: &Packet, decision: Decision) -> Decision {
    let dropped =
        |reason| Decision { verdict: Verdict::Drop, reason, rule: DEFAULT_RULE, ..decision };
    let fragment = packet.fragment;
    let has_room = match decision.verdict {
        Verdict::Drop => return decision,
        Verdict::Reject if !fragment.is_fragment() => return decision,
        Verdict::Reject => return Decision { verdict: Verdict::Drop, ..decision },
        Verdict::Accept if decision.reason != Reason::Local => true,
        Verdict::Audit => true,
        Verdict::Related => notice(vif, coarse()),
        // Later fragments belong to a datagram whose first one was here.
        Verdict::Accept | Verdict::Pass if fragment.is_later() => true,
        Verdict::Accept | Verdict::Pass => match decision.reason {
            // Connection tracking has its flow already, or the gate rejects it.
            Reason::Answer => true,
            Reason::Arp => notice(vif, coarse()),
            _ if packet.is_neighbour_discovery() => notice(vif, coarse()),
            // The netvm opened it: the entry of connection tracking is the netvm's own. Of other
            // protocols nobody knows whether it is the same entry.
            _ if packet.protocol != Protocol::Other && answers::may_be_answer(vif, packet) => true,
            _ => flow(vif, packet, coarse()),
        },
    };
    if !has_room {
        return dropped(Reason::TooMany);
    }
    if !fragment.is_fragment() {
        return decision;
    }
    let piece = Piece {
        destination: packet.destination,
        identification: fragment.identification(),
        protocol: if packet.source.is_mapped() { packet.number.into() } else { 0 },
        start: fragment.start(),
        length: fragment.length(),
        more: fragment.more(),
    };
    match fragments::turn(&piece, decision.client, decision.stamp, decision.until, coarse()) {
        Turn::Next => decision,
        Turn::Stray => dropped(Reason::StrayFragment),
        Turn::TooMany => dropped(Reason::TooManyFragments),
    }
}

/// Takes ARP, neighbour discovery or an ICMP error out of its vif's budget, if there is room.
/// They make connection tracking keep no flow, and no flood of others stops them.
#[inline(always)]
fn notice(vif: u32, now: u64) -> bool {
    let Some(budget) = PASS_BUDGETS.get_ptr_mut(vif & (MAX_BUDGETS as u32 - 1)) else {
        return false;
    };
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    take(unsafe { &mut (*budget).notices }, now, NOTICE_INTERVAL, NOTICES_BURST)
}

/// Takes a packet that can make connection tracking keep a flow out of its vif's budget, if
/// there is room, unless its flow was paid for a short while ago.
#[inline(always)]
fn flow(vif: u32, packet: &Packet, now: u64) -> bool {
    let is_ping = packet.is_echo_request();
    let key = FlowKey {
        vif,
        destination: packet.destination,
        // The code of a ping is one of the things that tell it from others, as in connection
        // tracking (`icmp_pkt_to_tuple`).
        port: if is_ping { packet.port << 8 | packet.source_port } else { packet.port },
        source_port: if is_ping { packet.identifier } else { packet.source_port },
        protocol: u32::from(packet.number) | if packet.source.is_mapped() { 0 } else { 256 },
    };
    // Of other protocols only connection tracking knows what their flows are.
    let (share, seconds) = match packet.protocol {
        Protocol::Tcp if packet.identifier != 0 => (OPENING, TCP_SECONDS),
        Protocol::Tcp => (MID_STREAM, TCP_SECONDS),
        Protocol::Udp => (1, FLOW_SECONDS),
        Protocol::Icmp if is_ping => (1, FLOW_SECONDS),
        Protocol::Icmp | Protocol::Other => (OTHER, 0),
    };
    let has_key = seconds != 0;
    // SAFETY: the value is a word, which is read and written as a whole.
    let paid = if has_key { unsafe { FLOWS.get(&key) } } else { None };
    if paid.is_some_and(|since| now.wrapping_sub(*since) < seconds * SECOND) {
        return true;
    }
    let Some(budget) = PASS_BUDGETS.get_ptr_mut(vif & (MAX_BUDGETS as u32 - 1)) else {
        return false;
    };
    let (interval, burst) = (LOCAL_INTERVAL.load() * share, FLOWS_BURST / share);
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    if !take(unsafe { &mut (*budget).flows }, now, interval, burst) {
        return false;
    }
    if has_key {
        // Without an entry, the next packet pays as well.
        let _ = FLOWS.insert(&key, &now, 0);
    }
    true
}
