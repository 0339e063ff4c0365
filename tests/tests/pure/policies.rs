//! Compiled policies: equal to the ordered rules, small enough, and checked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use firewall_agent::edges::sources::rule_files;
use firewall_common::abi::{DEFAULT_RULE, Segment};
use firewall_common::packet;
use firewall_common::policy::{Tables, decide};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::rules::check::{self, PolicyTables, ProvedPolicy};
use firewall_core::rules::compile::{self, MAX_POLICY_CLASSES, MAX_POLICY_SEGMENTS};
use firewall_core::rules::question::Addresses;
use firewall_core::rules::question::Question;
use firewall_core::rules::resolve::{self, ResolvedRuleset, Surroundings};
use firewall_core::rules::{Action, Family, parse};
use firewall_tests::oracle::generate::Generator;
use firewall_tests::oracle::{Probe, Proto, Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::{rounds, seed};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 12));

fn resolved(client: IpAddr, text: &str, known: &Surroundings) -> ResolvedRuleset {
    let ruleset = rule_files::ruleset(client, text).expect("rules");
    resolve::resolve(Family::from(client), &ruleset, known)
}

fn proved(client: IpAddr, text: &str, known: &Surroundings) -> ProvedPolicy {
    let resolved = resolved(client, text, known);
    let policy = compile::compile(&resolved).expect("a policy");
    check::prove(&resolved, policy).expect("a proof")
}

/// The verdict on a plain packet, by the evaluator on the policy's own tables.
fn verdict(policy: &ProvedPolicy, client: IpAddr, probe: &Probe) -> (Verdict, Option<usize>) {
    let frame = packets::plain(client, probe.destination, probe.protocol, probe.port);
    let tables = PolicyTables::new(policy.policy());
    let decision = decide(&tables, 1, &packet::parse(frame.as_slice()));
    let rule = (decision.reason == Reason::Rule).then_some(decision.rule as usize);
    (decision.verdict, rule)
}

#[test]
fn compiled_and_oracle_agree_on_random_rules_and_packets() {
    let seed = seed();
    let mut generator = Generator::new(seed);
    let v6_client: IpAddr = "fd09:24ef:4179::a89:c".parse().expect("an address");
    let servers: [IpAddr; 2] = [[10, 139, 1, 1].into(), [10, 139, 1, 2].into()];
    for round in 0..rounds(600, 10_000) {
        for client in [CLIENT, v6_client] {
            let rules = generator.ruleset(client.into(), if round % 10 == 0 { 200 } else { 10 });
            let policy = proved(client, &rules.file(), &Surroundings::default());
            assert!(policy.proof().complete || rules.rules.len() > 100);
            for _ in 0..100 {
                let probe = generator.probe(client.into(), &rules);
                let (accept, rule) = rules.verdict(&probe, &servers);
                let (verdict, by) = verdict(&policy, client, &probe);
                if matches!(verdict, Verdict::Pass | Verdict::Drop) {
                    // Multicast, mapped addresses and routing headers are not the rules'.
                    continue;
                }
                let expected = if accept { Verdict::Accept } else { Verdict::Reject };
                assert_eq!((verdict, by), (expected, rule), "{seed}: {probe:?} {}", rules.file());
            }
        }
    }
}

/// A name of IPv4 that is resolved to these addresses.
fn name<const N: usize>(name: &str, addresses: [&str; N]) -> (Question, Addresses) {
    let accept: BTreeSet<IpAddr> = addresses.map(|it| it.parse().expect("an address")).into();
    let question = Question { name: name.to_owned(), family: Family::V4 };
    (question, Addresses { drop: Some(accept.clone()), accept })
}

#[test]
fn unresolved_accept_matches_nothing_and_unresolved_drop_matches_everything() {
    let text = "policy = accept\n\
        0000 = action=drop dsthost=bad.example proto=tcp dstports=25-25\n\
        0001 = action=accept dsthost=good.example\n\
        0002 = action=drop proto=udp\n\
        commit\n";
    let check = |known: &Surroundings, protocol, port, expected, rule| {
        let destination = Ipv4Addr::new(198, 51, 100, 7).into();
        let policy = proved(CLIENT, text, known);
        let found = verdict(&policy, CLIENT, &Probe { destination, protocol, port });
        assert_eq!(found, (expected, rule));
    };
    let unknown = Surroundings::default();
    check(&unknown, packets::TCP, 25, Verdict::Reject, Some(0));
    check(&unknown, packets::TCP, 26, Verdict::Accept, None);
    check(&unknown, packets::UDP, 25, Verdict::Reject, Some(2));
    let mut known = Surroundings::default();
    known
        .names
        .extend([name("bad.example", ["192.0.2.1"]), name("good.example", ["198.51.100.7"])]);
    check(&known, packets::TCP, 25, Verdict::Accept, Some(1));
    check(&known, packets::UDP, 25, Verdict::Accept, Some(1));
    // A name without addresses of this family is an answer, not a failure.
    known.names.extend([name("bad.example", [])]);
    check(&known, packets::TCP, 25, Verdict::Accept, Some(1));
    // An address that accept rules must not use, drop rules use all the same.
    let (good, mut of_good) = name("good.example", ["198.51.100.7"]);
    of_good.accept.clear();
    known.names.insert(good, of_good);
    check(&known, packets::UDP, 25, Verdict::Reject, Some(2));
}

