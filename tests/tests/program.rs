//! Ring 2: does the kernel agree? The program in the kernel, on packets made by hand and
//! at random, against the naive oracle. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_agent::events::{ClientId, Installation};
use firewall_agent::rules::resolve::Surroundings;
use firewall_common::abi::{DEFAULT_RULE, RECORDS_PER_SECOND};
use firewall_common::verdict::Reason;
use firewall_tests::generate::Generator;
use firewall_tests::oracle::{Probe, Proto, Rule, Ruleset};
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{MARK_BIT, Outcome, Program, VIF, proved};

const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 12));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0xc));
const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => unreachable!("an IPv4 address"),
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!("an IPv6 address"),
    }
}

fn known() -> Surroundings {
    let resolvers = [Ipv4Addr::new(192, 168, 1, 1).into(), SERVER6.into()];
    Surroundings { resolvers: resolvers.to_vec(), ..Surroundings::default() }
}

/// What `specialtarget=dns` means with [`known`] resolvers.
fn dns_servers() -> Vec<IpAddr> {
    let virtual_resolvers = [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];
    let all = virtual_resolvers.into_iter().map(IpAddr::from);
    all.chain(known().resolvers).collect()
}

fn rules(rules: &[Rule]) -> Ruleset {
    Ruleset { default_accept: false, rules: rules.to_vec() }
}

fn program_with(rules: &Ruleset) -> Result<Program> {
    let mut program = Program::load()?;
    for client in [CLIENT4, CLIENT6] {
        let of_family = |rule: &&Rule| {
            rule.network.is_none_or(|(network, _)| network.is_ipv4() == client.is_ipv4())
        };
        let rules: Vec<Rule> = rules.rules.iter().filter(of_family).cloned().collect();
        program.put(client, &Ruleset { default_accept: false, rules }, &known())?;
    }
    Ok(program)
}

/// Sends a frame and asserts outcome, the one counter that moves, and the drop record.
#[track_caller]
fn check(program: &mut Program, name: &str, frame: &[u8], expected: Outcome, reason: Reason) {
    let client = match frame.get(12..14) {
        _ if reason_without_client(reason) => None,
        Some([0x08, 0x00]) => Some(CLIENT4),
        _ => Some(CLIENT6),
    };
    let count = |program: &Program| program.counted(client, reason);
    let before = count(program);
    program.records().expect("records");
    let outcome = program.send(frame).expect("a test run");
    assert_eq!(outcome, expected, "{name}");
    let after = count(program);
    assert_eq!(after.packets, before.packets + 1, "{name}: packets counted as {reason:?}");
    assert_eq!(after.bytes, before.bytes + frame.len() as u64, "{name}: bytes");
    let records = program.records().expect("records");
    let is_told = expected != Outcome::ACCEPTED && !is_untold(reason);
    assert!(records.len() <= usize::from(is_told), "{name}: {records:?}");
    for record in records {
        assert_eq!(Reason::from_index(record.reason), Some(reason), "{name}");
        assert_eq!((record.vif, record.length), (VIF, frame.len() as u32), "{name}");
    }
}

/// Exhaustive on purpose: a new reason must be placed here, and tested below.
fn reason_without_client(reason: Reason) -> bool {
    match reason {
        Reason::Rule
        | Reason::Default
        | Reason::Blocked
        | Reason::Waiting
        | Reason::Local
        | Reason::Fragment
        | Reason::Inconsistent => false,
        Reason::Arp
        | Reason::UnknownSource
        | Reason::LinkLocal
        | Reason::OtherHost
        | Reason::Tagged
        | Reason::ForeignEthertype
        | Reason::Truncated
        | Reason::Malformed
        | Reason::SourceRoute
        | Reason::RoutingHeader
        | Reason::TooManyHeaders
        | Reason::MappedAddress => true,
    }
}

fn is_untold(reason: Reason) -> bool {
    matches!(reason, Reason::Arp | Reason::Local | Reason::Fragment | Reason::LinkLocal)
}

