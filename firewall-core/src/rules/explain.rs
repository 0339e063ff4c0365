//! Which rules are tried for a packet, and why each of them does not match.
//! Never decides: the evaluator does, and a test holds the two together.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use firewall_common::packet::{Packet, Protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resolve::{self, Match, Prefix, ResolvedRuleset};
use super::{Action, Destination, Rule, Ruleset, Service};

/// What of a packet a rule does not match.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Aspect {
    /// Where the packet goes.
    Destination,
    /// The packet's protocol: TCP, UDP, ICMP or another.
    Protocol,
    /// The packet's destination port, or its type of ICMP.
    Port,
}

impl Aspect {
    /// The word that people read and scripts compare.
    pub fn name(self) -> &'static str {
        match self {
            Self::Destination => "destination",
            Self::Protocol => "protocol",
            Self::Port => "port",
        }
    }
}

/// A rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Index of the rule in the ruleset.
    pub rule: usize,
    /// What of the packet the rule does not match, and why; empty if the rule decides.
    pub differs: Vec<(Aspect, String)>,
}

/// Tries rules in order up to the first that matches.
pub fn tries(ruleset: &Ruleset, resolved: &ResolvedRuleset, packet: &Packet) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (index, (rule, resolved)) in ruleset.rules.iter().zip(&resolved.rules).enumerate() {
        let differs = differs(rule, &resolved.matches, packet);
        let decides = differs.is_empty();
        trials.push(Trial { rule: index, differs });
        if decides {
            break;
        }
    }
    trials
}

fn differs(rule: &Rule, matches: &[Match], packet: &Packet) -> Vec<(Aspect, String)> {
    let host = Prefix::host(packet.destination.into());
    let covers = |it: &&Match| it.prefixes.iter().any(|prefix| prefix.covers(&host));
    let there: Vec<&Match> = matches.iter().filter(covers).collect();
    // A rule for a real resolver matches virtual ones too, with a service of its own.
    if there.iter().any(|it| misses(&it.service, packet).is_empty()) {
        return Vec::new();
    }
    if resolve::spares_dns(rule) && !there.is_empty() && misses(&rule.service, packet).is_empty() {
        let to = IpAddr::from(packet.destination);
        let why = format!("dropping a network leaves out DNS to the virtual resolver {to}");
        return vec![(Aspect::Destination, why)];
    }
    let mut differs = Vec::new();
    if there.is_empty() {
        differs.push((Aspect::Destination, destination(rule, matches, packet)));
    }
    let service = there.first().map_or(&rule.service, |found| &found.service);
    differs.extend(misses(service, packet));
    differs
}

/// Why a rule does not match where a packet goes.
fn destination(rule: &Rule, matches: &[Match], packet: &Packet) -> String {
    let to = IpAddr::from(packet.destination);
    let hosts: Vec<String> = matches
        .iter()
        .flat_map(|found| &found.prefixes)
        .map(|prefix| IpAddr::from(prefix.address()).to_string())
        .collect();
    if rule.dns {
        let servers = if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") };
        return format!("{to} is not one of its DNS servers ({servers})");
    }
    match &rule.destination {
        Destination::Any => format!("{to} is of another family"),
        Destination::Network(network) => format!("{to} is not in {network}"),
        Destination::Tor(service) => format!("{} is not at {to}", service.name()),
        Destination::Name(name) if hosts.is_empty() => match rule.action {
            Action::Accept => format!("{name} leads to no address that this rule may accept"),
            Action::Drop => format!("{name} has no address of this family"),
        },
        Destination::Name(name) => format!("{name} leads to {}", hosts.join(", ")),
    }
}

/// Why a service does not match a packet.
fn misses(service: &Service, packet: &Packet) -> Vec<(Aspect, String)> {
    let (range, what) = match packet.protocol {
        Protocol::Tcp => (service.tcp.clone(), "port"),
        Protocol::Udp => (service.udp.clone(), "port"),
        Protocol::Icmp => (service.icmp.clone(), "type"),
        Protocol::Other => (service.other.then_some(0..=u16::MAX), "number"),
    };
    let Packet { port, .. } = packet;
    match range {
        None => vec![(Aspect::Protocol, format!("it is not {}", protocols(service)))],
        Some(range) if !range.contains(port) => {
            vec![(Aspect::Port, format!("{what} {port} is not {}", ports(&range)))]
        }
        Some(_) => Vec::new(),
    }
}

/// The protocols that a service has.
fn protocols(service: &Service) -> String {
    let all = [
        ("TCP", service.tcp.is_some()),
        ("UDP", service.udp.is_some()),
        ("ICMP", service.icmp.is_some()),
        ("another", service.other),
    ];
    let names: Vec<&str> = all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect();
    if names.is_empty() { "anything this rule can match".to_owned() } else { names.join(" or ") }
}

fn ports(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{} to {}", range.start(), range.end())
    }
}
