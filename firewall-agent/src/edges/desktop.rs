//! Tells the user at the screen, as today's agent does: by `notify-send`, in the session of
//! the qube's user.
//! Never waits, and never fails: there may be no screen.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Uid, User};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tracing::debug;

/// How long the user sees it, in milliseconds.
const SHOWN_FOR: &str = "8000";
/// How long telling may take; a desktop that hangs is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many may be on their way; whoever gets more than these at once reads the log.
const AT_ONCE: usize = 4;

/// The user of a qube who has no name in QubesDB.
const FIRST_USER: Uid = Uid::from_raw(1000);

/// The user's screen.
pub struct Desktop(Arc<Semaphore>);

impl Default for Desktop {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Desktop {
    /// Shows a line to the user of this name; if there is none, to the one with number 1000. While
    /// four lines are on their way, others are left out. Must be called inside a tokio runtime.
    pub fn tell(&self, user: Option<String>, text: String) {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            debug!(text, "too many notifications at once");
            return;
        };
        tokio::spawn(async move {
            let shown = tokio::time::timeout(PATIENCE, show(user, &text)).await;
            debug!(?shown, text, "notification");
            drop(permit);
        });
    }
}

async fn show(user: Option<String>, text: &str) -> std::io::Result<()> {
    // Whoever knows the users may be as slow as the desktop.
    let found = tokio::task::spawn_blocking(move || {
        let named = user.and_then(|name| User::from_name(&name).ok().flatten());
        named.or_else(|| User::from_uid(FIRST_USER).ok().flatten())
    });
    let Some(user) = found.await.map_err(std::io::Error::other)? else {
        return Err(std::io::Error::other("no user to tell"));
    };
    let bus = format!("unix:path=/run/user/{}/bus", user.uid);
    // The programs' own errors are of no use to anybody here.
    let status = Command::new("runuser")
        .args(["-u", &user.name, "--", "notify-send", "-t", SHOWN_FOR])
        .args(["--icon=network-error", "Qubes firewall", text])
        .env("DISPLAY", ":0")
        .env("DBUS_SESSION_BUS_ADDRESS", bus)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(status.to_string())) }
}