/// Frames that never reach the rules, with their reasons.
fn odd_frames() -> Vec<(&'static str, Vec<u8>, Reason)> {
    let tcp = packets::tcp(40000, 443);
    let v4_plain = V4::new(v4(CLIENT4), SERVER4, packets::TCP, &tcp);
    let v6_plain = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &tcp);
    let with_options =
        |options: &[u8]| V4 { options: options.to_vec(), ..v4_plain.clone() }.frame();
    let edited = |mut frame: Vec<u8>, at: usize, byte: u8| {
        frame[at] = byte;
        frame
    };
    let cut = |frame: Vec<u8>, length: usize| frame[..length].to_vec();
    let mapped = Ipv4Addr::new(10, 137, 0, 12).to_ipv6_mapped();
    let server_mapped = SERVER4.to_ipv6_mapped();
    let none = packets::options(0);
    let nine = (0..9).fold(v6_plain.clone(), |it, _| it.with(packets::DESTINATION, &none));
    vec![
        ("single VLAN tag", packets::ethernet(0x8100, &[0; 64]), Reason::Tagged),
        ("802.1ad tag", packets::ethernet(0x88a8, &[0; 64]), Reason::Tagged),
        ("old QinQ tag", packets::ethernet(0x9100, &[0; 64]), Reason::Tagged),
        ("PPPoE", packets::ethernet(0x8864, &[0; 64]), Reason::ForeignEthertype),
        ("MPLS", packets::ethernet(0x8847, &[0; 64]), Reason::ForeignEthertype),
        ("802.3 length", packets::ethernet(0x0040, &[0; 64]), Reason::ForeignEthertype),
        ("EAPOL", packets::ethernet(0x888e, &[0; 64]), Reason::ForeignEthertype),
        ("other MAC", edited(v4_plain.frame(), 0, 2), Reason::OtherHost),
        ("IPv4 version 5", edited(v4_plain.frame(), 14, 0x55), Reason::Malformed),
        ("IPv6 in an IPv4 frame", packets::ethernet(0x0800, &v6_plain.packet()), Reason::Malformed),
        ("IPv4 in an IPv6 frame", packets::ethernet(0x86dd, &v4_plain.packet()), Reason::Malformed),
        ("IHL 4", edited(v4_plain.frame(), 14, 0x44), Reason::Malformed),
        ("IHL beyond the length", edited(cut(v4_plain.frame(), 54), 14, 0x4f), Reason::Malformed),
        ("total length below IHL", edited(v4_plain.frame(), 17, 19), Reason::Malformed),
        ("total length beyond frame", edited(v4_plain.frame(), 16, 4), Reason::Truncated),
        (
            "IPv4 TCP without ports",
            { V4::new(v4(CLIENT4), SERVER4, packets::TCP, &tcp[..3]).frame() },
            Reason::Truncated,
        ),
        (
            "IPv4 ICMP without code",
            { V4::new(v4(CLIENT4), SERVER4, packets::ICMP, &[8]).frame() },
            Reason::Truncated,
        ),
        (
            "first fragment without ports",
            { V4 { fragment: 0x2000, payload: vec![1, 2], ..v4_plain.clone() }.frame() },
            Reason::Truncated,
        ),
        ("loose source route", with_options(&[131, 7, 4, 8, 8, 8, 8]), Reason::SourceRoute),
        ("strict source route", with_options(&[137, 7, 4, 8, 8, 8, 8]), Reason::SourceRoute),
        ("NOPs, then a source route", with_options(&[1, 1, 1, 131, 3, 4]), Reason::SourceRoute),
        ("timestamp, then one", with_options(&[68, 4, 5, 0, 131, 3, 4]), Reason::SourceRoute),
        ("option of length 0", with_options(&[7, 0, 0, 0]), Reason::Malformed),
        ("option of length 1", with_options(&[7, 1, 0, 0]), Reason::Malformed),
        ("option beyond the end", with_options(&[7, 39, 4, 0]), Reason::Malformed),
        ("option without length", with_options(&[1, 1, 1, 7]), Reason::Malformed),
        ("IPv6 length beyond frame", edited(v6_plain.frame(), 18, 4), Reason::Truncated),
        (
            "IPv6 TCP without ports",
            { V6::new(v6(CLIENT6), SERVER6, packets::TCP, &tcp[..3]).frame() },
            Reason::Truncated,
        ),
        (
            "IPv6 first fragment without ports",
            {
                let packet = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &[]);
                packet.with(packets::FRAGMENT, &packets::fragment(0, true)).frame()
            },
            Reason::Truncated,
        ),
        (
            "IPv6 first fragment ends in its headers",
            {
                let packet = V6::new(v6(CLIENT6), SERVER6, packets::DESTINATION, &[6, 2, 1, 4, 0]);
                packet.with(packets::FRAGMENT, &packets::fragment(0, true)).frame()
            },
            Reason::Truncated,
        ),
        (
            "options header beyond the end",
            { v6_plain.clone().with(packets::DESTINATION, &[9, 1, 4, 0, 0, 0, 0]).frame() },
            Reason::Truncated,
        ),
        (
            "routing header type 0",
            { v6_plain.clone().with(packets::ROUTING, &[0, 0, 0, 0, 0, 0, 0]).frame() },
            Reason::RoutingHeader,
        ),
        (
            "routing header type 4 behind options",
            {
                let packet = v6_plain.clone().with(packets::HOP_BY_HOP, &none);
                packet.with(packets::ROUTING, &[2, 4, 0, 0, 0, 0, 0]).frame()
            },
            Reason::RoutingHeader,
        ),
        ("nine extension headers", nine.frame(), Reason::TooManyHeaders),
        (
            "mapped source",
            { V6::new(mapped, SERVER6, packets::TCP, &tcp).frame() },
            Reason::MappedAddress,
        ),
        (
            "mapped destination",
            { V6::new(v6(CLIENT6), server_mapped, packets::TCP, &tcp).frame() },
            Reason::MappedAddress,
        ),
        ("both mapped", V6::new(mapped, server_mapped, packets::TCP, &tcp).frame(), {
            Reason::MappedAddress
        }),
        (
            "IPv4 source of nobody",
            { V4 { source: Ipv4Addr::new(10, 137, 0, 13), ..v4_plain.clone() }.frame() },
            Reason::UnknownSource,
        ),
        (
            "IPv4 source 0.0.0.0",
            { V4 { source: Ipv4Addr::UNSPECIFIED, ..v4_plain.clone() }.frame() },
            Reason::UnknownSource,
        ),
        (
            "IPv4 source loopback",
            { V4 { source: Ipv4Addr::LOCALHOST, ..v4_plain.clone() }.frame() },
            Reason::UnknownSource,
        ),
        (
            "later fragment of nobody",
            {
                let source = Ipv4Addr::new(10, 137, 0, 13);
                V4 { source, fragment: 100, ..v4_plain.clone() }.frame()
            },
            Reason::UnknownSource,
        ),
        (
            "IPv6 source link-local",
            { V6 { source: "fe80::1".parse().expect("address"), ..v6_plain.clone() }.frame() },
            Reason::LinkLocal,
        ),
        (
            "IPv6 source ::",
            { V6 { source: Ipv6Addr::UNSPECIFIED, ..v6_plain.clone() }.frame() },
            Reason::LinkLocal,
        ),
    ]
}

