//! Ours and today's firewall side by side: the same rules, the same frames, and every
//! difference has a name. Needs root.
//! Never takes either side for right.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::{Probe, Proto, Rule, Ruleset};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::{AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
use firewall_tests::packets::{ICMP, ICMPV6, TCP, UDP};
use firewall_tests::stock::difference::{Difference, accepts_here, accepts_today};
use firewall_tests::stock::shots::{Shape, Shot, Shots};
use firewall_tests::stock::sightings::Outcome;
use firewall_tests::stock::twins::Twins;
use firewall_tests::{rounds, seed};

const LAN_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
const SECOND_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
const RESOLVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3));
/// A netvm at a LAN.
const LAN: [IpAddr; 3] = [LAN_RESOLVER, SECOND_RESOLVER, RESOLVER6];
/// A netvm behind another one.
const CHAIN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 139, 1, 1)), IpAddr::V4(Ipv4Addr::new(10, 139, 1, 2))];
const SHOTS: usize = 50;
/// Rulesets for each family.
const RULESETS: usize = 500;
/// No more than these are printed.
const MOST_PRINTED: usize = 10;

#[test]
fn stock_and_ours_agree_on_random_rules_and_packets_except_in_named_classes() -> Result<()> {
    let seed = seed();
    let rounds = rounds(RULESETS, 4 * RULESETS);
    let mut tally = Tally::default();
    let mut shots = Shots::new(seed);
    let sites: [(&str, &[IpAddr], usize); 3] = [
        ("lan", &LAN, rounds - rounds / 4 - rounds / 8),
        ("chain", &CHAIN, rounds / 4),
        ("nodns", &[], rounds / 8),
    ];
    for (site, resolvers, rounds) in sites {
        let mut twins = Twins::new(&format!("random_{site}"), resolvers)?;
        for round in 0..rounds {
            for family in Family::BOTH {
                let places = twins.places(family)?;
                let ruleset = shots.ruleset(family, if round % 20 == 0 { 100 } else { 12 });
                let batch: Vec<Shot> = (0..SHOTS).map(|_| shots.shot(&ruleset, &places)).collect();
                twins.put(places.own, &ruleset)?;
                let outcomes = twins.send(&batch).context(format!("seed {seed}, {site}"))?;
                for (shot, outcomes) in batch.iter().zip(&outcomes) {
                    tally.add(&twins, &ruleset, shot, outcomes)?;
                }
            }
        }
    }
    println!("{tally}");
    for text in tally.unexplained.iter().take(MOST_PRINTED) {
        println!("seed {seed}: {text}");
    }
    ensure!(tally.unexplained.is_empty(), "{} not explained", tally.unexplained.len());
    let few = tally.probes / 10;
    ensure!(tally.left > few && tally.rejected > few, "the random packets are too much alike");
    Ok(())
}

/// What came of all probes.
#[derive(Default)]
struct Tally {
    probes: usize,
    left: usize,
    rejected: usize,
    silent: usize,
    /// Compared with the oracle as well.
    ordinary: usize,
    /// Foreseen, and so it was; foreseen, and yet no difference was seen.
    classes: BTreeMap<Difference, (usize, usize)>,
    unexplained: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probes, left, rejected, silent, ordinary, classes, unexplained } = self;
        writeln!(f, "{probes} probes; here {left} left, {rejected} rejected, {silent} silent")?;
        writeln!(f, "  {ordinary} of them compared with the oracle")?;
        for class in Difference::ALL {
            let (seen, alike) = classes.get(&class).copied().unwrap_or_default();
            writeln!(f, "  {class:?}: {seen} differ, {alike} more could")?;
        }
        write!(f, "  unexplained: {}", unexplained.len())
    }
}

