//! What did not work, in the agent's memory: what is so meanwhile, and when it is tried again.

use std::time::Duration;

use firewall_common::abi::Local;

use firewall_core::client::{ClientId, Links, Vif};
use firewall_core::events::{Effect, Event, Notice, Task, Why};
use firewall_core::time::Moment;
use firewall_core::told::status::State;
use firewall_core::world::World;

use super::memory::*;

const CLIENT: &str = "10.137.0.1";

fn client() -> ClientId {
    ClientId { vif: 7, address: address(CLIENT) }
}

fn at(second: u64) -> Moment {
    Moment::after_boot(Duration::from_secs(second))
}

fn time(now: u64) -> When {
    When(at(now), Event::Time)
}

fn tried(task: Task, outcome: Result<(), &str>, now: u64) -> When {
    When(at(now), Event::Tried { task, outcome: outcome.map_err(Why::of) })
}

/// A world with one client, which may do anything.
fn one() -> World {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &[CLIENT])]));
    step(&mut world, rules(CLIENT, ACCEPT));
    settle(&mut world);
    step(&mut world, time(0));
    world
}

fn reason(world: &World) -> String {
    let problem = clients(world)[0].problem.clone();
    problem.map(|problem| problem.reason).unwrap_or_default()
}

/// What the log is told of blocked clients and of what does not work.
fn told(effects: &[Effect]) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::Tell(Notice::Blocked { why, .. }) => Some(format!("blocked: {why}")),
        Effect::Tell(Notice::Failing { why: Some(why), .. }) => Some(why.clone()),
        Effect::Tell(Notice::Failing { why: None, .. }) => Some("works".to_owned()),
        _ => None,
    };
    effects.iter().filter_map(line).collect()
}

#[test]
fn a_client_that_the_kernel_refuses_for_now_is_blocked_and_tried_again_until_it_works() {
    let mut world = one();
    check(&mut world, rules(CLIENT, DROP), &["policy 7 10.137.0.1"]);
    let effects = step(&mut world, refused(client(), "no memory", true, 100));
    assert_eq!(short(&effects), ["blocked 7 10.137.0.1"]);
    assert_eq!(told(&effects), ["blocked: no memory; it is tried again"]);
    // That worked; it is not what was wanted.
    check(&mut world, tried(Task::Put(client()), Ok(()), 100), &[]);
    let mut now = 100;
    for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(clients(&world)[0].state, State::Blocked);
        assert_eq!(reason(&world), "no memory; it is tried again");
        assert_eq!(world.next_time(), Some(at(now + pause)));
        check(&mut world, time(now + pause - 1), &[]);
        now += pause;
        check(&mut world, time(now), &["policy 7 10.137.0.1"]);
        // It still is blocked in the kernel, and the log knows.
        let effects = step(&mut world, refused(client(), "no memory", true, now));
        assert_eq!((short(&effects), told(&effects)), (vec![], vec![]));
    }
    now += 60;
    check(&mut world, time(now), &["policy 7 10.137.0.1"]);
    let effects = step(&mut world, tried(Task::Put(client()), Ok(()), now));
    assert_eq!(told(&effects), ["works"]);
    assert_eq!(clients(&world)[0].state, State::Live);
    assert_eq!(world.next_time(), None);
    // The next time it was live before: it must not stay so.
    check(&mut world, rules(CLIENT, ACCEPT), &["policy 7 10.137.0.1"]);
    check(&mut world, refused(client(), "no memory", true, now), &["blocked 7 10.137.0.1"]);
    assert_eq!(world.next_time(), Some(at(now + 1)));
}

#[test]
fn what_is_the_rules_own_fault_is_tried_again_when_they_change() {
    let mut world = one();
    check(&mut world, rules(CLIENT, DROP), &["policy 7 10.137.0.1"]);
    check(&mut world, refused(client(), "too many", false, 100), &["blocked 7 10.137.0.1"]);
    assert_eq!(reason(&world), "too many");
    assert_eq!(world.next_time(), None);
    check(&mut world, time(100_000), &[]);
    check(&mut world, rules(CLIENT, ACCEPT), &["policy 7 10.137.0.1"]);
    assert_eq!(clients(&world)[0].state, State::Live);
}

#[test]
fn where_not_even_reject_all_fits_the_kernel_knows_no_client_until_its_rules_fit() {
    let mut world = one();
    check(&mut world, rules(CLIENT, DROP), &["policy 7 10.137.0.1"]);
    check(&mut world, refused(client(), "no memory", true, 100), &["blocked 7 10.137.0.1"]);
    check(&mut world, refused(client(), "no memory", true, 100), &["remove 7 10.137.0.1"]);
    // Nor can it be removed: then that is tried again, until it can, or something fits.
    check(&mut world, tried(Task::Remove(client()), Err("no memory"), 100), &[]);
    let again = ["policy 7 10.137.0.1", "remove 7 10.137.0.1"];
    let effects = step(&mut world, time(101));
    // Only one of the two comes first; whatever comes of it, the client is not what it was.
    assert_eq!(short(&effects), [again[0]], "{effects:?}");
    check(&mut world, refused(client(), "no memory", true, 101), &["blocked 7 10.137.0.1"]);
}

