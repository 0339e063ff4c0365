//! The kernel's table of connections, over netlink: what clients have open, read part by part,
//! and an end to what they must not have.
//! Never decides which connections end, and never holds more of the table than a part and what is
//! wanted of it.

pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

pub use self::wire::{ConntrackError, Wanted};
use firewall_core::connection::Flow;

/// Most bytes of a datagram: the kernel never makes larger ones for a table (`netlink_recvmsg`
/// in net/netlink/af_netlink.c). One that is larger all the same is an error.
const DATAGRAM: usize = 32 * 1024;
/// Requests that are on the way at once. Their answers must fit into the socket.
const AT_ONCE: usize = 64;
/// The kernel answers before the request returns; this is for a kernel that does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket that talks to the kernel, and to nobody else.
struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // SAFETY: an `OwnedFd` is the same open file until it is dropped, and what holds it here
        // neither replaces it nor drops it first.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self(socket))
    }

    async fn send(&self, message: &[u8]) -> io::Result<()> {
        let send = |socket: &OwnedFd| Ok(send(socket.as_raw_fd(), message, MsgFlags::empty())?);
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// One datagram, as a whole. Whoever waits here may stop waiting; nothing is lost then.
    async fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let receive = |socket: &OwnedFd| {
            // The length is that of the datagram, even if the buffer is shorter.
            Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC)?)
        };
        let length = self.0.async_io(Interest::READABLE, receive).await?;
        let whole = buffer.get(..length).filter(|datagram| !datagram.is_empty());
        whole.ok_or_else(|| io::Error::other("a datagram that is cut off"))
    }
}

/// A way through the table, from its beginning to its end. The kernel goes on as its parts are
/// taken, so the table is never held as a whole, here or there.
pub struct Reading {
    socket: Socket,
    wanted: Wanted,
    buffer: Vec<u8>,
    is_at_end: bool,
}

impl Reading {
    /// Begins to read. An error if the kernel cannot be asked. Must be called inside a tokio
    /// runtime.
    pub async fn start(wanted: Wanted) -> Result<Self, ConntrackError> {
        let socket = Socket::open()?;
        socket.send(&wire::list(1)).await?;
        let buffer = vec![0; DATAGRAM];
        Ok(Self { socket, wanted, buffer, is_at_end: false })
    }

    /// What is wanted of the next part of the table, a datagram, which may be nothing; `None`
    /// when all of it was told. After an error there is no more. Whoever waits here may stop.
    pub async fn next(&mut self) -> Result<Option<Vec<Flow>>, ConntrackError> {
        if self.is_at_end {
            return Ok(None);
        }
        let datagram = self.socket.receive(&mut self.buffer).await?;
        let mut part = Vec::new();
        self.is_at_end = wire::take_part(datagram, 1, &self.wanted, &mut part)?;
        Ok(Some(part))
    }
}

/// All connections that are wanted, at once: for those who ask about few. An error if not all of
/// the table could be read. Must be called inside a tokio runtime.
pub async fn flows(wanted: Wanted) -> Result<Vec<Flow>, ConntrackError> {
    let mut reading = Reading::start(wanted).await?;
    let mut flows = Vec::new();
    while let Some(part) = reading.next().await? {
        flows.extend(part);
    }
    Ok(flows)
}

/// What came of requests to forget connections.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// How many connections are gone, by themselves or by the request.
    pub gone: usize,
    /// Who opened connections that are still there, and why they are.
    pub refused: BTreeMap<IpAddr, String>,
}

/// A way to make the kernel forget connections.
pub struct Forgetting {
    socket: Socket,
    buffer: Vec<u8>,
    /// Number of the last request.
    sequence: u32,
}

impl Forgetting {
    /// Opens a netlink socket; an error if there can be none. Must be called inside a tokio
    /// runtime.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, buffer: vec![0; DATAGRAM], sequence: 0 })
    }

    /// Has the kernel forget connections. One that is gone already counts as gone; one that cannot
    /// be forgotten does not keep the others.
    pub async fn forget(&mut self, flows: &[Flow]) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for flows in flows.chunks(AT_ONCE) {
            let mut waiting = BTreeMap::new();
            let mut requests = Vec::new();
            for flow in flows {
                self.sequence = self.sequence.wrapping_add(1);
                wire::forget(&mut requests, flow, self.sequence);
                waiting.insert(self.sequence, flow.source());
            }
            let answers = self.take_answers(&requests, &mut waiting, &mut forgotten);
            let outcome = timeout(PATIENCE, answers).await;
            let why = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the kernel does not answer".to_owned(),
            };
            // Nobody knows what became of these.
            forgotten.refused.extend(waiting.into_values().map(|source| (source, why.clone())));
        }
        forgotten
    }

    /// Sends requests, and takes in answers until none is waited for.
    async fn take_answers(
        &mut self,
        requests: &[u8],
        waiting: &mut BTreeMap<u32, IpAddr>,
        forgotten: &mut Forgotten,
    ) -> Result<(), ConntrackError> {
        self.socket.send(requests).await?;
        while !waiting.is_empty() {
            let datagram = self.socket.receive(&mut self.buffer).await?;
            for (sequence, error) in wire::outcomes(datagram)? {
                // An answer that nobody waits for any more is to an earlier request.
                let Some(source) = waiting.remove(&sequence) else {
                    continue;
                };
                match error {
                    None => forgotten.gone += 1,
                    Some(error) if error.kind() == io::ErrorKind::NotFound => forgotten.gone += 1,
                    Some(error) => {
                        let why = format!("the kernel does not forget one: {error}");
                        forgotten.refused.insert(source, why);
                    }
                }
            }
        }
        Ok(())
    }
}
