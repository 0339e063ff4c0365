//! The beginning of a frame in its driver's buffer, before the kernel makes an skb of it.
//! Never touches packet data, and never knows what a network card took off the frame: its
//! VLAN tag, and whether it is for another machine.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use firewall_common::packet::Head;

use crate::linear;
use crate::report::Arrival;

/// A frame on its way into the kernel.
pub struct Buffer<'a> {
    context: &'a XdpContext,
    arrival: Arrival,
}

impl<'a> Buffer<'a> {
    /// Reads the context of a program.
    #[inline(always)]
    pub fn new(context: &'a XdpContext) -> Self {
        // SAFETY: the kernel passes a valid context; it checks and rewrites each access.
        let buffer: &xdp_md = unsafe { &*context.ctx };
        let interface = buffer.ingress_ifindex;
        // SAFETY: as above; the helper only returns a number. Not all of the frame need be
        // between `data` and `data_end`.
        let length = unsafe { bpf_xdp_get_buff_len(context.ctx) } as u32;
        Self { context, arrival: Arrival { interface, length, segments: 1 } }
    }

    /// What is known of the frame beside its bytes.
    #[inline(always)]
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }
}

impl Head for Buffer<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        linear::read(self.context.data(), self.context.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.arrival.length
    }
}
