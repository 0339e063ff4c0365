//! What systemd is told, if it started the agent: ready, reloading, stopping, alive.
//! Never fails and never waits: whoever runs the agent by hand has nobody to tell, and a
//! service manager that does not read now is told later.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, interval};
use tracing::debug;

/// The service manager's end of the conversation, from sd_notify(3).
pub struct Service {
    /// A sign of life is due at each tick.
    watchdog: Option<Interval>,
    manager: Option<SocketAddr>,
    /// Connected when something is to be told.
    socket: Option<UnixDatagram>,
    status: String,
    /// What the manager had no room for yet; of each kind the last one counts.
    unsaid: Unsaid,
}

#[derive(Default)]
struct Unsaid {
    phase: Option<String>,
    alive: Option<String>,
    status: Option<String>,
}

impl Service {
    /// Finds out what the service manager wants. Must be called inside a tokio runtime.
    pub fn find() -> Self {
        // Twice in the time after which it would take the agent for dead.
        let period = sd_notify::watchdog_enabled().map(|time| time / 2);
        let watchdog = period.filter(|period| *period > Duration::ZERO).map(interval);
        let manager = std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = address(&name);
            address.inspect_err(|error| debug!(?name, %error, "no notify socket")).ok()
        });
        Self { watchdog, manager, socket: None, status: String::new(), unsaid: Unsaid::default() }
    }

    /// Tells that everything that is known is in force.
    pub fn ready(&mut self) {
        self.unsaid.phase = Some(NotifyState::Ready.to_string());
        self.say();
    }

    /// Tells that everything is being read again; [`Self::ready`] is to follow.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => {
                self.unsaid.phase = Some(format!("{}\n{now}", NotifyState::Reloading));
                self.say();
            }
            Err(error) => debug!(%error, "no monotonic clock"),
        }
    }

    /// Tells that the agent ends.
    pub fn stopping(&mut self) {
        self.unsaid.phase = Some(NotifyState::Stopping.to_string());
        self.say();
    }

    /// Tells one line for `systemctl status`. Tells as well what there was no room for before, so
    /// it is to be called whenever anything happened.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            // Another line would be another assignment.
            let line = status.replace('\n', " ");
            self.unsaid.status = Some(NotifyState::Status(&line).to_string());
            self.status = status;
        }
        self.say();
    }

    /// Waits until a sign of life is due; for ever, if the service manager wants none.
    pub async fn sign_of_life_due(&mut self) {
        match &mut self.watchdog {
            Some(watchdog) => {
                watchdog.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Gives a sign of life.
    pub fn alive(&mut self) {
        self.unsaid.alive = Some(NotifyState::Watchdog.to_string());
        self.say();
    }

    /// Tells what is unsaid, as far as there is room for it now.
    fn say(&mut self) {
        let Some(manager) = &self.manager else {
            self.unsaid = Unsaid::default();
            return;
        };
        let Unsaid { phase, alive, status } = &mut self.unsaid;
        for message in [phase, alive, status] {
            let Some(text) = message else {
                continue;
            };
            match send(&mut self.socket, manager, text) {
                Ok(()) => *message = None,
                Err(error) => {
                    debug!(%error, text, "the service manager does not listen now");
                    return;
                }
            }
        }
    }
}

/// Where the service manager listens: a path, or `@` and an abstract name.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither a path nor an abstract name")),
    }
}

/// Sends a message, if there is room for it now.
fn send(socket: &mut Option<UnixDatagram>, manager: &SocketAddr, text: &str) -> io::Result<()> {
    if socket.is_none() {
        let new = UnixDatagram::unbound()?;
        new.set_nonblocking(true)?;
        new.connect_addr(manager)?;
        *socket = Some(new);
    }
    let Some(connected) = socket else {
        return Ok(());
    };
    let outcome = connected.send(text.as_bytes()).map(drop);
    if outcome.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
        // The manager may have a new socket under the same name.
        *socket = None;
    }
    outcome
}