#[test]
fn other_rules_are_tried_at_once_and_count_failures_anew() {
    let mut world = one();
    check(&mut world, rules(CLIENT, DROP), &["policy 7 10.137.0.1"]);
    let mut now = 100;
    check(&mut world, refused(client(), "no memory", true, now), &["blocked 7 10.137.0.1"]);
    for pause in [1, 2, 4] {
        now += pause;
        check(&mut world, time(now), &["policy 7 10.137.0.1"]);
        check(&mut world, refused(client(), "no memory", true, now), &[]);
    }
    check(&mut world, rules(CLIENT, ACCEPT), &["policy 7 10.137.0.1"]);
    check(&mut world, refused(client(), "no memory", true, now), &[]);
    assert_eq!(world.next_time(), Some(at(now + 1)));
    // A client that goes is not tried any more.
    check(&mut world, links(&[]), &["remove 7 10.137.0.1", "forget 7"]);
    assert_eq!(world.next_time(), None);
}

#[test]
fn whatever_is_not_done_is_told_and_done_again_until_it_works() {
    let locals = || Links {
        vifs: vec![Vif {
            index: 7,
            name: "vif1.0".to_owned(),
            addresses: [address(CLIENT)].into(),
        }],
        locals: [(address("10.137.0.254"), Local::One)].into(),
        ..Links::default()
    };
    let mut world = one();
    step(&mut world, Event::Links(locals()));
    step(
        &mut world,
        When(at(100), Event::Audit { client: address(CLIENT), length: Duration::from_secs(1000) }),
    );
    let is_locals = |effect: &Effect| matches!(effect, Effect::SetLocals(it) if it.len() == 1);
    let is_connected = |effect: &Effect| matches!(effect, Effect::SetConnected(_));
    let is_audit = |effect: &Effect| matches!(effect, Effect::Audit { until: 1100, .. });
    let is_forget = |effect: &Effect| matches!(effect, Effect::Forget { link: 9 });
    let is_taken = |effect: &Effect| matches!(effect, Effect::TakenOver(_));
    let is_settled = |effect: &Effect| matches!(effect, Effect::Settled(_));
    let gone = ClientId { vif: 9, address: address("10.137.0.9") };
    let is_remove = |effect: &Effect| matches!(effect, Effect::Remove(it) if *it == gone);
    let is_links = |effect: &Effect| matches!(effect, Effect::ReadLinks);
    type Case<'a> = (Task, &'a dyn Fn(&Effect) -> bool);
    let cases: [Case<'_>; 8] = [
        (Task::Links, &is_links),
        (Task::Locals, &is_locals),
        (Task::Connected, &is_connected),
        (Task::Audit(client()), &is_audit),
        (Task::Remove(gone), &is_remove),
        (Task::Forget(9), &is_forget),
        (Task::TakenOver, &is_taken),
        (Task::Settled(client()), &is_settled),
    ];
    for (task, is_it) in cases {
        settle(&mut world);
        let effects = step(&mut world, tried(task, Err("busy"), 200));
        assert_eq!(told(&effects), ["busy"], "{task:?}");
        let failing = status_at(&world, at(200)).agent.failing;
        assert_eq!(failing.len(), 1, "{failing:?}");
        assert_eq!(
            (failing[0].why.as_str(), failing[0].next_seconds_left),
            ("busy", 1),
            "{task:?}"
        );
        assert_eq!(world.next_time().map(|it| it <= at(201)), Some(true), "{task:?}");
        let effects = step(&mut world, time(201));
        assert_eq!(effects.iter().filter(|it| is_it(it)).count(), 1, "{task:?}: {effects:?}");
        // The same again is no news, and waits longer.
        assert_eq!(told(&step(&mut world, tried(task, Err("busy"), 201))), [""; 0], "{task:?}");
        assert!(!step(&mut world, time(202)).iter().any(is_it), "{task:?}");
        assert_eq!(
            step(&mut world, time(203)).iter().filter(|it| is_it(it)).count(),
            1,
            "{task:?}"
        );
        assert_eq!(told(&step(&mut world, tried(task, Ok(()), 203))), ["works"], "{task:?}");
        assert_eq!(status_at(&world, at(203)).agent.failing, [], "{task:?}");
        assert!(!step(&mut world, time(300)).iter().any(is_it), "{task:?}");
    }
}

#[test]
fn what_nobody_needs_any_more_is_not_tried_again() {
    let mut world = one();
    // A client that came again has what it is to have; removing it would be wrong.
    step(&mut world, tried(Task::Remove(client()), Err("busy"), 100));
    // A link that is there again has its pins.
    step(&mut world, tried(Task::Forget(7), Err("busy"), 100));
    let gone = ClientId { vif: 9, address: address("10.137.0.9") };
    step(&mut world, tried(Task::Audit(gone), Err("busy"), 100));
    step(&mut world, tried(Task::Settled(gone), Err("busy"), 100));
    assert_eq!(status_at(&world, at(100)).agent.failing.len(), 4);
    check(&mut world, time(101), &[]);
    assert_eq!(status_at(&world, at(101)).agent.failing, []);
    assert_eq!(world.next_time(), None);
    // Denied packets of a client that settles anew must not be rejected too early.
    step(&mut world, tried(Task::Settled(client()), Err("busy"), 200));
    assert!(world.is_settling(client()));
    step(&mut world, rules(CLIENT, DROP));
    let effects = step(&mut world, time(201));
    assert!(!effects.iter().any(|it| matches!(it, Effect::Settled(_))), "{effects:?}");
    assert!(world.is_settling(client()));
}
