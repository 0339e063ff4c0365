//! Clients that settle, in the agent's memory: which connections end, and when the client has
//! settled.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use firewall_common::abi::Local;

use firewall_common::packet::{Packet, Protocol};
use firewall_core::client::ClientId;
use firewall_core::connection::Flow;
use firewall_core::events::{Effect, Event, Task, Why};
use firewall_core::time::Moment;
use firewall_core::world::World;

use super::memory::*;

const A: &str = "10.137.0.1";
const B: &str = "10.137.0.2";
const WEB: &str = "policy = drop\n0000 = action=accept proto=tcp dstports=443-443\ncommit\n";

fn client(vif: u32, text: &str) -> ClientId {
    ClientId { vif, address: address(text) }
}

/// A connection over TCP.
fn flow(from: &str, port: u16) -> Flow {
    let addresses = Packet::of_addresses(address(from).into(), address("198.51.100.7").into());
    let packet = Packet { protocol: Protocol::Tcp, number: 6, port, ..addresses };
    Flow { packet, answer: None, family: 2, name: port.to_be_bytes().to_vec() }
}

/// Two clients that may do anything, and have settled.
fn two() -> World {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &[A]), (8, "vif2.0", &[B])]));
    step(&mut world, rules(A, ACCEPT));
    step(&mut world, rules(B, ACCEPT));
    settle(&mut world);
    world
}

/// What is to be done about settling, in short.
fn settling(effects: &[Effect]) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::ReadConnections(of) => {
            let of: Vec<String> = of.iter().map(IpAddr::to_string).collect();
            Some(format!("read {}", of.join(" ")))
        }
        Effect::Disconnect(flows) => {
            let flows = flows.iter().map(|flow| format!("{}:{}", flow.source(), flow.packet.port));
            Some(format!("end {}", flows.collect::<Vec<_>>().join(" ")))
        }
        Effect::Settled(client) => Some(format!("settled {}", client.address)),
        Effect::Handled(client) => Some(format!("handled {client}")),
        _ => None,
    };
    effects.iter().filter_map(line).collect()
}

#[track_caller]
fn check(world: &mut World, event: impl Into<When>, expected: &[&str]) {
    assert_eq!(settling(&step(world, event)), expected);
}

fn quiet() -> Event {
    Event::Tried { task: Task::Tidy, outcome: Ok(()) }
}

fn read(outcome: Result<(), &str>, seconds: u64) -> When {
    When(at(seconds), Event::ConnectionsRead(outcome.map_err(Why::of)))
}

fn refused(of: &[(&str, &str)]) -> Event {
    let refused = of.iter().map(|(client, why)| (address(client), (*why).to_owned()));
    Event::Disconnected { gone: 1, refused: refused.collect::<BTreeMap<_, _>>() }
}

fn at(second: u64) -> Moment {
    Moment::after_boot(Duration::from_secs(second))
}

fn time(seconds: u64) -> When {
    When(at(seconds), Event::Time)
}

#[test]
fn whatever_is_put_in_force_settles() {
    let mut world = running();
    let mut check = |event: When, expected: &[&str]| {
        step(&mut world, event);
        for address in [A, B] {
            let is_settling = world.is_settling(client(7, address));
            assert_eq!(is_settling, expected.contains(&address), "{address}");
        }
        settle(&mut world);
    };
    check(links(&[(7, "vif1.0", &[A, B])]).into(), &[A, B]);
    check(rules(A, ACCEPT).into(), &[A]);
    check(rules(A, ACCEPT).into(), &[]);
    check(rules(A, BROKEN).into(), &[A]);
    check(super::memory::refused(client(7, A), "", false, 0), &[A]);
    check(Event::Rules { client: address(B), rules: Some(Ok(ruleset(B, DROP))) }.into(), &[B]);
    check(Event::Rules { client: address(B), rules: None }.into(), &[B]);
}

#[test]
fn what_a_settling_client_has_open_and_must_not_have_ends_and_nothing_else() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    assert!(world.is_settling(client(7, A)));
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    let part = vec![flow(A, 22), flow(A, 443), flow(B, 22), flow(A, 80)];
    check(&mut world, Event::Connections(part), &["end 10.137.0.1:22 10.137.0.1:80"]);
    check(&mut world, Event::Connections(vec![flow(A, 443)]), &[]);
    check(&mut world, refused(&[]), &[]);
    assert!(world.is_settling(client(7, A)));
    check(&mut world, read(Ok(()), 1), &["settled 10.137.0.1", "handled 10.137.0.1"]);
    assert!(!world.is_settling(client(7, A)));
    // Nobody settles, and nothing is read.
    check(&mut world, quiet(), &[]);
    check(&mut world, Event::Connections(vec![flow(A, 22)]), &[]);
}

