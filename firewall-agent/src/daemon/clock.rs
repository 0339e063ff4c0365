//! The clocks of the machine, and waiting for a time.
//! Never says what is due.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use firewall_core::time::Moment;
use nix::time::{ClockId, clock_gettime};

/// What time it is: since the machine booted, suspends included (clock_gettime(2)).
pub(super) fn now() -> Moment {
    // A clock that every kernel has; without one nothing would ever be old.
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    since.map(Moment::after_boot).unwrap_or_default()
}

/// What time people say it is.
pub(super) fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Waits until it is that late; for ever, if there is nothing to wait for.
pub(super) async fn sleep_until(time: Option<Moment>) {
    match time {
        Some(time) => tokio::time::sleep(time.since(now())).await,
        None => std::future::pending().await,
    }
}
