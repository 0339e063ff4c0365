//! An skb as a source of bytes, and the mark.
//! Never touches packet data: `bpf_skb_load_bytes` copies, and reads paged data too, so
//! that nothing depends on how much of a packet is linear.

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use firewall_common::packet::Source;

/// The bit of `skb->mark` that the gate looks for. The agent sets it before loading.
#[unsafe(no_mangle)]
static MARK_BIT: Global<u32> = Global::new(1 << 28);

/// `skb->pkt_type` of a frame for another machine (uapi/linux/if_packet.h).
const PACKET_OTHERHOST: u32 = 3;

/// A packet on its way into the kernel.
pub struct Skb<'a> {
    context: &'a TcContext,
}

macro_rules! field {
    ($self:ident.$field:ident) => {{
        let skb: *mut __sk_buff = $self.context.skb.skb;
        // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
        unsafe { (*skb).$field }
    }};
}

impl<'a> Skb<'a> {
    /// Wraps a program's context.
    #[inline(always)]
    pub fn new(context: &'a TcContext) -> Self {
        Self { context }
    }

    /// Interface index of the vif.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        field!(self.ifindex)
    }

    /// How many packets on a wire this one stands for (segmentation offload).
    #[inline(always)]
    pub fn segments(&self) -> u64 {
        match field!(self.gso_segs) {
            0 => 1,
            segments => u64::from(segments),
        }
    }

    /// Sets or clears the mark's bit; the other bits are others'.
    #[inline(always)]
    pub fn set_marked(&self, marked: bool) {
        let bit = MARK_BIT.load();
        let others = field!(self.mark) & !bit;
        self.context.skb.set_mark(if marked { others | bit } else { others });
    }
}

impl Source for Skb<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.context.skb.load(offset as usize).ok()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.skb.len()
    }

    #[inline(always)]
    fn tag_beside(&self) -> bool {
        field!(self.vlan_present) != 0
    }

    #[inline(always)]
    fn other_host(&self) -> bool {
        field!(self.pkt_type) == PACKET_OTHERHOST
    }
}