impl Tally {
    fn add(
        &mut self,
        twins: &Twins,
        ruleset: &Ruleset,
        shot: &Shot,
        (ours, stock): &(Outcome, Outcome),
    ) -> Result<()> {
        self.probes += 1;
        self.left += usize::from(ours.has_left());
        self.rejected += usize::from(ours.is_rejected());
        self.silent += usize::from(ours.is_silent());
        let netvm = twins.netvm();
        let foreseen = Difference::foreseen(netvm, ruleset, shot);
        let explained = match foreseen {
            Some(class) if ours == stock => {
                self.classes.entry(class).or_default().1 += 1;
                true
            }
            Some(class) if class.explains(netvm, ruleset, shot, ours, stock) => {
                self.classes.entry(class).or_default().0 += 1;
                true
            }
            Some(_) | None => ours == stock,
        };
        let mut as_oracle = true;
        if is_ordinary(shot) && shot.source == twins.client(shot.source.into())? {
            self.ordinary += 1;
            as_oracle = ours.has_left() == accepts_here(netvm, ruleset, shot)
                && stock.has_left() == accepts_today(netvm, ruleset, shot);
        }
        if !explained || !as_oracle {
            self.unexplained.push(format!(
                "ours: {ours}; stock: {stock}; foreseen: {foreseen:?}; as the oracle: \
                 {as_oracle}\n{shot:?}\nframes {:02x?}\nresolvers {:?}\n{}",
                shot.frames(0xabcd),
                netvm.resolvers,
                ruleset.file()
            ));
        }
        Ok(())
    }
}

/// A plain TCP or UDP packet to a network that has a route and nothing else.
fn is_ordinary(shot: &Shot) -> bool {
    let place = match shot.sight.destination {
        IpAddr::V4(v4) => v4.octets()[..3] == [198, 51, 100],
        IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 0xdb8, 1],
    };
    place && shot.shape == Shape::Plain && matches!(shot.sight.protocol, TCP | UDP)
}

/// Sends probes on both sides under the same rules, and compares with what is known.
struct Cases {
    twins: Twins,
    classes: Vec<Difference>,
}

impl Cases {
    fn new(label: &str) -> Result<Self> {
        Ok(Self { twins: Twins::new(label, &LAN)?, classes: Vec::new() })
    }

    fn check(
        &mut self,
        class: Option<Difference>,
        rules: &[&str],
        to: &str,
        sight: (u8, u16),
        shape: Shape,
        expected: [&str; 2],
    ) -> Result<()> {
        let destination: IpAddr = to.parse()?;
        let source = self.twins.client(destination.into())?;
        let rules = rules.iter().map(|text| rule(text)).collect::<Result<_>>()?;
        let ruleset = Ruleset { default_accept: false, rules };
        let (protocol, port) = sight;
        let shot = Shot { source, sight: Probe { destination, protocol, port }, shape };
        self.twins.put(source, &ruleset)?;
        let outcomes = self.twins.send(std::slice::from_ref(&shot))?;
        let (ours, stock) = outcomes.first().context("no outcome")?;
        let context = || format!("{shot:?} under\n{}", ruleset.file());
        assert_eq!([ours.to_string(), stock.to_string()], expected, "{}", context());
        let netvm = self.twins.netvm();
        assert_eq!(Difference::foreseen(netvm, &ruleset, &shot), class, "{}", context());
        if let Some(class) = class {
            assert!(class.explains(netvm, &ruleset, &shot, ours, stock), "{}", context());
            self.classes.push(class);
        }
        Ok(())
    }
}

/// A rule in few words: `accept 192.0.2.0/24 udp dns 53 type=8`.
fn rule(text: &str) -> Result<Rule> {
    let mut rule = Rule::all(text.starts_with("accept"));
    for word in text.split(' ').skip(1) {
        match word {
            "tcp" => rule.proto = Some(Proto::Tcp),
            "udp" => rule.proto = Some(Proto::Udp),
            "icmp" => rule.proto = Some(Proto::Icmp),
            "dns" => rule.dns = true,
            word => match word.split_once('/') {
                Some((address, length)) => {
                    rule.network = Some((address.parse()?, length.parse()?));
                }
                None => rule.ports = Some((word.parse()?, word.parse()?)),
            },
        }
    }
    Ok(rule)
}

const PROHIBITED4: &str = "icmp error 3/13";
const PROHIBITED6: &str = "icmp error 1/1";
const SILENT: &str = "silent";
const SERVER4: &str = "198.51.100.7";
const SERVER6: &str = "2001:db8:1::7";
const TO_SERVER4: &str = "left from 192.0.2.2 to 198.51.100.7";
const TO_SERVER6: &str = "left from 2001:db8:ffff::2 to 2001:db8:1::7";
const TO_RESOLVER: &str = "left from 192.0.2.2 to 192.168.1.1";
const TO_RESOLVER2: &str = "left from 192.0.2.2 to 198.51.100.2";

