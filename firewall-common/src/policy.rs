//! The one evaluator: client, class, segment, verdict. The kernel program runs it on
//! maps; the agent, the proof of a policy and the tests run it on their own tables.
//! Never counts, never reports, never parses.

use crate::abi::{
    ACTION_ACCEPT, Address, Class, Client, ClientKey, Local, NO_CLASS, SETTLING, STATE_BLOCKED,
    STATE_POLICY, STATE_WAITING, Segment, Span,
};
use crate::packet::{Frame, Message, Packet, Protocol, ROUTER_ADVERTISEMENT};
use crate::verdict::{Decision, Reason, Verdict};

/// Most steps of a bisection: a span has at most one segment per port, 65,536 of them.
const MAX_STEPS: u32 = 17;

/// Where clients and policies are kept.
pub trait Tables {
    /// What is in force for a client; `None` if there is no such client.
    fn client(&self, key: &ClientKey) -> Option<Client>;
    /// Whether IPv6 neighbour discovery in which a client speaks for others is dropped.
    fn guards_neighbours(&self) -> bool;
    /// Whom an address stands for; `None` if the kernel does not take it for the netvm's own.
    fn local(&self, address: &Address) -> Option<Local>;
    /// Index of the class of the longest prefix, in a policy, that covers an address; `None` if no
    /// prefix does.
    fn class_of(&self, policy: u32, address: &Address) -> Option<u32>;
    /// The class with this index; `None` if there is none.
    fn class(&self, index: u32) -> Option<Class>;
    /// The segment with this index; `None` if there is none.
    fn segment(&self, index: u32) -> Option<Segment>;
    /// Whether others' rules in the gate are asked about what comes from clients without rules.
    fn asks_others(&self) -> bool {
        false
    }
    /// Whether rules judge all that a client sends, on the destination that it wrote: what the
    /// kernel takes for the netvm's own as well, and what is for many. Only neighbour discovery with
    /// the netvm needs no rule.
    fn judges_all(&self) -> bool {
        false
    }
    /// Whole seconds since the machine booted.
    fn seconds(&self) -> u64;
    /// What [`answer`] said about a packet like this one, if that is kept and would be the
    /// same now. The client's policy is in force, and the packet is no later fragment.
    fn recall(&self, client: &Client, packet: &Packet) -> Option<Segment> {
        let _ = (client, packet);
        None
    }
    /// Keeps an answer about a packet that rules judge: of those that are multicast, or for the netvm
    /// itself, only where rules judge all.
    fn keep(&self, client: &Client, packet: &Packet, answer: &Segment) {
        let _ = (client, packet, answer);
    }
}

