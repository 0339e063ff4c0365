//! The meaning of rules, as naive as can be: ordered rules, linear search. Written from
//! what is known of Qubes' firewall, and from the decided differences.
//! Never used by the product, and never uses the product's own rules code.

pub mod generate;

use std::net::IpAddr;

/// A protocol in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// `proto=tcp`
    Tcp,
    /// `proto=udp`
    Udp,
    /// `proto=icmp`
    Icmp,
}

/// A rule as a test wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `action=accept`, else `action=drop`.
    pub accept: bool,
    /// `dst4=` or `dst6=`: address and prefix length.
    pub network: Option<(IpAddr, u8)>,
    /// `proto=`
    pub proto: Option<Proto>,
    /// `specialtarget=dns`
    pub dns: bool,
    /// `dstports=`
    pub ports: Option<(u16, u16)>,
    /// `icmptype=`
    pub icmp_type: Option<u8>,
}

impl Rule {
    /// A rule that matches everything.
    pub const fn all(accept: bool) -> Self {
        Self { accept, network: None, proto: None, dns: false, ports: None, icmp_type: None }
    }

    /// The rule as dom0 writes it.
    pub fn text(&self) -> String {
        let mut text = format!("action={}", if self.accept { "accept" } else { "drop" });
        if let Some((address, length)) = self.network {
            let option = if address.is_ipv4() { "dst4" } else { "dst6" };
            text += &format!(" {option}={address}/{length}");
        }
        match self.proto {
            None => {}
            Some(Proto::Tcp) => text += " proto=tcp",
            Some(Proto::Udp) => text += " proto=udp",
            Some(Proto::Icmp) => text += " proto=icmp",
        }
        if self.dns {
            text += " specialtarget=dns";
        }
        if let Some((first, last)) = self.ports {
            text += &format!(" dstports={first}-{last}");
        }
        if let Some(kind) = self.icmp_type {
            text += &format!(" icmptype={kind}");
        }
        text
    }

    /// The decided difference: to drop the LAN is not to drop DNS to the addresses in 10.0.0.0/8 that
    /// Qubes gives every client for it, unless one of them or DNS is named.
    fn spares(&self, packet: &Probe) -> bool {
        let virtual_resolvers = [[10, 139, 1, 1], [10, 139, 1, 2]].map(IpAddr::from);
        let to_one = virtual_resolvers.contains(&packet.destination);
        let by_port = [crate::packets::TCP, crate::packets::UDP].contains(&packet.protocol);
        let is_lan = self.network.is_some_and(|(_, length)| (8..=31).contains(&length));
        let names_dns = self.dns || self.ports == Some((53, 53));
        !self.accept && is_lan && !names_dns && to_one && by_port && packet.port == 53
    }

    fn matches(&self, packet: &Probe, dns_servers: &[IpAddr]) -> bool {
        if let Some((network, length)) = self.network
            && !within(packet.destination, network, length)
        {
            return false;
        }
        let tcp = packet.protocol == crate::packets::TCP;
        let udp = packet.protocol == crate::packets::UDP;
        let icmp = match packet.destination {
            IpAddr::V4(_) => packet.protocol == crate::packets::ICMP,
            IpAddr::V6(_) => packet.protocol == crate::packets::ICMPV6,
        };
        let proto = match self.proto {
            None => true,
            Some(Proto::Tcp) => tcp,
            Some(Proto::Udp) => udp,
            Some(Proto::Icmp) => icmp,
        };
        if !proto {
            return false;
        }
        if let Some((first, last)) = self.ports
            && (!(tcp || udp) || packet.port < first || packet.port > last)
        {
            return false;
        }
        if let Some(kind) = self.icmp_type
            && (!icmp || packet.port != u16::from(kind))
        {
            return false;
        }
        if self.dns {
            // Today's agent skips such a rule unless its ports are exactly DNS's.
            if self.ports.is_some_and(|ports| ports != (53, 53)) {
                return false;
            }
            if !(tcp || udp) || packet.port != 53 || !dns_servers.contains(&packet.destination) {
                return false;
            }
        }
        true
    }
}

fn within(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((address, family), (network, other)) = (bits(address), bits(network));
    family == other && (length == 0 || (address ^ network) >> (128 - u32::from(length)) == 0)
}

/// What a rule can see of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Destination address.
    pub destination: IpAddr,
    /// Final protocol.
    pub protocol: u8,
    /// Destination port, or ICMP type; 0 for other protocols.
    pub port: u16,
}

/// A client's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Qubes' `policy`.
    pub default_accept: bool,
    /// In order.
    pub rules: Vec<Rule>,
}

impl Ruleset {
    /// Whether a packet may pass, and the index of the rule that says so; `None` is the
    /// default.
    pub fn verdict(&self, packet: &Probe, dns_servers: &[IpAddr]) -> (bool, Option<usize>) {
        self.first(|rule| rule.matches(packet, dns_servers) && !rule.spares(packet))
    }

    /// The same, as today's firewall says it of a packet behind the redirection of DNS.
    pub fn verdict_today(&self, packet: &Probe, dns_servers: &[IpAddr]) -> (bool, Option<usize>) {
        self.first(|rule| rule.matches(packet, dns_servers))
    }

    fn first(&self, matches: impl Fn(&Rule) -> bool) -> (bool, Option<usize>) {
        match self.rules.iter().position(matches) {
            Some(index) => (self.rules[index].accept, Some(index)),
            None => (self.default_accept, None),
        }
    }

    /// A file of rules, complete.
    pub fn file(&self) -> String {
        let default = if self.default_accept { "accept" } else { "drop" };
        let mut text = format!("policy = {default}\n");
        for (number, rule) in self.rules.iter().enumerate() {
            text += &format!("{number:04} = {}\n", rule.text());
        }
        text + "commit\n"
    }
}
