//! vifs and addresses, from rtnetlink alone: links whose name matches the pattern, their
//! permanent neighbour entries and host routes, and the netvm's own addresses.
//! Never changes a link, and never keeps count of single changes: each one makes it read
//! everything again, so that nothing can be missed or applied twice.
//!
//! Source: Qubes' vif-route-qubes adds the permanent neighbour entry of each address
//! before the link goes up, and the host route after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use firewall_common::abi::Local;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use thiserror::Error;

use crate::edges::wait::pace::Changes;
use firewall_core::client::{Links, Route, Vif, may_be_client};
use ipnet::IpNet;

/// Which links are vifs: a name, or the beginning of names with a `*` behind it, as
/// nftables writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Not a [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not an interface name, or the beginning of one followed by `*`")]
pub struct NotAPattern(String);

impl Pattern {
    /// Whether a link of this name is a vif.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == self.0,
        }
    }

    /// The pattern as nftables and people write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Self, NotAPattern> {
        let name = text.strip_suffix('*').unwrap_or(text);
        // IFNAMSIZ is 16 with the NUL. Anything that would need quoting in nftables is out.
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 15 || !name.bytes().all(allowed) {
            return Err(NotAPattern(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Changes are told no more often than this: clients can make neighbours change as fast as
/// they can send ARP.
const BETWEEN_READS: Duration = Duration::from_millis(50);

/// A subscription to changes of links, and the means to read all links.
pub struct Watch {
    pattern: Pattern,
    handle: Handle,
    changes: Changes,
}

impl Watch {
    /// Subscribes to changes of links, neighbours, addresses and routes. An error if there can be
    /// no netlink socket. Must be called inside a tokio runtime.
    pub fn start(pattern: Pattern) -> std::io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        // Answers on a socket of their own cannot drown in a flood of changes.
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        // Whatever arrives, an overrun included, means "read again".
        let changes = Changes::new(messages.map(drop), BETWEEN_READS);
        Ok(Self { pattern, handle, changes })
    }

    /// Waits until something changed; no more often than once in 50 milliseconds.
    pub async fn changed(&mut self) {
        self.changes.next().await;
    }

    /// Reads all links, with what is behind them. An error if the kernel does not tell something.
    pub async fn read(&self) -> Result<Links, rtnetlink::Error> {
        let mut vifs: BTreeMap<u32, Vif> = BTreeMap::new();
        let mut uplinks = BTreeMap::new();
        let mut controllers = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let index = link.header.index;
            controllers.extend(link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Controller(controller) => Some((index, *controller)),
                _ => None,
            }));
            match name {
                Some(name) if self.pattern.matches(&name) => {
                    vifs.insert(index, Vif { index, name, addresses: BTreeSet::new() });
                }
                Some(name) if !link.header.flags.contains(LinkFlags::Loopback) => {
                    uplinks.insert(index, name);
                }
                Some(_) | None => {}
            }
        }
        let mut locals = BTreeMap::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            // Behind a point-to-point peer, `Local` is the own one; else both are.
            let own = |local| {
                address.attributes.iter().find_map(move |attribute| match attribute {
                    AddressAttribute::Local(own) if local => Some(*own),
                    AddressAttribute::Address(own) if !local => Some(*own),
                    _ => None,
                })
            };
            let own = own(true).or_else(|| own(false));
            locals.extend(own.map(|address| (address, Local::One)));
        }
        self.read_neighbours(&mut vifs).await?;
        let routes = self.read_routes(&mut vifs, &mut locals).await?;
        for vif in vifs.values_mut() {
            vif.addresses.retain(|address| !locals.contains_key(address));
        }
        let ports = ports(&vifs, &uplinks, controllers);
        Ok(Links { vifs: vifs.into_values().collect(), uplinks, locals, routes, ports })
    }

    async fn read_neighbours(&self, vifs: &mut BTreeMap<u32, Vif>) -> Result<(), rtnetlink::Error> {
        let mut neighbours = self.handle.neighbours().get().execute();
        while let Some(neighbour) = neighbours.try_next().await? {
            if neighbour.header.state != NeighbourState::Permanent {
                continue;
            }
            let address = neighbour.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    Some(IpAddr::V4(*v4))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    Some(IpAddr::V6(*v6))
                }
                _ => None,
            });
            add(vifs, Some(neighbour.header.ifindex), address);
        }
        Ok(())
    }

    /// Host routes to clients, and what the kernel takes for its own beside its addresses: the
    /// broadcast addresses of networks, and of IPv6 networks the anycast address of all routers.
    /// Returns the other routes.
    async fn read_routes(
        &self,
        vifs: &mut BTreeMap<u32, Vif>,
        locals: &mut BTreeMap<IpAddr, Local>,
    ) -> Result<Vec<Route>, rtnetlink::Error> {
        let mut others = Vec::new();
        let families = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for family in families {
            let mut routes = Box::pin(self.handle.route().get(family).execute());
            while let Some(route) = routes.try_next().await? {
                let (interface, address) = host_route(&route);
                if !(route.header.kind == RouteType::Unicast && address.is_some()) {
                    others.extend(network_route(&route, vifs));
                }
                match route.header.kind {
                    RouteType::Unicast => add(vifs, interface, address),
                    RouteType::Local => {
                        locals.extend(address.map(|address| (address, Local::One)));
                    }
                    // An address of an interface stands for the netvm, whatever else it is.
                    RouteType::Broadcast | RouteType::Anycast => {
                        if let Some(address) = address {
                            locals.entry(address).or_insert(Local::Many);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(others)
    }
}

/// The vifs that are ports of another link, with the name of that link.
fn ports(
    vifs: &BTreeMap<u32, Vif>,
    uplinks: &BTreeMap<u32, String>,
    controllers: BTreeMap<u32, u32>,
) -> BTreeMap<u32, String> {
    let name = |index: u32| {
        let vif = vifs.get(&index).map(|vif| vif.name.clone());
        // One that came or went between two messages has no name here.
        vif.or_else(|| uplinks.get(&index).cloned()).unwrap_or_else(|| format!("link {index}"))
    };
    let ports = controllers.into_iter().filter(|(index, _)| vifs.contains_key(index));
    ports.map(|(index, controller)| (index, name(controller))).collect()
}

/// Where a route of the main table leads, unless it is a default route.
fn network_route(route: &RouteMessage, vifs: &BTreeMap<u32, Vif>) -> Option<Route> {
    let header = &route.header;
    let length = header.destination_prefix_length;
    if header.table != RouteHeader::RT_TABLE_MAIN || length == 0 {
        return None;
    }
    let (mut destination, mut metric, mut interface) = (None, 0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                destination = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                destination = Some(IpAddr::V6(*v6));
            }
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    // One that has several ways (`MultiPath`, without `Oif`), or is for some packets only, does not
    // always lead to the same; one of another kind leads nowhere.
    let leads = header.kind == RouteType::Unicast && header.tos == 0;
    let is_for_all = leads && header.source_prefix_length == 0;
    let vif = interface.filter(|index| is_for_all && vifs.contains_key(index));
    let network = IpNet::new(destination?, length).ok()?;
    Some(Route { network, metric, vif })
}

/// Interface and destination of a route to one host on the link, or to this machine. Other routes
/// that the kernel makes by itself are for addresses of this machine as well.
fn host_route(route: &RouteMessage) -> (Option<u32>, Option<IpAddr>) {
    let header = &route.header;
    let is_foreign = header.kind == RouteType::Unicast
        && (header.protocol == RouteProtocol::Kernel || header.table != RouteHeader::RT_TABLE_MAIN);
    if is_foreign {
        return (None, None);
    }
    let mut interface = None;
    let mut address = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(v4))
                if header.destination_prefix_length == 32 =>
            {
                address = Some(IpAddr::V4(*v4));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6))
                if header.destination_prefix_length == 128 =>
            {
                address = Some(IpAddr::V6(*v6));
            }
            RouteAttribute::Gateway(_) => return (None, None),
            _ => {}
        }
    }
    (interface, address)
}

/// Adds an address to a vif, if it can be a client's.
fn add(vifs: &mut BTreeMap<u32, Vif>, interface: Option<u32>, address: Option<IpAddr>) {
    let (Some(interface), Some(address)) = (interface, address) else {
        return;
    };
    if let Some(vif) = vifs.get_mut(&interface).filter(|_| may_be_client(address)) {
        vif.addresses.insert(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_the_beginning_of_one() {
        let check = |pattern: &str, name: &str, expected: bool| {
            let parsed: Result<Pattern, _> = pattern.parse();
            assert_eq!(parsed.is_ok_and(|it| it.matches(name)), expected, "{pattern} {name}");
        };
        check("vif*", "vif1.0", true);
        check("vif*", "vif", true);
        check("vif*", "eth0", false);
        check("tap0", "tap0", true);
        check("tap0", "tap01", false);
        for bad in ["", "*", "a b*", "vif*\"", "abcdefghijklmnop", "v*f"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
