//! Tells the user at the screen: a line for the helper that shows it as the qube's user
//! (`firewall-agent notify`), since the agent itself may become nobody.
//! Never waits, and never fails: there may be no helper, and no screen.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use tracing::debug;

/// Where the helper listens, below the root. The service manager starts it when something is said.
pub const SOCKET: &str = "run/qubes-ebpf-firewall-notify.sock";
/// Most bytes of a line; both ends cut what is longer.
pub const MOST: usize = 512;

/// The user's screen.
pub struct Desktop(PathBuf);

impl Desktop {
    /// The one behind a socket.
    pub fn behind(socket: PathBuf) -> Self {
        Self(socket)
    }

    /// Shows a line. What the helper has no room for now is left out; whoever gets more than a few
    /// at once reads the log.
    pub fn tell(&self, text: &str) {
        let told = self.send(&line(text.as_bytes()));
        debug!(?told, text, "notification");
    }

    fn send(&self, line: &str) -> io::Result<usize> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to(line.as_bytes(), &self.0)
    }
}

/// A line as it may be shown: printable ASCII, and no longer than a line may be.
pub fn line(text: &[u8]) -> String {
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let shown = text.iter().take(MOST);
    shown.map(|byte| if is_printable(byte) { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::{MOST, line};

    #[test]
    fn a_line_is_printable_ascii_and_bounded() {
        assert_eq!(line(b"10.137.0.12 is blocked: `a=b`"), "10.137.0.12 is blocked: `a=b`");
        assert_eq!(line("\u{1b}[2J\n\0\u{e9}~\u{7f}".as_bytes()), "?[2J????~?");
        assert_eq!(line(b""), "");
        assert_eq!(line(&[b'a'; MOST]), "a".repeat(MOST));
        assert_eq!(line(&[b'a'; MOST + 1]), "a".repeat(MOST));
    }
}