/// Decides about a frame that came in by `vif`, an interface index.
#[inline(always)]
pub fn decide(tables: &impl Tables, vif: u32, frame: &Result<Frame, Reason>) -> Decision {
    let packet = match frame {
        Err(reason) => return Decision::stray(Verdict::Drop, *reason),
        Ok(Frame::Arp { sender }) => return decide_arp(tables, vif, *sender),
        Ok(Frame::Ip(packet)) => packet,
    };
    let key = ClientKey { vif, address: packet.source };
    let Some(client) = tables.client(&key) else {
        let is_link_local = packet.source.is_link_local();
        let reason = if is_link_local { Reason::LinkLocal } else { Reason::UnknownSource };
        // Nobody is asked, and nobody gets an error: what has a stranger's address could be taken for
        // the answer to somebody else, and the error would go to the stranger.
        return Decision::stray(Verdict::Drop, reason);
    };
    if let Some(decision) = decide_message(&client, packet) {
        return decision;
    }
    let is_judged = client.state & !SETTLING == STATE_POLICY && !packet.fragment.is_later();
    // Where a policy has one class, the class is found as soon as an answer that was kept.
    let is_kept = is_judged && client.only_class == 0;
    if is_kept && let Some(answer) = tables.recall(&client, packet) {
        return judged(tables, &client, &answer);
    }
    let local = match packet.destination.is_multicast() {
        true => Some(Local::Many),
        false => tables.local(&packet.destination),
    };
    if let Some(local) = local
        && (!tables.judges_all() || packet.is_neighbour_discovery())
    {
        if packet.protocol == Protocol::Tcp && local == Local::Many {
            // Nobody answers TCP to many (RFC 9293, section 3.9.2.3), and connection tracking keeps
            // a flow of it ten times as long as others.
            return Decision::stray(Verdict::Drop, Reason::Malformed);
        }
        if tables.guards_neighbours() && speaks_for_others(packet) {
            return Decision::on(&client, Verdict::Drop, Reason::ForeignNeighbour);
        }
        return Decision::on(&client, Verdict::Pass, Reason::Local);
    }
    match client.state & !SETTLING {
        STATE_POLICY => {}
        STATE_WAITING if tables.asks_others() => {
            return Decision::on(&client, Verdict::Reject, Reason::Waiting);
        }
        STATE_WAITING => return Decision::on(&client, Verdict::Drop, Reason::Waiting),
        STATE_BLOCKED => return Decision::on(&client, Verdict::Reject, Reason::Blocked),
        _ => return Decision::on(&client, Verdict::Drop, Reason::Inconsistent),
    }
    if packet.fragment.is_later() {
        return Decision::on(&client, Verdict::Pass, Reason::Fragment);
    }
    let answer = match client.only_class.checked_sub(1) {
        Some(class) => answer_of(tables, class, packet),
        None => answer(tables, client.policy, packet),
    };
    let Some(answer) = answer else {
        return Decision::on(&client, Verdict::Drop, Reason::Inconsistent);
    };
    if is_kept {
        tables.keep(&client, packet, &answer);
    }
    judged(tables, &client, &answer)
}

/// What was decided, where network address translation may take a packet elsewhere that is for the
/// netvm alone: if rules accept the packet as it was sent, the gate forwards it then. Where rules judge
/// all, the gate lets in what has a permit and nothing else: what needs no rule has one.
#[inline(always)]
pub fn translated(tables: &impl Tables, vif: u32, packet: &Packet, decision: Decision) -> Decision {
    let is_local = decision.verdict == Verdict::Pass && decision.reason == Reason::Local;
    if is_local && tables.judges_all() {
        return Decision { verdict: Verdict::Accept, ..decision };
    }
    if !is_local || packet.fragment.is_later() || packet.destination.is_multicast() {
        return decision;
    }
    let is_for_netvm = tables.local(&packet.destination) == Some(Local::One);
    let client = tables.client(&ClientKey { vif, address: packet.source });
    let Some(client) = client.filter(|it| is_for_netvm && it.state & !SETTLING == STATE_POLICY)
    else {
        return decision;
    };
    match answer(tables, client.policy, packet) {
        Some(answer) if answer.action == ACTION_ACCEPT => {
            Decision { verdict: Verdict::Accept, ..decision }
        }
        _ => decision,
    }
}

/// All that is decided about a packet, but for what only the kernel program knows: budgets, and
/// which packets answer.
pub fn judge(tables: &impl Tables, vif: u32, frame: &Result<Frame, Reason>) -> Decision {
    let decision = decide(tables, vif, frame);
    match frame {
        Ok(Frame::Ip(packet)) => translated(tables, vif, packet, decision),
        Ok(Frame::Arp { .. }) | Err(_) => decision,
    }
}

/// The verdict that comes of a policy's answer.
#[inline(always)]
fn judged(tables: &impl Tables, client: &Client, answer: &Segment) -> Decision {
    let decision = Decision::of_policy(client, answer);
    if answer.action != ACTION_ACCEPT && is_audited(tables, client) {
        return decision.audited(client.audit_until);
    }
    decision
}

/// What becomes of a packet that goes the other way of a connection towards its client.
#[inline(always)]
pub fn answer_from(tables: &impl Tables, vif: u32, packet: &Packet) -> Decision {
    match tables.client(&ClientKey { vif, address: packet.source }) {
        Some(client) => Decision::on(&client, Verdict::Pass, Reason::Answer),
        None => Decision::stray(Verdict::Drop, Reason::UnknownSource),
    }
}