#[test]
fn nothing_is_read_before_packets_that_old_rules_accepted_have_gone() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    let failed = Event::Tried { task: Task::Tidy, outcome: Err(Why::of("no memory")) };
    check(&mut world, When(at(10), failed), &[]);
    check(&mut world, time(10), &[]);
    assert!(world.is_settling(client(7, A)));
    let failing = status_at(&world, at(10)).agent.failing;
    assert_eq!(failing.len(), 1, "{failing:?}");
    assert_eq!((failing[0].why.as_str(), failing[0].next_seconds_left), ("no memory", 1));
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    assert_eq!(status_at(&world, at(10)).agent.failing, []);
}

#[test]
fn a_client_that_settles_anew_while_the_table_is_read_waits_for_another_reading() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, rules(B, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1 10.137.0.2"]);
    check(&mut world, rules(A, DROP), &[]);
    // It is not judged now: all of it will be.
    let part = || Event::Connections(vec![flow(A, 22), flow(B, 22)]);
    check(&mut world, part(), &["end 10.137.0.2:22"]);
    // A second reading does not begin beside the first one.
    check(&mut world, quiet(), &[]);
    let ended = ["settled 10.137.0.2", "handled 10.137.0.2", "read 10.137.0.1"];
    check(&mut world, read(Ok(()), 1), &ended);
    check(&mut world, part(), &["end 10.137.0.1:22"]);
    // Its rules were written twice.
    let ended = ["settled 10.137.0.1", "handled 10.137.0.1", "handled 10.137.0.1"];
    check(&mut world, read(Ok(()), 2), &ended);
}

#[test]
fn what_is_read_is_judged_by_what_is_in_force_then() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    check(&mut world, Event::Connections(vec![flow(A, 22)]), &["end 10.137.0.1:22"]);
    // The netvm's own addresses are nobody's rules' business, from now on.
    let vif = |index, name: &str, it: &str| firewall_core::client::Vif {
        index,
        name: name.to_owned(),
        addresses: [address(it)].into(),
    };
    let links = firewall_core::client::Links {
        vifs: vec![vif(7, "vif1.0", A), vif(8, "vif2.0", B)],
        locals: [(address("198.51.100.7"), Local::One)].into(),
        ..Default::default()
    };
    check(&mut world, Event::Links(links), &[]);
    check(&mut world, Event::Connections(vec![flow(A, 22)]), &[]);
}

#[test]
fn a_connection_that_cannot_be_ended_keeps_its_own_client_settling_and_no_other() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, rules(B, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1 10.137.0.2"]);
    let part = || Event::Connections(vec![flow(A, 22), flow(B, 22)]);
    check(&mut world, part(), &["end 10.137.0.1:22 10.137.0.2:22"]);
    check(&mut world, refused(&[(A, "busy")]), &[]);
    check(&mut world, read(Ok(()), 100), &["settled 10.137.0.2", "handled 10.137.0.2"]);
    assert!(world.is_settling(client(7, A)));
    assert!(!world.is_settling(client(8, B)));
    let failing = status_at(&world, at(100)).agent.failing;
    assert_eq!(failing.len(), 1, "{failing:?}");
    assert!(failing[0].what.contains("connections of 10.137.0.1"), "{failing:?}");
    assert_eq!((failing[0].why.as_str(), failing[0].next_seconds_left), ("busy", 1));
    // It is tried again by itself, later each time.
    check(&mut world, time(100), &[]);
    let mut now = 100;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(world.next_time(), Some(at(now + pause)));
        check(&mut world, time(now + pause - 1), &[]);
        now += pause;
        check(&mut world, time(now), &["read 10.137.0.1"]);
        // While it is being tried there is nothing to wait for.
        assert_eq!(world.next_time(), None);
        check(&mut world, part(), &["end 10.137.0.1:22"]);
        check(&mut world, refused(&[(A, "busy")]), &[]);
        check(&mut world, read(Ok(()), now), &[]);
    }
    check(&mut world, time(now + 60), &["read 10.137.0.1"]);
    let settled = ["settled 10.137.0.1", "handled 10.137.0.1"];
    check(&mut world, read(Ok(()), now + 60), &settled);
    assert_eq!(status_at(&world, Moment::BOOT).agent.failing, []);
    assert_eq!(world.next_time(), None);
}