#[test]
fn each_named_difference_really_occurs() -> Result<()> {
    use Difference::*;
    let mut it = Cases::new("differences")?;
    let (dns, virtual_resolver) = ((UDP, 53), "10.139.1.1");
    let mut resolver = |rules: &[&str], expected| {
        let class = Some(VirtualResolverSeenBeforeDnat);
        it.check(class, rules, virtual_resolver, dns, Shape::Plain, expected)
    };
    // qubes-issues 8765: who blocks the LAN does not mean to lose DNS.
    resolver(&["drop 192.168.0.0/16", "accept"], [TO_RESOLVER, PROHIBITED4])?;
    resolver(&["drop 10.0.0.0/8 udp 53", "accept"], [PROHIBITED4, TO_RESOLVER])?;
    resolver(&["drop dns 192.168.1.1/32", "accept 192.168.1.1/32"], [TO_RESOLVER, PROHIBITED4])?;
    resolver(&["accept 10.139.1.1/32"], [TO_RESOLVER, PROHIBITED4])?;
    resolver(&["drop 10.139.1.1/32", "accept"], [PROHIBITED4, TO_RESOLVER])?;

    let class = Some(FinalProtocolBehindExtensionHeaders);
    let drop_udp = ["drop udp", "accept"];
    for (protocol, rules, headers, expected) in [
        (UDP, &drop_udp[..], vec![DESTINATION], [PROHIBITED6, TO_SERVER6]),
        (TCP, &["accept tcp"], vec![HOP_BY_HOP], [TO_SERVER6, PROHIBITED6]),
        (TCP, &["accept 443"], vec![HOP_BY_HOP, DESTINATION], [TO_SERVER6, PROHIBITED6]),
        (TCP, &["accept tcp"], vec![AUTHENTICATION], [TO_SERVER6, PROHIBITED6]),
    ] {
        it.check(class, rules, SERVER6, (protocol, 443), Shape::Headers(headers), expected)?;
    }

    let any = ["accept"];
    let mut dropped4 = |class, shape, stock| {
        it.check(Some(class), &any, SERVER4, (TCP, 443), shape, [SILENT, stock])
    };
    for kind in [131, 137] {
        // A strict route that does not lead here is an error to the kernel.
        let stock = if kind == 131 { TO_SERVER4 } else { "icmp error 12/0" };
        let route = Shape::Options(vec![kind, 7, 4, 198, 51, 100, 7]);
        dropped4(SourceRouteDropped, route, stock)?;
    }
    dropped4(TagDropped, Shape::Tags(vec![(0x8100, 0)]), TO_SERVER4)?;
    dropped4(TagDropped, Shape::Tags(vec![(0x88a8, 0), (0x8100, 0)]), TO_SERVER4)?;
    let options = Shape::Options(vec![7, 39, 4, 0]);
    dropped4(MalformedOptionsDropped, options, "icmp error 12/0")?;

    let mut dropped6 = |class, to, shape, stock: &str| {
        it.check(Some(class), &any, to, (TCP, 443), shape, [SILENT, stock])
    };
    dropped6(RoutingHeaderDropped, SERVER6, Shape::Headers(vec![ROUTING]), TO_SERVER6)?;
    let many = Shape::Headers(vec![DESTINATION; 9]);
    dropped6(TooManyHeadersDropped, SERVER6, many, TO_SERVER6)?;
    let twice = Shape::Headers(vec![FRAGMENT, FRAGMENT]);
    dropped6(FragmentTwiceDropped, SERVER6, twice, TO_SERVER6)?;
    let mapped = "::ffff:198.51.100.7";
    let to_mapped = format!("left from 2001:db8:ffff::2 to {mapped}");
    dropped6(MappedAddressDropped, mapped, Shape::Plain, &to_mapped)?;
    dropped6(TruncatedDropped, "2001:db8:dead::9", Shape::Short, "icmp error 1/0")?;

    let class = Some(DeniedFragmentsDropped);
    let atomic = Shape::Headers(vec![FRAGMENT, DESTINATION]);
    it.check(class, &drop_udp, SERVER6, (UDP, 443), atomic, [SILENT, TO_SERVER6])?;
    for (to, left, prohibited) in
        [(SERVER4, TO_SERVER4, PROHIBITED4), (SERVER6, TO_SERVER6, PROHIBITED6)]
    {
        let mut silent = |class, rules: &[&str], sight, shape, stock: &str| {
            it.check(Some(class), rules, to, sight, shape, [SILENT, stock])
        };
        let halves = |reversed| Shape::Halves { reversed };
        let udp = (UDP, 443);
        silent(FragmentsOutOfOrderDropped, &any, udp, halves(true), left)?;
        silent(FragmentsOutOfOrderDropped, &[], udp, halves(true), prohibited)?;
        silent(DeniedFragmentsDropped, &[], udp, halves(false), prohibited)?;
    }
    let redirect = (ICMPV6, 137);
    it.check(Some(RedirectDropped), &[], SERVER6, redirect, Shape::Plain, [SILENT, PROHIBITED6])?;

    let missing = Difference::ALL.iter().filter(|class| !it.classes.contains(class));
    assert_eq!(missing.count(), 0);
    Ok(())
}

