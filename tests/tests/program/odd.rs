//! Frames that no honest client sends, each with the reason why it is dropped.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::Outcome;

use super::common::*;

/// Frames that never reach the rules, with their reasons.
pub fn odd_frames() -> Vec<(&'static str, Vec<u8>, Reason)> {
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
        ("IPv4 to one in a frame to many", edited(v4_plain.frame(), 0, 1), Reason::Malformed),
        ("IPv6 to one in a frame to many", edited(v6_plain.frame(), 0, 1), Reason::Malformed),
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
            Reason::Malformed,
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
            "IPv6 first fragment without data",
            {
                let packet = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &[]);
                packet.with(packets::FRAGMENT, &packets::fragment(0, true)).frame()
            },
            Reason::Malformed,
        ),
        (
            "IPv6 first fragment without the whole TCP header",
            {
                let packet = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &tcp[..16]);
                packet.with(packets::FRAGMENT, &packets::fragment(0, true)).frame()
            },
            Reason::Truncated,
        ),
        (
            "IPv6 first fragment ends in its headers",
            {
                let packet =
                    V6::new(v6(CLIENT6), SERVER6, packets::DESTINATION, &[6, 2, 1, 4, 0, 0, 0, 0]);
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
            "IPv4 redirect",
            { V4::new(v4(CLIENT4), SERVER4, packets::ICMP, &packets::icmp(5, 1)).frame() },
            Reason::Redirect,
        ),
        (
            "IPv6 redirect",
            { V6::new(v6(CLIENT6), SERVER6, packets::ICMPV6, &packets::icmp(137, 0)).frame() },
            Reason::Redirect,
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
            Reason::Arp | Reason::Local => "what_is_the_kernels_is_handed_on_without_the_permit",
            Reason::OverBudget => "denied_packets_over_the_budget_are_dropped_and_counted",
            Reason::Audit => "an_audited_clients_denied_packets_pass_and_are_counted_until_its_end",
            Reason::ConnectedSource | Reason::ConnectedDestination => {
                "a_clients_address_passes_no_other_link"
            }
            Reason::ForeignNeighbour => "a_guard_lets_clients_speak_for_themselves_only",
            Reason::Fragment | Reason::StrayFragment => {
                "a_fragment_is_handed_on_right_behind_the_one_before_it_and_not_else"
            }
            Reason::TooManyFragments => "unfinished_datagrams_take_no_more_than_a_clients_share",
            Reason::IcmpError | Reason::ForeignError => {
                "an_icmp_error_passes_only_if_it_quotes_a_packet_to_its_sender"
            }
            Reason::Answer => "what_answers_a_connection_towards_a_client_is_not_denied",
            Reason::Settling => "an_icmp_error_is_dropped_while_its_connection_may_have_to_end",
            Reason::TooMany => "what_is_for_the_netvm_has_a_budget_of_new_flows_and_of_notices",
            Reason::Outdated => "what_waited_for_a_neighbour_does_not_leave_after_a_rule_change",
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
