//! [`Ruleset`] to [`ResolvedRuleset`]: names and special targets become prefixes.
//! Never looks a name up; what is known is an argument.
//!
//! The law: an accept shrinks, a drop grows. A name without an answer makes an accept
//! rule match nothing, and a drop rule match every address, each with its own ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use firewall_common::abi::{Address, MAPPED_BITS};
use ipnet::IpNet;

use super::{Action, Destination, Family, Rule, Ruleset, Service};
use crate::rules::question::Addresses;
use crate::rules::question::Question;
use crate::tor;

/// The addresses that Qubes gives to every client as its DNS servers (`net.py` of qubes-core-admin;
/// QubesDB's `/qubes-primary-dns` and `/qubes-secondary-dns` in the client).
pub const VIRTUAL_RESOLVERS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];

/// Prefix length of the private network that the virtual resolvers are in, 10.0.0.0/8 (RFC 1918).
const VIRTUAL_NETWORK_LENGTH: u8 = 8;

/// What rules refer to without saying it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The real DNS servers, as the netvm's `/etc/resolv.conf` names them.
    pub resolvers: Vec<IpAddr>,
    /// Virtual resolvers that no rule of nftables leads elsewhere: to today's agent, which judges
    /// behind such rules, they are hosts like others.
    pub not_redirected: BTreeSet<Ipv4Addr>,
    /// Whether this is a Whonix gateway: DNS to whatever address is DNS there, no server is virtual,
    /// and Tor has [services](tor::Service), with what qubes whose default is `drop` may do with each.
    pub gateway: Option<tor::Each<tor::Access>>,
    /// Addresses of names; a name that is absent is unresolved.
    pub names: BTreeMap<Question, Addresses>,
}

impl Surroundings {
    /// The real resolver that stands behind each virtual one, as Qubes' DNAT hands them out
    /// (`qubes-setup-dnat-to-ns` of qubes-core-agent-linux):
    /// first to first, second to second, and again from the first when there is one only.
    pub fn redirections(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let real = self.resolvers.iter().filter_map(|address| match address {
            // A packet from a vif cannot be routed to the netvm's loopback.
            IpAddr::V4(v4) if !v4.is_loopback() => Some(*v4),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        let real: Vec<Ipv4Addr> = real.collect();
        let pairs = VIRTUAL_RESOLVERS.into_iter().zip(real.iter().copied().cycle());
        pairs.filter(|(resolver, _)| self.is_redirected(*resolver)).collect()
    }

    /// The virtual resolvers that are led elsewhere.
    fn redirected(&self) -> impl Iterator<Item = Ipv4Addr> {
        VIRTUAL_RESOLVERS.into_iter().filter(|resolver| self.is_redirected(*resolver))
    }

    /// The virtual resolvers that answer: a Whonix gateway leads DNS to Tor, whatever else becomes of
    /// these addresses.
    fn asked_for_dns(&self) -> impl Iterator<Item = Ipv4Addr> {
        let in_gateway = self.gateway.is_some();
        VIRTUAL_RESOLVERS.into_iter().filter(move |it| in_gateway || self.is_redirected(*it))
    }

    fn is_redirected(&self, resolver: Ipv4Addr) -> bool {
        self.gateway.is_none() && !self.not_redirected.contains(&resolver)
    }

    /// Every address that `specialtarget=dns` means for a family.
    fn dns_prefixes(&self, family: Family) -> Vec<Prefix> {
        if self.gateway.is_some() {
            return vec![Prefix::whole(family)];
        }
        let virtual_resolvers = self.redirected().map(IpAddr::from);
        let all = virtual_resolvers.chain(self.resolvers.iter().copied());
        let mut prefixes: Vec<Prefix> =
            all.filter(|it| Family::from(*it) == family).map(Prefix::host).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        prefixes
    }
}

/// A set of addresses with a common beginning, in the 16-byte form of
/// [`firewall_common::abi::Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The first address, most significant bit first; no bit is set behind `length`.
    bits: u128,
    /// How many bits are common, 0 to 128.
    length: u8,
}

impl Prefix {
    /// All addresses of a family.
    pub fn whole(family: Family) -> Self {
        match family {
            Family::V4 => Self { bits: 0xffff << 32, length: MAPPED_BITS },
            Family::V6 => Self { bits: 0, length: 0 },
        }
    }

    /// The prefix of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { bits: bits(address), length: 128 }
    }

    /// The first address in its 16-byte form, as a number: the first byte is the most significant.
    pub fn first(&self) -> u128 {
        self.bits
    }

    /// The last address in its 16-byte form, as a number: the first byte is the most significant.
    pub fn last(&self) -> u128 {
        self.bits | u128::MAX.checked_shr(self.length.into()).unwrap_or(0)
    }

    /// How many bits are common in the 16-byte form, 0 to 128.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The first address in the form of the maps.
    pub fn address(&self) -> Address {
        to_address(self.bits)
    }