#[test]
fn accept_of_a_real_resolver_admits_the_virtual_one_on_port_53_and_a_drop_does_not_lose_it() {
    let known =
        Surroundings { resolvers: vec![[192, 168, 1, 1].into()], ..Surroundings::default() };
    let check = |rules: &str, port, expected| {
        let text = format!("policy = drop\n{rules}commit\n");
        let policy = proved(CLIENT, &text, &known);
        for virtual_resolver in [[10, 139, 1, 1], [10, 139, 1, 2]] {
            let destination = virtual_resolver.into();
            let probe = Probe { destination, protocol: packets::UDP, port };
            assert_eq!(verdict(&policy, CLIENT, &probe).0, expected, "{rules} {port}");
        }
    };
    let (accept, reject) = (Verdict::Accept, Verdict::Reject);
    check("0000 = action=accept dst4=192.168.1.1/32\n", 53, accept);
    check("0000 = action=accept dst4=192.168.1.1/32\n", 54, reject);
    check("0000 = action=accept dst4=192.168.0.0/16 proto=udp dstports=50-60\n", 53, accept);
    check("0000 = action=accept dst4=192.168.0.0/16 proto=tcp\n", 53, reject);
    check("0000 = action=accept dst4=192.168.0.0/16 proto=udp dstports=54-60\n", 53, reject);
    check("0000 = action=drop dst4=192.168.0.0/16\n0001 = action=accept\n", 53, accept);
    check("0000 = action=accept specialtarget=dns\n", 53, accept);
    check("0000 = action=accept specialtarget=dns\n", 54, reject);
    check("0000 = action=accept dst4=192.168.2.0/24\n", 53, reject);
}

#[test]
fn a_drop_rule_for_the_lan_leaves_dns_to_the_virtual_resolvers_open() {
    let with = |real: &str| Surroundings {
        resolvers: vec![real.parse().expect("an address")],
        ..Surroundings::default()
    };
    let (outside, inside, itself) = (with("192.168.1.1"), with("10.0.0.1"), with("10.139.1.1"));
    let check = |known: &Surroundings, rule: &str, to: &str, protocol, port, accepted| {
        let text = format!("policy = drop\n0000 = {rule}\n0001 = action=accept\ncommit\n");
        let policy = proved(CLIENT, &text, known);
        let destination = to.parse().expect("an address");
        let (found, by) = verdict(&policy, CLIENT, &Probe { destination, protocol, port });
        let expected =
            if accepted { (Verdict::Accept, Some(1)) } else { (Verdict::Reject, Some(0)) };
        assert_eq!((found, by), expected, "{rule}: {protocol} {to} {port}");
    };
    let (tcp, udp) = (packets::TCP, packets::UDP);
    let lan = "action=drop dst4=10.0.0.0/8";
    for known in [&outside, &inside, &itself, &Surroundings::default()] {
        for to in ["10.139.1.1", "10.139.1.2"] {
            check(known, lan, to, udp, 53, true);
            check(known, lan, to, tcp, 53, true);
            check(known, lan, to, udp, 52, false);
            check(known, lan, to, tcp, 54, false);
            check(known, lan, to, udp, 0, false);
            check(known, lan, to, tcp, 65535, false);
            check(known, lan, to, packets::ICMP, 8, false);
            check(known, lan, to, packets::GRE, 0, false);
        }
        for to in ["10.0.0.0", "10.139.1.0", "10.139.1.3", "10.255.255.255"] {
            check(known, lan, to, udp, 53, false);
            check(known, lan, to, tcp, 53, false);
        }
        check(known, lan, "9.255.255.255", udp, 53, true);
        check(known, lan, "11.0.0.0", udp, 53, true);
    }
    // As wide as they come, and as narrow.
    for (rule, first, second) in [
        ("action=drop", false, false),
        ("action=drop dst4=0.0.0.0/0", false, false),
        ("action=drop dst4=0.0.0.0/1", false, false),
        ("action=drop dst4=10.0.0.0/7", false, false),
        ("action=drop dst4=10.128.0.0/9", true, true),
        ("action=drop dst4=10.139.1.0/24", true, true),
        ("action=drop dst4=10.139.1.2/31", true, true),
        ("action=drop dst4=10.139.1.1/32", false, true),
        ("action=drop dst4=10.139.1.2", true, false),
        ("action=drop specialtarget=dns", false, false),
        ("action=drop dst4=10.0.0.0/8 specialtarget=dns", false, false),
        ("action=drop dst4=10.0.0.0/8 dstports=53", false, false),
        ("action=drop dst4=10.0.0.0/8 proto=udp dstports=53-53", false, false),
        ("action=drop dst4=10.0.0.0/8 proto=udp dstports=53-54", true, true),
        ("action=drop dst4=10.0.0.0/8 proto=udp", true, true),
        ("action=drop dst4=10.0.0.0/8 proto=tcp", true, true),
        ("action=drop dsthost=nowhere.example", false, false),
    ] {
        check(&outside, rule, "10.139.1.1", udp, 53, first);
        check(&outside, rule, "10.139.1.2", udp, 53, second);
    }
    // Only a drop rule leaves something out.
    let text = "policy = drop\n0000 = action=accept dst4=10.0.0.0/8\ncommit\n";
    let destination = [10, 139, 1, 1].into();
    let found = verdict(
        &proved(CLIENT, text, &outside),
        CLIENT,
        &Probe { destination, protocol: udp, port: 53 },
    );
    assert_eq!(found, (Verdict::Accept, Some(0)));
}

