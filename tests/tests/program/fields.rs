//! Each field that a rule can match, at its edges, with the counters that must move.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{GRE, ICMP, ICMPV6, TCP, UDP, plain};
use firewall_tests::program::{Outcome, Program};

use super::common::*;

/// One rule that accepts, and what it must and must not match: protocol, destination, port.
struct Field {
    client: IpAddr,
    rule: Rule,
    matches: Vec<(u8, IpAddr, u16)>,
    others: Vec<(u8, IpAddr, u16)>,
}

#[track_caller]
fn check_field(program: &mut Program, field: &Field) -> Result<()> {
    program.put(field.client, &rules(std::slice::from_ref(&field.rule)), &known())?;
    let sent = [(&field.matches, Outcome::ACCEPTED), (&field.others, Outcome::NOT_PERMITTED)];
    for (packets, expected) in sent {
        for (protocol, destination, port) in packets {
            let frame = plain(field.client, *destination, *protocol, *port);
            let what = format!("{}: {protocol} {destination} {port}", field.rule.text());
            assert_eq!(program.send(&frame)?, expected, "{what}");
        }
    }
    let hit = program.counted_rule(field.client, 0).packets;
    let missed = program.counted(Some(field.client), Reason::Default).packets;
    assert_eq!((hit, missed), (field.matches.len() as u64, field.others.len() as u64));
    Ok(())
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn every_ipv4_prefix_length_matches_from_its_first_to_its_last_address() -> Result<()> {
    let mut program = Program::load()?;
    let base = Ipv4Addr::new(100, 100, 100, 100).to_bits();
    for length in 0..=32_u8 {
        let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
        let (first, last) = (base & !host, base | host);
        let at = |bits: u32| (TCP, IpAddr::V4(Ipv4Addr::from_bits(bits)), 1);
        // 255.255.255.255 is everybody's, whatever the rules say.
        let mut matches = vec![at(base), at(first)];
        matches.extend((length > 0).then(|| at(last)));
        let before = first.checked_sub(1).map(at);
        let after = last.checked_add(1).filter(|bits| bits >> 28 != 0xe).map(at);
        check_field(
            &mut program,
            &Field {
                client: CLIENT4,
                rule: Rule {
                    network: Some((Ipv4Addr::from_bits(base).into(), length)),
                    ..Rule::all(true)
                },
                matches,
                others: before.into_iter().chain(after).collect(),
            },
        )?;
    }
    Ok(())
}

#[test]
fn ipv6_prefix_lengths_match_from_their_first_to_their_last_address() -> Result<()> {
    let mut program = Program::load()?;
    let base = "2001:db8:5555:5555:5555:5555:5555:5555".parse::<Ipv6Addr>()?.to_bits();
    for length in [1, 2, 3, 16, 31, 32, 33, 63, 64, 65, 95, 96, 97, 126, 127, 128_u8] {
        let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
        let (first, last) = (base & !host, base | host);
        let at = |bits: u128| (UDP, IpAddr::V6(Ipv6Addr::from_bits(bits)), 1);
        check_field(
            &mut program,
            &Field {
                client: CLIENT6,
                rule: Rule {
                    network: Some((Ipv6Addr::from_bits(base).into(), length)),
                    ..Rule::all(true)
                },
                matches: vec![at(base), at(first), at(last)],
                others: [first.checked_sub(1), last.checked_add(1)]
                    .into_iter()
                    .flatten()
                    .map(at)
                    .collect(),
            },
        )?;
    }
    Ok(())
}

#[test]
fn port_ranges_are_closed_intervals_and_port_0_is_a_port() -> Result<()> {
    let mut program = Program::load()?;
    let server = IpAddr::from(SERVER4);
    for (first, last) in
        [(0_u16, 0_u16), (0, 65535), (1, 1), (80, 443), (65535, 65535), (1, 65534), (32767, 32768)]
    {
        for proto in [None, Some(Proto::Tcp), Some(Proto::Udp)] {
            let ports = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
            let (mut matches, mut others) = (Vec::new(), vec![(GRE, server, 0), (ICMP, server, 8)]);
            for port in ports.into_iter().flatten() {
                for (protocol, this) in [(TCP, Proto::Tcp), (UDP, Proto::Udp)] {
                    let inside =
                        (first..=last).contains(&port) && proto.is_none_or(|it| it == this);
                    let list = if inside { &mut matches } else { &mut others };
                    list.push((protocol, server, port));
                }
            }
            let rule = Rule { proto, ports: Some((first, last)), ..Rule::all(true) };
            check_field(&mut program, &Field { client: CLIENT4, rule, matches, others })?;
        }
    }
    Ok(())
}

#[test]
fn icmp_types_match_exactly_and_only_their_own_family() -> Result<()> {
    let mut program = Program::load()?;
    let all =
        [(CLIENT4, IpAddr::from(SERVER4), ICMP, ICMPV6), (CLIENT6, SERVER6.into(), ICMPV6, ICMP)];
    for (client, server, own, foreign) in all {
        // No rule judges errors and redirects.
        let is_judged = |kind: &u8| match own {
            ICMP => ![3, 4, 5, 11, 12].contains(kind),
            _ => *kind >= 128 && *kind != 137,
        };
        for kind in [0, 1, 8, 127, 128, 254, 255_u8].into_iter().filter(is_judged) {
            let port = u16::from(kind);
            let near = [kind.checked_sub(1), kind.checked_add(1)].into_iter().flatten();
            let near = near.filter(is_judged);
            let mut others: Vec<_> = near.map(|near| (own, server, u16::from(near))).collect();
            others.extend([(foreign, server, 0), (TCP, server, port), (UDP, server, port)]);
            for proto in [None, Some(Proto::Icmp)] {
                let rule = Rule { proto, icmp_type: Some(kind), ..Rule::all(true) };
                let matches = vec![(own, server, port)];
                check_field(
                    &mut program,
                    &Field { client, rule, matches, others: others.clone() },
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_dns_target_is_the_resolvers_on_port_53_by_tcp_and_udp() -> Result<()> {
    let mut program = Program::load()?;
    let virtual_and_real = addresses(&["10.139.1.1", "10.139.1.2", "192.168.1.1"]);
    let near = addresses(&["10.139.1.0", "10.139.1.3", "192.168.1.2"]);
    let matches = virtual_and_real.iter().flat_map(|&it| [(TCP, it, 53), (UDP, it, 53)]).collect();
    let mut others: Vec<_> = virtual_and_real
        .iter()
        .flat_map(|&it| [(TCP, it, 52), (UDP, it, 54), (ICMP, it, 8)])
        .collect();
    others.extend(near.into_iter().map(|it| (UDP, it, 53)));
    let rule = Rule { dns: true, ..Rule::all(true) };
    check_field(&mut program, &Field { client: CLIENT4, rule: rule.clone(), matches, others })?;
    // The IPv6 resolver that `known` names, and no virtual one: Qubes has none.
    let (matches, others) = (vec![(UDP, SERVER6.into(), 53)], vec![(UDP, SERVER6.into(), 54)]);
    check_field(&mut program, &Field { client: CLIENT6, rule, matches, others })
}
