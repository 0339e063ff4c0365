//! The kernel programs, named by the packet's journey. Parse, decide, report, obey.
//! Never cleverer than that: what is decided, and why, is in firewall-common.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The macros make public functions beside the documented ones.
#![allow(missing_docs)]

mod budget;
mod cache;
mod linear;
mod maps;
mod report;
mod skb;
mod uplink;
mod xdp;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::packet;
use firewall_common::policy;
use firewall_common::verdict::Verdict;

use crate::maps::KernelMaps;
use crate::skb::Skb;
use crate::xdp::Buffer;

/// tcx or clsact ingress of a vif: every packet that a client sends.
#[classifier]
pub fn from_client(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let frame = packet::parse(&skb);
    let decision = policy::decide(&KernelMaps::now(), skb.arrival().interface, &frame);
    let now = budget::time_of(&decision);
    let decision = budget::limit(skb.arrival(), decision, now, true);
    report::report(&context, skb.arrival(), &frame, &decision, now);
    let marked = match decision.verdict {
        Verdict::Accept | Verdict::Audit => true,
        Verdict::Reject | Verdict::Pass => false,
        Verdict::Drop => return TC_ACT_SHOT,
    };
    skb.set_marked(marked);
    TC_ACT_UNSPEC
}

/// Native XDP of a vif, where that is wanted and there is such a thing: drops early what
/// `from_client` would drop, and leaves everything else to it.
#[xdp(frags)]
pub fn from_client_early(context: XdpContext) -> u32 {
    let buffer = Buffer::new(&context);
    let frame = packet::parse(&buffer);
    let decision = policy::decide(&KernelMaps::now(), buffer.arrival().interface, &frame);
    let now = budget::time_of(&decision);
    let decision = budget::limit(buffer.arrival(), decision, now, false);
    if decision.verdict != Verdict::Drop {
        return XDP_PASS;
    }
    report::report(&context, buffer.arrival(), &frame, &decision, now);
    XDP_DROP
}

/// tcx or clsact ingress of every other interface: nobody else has a client's address.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    uplink::check(&context, uplink::End::Source)
}

/// tcx or clsact egress of every other interface: what is for a client, even one that is
/// not there, leaves through its vif or not at all.
#[classifier]
pub fn to_uplink(context: TcContext) -> i32 {
    uplink::check(&context, uplink::End::Destination)
}

/// Does nothing: what `cargo xtask bench prog` subtracts. Never attached.
#[classifier]
pub fn baseline(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
