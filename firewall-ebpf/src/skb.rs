//! An skb as a source of bytes; the permit, and the stamp that goes with it. The stamp is in
//! `skb->tc_index`, of 16 bits, which the kernel keeps with a packet through defragmentation,
//! forwarding, segmentation and queues. Before a packet's egress, only filters of
//! clsact that classify write to it (`tc_run` in net/core/dev.c); ours do not.
//! Never changes packet data but the hardware address that the permit is in, and never reads data
//! that the sender may still change: those are in pages beside the linear part, which is the
//! kernel's own.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use firewall_common::abi::{PERMIT, PERMIT_RELATED, STAMPED};
use firewall_common::answers::ANSWERING;
use firewall_common::packet::{Head, Receiver, Source};
use firewall_common::verdict::{Decision, Reason, Verdict};

use crate::forget::forget;
use crate::linear;
use crate::report::{self, Arrival};
use crate::tables;

/// `skb->pkt_type` of a frame for this machine, and for another one (uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// What of a frame is read at the most, in bytes: more than the headers of an honest one, and an
/// ICMP error with all that it may quote.
const OWN: u32 = 2048;

/// Copies the beginning of a frame into its linear part, where it is not there yet. What is in
/// pages may still be the sender's: a file that is sent, or memory that a driver shares with a
/// client. The kernel would read it again, for connection tracking, gate and NAT, after the sender
/// had changed it. `false` if there is no memory for the copy.
#[inline(always)]
pub fn own(context: &TcContext) -> bool {
    // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
    let length = unsafe { (*context.skb.skb).len };
    context.pull_data(if length < OWN { length } else { OWN }).is_ok()
}

/// A packet on its way into the kernel. Of a linear one, only what needs no call is read.
///
/// Each field of the context is read once, at the beginning: the verifier wants a constant
/// offset in every access, and the compiler would share the address of two of them.
pub struct Skb<'a, const LINEAR: bool> {
    context: &'a TcContext,
    arrival: Arrival,
    tag_beside: bool,
    receiver: Receiver,
}

impl<'a, const LINEAR: bool> Skb<'a, LINEAR> {
    /// Reads the context of a program.
    #[inline(always)]
    pub fn new(context: &'a TcContext) -> Self {
        // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
        let skb: &__sk_buff = unsafe { &*context.skb.skb };
        Self {
            context,
            arrival: Arrival { interface: skb.ifindex, length: skb.len, segments: skb.gso_segs },
            tag_beside: skb.vlan_present != 0,
            receiver: match skb.pkt_type {
                PACKET_HOST => Receiver::Netvm,
                PACKET_OTHERHOST => Receiver::Other,
                _ => Receiver::Many,
            },
        }
    }

    /// What is known of the frame beside its bytes.
    #[inline(always)]
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// Does what was decided, and returns what tc is to do.
    #[inline(always)]
    pub fn obey(&self, decision: &Decision) -> i32 {
        match decision.verdict {
            Verdict::Accept | Verdict::Audit => {
                // What is for the netvm itself is not to leave.
                if decision.reason != Reason::Local {
                    report::count_permit();
                }
                self.permit(PERMIT, decision.stamp);
            }
            Verdict::Related => self.permit(PERMIT_RELATED, decision.stamp),
            Verdict::Reject if tables::judges_all() => return self.leave_to_nobody(),
            Verdict::Pass if decision.reason == Reason::Answer => {
                self.deny(ANSWERING | decision.client);
            }
            Verdict::Reject | Verdict::Pass => self.deny(0),
            Verdict::Drop => return TC_ACT_SHOT,
        }
        TC_ACT_UNSPEC
    }

    /// Makes a frame one for another machine: whoever answers at the vif can see it, and the kernel
    /// takes it no further (`ip_rcv_core` in net/ipv4/ip_input.c, `ip6_rcv_core`), whatever becomes of
    /// tables of nftables. Where a packet could be for the netvm itself, a missing permit does not
    /// keep it from there.
    #[inline(always)]
    fn leave_to_nobody(&self) -> i32 {
        self.stamp(0);
        match self.context.change_type(PACKET_OTHERHOST) {
            Ok(()) => TC_ACT_UNSPEC,
            Err(_) => TC_ACT_SHOT,
        }
    }

    /// Writes the stamp and the permit. Without a permit, the gate rejects.
    #[inline(always)]
    fn permit(&self, permit: [u8; PERMIT.len()], stamp: u32) {
        self.stamp(STAMPED | stamp);
        self.address_to(permit);
    }

    /// Writes what stands in place of a stamp, and takes away a permit that the packet came with: its
    /// vif has that hardware address, which an administrator gave it.
    #[inline(always)]
    fn deny(&self, stamp: u32) {
        self.stamp(stamp);
        let beginning = self.head(0).map_or(0, u32::from_be_bytes);
        // The two differ in their last bit.
        if beginning | 1 == u32::from_be_bytes(PERMIT_RELATED) {
            self.address_to([0; PERMIT.len()]);
        }
    }

    #[inline(always)]
    fn stamp(&self, stamp: u32) {
        // SAFETY: as in `new`.
        unsafe { (*self.context.skb.skb).tc_index = stamp };
    }

    /// Writes the beginning of the hardware address that the frame is for. The kernel has looked
    /// at it, and looks no more: what is forwarded gets another one.
    #[inline(always)]
    fn address_to(&self, bytes: [u8; PERMIT.len()]) {
        if LINEAR {
            linear::write(self.context.data(), self.context.data_end(), bytes);
        } else {
            let _ = self.context.store(0, &bytes, 0);
        }
    }
}

/// The stamp of a packet; 0 of one without.
#[inline(always)]
pub fn stamp_of(context: &TcContext) -> u32 {
    // SAFETY: as in `Skb::new`.
    match unsafe { (*context.skb.skb).tc_index } {
        stamp if stamp & STAMPED != 0 => stamp & !STAMPED,
        _ => 0,
    }
}

impl<const LINEAR: bool> Head for Skb<'_, LINEAR> {
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if LINEAR {
            linear::read(self.context.data(), self.context.data_end(), offset)
        } else {
            self.context.skb.load(offset as usize).ok()
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.arrival.length
    }

    #[inline(always)]
    fn tag_beside(&self) -> bool {
        self.tag_beside
    }

    #[inline(always)]
    fn receiver(&self) -> Receiver {
        self.receiver
    }
}

impl Source for Skb<'_, false> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // Behind that, data may be the sender's.
        if offset > OWN - N as u32 {
            return None;
        }
        self.context.skb.load(offset as usize).ok()
    }

    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        forget(number)
    }
}
