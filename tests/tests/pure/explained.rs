//! Rules that never decide, and rules that do not match: named exactly.

use std::collections::BTreeSet;
use std::net::IpAddr;

use firewall_agent::edges::sources::rule_files;
use firewall_core::rules::explain::tries;
use firewall_core::rules::hidden::{Never, hidden};
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::told::explanation::PacketStatus;
use firewall_tests::oracle::generate::Generator;
use firewall_tests::oracle::{Probe, Ruleset};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::{GRE, TCP, UDP};
use firewall_tests::{rounds, seed};

const CLIENT4: &str = "10.137.0.12";
const CLIENT6: &str = "fd09:24ef:4179::a89:c";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn never(client: &str, text: &str) -> Vec<Option<Never>> {
    let client = address(client);
    let ruleset = rule_files::ruleset(client, text).expect("rules");
    let known = Surroundings::default();
    hidden(&resolve::resolve(Family::from(client), &ruleset, &known).rules)
}

/// What hides the last of these rules.
#[track_caller]
fn check(name: &str, rules: &[&str], expected: Option<&[usize]>) {
    let lines: Vec<String> =
        (0..).zip(rules).map(|(index, rule)| format!("{index:04} = {rule}\n")).collect();
    let found = never(CLIENT4, &format!("policy = drop\n{}commit\n", lines.concat()));
    let expected = expected.map(|by| match by {
        [] => Never::MatchesNothing,
        by => Never::Hidden(by.to_vec()),
    });
    assert_eq!(found.last(), Some(&expected), "{name}");
}

#[test]
fn a_rule_that_never_decides_names_the_rules_that_hide_it() {
    let any = "action=accept";
    let web = "action=accept proto=tcp dstports=443-443";
    let of_lan = "action=drop dst4=192.168.0.0/16";
    check("nothing before", &[web], None);
    check("a wider one", &[any, web], Some(&[0]));
    check("an equal one", &[web, web], Some(&[0]));
    check("a wider one behind others", &[of_lan, web, any, of_lan], Some(&[0]));
    check("the first that is enough", &[any, any, web], Some(&[0]));
    check("another protocol", &["action=accept proto=udp", web], None);
    check("a part", &[of_lan, "action=accept dst4=192.0.0.0/8"], None);
    let low = "action=drop proto=tcp dstports=0-400";
    let high = "action=drop proto=tcp dstports=400-65535";
    check("ports together", &[low, high, web], Some(&[1]));
    check("ports together, all", &[low, high, "action=accept proto=tcp"], Some(&[0, 1]));
    let first = "action=drop dst4=192.168.0.0/17";
    let second = "action=drop dst4=192.168.128.0/17";
    check("halves together", &[first, web, second, of_lan], Some(&[0, 2]));
    check("halves and ports", &[first, low, second, of_lan], Some(&[0, 2]));
    check("a half and ports", &[first, low, high, of_lan], None);
    let tcp = "action=accept dst4=192.168.0.0/16 proto=tcp";
    check("a half and ports, tcp", &[first, low, high, tcp], Some(&[1, 2]));
    check("no address for a name", &["action=accept dsthost=nowhere.example"], Some(&[]));
    check("a name that drops all", &["action=drop dsthost=nowhere.example", web], Some(&[0]));
    check("dns on another port", &["action=accept specialtarget=dns dstports=80-80"], Some(&[]));
    let resolver = "action=accept dst4=10.139.1.1 proto=udp dstports=53";
    check("dns", &["action=accept specialtarget=dns", resolver], Some(&[0]));
    check("dns is more", &[resolver, "action=accept specialtarget=dns"], None);
    let (all, part) = ("action=drop dst4=10.0.0.0/8", "action=accept dst4=10.139.0.0/16");
    check("dns is left over", &[all, part], None);
    check("nothing is left over", &[all, "action=accept dst4=10.1.0.0/16"], Some(&[0]));
    check("no dns is left over", &[all, "action=drop specialtarget=dns", part], Some(&[0, 1]));
}

/// Addresses, protocols and ports at which rules can begin or end.
fn cells(client: IpAddr, rules: &Ruleset) -> Vec<Probe> {
    let family = Family::from(client);
    let (mut bits, mut ports) = (BTreeSet::from([0_u128]), BTreeSet::from([0_u16]));
    let width = u32::from(family.bits());
    let mut edge = |address: IpAddr, length: u8| {
        let address = match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let host = u128::MAX.checked_shr(128 - (width - u32::from(length))).unwrap_or(0);
        let last = address | host;
        bits.insert(address & !host);
        if last < u128::MAX >> (128 - width) {
            bits.insert(last + 1);
        }
    };
    for server in
        ["10.139.1.1", "10.139.1.2"].map(address).into_iter().filter(|_| family == Family::V4)
    {
        edge(server, 32);
    }
    for rule in &rules.rules {
        if let Some((address, length)) = rule.network {
            edge(address, length);
        }
        if let Some((first, last)) = rule.ports {
            ports.extend([Some(first), last.checked_add(1)].into_iter().flatten());
        }
        if let Some(kind) = rule.icmp_type {
            ports.extend([u16::from(kind), u16::from(kind) + 1]);
        }
    }
    ports.extend([53, 54]);
    let mut probes = Vec::new();
    for bits in bits {
        let destination = match family {
            Family::V4 => IpAddr::V4(std::net::Ipv4Addr::from_bits(bits as u32)),
            Family::V6 => IpAddr::V6(std::net::Ipv6Addr::from_bits(bits)),
        };
        for protocol in [TCP, UDP, family.icmp(), GRE] {
            probes.extend(ports.iter().map(|&port| Probe { destination, protocol, port }));
        }
    }
    probes
}

