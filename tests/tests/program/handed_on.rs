//! What is handed on without a rule that accepts it: ICMP errors, and what is for the netvm
//! itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::abi::{FLOWS_BURST, Local, NOTICES_BURST};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::Rule;
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{Outcome, Program, VIF};

use super::common::*;

const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 13);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0xd);

/// An ICMP error of this type about a packet.
fn about(kind: u8, code: u8, packet: &[u8]) -> Vec<u8> {
    let mut error = packets::icmp(kind, code);
    error[4..].fill(0);
    error.extend(packet);
    error
}

/// A packet from the server to the client.
fn sent4() -> V4 {
    V4::new(SERVER4, v4(CLIENT4), packets::UDP, &packets::datagram(53, 40000, &[1; 32]))
}

fn sent6() -> V6 {
    V6::new(SERVER6, v6(CLIENT6), packets::UDP, &packets::datagram(53, 40000, &[1; 32]))
}

fn error4(kind: u8, quoted: &[u8]) -> V4 {
    V4::new(v4(CLIENT4), SERVER4, packets::ICMP, &about(kind, 0, quoted))
}

fn error6(kind: u8, quoted: &[u8]) -> V6 {
    V6::new(v6(CLIENT6), SERVER6, packets::ICMPV6, &about(kind, 0, quoted))
}

/// Errors that an honest client may send.
fn honest() -> Vec<(String, Vec<u8>)> {
    let none = packets::options(0);
    let with_options = V4 { options: vec![1, 1, 1, 0], ..sent4() }.packet();
    let mut all = vec![
        ("about options".to_owned(), error4(3, &with_options).frame()),
        ("of 8 bytes".to_owned(), error4(3, &sent4().packet()[..28]).frame()),
        ("of 8 bytes, IPv6".to_owned(), error6(1, &sent6().packet()[..48]).frame()),
        (
            "behind options".to_owned(),
            error6(1, &sent6().packet()).with(packets::DESTINATION, &none).frame(),
        ),
    ];
    for kind in [3, 4, 11, 12] {
        all.push((format!("type {kind}"), error4(kind, &sent4().packet()).frame()));
    }
    for kind in [1, 2, 3, 4, 100, 127] {
        all.push((format!("IPv6 type {kind}"), error6(kind, &sent6().packet()).frame()));
    }
    all
}

