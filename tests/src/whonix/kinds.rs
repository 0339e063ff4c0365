//! Kinds of traffic that a qube can send to a Whonix gateway: where to, what, and what is odd
//! about it.
//! Never says what becomes of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};

use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{self, DESTINATION, TCP, UDP, V4, V6, fragments};
use crate::rig::{GATEWAY_V4, GATEWAY_V6, UPLINK_V4, UPLINK_V6};
use crate::whonix::OWN_V6;

/// Flags of a TCP segment, and where they are.
const FLAGS: usize = 13;
/// IPv4's "no operation".
const NO_OPERATION: u8 = 1;

/// Where a qube sends something to. Not each is there in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host of the internet.
    Host,
    /// Another one.
    Elsewhere,
    /// A machine in the gateway's LAN.
    Lan,
    /// What Tor answers instead of an onion service's name.
    Onion,
    /// The gateway, by the address that the qube knows.
    Gateway,
    /// The gateway, by its vif's address. In IPv4 they are one.
    Vif,
    /// The gateway's address on its uplink.
    Uplink,
    /// A disposable qube.
    Disposable,
    /// The address that gateways have without Qubes OS.
    Fixed,
    /// A DNS server as Qubes OS names them.
    Resolver,
    /// The sender's own loopback, or the gateway's.
    Loopback,
    /// Everybody.
    Broadcast,
    /// A group: mDNS.
    Group,
}

impl Place {
    /// Its address.
    pub fn address(self, family: Family) -> Option<IpAddr> {
        let v4 = |a, b, c, d| Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        let v6 = |text: &str| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
        family.of(match self {
            Self::Host => [v4(198, 51, 100, 7), v6("2001:db8:1::7")],
            Self::Elsewhere => [v4(203, 0, 113, 9), v6("2001:db8:2::9")],
            Self::Lan => [v4(192, 168, 1, 1), v6("fd12:3456:789a::1")],
            Self::Onion => [v4(10, 192, 0, 5), None],
            Self::Gateway => [Some(GATEWAY_V4.into()), Some(OWN_V6.into())],
            Self::Vif => [None, Some(GATEWAY_V6.into())],
            Self::Uplink => [Some(UPLINK_V4.into()), Some(UPLINK_V6.into())],
            Self::Disposable => [v4(10, 138, 0, 9), v6("fd09:24ef:4179::a8a:9")],
            Self::Fixed => [v4(10, 152, 152, 10), v6("fd19:c33d:88bc::10")],
            Self::Resolver => [v4(10, 139, 1, 1), None],
            Self::Loopback => [v4(127, 0, 0, 1), v6("::1")],
            Self::Broadcast => [v4(255, 255, 255, 255), None],
            Self::Group => [v4(224, 0, 0, 251), v6("ff02::fb")],
        })
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Opens a TCP connection to this port.
    Open(u16),
    /// The same, asking for congestion notification (RFC 3168), as Linux can.
    OpenEcn(u16),
    /// A segment of a connection that nobody has opened, to this port.
    Segment(u16),
    /// A UDP packet to this port.
    Udp(u16),
    /// An echo request.
    Echo,
    /// Something of another protocol.
    Protocol(u8),
}

/// What is odd about the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// Nothing.
    Plain,
    /// It may go no further than to the gateway.
    OneHop,
    /// It comes in two fragments.
    Fragments,
    /// It comes in two fragments, of which the first is missing.
    OnlyLast,
    /// It has options that mean nothing.
    Options,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Where to.
    pub to: Place,
    /// What.
    pub what: What,
    /// What is odd about it.
    pub odd: Odd,
}

impl Kind {
    /// The packets of it, from this address and port; none if there is no such place in the family.
    pub fn packets(&self, from: IpAddr, port: u16) -> Result<Vec<Vec<u8>>> {
        let family = Family::from(from);
        let Some(to) = self.to.address(family) else { return Ok(Vec::new()) };
        let (protocol, payload) = self.payload(family, port);
        let payload = packets::sealed(from, to, protocol, &payload);
        let packet = self.packet(from, to, protocol, &payload)?;
        Ok(match self.odd {
            Odd::Plain | Odd::OneHop | Odd::Options => vec![packet],
            Odd::Fragments => fragments::pieces(&packet, port, &[8]),
            Odd::OnlyLast => fragments::pieces(&packet, port, &[8]).split_off(1),
        })
    }

    fn payload(&self, family: Family, port: u16) -> (u8, Vec<u8>) {
        match self.what {
            What::Open(to) => (TCP, packets::tcp(port, to)),
            What::OpenEcn(to) => {
                let mut segment = packets::tcp(port, to);
                segment[FLAGS] = 0xc2;
                (TCP, segment)
            }
            What::Segment(to) => (TCP, packets::segment(port, to, b"unasked")),
            What::Udp(to) => (UDP, packets::datagram(port, to, b"asks for something")),
            What::Echo => {
                let data = [0x11; 16];
                (family.icmp(), [&packets::icmp(family.echo(), 0), &data[..]].concat())
            }
            What::Protocol(number) => (number, vec![0x11; 24]),
        }
    }

    fn packet(&self, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let hops = if self.odd == Odd::OneHop { 1 } else { 64 };
        let has_options = self.odd == Odd::Options;
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut packet = V4::new(from, to, protocol, payload);
                packet.ttl = hops;
                packet.options = if has_options { vec![NO_OPERATION; 4] } else { Vec::new() };
                Ok(packet.packet())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut packet = V6::new(from, to, protocol, payload);
                packet.hop_limit = hops;
                let options = packets::options(0);
                Ok(if has_options { packet.with(DESTINATION, &options) } else { packet }.packet())
            }
            _ => bail!("{from} and {to} are of two families"),
        }
    }

    /// The address that it goes to.
    pub fn destination(&self, family: Family) -> Result<IpAddr> {
        self.to.address(family).with_context(|| format!("{:?} has no address", self.to))
    }

    /// The port that it goes to.
    pub fn port(&self) -> Option<u16> {
        match self.what {
            What::Open(port) | What::OpenEcn(port) | What::Segment(port) | What::Udp(port) => {
                Some(port)
            }
            What::Echo | What::Protocol(_) => None,
        }
    }
}
