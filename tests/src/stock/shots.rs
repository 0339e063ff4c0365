//! Probes for the comparison with today's firewall: what rules can see of a packet, and
//! everything about its shape that they cannot. Checksums are right unless they shall not be.
//! Never random without a seed, and knows no firewall.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::oracle::generate::Generator;
use crate::oracle::{Probe, Ruleset};
use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{
    self, AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, NO_NEXT, ROUTING, TCP, UDP, V4,
    V6, VIF,
};

const DO_NOT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Where a datagram is cut in two; the transport header is in the first part.
const FIRST_PART: usize = 32;
/// What all random probes together leave unfinished: as many as fit wherever a hash puts them.
const MOST_UNFINISHED: usize = firewall_common::fragments::PLACES;

/// What rules cannot see of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing special.
    Plain,
    /// It cannot be forwarded once more: TTL or hop limit 1.
    LastHop,
    /// About 1,300 bytes that must not be fragmented.
    Large,
    /// The transport header's checksum is wrong.
    BadChecksum,
    /// Only three bytes follow the IP headers.
    Short,
    /// Two fragments.
    Halves {
        /// The second one first.
        reversed: bool,
    },
    /// The first of two fragments.
    FirstHalf,
    /// IPv4 options.
    Options(Vec<u8>),
    /// IPv6 extension headers, by number.
    Headers(Vec<u8>),
    /// VLAN tags: ethertype and tag of each, the outer one first.
    Tags(Vec<(u16, u16)>),
    /// An ethertype that is not IP's.
    Ethertype(u16),
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shot {
    /// Source address.
    pub source: IpAddr,
    /// Destination, final protocol, port or ICMP type.
    pub sight: Probe,
    /// The rest.
    pub shape: Shape,
}

