//! Real traffic from a client, and what came back.
//! Never looks at the firewall: only at what the client itself can see.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use rand::random;
use socket2::{Domain, Socket, Type};

use crate::rig::namespace::Namespace;
use crate::traffic::icmp::{Content, Heard, IcmpSocket, Sent, TCP, UDP};
use crate::traffic::wait::Deadline;

/// How long nothing must come back to call it silence.
pub const SILENCE: Duration = Duration::from_millis(700);

const V4_PORT_UNREACHABLE: (u8, u8) = (3, 3);
const V6_PORT_UNREACHABLE: (u8, u8) = (1, 4);

/// What a probe sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Opens a connection and closes it.
    Tcp,
    /// Sends one packet to an echo server.
    Udp,
    /// Sends one ICMP echo request.
    Ping,
}

/// One attempt to reach something.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Whose attempt it is.
    pub from: Namespace,
    /// What shall be reached.
    pub to: IpAddr,
    /// Its port; a ping has none.
    pub port: u16,
    /// How.
    pub protocol: Protocol,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection stands, or the echo came.
    Accepted,
    /// An ICMP error about the packet came, other than port unreachable.
    Rejected {
        /// 3 for IPv4, 1 to 4 for IPv6.
        icmp_type: u8,
        /// 13 (IPv4) or 1 (IPv6) is "administratively prohibited".
        icmp_code: u8,
    },
    /// Nobody listens: a TCP reset, or ICMP port unreachable.
    Refused,
    /// Nothing in time.
    Silent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Rejected { icmp_type, icmp_code } => {
                write!(f, "rejected (icmp {icmp_type}/{icmp_code})")
            }
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("silent"),
        }
    }
}

impl Probe {
    /// A TCP connection.
    pub fn tcp(from: &Namespace, to: SocketAddr) -> Self {
        Self { from: from.clone(), to: to.ip(), port: to.port(), protocol: Protocol::Tcp }
    }

    /// A UDP packet.
    pub fn udp(from: &Namespace, to: SocketAddr) -> Self {
        Self { from: from.clone(), to: to.ip(), port: to.port(), protocol: Protocol::Udp }
    }

    /// A ping.
    pub fn ping(from: &Namespace, to: IpAddr) -> Self {
        Self { from: from.clone(), to, port: 0, protocol: Protocol::Ping }
    }

    /// Sends it, and waits for the first answer. An error is a problem of the rig, such as
    /// a client without a route, and not an outcome.
    pub fn run(&self, timeout: Duration) -> Result<Outcome> {
        self.from.run(|| self.run_here(timeout)).with_context(|| {
            format!(
                "{:?} probe from `{}` to {} port {}",
                self.protocol,
                self.from.name(),
                self.to,
                self.port
            )
        })
    }

    fn run_here(&self, timeout: Duration) -> Result<Outcome> {
        let deadline = Deadline::after(timeout);
        // Open before anything is sent, or an error could come too early to be heard.
        let icmp = IcmpSocket::open(self.to)?;
        let attempt = Attempt::start(self, &icmp)?;
        let mut problem = None;
        loop {
            match icmp.heard(&attempt.sent)? {
                Some(Heard::Error { icmp_type, icmp_code }) => {
                    return Ok(outcome_of_error(self.to, icmp_type, icmp_code));
                }
                Some(Heard::Reply(payload)) if payload == attempt.token => {
                    return Ok(Outcome::Accepted);
                }
                Some(Heard::Reply(_)) => continue,
                None => {}
            }
            if problem.is_none() {
                match attempt.progress() {
                    Ok(None) => {}
                    Ok(Some(outcome)) => return Ok(outcome),
                    // Due to an ICMP error, which may be still to be read.
                    Err(error) => problem = Some(error),
                }
            }
            let mut descriptors = vec![PollFd::new(icmp.descriptor(), PollFlags::POLLIN)];
            if problem.is_none() {
                descriptors.extend(attempt.descriptor());
            }
            if !deadline.poll(&mut descriptors)? {
                break;
            }
        }
        problem.map_or(Ok(Outcome::Silent), Err)
    }
}

fn outcome_of_error(to: IpAddr, icmp_type: u8, icmp_code: u8) -> Outcome {
    let port_unreachable = match to {
        IpAddr::V4(_) => V4_PORT_UNREACHABLE,
        IpAddr::V6(_) => V6_PORT_UNREACHABLE,
    };
    if (icmp_type, icmp_code) == port_unreachable {
        Outcome::Refused
    } else {
        Outcome::Rejected { icmp_type, icmp_code }
    }
}

/// A probe that was sent.
struct Attempt {
    channel: Channel,
    sent: Sent,
    /// What the echo must contain.
    token: Vec<u8>,
}

enum Channel {
    Tcp(Socket),
    Udp(UdpSocket),
    /// The raw ICMP socket hears the reply.
    Ping,
}

