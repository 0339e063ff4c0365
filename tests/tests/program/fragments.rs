//! Fragments in the kernel program: each belongs to a datagram whose first one passed, and a
//! client has a share of the memory in which the kernel puts them together.

use std::net::IpAddr;

use firewall_common::abi::Local;

use anyhow::Result;
use firewall_common::fragments::{MAX_DISTANCE, MAX_WAITING, PLACES, SETS};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::fragments::{piece, pieces};
use firewall_tests::packets::{self, V4, V6, ethernet};
use firewall_tests::program::{Outcome, Program, VIF, proved};

use super::common::*;

/// Where datagrams of 3,000 bytes are cut.
const CUTS: [usize; 2] = [1208, 2416];
/// Data of a datagram that is cut there.
const DATA: [u8; 2992] = [7; 2992];

const FAMILIES: [IpAddr; 2] = [CLIENT4, CLIENT6];

fn server(client: IpAddr) -> IpAddr {
    Family::from(client).of([SERVER4.into(), SERVER6.into()])
}

/// A UDP packet without its frame.
fn udp(client: IpAddr, port: u16, data: &[u8]) -> Vec<u8> {
    let datagram = packets::datagram(40000, port, data);
    match client {
        IpAddr::V4(client) => V4::new(client, SERVER4, packets::UDP, &datagram).packet(),
        IpAddr::V6(client) => V6::new(client, SERVER6, packets::UDP, &datagram).packet(),
    }
}

fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

fn udp_443() -> Rule {
    Rule { proto: Some(Proto::Udp), ports: Some((443, 443)), ..Rule::all(true) }
}

/// Sends pieces in this order, each with what becomes of it and why.
#[track_caller]
fn sends(program: &mut Program, name: &str, pieces: &[(&Vec<u8>, Outcome, Reason)]) {
    for (index, (piece, outcome, reason)) in pieces.iter().enumerate() {
        check(program, &format!("{name}, piece {index}"), &frame(piece), *outcome, *reason);
    }
}

const PASSED: (Outcome, Reason) = (Outcome::NOT_PERMITTED, Reason::Fragment);
const STRAY: (Outcome, Reason) = (Outcome::DROPPED, Reason::StrayFragment);
const TOO_MANY: (Outcome, Reason) = (Outcome::DROPPED, Reason::TooManyFragments);

fn with((outcome, reason): (Outcome, Reason), piece: &Vec<u8>) -> (&Vec<u8>, Outcome, Reason) {
    (piece, outcome, reason)
}

/// An accepted first fragment, which the only rule counts.
fn accepted(program: &mut Program, name: &str, piece: &[u8]) {
    assert_eq!(program.send(&frame(piece)).expect("a test run"), Outcome::ACCEPTED, "{name}");
}

#[test]
fn a_fragment_is_handed_on_right_behind_the_one_before_it_and_not_else() -> Result<()> {
    for client in FAMILIES {
        let mut program = program_with(&rules(&[udp_443()]))?;
        let packet = udp(client, 443, &DATA);
        let [a, b, c] = &pieces(&packet, 1, &CUTS)[..] else { unreachable!("three pieces") };
        sends(&mut program, "before the first", &[with(STRAY, b), with(STRAY, c)]);
        accepted(&mut program, "the first", a);
        sends(&mut program, "a gap", &[with(STRAY, c)]);
        sends(&mut program, "in order", &[with(PASSED, b), with(STRAY, b), with(PASSED, c)]);
        sends(&mut program, "finished", &[with(STRAY, c), with(STRAY, b)]);
        // Others of the same sender have another identification, another destination.
        let others = pieces(&packet, 2, &CUTS);
        accepted(&mut program, "the first of another", a);
        sends(&mut program, "of nobody", &[with(STRAY, &others[1])]);
        sends(&mut program, "still its own", &[with(PASSED, b)]);
        // An accepted first fragment cannot take the place of one that the kernel may keep.
        sends(&mut program, "the same once more", &[with(STRAY, a), with(PASSED, c)]);
        accepted(&mut program, "when that one is finished", a);
    }
    Ok(())
}

