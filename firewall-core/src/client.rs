//! Who is a client: addresses behind vifs, and all other links.
//! Never tells what is in force for a client.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use firewall_common::abi::Local;
use ipnet::IpNet;

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
    /// All routes but default ones, and those that put an address behind a vif.
    pub routes: Vec<Route>,
    /// Vifs that are ports of another link, like a bridge: interface index to the name of that link.
    pub ports: BTreeMap<u32, String>,
}

impl Links {
    /// All clients whose address is behind a vif whether it has rules or not. Nobody is at home behind
    /// a port of another link: what comes from there is that link's to the kernel, and to the gate.
    pub fn clients(&self) -> BTreeSet<ClientId> {
        let vifs = self.vifs.iter().filter(|vif| !self.ports.contains_key(&vif.index));
        let clients = vifs.flat_map(|vif| vif.addresses.iter().map(|it| (vif.index, *it)));
        clients.map(|(vif, address)| ClientId { vif, address }).collect()
    }
}

/// Where the kernel sends what is for a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub network: IpNet,
    /// Of routes for one network, the kernel takes the one with the lowest number.
    pub metric: u32,
    /// Interface index of the vif that the route leads to; `None` if it leads elsewhere, nowhere, or
    /// not always to the same.
    pub vif: Option<u32>,
}

/// The vif that routes lead to for an address; `None` if they lead elsewhere, or disagree.
pub fn routed_to(routes: &[Route], address: IpAddr) -> Option<u32> {
    let rank = |route: &Route| (route.network.prefix_len(), Reverse(route.metric));
    let covering = || routes.iter().filter(|route| route.network.contains(&address));
    let best = covering().map(rank).max()?;
    let mut vifs = covering().filter(|route| rank(route) == best).map(|route| route.vif);
    let vif = vifs.next()??;
    vifs.all(|other| other == Some(vif)).then_some(vif)
}

/// Whether an address can be a client's: today's antispoofing knows no multicast, link-local or
/// loopback sources either.
pub fn may_be_client(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_unusable = address.is_multicast() || address.is_loopback() || address.is_unspecified();
    !is_link_local && !is_unusable
}