impl Attempt {
    fn start(probe: &Probe, icmp: &IcmpSocket) -> Result<Self> {
        let token = random::<[u8; 16]>().to_vec();
        let to = SocketAddr::new(probe.to, probe.port);
        let (channel, source, content) = match probe.protocol {
            Protocol::Tcp => {
                let socket = connect(to)?;
                let source = local_address(&socket)?;
                let content = ports(TCP, source, to);
                (Channel::Tcp(socket), source, content)
            }
            Protocol::Udp => {
                let socket = udp_towards(to)?;
                let source = socket.local_addr()?;
                socket.send(&token).context("cannot send the packet")?;
                (Channel::Udp(socket), source, ports(UDP, source, to))
            }
            Protocol::Ping => {
                // Connecting chooses the source address and sends nothing.
                let source = udp_towards(SocketAddr::new(probe.to, 9))?.local_addr()?;
                let identifier = random();
                icmp.ping(probe.to, identifier, &token)?;
                (Channel::Ping, source, Content::Echo { identifier })
            }
        };
        let sent = Sent { source: source.ip(), destination: probe.to, content };
        Ok(Self { channel, sent, token })
    }

    fn descriptor(&self) -> Option<PollFd<'_>> {
        match &self.channel {
            Channel::Tcp(socket) => Some(PollFd::new(socket.as_fd(), PollFlags::POLLOUT)),
            Channel::Udp(socket) => Some(PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
            Channel::Ping => None,
        }
    }

    /// What its own socket knows so far.
    fn progress(&self) -> Result<Option<Outcome>> {
        match &self.channel {
            Channel::Tcp(socket) => match socket.take_error()? {
                Some(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Ok(Some(Outcome::Refused))
                }
                Some(error) => Err(error).context("cannot connect"),
                None if socket.peer_addr().is_ok() => Ok(Some(Outcome::Accepted)),
                None => Ok(None),
            },
            Channel::Udp(socket) => {
                let mut buffer = [0; 64];
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let is_echo = buffer.get(..length) == Some(self.token.as_slice());
                        ensure!(is_echo, "something else than the echo came back");
                        Ok(Some(Outcome::Accepted))
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                    Err(error) => Err(error).context("cannot receive the echo"),
                }
            }
            Channel::Ping => Ok(None),
        }
    }
}

/// A TCP connection that stays open, to a server that echoes.
#[derive(Debug)]
pub struct OpenFlow {
    stream: TcpStream,
    /// What was sent and did not come back yet.
    expected: Vec<u8>,
}

impl OpenFlow {
    /// Connects; an error if it does not stand in time.
    pub fn open(from: &Namespace, to: SocketAddr, timeout: Duration) -> Result<Self> {
        let stream = from.run(|| Ok(TcpStream::connect_timeout(&to, timeout)?));
        let stream = stream.with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, expected: Vec::new() })
    }

    /// Its own end.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends a few bytes; did their echo, and that of all earlier ones, come in time?
    /// Bytes that were lost are sent again by TCP, later and later.
    pub fn exchange(&mut self, timeout: Duration) -> Result<bool> {
        let deadline = Deadline::after(timeout);
        let token: [u8; 8] = random();
        match self.stream.write(&token) {
            Ok(length) => ensure!(length == token.len(), "the connection is stuffed"),
            Err(error) if is_cut(&error) => return Ok(false),
            Err(error) => return Err(error).context("cannot send"),
        }
        self.expected.extend_from_slice(&token);
        let mut buffer = [0; 256];
        while !self.expected.is_empty() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    let echo = buffer.get(..length).unwrap_or_default();
                    ensure!(self.expected.starts_with(echo), "the echo is not what was sent");
                    self.expected.drain(..length);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !deadline.poll(&mut [readable(self.stream.as_fd())])? {
                        return Ok(false);
                    }
                }
                Err(error) if is_cut(&error) => return Ok(false),
                Err(error) => return Err(error).context("cannot receive"),
            }
        }
        Ok(true)
    }
}

/// Errors by which a connection learns that it is dead.
fn is_cut(error: &std::io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    let reset = [Errno::ECONNRESET, Errno::EPIPE, Errno::ETIMEDOUT];
    let unreachable = [Errno::EHOSTUNREACH, Errno::ENETUNREACH, Errno::EACCES];
    reset.into_iter().chain(unreachable).any(|it| number == Some(it))
}

fn readable(descriptor: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(descriptor, PollFlags::POLLIN)
}

fn ports(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Content {
    Content::Ports { protocol, source: source.port(), destination: destination.port() }
}

/// Sends a SYN and does not wait.
fn connect(to: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
            Err(error).context("cannot send a SYN")
        }
        Err(_) | Ok(()) => Ok(socket),
    }
}

fn udp_towards(to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => "0.0.0.0:0".parse()?,
        SocketAddr::V6(_) => "[::]:0".parse()?,
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).context("there is no way to it")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn local_address(socket: &Socket) -> Result<SocketAddr> {
    socket.local_addr()?.as_socket().context("not an address of the internet")
}
