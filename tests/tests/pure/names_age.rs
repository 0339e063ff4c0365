//! Names in rules as time goes by: what stays, what leaves, and what is told about it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use firewall_core::events::Event;
use firewall_core::names::answer::Failure;
use firewall_core::names::name::MOST_ADDRESSES;

use super::names::CLIENT;
use super::stage::{Stage, address, seconds};

const ACCEPT: &str = "action=accept dsthost=a.example";
const DROP: &str = "action=drop dsthost=a.example proto=tcp dstports=25-25";
const ALL: &str = "action=accept dst4=0.0.0.0/0";
const DAY: u64 = 24 * 3600;
const GRACE: u64 = 600;

/// Lets time pass in which servers say nothing, and nothing is in use.
fn silence(stage: &mut Stage, duration: u64) {
    for _ in 0..duration / 60 {
        stage.pass(seconds(60));
        if !stage.take_asked().is_empty() {
            stage.fail("a.example");
        }
        if std::mem::take(&mut stage.reads_flows) {
            stage.in_use(CLIENT, &[]);
        }
    }
}

#[test]
fn a_name_that_exists_no_more_is_unresolved_after_a_while() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &[DROP, ACCEPT, "action=accept dst4=192.0.2.9"]);
    stage.answer("a.example", &["192.0.2.1"], 3600);
    stage.pass(seconds(3600));
    stage.outcome("a.example", Err(Failure::NoSuchName));
    let while_it_leaves =
        [("192.0.2.1", 80, true), ("192.0.2.1", 25, false), ("192.0.2.9", 25, true)];
    stage.check(CLIENT, &while_it_leaves);
    stage.take_asked();
    silence(&mut stage, GRACE - 60);
    stage.check(CLIENT, &while_it_leaves);
    silence(&mut stage, 60);
    stage.check(CLIENT, &[("192.0.2.1", 80, false), ("192.0.2.9", 25, false)]);
    stage.check(CLIENT, &[("192.0.2.9", 80, true)]);
    // One that never existed is unresolved from the first.
    stage.outcome("a.example", Err(Failure::NoSuchName));
    stage.check(CLIENT, &[("192.0.2.9", 25, false)]);
    stage.answer("a.example", &["192.0.2.2"], 3600);
    stage.check(CLIENT, &[("192.0.2.2", 80, true), ("192.0.2.9", 25, true)]);
}

#[test]
fn the_last_answer_is_used_for_a_day_while_servers_are_silent() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &[DROP, ACCEPT, "action=accept dst4=192.0.2.9"]);
    stage.answer("a.example", &["192.0.2.1"], 60);
    silence(&mut stage, DAY + GRACE - 120);
    stage.check(CLIENT, &[("192.0.2.1", 80, true), ("192.0.2.9", 25, true)]);
    silence(&mut stage, 180);
    stage.check(CLIENT, &[("192.0.2.1", 80, false), ("192.0.2.9", 25, false)]);
    // That there is no address is forgotten as well.
    stage.answer("a.example", &[], 60);
    stage.check(CLIENT, &[("192.0.2.9", 25, true)]);
    silence(&mut stage, DAY + 60);
    stage.check(CLIENT, &[("192.0.2.9", 25, false)]);
}

#[test]
fn an_address_stays_for_a_while_after_it_left_however_long_its_answer_was_used() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &[ACCEPT]);
    stage.answer("a.example", &["192.0.2.1"], 3600);
    stage.pass(seconds(3600));
    stage.answer("a.example", &["192.0.2.2"], 3600);
    stage.take_asked();
    silence(&mut stage, GRACE - 60);
    stage.check(CLIENT, &[("192.0.2.1", 80, true), ("192.0.2.2", 80, true)]);
    silence(&mut stage, 60);
    stage.check(CLIENT, &[("192.0.2.1", 80, false), ("192.0.2.2", 80, true)]);
}

