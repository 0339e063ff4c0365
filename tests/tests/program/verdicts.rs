//! One question a test: what passes, what is marked, what is counted and told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;

use anyhow::{Context as _, Result, bail};
use firewall_common::abi::{DEFAULT_RULE, Local, RECORDS_PER_SECOND, REJECT_BURST};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{Outcome, Program, VIF, proved};

use super::common::*;

#[test]
fn what_is_the_kernels_is_handed_on_without_the_permit() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let own4 = Ipv4Addr::new(10, 137, 0, 1);
    let own6: Ipv6Addr = "fd09:24ef:4179::1".parse()?;
    program.maps.set_locals([(own4.into(), Local::One), (own6.into(), Local::One)])?;
    let arp = packets::ethernet(0x0806, &[0; 28]);
    check(&mut program, "ARP", &arp, Outcome::NOT_PERMITTED, Reason::Arp);
    for (client, own) in [(CLIENT4, IpAddr::from(own4)), (CLIENT6, own6.into())] {
        // NAT may take it elsewhere, where rules accept it.
        let frame = packets::plain(client, own, packets::UDP, 53);
        check(&mut program, "its own", &frame, Outcome::ACCEPTED, Reason::Local);
        program.put(client, &rules(&[]), &known())?;
        check(&mut program, "denied", &frame, Outcome::NOT_PERMITTED, Reason::Local);
        program.put(client, &rules(&[Rule::all(true)]), &known())?;
    }
    for destination in ["224.0.0.1", "239.255.255.250", "255.255.255.255"] {
        let frame = packets::plain(CLIENT4, destination.parse()?, packets::UDP, 53);
        check(&mut program, destination, &frame, Outcome::NOT_PERMITTED, Reason::Local);
    }
    for destination in ["ff02::1", "ff02::1:ff00:1", "ff0e::1"] {
        let frame = packets::plain(CLIENT6, destination.parse()?, packets::ICMPV6, 135);
        check(&mut program, destination, &frame, Outcome::NOT_PERMITTED, Reason::Local);
    }
    // Its neighbours are not the netvm's.
    let frame = packets::plain(CLIENT4, "10.137.0.2".parse()?, packets::UDP, 53);
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    program.maps.set_locals([])?;
    let frame = packets::plain(CLIENT4, own4.into(), packets::UDP, 53);
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    Ok(())
}

/// A flow of TCP takes its entry of connection tracking for minutes, though nobody answers.
#[test]
fn tcp_to_many_is_dropped() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let everybody =
        [(CLIENT4, "192.0.2.255", "224.0.0.251"), (CLIENT6, "2001:db8:ffff::", "ff02::fb")];
    for (client, network, group) in everybody {
        let frame = |to: &str, protocol| -> Result<Vec<u8>> {
            Ok(packets::plain(client, to.parse()?, protocol, 22))
        };
        check(
            &mut program,
            group,
            &frame(group, packets::TCP)?,
            Outcome::DROPPED,
            Reason::Malformed,
        );
        assert_eq!(program.send(&frame(network, packets::TCP)?)?, Outcome::ACCEPTED, "{network}");
        for (local, outcome, reason) in [
            (Local::Many, Outcome::DROPPED, Reason::Malformed),
            // The address was given to an interface.
            (Local::One, Outcome::ACCEPTED, Reason::Local),
            (Local::Many, Outcome::DROPPED, Reason::Malformed),
        ] {
            program.maps.set_locals([(network.parse()?, local)])?;
            let name = format!("{network}, {local:?}");
            check(&mut program, &name, &frame(network, packets::TCP)?, outcome, reason);
            let udp = frame(network, packets::UDP)?;
            let outcome = match local {
                Local::One => Outcome::ACCEPTED,
                Local::Many => Outcome::NOT_PERMITTED,
            };
            check(&mut program, &name, &udp, outcome, Reason::Local);
        }
        program.maps.set_locals([])?;
    }
    Ok(())
}