fn network(index: u32, length: u8) -> Option<(IpAddr, u8)> {
    let bits = 0x1000_0000_u32 + (index << (32 - length));
    Some((IpAddr::V4(Ipv4Addr::from_bits(bits)), length))
}

fn tcp_port(port: u16) -> Rule {
    Rule { proto: Some(Proto::Tcp), ports: Some((port, port)), ..Rule::all(true) }
}

fn compiled(rules: Vec<Rule>) -> Result<compile::Policy, compile::TooComplex> {
    let text = Ruleset { default_accept: false, rules }.file();
    compile::compile(&resolved(CLIENT, &text, &Surroundings::default()))
}

#[test]
fn ten_thousand_rules_fit_in_the_worst_shapes_that_people_write() {
    let hosts = (0..10_000).map(|index| Rule {
        network: network(index, 32),
        ports: Some((index as u16, index as u16 + 1)),
        ..tcp_port(1)
    });
    let policy = compiled(hosts.collect()).expect("10,000 hosts with a port each");
    assert_eq!(policy.prefixes.len(), 10_001);
    // Many ports everywhere, and many hosts below: quadratic if classes repeated it all.
    let wide = (0..5000).map(|port| tcp_port(port * 2));
    let narrow =
        (0..5000).map(|index| Rule { network: network(index, 32), ..tcp_port(index as u16) });
    let policy = compiled(wide.chain(narrow).collect()).expect("5,000 ports, 5,000 hosts");
    assert!(policy.segments.len() < 40_000, "{}", policy.segments.len());
    let wide = (0..3333).map(|port| tcp_port(port * 2));
    let nested = (0..6666).map(|index| Rule {
        network: network(index / 2, if index % 2 == 0 { 24 } else { 30 }),
        ..tcp_port(index as u16)
    });
    let policy = compiled(wide.chain(nested).collect()).expect("nested networks");
    assert!(policy.segments.len() < 60_000, "{}", policy.segments.len());
    assert!(policy.classes.iter().all(|class| {
        class.wider == u32::MAX || policy.classes[class.wider as usize].wider == u32::MAX
    }));
}

#[test]
fn what_is_too_complex_is_refused_and_says_so() {
    // Each of many networks with many ports of its own, and many hosts in each.
    let mut rules = Vec::new();
    for outer in 0..60 {
        for port in 0..80 {
            rules.push(Rule { network: network(outer, 16), ..tcp_port(port * 3) });
        }
        for host in 0..80 {
            let (IpAddr::V4(base), _) = network(outer, 16).expect("a network") else {
                unreachable!("IPv4");
            };
            let address = Ipv4Addr::from_bits(base.to_bits() + host);
            rules.push(Rule { network: Some((address.into(), 32)), ..tcp_port(host as u16) });
        }
    }
    match compiled(rules) {
        Ok(policy) => {
            assert!(policy.segments.len() <= MAX_POLICY_SEGMENTS);
            assert!(policy.classes.len() <= MAX_POLICY_CLASSES);
        }
        Err(error) => assert!(error.to_string().contains("too complex"), "{error}"),
    }
    // More different classes than a policy may have, through prefixes of one rule.
    let mut known = Surroundings::default();
    let many = (0..140_000_u32).map(|bits| Ipv4Addr::from_bits(bits * 7).into());
    let (question, mut addresses) = name("many.example", []);
    addresses.accept = many.collect();
    known.names.insert(question, addresses);
    let text = "policy = drop\n0000 = action=accept dsthost=many.example\ncommit\n";
    let error = compile::compile(&resolved(CLIENT, text, &known)).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "the rules are too complex: more than 131072 destination prefixes; \
         use fewer or wider destinations"
    );
}

