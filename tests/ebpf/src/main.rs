//! Traffic for measurements, made and counted inside the kernel so that sender and receiver
//! cost little. For benches, and for tests of the XDP stage.
//! Never part of the agent, and never attached outside a rig.
#![no_std]
#![no_main]
// The macros make public functions beside the documented ones.
#![allow(missing_docs)]

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Bytes of every frame.
const LENGTH: usize = 64;
/// Source ports in use, from the first one on.
const FIRST_PORT: u32 = 1_024;
const PORTS: u32 = 60_000;

/// What every frame looks like, but for one address, one port and the header's checksum,
/// which is that of an address of zeros.
#[unsafe(no_mangle)]
static FRAME: Global<[u32; LENGTH / 4]> = Global::new([0; LENGTH / 4]);
/// Offsets in the frame; of an address its last four bytes. No checksum is at 0.
#[unsafe(no_mangle)]
static ADDRESS_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PORT_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static CHECKSUM_AT: Global<u32> = Global::new(0);
/// How many flows there are before the first comes again.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);
/// Whether flows come at random (1) or in turn (0).
#[unsafe(no_mangle)]
static AT_RANDOM: Global<u32> = Global::new(0);
/// How many of `HOSTS` are in use.
#[unsafe(no_mangle)]
static HOST_COUNT: Global<u32> = Global::new(1);
/// The interface that frames are sent out of; 0: they come in by the one of the test run.
#[unsafe(no_mangle)]
static OUT_OF: Global<u32> = Global::new(0);

/// Addresses (their last four bytes as they are on the wire). User space writes.
#[btf_map]
static HOSTS: Array<u32, 4_096> = Array::new();

/// The program behind `shuffle`. User space writes.
#[btf_map]
static JUDGE: ProgramArray<1> = ProgramArray::new();

/// Number of the next flow. Kernel writes; there is one sender.
#[btf_map]
static NEXT: Array<u32, 1> = Array::new();

/// UDP packets that came to a sink. Kernel adds, user space reads.
#[btf_map]
static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// How far `dawdle` is: 1 in its middle, 2 behind its end. Kernel writes; user space reads, and
/// sets it back.
#[btf_map]
static STAGE: Array<u32, 1> = Array::new();
/// When `dawdle` ends, in nanoseconds since boot; 0 before it has begun. As `STAGE`.
#[btf_map]
static DAWDLE_UNTIL: Array<u64, 1> = Array::new();
/// `dawdle` itself. User space writes.
#[btf_map]
static AGAIN: ProgramArray<1> = ProgramArray::new();

/// How long `dawdle` takes, in nanoseconds, if the kernel has it called again for so long.
const DAWDLES: u64 = 30_000_000;
/// Rounds of one call; the verifier walks through each.
const ROUNDS: u32 = 20_000;

