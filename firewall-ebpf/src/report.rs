//! Counts every verdict; reports what was denied or would have been, a few times a second.
//! Never changes a verdict.

use core::arch::asm;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::error;
use firewall_common::abi::{Address, DropRecord, RECORDS_PER_SECOND};
use firewall_common::packet::{Packet, Source as _};
use firewall_common::verdict::{Decision, Reason, Verdict, reason_counter};

use crate::maps::{COUNTERS, RECORD_BUDGETS, RECORDS, SECOND};
use crate::skb::Skb;

/// Counts one verdict, and sends a drop record where there is something to tell.
#[inline(always)]
pub fn report(context: &TcContext, skb: &Skb<'_>, packet: Option<&Packet>, decision: &Decision) {
    count(skb, decision);
    match decision.verdict {
        Verdict::Accept | Verdict::Pass => {}
        Verdict::Drop if decision.reason == Reason::LinkLocal => {}
        Verdict::Reject | Verdict::Drop => record(skb, packet, decision),
        Verdict::Audit => {
            count_too(skb, decision, Reason::Audit);
            record(skb, packet, decision);
        }
    }
    if decision.reason == Reason::Inconsistent {
        error!(context, "tables contradict themselves, generation {}", decision.generation);
    }
}

/// Counts a packet a second time, for a reason that is not what its rule says.
#[inline(always)]
pub fn count_too(skb: &Skb<'_>, decision: &Decision, reason: Reason) {
    add_to(reason_counter(decision.counters, reason), skb);
}

#[inline(always)]
fn count(skb: &Skb<'_>, decision: &Decision) {
    add_to(decision.counter(), skb);
}

#[inline(always)]
fn add_to(index: u32, skb: &Skb<'_>) {
    let Some(counter) = COUNTERS.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: inside the map's value, aligned to 8 bytes.
    unsafe { add(&raw mut (*counter).packets, skb.segments()) };
    // SAFETY: as above.
    unsafe { add(&raw mut (*counter).bytes, u64::from(skb.length())) };
}

/// Adds to a word that other processors add to at the same time. The core library has no
/// such operation for BPF, though every version of the instruction set does.
///
/// # Safety
///
/// `word` points to 8 aligned bytes that stay where they are.
#[inline(always)]
unsafe fn add(word: *mut u64, value: u64) {
    // SAFETY: the instruction touches nothing but the word.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
}

#[inline(always)]
fn record(skb: &Skb<'_>, packet: Option<&Packet>, decision: &Decision) {
    // SAFETY: the helper takes nothing and only returns a number.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(suppressed) = take_budget(skb.interface(), time) else {
        return;
    };
    let Some(mut entry) = RECORDS.reserve(0) else {
        return;
    };
    let (source, destination, source_port, destination_port, protocol) = match packet {
        Some(it) => (it.source, it.destination, it.source_port, it.port, it.number),
        None => (Address { words: [0; 4] }, Address { words: [0; 4] }, 0, 0, 0),
    };
    entry.write(DropRecord {
        time,
        vif: skb.interface(),
        generation: decision.generation,
        rule: decision.rule,
        length: skb.length(),
        suppressed,
        source_port,
        destination_port,
        source,
        destination,
        reason: decision.reason.index(),
        protocol,
        verdict: decision.verdict.index(),
        reserved: [0; 5],
    });
    entry.submit(0);
}

/// Whether one more record of this vif may go out now, and how many did not since the
/// last one. Two processors may race here; then a record more or less goes out.
#[inline(always)]
fn take_budget(vif: u32, time: u64) -> Option<u32> {
    let budget = RECORD_BUDGETS.get_ptr_mut(vif)?;
    // SAFETY: the verifier knows the entry's bounds; a race costs accuracy, not safety.
    let budget = unsafe { &mut *budget };
    if time.wrapping_sub(budget.since) >= SECOND {
        budget.since = time;
        budget.sent = 0;
    }
    if budget.sent >= RECORDS_PER_SECOND {
        budget.suppressed = budget.suppressed.wrapping_add(1);
        return None;
    }
    budget.sent += 1;
    let suppressed = budget.suppressed;
    budget.suppressed = 0;
    Some(suppressed)
}