#[test]
fn first_and_atomic_fragments_and_extension_headers_do_not_hide_the_ports() -> Result<()> {
    let udp_53 = Rule { proto: Some(Proto::Udp), ports: Some((53, 53)), ..Rule::all(false) };
    let mut program = program_with(&rules(&[udp_53, Rule::all(true)]))?;
    let none = packets::options(0);
    // Which of the frames below are first fragments.
    const FIRST_IPV4: usize = 1;
    const ATOMIC: usize = 6;
    const FIRST_IPV6: usize = 7;
    const LATE_ATOMIC: usize = 8;
    for (port, expected) in [(53, Outcome::NOT_PERMITTED), (54, Outcome::ACCEPTED)] {
        let udp = packets::udp(1, port);
        let plain = V6::new(v6(CLIENT6), SERVER6, packets::UDP, &udp);
        let atomic = packets::fragment(0, false);
        let eight = (0..8).fold(plain.clone(), |it, _| it.with(packets::DESTINATION, &none));
        let frames = [
            V4::new(v4(CLIENT4), SERVER4, packets::UDP, &udp).frame(),
            V4 { fragment: 0x2000, ..V4::new(v4(CLIENT4), SERVER4, packets::UDP, &udp) }.frame(),
            V4 {
                options: [vec![1, 7, 39, 4], vec![0; 36]].concat(),
                ..V4::new(v4(CLIENT4), SERVER4, packets::UDP, &udp)
            }
            .frame(),
            plain.clone().frame(),
            plain.clone().with(packets::HOP_BY_HOP, &none).frame(),
            plain.clone().with(packets::DESTINATION, &packets::options(31)).frame(),
            plain.clone().with(packets::FRAGMENT, &atomic).frame(),
            plain.clone().with(packets::FRAGMENT, &packets::fragment(0, true)).frame(),
            plain
                .clone()
                .with(packets::HOP_BY_HOP, &none)
                .with(packets::DESTINATION, &none)
                .with(packets::FRAGMENT, &atomic)
                .with(packets::DESTINATION, &none)
                .frame(),
            eight.frame(),
        ];
        for (index, frame) in frames.iter().enumerate() {
            program.rest()?;
            let is_fragment = matches!(index, FIRST_IPV4 | FIRST_IPV6 | ATOMIC | LATE_ATOMIC);
            let expected = match expected {
                // It would wait for the rest of its datagram.
                Outcome::NOT_PERMITTED if is_fragment => Outcome::DROPPED,
                _ => expected,
            };
            assert_eq!(program.send(frame)?, expected, "frame {index}, port {port}");
        }
    }
    Ok(())
}

#[test]
fn protocols_without_ports_match_only_rules_without_protocol() -> Result<()> {
    let by_protocol = [Proto::Tcp, Proto::Udp, Proto::Icmp]
        .map(|proto| Rule { proto: Some(proto), ..Rule::all(true) });
    let by_ports = Rule { ports: Some((0, 65535)), ..Rule::all(true) };
    let mut all: Vec<Rule> = by_protocol.to_vec();
    all.push(by_ports);
    let others = [
        packets::GRE,
        packets::ESP,
        packets::AUTHENTICATION,
        packets::IPV6_IN_IP,
        packets::NO_NEXT,
        4,
        132,
        255,
    ];
    for (rules_, expected) in
        [(rules(&all), Outcome::NOT_PERMITTED), (rules(&[Rule::all(true)]), Outcome::ACCEPTED)]
    {
        let mut program = program_with(&rules_)?;
        for protocol in others {
            for (client, server) in
                [(CLIENT4, IpAddr::from(SERVER4)), (CLIENT6, IpAddr::from(SERVER6))]
            {
                // In IPv6 a header in front of others, which are not there.
                if client.is_ipv6() && protocol == packets::AUTHENTICATION {
                    continue;
                }
                let frame = packets::plain(client, server, protocol, 0);
                assert_eq!(program.send(&frame)?, expected, "protocol {protocol} of {client}");
            }
        }
        // The other family's ICMP is an unknown protocol.
        let frame = packets::plain(CLIENT4, SERVER4.into(), packets::ICMPV6, 0);
        assert_eq!(program.send(&frame)?, expected);
        let frame = packets::plain(CLIENT6, SERVER6.into(), packets::ICMP, 0);
        assert_eq!(program.send(&frame)?, expected);
    }
    Ok(())
}

