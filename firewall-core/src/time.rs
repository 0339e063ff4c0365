//! Points of time.
//! Never reads a clock.

use std::time::Duration;

/// A point in time: how long ago the machine booted, suspends included.
pub type Moment = Duration;
