//! What today's qubes-firewall, and the base tables of Qubes OS under it, have in force
//! for a netvm: nftables text, written from what is known about their behaviour.
//! Never says what is right, only what is so today; and is never used by the product.

pub mod difference;
pub mod shots;
pub mod sightings;
pub mod twins;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use crate::oracle::{Proto, Rule, Ruleset};
use crate::packets::family::{Family, PerFamily as _};

/// What every client has as its DNS servers.
pub const VIRTUAL_RESOLVERS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];
/// Link group of vifs.
pub const VIF_GROUP: &str = "2";

/// What the rules of a netvm depend on, besides rulesets.
#[derive(Clone, Debug)]
pub struct Netvm {
    /// Name of each vif, with its client's addresses.
    pub vifs: Vec<(String, Vec<IpAddr>)>,
    /// Addresses of clients that are assigned to this netvm and do not run.
    pub absent: Vec<IpAddr>,
    /// What `/etc/resolv.conf` names.
    pub resolvers: Vec<IpAddr>,
}

/// The words of a family.
struct Words {
    /// Of the table, and of addresses in rules.
    name: &'static str,
    /// nftables' type of an address.
    address: &'static str,
    /// How a rule names the protocol: in IPv6 it is what follows the fixed header.
    protocol: &'static str,
    /// ICMP, as a protocol and as a header.
    icmp: &'static str,
}

const V4: Words = Words { name: "ip", address: "ipv4_addr", protocol: "ip protocol", icmp: "icmp" };
const V6: Words =
    Words { name: "ip6", address: "ipv6_addr", protocol: "ip6 nexthdr", icmp: "icmpv6" };

impl Words {
    fn of(family: Family) -> &'static Self {
        family.of([&V4, &V6])
    }

    /// A set with these elements.
    fn set(&self, name: &str, kind: &str, elements: &[String]) -> String {
        let mut text = format!("\tset {name} {{\n\t\ttype {kind}\n");
        if !elements.is_empty() {
            text += &format!("\t\telements = {{ {} }}\n", elements.join(", "));
        }
        text + "\t}\n"
    }
}

impl Netvm {
    /// The tables that Qubes loads before any firewall: no spoofing, DNS to the real
    /// resolvers, nothing between clients, masquerade; with the chains that are users'.
    pub fn base(&self) -> String {
        let input4 = "
		ct state invalid drop
		iifgroup 2 udp dport 68 drop
		ct state established,related accept
		iifgroup 2 meta l4proto icmp accept
		iif lo accept
		iifgroup 2 reject with icmp type host-prohibited
";
        let input6 = "
		ct state invalid drop
		ct state established,related accept
		iifgroup 2 meta l4proto != ipv6-icmp reject with icmpv6 type admin-prohibited
		iifgroup 2 icmpv6 type { nd-router-advert, nd-redirect } drop
		meta l4proto ipv6-icmp accept
		iif lo accept
";
        self.base_table(Family::V4, input4, &self.dnat()) + &self.base_table(Family::V6, input6, "")
    }

