//! Whether a policy accepts all that another one accepts, compared with the ordered rules.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use firewall_agent::edges::sources::rule_files;
use firewall_core::rules::compile::{self, Policy};
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, wider};
use firewall_tests::oracle::Ruleset;
use firewall_tests::oracle::generate::Generator;
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 12));

fn policy(client: IpAddr, text: &str) -> Arc<Policy> {
    let rules = rule_files::ruleset(client, text).expect("rules");
    let resolved = resolve::resolve(Family::from(client), &rules, &Surroundings::default());
    Arc::new(compile::compile(&resolved).expect("a policy"))
}

#[test]
fn a_policy_accepts_all_of_another_if_no_packet_says_otherwise() {
    let policy = |rules: &[&str]| {
        let numbered = rules.iter().enumerate();
        let lines = numbered.map(|(number, rule)| format!("{number:04} = {rule}\n"));
        policy(CLIENT, &format!("policy = drop\n{}commit\n", lines.collect::<String>()))
    };
    let check = |before: &[&str], now: &[&str], expected: bool| {
        let found = wider::accepts_all_of(&policy(now), &policy(before));
        assert_eq!(found, expected, "{before:?} to {now:?}");
    };
    let all = "action=accept";
    let net = "action=accept dst4=192.0.2.0/24";
    let host = "action=accept dst4=192.0.2.1";
    let web = "action=accept proto=tcp dstports=443-443";
    let wide_web = "action=accept proto=tcp dstports=443-444";
    let ping = "action=accept proto=icmp icmptype=8";
    let no_host = "action=drop dst4=192.0.2.1";
    check(&[], &[], true);
    check(&[], &[host], true);
    check(&[host], &[], false);
    check(&[host], &[net], true);
    check(&[net], &[host], false);
    check(&[host], &[all], true);
    check(&[all], &[net], false);
    check(&[web], &[wide_web], true);
    check(&[wide_web], &[web], false);
    check(&[web], &[ping, web], true);
    check(&[web, ping], &[web], false);
    check(&[ping], &["action=accept proto=icmp"], true);
    check(&[all], &["action=accept proto=tcp", "action=accept proto=udp"], false);
    check(&[net], &[no_host, net], false);
    check(&[no_host, net], &[net], true);
    check(&[no_host, net], &[net, no_host], true);
    // Other words for the same.
    let halves = ["action=accept dst4=192.0.2.0/25", "action=accept dst4=192.0.2.128/25"];
    check(&[net], &halves, true);
    check(&halves, &[net], true);
    check(&[net], &halves[..1], false);
    // The last address of all.
    check(
        &["action=accept dst4=255.255.255.255"],
        &["action=drop dst4=255.255.255.255", all],
        false,
    );
}

#[test]
fn no_packet_is_accepted_before_and_denied_by_a_policy_that_is_said_to_be_wider() {
    let seed = seed();
    let mut generator = Generator::new(seed);
    let mut random = StdRng::seed_from_u64(seed);
    let v6_client: IpAddr = "fd09:24ef:4179::a89:c".parse().expect("an address");
    let servers: [IpAddr; 2] = [[10, 139, 1, 1].into(), [10, 139, 1, 2].into()];
    let (mut wider, mut found) = (0, 0);
    for _ in 0..rounds(2_000, 20_000) {
        for client in [CLIENT, v6_client] {
            let before = generator.ruleset(client.into(), 12);
            let now = change(&before, &mut generator, &mut random, client);
            let policies = [&now, &before].map(|rules| policy(client, &rules.file()));
            let is_wider = wider::accepts_all_of(&policies[0], &policies[1]);
            wider += usize::from(is_wider);
            for rules in [&before, &now].repeat(50) {
                let probe = generator.probe(client.into(), rules);
                let accepts = |rules: &Ruleset| rules.verdict(&probe, &servers).0;
                let is_denied = accepts(&before) && !accepts(&now);
                found += usize::from(is_denied);
                let files = [before.file(), now.file()];
                assert!(!(is_wider && is_denied), "{seed}: {probe:?} {files:?}");
            }
        }
    }
    assert!(wider > 100 && found > 100, "{wider} wider, {found} packets denied");
}

/// The same rules but for one.
fn change(
    before: &Ruleset,
    generator: &mut Generator,
    random: &mut StdRng,
    client: IpAddr,
) -> Ruleset {
    let mut now = before.clone();
    let place = random.random_range(0..=now.rules.len());
    match random.random_range(0..4) {
        0 if place < now.rules.len() => drop(now.rules.remove(place)),
        1 if place < now.rules.len() => now.rules[place].accept ^= true,
        2 if place + 1 < now.rules.len() => now.rules.swap(place, place + 1),
        _ => now.rules.insert(place, generator.rule(client.into())),
    }
    now
}