#[test]
fn what_no_honest_client_sends_is_dropped_and_counted_although_rules_accept_all() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    for (name, frame, reason) in odd_frames() {
        check(&mut program, name, &frame, Outcome::DROPPED, reason);
    }
    Ok(())
}

#[test]
fn every_reason_is_tested() -> Result<()> {
    let odd = odd_frames();
    for &reason in Reason::ALL {
        let by_hand = odd.iter().any(|(_, _, tested)| *tested == reason);
        let elsewhere = match reason {
            Reason::Rule | Reason::Default => "kernel_and_oracle_agree_on_random_packets",
            Reason::Blocked | Reason::Waiting => "a_client_without_usable_rules_sends_nothing",
            Reason::Arp | Reason::Local => "what_is_the_kernels_is_handed_on_without_the_mark",
            Reason::Fragment => "a_later_fragment_is_handed_on_without_the_mark",
            Reason::Inconsistent => "tables_that_contradict_themselves_drop",
            _ => "",
        };
        assert!(by_hand || !elsewhere.is_empty(), "{reason:?} is not tested");
    }
    Ok(())
}

#[test]
fn every_cut_of_a_packet_is_dropped_or_judged_as_the_whole() -> Result<()> {
    let mut program = program_with(&rules(&[Rule { proto: Some(Proto::Udp), ..Rule::all(true) }]))?;
    let udp = packets::udp(1, 2);
    let frames = [
        V4::new(v4(CLIENT4), SERVER4, packets::UDP, &udp).frame(),
        V6::new(v6(CLIENT6), SERVER6, packets::UDP, &udp).frame(),
        V6::new(v6(CLIENT6), SERVER6, packets::UDP, &udp)
            .with(packets::HOP_BY_HOP, &packets::options(1))
            .with(packets::DESTINATION, &packets::options(0))
            .frame(),
    ];
    for frame in frames {
        assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
        // The kernel refuses to test-run less than the headers of Ethernet and IP; ring 1
        // cuts there.
        let headers = if frame[12] == 0x08 { 34 } else { 54 };
        for length in headers..frame.len() {
            assert_eq!(program.send(&frame[..length])?, Outcome::DROPPED, "{length}");
        }
        let padded = [frame.as_slice(), &[0; 30]].concat();
        assert_eq!(program.send(&padded)?, Outcome::ACCEPTED);
    }
    Ok(())
}

