//! The kernel programs, named by the packet's journey. Parse, decide, report, obey.
//! Never cleverer than that: what is decided, and why, is in firewall-common.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The macros make public functions beside the documented ones.
#![allow(missing_docs)]

mod answers;
mod budget;
mod cache;
mod clock;
mod forget;
mod fragments;
mod handed_on;
mod linear;
mod maps;
mod reading;
mod report;
mod skb;
mod tables;
mod uplink;
mod xdp;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use firewall_common::packet::{self, Frame};
use firewall_common::policy;
use firewall_common::verdict::{Reason, Verdict};

use crate::reading::Reading;
use crate::skb::Skb;
use crate::tables::KernelMaps;
use crate::xdp::Buffer;

/// Not a verdict: the packet is one that [`rare`] judges.
const RARE: i32 = i32::MAX;
/// Not a verdict: the packet is one that [`answer`] hands on.
const ANSWER: i32 = i32::MAX - 1;

/// tcx or clsact ingress of a vif: every packet that a client sends.
///
/// Two functions of which the stack has one at a time: what nearly all packets need in one, and
/// in the other what any packet may need.
#[classifier]
pub fn from_client(context: TcContext) -> i32 {
    match common(context.skb.skb) {
        RARE => rare(context.skb.skb),
        ANSWER => answer(context.skb.skb),
        action => action,
    }
}

/// Judges a plain packet that is not for the netvm itself.
#[inline(never)]
fn common(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    let skb = Skb::<true>::new(&context);
    let Some(packet) = packet::parse_plain(&skb) else {
        return RARE;
    };
    let frame = Ok(Frame::Ip(packet));
    let tables = KernelMaps::<true>::now();
    let vif = skb.arrival().interface;
    let decision = policy::decide(&tables, vif, &frame);
    if decision.verdict == Verdict::Pass {
        return RARE;
    }
    if decision.is_denial() && answers::takes_answer(vif, &packet, decision.client) {
        return ANSWER;
    }
    let now = budget::time_of(&decision);
    let decision = report::over_budget(skb.arrival(), budget::limit(decision, now));
    report::report(skb.arrival(), &frame, &decision, now);
    skb.obey(&decision)
}

/// Hands on a plain packet that was denied and goes the other way of a connection towards the
/// client.
#[inline(never)]
fn answer(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    let skb = Skb::<true>::new(&context);
    let Some(packet) = packet::parse_plain(&skb) else {
        return TC_ACT_SHOT;
    };
    let decision =
        policy::answer_from(&KernelMaps::<true>::now(), skb.arrival().interface, &packet);
    report::report(skb.arrival(), &Ok(Frame::Ip(packet)), &decision, budget::time_of(&decision));
    skb.obey(&decision)
}

/// Judges any packet. What follows reading is in functions that know a packet only by its
/// [`Reading`]; see there.
#[inline(never)]
fn rare(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    let mut reading = read(skb);
    let to = &raw mut reading;
    // SAFETY: the value lives as long as the calls.
    unsafe { decide(to) };
    // SAFETY: as above.
    unsafe { translate(to) };
    // SAFETY: as above.
    unsafe { share(to) };
    // SAFETY: as above.
    unsafe { tell(to) };
    Skb::<false>::new(&context).obey(&reading.decision())
}

/// Reads a packet.
#[inline(never)]
fn read(skb: *mut __sk_buff) -> Reading {
    let context = TcContext::new(skb);
    let is_own = crate::skb::own(&context);
    let skb = Skb::<false>::new(&context);
    let frame = if is_own { packet::parse(&skb) } else { Err(Reason::Truncated) };
    Reading::new(skb.arrival(), &frame)
}