/// Errors that no honest client sends.
fn foreign() -> Vec<(String, Vec<u8>)> {
    let other4 = V4 { destination: OTHER4, ..sent4() }.packet();
    let other6 = V6 { destination: OTHER6, ..sent6() }.packet();
    let own4 = V4 { source: v4(CLIENT4), destination: SERVER4, ..sent4() }.packet();
    let own6 = V6 { source: v6(CLIENT6), destination: SERVER6, ..sent6() }.packet();
    let elsewhere4 = V4 { source: OTHER4, ..sent4() }.packet();
    let elsewhere6 = V6 { source: OTHER6, ..sent6() }.packet();
    let later4 = V4 { fragment: 8, ..sent4() }.packet();
    let mut version4 = sent4().packet();
    version4[0] = 0x65;
    let mut version6 = sent6().packet();
    version6[0] = 0x40;
    let mut short_header = sent4().packet();
    short_header[0] = 0x44;
    let mut long_header = sent4().packet();
    long_header[0] = 0x4f;
    let long = vec![0; 1300];
    let mapped = V6 { destination: v4(CLIENT4).to_ipv6_mapped(), ..sent6() }.packet();
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("cut header".to_owned(), error4(3, &sent4().packet()[..27]).frame()),
        ("nothing quoted".to_owned(), error4(3, &[]).frame()),
        ("a later fragment".to_owned(), error4(3, &later4).frame()),
        ("version 6 in IPv4".to_owned(), error4(3, &version4).frame()),
        ("IHL 4".to_owned(), error4(3, &short_header).frame()),
        ("IHL beyond".to_owned(), error4(3, &long_header[..52]).frame()),
        (
            "too long".to_owned(),
            error4(3, &[sent4().packet(), long[..520].to_vec()].concat()).frame(),
        ),
        ("cut header, IPv6".to_owned(), error6(1, &sent6().packet()[..47]).frame()),
        ("nothing quoted, IPv6".to_owned(), error6(1, &[]).frame()),
        ("version 4 in IPv6".to_owned(), error6(1, &version6).frame()),
        ("mapped".to_owned(), error6(1, &mapped).frame()),
        ("too long, IPv6".to_owned(), error6(1, &[sent6().packet(), long].concat()).frame()),
        ("a fragment".to_owned(), {
            // 64 bytes.
            let quoted = [sent4().packet(), vec![0; 8]].concat();
            V4 { fragment: 0x2000, ..error4(3, &quoted[..56]) }.frame()
        }),
        ("to many".to_owned(), {
            let group = Ipv4Addr::new(224, 0, 0, 1);
            let quoted = V4 { source: group, ..sent4() }.packet();
            V4 { destination: group, ..error4(3, &quoted) }.frame()
        }),
    ];
    for kind in [3, 4, 11, 12] {
        for (name, quoted) in
            [("of another", &other4), ("of its own", &own4), ("from elsewhere", &elsewhere4)]
        {
            all.push((format!("{name}, type {kind}"), error4(kind, quoted).frame()));
        }
    }
    for kind in [0, 1, 2, 3, 4, 100, 127] {
        for (name, quoted) in
            [("of another", &other6), ("of its own", &own6), ("from elsewhere", &elsewhere6)]
        {
            all.push((format!("{name}, IPv6 type {kind}"), error6(kind, quoted).frame()));
            let behind =
                error6(kind, quoted).with(packets::AUTHENTICATION, &packets::authentication());
            all.push((format!("{name}, IPv6 type {kind}, AH"), behind.frame()));
        }
        // The gate does not see what it is.
        let options = (packets::DESTINATION, packets::options(0));
        let authentication = (packets::AUTHENTICATION, packets::authentication());
        for headers in [
            vec![authentication.clone()],
            vec![authentication.clone(), options.clone()],
            vec![options, authentication],
        ] {
            let error = error6(kind, &sent6().packet());
            let behind = headers.iter().fold(error, |it, (number, rest)| it.with(*number, rest));
            let numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
            all.push((format!("IPv6 type {kind} behind {numbers:?}"), behind.frame()));
        }
    }
    all
}

/// Sends errors that pass, and errors that do not.
#[track_caller]
fn check_errors(program: &mut Program) {
    for (name, frame) in honest() {
        check(program, &name, &frame, Outcome::RELATED, Reason::IcmpError);
    }
    for (name, frame) in foreign() {
        check(program, &name, &frame, Outcome::DROPPED, Reason::ForeignError);
    }
}

#[test]
fn an_icmp_error_passes_only_if_it_quotes_a_packet_to_its_sender() -> Result<()> {
    for rules_ in [rules(&[]), rules(&[Rule::all(true)])] {
        let mut program = program_with(&rules_)?;
        // Another client of another vif.
        for other in [IpAddr::from(OTHER4), OTHER6.into()] {
            let client = ClientId { vif: VIF + 1, address: other };
            program.maps.put(client, &Installation::Blocked, 1)?;
        }
        check_errors(&mut program);
    }
    Ok(())
}

#[test]
fn an_icmp_error_to_the_netvm_itself_is_judged_like_any_other() -> Result<()> {
    let mut program = program_with(&rules(&[]))?;
    program.maps.set_locals([(SERVER4.into(), Local::One), (SERVER6.into(), Local::One)])?;
    check_errors(&mut program);
    Ok(())
}