/// Whether what a client's policy denies passes for now.
#[inline(always)]
fn is_audited(tables: &impl Tables, client: &Client) -> bool {
    client.audit_until != 0 && tables.seconds() < u64::from(client.audit_until)
}

/// ICMP that is judged by what it tells, whatever rules say of its type. An error passes if the
/// packet that met it was sent to the one that complains; the rest connection tracking knows. A
/// redirect never passes: whoever sends one speaks for a router, and a client is none on the way
/// of anybody else.
#[inline(always)]
fn decide_message(client: &Client, packet: &Packet) -> Option<Decision> {
    let (verdict, reason) = match packet.message {
        Message::Plain | Message::ForeignAdvertisement => return None,
        Message::Redirect => (Verdict::Drop, Reason::Redirect),
        Message::ForeignError => (Verdict::Drop, Reason::ForeignError),
        Message::Error if client.state & !SETTLING == STATE_WAITING => {
            (Verdict::Drop, Reason::Waiting)
        }
        // The connection may be one of those that end.
        Message::Error if client.state & SETTLING != 0 => (Verdict::Drop, Reason::Settling),
        Message::Error => (Verdict::Related, Reason::IcmpError),
    };
    Some(Decision::on(client, verdict, reason))
}

/// ARP is the kernel's. A client speaks for its own addresses only, since each sender takes an
/// entry of the neighbour table, which all interfaces share; the sender of a probe is not known
/// yet (RFC 5227).
#[inline(always)]
fn decide_arp(tables: &impl Tables, vif: u32, sender: Address) -> Decision {
    let is_own = || tables.client(&ClientKey { vif, address: sender }).is_some();
    if !sender.is_unspecified() && !is_own() {
        return Decision::stray(Verdict::Drop, Reason::ForeignNeighbour);
    }
    Decision::stray(Verdict::Pass, Reason::Arp)
}

/// Whether a packet tells where to send what is not for this client.
#[inline(always)]
fn speaks_for_others(packet: &Packet) -> bool {
    packet.message == Message::ForeignAdvertisement
        || packet.is_neighbour_discovery() && packet.port == ROUTER_ADVERTISEMENT
}

/// The segment of a policy that answers for a packet; `None` if the tables contradict themselves.
#[inline(always)]
pub fn answer(tables: &impl Tables, policy: u32, packet: &Packet) -> Option<Segment> {
    answer_of(tables, tables.class_of(policy, &packet.destination)?, packet)
}

/// The segment that answers for a packet, of one class and the wider class behind it: the one with
/// the lower rule, which is the first match.
#[inline(always)]
fn answer_of(tables: &impl Tables, class: u32, packet: &Packet) -> Option<Segment> {
    let class = tables.class(class)?;
    let narrow = segment_for(tables, &class, packet)?;
    if class.wider == NO_CLASS {
        return Some(narrow);
    }
    let class = tables.class(class.wider)?;
    let wide = segment_for(tables, &class, packet)?;
    if wide.rule < narrow.rule {
        return Some(wide);
    }
    Some(narrow)
}

#[inline(always)]
fn segment_for(tables: &impl Tables, class: &Class, packet: &Packet) -> Option<Segment> {
    let span = match packet.protocol {
        Protocol::Tcp => class.tcp,
        Protocol::Udp => class.udp,
        Protocol::Icmp => class.icmp,
        Protocol::Other => class.other,
    };
    bisect(tables, span, packet.port)
}

/// The last segment of a span that starts at or below `port`. The first one starts at 0.
#[inline(always)]
fn bisect(tables: &impl Tables, span: Span, port: u16) -> Option<Segment> {
    let Span { mut start, mut length } = span;
    for _ in 0..MAX_STEPS {
        if length <= 1 {
            break;
        }
        let half = length / 2;
        let middle = start.wrapping_add(half);
        if tables.segment(middle)?.start <= port {
            start = middle;
        }
        length -= half;
    }
    tables.segment(start)
}
