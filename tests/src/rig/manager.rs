//! The service manager's end of sd_notify(3), for an agent that a test starts.
//! Never starts or ends anything itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A socket that hears what a service says.
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    /// Begins to listen in a directory.
    pub fn listen(directory: &Path) -> Result<Self> {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self { socket, path })
    }

    /// What a service's environment must say.
    pub fn environment(&self) -> (&'static str, String) {
        ("NOTIFY_SOCKET", self.path.display().to_string())
    }

    /// Leaves no room for what a service wants to say.
    pub fn fill(&self, message: &str) -> Result<()> {
        let other = UnixDatagram::unbound()?;
        other.set_nonblocking(true)?;
        other.connect(&self.path)?;
        loop {
            match other.send(message.as_bytes()) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message that has this assignment, like `READY`, as its lines; those that only
    /// give a status or a sign of life are left out unless asked for.
    pub fn wait_for(&self, key: &str, timeout: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the service never said {key}");
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            let text = String::from_utf8_lossy(&buffer[..length]);
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            let is_it = |line: &String| line.split('=').next() == Some(key);
            if lines.iter().any(is_it) {
                return Ok(lines);
            }
            let is_aside = |line: &String| line.starts_with("STATUS") || line.starts_with("WATCH");
            if !lines.iter().all(is_aside) {
                bail!("the service said {lines:?} instead of {key}");
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