/// Makes the next frame out of the one it is given, which has been anywhere before.
#[xdp]
pub fn source(context: XdpContext) -> u32 {
    frame(&context).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn frame(context: &XdpContext) -> Option<u32> {
    let start = context.data();
    if start + LENGTH > context.data_end() {
        return None;
    }
    let flow = flow()?.checked_rem(FLOWS.load())?;
    let hosts = HOST_COUNT.load();
    let host = *HOSTS.get(flow.checked_rem(hosts)?)?;
    let port = FIRST_PORT + flow.checked_div(hosts)? % PORTS;
    for (index, word) in FRAME.load().iter().enumerate() {
        // SAFETY: inside the frame, whose start is a multiple of four.
        unsafe { ((start + 4 * index) as *mut u32).write(*word) };
    }
    let [high, low] = [host as u16, (host >> 16) as u16];
    put(start, ADDRESS_AT.load(), high);
    put(start, ADDRESS_AT.load() + 2, low);
    put(start, PORT_AT.load(), (port as u16).to_be());
    let checksum = CHECKSUM_AT.load();
    if checksum != 0 {
        // RFC 1624; the order of bytes does not matter to this sum.
        let sum = u32::from(!get(start, checksum)) + u32::from(high) + u32::from(low);
        let sum = (sum & 0xffff) + (sum >> 16);
        put(start, checksum, !((sum & 0xffff) + (sum >> 16)) as u16);
    }
    match OUT_OF.load() {
        0 => Some(XDP_PASS),
        // SAFETY: the helper takes numbers only.
        out_of => Some(unsafe { bpf_redirect(out_of, 0) } as u32),
    }
}

#[inline(always)]
fn flow() -> Option<u32> {
    if AT_RANDOM.load() != 0 {
        // SAFETY: the helper takes nothing and only returns a number.
        return Some(unsafe { bpf_get_prandom_u32() });
    }
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: inside the map's value.
    let next = unsafe { &mut *next };
    *next = next.wrapping_add(1);
    Some(*next)
}

/// Where two bytes of the frame are; the mask tells the verifier what is so anyway.
#[inline(always)]
fn at(start: usize, offset: u32) -> *mut u16 {
    (start + (offset as usize & (LENGTH - 2))) as *mut u16
}

#[inline(always)]
fn put(start: usize, offset: u32, value: u16) {
    // SAFETY: inside the frame, whose start is even, as is the offset.
    unsafe { at(start, offset).write(value) };
}

#[inline(always)]
fn get(start: usize, offset: u32) -> u16 {
    // SAFETY: as in `put`.
    unsafe { at(start, offset).read() }
}

/// Gives a packet another destination, at random, and has the next program judge it: a test
/// run repeats one packet, and what is looked up again and again is always near.
#[classifier]
pub fn shuffle(context: TcContext) -> i32 {
    // SAFETY: the helper takes nothing and only returns a number.
    let random = unsafe { bpf_get_prandom_u32() };
    let host = random.checked_rem(HOST_COUNT.load()).and_then(|index| HOSTS.get(index));
    if let Some(host) = host
        && context.store(ADDRESS_AT.load() as usize, host, 0).is_ok()
    {
        // SAFETY: nothing is left to be done here.
        unsafe { JUDGE.tail_call(&context, 0) };
    }
    TC_ACT_SHOT
}

/// Lets everything pass: a veth takes frames of a test run only with a program on it.
#[xdp]
pub fn pass(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Drops everything, where the driver hands it over.
#[xdp]
pub fn swallow(_: XdpContext) -> u32 {
    XDP_DROP
}

/// Counts what arrives, and ends it. Kernels have things to say to each other as well, but
/// not by UDP.
#[classifier]
pub fn sink(context: TcContext) -> i32 {
    if is_udp(&context)
        && let Some(arrived) = ARRIVED.get_ptr_mut(0)
    {
        // SAFETY: inside the map's value, which belongs to this processor.
        unsafe { *arrived += 1 };
    }
    TC_ACT_SHOT
}

/// Takes its time over a UDP packet, and says how far it is.
#[classifier]
pub fn dawdle(context: TcContext) -> i32 {
    if is_udp(&context)
        && let Some(stage) = STAGE.get_ptr_mut(0)
        && let Some(until) = DAWDLE_UNTIL.get_ptr_mut(0)
    {
        // SAFETY: inside the map's value; there is one packet at a time.
        let until = unsafe { &mut *until };
        if *until == 0 {
            *until = now() + DAWDLES;
        }
        // SAFETY: inside the map's value, one aligned store.
        unsafe { stage.write_volatile(1) };
        if !is_over(*until) {
            // SAFETY: nothing is left to be done here; where it fails, the kernel has had enough.
            unsafe { AGAIN.tail_call(&context, 0) };
        }
        // SAFETY: as above.
        unsafe { stage.write_volatile(2) };
    }
    TC_ACT_OK
}

/// Whether a time has come within some rounds.
#[inline(always)]
fn is_over(until: u64) -> bool {
    (0..ROUNDS).any(|_| now() >= until)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and only returns a number.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn is_udp(context: &TcContext) -> bool {
    let protocol_at = match context.load::<u16>(12) {
        Ok(ethertype) if ethertype == 0x0800_u16.to_be() => 23,
        Ok(ethertype) if ethertype == 0x86dd_u16.to_be() => 20,
        Ok(_) | Err(_) => return false,
    };
    context.load::<u8>(protocol_at) == Ok(17)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