    /// The prefix as people write it; `None` if it holds IPv4 addresses and others too.
    pub fn network(&self) -> Option<IpNet> {
        let address = IpAddr::from(self.address());
        let length = match address {
            IpAddr::V4(_) => self.length.checked_sub(MAPPED_BITS)?,
            IpAddr::V6(_) => self.length,
        };
        IpNet::new(address, length).ok()
    }

    /// Whether every address of `other` is in this prefix.
    pub fn covers(&self, other: &Self) -> bool {
        self.first() <= other.first() && other.last() <= self.last()
    }

    /// The prefix of this length around this one; `length` is at most this one's.
    pub fn widened(&self, length: u8) -> Self {
        let mask = !u128::MAX.checked_shr(length.into()).unwrap_or(0);
        Self { bits: self.bits & mask, length }
    }

    /// Both halves of the prefix; `None` for a single address.
    pub fn halves(&self) -> Option<[Self; 2]> {
        let half = (1_u128 << 127).checked_shr(self.length.into())?;
        let length = self.length.checked_add(1)?;
        Some([Self { length, ..*self }, Self { bits: self.bits | half, length }])
    }

    /// The fewest prefixes that hold all of this one but some single addresses.
    fn without(&self, hosts: &[Self]) -> Vec<Self> {
        let (mut whole, mut rest) = (Vec::new(), vec![*self]);
        while let Some(next) = rest.pop() {
            if !hosts.iter().any(|host| next.covers(host)) {
                whole.push(next);
            } else if let Some(halves) = next.halves() {
                rest.extend(halves);
            }
        }
        whole
    }

    /// What two prefixes have in common: one of them, or nothing.
    fn intersection(&self, other: &Self) -> Option<Self> {
        if self.covers(other) {
            Some(*other)
        } else if other.covers(self) {
            Some(*self)
        } else {
            None
        }
    }
}

impl From<IpNet> for Prefix {
    fn from(network: IpNet) -> Self {
        let length = match network {
            IpNet::V4(v4) => v4.prefix_len() + MAPPED_BITS,
            IpNet::V6(v6) => v6.prefix_len(),
        };
        Self { bits: bits(network.network()), length }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address, in the form of the maps, whose 16-byte form is this number, the first byte the most
/// significant.
pub fn to_address(bits: u128) -> Address {
    let v6 = std::net::Ipv6Addr::from_bits(bits);
    Address::from(IpAddr::V6(v6))
}

/// A ruleset without names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRuleset {
    /// Family of the client.
    pub family: Family,
    /// What happens when no rule matches.
    pub default: Action,
    /// One for each rule of the ruleset, in order.
    pub rules: Vec<ResolvedRule>,
}

/// A rule whose destinations are known. It matches where any of its matches does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRule {
    /// What the rule says about packets that match.
    pub action: Action,
    /// Destinations, each with the services there.
    pub matches: Vec<Match>,
}

impl ResolvedRule {
    /// Where the rule can match at all, in the order of addresses, each network once.
    pub fn networks(&self) -> Vec<IpNet> {
        let prefixes = self.matches.iter().flat_map(|found| &found.prefixes);
        let prefixes: BTreeSet<&Prefix> = prefixes.collect();
        prefixes.into_iter().filter_map(Prefix::network).collect()
    }
}

/// Destinations, and the services there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The destinations: any of these prefixes.
    pub prefixes: Vec<Prefix>,
    /// Protocols and ports at these destinations.
    pub service: Service,
}

/// Replaces names and special targets by what is known about them.
pub fn resolve(family: Family, ruleset: &Ruleset, known: &Surroundings) -> ResolvedRuleset {
    let rules = ruleset
        .rules
        .iter()
        .map(|rule| ResolvedRule { action: rule.action, matches: matches(family, rule, known) });
    ResolvedRuleset { family, default: ruleset.default, rules: rules.collect() }
}

fn matches(family: Family, rule: &Rule, known: &Surroundings) -> Vec<Match> {
    if let Destination::Tor(service) = rule.destination {
        return of_tor(family, service);
    }
    let mut prefixes = destinations(family, rule, known);
    if rule.dns {
        let resolvers = known.dns_prefixes(family);
        let common = prefixes.iter().flat_map(|destination| {
            resolvers.iter().filter_map(|resolver| destination.intersection(resolver))
        });
        prefixes = common.collect();
    }
    let given = Match { prefixes, service: rule.service.clone() };
    if spares_dns(rule) {
        return sparing_dns(&given, known);
    }
    let mut matches = vec![given];
    if rule.dns && rule.action == Action::Drop && known.gateway.is_some() {
        matches.extend(tors_own_dns(&matches[0]));
    }
    if rule.action == Action::Accept && !rule.dns && family == Family::V4 {
        matches.extend(virtual_match(&matches[0], known));
    }
    matches
}

