//! Rules that cannot hold in a Whonix gateway, because the client gets to Tor's SOCKS: Tor is told in
//! the stream where to go.
//! Never decides about a packet: the policy does.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use firewall_common::packet::Protocol;
use ipnet::IpNet;

use super::check::PolicyTables;
use super::compile::Policy;
use super::resolve::{Prefix, of_tor, to_address};
use super::{Action, Destination, Family, Rule};
use crate::tor;

/// What is said of such a rule.
pub const BYPASSED: &str = "cannot hold: SOCKS is open to this client, and Tor is told in the stream \
     where to go";
/// What to do about such a rule.
pub const CLOSE_SOCKS: &str = "drop ports 9050-9229 of TCP in front of it, but then programs that know \
     Tor, like Tor Browser, do not work; or do not rely on it";

/// From the first port of SOCKS to the last, with what is in between.
const TORS: RangeInclusive<u16> = 9050..=9229;

/// Whether a policy lets the client get to any port of SOCKS at any of the gateway's addresses.
pub fn is_open(family: Family, policy: &Policy) -> bool {
    let tables = PolicyTables::new(policy);
    let is_accepted = |bits: u128, port: u16| {
        let answer = tables.ask(to_address(bits), Protocol::Tcp, port);
        answer.is_some_and(|(_, action)| action == Action::Accept)
    };
    of_tor(family, tor::Service::Socks).into_iter().any(|found| {
        let Some(ports) = found.service.tcp else {
            return false;
        };
        found.prefixes.iter().any(|prefix| {
            edges_in(prefix, policy).into_iter().any(|bits| {
                let edges = tables.edges(&to_address(bits), Protocol::Tcp);
                let inside = edges.into_iter().filter(|port| ports.contains(port));
                [*ports.start()].into_iter().chain(inside).any(|port| is_accepted(bits, port))
            })
        })
    })
}

/// Addresses in a prefix of which each speaks for those up to the next one.
fn edges_in(prefix: &Prefix, policy: &Policy) -> Vec<u128> {
    let inside = policy.prefixes.iter().filter(|(it, _)| prefix.covers(it) && it != prefix);
    let edges = inside.flat_map(|(it, _)| [Some(it.first()), it.last().checked_add(1)]);
    let edges = edges.flatten().filter(|bits| (prefix.first()..=prefix.last()).contains(bits));
    [prefix.first()].into_iter().chain(edges).collect()
}

/// Whether a rule drops TCP to somewhere beyond the gateway, or to some ports, which SOCKS leads around.
pub fn is_bypassed(rule: &Rule) -> bool {
    let is_gateways = |network: &IpNet| {
        let own = tor::ADDRESSES.into_iter();
        let mut own = own.filter_map(|(first, bits): (IpAddr, u8)| IpNet::new(first, bits).ok());
        own.any(|own| own.contains(network))
    };
    let is_beyond = match &rule.destination {
        Destination::Network(network) => !is_gateways(network),
        Destination::Name(_) => true,
        // Some ports of all hosts, unless these are Tor's own: there is nothing to lead around.
        Destination::Any => rule.service.tcp.as_ref().is_some_and(|ports| {
            *ports != (0..=u16::MAX)
                && !(TORS.contains(ports.start()) && TORS.contains(ports.end()))
        }),
        Destination::Tor(_) => false,
    };
    rule.action == Action::Drop && is_beyond && rule.service.tcp.is_some()
}
