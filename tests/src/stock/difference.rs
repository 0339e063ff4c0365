//! Where this firewall differs from today's on purpose: a closed list, and for each entry
//! the packets and rules that it is about.
//! Never excuses an outcome by itself: what was sent and the rules must foresee it.

use std::net::IpAddr;

use crate::oracle::{Probe, Rule, Ruleset};
use crate::packets::{FRAGMENT, ICMPV6, ROUTING, TCP, UDP};
use crate::stock::shots::{Shape, Shot};
use crate::stock::sightings::Outcome;
use crate::stock::{Netvm, VIRTUAL_RESOLVERS};

const DNS: u16 = 53;
/// The ICMPv6 type of redirects (RFC 4861).
const REDIRECT: u16 = 137;
/// Most IPv6 extension headers that are walked.
const MOST_HEADERS: usize = 8;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// A difference, named by what happens here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difference {
    /// Rules see the resolver that the client addressed, not the one behind it: accepting
    /// either of them opens DNS, and only a drop rule for the addressed one closes it.
    VirtualResolverSeenBeforeDnat,
    /// IPv6 rules see the protocol behind extension headers, not what follows the fixed
    /// header.
    FinalProtocolBehindExtensionHeaders,
    /// IPv4 packets with a source route are dropped.
    SourceRouteDropped,
    /// IPv6 packets with a routing header are dropped.
    RoutingHeaderDropped,
    /// Frames with VLAN tags are dropped, those with identifier 0 as well.
    TagDropped,
    /// IPv6 packets with more extension headers than are walked are dropped.
    TooManyHeadersDropped,
    /// IPv6 packets to an IPv4-mapped address are dropped.
    MappedAddressDropped,
    /// TCP and UDP packets that end before their ports are dropped, never rejected.
    TruncatedDropped,
    /// IPv4 packets with options that contradict themselves are dropped, and no ICMP error
    /// is sent about them.
    MalformedOptionsDropped,
    /// Fragments that do not come in their order are dropped.
    FragmentsOutOfOrderDropped,
    /// Denied fragments are dropped, never rejected; one with all of a datagram is one.
    DeniedFragmentsDropped,
    /// IPv6 packets with two fragment headers are dropped.
    FragmentTwiceDropped,
    /// IPv6 redirects are dropped, never rejected; the kernel forwards none either way.
    RedirectDropped,
}

impl Difference {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::VirtualResolverSeenBeforeDnat,
        Self::FinalProtocolBehindExtensionHeaders,
        Self::SourceRouteDropped,
        Self::RoutingHeaderDropped,
        Self::TagDropped,
        Self::TooManyHeadersDropped,
        Self::MappedAddressDropped,
        Self::TruncatedDropped,
        Self::MalformedOptionsDropped,
        Self::FragmentsOutOfOrderDropped,
        Self::DeniedFragmentsDropped,
        Self::FragmentTwiceDropped,
        Self::RedirectDropped,
    ];

    /// The difference to expect for a probe under these rules, if any.
    pub fn foreseen(netvm: &Netvm, ruleset: &Ruleset, shot: &Shot) -> Option<Self> {
        if let Some(difference) = Self::of_shape(shot) {
            return Some(difference);
        }
        let ours = accepts_here(netvm, ruleset, shot);
        let stock = accepts_today(netvm, ruleset, shot);
        let is_fragment =
            matches!(shot.shape, Shape::Halves { .. }) || walked(shot).contains(&FRAGMENT);
        if is_fragment && !ours {
            return Some(Self::DeniedFragmentsDropped);
        }
        if ours != stock {
            let dns = is_dns_to_virtual_resolver(shot);
            let headers = matches!(shot.shape, Shape::Headers(_));
            return match (dns, headers) {
                (true, _) => Some(Self::VirtualResolverSeenBeforeDnat),
                (false, true) => Some(Self::FinalProtocolBehindExtensionHeaders),
                (false, false) => None,
            };
        }
        None
    }

    fn of_shape(shot: &Shot) -> Option<Self> {
        if let IpAddr::V6(v6) = shot.sight.destination
            && v6.to_ipv4_mapped().is_some()
        {
            return Some(Self::MappedAddressDropped);
        }
        if !shot.source.is_ipv4() && (shot.sight.protocol, shot.sight.port) == (ICMPV6, REDIRECT) {
            return Some(Self::RedirectDropped);
        }
        match &shot.shape {
            Shape::Options(options) => of_options(options),
            Shape::Headers(_) => {
                let walked = walked(shot);
                let fragments = walked.iter().filter(|it| **it == FRAGMENT).count();
                if walked.iter().take(MOST_HEADERS + 1).any(|it| *it == ROUTING) {
                    Some(Self::RoutingHeaderDropped)
                } else if fragments > 1 {
                    Some(Self::FragmentTwiceDropped)
                } else {
                    (walked.len() > MOST_HEADERS).then_some(Self::TooManyHeadersDropped)
                }
            }
            Shape::Tags(_) => Some(Self::TagDropped),
            Shape::Short => {
                matches!(shot.sight.protocol, TCP | UDP).then_some(Self::TruncatedDropped)
            }
            Shape::Plain | Shape::LastHop | Shape::Large | Shape::BadChecksum => None,
            Shape::Halves { reversed: true } => Some(Self::FragmentsOutOfOrderDropped),
            Shape::Halves { .. } | Shape::FirstHalf | Shape::Ethertype(_) => None,
        }
    }

    /// Whether two outcomes differ in the way that this difference means.
    pub fn explains(
        self,
        netvm: &Netvm,
        ruleset: &Ruleset,
        shot: &Shot,
        ours: &Outcome,
        stock: &Outcome,
    ) -> bool {
        match self {
            Self::VirtualResolverSeenBeforeDnat | Self::FinalProtocolBehindExtensionHeaders => {
                let fits = |accepts: bool, outcome: &Outcome| {
                    if accepts { !outcome.is_rejected() } else { !outcome.has_left() }
                };
                fits(accepts_here(netvm, ruleset, shot), ours)
                    && fits(accepts_today(netvm, ruleset, shot), stock)
            }
            Self::SourceRouteDropped
            | Self::RoutingHeaderDropped
            | Self::TagDropped
            | Self::TooManyHeadersDropped
            | Self::MappedAddressDropped
            | Self::TruncatedDropped
            | Self::MalformedOptionsDropped
            | Self::FragmentsOutOfOrderDropped
            | Self::DeniedFragmentsDropped
            | Self::FragmentTwiceDropped
            | Self::RedirectDropped => ours.is_silent(),
        }
    }
}

