//! What was read of a frame and decided about it, as one global function hands it to another.
//! Never decides.
//!
//! The verifier goes through a global function once, knowing nothing of what its arguments point
//! to, and not again for each way through the parser. None of them gets the packet itself: a
//! kernel without type information of its own (BTF), as Qubes' is, takes no context there
//! (`btf_get_prog_ctx_type` in kernel/bpf/btf.c).

use firewall_common::abi::Address;
use firewall_common::packet::{Fragment, Frame, Message, Packet, Protocol};
use firewall_common::verdict::{Decision, Reason, Verdict};
use zerocopy::IntoBytes;

use crate::report::Arrival;

/// A frame and a decision, without a byte that nobody wrote (`IntoBytes`).
#[repr(C)]
#[derive(Clone, Copy, IntoBytes)]
pub struct Reading {
    interface: u32,
    length: u32,
    segments: u32,
    kind: u32,
    reason: u32,
    source: Address,
    destination: Address,
    identification: u32,
    place: u32,
    protocol: u32,
    number: u32,
    port: u32,
    source_port: u32,
    identifier: u32,
    message: u32,
    verdict: u32,
    why: u32,
    rule: u32,
    generation: u32,
    counters: u32,
    client: u32,
    stamp: u32,
    until: u32,
}

const PACKET: u32 = 0;
const ARP: u32 = 1;
const ERROR: u32 = 2;

impl Reading {
    /// What was read of a frame with this arrival. Until somebody decides, the frame is dropped.
    #[inline(always)]
    pub fn new(arrival: &Arrival, frame: &Result<Frame, Reason>) -> Self {
        // Each field by its name: of one value that is all zeros, the verifier walks 3 % more.
        let nothing = Self {
            interface: arrival.interface,
            length: arrival.length,
            segments: arrival.segments,
            kind: ERROR,
            reason: Reason::Inconsistent as u32,
            source: Address::NONE,
            destination: Address::NONE,
            identification: 0,
            place: 0,
            protocol: 0,
            number: 0,
            port: 0,
            source_port: 0,
            identifier: 0,
            message: 0,
            verdict: Verdict::Drop as u32,
            why: Reason::Inconsistent as u32,
            rule: 0,
            generation: 0,
            counters: 0,
            client: 0,
            stamp: 0,
            until: 0,
        };
        match frame {
            Err(reason) => Self { reason: *reason as u32, ..nothing },
            Ok(Frame::Arp { sender }) => Self { kind: ARP, destination: *sender, ..nothing },
            Ok(Frame::Ip(packet)) => Self {
                kind: PACKET,
                source: packet.source,
                destination: packet.destination,
                identification: packet.fragment.identification(),
                place: packet.fragment.to_bits() as u32,
                protocol: packet.protocol as u32,
                number: packet.number.into(),
                port: packet.port.into(),
                source_port: packet.source_port.into(),
                identifier: packet.identifier.into(),
                message: packet.message as u32,
                ..nothing
            },
        }
    }

    /// What is known of the frame beside its bytes.
    #[inline(always)]
    pub fn arrival(&self) -> Arrival {
        let Self { interface, length, segments, .. } = *self;
        Arrival { interface, length, segments }
    }

    /// The frame as it was read.
    #[inline(always)]
    pub fn frame(&self) -> Result<Frame, Reason> {
        match self.kind {
            PACKET => Ok(Frame::Ip(self.packet())),
            ARP => Ok(Frame::Arp { sender: self.destination }),
            _ => Err(Reason::from_index(self.reason as u8).unwrap_or(Reason::Inconsistent)),
        }
    }

    /// Writes down what was decided.
    #[inline(always)]
    pub fn decide(&mut self, decision: &Decision) {
        self.verdict = decision.verdict as u32;
        self.why = decision.reason as u32;
        self.rule = decision.rule;
        self.generation = decision.generation;
        self.counters = decision.counters;
        self.client = decision.client;
        self.stamp = decision.stamp;
        self.until = decision.until;
    }

    /// What was decided.
    #[inline(always)]
    pub fn decision(&self) -> Decision {
        let Self { rule, generation, counters, client, stamp, until, .. } = *self;
        let verdict = Verdict::from_index(self.verdict as u8).unwrap_or(Verdict::Drop);
        let reason = Reason::from_index(self.why as u8).unwrap_or(Reason::Inconsistent);
        Decision { verdict, reason, rule, generation, counters, client, stamp, until }
    }

    /// The packet. Of ARP, one without a source, whose destination is the sender's address; of a
    /// frame that was not understood, one without addresses.
    #[inline(always)]
    pub fn packet(&self) -> Packet {
        Packet {
            source: self.source,
            destination: self.destination,
            protocol: match self.protocol {
                0 => Protocol::Tcp,
                1 => Protocol::Udp,
                2 => Protocol::Icmp,
                _ => Protocol::Other,
            },
            number: self.number as u8,
            port: self.port as u16,
            source_port: self.source_port as u16,
            identifier: self.identifier as u16,
            fragment: Fragment::from_bits(
                u64::from(self.identification) << 32 | u64::from(self.place),
            ),
            message: match self.message {
                0 => Message::Plain,
                1 => Message::Error,
                2 => Message::ForeignError,
                3 => Message::Redirect,
                _ => Message::ForeignAdvertisement,
            },
        }
    }
}

const _: () = assert!(
    Protocol::Icmp as u32 == 2 && Message::Redirect as u32 == 3,
    "numbers that `packet` takes for others",
);
