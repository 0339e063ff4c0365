//! Who is a client: addresses behind vifs, and all other links.
//! Never tells what is in force for a client.

use std::collections::{BTreeMap, BTreeSet};

use firewall_common::abi::Local;
use std::net::IpAddr;

/// A client: an address behind a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId {
    /// Interface index of the vif.
    pub vif: u32,
    /// The client's address.
    pub address: IpAddr,
}

/// A link whose name matches the pattern of vifs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Addresses of the clients behind the vif.
    pub addresses: BTreeSet<IpAddr>,
}

/// All links, as the kernel told them in one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// The vifs.
    pub vifs: Vec<Vif>,
    /// Name by interface index of every other link but loopback.
    pub uplinks: BTreeMap<u32, String>,
    /// What the kernel takes for the netvm's own addresses, on any interface.
    pub locals: BTreeMap<IpAddr, Local>,
}

impl Links {
    /// All clients behind vifs.
    pub fn clients(&self) -> BTreeSet<ClientId> {
        let vifs = self.vifs.iter();
        let clients = vifs.flat_map(|vif| vif.addresses.iter().map(|it| (vif.index, *it)));
        clients.map(|(vif, address)| ClientId { vif, address }).collect()
    }
}