fn of_options(options: &[u8]) -> Option<Difference> {
    let mut rest = options;
    while let [kind, behind @ ..] = rest {
        match (*kind, behind.first()) {
            (0, _) => return None,
            (OPTION_NOP, _) => rest = behind,
            (OPTION_LSRR | OPTION_SSRR, _) => return Some(Difference::SourceRouteDropped),
            (_, length) => {
                let length = length.map_or(0, |it| usize::from(*it));
                let header = options.len().next_multiple_of(4);
                let room = header - (options.len() - rest.len());
                if length < 2 || length > room {
                    return Some(Difference::MalformedOptionsDropped);
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
    None
}

/// The extension headers in front of the final protocol.
fn walked(shot: &Shot) -> &[u8] {
    match &shot.shape {
        Shape::Headers(numbers) => numbers,
        _ => &[],
    }
}

fn is_dns_to_virtual_resolver(shot: &Shot) -> bool {
    let Probe { destination, protocol, port } = shot.sight;
    let to_one = VIRTUAL_RESOLVERS.iter().any(|it| IpAddr::from(*it) == destination);
    to_one && port == DNS && matches!(protocol, TCP | UDP)
}

/// What today's rules say: behind DNAT, and by what follows the IPv6 fixed header. The
/// kernel puts fragments together before that, which takes one fragment header off.
pub fn accepts_today(netvm: &Netvm, ruleset: &Ruleset, shot: &Shot) -> bool {
    let mut sight = shot.sight;
    if is_dns_to_virtual_resolver(shot)
        && let Some(real) = netvm.behind(sight.destination)
    {
        sight.destination = real;
    }
    if let Shape::Headers(numbers) = &shot.shape {
        let fragment = numbers.iter().position(|it| *it == FRAGMENT);
        let left = numbers.iter().enumerate().filter(|(index, _)| Some(*index) != fragment);
        sight.protocol = left.map(|(_, number)| *number).next().unwrap_or(sight.protocol);
    }
    ruleset.verdict_today(&sight, &netvm.resolvers).0
}

/// What rules say here: in front of DNAT, and by the final protocol.
pub fn accepts_here(netvm: &Netvm, ruleset: &Ruleset, shot: &Shot) -> bool {
    let sight = shot.sight;
    let resolvers = VIRTUAL_RESOLVERS.into_iter().map(IpAddr::from);
    let resolvers: Vec<IpAddr> = resolvers.chain(netvm.resolvers.iter().copied()).collect();
    let behind = is_dns_to_virtual_resolver(shot).then(|| netvm.behind(sight.destination));
    let behind = behind.flatten().map(|destination| Probe { destination, ..sight });
    let deciding = ruleset.rules.iter().find(|rule| {
        let alone = |sight: &Probe| {
            let only = Ruleset { default_accept: false, rules: vec![(*rule).clone()] };
            only.verdict(sight, &resolvers).1.is_some()
        };
        let Rule { accept, dns, .. } = rule;
        alone(&sight) || (*accept && !*dns && behind.as_ref().is_some_and(alone))
    });
    deciding.map_or(ruleset.default_accept, |rule| rule.accept)
}
