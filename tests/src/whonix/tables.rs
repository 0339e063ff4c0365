//! The nftables and kernel parameters of a Whonix gateway under Qubes OS, written from what is
//! known about their behaviour (whonix-firewall, qubes-core-agent, security-misc).
//! Never says what is right, only what is so there; and is never used by the product.
//!
//! `redirect` leads to the first address of the interface that a packet came by. Neither the order of
//! rules nor their number is Whonix', only what becomes of a packet.

use std::net::IpAddr;

use crate::packets::family::{Family, PerFamily as _};

/// What Tor takes connections by, whose destination it asks the kernel for.
pub const TRANS_PORT: u16 = 9040;
/// Where Tor answers DNS.
pub const DNS_PORT: u16 = 5300;
/// Where Tor answers DNS of the gateway itself, on loopback.
pub const OWN_DNS_PORT: u16 = 5400;
/// The filter in front of Tor's control port.
pub const CONTROL_PORT: u16 = 9051;
/// Ports of SOCKS and HTTP, first and last.
pub const SOCKS: [(u16, u16); 7] = [
    (9050, 9050),
    (9100, 9111),
    (9114, 9115),
    (9117, 9118),
    (9122, 9125),
    (9150, 9150),
    (9152, 9229),
];
/// To these, SOCKS and the control port are what they are; to others they are transparent TCP.
const OWN_V4: &str = "10.137.0.0/16, 10.138.0.0/16, 10.152.152.10";
/// The same in IPv6: addresses that Qubes OS gives (core-admin, `ip6`), and Whonix' fixed one.
const OWN_V6: &str = "fd09:24ef:4179::a89:0/112, fd09:24ef:4179::a8a:0/112, fd19:c33d:88bc::10";
/// Number of the user as whom Tor runs; nobody else may send anything.
pub const TOR_USER: u32 = 103;
/// Link group of vifs (qubes-core-agent, `vif-route-qubes`).
pub const VIF_GROUP: &str = "2";

/// Chains that a reload deletes and makes anew, in one transaction; so this is both the first load
/// and a reload.
pub fn whonix() -> String {
    let socks: Vec<String> = SOCKS
        .iter()
        .map(
            |(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            },
        )
        .collect();
    let own_ports = format!("{CONTROL_PORT}, {}", socks.join(", "));
    format!(
        "{}
table inet filter {{
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state invalid counter drop
        tcp flags & (fin | syn) == fin | syn counter drop
        tcp flags & (syn | rst) == syn | rst counter drop
        tcp flags & (fin | syn | rst | psh | ack | urg) == 0 counter drop
        ip frag-off & 0x1fff != 0 counter drop
        iifname lo accept
        ct state established accept
        icmp type destination-unreachable icmp code frag-needed ct state related accept
        icmpv6 type packet-too-big ct state related accept
        icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} accept
        meta l4proto {{ icmp, ipv6-icmp }} counter drop
        iifname \"vif*\" udp dport {DNS_PORT} counter accept
        iifname \"vif*\" tcp dport {{ {TRANS_PORT}, {own_ports} }} counter accept
        counter drop
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        counter reject
    }}
    chain output {{
        type filter hook output priority 0; policy drop;
        ct state invalid counter reject
        ct state established accept
        icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} accept
        oifname lo accept
        meta skuid {TOR_USER} accept
        counter reject
    }}
}}
table inet nat {{
    chain prerouting {{
        type nat hook prerouting priority -100;
        iifname \"vif*\" ip daddr {{ {OWN_V4} }} tcp dport {{ {own_ports} }} counter redirect
        iifname \"vif*\" ip6 daddr {{ {OWN_V6} }} tcp dport {{ {own_ports} }} counter redirect
        iifname \"vif*\" udp dport 53 counter redirect to :{DNS_PORT}
        iifname \"vif*\" tcp flags & (fin | syn | rst | ack) == syn counter redirect to :{TRANS_PORT}
    }}
    chain output {{
        type nat hook output priority -100;
        meta skuid {TOR_USER} return
    }}
}}
table ip6 nat {{
    chain output {{
        type nat hook output priority -100;
    }}
}}
",
        without_whonix()
    )
}

/// Removes the same, and nothing else.
pub fn without_whonix() -> String {
    ["inet filter", "inet nat", "ip6 nat"]
        .map(|table| format!("table {table} {{}}\ndelete table {table}\n"))
        .concat()
}

/// What `qubes-antispoof.service` leaves: a client has its own addresses, on its own vif.
pub fn antispoof(vifs: &[(String, Vec<IpAddr>)]) -> String {
    Family::BOTH.map(|family| antispoof_table(family, vifs)).concat()
}

fn antispoof_table(family: Family, vifs: &[(String, Vec<IpAddr>)]) -> String {
    let (name, kind) = family.of([("ip", "ipv4_addr"), ("ip6", "ipv6_addr")]);
    let pairs = vifs.iter().flat_map(|(vif, addresses)| {
        let own = addresses.iter().filter(|it| Family::from(**it) == family);
        own.map(move |it| (format!("\"{vif}\" . {it}"), it.to_string()))
    });
    let (allowed, downstream): (Vec<String>, Vec<String>) = pairs.unzip();
    format!(
        "table {name} qubes {{
    set allowed {{ type ifname . {kind}; elements = {{ {} }}; }}
    set downstream {{ type {kind}; elements = {{ {} }}; }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        iifgroup {VIF_GROUP} goto antispoof
        {name} saddr @downstream counter drop
    }}
    chain antispoof {{
        iifname . {name} saddr @allowed accept
        counter drop
    }}
}}
",
        allowed.join(", "),
        downstream.join(", ")
    )
}

/// Kernel parameters that a namespace has of its own, in the order in which they are set: the first
/// two reset others (Documentation/networking/ip-sysctl.rst).
pub const PARAMETERS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv4/icmp_echo_ignore_all", "1"),
    ("net/ipv6/icmp/echo_ignore_all", "1"),
    ("net/ipv4/icmp_ignore_bogus_error_responses", "1"),
    ("net/ipv4/tcp_rfc1337", "1"),
    ("net/ipv4/tcp_syncookies", "1"),
    ("net/ipv4/tcp_timestamps", "0"),
];

/// The same for each interface, and for those that come.
pub const OF_INTERFACES: [(&str, &str, &str); 11] = [
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "shared_media", "0"),
    ("ipv4", "arp_filter", "1"),
    ("ipv4", "arp_ignore", "2"),
    ("ipv4", "drop_gratuitous_arp", "1"),
    ("ipv4", "accept_source_route", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "accept_source_route", "0"),
    ("ipv6", "accept_ra", "0"),
];