#[test]
fn a_client_without_usable_rules_sends_nothing() -> Result<()> {
    let mut program = Program::load()?;
    let frame = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    check(&mut program, "unknown", &frame, Outcome::DROPPED, Reason::UnknownSource);
    program.install(CLIENT4, &Installation::Waiting, 1)?;
    check(&mut program, "waiting", &frame, Outcome::DROPPED, Reason::Waiting);
    program.install(CLIENT4, &Installation::Blocked, 2)?;
    check(&mut program, "blocked", &frame, Outcome::NOT_PERMITTED, Reason::Blocked);
    program.put(CLIENT4, &rules(&[Rule::all(true)]), &known())?;
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    program.maps.remove(ClientId { vif: VIF, address: CLIENT4 })?;
    check(&mut program, "removed", &frame, Outcome::DROPPED, Reason::UnknownSource);
    // The same address at home behind another vif is somebody else.
    let elsewhere = ClientId { vif: VIF + 1, address: CLIENT4 };
    program.maps.put(elsewhere, &Installation::Blocked, 3)?;
    check(&mut program, "elsewhere", &frame, Outcome::DROPPED, Reason::UnknownSource);
    Ok(())
}

#[test]
fn tables_that_contradict_themselves_drop() -> Result<()> {
    let mut program = Program::load()?;
    // An IPv4 policy has nothing that covers an IPv6 destination.
    let policy = proved(CLIENT4, &rules(&[Rule::all(true)]).file(), &known())?;
    program.install(CLIENT6, &Installation::Policy { policy, rules: 1 }, 1)?;
    let frame = packets::plain(CLIENT6, SERVER6.into(), packets::TCP, 443);
    check(&mut program, "no class", &frame, Outcome::DROPPED, Reason::Inconsistent);
    Ok(())
}

#[test]
fn rules_count_packets_segments_and_bytes() -> Result<()> {
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(true) };
    let udp = Rule { proto: Some(Proto::Udp), ..Rule::all(false) };
    let mut program = program_with(&rules(&[tcp, udp]))?;
    let frame = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    for (sent, segments) in [(1, 1), (2, 1), (46, 44)] {
        program.send_with(&frame, if segments == 1 { 0 } else { segments })?;
        assert_eq!(program.counted_rule(CLIENT4, 0).packets, sent);
    }
    assert_eq!(program.counted_rule(CLIENT4, 0).bytes, 3 * frame.len() as u64);
    assert_eq!(program.counted_rule(CLIENT4, 1).packets, 0);
    program.send(&packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 53))?;
    assert_eq!(program.counted_rule(CLIENT4, 1).packets, 1);
    program.send(&packets::plain(CLIENT4, SERVER4.into(), packets::ICMP, 8))?;
    assert_eq!(program.counted(Some(CLIENT4), Reason::Default).packets, 1);
    // Counters belong to one client, although both share a policy's shape.
    assert_eq!(program.counted_rule(CLIENT6, 0).packets, 0);
    Ok(())
}

