//! Which answers a public name has no business to give.
//! Never knows of clients or rules.
//!
//! Whoever owns a name decides where it leads. A rule that accepts a public name means the
//! internet; it is not to open the user's own network because an answer says so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Names that nobody can own publicly: reserved or never to be delegated (RFC 6761, RFC
/// 6762 appendix G, RFC 8375, ICANN's resolutions on .internal, .corp and .home).
const PRIVATE_SUFFIXES: [&str; 12] = [
    "corp",
    "home",
    "home.arpa",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localdomain",
    "localhost",
    "private",
    "test",
];

/// Networks that are somebody's own: RFC 1918, RFC 6598, RFC 2544, RFC 6890.
const OWN_V4: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
];

/// Where Tor in a Whonix gateway puts onion services that it is asked for (`VirtualAddrNetworkIPv4`
/// in anon-gw-anonymizer-config): each name has one address as long as Tor runs, the same for all.
const ONIONS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 192, 0, 0), 10);

/// Which names may lead into private networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Names, and all names under them, whose owner is trusted with the private network.
    pub private: Vec<String>,
    /// Whether names are asked of Tor: it alone gives onion services addresses, and nobody there owns
    /// names like `printer.lan`.
    pub is_of_tor: bool,
}

impl Guard {
    /// Whether an accept rule for a name may use an address that DNS gave for it.
    pub fn allows(&self, name: &str, address: IpAddr) -> bool {
        match place(address) {
            Place::Public => true,
            // An exit of Tor answers there, in whose network no name is anybody's own.
            Place::Own if self.is_of_tor => self.is_onion(name, address) || self.is_trusted(name),
            Place::Own => self.is_private(name),
            Place::Nowhere => false,
        }
    }

    /// Whether [`Self::allows`] would, if the name were one of those that may lead into private
    /// networks.
    pub fn would_allow(&self, address: IpAddr) -> bool {
        place(address) != Place::Nowhere
    }

    /// Whether this is an onion service, where Tor says that it is.
    fn is_onion(&self, name: &str, address: IpAddr) -> bool {
        let (network, length) = ONIONS;
        let IpAddr::V4(v4) = address else { return false };
        let is_there = Ipv4Net::new(network, length).is_ok_and(|network| network.contains(&v4));
        is_there && name.ends_with(".onion")
    }

    fn is_private(&self, name: &str) -> bool {
        let is_of_a_kind = PRIVATE_SUFFIXES.into_iter().any(|suffix| is_under(name, suffix));
        !name.contains('.') || is_of_a_kind || self.is_trusted(name)
    }

    /// Whether the administrator said that the name may lead into private networks.
    fn is_trusted(&self, name: &str) -> bool {
        self.private.iter().any(|suffix| is_under(name, suffix))
    }
}

/// Whether a name is this one or under it.
fn is_under(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Public,
    /// Into somebody's own network, Qubes' own addresses (10.137.0.0/16 and neighbours,
    /// fd09:24ef:4179::/48) included.
    Own,
    /// To no host: loopback, link-local, multicast, unspecified, broadcast, reserved.
    Nowhere,
}

fn place(address: IpAddr) -> Place {
    match address {
        IpAddr::V4(v4) => place_v4(v4),
        IpAddr::V6(v6) => place_v6(v6),
    }
}

fn place_v4(address: Ipv4Addr) -> Place {
    let [first, ..] = address.octets();
    // 0.0.0.0/8 is "this host", 240.0.0.0/4 is reserved, the broadcast address its last.
    let is_nowhere = first == 0
        || first >= 240
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast();
    if is_nowhere {
        return Place::Nowhere;
    }
    let contains = |(network, length)| {
        Ipv4Net::new(network, length).is_ok_and(|network| network.contains(&address))
    };
    if OWN_V4.into_iter().any(contains) { Place::Own } else { Place::Public }
}

