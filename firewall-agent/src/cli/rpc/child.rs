//! A command of this program, run for somebody far away: with nothing to read, in bounded time, and of
//! what it prints no more than is wanted.
//! Never hands on anything of the environment.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bounded::MOST_JSON;

/// Where programs are that commands start.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a command may take that is not asked to watch, and one to end that is.
const PATIENCE: Duration = Duration::from_secs(90);

/// What came of a command.
pub(super) struct Outcome {
    /// What it printed.
    pub said: String,
    /// What it complained about.
    pub complained: String,
    /// Its exit code.
    pub code: u8,
}

/// Runs a command, and asks it to end after a while, if one is given.
pub(super) fn run(arguments: &[String], watches: Option<Duration>) -> Result<Outcome> {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).env_clear().env("PATH", PATH);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start this program once more")?;
    let outcome = follow(&mut child, watches);
    if outcome.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome
}

fn follow(child: &mut Child, watches: Option<Duration>) -> Result<Outcome> {
    let said = read(child.stdout.take().context("no standard output")?);
    let complained = read(child.stderr.take().context("no standard error")?);
    let mut early = None;
    if let Some(watches) = watches {
        early = said.recv_timeout(watches).ok();
        if early.is_none() {
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let rest = |from: &Receiver<String>| {
        let left = deadline.saturating_duration_since(Instant::now());
        from.recv_timeout(left).context("the command does not end")
    };
    let said = early.map_or_else(|| rest(&said), Ok)?;
    let complained = rest(&complained)?;
    let status = child.wait()?;
    Ok(Outcome { said, complained, code: code(status)? })
}

/// Reads as much as may be of use, and the rest for nothing.
fn read(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let most = u64::try_from(MOST_JSON).unwrap_or(u64::MAX).saturating_add(1);
        // What ends early is told by the exit code.
        let _ = from.by_ref().take(most).read_to_end(&mut bytes);
        let _ = io::copy(&mut from, &mut io::sink());
        // Whoever waits may have lost patience.
        let _ = send.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receive
}

fn code(status: ExitStatus) -> Result<u8> {
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(code),
        None => bail!("the command ended with {status}"),
    }
}
