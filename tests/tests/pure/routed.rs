//! Clients that nothing but a route to a network puts behind a vif.

use firewall_agent::cli::text::nobody;
use firewall_common::abi::Local;
use firewall_core::client::{Links, Route, Vif, routed_to};
use firewall_core::events::{Effect, Event, Notice};
use firewall_core::time::Moment;
use firewall_core::told::status::State;
use firewall_core::told::totals::problems;
use firewall_core::world::World;

use super::memory::*;

/// Routes in short: network, metric, vif.
fn routes(all: &[(&str, u32, Option<u32>)]) -> Vec<Route> {
    let route = |(network, metric, vif): &(&str, u32, Option<u32>)| Route {
        network: network.parse().expect("a network"),
        metric: *metric,
        vif: *vif,
    };
    all.iter().map(route).collect()
}

#[test]
fn the_longest_prefix_wins_then_the_lowest_metric_and_a_tie_leads_nowhere() {
    let check = |all: &[(&str, u32, Option<u32>)], to: &str, expected: Option<u32>| {
        assert_eq!(routed_to(&routes(all), address(to)), expected, "{all:?} {to}");
        let reversed: Vec<_> = all.iter().rev().copied().collect();
        assert_eq!(routed_to(&routes(&reversed), address(to)), expected, "{reversed:?} {to}");
    };
    let net = "10.9.0.0/24";
    check(&[], "10.9.0.7", None);
    check(&[(net, 0, Some(7))], "10.9.0.0", Some(7));
    check(&[(net, 0, Some(7))], "10.9.0.255", Some(7));
    check(&[(net, 0, Some(7))], "10.9.1.0", None);
    check(&[(net, 0, Some(7))], "fd09::7", None);
    check(&[(net, 0, Some(7)), ("10.9.0.0/16", 0, Some(8))], "10.9.0.7", Some(7));
    check(&[(net, 0, Some(7)), ("10.9.0.0/16", 0, Some(8))], "10.9.1.7", Some(8));
    check(&[(net, 0, Some(7)), ("10.9.0.0/28", 0, None)], "10.9.0.7", None);
    check(&[(net, 0, Some(7)), ("10.9.0.0/28", 0, None)], "10.9.0.17", Some(7));
    check(&[(net, 0, Some(7)), ("10.9.0.7/32", 0, None)], "10.9.0.7", None);
    check(&[(net, 10, Some(7)), (net, 20, Some(8))], "10.9.0.7", Some(7));
    check(&[(net, 10, None), (net, 20, Some(8))], "10.9.0.7", None);
    check(&[(net, 10, Some(7)), (net, 10, Some(8))], "10.9.0.7", None);
    check(&[(net, 10, Some(7)), (net, 10, None)], "10.9.0.7", None);
    check(&[(net, 10, Some(7)), (net, 10, Some(7))], "10.9.0.7", Some(7));
    check(&[("fd09:9::/64", 1024, Some(7))], "fd09:9::7", Some(7));
    check(&[("fd09:9::/64", 1024, Some(7))], "fd09:9:0:1::7", None);
}

/// Two vifs, and these routes. The first has a client of its own.
fn with_routes(all: &[(&str, u32, Option<u32>)]) -> Links {
    let vif = |index: u32, addresses: &[&str]| Vif {
        index,
        name: format!("vif{index}.0"),
        addresses: addresses.iter().map(|it| address(it)).collect(),
    };
    let vifs = vec![vif(7, &["10.137.0.7"]), vif(8, &[])];
    Links { vifs, routes: routes(all), ..Links::default() }
}

#[test]
fn an_address_with_rules_is_a_client_as_long_as_a_route_leads_to_it_behind_a_vif() {
    let mut world = running();
    let to = |vif| Event::Links(with_routes(&[("10.9.0.0/24", 0, vif)]));
    let none = |client: &str| Event::Rules { client: address(client), rules: None };
    let first = ["waiting 7 10.137.0.7", "attach 7 vif7.0", "attach 8 vif8.0"];
    check(&mut world, to(Some(8)), &first);
    // With rules it comes, and with them it goes.
    check(&mut world, rules("10.9.0.7", ACCEPT), &["policy 8 10.9.0.7"]);
    check(&mut world, rules("10.9.0.7", ACCEPT), &[]);
    check(&mut world, rules("10.9.0.7", DROP), &["policy 8 10.9.0.7"]);
    check(&mut world, rules("10.9.0.7", BROKEN), &["blocked 8 10.9.0.7"]);
    check(&mut world, none("10.9.0.7"), &["remove 8 10.9.0.7"]);
    // What is not in the network, or not an address of a client, is none.
    for other in ["10.9.1.7", "fd09:9::7"] {
        check(&mut world, rules(other, ACCEPT), &[]);
    }
    // Whose address is behind a vif by itself does not come and go with its rules.
    check(&mut world, rules("10.137.0.7", ACCEPT), &["policy 7 10.137.0.7"]);
    check(&mut world, none("10.137.0.7"), &["waiting 7 10.137.0.7"]);
    check(&mut world, rules("10.9.0.7", ACCEPT), &["policy 8 10.9.0.7"]);
    // With the route it moves and goes.
    check(&mut world, to(Some(7)), &["remove 8 10.9.0.7", "policy 7 10.9.0.7"]);
    check(&mut world, to(None), &["remove 7 10.9.0.7"]);
    let absent = clients(&world).into_iter().find(|it| it.address == address("10.9.0.7"));
    assert_eq!(absent.map(|it| it.state), Some(State::Absent));
    // All rules at once are no different.
    step(&mut world, to(Some(8)));
    let others = Event::AllRules([(address("10.9.0.9"), Ok(ruleset("10.9.0.9", DROP)))].into());
    check(&mut world, others, &["remove 8 10.9.0.7", "policy 8 10.9.0.9"]);
}