#[test]
fn the_check_finds_every_single_changed_segment_and_class() {
    let text = "policy = drop\n\
        0000 = action=accept dst4=192.168.7.0/24 proto=tcp dstports=443-443\n\
        0001 = action=drop dst4=192.168.0.0/16\n\
        0002 = action=accept proto=tcp dstports=80-443\n\
        0003 = action=accept proto=icmp icmptype=8\n\
        0004 = action=accept specialtarget=dns\n\
        commit\n";
    let known = Surroundings { resolvers: vec![[9, 9, 9, 9].into()], ..Surroundings::default() };
    let resolved = resolved(CLIENT, text, &known);
    let good = compile::compile(&resolved).expect("a policy");
    check::prove(&resolved, good.clone()).expect("a proof");
    let mut broken = 0;
    for index in 0..good.segments.len() {
        let Segment { start, action, rule } = good.segments[index];
        let other_rule = if rule == DEFAULT_RULE { 0 } else { DEFAULT_RULE };
        for segment in [
            Segment { action: 1 - action, start, rule },
            Segment { rule: other_rule, start, action },
            Segment { start: start.wrapping_add(1), action, rule },
        ] {
            let mut bad = good.clone();
            bad.segments[index] = segment;
            // Shifting the very first start changes nothing: bisection begins there.
            let same = segment.start != start && start == 0;
            assert!(check::prove(&resolved, bad).is_err() || same, "segment {index} {segment:?}");
            broken += 1;
        }
    }
    for index in 0..good.prefixes.len() {
        let mut bad = good.clone();
        bad.prefixes.remove(index);
        assert!(check::prove(&resolved, bad).is_err(), "without prefix {index}");
        broken += 1;
    }
    assert!(broken > 30, "{broken}");
}

#[test]
fn equal_rules_of_different_text_compile_to_equal_policies() {
    let policy = |rules: &str| {
        let text = format!("policy = drop\n{rules}commit\n");
        proved(CLIENT, &text, &Surroundings::default()).policy().clone()
    };
    let one = policy("0000 = action=accept dst4=10.0.0.0/8 proto=tcp dstports=1-2\n");
    let other = policy("0007 = action=accept dst4=10.9.9.9/8 proto=tcp dstports=1-2\n");
    assert_eq!(one, other);
    assert_ne!(one, policy("0000 = action=accept dst4=10.0.0.0/8 proto=tcp dstports=1-3\n"));
}

#[test]
fn a_bisection_finds_each_of_65536_segments() {
    let rules = |parity: u16| (0..32_768_u32).map(move |half| tcp_port(half as u16 * 2 + parity));
    let all: Vec<Rule> = rules(1).take(9_999).collect();
    let policy = compiled(all).expect("a policy");
    let tables = PolicyTables::new(&policy);
    let class = tables.class_of(0, &CLIENT.into()).and_then(|it| tables.class(it));
    assert_eq!(class.expect("a class").tcp.length, 19_999);
    // The widest span there can be, by hand: the depth of the search is a constant.
    let mut widest = policy.clone();
    widest.segments = (0..=u16::MAX)
        .map(|port| Segment { start: port, action: port % 2, rule: u32::from(port) })
        .collect();
    widest.classes[0].tcp.start = 0;
    widest.classes[0].tcp.length = 65_536;
    let tables = PolicyTables::new(&widest);
    for port in [0, 1, 2, 32_767, 32_768, 40_001, 65_534, 65_535] {
        let frame = packets::plain(CLIENT, [8, 8, 8, 8].into(), packets::TCP, port);
        let decision = decide(&tables, 1, &packet::parse(frame.as_slice()));
        assert_eq!(decision.rule, u32::from(port));
    }
}

#[test]
fn the_default_decides_where_no_rule_matches() {
    for (default, expected) in [(Action::Accept, Verdict::Accept), (Action::Drop, Verdict::Reject)]
    {
        let text = format!("policy = {}\ncommit\n", default.name());
        let policy = proved(CLIENT, &text, &Surroundings::default());
        let destination = [198, 51, 100, 7].into();
        let probe = Probe { destination, protocol: packets::TCP, port: 1 };
        assert_eq!(verdict(&policy, CLIENT, &probe), (expected, None));
    }
    // Rules without a default are no rules.
    assert!(parse::ruleset(Family::V4, &[]).is_err());
}
