//! A Whonix gateway: rules judge all that clients send, on the destination that they wrote, and what
//! passes has a permit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::abi::{Local, NOTICES_BURST};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::rules::resolve::Surroundings;
use firewall_tests::oracle::Rule;
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{Outcome, Program, VIF};

use super::common::*;

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 9);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 9);
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 255);
const ALL4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const ALL6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const ANY: Outcome = Outcome::ACCEPTED;
const NO: Outcome = Outcome::NOT_PERMITTED;

/// A gateway with its own addresses, and with clients that may send what one rule says.
fn gateway(rule: &[Rule]) -> Result<Program> {
    let mut program = Program::load_strict()?;
    let own = [(GATEWAY4.into(), Local::One), (GATEWAY6.into(), Local::One)];
    program.maps.set_locals(own.into_iter().chain([(BROADCAST.into(), Local::Many)]))?;
    for client in [CLIENT4, CLIENT6] {
        program.put(client, &rules(rule), &Surroundings::default())?;
    }
    Ok(program)
}

/// Where clients may want to send: through the gateway, to it, and to many.
fn everywhere() -> Vec<(IpAddr, IpAddr)> {
    let v4 = [SERVER4, GATEWAY4, BROADCAST, ALL4, Ipv4Addr::BROADCAST];
    let v6 = [SERVER6, GATEWAY6, ALL6];
    let v4 = v4.into_iter().map(|to| (CLIENT4, to.into()));
    v4.chain(v6.into_iter().map(|to| (CLIENT6, to.into()))).collect()
}

#[test]
fn rules_judge_all_traffic_in_a_gateway_and_what_they_accept_has_a_permit() -> Result<()> {
    let all = [(packets::TCP, 9050), (packets::UDP, 53), (packets::UDP, 5353), (packets::GRE, 0)];
    for (rule, expected, reason) in [
        (&[][..], NO, Reason::Default),
        (&[Rule::all(true)][..], ANY, Reason::Rule),
        (&[Rule::all(false)][..], NO, Reason::Rule),
    ] {
        let mut program = gateway(rule)?;
        for (client, to) in everywhere() {
            let ping = if to.is_ipv4() { (packets::ICMP, 8) } else { (packets::ICMPV6, 128) };
            for (protocol, port) in all.into_iter().chain([ping]) {
                let frame = packets::plain(client, to, protocol, port);
                let name = format!("{client} to {to}, {protocol} {port}, {reason:?}");
                // What is kept of the first answers the second.
                for _ in 0..2 {
                    if reason == Reason::Default {
                        check(&mut program, &name, &frame, expected, reason);
                    }
                    assert_eq!(program.send(&frame)?, expected, "{name}");
                }
            }
        }
        for client in [CLIENT4, CLIENT6] {
            assert_eq!(program.counted(Some(client), Reason::Local).packets, 0, "{reason:?}");
        }
    }
    Ok(())
}

#[test]
fn in_a_gateway_a_hop_limit_of_one_exempts_nothing() -> Result<()> {
    let mut program = gateway(&[])?;
    let tcp = packets::tcp(40000, 443);
    for hops in [1, 2, 64] {
        let mut v4 = V4::new(v4(CLIENT4), SERVER4, packets::TCP, &tcp).packet();
        v4[8] = hops;
        let sum = {
            v4[10..12].fill(0);
            packets::checksum(&v4[..20])
        };
        v4[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut v6 = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &tcp).packet();
        v6[7] = hops;
        let frames = [packets::ethernet(0x0800, &v4), packets::ethernet(0x86dd, &v6)];
        for frame in frames {
            check(&mut program, &format!("{hops} hops"), &frame, NO, Reason::Default);
        }
    }
    Ok(())
}

/// Neighbour discovery of a type, from the client.
fn discovery(kind: u8, to: Ipv6Addr) -> Vec<u8> {
    let mut message = packets::icmp(kind, 0);
    message.extend(v6(CLIENT6).octets());
    V6::new(v6(CLIENT6), to, packets::ICMPV6, &message).frame()
}

#[test]
fn in_a_gateway_only_arp_and_neighbour_discovery_with_it_need_no_rule() -> Result<()> {
    let mut program = gateway(&[])?;
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 0, 0x16, 0x3e, 0x5e, 0x6c, 1];
    arp.extend(v4(CLIENT4).octets());
    arp.extend([0; 10]);
    let arp = packets::ethernet(0x0806, &arp);
    check(&mut program, "ARP", &arp, NO, Reason::Arp);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 9);
    for to in [GATEWAY6, solicited] {
        for kind in [133, 134, 135, 136] {
            let name = format!("type {kind} to {to}");
            check(&mut program, &name, &discovery(kind, to), ANY, Reason::Local);
        }
        assert_eq!(program.send(&discovery(137, to))?, Outcome::DROPPED, "a redirect");
    }
    // With somebody beyond the gateway there is none.
    check(&mut program, "beyond", &discovery(135, SERVER6), NO, Reason::Default);
    Ok(())
}

#[test]
fn the_programs_of_a_gateway_stay_within_the_verifiers_budget() -> Result<()> {
    let verified = Program::load_strict()?.verified_instructions()?;
    assert!(verified < 250_000, "{verified}");
    Ok(())
}

#[test]
fn in_a_gateway_neighbour_discovery_has_its_share() -> Result<()> {
    let mut program = gateway(&[])?;
    let frame = discovery(135, GATEWAY6);
    // Faster than the budget grows.
    program.send_often(&frame, 20 * u32::try_from(NOTICES_BURST)?)?;
    assert!(program.counted(Some(CLIENT6), Reason::TooMany).packets > 0);
    program.rest()?;
    assert_eq!(program.send(&frame)?, ANY);
    Ok(())
}

#[test]
fn in_a_gateway_an_audit_counts_for_all_and_waiting_denies_all() -> Result<()> {
    let mut program = gateway(&[])?;
    let to_socks = packets::plain(CLIENT4, GATEWAY4.into(), packets::TCP, 9050);
    let client = ClientId { vif: VIF, address: CLIENT4 };
    program.maps.audit(client, u32::MAX)?;
    assert_eq!(program.send(&to_socks)?, ANY);
    program.maps.audit(client, 0)?;
    program.maps.settle(client)?;
    assert_eq!(program.send(&to_socks)?, NO);
    let mut program = gateway(&[])?;
    for (client, to) in everywhere() {
        program.install(client, &firewall_core::events::Installation::Waiting, 2)?;
        let frame = packets::plain(client, to, packets::TCP, 9050);
        check(&mut program, &format!("to {to}"), &frame, Outcome::DROPPED, Reason::Waiting);
    }
    Ok(())
}

#[test]
fn fragments_for_the_gateway_are_judged_by_their_first() -> Result<()> {
    for (rule, expected) in [(&[Rule::all(true)][..], ANY), (&[][..], Outcome::DROPPED)] {
        let mut program = gateway(rule)?;
        let datagram = packets::datagram(40000, 53, &[7; 64]);
        let first = V4 {
            fragment: 0x2000,
            ..V4::new(v4(CLIENT4), GATEWAY4, packets::UDP, &datagram[..40])
        };
        let last =
            V4 { fragment: 5, ..V4::new(v4(CLIENT4), GATEWAY4, packets::UDP, &datagram[40..]) };
        assert_eq!(program.send(&first.frame())?, expected);
        let later = if expected == ANY { NO } else { Outcome::DROPPED };
        assert_eq!(program.send(&last.frame())?, later);
    }
    Ok(())
}
