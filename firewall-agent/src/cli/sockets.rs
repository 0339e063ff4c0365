//! The helper that gives the agent sockets of IP, to ask DNS. The service manager starts it when the
//! agent asks, with the socket that it is asked by as its standard input.
//! Never uses a socket, and holds none after it gave it.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener as Listener;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::edges::dns::give;

/// How long the helper waits for another request.
const IDLE: Duration = Duration::from_secs(10);
/// How long whoever has come may take to say what is wanted.
const PATIENCE: Duration = Duration::from_secs(1);

/// Gives sockets until none is wanted for a while. An error if standard input is no socket.
pub async fn sockets() -> Result<()> {
    let listener = Listener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener).context("standard input is no socket")?;
    while let Ok(asking) = timeout(IDLE, listener.accept()).await {
        let outcome = asking.and_then(|(asking, _)| give(asking.into_std()?, PATIENCE));
        if let Err(error) = outcome {
            eprintln!("no socket given: {error}");
        }
    }
    Ok(())
}
