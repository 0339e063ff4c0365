//! A connection, as the kernel tracks it.
//! Never decides whether a connection may go on.

use std::net::IpAddr;

use firewall_common::packet::Packet;

/// A connection, as whoever opened it sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// A packet of the connection, as the opener sends it: before any translation.
    pub packet: Packet,
    /// A packet that answers, as the other side sends it; `None` if the kernel does not tell.
    pub answer: Option<Packet>,
    /// The address family, as the kernel numbers it: `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// What the kernel knows the connection by, as netlink attributes in the kernel's own bytes:
    /// the original tuple, the zone and the number (`CTA_TUPLE_ORIG`, `CTA_ZONE`, `CTA_ID` in
    /// uapi/linux/netfilter/nfnetlink_conntrack.h).
    pub name: Vec<u8>,
}

impl Flow {
    /// Address of whoever opened the connection.
    pub fn source(&self) -> IpAddr {
        self.packet.source.into()
    }
}
