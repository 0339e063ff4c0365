//! Random rules and packets: kernel and oracle agree.

use std::net::IpAddr;

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_tests::oracle::generate::Generator;
use firewall_tests::oracle::{Probe, Ruleset};
use firewall_tests::packets::{self};
use firewall_tests::program::{Outcome, Program};
use firewall_tests::{rounds, seed};

use super::common::*;

#[test]
fn kernel_and_oracle_agree_on_random_packets() -> Result<()> {
    agree(Program::load()?, rounds(400, 2_000))
}

#[test]
fn without_its_caches_the_kernel_says_the_same() -> Result<()> {
    let with = Program::load()?.verified_instructions()?;
    let mut program = Program::load_without_caches()?;
    let without = program.verified_instructions()?;
    // The verifier does not walk through what cannot be reached.
    assert!(without < with, "{without} instructions without caches, {with} with them");
    agree(program, rounds(100, 1_000))
}

/// Compares them.
fn agree(mut program: Program, rounds: usize) -> Result<()> {
    let seed = seed();
    let mut generator = Generator::new(seed);
    let servers = dns_servers();
    let (mut accepted, mut rejected) = (0, 0);
    for round in 0..rounds {
        for client in [CLIENT4, CLIENT6] {
            let most = if round % 20 == 0 { 300 } else { 12 };
            let rules = generator.ruleset(client.into(), most);
            program.put(client, &rules, &known())?;
            for _ in 0..400 {
                let probe = generator.probe(client.into(), &rules);
                let (outcome, reason, rule) = expected(&probe, &rules, &servers);
                let frame = packets::plain(client, probe.destination, probe.protocol, probe.port);
                let context = || format!("seed {seed}: {probe:?} of\n{}", rules.file());
                if reason == Reason::Local {
                    program.rest()?;
                }
                let before = counter(&program, client, reason, rule)?;
                assert_eq!(program.send(&frame)?, outcome, "{}", context());
                assert_eq!(counter(&program, client, reason, rule)?, before + 1, "{}", context());
                match outcome {
                    Outcome::ACCEPTED => accepted += 1,
                    _ => rejected += 1,
                }
            }
        }
    }
    println!("{accepted} packets accepted, {rejected} not");
    let all = accepted + rejected;
    assert!(accepted > all / 8 && rejected > all / 8, "the random packets are too much alike");
    Ok(())
}

fn counter(program: &Program, client: IpAddr, reason: Reason, rule: usize) -> Result<u64> {
    let counter = match reason {
        Reason::Rule => program.counted_rule(client, u32::try_from(rule)?),
        reason if reason_without_client(reason) => program.counted(None, reason),
        reason => program.counted(Some(client), reason),
    };
    Ok(counter.packets)
}

/// What the oracle and the decisions in front of the rules say about a plain packet.
fn expected(probe: &Probe, rules: &Ruleset, servers: &[IpAddr]) -> (Outcome, Reason, usize) {
    let multicast = match probe.destination {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    };
    let routing = probe.destination.is_ipv6() && probe.protocol == packets::ROUTING;
    let mapped = match probe.destination {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
        IpAddr::V4(_) => false,
    };
    if routing {
        return (Outcome::DROPPED, Reason::RoutingHeader, 0);
    }
    if mapped {
        return (Outcome::DROPPED, Reason::MappedAddress, 0);
    }
    // Plain ICMP packets quote nothing.
    let message = match (probe.protocol, probe.destination) {
        (packets::ICMP, IpAddr::V4(_)) if [3, 4, 11, 12].contains(&probe.port) => {
            Some(Reason::ForeignError)
        }
        (packets::ICMP, IpAddr::V4(_)) if probe.port == 5 => Some(Reason::Redirect),
        (packets::ICMPV6, IpAddr::V6(_)) if probe.port < 128 => Some(Reason::ForeignError),
        (packets::ICMPV6, IpAddr::V6(_)) if probe.port == 137 => Some(Reason::Redirect),
        _ => None,
    };
    if let Some(reason) = message {
        return (Outcome::DROPPED, reason, 0);
    }
    if multicast && probe.protocol == packets::TCP {
        return (Outcome::DROPPED, Reason::Malformed, 0);
    }
    if multicast {
        return (Outcome::NOT_PERMITTED, Reason::Local, 0);
    }
    let (mut accept, mut rule) = rules.verdict(probe, servers);
    // The decided difference: who accepts a real resolver accepts the virtual ones on
    // port 53, at that rule.
    let virtual_resolvers = &servers[..2];
    let real = Probe { destination: servers[2], ..*probe };
    let dns = probe.port == 53 && [packets::TCP, packets::UDP].contains(&probe.protocol);
    if dns && virtual_resolvers.contains(&probe.destination) {
        let upto = rule.unwrap_or(rules.rules.len());
        let by_real = rules.rules[..upto].iter().position(|it| {
            let one = Ruleset { default_accept: false, rules: vec![it.clone()] };
            it.accept && !it.dns && one.verdict(&real, servers).1.is_some()
        });
        if let Some(index) = by_real {
            (accept, rule) = (true, Some(index));
        }
    }
    let outcome = if accept { Outcome::ACCEPTED } else { Outcome::NOT_PERMITTED };
    match rule {
        Some(rule) => (outcome, Reason::Rule, rule),
        None => (outcome, Reason::Default, 0),
    }
}