#[test]
fn what_both_do_alike_is_alike() -> Result<()> {
    let mut it = Cases::new("alike")?;
    let mut alike = |rules: &[&str], to, sight, shape, expected| {
        it.check(None, rules, to, sight, shape, [expected, expected])
    };
    let any = &["accept"][..];
    let (plain, https, dns) = (Shape::Plain, (TCP, 443), (UDP, 53));
    alike(any, SERVER4, https, plain.clone(), TO_SERVER4)?;
    alike(&[], SERVER4, https, plain.clone(), PROHIBITED4)?;
    alike(any, SERVER6, https, plain.clone(), TO_SERVER6)?;
    alike(&[], SERVER6, https, plain.clone(), PROHIBITED6)?;
    for rules in [["accept dns"], ["accept 192.168.1.1/32"], ["accept udp 53"]] {
        alike(&rules, "10.139.1.1", dns, plain.clone(), TO_RESOLVER)?;
        alike(&rules, "192.168.1.1", dns, plain.clone(), TO_RESOLVER)?;
    }
    // Whoever drops the network of the virtual resolvers does not drop DNS.
    for lan in ["drop 10.0.0.0/8", "drop 10.139.1.0/24", "drop udp 10.128.0.0/9"] {
        alike(&[lan, "accept"], "10.139.1.1", dns, plain.clone(), TO_RESOLVER)?;
        alike(&[lan, "accept"], "10.139.1.2", dns, plain.clone(), TO_RESOLVER2)?;
    }
    alike(&["drop 0.0.0.0/0", "accept"], "10.139.1.1", dns, plain.clone(), PROHIBITED4)?;
    alike(&["accept dns tcp"], "10.139.1.1", dns, plain.clone(), PROHIBITED4)?;
    // One fragment, even the only one, is put together before rules see it.
    let atomic = Shape::Headers(vec![FRAGMENT]);
    alike(&["accept tcp"], SERVER6, https, atomic, TO_SERVER6)?;
    let halves = || Shape::Halves { reversed: false };
    alike(&["accept udp 443"], SERVER4, (UDP, 443), halves(), TO_SERVER4)?;
    alike(&["accept udp 443"], SERVER6, (UDP, 443), halves(), TO_SERVER6)?;
    // Errors about packets that never were, and IPv4 redirects.
    for kind in [3, 4, 5, 11, 12] {
        alike(any, SERVER4, (ICMP, kind), plain.clone(), SILENT)?;
    }
    for kind in [1, 2, 3, 4, 127] {
        alike(any, SERVER6, (ICMPV6, kind), plain.clone(), SILENT)?;
    }
    // What the kernel says before any rule is asked, and what it never says.
    alike(&[], SERVER4, https, Shape::LastHop, "icmp error 11/0")?;
    alike(&[], SERVER6, https, Shape::LastHop, "icmp error 3/0")?;
    alike(&[], "8.8.8.8", https, Shape::Large, "icmp error 3/4")?;
    alike(&[], "fd09:24ef::2", https, Shape::Large, "icmp error 2/0")?;
    alike(&[], "2001:db8:dead::9", https, plain.clone(), "icmp error 1/0")?;
    alike(&[], SERVER4, https, Shape::BadChecksum, SILENT)?;
    alike(any, SERVER4, https, Shape::Ethertype(0x8847), SILENT)?;
    alike(any, "10.137.0.13", https, plain.clone(), SILENT)?;
    // The netvm itself is not the rules' business.
    alike(&[], "10.137.0.1", https, plain.clone(), "icmp error 3/10")?;
    alike(&[], "192.0.2.2", (1, 8), plain, "answered by the netvm")
}