#[test]
fn a_name_that_leads_everywhere_takes_little_memory_and_opens_little() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &[DROP, ACCEPT, ALL]);
    let known = |stage: &Stage| -> BTreeSet<_> {
        stage.names()[0].addresses.iter().map(|it| it.address).collect()
    };
    for round in 0..20 {
        let some: Vec<String> = (0..100).map(|it| format!("198.51.{round}.{it}")).collect();
        stage.answer("a.example", &some.iter().map(String::as_str).collect::<Vec<_>>(), 5);
        stage.pass(seconds(5));
        let known = known(&stage);
        assert!(known.len() <= MOST_ADDRESSES, "{}", known.len());
        assert!(some.iter().all(|it| known.contains(&address(it))), "{known:?}");
    }
    // Those that were there last are kept; what was left out may be meant by the drop rule.
    assert!(known(&stage).contains(&address("198.51.18.0")));
    assert!(!known(&stage).contains(&address("198.51.0.0")));
    stage.check(CLIENT, &[("192.0.2.9", 25, false), ("192.0.2.9", 80, true)]);
    let problem = |stage: &Stage| stage.names()[0].problem.clone();
    assert!(problem(&stage).is_some_and(|it| it.starts_with("more than 256 addresses")));
    stage.answer("a.example", &["198.51.19.0"], 3600);
    silence(&mut stage, GRACE);
    assert_eq!(known(&stage).len(), 1);
    stage.check(CLIENT, &[("192.0.2.9", 25, true), ("198.51.19.0", 25, false)]);
}

#[test]
fn what_changes_about_a_name_is_told_once() {
    let mut stage = Stage::new(&[CLIENT, "10.137.0.2"]);
    for client in [CLIENT, "10.137.0.2"] {
        stage.rules(client, &[ACCEPT]);
    }
    let check = |stage: &mut Stage, expected: &[&str]| {
        assert_eq!(std::mem::take(&mut stage.told), expected);
    };
    stage.fail("a.example");
    check(&mut stage, &["a.example: no answer"]);
    stage.fail("a.example");
    check(&mut stage, &[]);
    stage.answer("a.example", &["192.0.2.1"], 60);
    check(&mut stage, &["a.example: well", "a.example: +{192.0.2.1} -{}"]);
    stage.answer("a.example", &["192.0.2.1"], 60);
    check(&mut stage, &[]);
    stage.answer("a.example", &["192.0.2.2"], 3600);
    check(&mut stage, &["a.example: +{192.0.2.2} -{}"]);
    stage.take_asked();
    silence(&mut stage, GRACE);
    check(&mut stage, &["a.example: +{} -{192.0.2.1}"]);
    stage.answer("a.example", &["10.0.0.1", "192.0.2.2"], 60);
    let refused = "a.example: no public address: 10.0.0.1; accept rules leave it out; \
        `run --private-name a.example` lets them use it";
    check(&mut stage, &[refused, "a.example: +{10.0.0.1} -{}"]);
    stage.answer("a.example", &["10.0.0.1", "192.0.2.2"], 60);
    check(&mut stage, &[]);
    assert_eq!(stage.names()[0].refused, 2);
}

#[test]
fn names_are_asked_anew_when_servers_behind_a_stub_change() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &[ACCEPT]);
    let stub = vec![address("127.0.0.53")];
    let servers = |stage: &mut Stage, behind: &str| {
        let of_clients = vec![address(behind)];
        stage.step(Event::Servers { of_clients, own: stub.clone() });
        (stage.take_asked().len(), stage.servers.len())
    };
    stage.take_asked();
    assert_eq!(servers(&mut stage, "192.0.2.53"), (1, 1));
    stage.answer("a.example", &["192.0.2.1"], 3600);
    assert_eq!(servers(&mut stage, "192.0.2.53"), (0, 1));
    assert_eq!(servers(&mut stage, "192.0.2.54"), (1, 2), "what was asked before is forgotten");
    stage.step(Event::AskAll);
    assert_eq!((stage.take_asked().len(), stage.servers.len()), (1, 3));
    let stub: Vec<SocketAddr> = stub.into_iter().map(|it| (it, 53).into()).collect();
    assert!(stage.servers.iter().all(|it| *it == stub));
}