#[test]
fn a_host_route_wins_over_a_route_to_a_network_and_so_does_the_netvm_itself() {
    let mut world = running();
    let routed = || with_routes(&[("10.0.0.0/8", 0, Some(8)), ("fe80::/10", 0, Some(8))]);
    let mut links = routed();
    step(&mut world, Event::Links(links.clone()));
    for (own, expected) in
        [("10.137.0.7", "policy 7 10.137.0.7"), ("10.9.0.7", "policy 8 10.9.0.7")]
    {
        check(&mut world, rules(own, ACCEPT), &[expected]);
    }
    check(&mut world, rules("fe80::7", ACCEPT), &[]);
    links.vifs[0].addresses.insert(address("10.9.0.7"));
    let moved = ["remove 8 10.9.0.7", "policy 7 10.9.0.7"];
    check(&mut world, Event::Links(links), &moved);
    let back = ["remove 7 10.9.0.7", "policy 8 10.9.0.7"];
    check(&mut world, Event::Links(routed()), &back);
    let mut links = routed();
    links.locals.insert(address("10.9.0.7"), Local::One);
    check(&mut world, Event::Links(links), &["locals 1", "remove 8 10.9.0.7"]);
}

#[test]
fn an_address_behind_a_route_is_guarded_on_uplinks_and_told_with_its_network() {
    let mut world = running();
    step(&mut world, Event::Links(with_routes(&[("10.9.0.0/24", 0, Some(8))])));
    let connected = |effects: Vec<Effect>| {
        let mut sets = effects.into_iter().filter_map(|effect| match effect {
            Effect::SetConnected(set) => Some(set.iter().map(ToString::to_string).collect()),
            _ => None,
        });
        let set: Option<Vec<String>> = sets.next();
        set.unwrap_or_default()
    };
    let client = address("10.9.0.7");
    let came = connected(step(&mut world, rules("10.9.0.7", ACCEPT)));
    assert_eq!(came, ["10.9.0.7", "10.137.0.7"]);
    let vif = &status_at(&world, Moment::BOOT).vifs[1];
    assert_eq!(
        (&vif.addresses[..], vif.networks[0].to_string()),
        (&[client][..], "10.9.0.0/24".into())
    );
    let status = status_at(&world, Moment::BOOT);
    let told = |address_of: &str, why: &str| {
        let said = nobody(&status, address(address_of));
        assert_eq!(said, format!("{address_of} is no client: {why}"));
    };
    told(
        "10.9.0.8",
        "a route leads to it behind vif8.0, where only addresses with rules are clients, and it has \
         none",
    );
    told("10.9.1.8", "no vif leads to it, and it has no rules");
    let went = connected(step(&mut world, Event::Rules { client, rules: None }));
    assert_eq!(went, ["10.137.0.7"]);
}

#[test]
fn nobody_is_at_home_behind_a_vif_that_is_a_port_of_a_bridge() {
    let mut world = running();
    let ports = |ports: &[(u32, &str)]| {
        let mut links = with_routes(&[("10.9.0.0/24", 0, Some(7))]);
        links.ports = ports.iter().map(|(vif, of)| (*vif, (*of).to_owned())).collect();
        Event::Links(links)
    };
    let told = |effects: &[Effect]| {
        let lines = effects.iter().filter_map(|effect| match effect {
            Effect::Tell(Notice::Port { vif, of }) => Some(format!("{vif} {of:?}")),
            _ => None,
        });
        lines.collect::<Vec<_>>()
    };
    let problem = |world: &World| {
        let status = status_at(world, Moment::BOOT);
        (status.vifs[0].port_of.clone(), problems(&status))
    };
    step(&mut world, ports(&[]));
    check(&mut world, rules("10.137.0.7", ACCEPT), &["policy 7 10.137.0.7"]);
    check(&mut world, rules("10.9.0.7", ACCEPT), &["policy 7 10.9.0.7"]);
    assert_eq!(problem(&world), (None, 0));
    let effects = step(&mut world, ports(&[(7, "br0")]));
    assert_eq!(short(&effects), ["remove 7 10.9.0.7", "remove 7 10.137.0.7"]);
    assert_eq!(told(&effects), ["vif7.0 Some(\"br0\")"]);
    assert_eq!(problem(&world), (Some("br0".to_owned()), 1));
    // It stays so, whatever else happens.
    assert_eq!(told(&step(&mut world, ports(&[(7, "br0")]))), [""; 0]);
    check(&mut world, rules("10.137.0.7", DROP), &[]);
    check(&mut world, rules("10.9.0.7", DROP), &[]);
    // Another vif is not touched.
    check(&mut world, ports(&[(7, "br0"), (8, "br0")]), &[]);
    let effects = step(&mut world, ports(&[]));
    assert_eq!(short(&effects), ["policy 7 10.9.0.7", "policy 7 10.137.0.7"]);
    assert_eq!(told(&effects), ["vif7.0 None", "vif8.0 None"]);
    assert_eq!(problem(&world), (None, 0));
}
