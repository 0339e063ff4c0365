//! Waiting for file descriptors with a deadline.
//! Never sleeps: whoever waits is woken by what it waits for.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// That long from now.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// Waits until a descriptor is ready; `false` if the deadline came first.
    pub(crate) fn poll(self, descriptors: &mut [PollFd]) -> Result<bool> {
        loop {
            let left = self.0.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up, or the last millisecond would be spent spinning.
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(descriptors, left) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
