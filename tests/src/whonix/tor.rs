//! What listens in Tor's place: every port of a Whonix gateway, and what each got.
//! Never initiates anything.
//!
//! A TCP connection is told where it stands, in two bytes, and closed. A UDP packet is sent back.

use std::io::Write as _;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket,
};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use socket2::{Domain, Socket, Type};

use crate::packets::family::{Family, PerFamily as _};
use crate::rig::namespace::Namespace;
use crate::rig::shared::Shared;
use crate::whonix::tables::{CONTROL_PORT, DNS_PORT, SOCKS, TRANS_PORT};

/// Ports at which nothing of a client may ever arrive: Tor's own control port, and some that a qube
/// could have.
pub const NEVER: [u16; 4] = [9052, 22, 53, 8082];

/// Somebody came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who.
    pub source: SocketAddr,
    /// Where it stands.
    pub local: SocketAddr,
    /// Where it was sent to, as Tor asks for it. For UDP nobody can ask.
    pub original: Option<SocketAddr>,
    /// What a UDP packet held.
    pub data: Vec<u8>,
}

/// The listeners; they end when this is dropped.
pub struct StandIn {
    visits: Arc<Shared<Vec<Visit>>>,
    /// Taken, and so closed, to stop the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// All ports of TCP that Tor, or a filter in front of it, listens at.
pub fn tcp_ports() -> Vec<u16> {
    let socks = SOCKS.iter().flat_map(|(first, last)| *first..=*last);
    [TRANS_PORT, CONTROL_PORT].into_iter().chain(socks).collect()
}

impl StandIn {
    /// Listens in a namespace.
    pub fn start(at: &Namespace) -> Result<Self> {
        let (tcp, udp) = at.run(|| {
            let mut tcp = Vec::new();
            let mut udp = Vec::new();
            for family in Family::BOTH {
                for port in tcp_ports().into_iter().chain(NEVER) {
                    let socket = bound(family, Type::STREAM, port)?;
                    socket.listen(1024)?;
                    tcp.push(socket);
                }
                for port in [DNS_PORT].into_iter().chain(NEVER) {
                    udp.push(UdpSocket::from(bound(family, Type::DGRAM, port)?));
                }
            }
            Ok((tcp, udp))
        })?;
        let (stop, stopped) = UnixStream::pair()?;
        let visits = Arc::<Shared<Vec<Visit>>>::default();
        let of_thread = Arc::clone(&visits);
        let thread = thread::Builder::new()
            .name("in place of Tor".to_owned())
            .spawn(move || serve(&tcp, &udp, &stopped, &of_thread))?;
        Ok(Self { visits, stop: Some(stop), thread: Some(thread) })
    }

    /// Everybody who came so far.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().clone()
    }

    /// Waits for a visit that fits; all before it, and it, are forgotten.
    pub fn wait_for(
        &self,
        what: &str,
        fits: impl Fn(&Visit) -> bool,
        timeout: Duration,
    ) -> Result<Visit> {
        let deadline = Instant::now() + timeout;
        let mut visits = self.visits.lock();
        loop {
            if let Some(at) = visits.iter().position(&fits) {
                return visits.drain(..=at).next_back().context("it was there");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what} never came; these did: {visits:?}");
            }
            let woken = self.visits.changed.wait_timeout(visits, left);
            visits = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("what stood in Tor's place panicked");
        }
    }
}

fn bound(family: Family, kind: Type, port: u16) -> Result<Socket> {
    let any: IpAddr = family.of([Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
    let address = SocketAddr::new(any, port);
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen at {address}"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Until the other end of `stopped` is closed.
fn serve(tcp: &[Socket], udp: &[UdpSocket], stopped: &UnixStream, visits: &Shared<Vec<Visit>>) {
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut descriptors = vec![readable(stopped.as_fd())];
        descriptors.extend(tcp.iter().map(|it| readable(it.as_fd())));
        descriptors.extend(udp.iter().map(|it| readable(it.as_fd())));
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = descriptors.iter().map(|it| it.any() == Some(true)).collect();
        if ready.first() != Some(&false) {
            return;
        }
        let (of_tcp, of_udp) = ready.get(1..).unwrap_or_default().split_at(tcp.len());
        let came = tcp.iter().zip(of_tcp).filter(|(_, ready)| **ready);
        let mut found: Vec<Visit> = came.flat_map(|(socket, _)| accepted(socket)).collect();
        let came = udp.iter().zip(of_udp).filter(|(_, ready)| **ready);
        found.extend(came.flat_map(|(socket, _)| received(socket)));
        visits.lock().extend(found);
        visits.changed.notify_all();
    }
}

fn accepted(socket: &Socket) -> Vec<Visit> {
    let mut visits = Vec::new();
    loop {
        match socket.accept() {
            Ok((stream, source)) => {
                // One that is gone already was not there.
                let mut stream = TcpStream::from(stream);
                let (Some(source), Ok(local)) = (source.as_socket(), stream.local_addr()) else {
                    continue;
                };
                visits.push(Visit { source, local, original: original(&stream), data: Vec::new() });
                let _ = stream.write_all(&local.port().to_be_bytes());
            }
            Err(error) if error.raw_os_error() == Some(Errno::ECONNABORTED as i32) => {}
            Err(_) => return visits,
        }
    }
}

fn received(socket: &UdpSocket) -> Vec<Visit> {
    let mut visits = Vec::new();
    let mut buffer = [0; 1 << 11];
    while let Ok((length, source)) = socket.recv_from(&mut buffer) {
        let data = buffer.get(..length).unwrap_or_default().to_vec();
        // An answer that a firewall refuses is one that does not arrive.
        let _ = socket.send_to(&data, source);
        let Ok(local) = socket.local_addr() else { continue };
        visits.push(Visit { source, local, original: None, data });
    }
    visits
}

/// Where a connection was sent to before it was redirected (linux/netfilter_ipv4.h,
/// linux/netfilter_ipv6/ip6_tables.h).
fn original(stream: &TcpStream) -> Option<SocketAddr> {
    let is_v4 = stream.local_addr().ok()?.is_ipv4();
    if is_v4 {
        let it = getsockopt(stream, OriginalDst).ok()?;
        let address = Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr));
        Some(SocketAddrV4::new(address, u16::from_be(it.sin_port)).into())
    } else {
        let it = getsockopt(stream, Ip6tOriginalDst).ok()?;
        let address = Ipv6Addr::from(it.sin6_addr.s6_addr);
        Some(SocketAddrV6::new(address, u16::from_be(it.sin6_port), 0, 0).into())
    }
}
