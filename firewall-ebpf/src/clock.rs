//! What time it is, by the clocks of the kernel.
//! Never waits, and never keeps a time.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

/// One second, in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of the monotonic clock as of the last tick. Reading them costs a memory read, where
/// the precise time costs a tenth of all that a dropped packet takes.
#[inline(always)]
pub fn coarse() -> u64 {
    // SAFETY: the helper takes nothing and only returns a number.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn precise() -> u64 {
    // SAFETY: as above.
    unsafe { bpf_ktime_get_ns() }
}

/// Seconds since the machine booted.
#[inline(always)]
pub fn since_boot() -> u64 {
    // SAFETY: as above.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    now / SECOND
}