/// An IPv6 fragment with all of a datagram. The kernel would end an unfinished datagram with its
/// identification, and keep what follows without anything in front.
#[test]
fn an_atomic_fragment_ends_nothing_that_is_not_finished() -> Result<()> {
    let mut program = program_with(&rules(&[udp_443()]))?;
    let packet = udp(CLIENT6, 443, &DATA);
    let [a, b, c] = &pieces(&packet, 1, &CUTS)[..] else { unreachable!("three pieces") };
    let atomic = |port, identification| {
        let small = udp(CLIENT6, port, b"all");
        piece(&small, identification, 0..small.len() - 40)
    };
    accepted(&mut program, "an atomic one", &atomic(443, 1));
    accepted(&mut program, "the first", a);
    sends(&mut program, "atomic, with its identification", &[with(STRAY, &atomic(443, 1))]);
    let denied = (Outcome::DROPPED, Reason::Default);
    sends(&mut program, "denied and atomic", &[with(denied, &atomic(444, 1))]);
    accepted(&mut program, "atomic, with another identification", &atomic(443, 2));
    sends(&mut program, "goes on", &[with(PASSED, b), with(PASSED, c)]);
    accepted(&mut program, "when that one is finished", &atomic(443, 1));
    // A second header of the kind could be the one that the kernel looks at.
    let twice = V6::new(v6(CLIENT6), SERVER6, packets::UDP, &packets::udp(1, 443))
        .with(packets::FRAGMENT, &packets::fragment(0, false))
        .with(packets::FRAGMENT, &packets::fragment(0, false));
    check(&mut program, "twice", &twice.frame(), Outcome::DROPPED, Reason::Malformed);
    Ok(())
}

#[test]
fn denied_fragments_are_not_handed_on_to_be_rejected() -> Result<()> {
    for client in FAMILIES {
        let mut program = program_with(&rules(&[udp_443()]))?;
        let denied = pieces(&udp(client, 444, &DATA), 1, &CUTS);
        let denied_one = with((Outcome::DROPPED, Reason::Default), &denied[0]);
        let later: Vec<_> = denied[1..].iter().map(|piece| with(STRAY, piece)).collect();
        sends(&mut program, "denied", &[denied_one]);
        sends(&mut program, "its others", &later);
        program.install(client, &Installation::Blocked, 2)?;
        let blocked = (Outcome::DROPPED, Reason::Blocked);
        let all: Vec<_> = denied.iter().map(|piece| with(blocked, piece)).collect();
        sends(&mut program, "blocked", &all);
    }
    Ok(())
}

#[test]
fn what_another_policy_let_pass_is_not_finished() -> Result<()> {
    for client in FAMILIES {
        let id = ClientId { vif: VIF, address: client };
        let packet = udp(client, 443, &DATA);
        let [a, b, _] = &pieces(&packet, 1, &CUTS)[..] else { unreachable!("three pieces") };
        let accept = || -> Result<Installation> {
            let policy = proved(client, &rules(&[Rule::all(true)]).file(), &known())?;
            Ok(Installation::Policy { policy, rules: 1 })
        };
        type Change = fn(&mut Program, ClientId, &Installation) -> Result<()>;
        let changes: [(&str, Change, (Outcome, Reason)); 4] = [
            ("the same rules", |it, id, all| it.install(id.address, all, 2), STRAY),
            (
                "blocked",
                |it, id, _| it.install(id.address, &Installation::Blocked, 2),
                (Outcome::DROPPED, Reason::Blocked),
            ),
            (
                "waiting",
                |it, id, _| it.install(id.address, &Installation::Waiting, 2),
                (Outcome::DROPPED, Reason::Waiting),
            ),
            (
                "gone and here again",
                |it, id, all| {
                    it.maps.remove(id)?;
                    it.install(id.address, all, 2)
                },
                STRAY,
            ),
        ];
        for (name, change, expected) in changes {
            let mut program = Program::load()?;
            program.install(client, &accept()?, 1)?;
            accepted(&mut program, name, a);
            change(&mut program, id, &accept()?)?;
            sends(&mut program, name, &[with(expected, b)]);
        }
        // Settling ends and nothing else changes.
        let mut program = Program::load()?;
        program.maps.put(id, &accept()?, 1)?;
        accepted(&mut program, "settling", a);
        program.maps.settle(id)?;
        sends(&mut program, "settled", &[with(PASSED, b)]);
    }
    Ok(())
}

