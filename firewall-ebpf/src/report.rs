//! Counts every verdict; reports what was denied or would have been, a few times a second.
//! Never changes a verdict.

use core::arch::asm;

use aya_log_ebpf::error;
use firewall_common::abi::{Address, DropRecord};
use firewall_common::packet::Frame;
use firewall_common::verdict::{Decision, Reason, Verdict, reason_counter};

use crate::budget::{self, Limited};
use crate::clock;
use crate::maps::{COUNTERS, PASSAGE, RECORDS};

/// Where `PASSAGE` has its two numbers.
const PERMITTED: usize = 0;
const LEFT: usize = 1;

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Index of the interface.
    pub interface: u32,
    /// Length of the frame in bytes.
    pub length: u32,
    /// How many packets on a wire the frame stands for (segmentation offload); 0 is one.
    pub segments: u32,
}

/// Counts one verdict, and sends a drop record where there is something to tell. `now` is in
/// nanoseconds of the coarse clock.
#[inline(always)]
pub fn report(arrival: &Arrival, frame: &Result<Frame, Reason>, decision: &Decision, now: u64) {
    count(arrival, decision);
    match decision.verdict {
        Verdict::Accept | Verdict::Pass | Verdict::Related => {}
        Verdict::Drop if decision.reason == Reason::LinkLocal => {}
        Verdict::Reject | Verdict::Drop => record(arrival, frame, decision, now),
        Verdict::Audit => {
            count_too(arrival, decision, Reason::Audit);
            record(arrival, frame, decision, now);
        }
    }
    if decision.reason == Reason::Inconsistent {
        error!((), "tables contradict themselves, generation {}", decision.generation);
    }
}

/// Counts a packet over the budget, beside what [`report`] counts of it, and returns what
/// becomes of it.
#[inline(always)]
pub fn over_budget(arrival: &Arrival, limited: Limited) -> Decision {
    if limited.is_over {
        count_too(arrival, &limited.decision, Reason::OverBudget);
    }
    limited.decision
}

/// Counts a frame that gets a permit.
#[inline(always)]
pub fn count_permit() {
    count_passage(PERMITTED);
}

/// Counts a frame that leaves with its stamp.
#[inline(always)]
pub fn count_leaving() {
    count_passage(LEFT);
}

#[inline(always)]
fn count_passage(index: usize) {
    // SAFETY: both indices are inside, and the words are aligned to 8 bytes.
    unsafe { add(&raw mut PASSAGE[index], 1) };
}

/// Counts a packet a second time, for a reason that is not what its rule says.
#[inline(always)]
fn count_too(arrival: &Arrival, decision: &Decision, reason: Reason) {
    add_to(reason_counter(decision.counters, reason), arrival);
}

#[inline(always)]
fn count(arrival: &Arrival, decision: &Decision) {
    add_to(decision.counter(), arrival);
}

#[inline(always)]
fn add_to(index: u32, arrival: &Arrival) {
    let Some(counter) = COUNTERS.get_ptr_mut(index) else {
        return;
    };
    // SAFETY: inside the map's value, aligned to 8 bytes.
    unsafe { add(&raw mut (*counter).packets, u64::from(arrival.segments.max(1))) };
    // SAFETY: as above.
    unsafe { add(&raw mut (*counter).bytes, u64::from(arrival.length)) };
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
fn record(arrival: &Arrival, frame: &Result<Frame, Reason>, decision: &Decision, now: u64) {
    let Some(suppressed) = budget::take_record(arrival.interface, now) else {
        return;
    };
    let Some(mut entry) = RECORDS.reserve(0) else {
        return;
    };
    let (source, destination, source_port, destination_port, protocol) = match frame {
        Ok(Frame::Ip(it)) => (it.source, it.destination, it.source_port, it.port, it.number),
        Ok(Frame::Arp { .. }) | Err(_) => (Address::NONE, Address::NONE, 0, 0, 0),
    };
    entry.write(DropRecord {
        time: clock::precise(),
        vif: arrival.interface,
        generation: decision.generation,
        rule: decision.rule,
        length: arrival.length,
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