#[test]
fn an_icmp_error_is_dropped_while_its_connection_may_have_to_end() -> Result<()> {
    let mut program = Program::load()?;
    let frame = error4(3, &sent4().packet()).frame();
    let client = ClientId { vif: VIF, address: CLIENT4 };
    for (generation, installation, reason) in
        [(1, Installation::Waiting, Reason::Waiting), (2, Installation::Blocked, Reason::Settling)]
    {
        program.maps.put(client, &installation, generation)?;
        program.rest()?;
        check(&mut program, "settling", &frame, Outcome::DROPPED, reason);
    }
    program.maps.settle(client)?;
    check(&mut program, "settled", &frame, Outcome::RELATED, Reason::IcmpError);
    Ok(())
}

#[test]
fn an_authentication_header_hides_nothing_in_ipv6() -> Result<()> {
    let mut program = program_with(&rules(&[Rule {
        proto: Some(firewall_tests::oracle::Proto::Tcp),
        ..Rule::all(true)
    }]))?;
    let behind = |protocol, payload: &[u8]| {
        let packet = V6::new(v6(CLIENT6), SERVER6, protocol, payload);
        packet.with(packets::AUTHENTICATION, &packets::authentication()).frame()
    };
    assert_eq!(program.send(&behind(packets::TCP, &packets::tcp(1, 2)))?, Outcome::ACCEPTED);
    assert_eq!(program.send(&behind(packets::UDP, &packets::udp(1, 2)))?, Outcome::NOT_PERMITTED);
    // Neither does a drop rule overlook what is behind it, nor a rule for all see more than it is.
    let drop_tcp = Rule { proto: Some(firewall_tests::oracle::Proto::Tcp), ..Rule::all(false) };
    program.put(CLIENT6, &rules(&[drop_tcp, Rule::all(true)]), &known())?;
    assert_eq!(program.send(&behind(packets::TCP, &packets::tcp(1, 2)))?, Outcome::NOT_PERMITTED);
    assert_eq!(program.send(&behind(packets::UDP, &packets::udp(1, 2)))?, Outcome::ACCEPTED);
    assert_eq!(program.counted_rule(CLIENT6, 0).packets, 1);
    assert_eq!(program.counted_rule(CLIENT6, 1).packets, 1);
    // In IPv4 it is a protocol like others.
    let payload = [&[packets::TCP][..], &packets::authentication(), &packets::tcp(1, 2)].concat();
    let v4 = V4::new(v4(CLIENT4), SERVER4, packets::AUTHENTICATION, &payload).frame();
    assert_eq!(program.send(&v4)?, Outcome::NOT_PERMITTED);
    Ok(())
}

/// How many of these frames are handed on before the first one is dropped.
fn handed_on(program: &mut Program, frames: impl Iterator<Item = Vec<u8>>) -> Result<u64> {
    let mut count = 0;
    for frame in frames {
        match program.send(&frame)? {
            Outcome::DROPPED => return Ok(count),
            _ => count += 1,
        }
    }
    Ok(count)
}

#[test]
fn what_is_for_the_netvm_has_a_budget_of_new_flows_and_of_notices() -> Result<()> {
    // Whether rules accept it or not.
    has_budgets(&mut program_with(&rules(&[]))?)?;
    has_budgets(&mut program_with(&rules(&[Rule::all(true)]))?)
}

