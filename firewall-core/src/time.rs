//! Points of time, counted from when the machine booted.
//! Never reads a clock.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A point in time: how long after the machine booted it is, suspends included (Linux's
/// `CLOCK_BOOTTIME`, clock_gettime(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// When the machine booted: before everything else.
    pub const BOOT: Self = Self(Duration::ZERO);
    /// Later than everything else.
    pub const NEVER: Self = Self(Duration::MAX);

    /// The point of time so long after the machine booted.
    pub const fn after_boot(time: Duration) -> Self {
        Self(time)
    }

    /// How long the machine has been up at this point of time.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// The first whole second that is not before this point of time.
    pub fn rounded_up(self) -> Self {
        let seconds = self.0.as_secs();
        let is_whole = self.0.subsec_nanos() == 0;
        Self(Duration::from_secs(if is_whole { seconds } else { seconds.saturating_add(1) }))
    }

    /// How long after `before` this point of time is; zero if it is earlier.
    pub fn since(self, before: Self) -> Duration {
        self.0.saturating_sub(before.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

/// Not before the machine booted.
impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_point_of_time_is_before_the_boot_or_beyond_the_end() {
        let at = |milliseconds| Moment::after_boot(Duration::from_millis(milliseconds));
        let second = Duration::from_secs(1);
        assert_eq!(at(500) - second, Moment::BOOT);
        assert_eq!(Moment::NEVER + second, Moment::NEVER);
        assert_eq!(at(1500).since(at(500)), second);
        assert_eq!(at(500).since(at(1500)), Duration::ZERO);
        assert_eq!(
            [at(1000), at(1001), at(1999)].map(Moment::rounded_up),
            [1, 2, 2].map(|it| at(it * 1000))
        );
        assert_eq!(Moment::NEVER.rounded_up().since_boot().as_secs(), u64::MAX);
    }
}
