//! How many denied packets are answered and how many packets are told of, so that a flood of
//! them costs the netvm little; and the arithmetic of budgets.
//! Never changes what becomes of an accepted packet, and never writes the counters.
//!
//! Times are nanoseconds of the coarse clock, which moves with the kernel's tick.

use aya_ebpf::Global;
use firewall_common::abi::{MAX_BUDGETS, RECORDS_PER_SECOND, REJECT_BURST};
use firewall_common::verdict::{Decision, Verdict};

use crate::clock::{self, SECOND};
use crate::maps::{RECORD_BUDGETS, REJECT_BUDGETS};

/// Nanoseconds of budget that one packet takes. The agent sets it before loading.
#[unsafe(no_mangle)]
static REJECT_INTERVAL: Global<u64> = Global::new(100_000);

/// The longest tick of a kernel for x86 or arm64, in nanoseconds (a CONFIG_HZ of 100,
/// kernel/Kconfig.hz).
const TICK: u64 = 10_000_000;

/// A decision, as the budget leaves it.
pub struct Limited {
    /// What becomes of the packet.
    pub decision: Decision,
    /// Whether the packet is dropped only because the budget has no room for it.
    pub is_over: bool,
}

/// When a packet is judged, in nanoseconds of the monotonic clock as of the last tick; 0 for
/// an accepted packet, which needs no time.
#[inline(always)]
pub fn time_of(decision: &Decision) -> u64 {
    match decision.verdict {
        Verdict::Accept => 0,
        Verdict::Reject | Verdict::Drop | Verdict::Audit | Verdict::Pass | Verdict::Related => {
            clock::coarse()
        }
    }
}

/// A reject over the client's budget becomes a drop; one within takes a packet out of the budget.
#[inline(always)]
pub fn limit(decision: Decision, now: u64) -> Limited {
    match decision.verdict {
        Verdict::Reject => limit_reject(decision, now, true),
        Verdict::Accept | Verdict::Audit | Verdict::Drop | Verdict::Pass | Verdict::Related => {
            Limited { decision, is_over: false }
        }
    }
}

/// A reject over the client's budget becomes a drop; one within takes nothing out of the budget
/// yet, since the packet comes to [`limit`] before it is handed on.
#[inline(always)]
pub fn look(decision: Decision, now: u64) -> Limited {
    match decision.verdict {
        Verdict::Reject => limit_reject(decision, now, false),
        Verdict::Accept | Verdict::Audit | Verdict::Drop | Verdict::Pass | Verdict::Related => {
            Limited { decision, is_over: false }
        }
    }
}

#[inline(always)]
fn limit_reject(decision: Decision, now: u64, takes: bool) -> Limited {
    let Some(next) = REJECT_BUDGETS.get_ptr_mut(decision.client) else {
        return Limited { decision, is_over: false };
    };
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    let next = unsafe { &mut *next };
    if !has_room(*next, now, REJECT_INTERVAL.load(), REJECT_BURST) {
        return Limited {
            decision: Decision { verdict: Verdict::Drop, ..decision },
            is_over: true,
        };
    }
    if takes {
        *next = taken(*next, now, REJECT_INTERVAL.load());
    }
    Limited { decision, is_over: false }
}

/// Takes one packet out of a budget that fills up by one in each `interval` of nanoseconds and
/// holds `burst` packets; `false` if there is no room.
#[inline(always)]
pub fn take(next: &mut u64, now: u64, interval: u64, burst: u64) -> bool {
    if !has_room(*next, now, interval, burst) {
        return false;
    }
    *next = taken(*next, now, interval);
    true
}

/// Whether a budget has room for one more packet.
///
/// A token bucket kept as one time (the generic cell rate algorithm): each packet moves it
/// on by its interval, and it may be ahead of the clock by no more than a burst and the tick
/// that the clock may be late. Two processors may race here; then a packet more or less is
/// handed on.
#[inline(always)]
fn has_room(next: u64, now: u64, interval: u64, burst: u64) -> bool {
    next <= now.wrapping_add(interval.wrapping_mul(burst)).wrapping_add(TICK)
}

#[inline(always)]
fn taken(next: u64, now: u64, interval: u64) -> u64 {
    if next > now { next.wrapping_add(interval) } else { now.wrapping_add(interval) }
}

/// Takes one record out of an interface's budget, and returns how many records were left out
/// since the last one that was sent; `None` if this one is to be left out too. Two processors may
/// race here; then a record more or less goes out.
#[inline(always)]
pub fn take_record(interface: u32, now: u64) -> Option<u32> {
    let budget = RECORD_BUDGETS.get_ptr_mut(interface & (MAX_BUDGETS as u32 - 1))?;
    // SAFETY: inside the map's value; a race costs accuracy, not safety.
    let budget = unsafe { &mut *budget };
    if now.wrapping_sub(budget.since) >= SECOND {
        budget.since = now;
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