#[test]
fn exactly_the_rules_that_no_packet_reaches_are_said_to_never_decide() {
    let seed = seed();
    let mut generator = Generator::new(seed);
    let servers = ["10.139.1.1", "10.139.1.2"].map(address);
    let (mut alone, mut together, mut nothing) = (0, 0, 0);
    for _ in 0..rounds(1_000, 20_000) {
        for client in [CLIENT4, CLIENT6] {
            let rules = generator.ruleset(address(client).into(), 14);
            let cells = cells(address(client), &rules);
            let deciding = |rules: &Ruleset| -> BTreeSet<usize> {
                cells.iter().filter_map(|probe| rules.verdict(probe, &servers).1).collect()
            };
            let decide = deciding(&rules);
            for (index, never) in never(client, &rules.file()).into_iter().enumerate() {
                let context =
                    || format!("seed {seed}: {never:?} of rule {index}\n{}", rules.file());
                assert_eq!(never.is_none(), decide.contains(&index), "{}", context());
                // With nothing but these in front of it, it does not decide either.
                let by = match &never {
                    None => continue,
                    Some(Never::MatchesNothing) => {
                        nothing += 1;
                        Vec::new()
                    }
                    Some(Never::Hidden(by)) => {
                        *(if by.len() == 1 { &mut alone } else { &mut together }) += 1;
                        by.clone()
                    }
                };
                let kept = by.iter().copied().chain([index]);
                let kept = kept.map(|index| rules.rules[index].clone()).collect();
                let few = Ruleset { rules: kept, ..rules.clone() };
                assert!(!deciding(&few).contains(&by.len()), "{}", context());
            }
        }
    }
    println!("{alone} hidden by one rule, {together} by several, {nothing} match nothing");
    assert!(alone > 20 && together > 5 && nothing > 5, "the random rules are too much alike");
}

#[test]
fn each_rule_that_was_tried_says_what_of_the_packet_it_does_not_match() {
    let text = "policy = drop\n\
        0000 = action=accept dst4=198.51.100.0/24 proto=tcp dstports=443-443\n\
        0001 = action=accept specialtarget=dns\n\
        0003 = action=drop dsthost=git.example proto=tcp dstports=22-22\n\
        0004 = action=accept proto=icmp icmptype=8\n\
        0005 = action=accept dst4=198.51.100.7 dstports=70-90\n\
        0006 = action=accept\n\
        commit\n";
    let client = address(CLIENT4);
    let ruleset = rule_files::ruleset(client, text).expect("rules");
    let known = Surroundings::default();
    let resolved = resolve::resolve(Family::V4, &ruleset, &known);
    let packet = PacketStatus::plain(client, address("198.51.100.7"), TCP, 80);
    let lines: Vec<String> = tries(&ruleset, &resolved, &packet.packet())
        .into_iter()
        .map(|trial| {
            let whys =
                trial.differs.iter().map(|(aspect, why)| format!("{}: {why}", aspect.name()));
            let number = ruleset.rules[trial.rule].number;
            format!("{number:04} {}", whys.collect::<Vec<_>>().join("; "))
        })
        .collect();
    assert_eq!(
        lines,
        [
            "0000 port: port 80 is not 443",
            "0001 destination: 198.51.100.7 is not one of its DNS servers \
             (10.139.1.1, 10.139.1.2); port: port 80 is not 53",
            "0003 port: port 80 is not 22",
            "0004 protocol: it is not ICMP",
            "0005 ",
        ]
    );
}

#[test]
fn a_drop_rule_for_the_lan_says_that_it_leaves_out_dns() {
    let check = |rule: &str, expected: &str| {
        let text = format!("policy = drop\n0000 = {rule}\n0001 = action=accept\ncommit\n");
        let client = address(CLIENT4);
        let ruleset = rule_files::ruleset(client, &text).expect("rules");
        let resolved = resolve::resolve(Family::V4, &ruleset, &Surroundings::default());
        let packet = PacketStatus::plain(client, address("10.139.1.2"), TCP, 53);
        let trials = tries(&ruleset, &resolved, &packet.packet());
        let why = trials[0].differs.iter().map(|(aspect, why)| format!("{}: {why}", aspect.name()));
        assert_eq!(why.collect::<Vec<_>>().join("; "), expected, "{rule}");
        assert_eq!(trials.len(), if expected.is_empty() { 1 } else { 2 }, "{rule}");
    };
    let left_out =
        "destination: dropping a network leaves out DNS to the virtual resolver 10.139.1.2";
    check("action=drop dst4=10.0.0.0/8", left_out);
    check("action=drop dst4=10.0.0.0/8 dstports=1-1023", left_out);
    check("action=drop dst4=10.0.0.0/8 proto=udp", "protocol: it is not UDP");
    check("action=drop dst4=10.0.0.0/8 dstports=80", "port: port 53 is not 80");
    check("action=drop dst4=10.0.0.0/8 dstports=53", "");
    check("action=drop dst4=10.139.1.2", "");
    check("action=drop dst4=10.139.1.1", "destination: 10.139.1.2 is not in 10.139.1.1/32");
}
