//! The agent's memory: what it answers to what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use firewall_common::abi::Local;

use firewall_core::client::{ClientId, Links, Vif};
use firewall_core::events::{Effect, Event, Why};
use firewall_core::time::Moment;
use firewall_core::told::status::{Attachment, State};
use firewall_core::world::World;

use super::memory::*;

#[test]
fn a_link_before_its_rules_waits_and_rules_before_their_link_are_kept() {
    let mut world = running();
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
    let mut world = running();
    step(&mut world, rules("10.137.0.1", ACCEPT));
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1", "fd00::1"])]));
    check(&mut world, links(&[]), &["remove 7 10.137.0.1", "remove 7 fd00::1", "forget 7"]);
    // The same name again is another link.
    let again = links(&[(9, "vif1.0", &["10.137.0.1"])]);
    check(&mut world, again, &["policy 9 10.137.0.1", "attach 9 vif1.0"]);
}

#[test]
fn an_address_behind_two_vifs_is_two_clients_with_the_same_rules() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif1.1", &["10.137.0.1"])]));
    let expected = ["policy 7 10.137.0.1", "policy 8 10.137.0.1"];
    check(&mut world, rules("10.137.0.1", ACCEPT), &expected);
}

#[test]
fn bad_rules_block_their_client_only_and_status_says_why() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]));
    step(&mut world, rules("10.137.0.1", ACCEPT));
    step(&mut world, rules("10.137.0.2", ACCEPT));
    check(&mut world, rules("10.137.0.1", BROKEN), &["blocked 7 10.137.0.1"]);
    let told = clients(&world);
    assert_eq!(told.iter().map(|it| it.state).collect::<Vec<_>>(), [State::Blocked, State::Live]);
    let problem = told[0].problem.clone().expect("a problem");
    assert_eq!(problem.origin, "a file");
    assert!(problem.reason.contains("commit"), "{}", problem.reason);
    // Another reason is told, but there is nothing to do about it.
    check(&mut world, rules("10.137.0.1", "commit\n"), &[]);
    let problem = clients(&world)[0].problem.clone().expect("a problem");
    assert_eq!(problem.reason, "there is no `policy`");
    check(&mut world, rules("10.137.0.1", DROP), &["policy 7 10.137.0.1"]);
}

#[test]
fn rules_that_are_gone_leave_nothing_open() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"])]));
    step(&mut world, rules("10.137.0.1", ACCEPT));
    let gone = Event::Rules { client: address("10.137.0.1"), rules: None };
    check(&mut world, gone, &["waiting 7 10.137.0.1"]);
}

#[test]
fn new_resolvers_reinstall_only_the_policies_that_they_change() {
    let mut world = running();
    let dns = "policy = drop\n0000 = action=accept specialtarget=dns\ncommit\n";
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]));
    step(&mut world, rules("10.137.0.1", dns));
    step(&mut world, rules("10.137.0.2", ACCEPT));
    let known = |resolver: [u8; 4]| {
        let of_clients = vec![IpAddr::from(resolver)];
        Event::Servers { of_clients, own: Vec::new() }
    };
    check(&mut world, known([9, 9, 9, 9]), &["redirect 2", "policy 7 10.137.0.1"]);
    check(&mut world, known([9, 9, 9, 9]), &[]);
}

#[test]
fn what_the_kernel_refuses_is_blocked_once_and_told() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"])]));
    step(&mut world, rules("10.137.0.1", ACCEPT));
    let client = ClientId { vif: 7, address: address("10.137.0.1") };
    let refused = || refused(client, "no room", false, 0);
    check(&mut world, refused(), &["blocked 7 10.137.0.1"]);
    assert_eq!(clients(&world)[0].state, State::Blocked);
    // If even that is refused, nothing that was in force before stays in force.
    check(&mut world, refused(), &["remove 7 10.137.0.1"]);
    // New rules are a new try, and so is room that another client left.
    check(&mut world, rules("10.137.0.1", DROP), &["policy 7 10.137.0.1"]);
    assert_eq!(clients(&world)[0].state, State::Live);
    check(&mut world, refused(), &["blocked 7 10.137.0.1"]);
    let two = || links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]);
    check(&mut world, two(), &["waiting 8 10.137.0.2", "attach 8 vif2.0"]);
    let left = links(&[(7, "vif1.0", &["10.137.0.1"])]);
    check(&mut world, left, &["remove 8 10.137.0.2", "forget 8", "policy 7 10.137.0.1"]);
}

