//! The ICMP that a client sees: errors about a packet it sent, and replies to its pings.
//! Never decides what they mean for a probe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, SockAddr, Socket, Type};

const IPV6_HEADER: usize = 40;
/// Errors of IPv6: unreachable, too big, time exceeded, parameter problem.
const V6_ERRORS: std::ops::RangeInclusive<u8> = 1..=4;
const V4_UNREACHABLE: u8 = 3;
const ECHO_REQUEST: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];

/// Protocol numbers, as they stand in an IP header.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What a quoted packet must be like to be the one that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) content: Content,
}

/// The part above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// TCP or UDP, by number.
    Ports { protocol: u8, source: u16, destination: u16 },
    /// An echo request.
    Echo { identifier: u16 },
}

/// What came, if it concerns the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Error {
        icmp_type: u8,
        icmp_code: u8,
    },
    /// An echo reply with this payload.
    Reply(Vec<u8>),
}

/// A raw socket that hears all ICMP of one family.
#[derive(Debug)]
pub(crate) struct IcmpSocket(Socket);

impl IcmpSocket {
    /// In the calling thread's namespace, for the family of that address.
    pub(crate) fn open(towards: IpAddr) -> Result<Self> {
        let (domain, protocol) = match towards {
            IpAddr::V4(_) => (Domain::IPV4, socket2::Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, socket2::Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol));
        let socket = socket.context("cannot open a raw ICMP socket")?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sends an echo request.
    pub(crate) fn ping(&self, to: IpAddr, identifier: u16, payload: &[u8]) -> Result<()> {
        let echo = IcmpEchoHeader { id: identifier, seq: 1 };
        let mut message = match to {
            IpAddr::V4(_) => {
                let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
                header.to_bytes().to_vec()
            }
            // The kernel knows the source address and fills the checksum in.
            IpAddr::V6(_) => {
                let icmp_type = Icmpv6Type::EchoRequest(echo);
                Icmpv6Header { icmp_type, checksum: 0 }.to_bytes().to_vec()
            }
        };
        message.extend_from_slice(payload);
        let to = SockAddr::from(std::net::SocketAddr::new(to, 0));
        self.0.send_to(&message, &to).context("cannot send an echo request")?;
        Ok(())
    }

    /// The next message about the packet that is already here; all others are gone.
    pub(crate) fn heard(&self, about: &Sent) -> Result<Option<Heard>> {
        let mut buffer = [0; 1 << 16];
        loop {
            match recvfrom::<SockaddrStorage>(self.0.as_raw_fd(), &mut buffer) {
                Ok((length, from)) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    let from = from.as_ref().and_then(ip_address);
                    if let Some(heard) = from.and_then(|from| hear(datagram, from, about)) {
                        return Ok(Some(heard));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error).context("cannot read ICMP"),
            }
        }
    }
}

fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
}

/// Reads a datagram as a raw socket gives it: with the IP header for IPv4 only.
fn hear(datagram: &[u8], from: IpAddr, about: &Sent) -> Option<Heard> {
    let message = match about.destination {
        IpAddr::V4(_) => split_v4(datagram)?.2,
        IpAddr::V6(_) => datagram,
    };
    let &[icmp_type, icmp_code, _, _, a, b, _, _] = message.get(..8)? else { return None };
    let behind = message.get(8..)?;
    let is_error = match about.destination {
        IpAddr::V4(_) => icmp_type == V4_UNREACHABLE,
        IpAddr::V6(_) => V6_ERRORS.contains(&icmp_type),
    };
    if is_error {
        let quoted = read_quote(behind, about.destination)?;
        return (quoted == *about).then_some(Heard::Error { icmp_type, icmp_code });
    }
    let identifier = u16::from_be_bytes([a, b]);
    let is_reply = ECHO_REPLY.contains(&icmp_type)
        && from == about.destination
        && about.content == Content::Echo { identifier };
    is_reply.then(|| Heard::Reply(behind.to_vec()))
}

/// The beginning of a packet that an error quotes, of the family of that address.
fn read_quote(quote: &[u8], family: IpAddr) -> Option<Sent> {
    let (protocol, [source, destination], content) = match family {
        IpAddr::V4(_) => split_v4(quote)?,
        IpAddr::V6(_) => split_v6(quote)?,
    };
    let &[a, b, c, d, e, f, ..] = content.get(..8)? else { return None };
    let content = match protocol {
        TCP | UDP => Content::Ports {
            protocol,
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
        },
        ICMP | ICMPV6 if ECHO_REQUEST.contains(&a) => {
            Content::Echo { identifier: u16::from_be_bytes([e, f]) }
        }
        _ => return None,
    };
    Some(Sent { source, destination, content })
}

/// Protocol, source and destination, and what follows the header.
type Split<'a> = (u8, [IpAddr; 2], &'a [u8]);

fn split_v4(packet: &[u8]) -> Option<Split<'_>> {
    let words = usize::from(packet.first()? & 0xf);
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    Some((*packet.get(9)?, [address(12)?, address(16)?], packet.get(words * 4..)?))
}

fn split_v6(packet: &[u8]) -> Option<Split<'_>> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    // The probes send no extension headers, so none is quoted.
    Some((*packet.get(6)?, [address(8)?, address(24)?], packet.get(IPV6_HEADER..)?))
}
