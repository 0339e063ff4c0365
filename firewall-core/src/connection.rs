//! A connection, as the kernel tracks it.
//! Never decides whether it may go on.

use std::net::IpAddr;

use firewall_common::packet::Packet;

/// A connection, as whoever opened it sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// A packet of it, as the opener sends it: before any translation.
    pub packet: Packet,
    /// A packet that answers, as the other side sends it.
    pub answer: Option<Packet>,
    /// The address family, as the kernel numbers it.
    pub family: u8,
    /// What the kernel knows it by, in the kernel's own bytes: its tuple, zone and number.
    pub name: Vec<u8>,
}

impl Flow {
    /// Who opened it.
    pub fn source(&self) -> IpAddr {
        self.packet.source.into()
    }
}