fn place_v6(address: Ipv6Addr) -> Place {
    // An IPv4 address in disguise: mapped, NAT64's well-known prefix (RFC 6052), 6to4.
    let bits = address.to_bits();
    let nat64 = Ipv6Net::new(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);
    let low = || Ipv4Addr::from_bits(u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(0));
    if let Some(v4) = address.to_ipv4_mapped() {
        return place_v4(v4);
    }
    if nat64.is_ok_and(|network| network.contains(&address)) {
        return place_v4(low());
    }
    let segments = address.segments();
    if segments[0] == 0x2002 {
        let [a, b] = segments[1].to_be_bytes();
        let [c, d] = segments[2].to_be_bytes();
        return place_v4(Ipv4Addr::new(a, b, c, d));
    }
    // ::/96 has the unspecified address, loopback, and IPv4 in a form that was given up (RFC
    // 4291, 2.5.5.1).
    let is_nowhere = bits >> 32 == 0 || address.is_multicast() || address.is_unicast_link_local();
    // fec0::/10 was for sites (RFC 3879), fc00::/7 is for them now; 64:ff9b:1::/48 is for a
    // translator of one's own (RFC 8215).
    let is_own = address.is_unique_local()
        || segments[0] & 0xffc0 == 0xfec0
        || segments.starts_with(&[0x64, 0xff9b, 1]);
    match (is_nowhere, is_own) {
        (true, _) => Place::Nowhere,
        (false, true) => Place::Own,
        (false, false) => Place::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onion_names_lead_to_tors_addresses_where_tor_is_asked_and_nowhere_else() {
        let check = |is_of_tor: bool, name: &str, address: &str, expected: bool| {
            let guard = Guard { private: Vec::new(), is_of_tor };
            let address = address.parse().expect("an address");
            assert_eq!(guard.allows(name, address), expected, "{name} {address}");
        };
        check(true, "a.onion", "10.192.0.0", true);
        check(true, "www.a.onion", "10.255.255.255", true);
        check(true, "a.onion", "10.191.255.255", false);
        check(true, "a.onion", "11.0.0.0", true);
        check(true, "a.onion", "192.168.1.1", false);
        check(true, "a.onion", "fd00::1", false);
        check(true, "a.onion.example", "10.192.0.1", false);
        check(true, "nonion.example", "10.192.0.1", false);
        check(false, "a.onion", "10.192.0.1", false);
        // What an exit says of names that are somebody's own elsewhere.
        for name in ["printer.lan", "proxy", "x.internal"] {
            for address in ["10.137.0.1", "10.152.152.10", "10.192.0.1", "fd19:c33d:88bc::10"] {
                check(true, name, address, false);
                check(false, name, address, true);
            }
        }
    }

    #[test]
    fn public_names_do_not_lead_into_private_networks() {
        let private = vec!["office.example".to_owned()];
        let guard = Guard { private, is_of_tor: false };
        let check = |name: &str, address: &str, expected: bool| {
            let address = address.parse().expect("an address");
            assert_eq!(guard.allows(name, address), expected, "{name} {address}");
        };
        let public = "www.example.com";
        for address in
            ["198.51.100.7", "9.255.255.255", "11.0.0.0", "172.32.0.0", "192.0.2.1", "2001:db8::7"]
        {
            check(public, address, true);
        }
        let own = [
            "10.0.0.1",
            "10.137.0.12",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "198.18.0.1",
            "192.0.0.8",
            "64:ff9b:1::c633:6407",
            "fd09:24ef:4179::a89:b",
            "fc00::1",
            "fec0::1",
            "::ffff:192.168.1.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
        ];
        for address in own {
            check(public, address, false);
            check("office.example", address, true);
            check("printer.office.example", address, true);
            check("notoffice.example", address, false);
            check("printer", address, true);
            check("printer.lan", address, true);
            check("host.home.arpa", address, true);
            check("lan.example", address, false);
        }
        let nowhere = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "::10.0.0.1",
            "::198.51.100.7",
        ];
        for address in nowhere {
            check(public, address, false);
            check("printer.lan", address, false);
        }
    }
}
