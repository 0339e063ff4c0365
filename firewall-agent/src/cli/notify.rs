//! The helper that shows the agent's messages on the user's screen, as the qube's user. The service
//! manager starts it when the agent says something, with the socket as its standard input.
//! Never reads a message before it is that user, and never shows more than one at a time.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::unistd::{Uid, User, initgroups, setgid, setuid};
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use super::run::QUBESDB;
use crate::edges::desktop::{MOST, line};
use crate::edges::sources::qubesdb;

/// How long the user sees it, in milliseconds.
const SHOWN_FOR: &str = "8000";
/// How long showing may take; a desktop that hangs is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long QubesDB may take to name the user.
const TO_NAME: Duration = Duration::from_secs(5);
/// How long the helper waits for another message.
const IDLE: Duration = Duration::from_secs(10);
/// The user of a qube who has no name in QubesDB.
const FIRST_USER: Uid = Uid::from_raw(1000);

/// How to show messages.
#[derive(Debug, Args)]
pub struct Notify {
    /// Directory below which QubesDB is looked for.
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

/// Shows messages until none comes for a while. An error if standard input is no socket.
pub async fn notify(notify: &Notify) -> Result<()> {
    let named = qubesdb::default_user(&notify.root.join(QUBESDB), TO_NAME).await.ok().flatten();
    let user = user(named).and_then(become_user);
    let socket = std::os::unix::net::UnixDatagram::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let socket = UnixDatagram::from_std(socket).context("standard input is no socket")?;
    let mut buffer = [0; MOST];
    while let Ok(length) = timeout(IDLE, socket.recv(&mut buffer)).await {
        let text = line(buffer.get(..length?).unwrap_or_default());
        let shown = match &user {
            Ok(user) => show(user, &text).await,
            Err(error) => Err(io::Error::other(format!("{error:#}"))),
        };
        if let Err(error) = shown {
            // Whoever cannot be shown it finds it in the journal.
            eprintln!("not shown ({error}): {text}");
        }
    }
    Ok(())
}

/// Who sits at the screen: the user of this name; if there is none, the one with number 1000.
fn user(named: Option<String>) -> Result<User> {
    let named = named.and_then(|name| User::from_name(&name).ok().flatten());
    let user = named.or_else(|| User::from_uid(FIRST_USER).ok().flatten());
    user.context("no user to tell")
}

fn become_user(user: User) -> Result<User> {
    let name = CString::new(user.name.as_str())?;
    initgroups(&name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    Ok(user)
}

async fn show(user: &User, text: &str) -> io::Result<()> {
    // What a desktop would take for markup are a message's own words.
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // The program's own errors are of no use to anybody here.
    let mut shown = Command::new("notify-send")
        .args(["-t", SHOWN_FOR, "--icon=network-error", "--", "Qubes firewall", &text])
        .env("HOME", &user.dir)
        .env("DISPLAY", ":0")
        .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path=/run/user/{}/bus", user.uid))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let status = timeout(PATIENCE, shown.wait()).await.map_err(|_| ErrorKind::TimedOut)??;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}
