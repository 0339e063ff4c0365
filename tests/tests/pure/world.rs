//! The agent's memory: what it answers to what happens.

use std::collections::BTreeSet;
use std::net::IpAddr;

use firewall_agent::events::{ClientId, Effect, Event, Installation, Links, SourceError, Vif};
use firewall_agent::rules::resolve::Surroundings;
use firewall_agent::sources::files;
use firewall_agent::status::State;
use firewall_agent::world::World;

const ACCEPT: &str = "policy = drop\n0000 = action=accept\ncommit\n";
const DROP: &str = "policy = drop\ncommit\n";
const BROKEN: &str = "policy = drop\n0000 = action=accept";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn links(vifs: &[(u32, &str, &[&str])]) -> Event {
    let vif = |(index, name, addresses): &(u32, &str, &[&str])| Vif {
        index: *index,
        name: (*name).to_owned(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
    };
    Event::Links(Links { vifs: vifs.iter().map(vif).collect(), locals: BTreeSet::new() })
}

fn rules(client: &str, text: &str) -> Event {
    let client = address(client);
    let rules = files::ruleset(client, text);
    let rules = rules.map_err(|error| SourceError { origin: "a file".to_owned(), error });
    Event::Rules { client, rules: Some(rules) }
}

/// Effects in short, without log lines and generations.
fn short(effects: &[Effect]) -> Vec<String> {
    let line = |effect: &Effect| match effect {
        Effect::SetLocals(locals) => Some(format!("locals {}", locals.len())),
        Effect::Redirect(to) => Some(format!("redirect {}", to.len())),
        Effect::Put { client, installation, .. } => {
            let what = match installation {
                Installation::Waiting => "waiting",
                Installation::Blocked => "blocked",
                Installation::Policy { .. } => "policy",
            };
            Some(format!("{what} {} {}", client.vif, client.address))
        }
        Effect::Remove(client) => Some(format!("remove {} {}", client.vif, client.address)),
        Effect::Attach { vif, name } => Some(format!("attach {vif} {name}")),
        Effect::Forget { vif } => Some(format!("forget {vif}")),
        Effect::Tell(_) => None,
    };
    effects.iter().filter_map(line).collect()
}

#[track_caller]
fn check(world: &mut World, event: Event, expected: &[&str]) {
    assert_eq!(short(&world.step(event)), expected);
}

#[test]
fn a_link_before_its_rules_waits_and_rules_before_their_link_are_kept() {
    let mut world = World::default();
    check(&mut world, links(&[(7, "vif1.0", &[])]), &["attach 7 vif1.0"]);
    let with_address = || links(&[(7, "vif1.0", &["10.137.0.1"])]);
    check(&mut world, with_address(), &["waiting 7 10.137.0.1"]);
    check(&mut world, with_address(), &[]);
    check(&mut world, rules("10.137.0.1", ACCEPT), &["policy 7 10.137.0.1"]);
    check(&mut world, rules("10.137.0.1", ACCEPT), &[]);
    check(&mut world, rules("10.137.0.2", ACCEPT), &[]);
    let both = links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]);
    check(&mut world, both, &["policy 8 10.137.0.2", "attach 8 vif2.0"]);
}

#[test]
fn a_vif_that_goes_takes_all_of_its_clients_along() {
    let mut world = World::default();
    world.step(rules("10.137.0.1", ACCEPT));
    world.step(links(&[(7, "vif1.0", &["10.137.0.1", "fd00::1"])]));
    check(&mut world, links(&[]), &["remove 7 10.137.0.1", "remove 7 fd00::1", "forget 7"]);
    // The same name again is another link.
    let again = links(&[(9, "vif1.0", &["10.137.0.1"])]);
    check(&mut world, again, &["policy 9 10.137.0.1", "attach 9 vif1.0"]);
}

#[test]
fn an_address_behind_two_vifs_is_two_clients_with_the_same_rules() {
    let mut world = World::default();
    world.step(links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif1.1", &["10.137.0.1"])]));
    let expected = ["policy 7 10.137.0.1", "policy 8 10.137.0.1"];
    check(&mut world, rules("10.137.0.1", ACCEPT), &expected);
}

#[test]
fn bad_rules_block_their_client_only_and_status_says_why() {
    let mut world = World::default();
    world.step(links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]));
    world.step(rules("10.137.0.1", ACCEPT));
    world.step(rules("10.137.0.2", ACCEPT));
    check(&mut world, rules("10.137.0.1", BROKEN), &["blocked 7 10.137.0.1"]);
    let clients = world.client_statuses();
    assert_eq!(
        clients.iter().map(|it| it.state).collect::<Vec<_>>(),
        [State::Blocked, State::Live]
    );
    let problem = clients[0].problem.clone().expect("a problem");
    assert_eq!(problem.origin, "a file");
    assert!(problem.reason.contains("commit"), "{}", problem.reason);
    check(&mut world, rules("10.137.0.1", DROP), &["policy 7 10.137.0.1"]);
}

#[test]
fn rules_that_are_gone_leave_nothing_open() {
    let mut world = World::default();
    world.step(links(&[(7, "vif1.0", &["10.137.0.1"])]));
    world.step(rules("10.137.0.1", ACCEPT));
    let gone = Event::Rules { client: address("10.137.0.1"), rules: None };
    check(&mut world, gone, &["waiting 7 10.137.0.1"]);
}

#[test]
fn new_resolvers_reinstall_only_the_policies_that_they_change() {
    let mut world = World::default();
    let dns = "policy = drop\n0000 = action=accept specialtarget=dns\ncommit\n";
    world.step(links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]));
    world.step(rules("10.137.0.1", dns));
    world.step(rules("10.137.0.2", ACCEPT));
    let known = |resolver: [u8; 4]| {
        let resolvers = vec![IpAddr::from(resolver)];
        Event::Surroundings(Surroundings { resolvers, ..Surroundings::default() })
    };
    check(&mut world, known([9, 9, 9, 9]), &["redirect 2", "policy 7 10.137.0.1"]);
    check(&mut world, known([9, 9, 9, 9]), &[]);
}

#[test]
fn what_the_kernel_refuses_is_blocked_once_and_told() {
    let mut world = World::default();
    world.step(links(&[(7, "vif1.0", &["10.137.0.1"])]));
    world.step(rules("10.137.0.1", ACCEPT));
    let client = ClientId { vif: 7, address: address("10.137.0.1") };
    let refused = || Event::Refused { client, why: "no room".to_owned() };
    check(&mut world, refused(), &["blocked 7 10.137.0.1"]);
    assert_eq!(world.client_statuses()[0].state, State::Blocked);
    // No loop if even that is refused.
    check(&mut world, refused(), &[]);
    // New rules are a new try.
    check(&mut world, rules("10.137.0.1", DROP), &["policy 7 10.137.0.1"]);
    assert_eq!(world.client_statuses()[0].state, State::Live);
}

#[test]
fn generations_grow_with_everything_that_is_put_in_force() {
    let mut world = World::default();
    let mut last = 0;
    let mut generations = |effects: Vec<Effect>| {
        for effect in effects {
            if let Effect::Put { generation, .. } = effect {
                assert!(generation > last);
                last = generation;
            }
        }
    };
    generations(world.step(links(&[(7, "vif1.0", &["10.137.0.1", "10.137.0.2"])])));
    generations(world.step(rules("10.137.0.1", ACCEPT)));
    generations(world.step(rules("10.137.0.1", DROP)));
    generations(world.step(rules("10.137.0.2", BROKEN)));
    assert_eq!(last, 5);
}