#[test]
fn a_table_that_is_not_read_to_its_end_settles_nobody_and_is_read_again() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    check(&mut world, Event::Connections(vec![flow(A, 22)]), &["end 10.137.0.1:22"]);
    check(&mut world, read(Err("no such module"), 100), &[]);
    assert!(world.is_settling(client(7, A)));
    let failing = status_at(&world, at(100)).agent.failing;
    assert_eq!((failing.len(), failing[0].why.as_str()), (1, "no such module"));
    // Whoever settles meanwhile waits as well.
    check(&mut world, rules(B, WEB), &[]);
    check(&mut world, quiet(), &[]);
    check(&mut world, time(101), &["read 10.137.0.1 10.137.0.2"]);
    let settled =
        ["settled 10.137.0.1", "settled 10.137.0.2", "handled 10.137.0.1", "handled 10.137.0.2"];
    check(&mut world, read(Ok(()), 102), &settled);
    assert_eq!(status_at(&world, Moment::BOOT).agent.failing, []);
}

#[test]
fn a_client_that_goes_is_not_waited_for() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, rules(B, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1 10.137.0.2"]);
    // Its rules are as much in force as they can be.
    check(&mut world, links(&[(8, "vif2.0", &[B])]), &["handled 10.137.0.1"]);
    let settled = ["settled 10.137.0.2", "handled 10.137.0.2"];
    check(&mut world, read(Ok(()), 1), &settled);
    // Nor is a table that cannot be read, if nobody is left for whom it would be.
    check(&mut world, rules(B, DROP), &[]);
    check(&mut world, quiet(), &["read 10.137.0.2"]);
    check(&mut world, read(Err("no memory"), 1), &[]);
    check(&mut world, links(&[]), &["handled 10.137.0.2"]);
    check(&mut world, time(1), &[]);
    assert_eq!(status_at(&world, Moment::BOOT).agent.failing, []);
    assert_eq!(world.next_time(), None);
}

#[test]
fn each_time_that_rules_were_written_is_told_when_what_they_deny_has_ended() {
    let mut world = two();
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, rules(A, DROP), &[]);
    check(&mut world, rules(A, DROP), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    let handled = ["settled 10.137.0.1", "handled 10.137.0.1", "handled 10.137.0.1"];
    check(&mut world, read(Ok(()), 1), &[&handled[..], &handled[1..2]].concat());
    check(&mut world, rules(A, DROP), &["handled 10.137.0.1"]);
}

#[test]
fn rules_are_handled_when_what_they_deny_has_ended_behind_every_vif_of_the_client() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &[A]), (8, "vif1.1", &[A])]));
    settle(&mut world);
    check(&mut world, rules(A, WEB), &[]);
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    check(&mut world, super::memory::refused(client(8, A), "no room", false, 0), &[]);
    check(&mut world, read(Ok(()), 1), &["settled 10.137.0.1"]);
    check(&mut world, quiet(), &["read 10.137.0.1"]);
    check(&mut world, read(Ok(()), 2), &["settled 10.137.0.1", "handled 10.137.0.1"]);
}

#[test]
fn what_takes_nothing_away_ends_nothing_and_is_handled_at_once() {
    let settled = |text: &str| {
        let mut world = two();
        step(&mut world, rules(A, text));
        settle(&mut world);
        world
    };
    let check_settles = |world: &mut World, text: &str, expected: bool| {
        let effects = step(world, rules(A, text));
        let put = effects.iter().find_map(|effect| match effect {
            Effect::Put { client, settles, .. } => Some((client.address, *settles)),
            _ => None,
        });
        assert_eq!(put, Some((address(A), expected)), "{text}");
        assert_eq!(world.is_settling(client(7, A)), expected, "{text}");
        let handled = if expected { vec![] } else { vec!["handled 10.137.0.1"] };
        assert_eq!(settling(&effects), handled, "{text}");
    };
    check_settles(&mut settled(WEB), ACCEPT, false);
    check_settles(&mut settled(DROP), WEB, false);
    check_settles(&mut settled(ACCEPT), WEB, true);
    check_settles(&mut settled(WEB), DROP, true);
    check_settles(&mut settled(WEB), BROKEN, true);
    // Whoever was blocked may have had its rules long ago.
    check_settles(&mut settled(BROKEN), WEB, true);
    // Nothing is known of a client that settles, whatever comes last.
    let mut world = settled(ACCEPT);
    check_settles(&mut world, WEB, true);
    check_settles(&mut world, ACCEPT, true);
    // What an audit let pass is denied by either rules.
    let mut world = settled(WEB);
    step(&mut world, Event::Audit { client: address(A), length: Duration::from_secs(60) });
    settle(&mut world);
    check_settles(&mut world, ACCEPT, true);
    // What the kernel refused is not in force.
    let mut world = settled(WEB);
    step(&mut world, super::memory::refused(client(7, A), "no room", false, 0));
    settle(&mut world);
    check_settles(&mut world, ACCEPT, true);
}
