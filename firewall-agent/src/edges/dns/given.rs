//! Sockets of IP: made here or, where a sandbox lets none be made, given by a helper
//! (`firewall-agent sockets`), which may do nothing else.
//! Never binds, connects or sends.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socket,
};
use tokio::task::spawn_blocking;

/// Where the helper listens.
const HELPER: &str = "/run/qubes-ebpf-firewall-sockets.sock";
/// How long the helper may take, its start included.
const PATIENCE: Duration = Duration::from_secs(2);

/// A kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// TCP; otherwise UDP.
    pub is_tcp: bool,
    /// IPv6; otherwise IPv4.
    pub is_v6: bool,
}

impl Kind {
    /// As one byte, for the helper.
    fn code(self) -> u8 {
        b'0' + u8::from(self.is_tcp) + 2 * u8::from(self.is_v6)
    }

    fn of_code(code: u8) -> Option<Self> {
        let all = [(false, false), (true, false), (false, true), (true, true)];
        let mut all = all.map(|(is_tcp, is_v6)| Self { is_tcp, is_v6 }).into_iter();
        all.find(|kind| kind.code() == code)
    }

    /// Makes one that never blocks.
    fn make(self) -> nix::Result<OwnedFd> {
        let family = if self.is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let kind = if self.is_tcp { SockType::Stream } else { SockType::Datagram };
        socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
    }
}

/// A socket that never blocks. Must be called inside a tokio runtime.
pub(super) async fn socket_of(kind: Kind) -> io::Result<OwnedFd> {
    match kind.make() {
        // What a sandbox says, and a kernel without that family.
        Err(Errno::EAFNOSUPPORT) => {
            let given = spawn_blocking(move || ask(Path::new(HELPER), kind)).await;
            given.unwrap_or_else(|error| Err(io::Error::other(error)))
        }
        made => Ok(made?),
    }
}

/// Asks the helper for a socket. An error if it gives none; if there is none, as without helpers.
fn ask(helper: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let mut helper =
        UnixStream::connect(helper).map_err(|_| io::Error::from(Errno::EAFNOSUPPORT))?;
    helper.set_read_timeout(Some(PATIENCE))?;
    helper.write_all(&[kind.code()])?;
    let (mut byte, mut space) = ([0], cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(helper.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let given = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    let given = given.ok_or_else(|| io::Error::from(Errno::EAFNOSUPPORT))?;
    // SAFETY: the kernel has just made this file descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(given) })
}

/// Gives somebody the socket that is asked for.
pub fn give(mut to: UnixStream, patience: Duration) -> io::Result<()> {
    to.set_nonblocking(false)?;
    to.set_read_timeout(Some(patience))?;
    let mut code = [0];
    to.read_exact(&mut code)?;
    let kind = code.first().copied().and_then(Kind::of_code);
    let made = kind.ok_or(io::ErrorKind::InvalidData)?.make()?;
    let files = [made.as_raw_fd()];
    let parts = [IoSlice::new(b".")];
    let rights = [ControlMessage::ScmRights(&files)];
    sendmsg::<()>(to.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn each_kind_of_socket_is_given_and_nothing_else() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let place = directory.path().join("sockets");
        let listener = UnixListener::bind(&place)?;
        let giving = thread::spawn(move || -> io::Result<Vec<bool>> {
            (0..5).map(|_| Ok(give(listener.accept()?.0, PATIENCE).is_ok())).collect()
        });
        for code in b'0'..b'4' {
            let kind = Kind::of_code(code).ok_or(io::ErrorKind::Other)?;
            let given = ask(&place, kind)?;
            let own = if kind.is_tcp {
                TcpListener::from(given).local_addr()?
            } else {
                UdpSocket::from(given).local_addr()?
            };
            assert_eq!((own.is_ipv6(), own.port()), (kind.is_v6, 0), "{kind:?}");
        }
        let mut stranger = UnixStream::connect(&place)?;
        stranger.write_all(b"raw")?;
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert_eq!(answer, b"");
        let given = giving.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))?;
        assert_eq!(given, [true, true, true, true, false]);
        let nobody = ask(&directory.path().join("nobody"), Kind { is_tcp: false, is_v6: false });
        let error = nobody.expect_err("nobody gives");
        assert_eq!(error.raw_os_error(), Some(Errno::EAFNOSUPPORT as i32));
        Ok(())
    }
}
