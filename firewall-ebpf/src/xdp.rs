//! A frame in its driver's buffer as a source of bytes, before the kernel makes an skb of it.
//! Never touches packet data, and never knows what a network card took off the frame: its
//! VLAN tag, and whether it is for another machine.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use firewall_common::packet::Source;

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

    /// What is known of it beside its bytes.
    #[inline(always)]
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }
}

impl Source for Buffer<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let to = (&raw mut bytes).cast();
        // SAFETY: writes `N` bytes, or fails.
        let failed = unsafe { bpf_xdp_load_bytes(self.context.ctx, offset, to, N as u32) };
        (failed == 0).then_some(bytes)
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
}