/// Decides about a packet that was read.
///
/// # Safety
///
/// `reading` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn decide(reading: *mut Reading) -> i32 {
    // SAFETY: the caller's promise.
    let Some(reading) = (unsafe { reading.as_mut() }) else {
        return 0;
    };
    let arrival = reading.arrival();
    let vif = arrival.interface;
    let tables = KernelMaps::<false>::now();
    let decision = policy::decide(&tables, vif, &reading.frame());
    let decision = match decision.is_denial() {
        true if answers::takes_answer(vif, &reading.packet(), decision.client) => {
            decision.answering()
        }
        _ => decision,
    };
    let now = budget::time_of(&decision);
    reading.decide(&report::over_budget(&arrival, budget::limit(decision, now)));
    0
}

/// Decides about a packet for the netvm itself, should it be led elsewhere.
///
/// # Safety
///
/// `reading` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn translate(reading: *mut Reading) -> i32 {
    // SAFETY: the caller's promise.
    let Some(reading) = (unsafe { reading.as_mut() }) else {
        return 0;
    };
    let vif = reading.arrival().interface;
    let tables = KernelMaps::<false>::now();
    let decision = policy::translated(&tables, vif, &reading.packet(), reading.decision());
    reading.decide(&decision);
    0
}

/// Drops what is more than its share.
///
/// # Safety
///
/// `reading` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn share(reading: *mut Reading) -> i32 {
    // SAFETY: the caller's promise.
    let Some(reading) = (unsafe { reading.as_mut() }) else {
        return 0;
    };
    let vif = reading.arrival().interface;
    let decision = handed_on::limit(vif, &reading.packet(), reading.decision());
    reading.decide(&decision);
    0
}

/// Counts what was decided, and reports it.
///
/// # Safety
///
/// `reading` points to a value, or is null.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn tell(reading: *const Reading) -> i32 {
    // SAFETY: the caller's promise.
    let Some(reading) = (unsafe { reading.as_ref() }) else {
        return 0;
    };
    let decision = reading.decision();
    let now = budget::time_of(&decision);
    report::report(&reading.arrival(), &Ok(Frame::Ip(reading.packet())), &decision, now);
    0
}

/// Native XDP of a vif, where that is wanted and there is such a thing: drops early the plain
/// packets that `from_client` would drop, and leaves everything else to it.
#[xdp(frags)]
pub fn from_client_early(context: XdpContext) -> u32 {
    let buffer = Buffer::new(&context);
    let Some(packet) = packet::parse_plain(&buffer) else {
        return XDP_PASS;
    };
    let frame = Ok(Frame::Ip(packet));
    let tables = KernelMaps::<false>::now();
    let vif = buffer.arrival().interface;
    let decision = policy::decide(&tables, vif, &frame);
    let now = budget::time_of(&decision);
    let limited = budget::look(decision, now);
    if limited.decision.verdict != Verdict::Drop {
        return XDP_PASS;
    }
    if limited.decision.is_denial() && answers::may_be_answer(vif, &packet) {
        return XDP_PASS;
    }
    let decision = report::over_budget(buffer.arrival(), limited);
    report::report(buffer.arrival(), &frame, &decision, now);
    XDP_DROP
}

/// tcx or clsact egress of a vif: notes connections that are opened towards its clients, and counts
/// what other clients send there.
#[classifier]
pub fn to_client(context: TcContext) -> i32 {
    answers::note(&context);
    answers::give_back(&context);
    uplink::count_leaving(&context, skb::stamp_of(&context));
    TC_ACT_UNSPEC
}

/// tcx or clsact ingress of every other interface: nobody else has a client's address.
#[classifier]
pub fn from_uplink(context: TcContext) -> i32 {
    uplink::check(&context, uplink::End::Source)
}

/// tcx or clsact egress of every other interface: what is for a client, even one that is
/// not there, leaves through its vif or not at all, and what a client sent leaves while that
/// which accepted it is in force.
#[classifier]
pub fn to_uplink(context: TcContext) -> i32 {
    answers::give_back(&context);
    match uplink::check_stamp(&context) {
        TC_ACT_SHOT => TC_ACT_SHOT,
        _ => uplink::check(&context, uplink::End::Destination),
    }
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
