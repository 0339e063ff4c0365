//! How many denied packets of a client are handed on to be rejected, so that a flood of
//! them costs the netvm little.
//! Never touches what is accepted.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use firewall_common::abi::REJECT_BURST;
use firewall_common::verdict::{Decision, Reason, Verdict};

use crate::maps::REJECT_BUDGETS;
use crate::report;
use crate::skb::Skb;

/// Nanoseconds of budget that one packet takes. The agent sets it before loading.
#[unsafe(no_mangle)]
static REJECT_INTERVAL: Global<u64> = Global::new(100_000);

/// A reject over the budget becomes a drop.
///
/// A token bucket kept as one time (the generic cell rate algorithm): each packet moves it
/// on by its interval, and it may be ahead of the clock by no more than a burst. Two
/// processors may race here; then a packet more or less is handed on.
#[inline(always)]
pub fn limit(skb: &Skb<'_>, decision: Decision) -> Decision {
    if decision.verdict != Verdict::Reject {
        return decision;
    }
    let Some(next) = REJECT_BUDGETS.get_ptr_mut(decision.client) else {
        return decision;
    };
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    let next = unsafe { &mut *next };
    // SAFETY: the helper takes nothing and only returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    let interval = REJECT_INTERVAL.load();
    if *next > now.wrapping_add(interval.wrapping_mul(REJECT_BURST)) {
        report::count_too(skb, &decision, Reason::OverBudget);
        return Decision { verdict: Verdict::Drop, ..decision };
    }
    *next = if *next > now { *next } else { now }.wrapping_add(interval);
    decision
}