fn destinations(family: Family, rule: &Rule, known: &Surroundings) -> Vec<Prefix> {
    match &rule.destination {
        Destination::Any => vec![Prefix::whole(family)],
        Destination::Network(network) => vec![Prefix::from(*network)],
        Destination::Name(name) => {
            let question = Question { name: name.clone(), family };
            let unresolved = Addresses::default();
            let addresses = known.names.get(&question).unwrap_or(&unresolved);
            let hosts = |addresses: &BTreeSet<IpAddr>| {
                addresses.iter().map(|address| Prefix::host(*address)).collect()
            };
            match (rule.action, &addresses.drop) {
                (Action::Accept, _) => hosts(&addresses.accept),
                (Action::Drop, Some(addresses)) => hosts(addresses),
                (Action::Drop, None) => vec![Prefix::whole(family)],
            }
        }
        Destination::Tor(_) => tors(family),
    }
}

/// Where ports of Tor are Tor's.
fn tors(family: Family) -> Vec<Prefix> {
    let own = tor::ADDRESSES.into_iter().filter(|(first, _)| Family::from(*first) == family);
    own.filter_map(|(first, bits)| IpNet::new(first, bits).ok()).map(Prefix::from).collect()
}

/// Where a service of Tor is, with all of its ports.
pub(super) fn of_tor(family: Family, service: tor::Service) -> Vec<Match> {
    let ports = service.ports().iter().cloned();
    let services = ports.map(|ports| Service { tcp: Some(ports), ..Service::NONE });
    services.map(|service| Match { prefixes: tors(family), service }).collect()
}

/// A rule that drops DNS drops it at the gateway's own port for it as well, to which a qube could
/// send without the gateway leading it there.
fn tors_own_dns(given: &Match) -> Option<Match> {
    let udp = given.service.udp.as_ref().map(|_| tor::DNS_PORT..=tor::DNS_PORT);
    let service = Service { udp: Some(udp?), ..Service::NONE };
    Some(Match { prefixes: given.prefixes.clone(), service })
}

/// Whether a rule drops a local network, and leaves out DNS to the virtual resolvers in it: users who
/// block their LAN do not mean to lose DNS (qubes-issues 8765). Left out is nothing if the rule
/// names one of them alone, or DNS; nor in a network that is wider than the private one they are in,
/// for that is no LAN.
pub fn spares_dns(rule: &Rule) -> bool {
    let Destination::Network(IpNet::V4(network)) = &rule.destination else {
        return false;
    };
    let is_local = (VIRTUAL_NETWORK_LENGTH..32).contains(&network.prefix_len());
    let holds_one = VIRTUAL_RESOLVERS.iter().any(|resolver| network.contains(resolver));
    let service = &rule.service;
    let names_dns = [&service.tcp, &service.udp].into_iter().flatten().all(|it| *it == (53..=53));
    let has_dns = service.only_dns() != Service::NONE;
    rule.action == Action::Drop && is_local && holds_one && has_dns && !names_dns
}

/// What is left of destinations and their services without DNS to the virtual resolvers.
fn sparing_dns(given: &Match, known: &Surroundings) -> Vec<Match> {
    let all = known.asked_for_dns().map(|resolver| Prefix::host(resolver.into()));
    let is_inside = |host: &Prefix| given.prefixes.iter().any(|it| it.covers(host));
    let prefixes: Vec<Prefix> = all.filter(is_inside).collect();
    let around = given.prefixes.iter().flat_map(|it| it.without(&prefixes)).collect();
    let others = given.service.without_dns().into_iter();
    let others = others.map(|service| Match { prefixes: prefixes.clone(), service });
    [Match { prefixes: around, service: given.service.clone() }].into_iter().chain(others).collect()
}

/// Today's agent judges DNS behind the redirection, where the client's packet to a virtual
/// resolver is addressed to a real one. We judge in front of it, so a rule that accepts
/// the real resolver accepts the virtual one on port 53 as well. A drop rule does not; see
/// [`spares_dns`].
fn virtual_match(given: &Match, known: &Surroundings) -> Option<Match> {
    let service = given.service.only_dns();
    if service == Service::NONE {
        return None;
    }
    let given_covers = |resolver: &Prefix| given.prefixes.iter().any(|it| it.covers(resolver));
    let redirections = known.redirections().into_iter();
    let redirections = redirections.map(|(virtual_resolver, real)| {
        (Prefix::host(virtual_resolver.into()), Prefix::host(real.into()))
    });
    let prefixes: Vec<Prefix> = redirections
        .filter(|(virtual_resolver, real)| given_covers(real) && !given_covers(virtual_resolver))
        .map(|(virtual_resolver, _)| virtual_resolver)
        .collect();
    (!prefixes.is_empty()).then_some(Match { prefixes, service })
}