#[test]
fn what_an_audit_let_pass_is_not_finished_after_its_end() -> Result<()> {
    for client in FAMILIES {
        let id = ClientId { vif: VIF, address: client };
        let mut program = program_with(&rules(&[]))?;
        let [a, b, c] = &pieces(&udp(client, 443, &DATA), 1, &CUTS)[..] else {
            unreachable!("three pieces")
        };
        program.maps.audit(id, u32::MAX)?;
        accepted(&mut program, "audited", a);
        sends(&mut program, "audited", &[with(PASSED, b)]);
        program.maps.audit(id, 0)?;
        sends(&mut program, "over", &[with(STRAY, c)]);
    }
    Ok(())
}

#[test]
fn a_fragment_is_dropped_while_another_processor_has_its_clients_datagrams() -> Result<()> {
    for client in FAMILIES {
        let mut program = program_with(&rules(&[udp_443()]))?;
        let first = piece(&udp(client, 443, &DATA), 1, 0..8);
        program.hold_datagrams(true)?;
        // The second one as well: what another one holds is not given back.
        sends(&mut program, "held", &[with(TOO_MANY, &first), with(TOO_MANY, &first)]);
        program.hold_datagrams(false)?;
        accepted(&mut program, "free", &first);
    }
    Ok(())
}

#[test]
fn unfinished_datagrams_take_no_more_than_a_clients_share() -> Result<()> {
    for client in FAMILIES {
        // One fragment each: places are used up, at first in one set, at last in all.
        let mut program = program_with(&rules(&[udp_443()]))?;
        let packet = udp(client, 443, &DATA);
        let first = |id: u16| frame(&piece(&packet, id, 0..8));
        let passes = |program: &mut Program, id: &u16| {
            program.send(&first(*id)).expect("a test run") == Outcome::ACCEPTED
        };
        let most = PLACES * SETS;
        let passed: Vec<u16> = (0..1000).filter(|id| passes(&mut program, id)).collect();
        let handed_on = passed.len();
        assert_eq!(handed_on, most, "{handed_on} of 1000 were handed on, and not {most}");
        let early = passed.iter().filter(|id| usize::from(**id) < most).count();
        let half = most / 2;
        assert!(early > half, "{early} of the first {most} were handed on, and not over {half}");
        let counted = program.counted(Some(client), Reason::TooManyFragments).packets;
        let others = 1000 - most as u64;
        assert_eq!(counted, others, "{counted} were counted as too many, and not {others}");
        // Another client has its own share.
        let other = FAMILIES.into_iter().find(|it| *it != client).expect("two");
        accepted(&mut program, "of another", &piece(&udp(other, 443, &DATA), 1, 0..8));
        // A datagram that is finished makes room.
        let rest = piece(&packet, *passed.last().expect("some"), 8..3000);
        sends(&mut program, "the rest of one", &[with(PASSED, &rest)]);
        let more = (2000..3000).filter(|id| passes(&mut program, id)).count();
        assert_eq!(more, 1, "{more} were handed on where one had made room");
        // Many fragments of one: the share is used up. Each of 8 bytes counts as 1,040.
        let mut program = program_with(&rules(&[udp_443()]))?;
        let most = MAX_WAITING as usize / 1_040;
        let packet = udp(client, 443, &vec![7; 8 * most + 8]);
        accepted(&mut program, "the first", &piece(&packet, 1, 0..8));
        for index in 1..most {
            let next = piece(&packet, 1, 8 * index..8 * index + 8);
            sends(&mut program, "the next", &[with(PASSED, &next)]);
        }
        let end = 8 * most;
        sends(&mut program, "too many", &[with(TOO_MANY, &piece(&packet, 1, end..end + 8))]);
        sends(&mut program, "the first of another", &[with(TOO_MANY, &piece(&packet, 2, 0..8))]);
        sends(
            &mut program,
            "the last takes no room",
            &[with(PASSED, &piece(&packet, 1, end..end + 16))],
        );
        accepted(&mut program, "and makes some", &piece(&packet, 2, 0..8));
    }
    Ok(())
}