impl Shot {
    /// The frames, in the order of sending. The token is the IPv4 identification or the
    /// IPv6 flow label, which travel unchanged and are quoted in ICMP errors, and it is the
    /// source port or ICMP identifier, so that no two probes are of one connection.
    pub fn frames(&self, token: u16) -> Vec<Vec<u8>> {
        match (self.source, self.sight.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination, token),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination, token),
            _ => Vec::new(),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, token: u16) -> Vec<Vec<u8>> {
        let payload = self.payload(token);
        let whole = V4::new(source, destination, self.sight.protocol, &payload);
        let part = |fragment: u16, payload: &[u8]| {
            self.v4_frame(V4 { fragment, payload: payload.to_vec(), ..whole.clone() }, token)
        };
        match &self.shape {
            Shape::Large => vec![part(DO_NOT_FRAGMENT, &payload)],
            Shape::Halves { .. } | Shape::FirstHalf => {
                let (first, second) = payload.split_at(FIRST_PART);
                let offset = (FIRST_PART / 8) as u16;
                self.parts(part(MORE_FRAGMENTS, first), part(offset, second))
            }
            Shape::LastHop => vec![self.v4_frame(V4 { ttl: 1, ..whole }, token)],
            Shape::Options(options) => {
                vec![self.v4_frame(V4 { options: options.clone(), ..whole }, token)]
            }
            Shape::Plain | Shape::BadChecksum | Shape::Short | Shape::Headers(_) => {
                vec![part(0, &payload)]
            }
            Shape::Tags(_) | Shape::Ethertype(_) => vec![part(0, &payload)],
        }
    }

    fn v4_frame(&self, packet: V4, token: u16) -> Vec<u8> {
        let mut bytes = packet.packet();
        bytes[4..6].copy_from_slice(&token.to_be_bytes());
        bytes[10..12].fill(0);
        let header = usize::from(bytes[0] & 0xf) * 4;
        let sum = packets::checksum(&bytes[..header]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        self.frame(0x0800, &bytes)
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, token: u16) -> Vec<Vec<u8>> {
        let payload = self.payload(token);
        let whole = V6::new(source, destination, self.sight.protocol, &payload);
        let part = |offset: u16, more: bool, payload: &[u8]| {
            let packet = V6 { payload: payload.to_vec(), ..whole.clone() };
            let packet = packet.with(FRAGMENT, &fragment(offset, more, token));
            self.v6_frame(&packet, token)
        };
        match &self.shape {
            Shape::Halves { .. } | Shape::FirstHalf => {
                let (first, second) = payload.split_at(FIRST_PART);
                let offset = (FIRST_PART / 8) as u16;
                self.parts(part(0, true, first), part(offset, false, second))
            }
            Shape::Headers(numbers) => {
                let packet = numbers.iter().fold(whole, |packet, number| {
                    let rest = match *number {
                        FRAGMENT => fragment(0, false, token),
                        // Type 0, no segments left.
                        ROUTING => vec![0; 7],
                        // 16 bytes: a length of 2 words of 4 bytes beyond the first two.
                        AUTHENTICATION => [&[2][..], &[0x22; 14]].concat(),
                        _ => packets::options(0),
                    };
                    packet.with(*number, &rest)
                });
                vec![self.v6_frame(&packet, token)]
            }
            Shape::Plain | Shape::LastHop | Shape::Large | Shape::BadChecksum | Shape::Short => {
                vec![self.v6_frame(&whole, token)]
            }
            Shape::Options(_) | Shape::Tags(_) | Shape::Ethertype(_) => {
                vec![self.v6_frame(&whole, token)]
            }
        }
    }

    fn v6_frame(&self, packet: &V6, token: u16) -> Vec<u8> {
        let mut bytes = packet.packet();
        bytes[2..4].copy_from_slice(&token.to_be_bytes());
        if self.shape == Shape::LastHop {
            bytes[7] = 1;
        }
        self.frame(0x86dd, &bytes)
    }

    fn parts(&self, first: Vec<u8>, second: Vec<u8>) -> Vec<Vec<u8>> {
        match self.shape {
            Shape::Halves { reversed: true } => vec![second, first],
            Shape::FirstHalf => vec![first],
            _ => vec![first, second],
        }
    }

    fn frame(&self, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let (ethertype, payload) = match &self.shape {
            Shape::Ethertype(other) => (*other, packet.to_vec()),
            Shape::Tags(tags) => {
                tags.iter().rev().fold((ethertype, packet.to_vec()), |(inner, bytes), tag| {
                    let (ethertype, identifier) = *tag;
                    let header = [identifier.to_be_bytes(), inner.to_be_bytes()].concat();
                    (ethertype, [header, bytes].concat())
                })
            }
            _ => (ethertype, packet.to_vec()),
        };
        let mut frame = packets::ethernet(ethertype, &payload);
        frame[..6].copy_from_slice(&VIF);
        frame
    }

    /// The transport header with its checksum, and some data.
    fn payload(&self, token: u16) -> Vec<u8> {
        let Probe { protocol, port, .. } = self.sight;
        let icmp = Family::from(self.source).icmp();
        let (mut bytes, sum_at) = match protocol {
            TCP => (packets::tcp(token, port), Some(16)),
            UDP => (packets::udp(token, port), Some(6)),
            it if it == icmp => (packets::icmp(port as u8, 0), Some(2)),
            _ => (vec![0x11; 24], None),
        };
        let length = match self.shape {
            Shape::Large => 1300,
            Shape::Halves { .. } | Shape::FirstHalf => FIRST_PART + 16,
            _ => bytes.len(),
        };
        bytes.resize(length, 0);
        if protocol == icmp {
            bytes[4..6].copy_from_slice(&token.to_be_bytes());
        }
        if protocol == UDP {
            bytes[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        if let Some(at) = sum_at {
            let mut sum = packets::checksum(&[self.pseudo_header(length), bytes.clone()].concat());
            if self.shape == Shape::BadChecksum {
                sum ^= 0x0f0f;
            }
            // 0 would say that there is none (RFC 768).
            let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        if self.shape == Shape::Short {
            bytes.truncate(3);
        }
        bytes
    }

    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let protocol = self.sight.protocol;
        let end = [[0, protocol], (length as u16).to_be_bytes()].concat();
        match (self.source, self.sight.destination) {
            (IpAddr::V4(_), _) if protocol == ICMP => Vec::new(),
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                [&source.octets()[..], &destination.octets(), &end].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                [&source.octets()[..], &destination.octets(), &end].concat()
            }
            _ => Vec::new(),
        }
    }
}

fn fragment(offset: u16, more: bool, token: u16) -> Vec<u8> {
    let mut rest = packets::fragment(offset, more);
    rest[5..7].copy_from_slice(&token.to_be_bytes());
    rest
}

/// Where probes come from and go to, besides the addresses in rules.
#[derive(Clone, Debug)]
pub struct Places {
    /// Own address of the client.
    pub own: IpAddr,
    /// Addresses that it does not have.
    pub foreign: Vec<IpAddr>,
    /// DNS servers, virtual or real.
    pub resolvers: Vec<IpAddr>,
    /// The netvm's own addresses, other clients, places without a route, and so on.
    pub special: Vec<IpAddr>,
}

/// A source of probes.
pub struct Shots {
    random: StdRng,
    generator: Generator,
    /// How many more datagrams may stay unfinished, each of which takes room for a minute.
    unfinished: usize,
}

impl Shots {
    /// The same seed gives the same things in the same order.
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(!seed),
            generator: Generator::new(seed),
            unfinished: MOST_UNFINISHED,
        }
    }

    /// A ruleset with up to `most` rules.
    pub fn ruleset(&mut self, family: Family, most: usize) -> Ruleset {
        self.generator.ruleset(family, most)
    }

    /// A probe near the edges of a ruleset, or to one of the places.
    pub fn shot(&mut self, ruleset: &Ruleset, places: &Places) -> Shot {
        let family = Family::from(places.own);
        let mut sight = self.generator.probe(family, ruleset);
        match self.random.random_range(0..10) {
            0..2 => sight.destination = self.one_of(&places.special, sight.destination),
            2..4 if !places.resolvers.is_empty() => {
                sight.destination = self.one_of(&places.resolvers, sight.destination);
                if self.random.random_ratio(3, 4) {
                    sight.protocol = if self.random.random() { TCP } else { UDP };
                    sight.port = 53;
                }
            }
            _ => {}
        }
        if sight.protocol == family.icmp() && self.random.random_ratio(1, 3) {
            sight.port = family.echo().into();
        }
        if family == Family::V6 && self.random.random_ratio(1, 30) {
            (sight.protocol, sight.port) = (NO_NEXT, 0);
        }
        let source = if self.random.random_ratio(1, 30) {
            self.one_of(&places.foreign, places.own)
        } else {
            places.own
        };
        let odd = self.random.random_ratio(2, 5);
        let shape = if odd { self.shape(family, &sight) } else { Shape::Plain };
        Shot { source, sight, shape }
    }

    fn shape(&mut self, family: Family, sight: &Probe) -> Shape {
        match self.random.random_range(0..20) {
            0..2 => Shape::LastHop,
            2..5 => Shape::Large,
            5 => Shape::BadChecksum,
            6 if matches!(sight.protocol, TCP | UDP) => Shape::Short,
            7..9 => Shape::Halves { reversed: self.leaves_unfinished() },
            9 if self.leaves_unfinished() => Shape::FirstHalf,
            10 => {
                let tags = [(0x8100, 0), (0x88a8, 0), (0x8100, 5), (0x9100, 0)];
                let count = self.random.random_range(1..=2);
                Shape::Tags((0..count).map(|_| self.one_of(&tags, tags[0])).collect())
            }
            11 => Shape::Ethertype(self.one_of(&[0x8847, 0x8864, 0x22f0, 0x0801], 0x88cc)),
            12..16 if family == Family::V4 => {
                let options: [&[u8]; 8] = [
                    &[131, 7, 4, 198, 51, 100, 7],
                    &[137, 7, 4, 198, 51, 100, 7],
                    // The route is used up.
                    &[131, 7, 8, 198, 51, 100, 7],
                    &[1, 1, 7, 7, 4, 0, 0, 0, 0],
                    &[148, 4, 0, 0],
                    &[68, 12, 5, 0],
                    // Longer than the header, and shorter than itself.
                    &[7, 39, 4, 0],
                    &[148, 1, 0, 0],
                ];
                Shape::Options(self.one_of(&options, options[0]).to_vec())
            }
            12..18 if family == Family::V6 => Shape::Headers(self.headers()),
            _ => Shape::Plain,
        }
    }

    /// Whether the next datagram is one that is never finished.
    fn leaves_unfinished(&mut self) -> bool {
        let does = self.unfinished > 0 && self.random.random();
        self.unfinished -= usize::from(does);
        does
    }

    fn headers(&mut self) -> Vec<u8> {
        if self.random.random_ratio(1, 12) {
            return vec![DESTINATION; 10];
        }
        let numbers = [DESTINATION, DESTINATION, HOP_BY_HOP, FRAGMENT, AUTHENTICATION, ROUTING];
        let count = self.random.random_range(1..=3);
        let mut headers: Vec<u8> = (0..count).map(|_| self.one_of(&numbers, DESTINATION)).collect();
        // Hop-by-hop options come first, and once (RFC 8200, section 4.1).
        if headers.contains(&HOP_BY_HOP) {
            headers.retain(|it| *it != HOP_BY_HOP);
            headers.insert(0, HOP_BY_HOP);
        }
        headers
    }

    fn one_of<T: Copy>(&mut self, choices: &[T], otherwise: T) -> T {
        choices.choose(&mut self.random).copied().unwrap_or(otherwise)
    }
}