#[test]
fn what_is_the_kernels_is_handed_on_without_the_mark() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let own4 = Ipv4Addr::new(10, 137, 0, 1);
    let own6: Ipv6Addr = "fd09:24ef:4179::1".parse()?;
    program.maps.set_locals([own4.into(), own6.into()].into_iter())?;
    let arp = packets::ethernet(0x0806, &[0; 28]);
    check(&mut program, "ARP", &arp, Outcome::UNMARKED, Reason::Arp);
    for destination in ["10.137.0.1", "224.0.0.1", "239.255.255.250", "255.255.255.255"] {
        let frame = packets::plain(CLIENT4, destination.parse()?, packets::UDP, 53);
        check(&mut program, destination, &frame, Outcome::UNMARKED, Reason::Local);
    }
    for destination in ["fd09:24ef:4179::1", "ff02::1", "ff02::1:ff00:1", "ff0e::1"] {
        let frame = packets::plain(CLIENT6, destination.parse()?, packets::ICMPV6, 135);
        check(&mut program, destination, &frame, Outcome::UNMARKED, Reason::Local);
    }
    // Its neighbours are not the netvm's.
    let frame = packets::plain(CLIENT4, "10.137.0.2".parse()?, packets::UDP, 53);
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    program.maps.set_locals(std::iter::empty())?;
    let frame = packets::plain(CLIENT4, own4.into(), packets::UDP, 53);
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    Ok(())
}

#[test]
fn a_later_fragment_is_handed_on_without_the_mark() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    for offset in [1, 2, 185, 0x1fff] {
        let frame = V4 {
            fragment: offset,
            ..V4::new(v4(CLIENT4), SERVER4, packets::TCP, &packets::tcp(1, 443))
        };
        check(&mut program, "IPv4", &frame.frame(), Outcome::UNMARKED, Reason::Fragment);
        let frame = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &packets::tcp(1, 443))
            .with(packets::FRAGMENT, &packets::fragment(offset, offset % 2 == 0));
        check(&mut program, "IPv6", &frame.frame(), Outcome::UNMARKED, Reason::Fragment);
    }
    Ok(())
}

