//! Audits in the agent's memory: when they begin, what the kernel is told, and when they end.

use std::time::Duration;

use firewall_common::packet::{Packet, Protocol};
use firewall_core::client::ClientId;
use firewall_core::events::{Effect, Event, Notice};
use firewall_core::time::Moment;
use firewall_core::world::World;
use firewall_core::world::audits::LONGEST;

use super::memory::*;

const CLIENT: &str = "10.137.0.1";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(second: u64) -> Moment {
    Moment::after_boot(seconds(second))
}

fn audit(length: u64, now: u64) -> When {
    When(at(now), Event::Audit { client: address(CLIENT), length: seconds(length) })
}

/// A world with one client, which has these rules.
fn with(text: &str) -> World {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &[CLIENT])]));
    step(&mut world, rules(CLIENT, text));
    settle(&mut world);
    world
}

/// What the log is told of audits.
fn told(effects: &[Effect]) -> Vec<Option<u64>> {
    let notices = effects.iter().filter_map(|effect| match effect {
        Effect::Tell(Notice::Audited { left, .. }) => Some(Some(left.as_secs())),
        Effect::Tell(Notice::AuditEnded { .. }) => Some(None),
        _ => None,
    });
    notices.collect()
}

#[test]
fn an_audit_begins_reminds_and_ends_by_itself() {
    let mut world = with(DROP);
    let effects = step(&mut world, audit(90, 1000));
    assert_eq!(short(&effects), ["audit 10.137.0.1 1090"]);
    assert_eq!(told(&effects), [Some(90)]);
    assert_eq!(world.next_time(), Some(at(1060)));
    let effects = step(&mut world, When(at(1060), Event::Time));
    assert_eq!((short(&effects), told(&effects)), (vec![], vec![Some(30)]));
    assert_eq!(world.next_time(), Some(at(1090)));
    let effects = step(&mut world, When(at(1090), Event::Time));
    assert_eq!(short(&effects), ["audit 10.137.0.1 0"]);
    assert_eq!(told(&effects), [None]);
    assert!(world.is_to_become_quiet(), "what it had open is not ended");
    assert_eq!(world.next_time(), None);
    assert_eq!(clients(&world)[0].audit_seconds_left, None);
}

#[test]
fn an_audit_can_be_ended_or_made_longer() {
    let mut world = with(DROP);
    check(&mut world, audit(90, 1000), &["audit 10.137.0.1 1090"]);
    check(&mut world, audit(600, 1001), &["audit 10.137.0.1 1601"]);
    check(&mut world, audit(0, 1002), &["audit 10.137.0.1 0"]);
    check(&mut world, audit(0, 1003), &[]);
}

#[test]
fn an_audit_lasts_a_day_at_most_and_whole_seconds_at_least() {
    let mut world = with(DROP);
    let longest = 1000 + LONGEST.as_secs();
    check(&mut world, audit(u64::from(u32::MAX), 1000), &[&format!("audit {CLIENT} {longest}")]);
    let (length, now) = (Duration::from_millis(1500), at(1000) + Duration::from_millis(300));
    let event = Event::Audit { client: address(CLIENT), length };
    check(&mut world, When(now, event), &["audit 10.137.0.1 1002"]);
}

#[test]
fn who_has_no_policy_is_not_audited() {
    for text in [None, Some(BROKEN)] {
        let mut world = running();
        assert!(world.may_audit(address(CLIENT), seconds(90)).is_err(), "{CLIENT} is not there");
        check(&mut world, audit(90, 1000), &[]);
        step(&mut world, links(&[(7, "vif1.0", &[CLIENT])]));
        if let Some(text) = text {
            step(&mut world, rules(CLIENT, text));
        }
        assert!(world.may_audit(address(CLIENT), seconds(90)).is_err(), "{text:?}");
        check(&mut world, audit(90, 1000), &[]);
        assert_eq!(world.next_time(), None);
    }
    assert_eq!(with(DROP).may_audit(address(CLIENT), seconds(90)), Ok(()));
}

#[test]
fn new_rules_are_audited_as_well_and_a_client_that_comes_again_is_not() {
    let mut world = with(DROP);
    step(&mut world, audit(90, 1000));
    let expected = ["policy 7 10.137.0.1", "audit 10.137.0.1 1090"];
    check(&mut world, rules(CLIENT, ACCEPT), &expected);
    let both = links(&[(7, "vif1.0", &[CLIENT]), (8, "vif1.1", &[CLIENT])]);
    let expected = ["policy 8 10.137.0.1", "audit 10.137.0.1 1090", "attach 8 vif1.1"];
    check(&mut world, both, &expected);
    let effects = step(&mut world, links(&[]));
    assert_eq!(told(&effects), [None]);
    check(
        &mut world,
        links(&[(9, "vif1.0", &[CLIENT])]),
        &["policy 9 10.137.0.1", "attach 9 vif1.0"],
    );
}

#[test]
fn while_a_client_is_audited_nothing_that_rules_deny_is_cut() {
    let mut world = with(DROP);
    let client = ClientId { vif: 7, address: address(CLIENT) };
    let packet = Packet {
        protocol: Protocol::Tcp,
        port: 443,
        ..Packet::of_addresses(client.address.into(), address("198.51.100.7").into())
    };
    assert!(world.judge_of(client)(&packet));
    step(&mut world, audit(90, 1000));
    assert!(!world.judge_of(client)(&packet));
    step(&mut world, rules(CLIENT, BROKEN));
    assert!(world.judge_of(client)(&packet), "blocked is not audited");
    step(&mut world, rules(CLIENT, DROP));
    assert!(!world.judge_of(client)(&packet));
    step(&mut world, When(at(1090), Event::Time));
    assert!(world.judge_of(client)(&packet));
}
