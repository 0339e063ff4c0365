//! A server that sends back what it gets, over TCP and UDP.
//! Never initiates anything, and never looks at what it echoes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::rig::namespace::Namespace;

/// What a server got so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// TCP connections that were accepted.
    pub connections: u64,
    /// Bytes over TCP.
    pub tcp_bytes: u64,
    /// UDP packets.
    pub udp_packets: u64,
    /// Bytes in UDP packets.
    pub udp_bytes: u64,
}

/// An echo server; it stops when this is dropped.
#[derive(Debug)]
pub struct EchoServer {
    address: SocketAddr,
    tally: Arc<Tally>,
    /// Taken, and so closed, to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Serves TCP and UDP on this address; with port 0, on some free port.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let (listener, udp) = namespace
            .run(|| bind(address))
            .with_context(|| format!("cannot serve {address} in `{}`", namespace.name()))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = UnixStream::pair()?;
        let tally = Arc::new(Tally::default());
        let shared = Arc::clone(&tally);
        let mut service = Service { listener, udp, connections: Vec::new(), tally: shared };
        let thread = thread::Builder::new()
            .name("echo server".to_owned())
            .spawn(move || service.run(&stopped))?;
        Ok(Self { address, tally, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it got so far. A packet is counted before its echo leaves, but a connection
    /// stands at the client's end before it is counted here.
    pub fn received(&self) -> Received {
        *self.tally.lock()
    }

    /// Waits until it got what the condition asks for; `false` if it did not come in time.
    pub fn wait_until(&self, enough: impl Fn(&Received) -> bool, timeout: Duration) -> bool {
        let changed = &self.tally.changed;
        let result = changed.wait_timeout_while(self.tally.lock(), timeout, |it| !enough(it));
        let (_received, waited) = result.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the echo server at {} panicked", self.address);
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    received: Mutex<Received>,
    changed: Condvar,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// What the thread owns.
struct Service {
    listener: TcpListener,
    udp: UdpSocket,
    connections: Vec<Connection>,
    tally: Arc<Tally>,
}

impl Service {
    /// Until the other end of `stopped` is closed.
    fn run(&mut self, stopped: &UnixStream) {
        while self.wait(stopped) {
            self.accept();
            self.echo_packets();
            self.connections.retain_mut(|connection| connection.echo(&self.tally));
        }
    }

    /// Waits for work; `false` at the end.
    fn wait(&self, stopped: &UnixStream) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut descriptors = vec![
            readable(stopped.as_fd()),
            readable(self.listener.as_fd()),
            readable(self.udp.as_fd()),
        ];
        descriptors.extend(self.connections.iter().map(Connection::descriptor));
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) => descriptors.first().is_some_and(|it| it.any() == Some(false)),
            Err(error) => error == Errno::EINTR,
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.tally.count(|it| it.connections += 1);
            if stream.set_nonblocking(true).is_ok() {
                self.connections.push(Connection { stream, pending: Vec::new() });
            }
        }
    }

    fn echo_packets(&self) {
        let mut buffer = [0; 1 << 16];
        while let Ok((length, peer)) = self.udp.recv_from(&mut buffer) {
            self.tally.count(|it| {
                it.udp_packets += 1;
                it.udp_bytes += length as u64;
            });
            // An echo that a firewall refuses is an echo that does not arrive.
            let _ = self.udp.send_to(buffer.get(..length).unwrap_or_default(), peer);
        }
    }
}

struct Connection {
    stream: TcpStream,
    /// Read, and not yet sent back.
    pending: Vec<u8>,
}

impl Connection {
    fn descriptor(&self) -> PollFd<'_> {
        let flags = if self.pending.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.stream.as_fd(), flags)
    }

    /// Reads and writes as far as possible without waiting; `false` at the end.
    fn echo(&mut self, tally: &Tally) -> bool {
        let mut buffer = [0; 1 << 14];
        loop {
            let step = if self.pending.is_empty() {
                self.stream.read(&mut buffer).inspect(|length| {
                    self.pending.extend(buffer.iter().take(*length));
                    tally.count(|it| it.tcp_bytes += *length as u64);
                })
            } else {
                self.stream.write(&self.pending).inspect(|length| {
                    self.pending.drain(..*length);
                })
            };
            match step {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }
}

/// Both sockets, in the calling thread's namespace.
fn bind(address: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let listener = TcpListener::bind(address)?;
    let udp = UdpSocket::bind(listener.local_addr()?)?;
    listener.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok((listener, udp))
}