#[test]
fn drop_records_are_complete_and_limited_while_counters_count_all() -> Result<()> {
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(false) };
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    program.put(CLIENT4, &rules(&[Rule { dns: true, ..Rule::all(true) }, tcp]), &known())?;
    let frame = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    let sent = 1000;
    for _ in 0..sent {
        program.send(&frame)?;
    }
    assert_eq!(program.counted_rule(CLIENT4, 1).packets, sent);
    let records = program.records()?;
    // A second may have ended on the way; a thousand test runs take far less than ten.
    assert!(!records.is_empty() && records.len() <= 10 * RECORDS_PER_SECOND as usize);
    let record = records[0];
    assert_eq!(IpAddr::from(record.source), CLIENT4);
    assert_eq!(IpAddr::from(record.destination), IpAddr::from(SERVER4));
    assert_eq!((record.source_port, record.destination_port), (40000, 443));
    assert_eq!((record.protocol, record.rule, record.generation), (packets::TCP, 1, 1));
    assert_eq!(record.suppressed, 0);
    // What was not told is told with the next record, a second later.
    let told =
        records.len() as u64 + records.iter().map(|it| u64::from(it.suppressed)).sum::<u64>();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let mut more = 0;
    let late = loop {
        assert!(std::time::Instant::now() < deadline, "no record after the limit");
        program.send(&packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 7))?;
        more += 1;
        if let Some(record) = program.records()?.first() {
            break *record;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert_eq!(told + u64::from(late.suppressed) + 1, sent + more);
    assert_eq!((late.rule, late.protocol), (DEFAULT_RULE, packets::UDP));
    Ok(())
}

#[test]
fn the_verifier_is_content_with_less_than_its_budget() -> Result<()> {
    let verified = Program::load()?.verified_instructions()?;
    println!("{verified} instructions verified");
    assert!(verified < 250_000, "{verified}");
    Ok(())
}

#[test]
fn denied_packets_over_the_budget_are_dropped_and_counted() -> Result<()> {
    // One packet a second, beyond the burst.
    let slow = NonZeroU64::new(1).context("not zero")?;
    let mut program = Program::load_with(slow, false)?;
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(true) };
    for client in [CLIENT4, CLIENT6] {
        program.put(client, &rules(std::slice::from_ref(&tcp)), &known())?;
    }
    let denied = packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 1);
    let accepted = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 1);
    let others = packets::plain(CLIENT6, SERVER6.into(), packets::UDP, 1);
    let (mut handed_on, mut dropped) = (0, 0);
    for _ in 0..REJECT_BURST + 1000 {
        match program.send(&denied)? {
            Outcome::NOT_PERMITTED => handed_on += 1,
            Outcome::DROPPED => dropped += 1,
            other => bail!("{other:?}"),
        }
    }
    // The burst, and a packet for each second that this took.
    assert!((REJECT_BURST..REJECT_BURST + 60).contains(&handed_on), "{handed_on}");
    assert_eq!(program.counted(Some(CLIENT4), Reason::OverBudget).packets, dropped);
    // All of them are what the default decided.
    let all = program.counted(Some(CLIENT4), Reason::Default).packets;
    assert_eq!(all, handed_on + dropped);
    // What is accepted, and other clients, do not pay for it.
    assert_eq!(program.send(&accepted)?, Outcome::ACCEPTED);
    assert_eq!(program.send(&others)?, Outcome::NOT_PERMITTED);
    Ok(())
}

#[test]
fn a_client_that_settles_has_its_denied_packets_dropped_and_no_others() -> Result<()> {
    let mut program = Program::load()?;
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(true) };
    let policy = proved(CLIENT4, &rules(&[tcp]).file(), &known())?;
    let client = ClientId { vif: VIF, address: CLIENT4 };
    let denied = packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 1);
    let accepted = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 1);
    program.maps.put(client, &Installation::Policy { policy, rules: 1 }, 1)?;
    check(&mut program, "settling", &denied, Outcome::DROPPED, Reason::Default);
    assert_eq!(program.send(&accepted)?, Outcome::ACCEPTED);
    program.maps.settle(client)?;
    check(&mut program, "settled", &denied, Outcome::NOT_PERMITTED, Reason::Default);
    // Settling keeps what was counted.
    assert_eq!(program.counted_rule(CLIENT4, 0).packets, 1);
    program.maps.put(client, &Installation::Blocked, 2)?;
    check(&mut program, "settling", &denied, Outcome::DROPPED, Reason::Blocked);
    program.maps.settle(client)?;
    check(&mut program, "settled", &denied, Outcome::NOT_PERMITTED, Reason::Blocked);
    program.maps.tidy()?;
    Ok(())
}