#[test]
fn what_a_client_left_unfinished_is_not_the_next_ones() -> Result<()> {
    for client in FAMILIES {
        let mut program = program_with(&rules(&[udp_443()]))?;
        let packet = udp(client, 443, &DATA);
        for id in 0..1000 {
            program.send(&frame(&piece(&packet, id, 0..8)))?;
        }
        sends(&mut program, "full", &[with(TOO_MANY, &piece(&packet, 1000, 0..8))]);
        program.maps.remove(ClientId { vif: VIF, address: client })?;
        program.maps.quiesce()?;
        // It gets the index that was given back.
        program.put(client, &rules(&[udp_443()]), &known())?;
        accepted(&mut program, "of the next one", &piece(&packet, 1000, 0..8));
    }
    Ok(())
}

#[test]
fn a_datagram_that_the_kernel_gave_up_between_others_is_not_finished() -> Result<()> {
    let mut program = program_with(&rules(&[udp_443()]))?;
    let packet = udp(CLIENT4, 443, &DATA);
    let between = |program: &mut Program, datagrams: u32| {
        for id in 100..100 + datagrams as u16 {
            accepted(program, "one between", &piece(&packet, id, 0..8));
            sends(program, "one between", &[with(PASSED, &piece(&packet, id, 8..3000))]);
        }
    };
    accepted(&mut program, "the first", &piece(&packet, 1, 0..8));
    between(&mut program, MAX_DISTANCE / 2);
    sends(&mut program, "near enough", &[with(PASSED, &piece(&packet, 1, 8..16))]);
    between(&mut program, MAX_DISTANCE / 2 + 1);
    sends(&mut program, "too far", &[with(STRAY, &piece(&packet, 1, 16..24))]);
    Ok(())
}

#[test]
fn what_the_kernel_would_not_put_together_is_refused() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let plain = V4::new(v4(CLIENT4), SERVER4, packets::UDP, &packets::datagram(1, 2, &[3; 32]));
    let mut wrong_sum = V4 { fragment: 0x2000, ..plain.clone() }.frame();
    wrong_sum[24] ^= 1;
    let options = vec![7, 7, 4, 0, 0, 0, 0, 0];
    let mut wrong_options =
        V4 { fragment: 0x2000, options: options.clone(), ..plain.clone() }.frame();
    wrong_options[40] ^= 1;
    let cut = |length: usize| V4 { payload: plain.payload[..length].to_vec(), ..plain.clone() };
    let tcp = V6::new(v6(CLIENT6), SERVER6, packets::TCP, &packets::segment(1, 2, &[3; 12]));
    let first = packets::fragment(0, true);
    let none = packets::options(0);
    let malformed = [
        ("a wrong checksum", wrong_sum),
        ("a wrong checksum over options", wrong_options),
        ("an odd length", V4 { fragment: 0x2000, ..cut(12) }.frame()),
        ("no data", V4 { fragment: 0x0001, ..cut(0) }.frame()),
        (
            "options in front of an IPv6 fragment",
            tcp.clone().with(packets::HOP_BY_HOP, &none).with(packets::FRAGMENT, &first).frame(),
        ),
        (
            "an IPv6 fragment of a fragment",
            tcp.clone().with(packets::FRAGMENT, &first).with(packets::FRAGMENT, &first).frame(),
        ),
    ];
    for (name, frame) in malformed {
        check(&mut program, name, &frame, Outcome::DROPPED, Reason::Malformed);
    }
    let short = V6 { payload: tcp.payload[..16].to_vec(), ..tcp.clone() };
    let short = short.with(packets::FRAGMENT, &first).frame();
    check(&mut program, "half a TCP header", &short, Outcome::DROPPED, Reason::Truncated);
    let whole = tcp.with(packets::FRAGMENT, &first).frame();
    assert_eq!(program.send(&whole)?, Outcome::ACCEPTED);
    let right = V4 { fragment: 0x2000, options, ..plain }.frame();
    assert_eq!(program.send(&right)?, Outcome::ACCEPTED);
    Ok(())
}

#[test]
fn fragments_for_the_netvm_itself_follow_each_other_as_well() -> Result<()> {
    for client in FAMILIES {
        let mut program = program_with(&rules(&[]))?;
        program.maps.set_locals([(server(client), Local::One)])?;
        let pieces = pieces(&udp(client, 443, &DATA), 1, &CUTS);
        let local = (Outcome::NOT_PERMITTED, Reason::Local);
        sends(&mut program, "without the first", &[with(STRAY, &pieces[1])]);
        let in_order: Vec<_> = pieces.iter().map(|piece| with(local, piece)).collect();
        sends(&mut program, "in order", &in_order);
    }
    Ok(())
}
