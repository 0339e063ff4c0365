//! What systemd is told, if it started the agent: ready, reloading, stopping, alive.
//! Never fails: whoever runs the agent by hand has nobody to tell.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, interval};
use tracing::debug;

/// The service manager's end of the conversation, from sd_notify(3).
pub struct Service {
    /// A sign of life is due at each tick.
    watchdog: Option<Interval>,
    status: String,
}

impl Service {
    /// Finds out what the service manager wants. Must be called inside a tokio runtime.
    pub fn find() -> Self {
        // Twice in the time after which it would take the agent for dead.
        let period = sd_notify::watchdog_enabled().map(|time| time / 2);
        let watchdog = period.filter(|period| *period > Duration::ZERO).map(interval);
        Self { watchdog, status: String::new() }
    }

    /// Everything that is known is in force.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Everything is being read again; `ready` is to follow.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!(%error, "no monotonic clock"),
        }
    }

    /// The agent ends.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Waits until a sign of life is due.
    pub async fn sign_of_life_due(&mut self) {
        match &mut self.watchdog {
            Some(watchdog) => {
                watchdog.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Gives a sign of life.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager does not listen");
    }
}
