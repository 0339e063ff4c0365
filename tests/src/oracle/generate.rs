//! Random rulesets and packets that meet each other often: addresses and ports come from
//! small pools, and packets sit on the edges of rules.
//! Never random without a seed: a run is repeated by its seed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::oracle::{Probe, Proto, Rule, Ruleset};
use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{ESP, GRE, ICMP, ICMPV6, IPV6_IN_IP, TCP, UDP};

/// A source of rulesets and packets.
pub struct Generator {
    random: StdRng,
}

const PORTS: [u16; 12] = [0, 1, 22, 52, 53, 54, 80, 443, 1023, 1024, 65534, 65535];

impl Generator {
    /// The same seed gives the same things in the same order.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    /// A ruleset for clients of a family with up to `most` rules.
    pub fn ruleset(&mut self, family: Family, most: usize) -> Ruleset {
        let count = self.random.random_range(0..=most);
        let rules = (0..count).map(|_| self.rule(family)).collect();
        // dom0 always writes drop; the contract allows both.
        Ruleset { default_accept: self.random.random_ratio(1, 4), rules }
    }

    /// A rule that dom0 would accept.
    pub fn rule(&mut self, family: Family) -> Rule {
        let mut rule = Rule::all(self.random.random());
        if self.random.random_ratio(3, 4) {
            let longest = family.bits();
            let length = match self.random.random_range(0..4) {
                0 => longest,
                1 => self.random.random_range(0..=longest),
                2 => self.random.random_range(longest - 8..=longest),
                _ => longest / 4 * self.random.random_range(0..=4),
            };
            rule.network = Some((self.address(family), length));
        }
        match self.random.random_range(0..6) {
            0 => {}
            1 => rule.proto = Some(Proto::Tcp),
            2 => rule.proto = Some(Proto::Udp),
            3 => rule.proto = Some(Proto::Icmp),
            4 => {
                rule.proto = [None, Some(Proto::Tcp), Some(Proto::Udp)][self.choose(3)];
                rule.ports = Some(self.ports());
            }
            _ => rule.icmp_type = Some(self.random.random_range(0..=255)),
        }
        let could_be_dns = rule.proto != Some(Proto::Icmp) && rule.icmp_type.is_none();
        rule.dns = could_be_dns && self.random.random_ratio(1, 8);
        rule
    }

    /// A packet near the edges of a ruleset.
    pub fn probe(&mut self, family: Family, ruleset: &Ruleset) -> Probe {
        let rule = ruleset.rules.choose(&mut self.random).cloned();
        let network = rule.as_ref().and_then(|rule| rule.network);
        let destination = match network {
            Some((address, length)) if self.random.random_ratio(3, 4) => self.near(address, length),
            _ => self.address(family),
        };
        let icmp = family.icmp();
        let others = [GRE, ESP, IPV6_IN_IP, 132, 255, family.of([ICMPV6, ICMP])];
        let protocol = match self.random.random_range(0..8) {
            0..3 => TCP,
            3..5 => UDP,
            5..7 => icmp,
            _ => others[self.choose(others.len())],
        };
        let port = match (protocol, &rule) {
            (TCP | UDP, Some(Rule { ports: Some((first, last)), .. })) => {
                let edge = if self.random.random() { *first } else { *last };
                edge.wrapping_add(self.random.random_range(0..3)).wrapping_sub(1)
            }
            (TCP | UDP, _) => PORTS[self.choose(PORTS.len())],
            (protocol, Some(Rule { icmp_type: Some(kind), .. })) if protocol == icmp => {
                u16::from(kind.wrapping_add(self.random.random_range(0..2)))
            }
            (protocol, _) if protocol == icmp => self.random.random_range(0..=255),
            _ => 0,
        };
        Probe { destination, protocol, port }
    }

    fn choose(&mut self, count: usize) -> usize {
        self.random.random_range(0..count)
    }

    fn ports(&mut self) -> (u16, u16) {
        let (one, other) = (PORTS[self.choose(PORTS.len())], PORTS[self.choose(PORTS.len())]);
        (one.min(other), one.max(other))
    }

    /// An address out of few, the DNS servers of Qubes among them.
    fn address(&mut self, family: Family) -> IpAddr {
        match family {
            Family::V4 => {
                let pool = [0x0a8b_0101_u32, 0x0a8b_0102, 0xc0a8_0100, 0xc633_6400, 0x0808_0808];
                let base = pool[self.choose(pool.len())];
                let low = self.random.random_range(0..4);
                IpAddr::V4(Ipv4Addr::from_bits(if base >> 24 == 10 { base } else { base | low }))
            }
            Family::V6 => {
                let pool = [0x2001_0db8_u128 << 96, 0x2001_0db8_0001_u128 << 80, 0xfd09_24ef << 96];
                let low: u128 = self.random.random_range(0..4);
                IpAddr::V6(Ipv6Addr::from_bits(pool[self.choose(pool.len())] | low))
            }
        }
    }

    /// The first or last address of a network, the one before or behind it, or any in it.
    fn near(&mut self, address: IpAddr, length: u8) -> IpAddr {
        let (bits, width) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let host = u128::MAX.checked_shr(128 - (width - u32::from(length))).unwrap_or(0);
        let (first, last) = (bits & !host, bits | host);
        let chosen = match self.random.random_range(0..5) {
            0 => first,
            1 => last,
            2 => first.wrapping_sub(1),
            3 => last.wrapping_add(1),
            _ => first | self.random.random::<u128>() & host,
        };
        match address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(chosen as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(chosen)),
        }
    }
}