fn has_budgets(program: &mut Program) -> Result<()> {
    program.maps.set_locals([(SERVER4.into(), Local::One), (SERVER6.into(), Local::One)])?;
    let ping4 = |id: u16| {
        let mut echo = packets::icmp(8, 0);
        echo[4..6].copy_from_slice(&id.to_be_bytes());
        V4::new(v4(CLIENT4), SERVER4, packets::ICMP, &echo).frame()
    };
    let ping6 = |id: u16| {
        let mut echo = packets::icmp(128, 0);
        echo[4..6].copy_from_slice(&id.to_be_bytes());
        V6::new(v6(CLIENT6), SERVER6, packets::ICMPV6, &echo).frame()
    };
    let code = |number: u16| {
        let [id, code] = number.to_be_bytes();
        let mut echo = packets::icmp(8, code);
        echo[5] = id;
        V4::new(v4(CLIENT4), SERVER4, packets::ICMP, &echo).frame()
    };
    let tcp = |port: u16| {
        V4::new(v4(CLIENT4), SERVER4, packets::TCP, &packets::segment(port, 22, &[])).frame()
    };
    let udp = |port: u16| packets::plain(CLIENT6, SERVER6.into(), packets::UDP, port);
    let group = |port: u16| {
        packets::plain(CLIENT4, Ipv4Addr::new(224, 0, 0, 251).into(), packets::UDP, port)
    };
    let other = |_: u16| packets::plain(CLIENT4, SERVER4.into(), 132, 0);
    type Make<'a> = &'a dyn Fn(u16) -> Vec<u8>;
    let opening =
        |port: u16| V4::new(v4(CLIENT4), SERVER4, packets::TCP, &packets::tcp(port, 22)).frame();
    let kinds: [(&str, Make, u64); 8] = [
        ("pings of all codes", &code, FLOWS_BURST),
        ("pings", &ping4, FLOWS_BURST),
        ("IPv6 pings", &ping6, FLOWS_BURST),
        // Connection tracking keeps some longer without an answer, and they count for more.
        ("TCP in mid-stream", &tcp, FLOWS_BURST / 10),
        ("TCP that begins", &opening, FLOWS_BURST / 2),
        ("UDP", &udp, FLOWS_BURST),
        ("multicast", &group, FLOWS_BURST),
        ("SCTP", &other, FLOWS_BURST / 20),
    ];
    for (name, frame, burst) in kinds {
        program.rest()?;
        let count = handed_on(program, (0..).map(frame).take(4 * FLOWS_BURST as usize))?;
        // Some seconds may go by on a busy machine.
        let most = 3 * burst;
        assert!(
            (burst..most).contains(&count),
            "{name}: {count} were handed on, and not {burst} or some more (below {most})"
        );
        check(program, name, &frame(9999), Outcome::DROPPED, Reason::TooMany);
    }
    // A flow that is known goes on: far more of it than the burst.
    program.rest()?;
    for (name, frame) in [("ping", ping4(1)), ("TCP", tcp(1)), ("UDP", udp(1))] {
        let frames = std::iter::repeat_n(frame, 10 * FLOWS_BURST as usize);
        let count = handed_on(program, frames)?;
        let all = 10 * FLOWS_BURST;
        assert_eq!(count, all, "{name}: {count} of a known flow were handed on, and not all {all}");
    }
    // ARP goes on while no new flow does.
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 0, 0x16, 0x3e, 0x5e, 0x6c, 1];
    arp.extend(v4(CLIENT4).octets());
    arp.extend([0; 10]);
    let arp = packets::ethernet(0x0806, &arp);
    let frames = (0..).map(|id| ping4(100 + id)).take(4 * FLOWS_BURST as usize);
    handed_on(program, frames)?;
    assert_eq!(program.send(&arp)?, Outcome::NOT_PERMITTED);
    // It has a budget of its own, with neighbour discovery and errors.
    let solicitation = packets::plain(CLIENT6, SERVER6.into(), packets::ICMPV6, 135);
    for (name, frame) in [
        ("ARP", &arp),
        ("neighbour discovery", &solicitation),
        ("errors", &error4(3, &sent4().packet()).frame()),
    ] {
        program.rest()?;
        let frames = std::iter::repeat_n(frame.clone(), 40 * NOTICES_BURST as usize);
        let count = handed_on(program, frames)?;
        let sent = 40 * NOTICES_BURST;
        assert!(
            (NOTICES_BURST..sent).contains(&count),
            "{name}: {count} were handed on, and not {NOTICES_BURST} or some more (below {sent})"
        );
    }
    Ok(())
}
