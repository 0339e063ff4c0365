//! PURE: rules that would allow what was denied, as lines for `qvm-firewall` in dom0.
//! Never allows more than what was seen, and says what it left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use firewall_common::packet::Protocol;
use firewall_common::verdict::Reason;

use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use firewall_core::told::news::{Denied, News};

const DNS: u16 = 53;

/// Ports, or types of ICMP.
type Services = BTreeMap<Protocol, BTreeSet<u16>>;

/// What was learnt of denied packets; shown, it is rules that would allow them.
#[derive(Debug, Default)]
pub struct Lessons {
    /// By the vif, for a qube has one.
    qubes: BTreeMap<String, Qube>,
    /// Packets that no rule would let pass, by what they are.
    left_out: BTreeMap<String, u64>,
    /// Denied and not told.
    untold: u64,
    /// Told, but this was too slow to hear it.
    missed: u64,
}

#[derive(Debug, Default)]
struct Qube {
    clients: BTreeSet<IpAddr>,
    packets: u64,
    /// In front of which rule; `None`: behind all of them.
    wanted: BTreeMap<Option<u16>, BTreeMap<Destination, Services>>,
    /// Addresses that more than one name leads to.
    ambiguous: BTreeMap<IpAddr, Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    /// DNS servers that Qubes gives to clients.
    Dns,
    Name(String),
    Address(IpAddr),
}

impl Lessons {
    /// Takes in one line of news.
    pub fn learn(&mut self, news: &News) {
        match news {
            News::Hello { .. } | News::Full { .. } => {}
            News::Missed { lines } => self.missed += lines,
            News::Denied(denied) => {
                self.untold += u64::from(denied.suppressed);
                if let Err(what) = self.learn_packet(denied) {
                    *self.left_out.entry(what).or_default() += 1;
                }
            }
        }
    }

    /// An error says what it is that no rule can allow.
    fn learn_packet(&mut self, denied: &Denied) -> Result<(), String> {
        let Denied { vif, reason, protocol, port, .. } = denied;
        if ![Reason::Rule, Reason::Default].contains(reason) {
            return Err(format!("{} on {vif}", reason.name()));
        }
        // Rules that were replaced meanwhile: in front of which one is not known.
        let place = match (&denied.rule, *reason == Reason::Default) {
            (Some(rule), _) => Some(rule.number),
            (None, true) => None,
            (None, false) => return Err(format!("a rule that is not in force any more on {vif}")),
        };
        let (Some(client), Some(address)) = (denied.source, denied.destination) else {
            return Err(format!("packets without addresses on {vif}"));
        };
        let service = denied.protocol();
        match service {
            Protocol::Tcp | Protocol::Udp | Protocol::Icmp => {}
            Protocol::Other => return Err(format!("protocol {protocol} to {address} on {vif}")),
        }
        let qube = self.qubes.entry(vif.clone()).or_default();
        qube.clients.insert(client);
        qube.packets += 1;
        let is_dns = service != Protocol::Icmp
            && *port == DNS
            && VIRTUAL_RESOLVERS.iter().any(|it| address == IpAddr::from(*it));
        let destination = match denied.names.as_slice() {
            _ if is_dns => Destination::Dns,
            [name] if is_pasteable(name) => Destination::Name(name.clone()),
            [] => Destination::Address(address),
            names => {
                let names = names.iter().filter(|name| is_pasteable(name)).cloned();
                qube.ambiguous.insert(address, names.collect());
                Destination::Address(address)
            }
        };
        let services = qube.wanted.entry(place).or_default().entry(destination).or_default();
        services.entry(service).or_default().insert(*port);
        Ok(())
    }
}

/// Whether dom0 takes it as a name, and no shell takes it for anything else.
fn is_pasteable(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = name.bytes();
    bytes.next().is_some_and(is_plain) && bytes.all(|byte| is_plain(byte) || b"-._".contains(&byte))
}

impl fmt::Display for Lessons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (vif, qube) in &self.qubes {
            qube.write(f, vif)?;
        }
        if self.qubes.is_empty() {
            writeln!(f, "# No packet was seen that a rule could allow.")?;
        }
        for (what, packets) in &self.left_out {
            writeln!(f, "# Left out, no line above allows it: {}, {what}", counted(*packets))?;
        }
        writeln!(f, "# Only what was seen is here, and at most some packets a second are told.")?;
        if self.untold > 0 {
            writeln!(f, "# {} more were denied and not told.", counted(self.untold))?;
        }
        if self.missed > 0 {
            writeln!(f, "# {} lines came faster than they were read.", self.missed)?;
        }
        Ok(())
    }
}

impl Qube {
    fn write(&self, f: &mut fmt::Formatter<'_>, vif: &str) -> fmt::Result {
        let clients: Vec<String> = self.clients.iter().map(IpAddr::to_string).collect();
        let clients = clients.join(", ");
        let packets = counted(self.packets);
        writeln!(f, "# {clients} on {vif}: {packets} denied. For dom0, with the name of")?;
        writeln!(
            f,
            "# the qube for QUBE, in this order, because a line moves the rules behind it:"
        )?;
        // From the end to the beginning, so that no line moves the rule of the next one.
        let at_the_end = self.wanted.get_key_value(&None).into_iter();
        let in_front = self.wanted.iter().rev().filter(|(place, _)| place.is_some());
        for (place, destinations) in at_the_end.chain(in_front) {
            for (destination, services) in destinations {
                write_rules(f, *place, destination, services)?;
            }
        }
        for (address, names) in &self.ambiguous {
            writeln!(f, "# {address} belongs to several names: {}", names.join(", "))?;
        }
        Ok(())
    }
}

fn write_rules(
    f: &mut fmt::Formatter<'_>,
    place: Option<u16>,
    destination: &Destination,
    services: &Services,
) -> fmt::Result {
    let begin = match place {
        Some(number) => format!("qvm-firewall QUBE add --before {number} accept"),
        None => "qvm-firewall QUBE add accept".to_owned(),
    };
    let to = match destination {
        // It covers TCP and UDP.
        Destination::Dns => return writeln!(f, "{begin} specialtarget=dns"),
        Destination::Name(name) => format!("dsthost={name}"),
        Destination::Address(IpAddr::V4(v4)) => format!("dst4={v4}/32"),
        Destination::Address(IpAddr::V6(v6)) => format!("dst6={v6}/128"),
    };
    for (service, ports) in services {
        for (first, last) in ranges(ports) {
            match service {
                Protocol::Tcp => writeln!(f, "{begin} {to} proto=tcp dstports={first}-{last}")?,
                Protocol::Udp => writeln!(f, "{begin} {to} proto=udp dstports={first}-{last}")?,
                Protocol::Icmp => {
                    for kind in first..=last {
                        writeln!(f, "{begin} {to} proto=icmp icmptype={kind}")?;
                    }
                }
                Protocol::Other => {}
            }
        }
    }
    Ok(())
}

/// Neighbouring ports are one range.
fn ranges(ports: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

fn counted(packets: u64) -> String {
    format!("{packets} {}", if packets == 1 { "packet" } else { "packets" })
}
