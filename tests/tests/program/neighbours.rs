//! In a client's name speaks nobody else, and a client in nobody else's: to its neighbours, and on
//! other links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_tests::oracle::Rule;
use firewall_tests::packets::{self, V6};
use firewall_tests::program::{Outcome, Program, REJECT_RATE};

use super::common::*;

#[test]
fn a_clients_address_passes_no_other_link() -> Result<()> {
    let mut program = Program::load()?;
    program.maps.set_connected([CLIENT4, CLIENT6].into_iter())?;
    let neighbour: IpAddr = Ipv4Addr::new(10, 137, 0, 13).into();
    let cases = [(CLIENT4, SERVER4.into(), neighbour), (CLIENT6, SERVER6.into(), SERVER6.into())];
    for (client, server, other) in cases {
        let from = packets::plain(client, server, packets::TCP, 1);
        let to = packets::plain(server, client, packets::TCP, 1);
        let count = |program: &Program, reason| program.counted(None, reason).packets;
        for (name, dropped, passed, reason) in [
            ("from_uplink", &from, &to, Reason::ConnectedSource),
            ("to_uplink", &to, &from, Reason::ConnectedDestination),
        ] {
            let before = count(&program, reason);
            assert_eq!(program.send_through(name, dropped)?, Outcome::DROPPED, "{name}");
            assert_eq!(count(&program, reason), before + 1, "{name}");
            assert_eq!(program.send_through(name, passed)?, Outcome::NOT_PERMITTED, "{name}");
            let foreign = packets::plain(other, other, packets::TCP, 1);
            assert_eq!(program.send_through(name, &foreign)?, Outcome::NOT_PERMITTED, "{name}");
            let arp = packets::ethernet(0x0806, &[0; 28]);
            assert_eq!(program.send_through(name, &arp)?, Outcome::NOT_PERMITTED, "{name}");
            assert_eq!(count(&program, reason), before + 1, "{name}");
        }
    }
    program.maps.set_connected(std::iter::empty())?;
    let from = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 1);
    assert_eq!(program.send_through("from_uplink", &from)?, Outcome::NOT_PERMITTED);
    Ok(())
}

/// ARP of the client that says that it has this address.
fn arp(sender: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2, 0, 0x16, 0x3e, 0x5e, 0x6c, 1];
    packet.extend(sender);
    packet.extend([0; 10]);
    packets::ethernet(0x0806, &packet)
}

#[test]
fn by_arp_clients_speak_for_themselves_only_with_a_guard_and_without() -> Result<()> {
    let own = v4(CLIENT4).octets();
    for guard in [false, true] {
        let mut program = Program::load_with(REJECT_RATE, guard)?;
        program.put(CLIENT4, &rules(&[Rule::all(true)]), &known())?;
        for (name, sender) in [("its own", own), ("a probe", [0; 4])] {
            check(&mut program, name, &arp(sender), Outcome::NOT_PERMITTED, Reason::Arp);
        }
        for (name, sender) in [("the gateway", [10, 137, 0, 1]), ("another", [10, 137, 0, 13])] {
            let reason = Reason::ForeignNeighbour;
            check(&mut program, name, &arp(sender), Outcome::DROPPED, reason);
        }
    }
    Ok(())
}

#[test]
fn a_guard_lets_clients_speak_for_themselves_only() -> Result<()> {
    let own6 = v6(CLIENT6);
    let ndp = |kind: u8, target: Ipv6Addr| {
        let mut message = packets::icmp(kind, 0);
        message.extend(target.octets());
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        V6::new(own6, all_nodes, packets::ICMPV6, &message).frame()
    };
    let honest =
        [("own advertisement", ndp(136, own6)), ("solicitation for others", ndp(135, SERVER6))];
    let lies = [
        ("advertisement for another", ndp(136, SERVER6)),
        ("router advertisement", ndp(134, Ipv6Addr::UNSPECIFIED)),
    ];
    for guard in [false, true] {
        let mut program = Program::load_with(REJECT_RATE, guard)?;
        program.put(CLIENT6, &rules(&[Rule::all(true)]), &known())?;
        for (name, frame) in &honest {
            assert_eq!(program.send(frame)?, Outcome::NOT_PERMITTED, "{name}, guard {guard}");
        }
        let expected = if guard { Outcome::DROPPED } else { Outcome::NOT_PERMITTED };
        for (name, frame) in &lies {
            assert_eq!(program.send(frame)?, expected, "{name}, guard {guard}");
        }
        let counted = program.counted(Some(CLIENT6), Reason::ForeignNeighbour).packets;
        assert_eq!(counted, if guard { 2 } else { 0 });
    }
    Ok(())
}