#[test]
fn generations_grow_with_everything_that_is_put_in_force() {
    let mut world = running();
    let mut last = 0;
    let mut generations = |effects: Vec<Effect>| {
        for effect in effects {
            if let Effect::Put { generation, .. } = effect {
                assert!(generation > last);
                last = generation;
            }
        }
    };
    generations(step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1", "10.137.0.2"])])));
    generations(step(&mut world, rules("10.137.0.1", ACCEPT)));
    generations(step(&mut world, rules("10.137.0.1", DROP)));
    generations(step(&mut world, rules("10.137.0.2", BROKEN)));
    assert_eq!(last, 5);
}

#[test]
fn addresses_that_the_source_names_are_connected_whether_their_vif_is_there_or_not() {
    let mut world = running();
    let connected = |effects: Vec<Effect>| {
        let mut sets = effects.into_iter().filter_map(|effect| match effect {
            Effect::SetConnected(set) => Some(set.iter().map(IpAddr::to_string).collect()),
            _ => None,
        });
        let set: Option<Vec<String>> = sets.next();
        set
    };
    let named = |names: &[&str]| Event::Connected(names.iter().map(|it| address(it)).collect());
    let check = |found: Option<Vec<String>>, expected: &[&str]| {
        assert_eq!(found.unwrap_or_default(), expected);
    };
    check(connected(step(&mut world, named(&["10.137.0.1"]))), &["10.137.0.1"]);
    // Rules stay in QubesDB when their client is long gone.
    assert_eq!(connected(step(&mut world, rules("10.138.0.9", ACCEPT))), None);
    let vif = || links(&[(7, "vif1.0", &["10.137.0.2"])]);
    check(connected(step(&mut world, vif())), &["10.137.0.1", "10.137.0.2"]);
    assert_eq!(connected(step(&mut world, vif())), None);
    check(connected(step(&mut world, links(&[]))), &["10.137.0.1"]);
    check(connected(step(&mut world, named(&[]))), &[]);
}

#[test]
fn nothing_is_taken_over_before_rules_and_links_are_known() {
    let vif = || links(&[(7, "vif1.0", &["10.137.0.1"])]);
    let rules = || Ok(ruleset("10.137.0.1", ACCEPT));
    let all = || Event::AllRules([(address("10.137.0.1"), rules())].into());
    let expected = ["policy 7 10.137.0.1", "attach 7 vif1.0"];
    let takes_over =
        |effects: &[Effect]| matches!(effects, [.., Effect::TakenOver(_), Effect::NoteOpenings(_)]);
    for links_first in [true, false] {
        let mut world = World::default();
        check(&mut world, Event::Source(Some("not there".to_owned())), &[]);
        check(&mut world, if links_first { vif() } else { all() }, &[]);
        let effects = step(&mut world, if links_first { all() } else { vif() });
        assert_eq!(short(&effects), expected);
        assert!(takes_over(&effects), "{effects:?}");
        assert!(!takes_over(&step(&mut world, vif())));
    }
}

#[test]
fn all_rules_replace_all_rules() {
    let mut world = running();
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"]), (8, "vif2.0", &["10.137.0.2"])]));
    step(&mut world, rules("10.137.0.1", ACCEPT));
    let of_second =
        Event::AllRules([(address("10.137.0.2"), Ok(ruleset("10.137.0.2", DROP)))].into());
    check(&mut world, of_second, &["waiting 7 10.137.0.1", "policy 8 10.137.0.2"]);
    // What cannot be read any more stays in force.
    check(&mut world, Event::Source(Some("gone".to_owned())), &[]);
    assert_eq!(status_at(&world, Moment::BOOT).agent.source_problem.as_deref(), Some("gone"));
    check(&mut world, Event::Source(None), &[]);
    assert_eq!(status_at(&world, Moment::BOOT).agent.source_problem, None);
}

#[test]
fn whoever_wrote_rules_is_told_even_if_nothing_changes_by_them() {
    let mut world = running();
    let told = |effects: &[Effect]| {
        let handled = effects.iter().filter_map(|effect| match effect {
            Effect::Handled(client) => Some(client.to_string()),
            _ => None,
        });
        handled.collect::<Vec<_>>()
    };
    let check = |effects: Vec<Effect>, expected: &[&str]| assert_eq!(told(&effects), expected);
    check(step(&mut world, rules("10.137.0.1", ACCEPT)), &["10.137.0.1"]);
    check(step(&mut world, rules("10.137.0.1", ACCEPT)), &["10.137.0.1"]);
    check(step(&mut world, rules("10.137.0.1", BROKEN)), &["10.137.0.1"]);
    check(
        step(&mut world, Event::Rules { client: address("10.137.0.1"), rules: None }),
        &["10.137.0.1"],
    );
    check(step(&mut world, Event::AllRules(BTreeMap::new())), &[]);
}

#[test]
fn other_links_are_guarded_once_and_forgotten_when_they_go() {
    let mut world = running();
    let uplinks = |names: &[(u32, &str)]| {
        let uplinks = names.iter().map(|(index, name)| (*index, (*name).to_owned())).collect();
        Event::Links(Links { uplinks, ..Links::default() })
    };
    check(&mut world, uplinks(&[(2, "eth0")]), &["guard 2 eth0"]);
    check(&mut world, uplinks(&[(2, "eth0"), (3, "wg0")]), &["guard 3 wg0"]);
    check(&mut world, uplinks(&[(3, "wg0")]), &["forget 2"]);
}

#[test]
fn what_is_open_is_judged_by_the_policy_in_force() {
    use firewall_common::packet::{Packet, Protocol};
    let mut world = running();
    let client = ClientId { vif: 7, address: address("10.137.0.1") };
    step(&mut world, links(&[(7, "vif1.0", &["10.137.0.1"])]));
    let packet = |destination: &str, protocol, port| Packet {
        protocol,
        port,
        ..Packet::of_addresses(client.address.into(), address(destination).into())
    };
    let web = packet("198.51.100.7", Protocol::Tcp, 443);
    let ping = packet("198.51.100.7", Protocol::Icmp, 8);
    let all = [web, ping];
    let denied = |world: &World| all.map(|packet| world.judge_of(client)(&packet));
    assert_eq!(denied(&world), [true, true]);
    step(&mut world, rules("10.137.0.1", ACCEPT));
    assert_eq!(denied(&world), [false, false]);
    let only_web = "policy = drop\n0000 = action=accept proto=tcp dstports=443-443\ncommit\n";
    step(&mut world, rules("10.137.0.1", only_web));
    assert_eq!(denied(&world), [false, true]);
    step(&mut world, rules("10.137.0.1", BROKEN));
    assert_eq!(denied(&world), [true, true]);
    // The netvm's own addresses are not the rules' business.
    let vifs = vec![Vif {
        index: 7,
        name: "vif1.0".to_owned(),
        addresses: BTreeSet::from([client.address]),
    }];
    let locals = [(address("198.51.100.7"), Local::One)].into();
    step(&mut world, Event::Links(Links { vifs, locals, ..Links::default() }));
    assert_eq!(denied(&world), [false, false]);
}

#[test]
fn what_could_not_be_attached_is_tried_again_and_what_could_is_not() {
    let mut world = running();
    let both = || {
        let vif = Vif { index: 7, name: "vif1.0".to_owned(), addresses: BTreeSet::new() };
        let uplinks = [(2, "eth0".to_owned())].into();
        Event::Links(Links { vifs: vec![vif], uplinks, ..Links::default() })
    };
    let attach = ["guard 2 eth0", "attach 7 vif1.0"];
    check(&mut world, both(), &attach);
    for outcome in [Err(Why::of("busy")), Ok(Attachment::Tcx)] {
        for link in [2, 7] {
            step(&mut world, Event::Attached { link, outcome: outcome.clone() });
        }
        check(&mut world, both(), if outcome.is_err() { &attach } else { &[] });
    }
    // A link that becomes a vif loses what guards other links first.
    let renamed = Event::Links(Links {
        vifs: vec![Vif { index: 2, name: "vif2.0".to_owned(), addresses: BTreeSet::new() }],
        ..Links::default()
    });
    check(&mut world, renamed, &["forget 7", "forget 2", "attach 2 vif2.0"]);
}