#[test]
fn first_and_atomic_fragments_and_extension_headers_do_not_hide_the_ports() -> Result<()> {
    let udp_53 = Rule { proto: Some(Proto::Udp), ports: Some((53, 53)), ..Rule::all(false) };
    let mut program = program_with(&rules(&[udp_53, Rule::all(true)]))?;
    let none = packets::options(0);
    for (port, expected) in [(53, Outcome::UNMARKED), (54, Outcome::ACCEPTED)] {
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
        [(rules(&all), Outcome::UNMARKED), (rules(&[Rule::all(true)]), Outcome::ACCEPTED)]
    {
        let mut program = program_with(&rules_)?;
        for protocol in others {
            for (client, server) in
                [(CLIENT4, IpAddr::from(SERVER4)), (CLIENT6, IpAddr::from(SERVER6))]
            {
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
    check(&mut program, "blocked", &frame, Outcome::UNMARKED, Reason::Blocked);
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
fn the_other_bits_of_the_mark_are_left_alone() -> Result<()> {
    let mut program = program_with(&rules(&[Rule { proto: Some(Proto::Tcp), ..Rule::all(true) }]))?;
    let accepted = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    let rejected = packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 443);
    for others in [0, 0xca6c, !MARK_BIT] {
        for had_bit in [0, MARK_BIT] {
            let outcome = program.send_with(&accepted, others | had_bit, 0)?;
            assert_eq!(outcome, Outcome { handed_on: true, mark: others | MARK_BIT });
            let outcome = program.send_with(&rejected, others | had_bit, 0)?;
            assert_eq!(outcome, Outcome { handed_on: true, mark: others });
        }
    }
    Ok(())
}

#[test]
fn rules_count_packets_segments_and_bytes() -> Result<()> {
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(true) };
    let udp = Rule { proto: Some(Proto::Udp), ..Rule::all(false) };
    let mut program = program_with(&rules(&[tcp, udp]))?;
    let frame = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    for (sent, segments) in [(1, 1), (2, 1), (46, 44)] {
        program.send_with(&frame, 0, if segments == 1 { 0 } else { segments })?;
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
fn kernel_and_oracle_agree_on_random_packets() -> Result<()> {
    let seed = std::env::var("FIREWALL_SEED").ok().and_then(|it| it.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("FIREWALL_SEED={seed} repeats this run");
    let mut generator = Generator::new(seed);
    let mut program = Program::load()?;
    let servers = dns_servers();
    let (mut accepted, mut rejected) = (0, 0);
    for round in 0..400 {
        for (client, is_v4) in [(CLIENT4, true), (CLIENT6, false)] {
            let most = if round % 20 == 0 { 300 } else { 12 };
            let rules = generator.ruleset(is_v4, most);
            program.put(client, &rules, &known())?;
            for _ in 0..400 {
                let probe = generator.probe(is_v4, &rules);
                let (outcome, reason, rule) = expected(&probe, &rules, &servers);
                let frame = packets::plain(client, probe.destination, probe.protocol, probe.port);
                let context = || format!("seed {seed}: {probe:?} of\n{}", rules.file());
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
    assert!(accepted > 50_000 && rejected > 50_000, "the random packets are too much alike");
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
    if multicast {
        return (Outcome::UNMARKED, Reason::Local, 0);
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
    let outcome = if accept { Outcome::ACCEPTED } else { Outcome::UNMARKED };
    match rule {
        Some(rule) => (outcome, Reason::Rule, rule),
        None => (outcome, Reason::Default, 0),
    }
}

#[test]
fn the_verifier_is_content_with_less_than_its_budget() -> Result<()> {
    let verified = Program::load()?.verified_instructions()?;
    println!("{verified} instructions verified");
    assert!(verified < 250_000, "{verified}");
    Ok(())
}