    fn base_table(&self, family: Family, input: &str, dnat: &str) -> String {
        let words = Words::of(family);
        let Words { name, address, .. } = words;
        let pairs = self.vifs.iter().flat_map(|(vif, addresses)| {
            let own = addresses.iter().filter(|it| Family::from(**it) == family);
            own.map(move |it| (format!("\"{vif}\" . {it}"), it.to_string()))
        });
        let (allowed, downstream): (Vec<String>, Vec<String>) = pairs.unzip();
        let allowed = words.set("allowed", &format!("ifname . {address}"), &allowed);
        let downstream = words.set("downstream", address, &downstream);
        format!(
            "table {name} qubes {{
{allowed}{downstream}	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		iifgroup 2 goto antispoof
		{name} saddr @downstream drop
	}}
	chain antispoof {{
		iifname . {name} saddr @allowed accept
		drop
	}}
{dnat}	chain custom-input {{}}
	chain custom-forward {{}}
	chain input {{
		type filter hook input priority filter; policy drop;
		jump custom-input{input}	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		jump custom-forward
		ct state invalid drop
		ct state established,related accept
		oifgroup 2 drop
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifgroup 2 accept
		oif lo accept
		masquerade
	}}
}}
"
        )
    }

    fn dnat(&self) -> String {
        let mut text = String::from(
            "\tchain dnat-dns {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n",
        );
        for virtual_resolver in VIRTUAL_RESOLVERS {
            let fate = match self.behind(virtual_resolver.into()) {
                Some(real) => format!("dnat to {real}"),
                None => "drop".to_owned(),
            };
            for protocol in ["udp", "tcp"] {
                // Writing to a string cannot fail.
                let _ =
                    writeln!(text, "\t\tip daddr {virtual_resolver} {protocol} dport 53 {fate}");
            }
        }
        text + "\t}\n"
    }

    /// The real resolver to which DNS for a virtual one goes: the first to the first, the
    /// second to the second, and from the beginning again where there are fewer.
    pub fn behind(&self, virtual_resolver: IpAddr) -> Option<IpAddr> {
        let real: Vec<&IpAddr> = self.resolvers.iter().filter(|it| it.is_ipv4()).collect();
        let mut pairs = VIRTUAL_RESOLVERS.iter().zip(real.into_iter().cycle());
        pairs.find(|(it, _)| IpAddr::from(**it) == virtual_resolver).map(|(_, real)| *real)
    }

    /// The tables of today's qubes-firewall, with an empty chain for each client. A client
    /// without rules has no jump to it; see [`Netvm::rules`].
    pub fn stock(&self) -> String {
        self.stock_table(Family::V4) + &self.stock_table(Family::V6)
    }

    fn stock_table(&self, family: Family) -> String {
        let words = Words::of(family);
        let Words { name, address, .. } = words;
        let is_of_family = |it: &&IpAddr| Family::from(**it) == family;
        let of_family = |addresses: &mut dyn Iterator<Item = &IpAddr>| -> Vec<String> {
            addresses.filter(is_of_family).map(IpAddr::to_string).collect()
        };
        let running = self.vifs.iter().flat_map(|(_, addresses)| addresses);
        let connected = of_family(&mut running.clone().chain(&self.absent));
        let connected = words.set("connected", address, &connected);
        let resolvers = words.set("dns-addr", address, &of_family(&mut self.resolvers.iter()));
        let mut chains = String::new();
        for client in running.filter(is_of_family) {
            let _ = writeln!(chains, "\tchain {} {{}}", chain(*client));
        }
        format!(
            "table {name} qubes-firewall {{
{connected}{resolvers}{chains}	chain prerouting {{
		type filter hook prerouting priority raw; policy accept;
		iifname != \"vif*\" {name} saddr @connected drop
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname != \"vif*\" accept
		jump qubes-forward
	}}
	chain postrouting {{
		type filter hook postrouting priority raw; policy accept;
		oifname != \"vif*\" {name} daddr @connected drop
	}}
	chain qubes-forward {{
	}}
}}
"
        )
    }

    /// One transaction that puts a client's rules in force, in place of all others.
    pub fn rules(&self, client: IpAddr, ruleset: &Ruleset) -> String {
        let words = Words::of(client.into());
        let (table, chain) = (format!("{} qubes-firewall", words.name), chain(client));
        let mut text = format!("flush chain {table} {chain}\nflush chain {table} qubes-forward\n");
        let _ = writeln!(
            text,
            "add rule {table} qubes-forward {} saddr {client} jump {chain}",
            words.name
        );
        let action = |accept| {
            if accept {
                "accept".to_owned()
            } else {
                format!("reject with {} type admin-prohibited", words.icmp)
            }
        };
        for rule in &ruleset.rules {
            for matches in matches(words, rule) {
                let _ = writeln!(text, "add rule {table} {chain} {matches}{}", action(rule.accept));
            }
        }
        let _ = writeln!(text, "add rule {table} {chain} {}", action(ruleset.default_accept));
        text
    }
}

/// Name of a client's chain.
fn chain(client: IpAddr) -> String {
    format!("qbs-{}", client.to_string().replace(['.', ':'], "-"))
}

/// A rule of dom0 becomes as many of nftables' as it has protocols with ports.
fn matches(words: &Words, rule: &Rule) -> Vec<String> {
    let Rule { accept: _, network, proto, dns, ports, icmp_type } = rule;
    if *dns && ports.is_some_and(|ports| ports != (53, 53)) {
        return Vec::new();
    }
    let name = words.name;
    let mut beginning = String::new();
    if let Some((address, length)) = network {
        let _ = write!(beginning, "{name} daddr {address}/{length} ");
    }
    if *dns {
        let _ = write!(beginning, "{name} daddr @dns-addr ");
    }
    let protocol = |it: &str| format!("{beginning}{} {it} ", words.protocol);
    if let Some(kind) = icmp_type {
        let icmp = words.icmp;
        return vec![format!("{}{icmp} type {kind} ", protocol(icmp))];
    }
    let ports = if *dns { Some((53, 53)) } else { *ports };
    let (tcp, udp) = ("tcp", "udp");
    let protocols = match proto {
        Some(Proto::Tcp) => vec![tcp],
        Some(Proto::Udp) => vec![udp],
        Some(Proto::Icmp) => vec![words.icmp],
        None if ports.is_some() => vec![tcp, udp],
        None => return vec![beginning],
    };
    let with_ports = |it: &str| match ports {
        Some((first, last)) => format!("{}{it} dport {first}-{last} ", protocol(it)),
        None => protocol(it),
    };
    protocols.into_iter().map(with_ports).collect()
}
