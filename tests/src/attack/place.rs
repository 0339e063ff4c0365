//! Where the attacker's packets can come from and go to, and whose flows it can speak about.
//! Never looks anything up in a kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::mark::Mark;
use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{TCP, UDP};
use crate::rig::{self, ClientSpec};

/// Number of the attacker's domain.
pub(crate) const ATTACKER: u8 = 11;
/// Numbers of the honest clients' domains.
pub(crate) const HONEST: [u8; 2] = [12, 13];
/// The host that all honest flows go to.
pub(crate) const SERVER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7)),
];
/// Its port.
pub(crate) const SERVED: u16 = 443;

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// The attacker's.
    Own,
    /// The netvm's on the vif.
    Gateway,
    /// The netvm's on its uplink.
    Uplink,
    /// Of the host that honest flows go to.
    Server,
    /// Of the next hop behind the uplink.
    NextHop,
    /// Of nobody, behind the uplink.
    Nobody,
    /// Of the first or the second honest client.
    Honest(u8),
    /// A virtual resolver of Qubes; nobody in IPv6.
    Resolver,
    /// All hosts on the link.
    Multicast,
    /// All bits set; all routers in IPv6.
    Broadcast,
    /// All hosts of the uplink's network; all its routers in IPv6 (RFC 4291, section 2.6.1).
    Network,
    /// Link-local, of nobody.
    LinkLocal,
    /// Made of the mark.
    Marked,
    /// One of 65,536 addresses of nobody, by the number of the frame in a flood.
    Numbered,
}

impl Place {
    /// All places, one of each kind.
    pub(crate) const ALL: [Self; 15] = [
        Self::Own,
        Self::Gateway,
        Self::Uplink,
        Self::Server,
        Self::NextHop,
        Self::Nobody,
        Self::Honest(0),
        Self::Honest(1),
        Self::Resolver,
        Self::Multicast,
        Self::Broadcast,
        Self::Network,
        Self::LinkLocal,
        Self::Marked,
        Self::Numbered,
    ];

    /// Its address.
    pub(crate) fn address(self, family: Family, mark: Mark, number: u16) -> IpAddr {
        match family {
            Family::V4 => self.v4(mark, number).into(),
            Family::V6 => self.v6(mark, number).into(),
        }
    }

    fn v4(self, mark: Mark, number: u16) -> Ipv4Addr {
        let [high, low] = number.to_be_bytes();
        match self {
            Self::Own => client(ATTACKER).0,
            Self::Gateway => rig::GATEWAY_V4,
            Self::Uplink => rig::UPLINK_V4,
            Self::Server => Ipv4Addr::new(198, 51, 100, 7),
            Self::NextHop => rig::INTERNET_V4,
            Self::Nobody => Ipv4Addr::new(203, 0, 113, 9),
            Self::Honest(index) => client(honest(index)).0,
            Self::Resolver => Ipv4Addr::new(10, 139, 1, 1),
            Self::Multicast => Ipv4Addr::new(224, 0, 0, 1),
            Self::Broadcast => Ipv4Addr::BROADCAST,
            Self::Network => rig::UPLINK_BROADCAST,
            Self::LinkLocal => Ipv4Addr::new(169, 254, 3, 4),
            Self::Marked => Ipv4Addr::from(mark.once()),
            Self::Numbered => Ipv4Addr::new(10, 200, high, low),
        }
    }

    fn v6(self, mark: Mark, number: u16) -> Ipv6Addr {
        let [a, b] = mark.halves();
        match self {
            Self::Own => client(ATTACKER).1,
            Self::Gateway => rig::GATEWAY_V6,
            Self::Uplink => rig::UPLINK_V6,
            Self::Server => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7),
            Self::NextHop => rig::INTERNET_V6,
            Self::Nobody | Self::Resolver => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9),
            Self::Honest(index) => client(honest(index)).1,
            Self::Multicast => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            Self::Broadcast => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
            Self::Network => rig::UPLINK_ANYCAST,
            Self::LinkLocal => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x304),
            Self::Marked => Ipv6Addr::new(0x2001, 0xdb8, a, b, a, b, a, b),
            Self::Numbered => Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xbad, number),
        }
    }
}

/// Whose flow is spoken about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// Of the first or the second honest client.
    Honest(u8),
    /// Of the netvm itself.
    Netvm,
    /// Of the attacker, which has none.
    Own,
}

/// Which of somebody's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    /// Its TCP connection.
    Tcp,
    /// Its UDP flow.
    Udp,
    /// Its pings.
    Ping,
}

impl Flow {
    /// Its protocol.
    pub(crate) fn protocol(self, family: Family) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Ping => family.icmp(),
        }
    }
}

/// Which packet of a flow, and on which side of address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// To the server, as the client sends it.
    Sent,
    /// To the server, as the netvm sends it on.
    SentOn,
    /// The answer, as the server sends it.
    Answer,
    /// The answer, as the client gets it.
    AnswerIn,
}

/// The ports, or the identifiers of pings, of all honest flows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports(pub(crate) Vec<(Whose, Family, Flow, u16)>);

impl Ports {
    /// Of this flow; the attacker has none, so anything will do.
    pub(crate) fn of(&self, whose: Whose, family: Family, flow: Flow) -> u16 {
        let found = self.0.iter().find(|it| (it.0, it.1, it.2) == (whose, family, flow));
        found.map_or(40000, |it| it.3)
    }
}

impl Whose {
    /// Its address on its own side of the netvm.
    pub(crate) fn inside(self) -> Place {
        match self {
            Self::Honest(index) => Place::Honest(index),
            Self::Netvm => Place::Uplink,
            Self::Own => Place::Own,
        }
    }
}

fn honest(index: u8) -> u8 {
    HONEST[usize::from(index) % HONEST.len()]
}

fn client(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let spec = ClientSpec::numbered(number);
    (spec.v4.unwrap_or(Ipv4Addr::UNSPECIFIED), spec.v6.unwrap_or(Ipv6Addr::UNSPECIFIED))
}
