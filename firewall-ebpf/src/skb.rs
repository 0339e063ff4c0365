//! An skb as a source of bytes, and the mark.
//! Never touches packet data: `bpf_skb_load_bytes` copies, and reads paged data too, so
//! that nothing depends on how much of a packet is linear.

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use firewall_common::packet::Source;

use crate::linear;
use crate::report::Arrival;

/// The bit of `skb->mark` that the gate looks for. The agent sets it before loading.
#[unsafe(no_mangle)]
static MARK_BIT: Global<u32> = Global::new(1 << 28);

/// `skb->pkt_type` of a frame for another machine (uapi/linux/if_packet.h).
const PACKET_OTHERHOST: u32 = 3;

/// A packet on its way into the kernel.
///
/// Each field of the context is read once, at the beginning: the verifier wants a constant
/// offset in every access, and the compiler would share the address of two of them.
pub struct Skb<'a> {
    context: &'a TcContext,
    arrival: Arrival,
    tag_beside: bool,
    other_host: bool,
}

impl<'a> Skb<'a> {
    /// Reads the context of a program.
    #[inline(always)]
    pub fn new(context: &'a TcContext) -> Self {
        // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
        let skb: &__sk_buff = unsafe { &*context.skb.skb };
        Self {
            context,
            arrival: Arrival { interface: skb.ifindex, length: skb.len, segments: skb.gso_segs },
            tag_beside: skb.vlan_present != 0,
            other_host: skb.pkt_type == PACKET_OTHERHOST,
        }
    }

    /// What is known of it beside its bytes.
    #[inline(always)]
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// Sets or clears the mark's bit; the other bits are others'.
    #[inline(always)]
    pub fn set_marked(&self, marked: bool) {
        let bit = MARK_BIT.load();
        // SAFETY: as in `new`.
        let others = unsafe { (*self.context.skb.skb).mark } & !bit;
        self.context.skb.set_mark(if marked { others | bit } else { others });
    }
}

impl Source for Skb<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.context.skb.load(offset as usize).ok()
    }

    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        linear::read(self.context.data(), self.context.data_end(), offset)
            .or_else(|| self.bytes(offset))
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
    fn other_host(&self) -> bool {
        self.other_host
    }
}
