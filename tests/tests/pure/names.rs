//! Names in rules: what is asked and when, what an answer changes, and what it never opens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use firewall_common::abi::Local;

use firewall_agent::edges::sources::rule_files;
use firewall_core::client::{Links, Vif};
use firewall_core::events::Event;
use firewall_core::names::answer::Remembered;
use firewall_core::rules::question::Question;
use firewall_core::rules::{Family, relevant};
use firewall_core::time::Moment;

use super::stage::*;

pub const CLIENT: &str = "10.137.0.1";

#[test]
fn addresses_alone_are_live_at_once_and_names_fill_in() {
    let mut stage = Stage::new(&[CLIENT]);
    let literal = "action=accept dst4=192.0.2.1";
    stage.rules(CLIENT, &[literal, "action=accept dsthost=a.example"]);
    assert_eq!(stage.take_asked(), ["a.example IPv4"]);
    stage.check(CLIENT, &[("192.0.2.1", 80, true), ("192.0.2.2", 80, false)]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    stage.check(CLIENT, &[("192.0.2.1", 80, true), ("192.0.2.2", 80, true)]);
    assert_eq!(
        format!("{:?}", stage.published),
        format!("{:?}", {
            let names = [("a.example".to_owned(), BTreeSet::from([address("192.0.2.2")]))];
            BTreeMap::from([(address(CLIENT), BTreeMap::from(names))])
        })
    );
}

#[test]
fn a_name_that_fails_affects_its_own_rule_and_nothing_else() {
    let mut stage = Stage::new(&[CLIENT]);
    let rules = [
        "action=drop dsthost=bad.example proto=tcp dstports=25-25",
        "action=accept dsthost=good.example",
        "action=accept dst4=192.0.2.1",
    ];
    stage.rules(CLIENT, &rules);
    stage.fail("bad.example");
    stage.fail("good.example");
    let drop_grew_and_accept_shrank =
        [("192.0.2.1", 25, false), ("192.0.2.1", 80, true), ("192.0.2.2", 80, false)];
    stage.check(CLIENT, &drop_grew_and_accept_shrank);
    // No address of this family is an answer.
    stage.answer("bad.example", &[], 60);
    stage.answer("good.example", &["192.0.2.2"], 60);
    let expected = [("192.0.2.1", 25, true), ("192.0.2.2", 25, true), ("192.0.2.3", 80, false)];
    stage.check(CLIENT, &expected);
    // What was known is used while servers are silent.
    stage.pass(seconds(60));
    stage.fail("good.example");
    stage.check(CLIENT, &expected);
}

#[test]
fn one_question_serves_all_clients_and_each_family_has_its_own() {
    let mut stage = Stage::new(&[CLIENT, "10.137.0.2", "fd00::1"]);
    for client in [CLIENT, "10.137.0.2", "fd00::1"] {
        stage.rules(client, &["action=accept dsthost=a.example"]);
    }
    assert_eq!(stage.take_asked(), ["a.example IPv4", "a.example IPv6"]);
    stage.answer("a.example", &["192.0.2.2"], 60);
    for client in [CLIENT, "10.137.0.2"] {
        stage.check(client, &[("192.0.2.2", 80, true)]);
    }
    // Rules that come later use what is known.
    stage.rules(CLIENT, &["action=drop dst4=192.0.2.9", "action=accept dsthost=a.example"]);
    assert_eq!(stage.take_asked(), [""; 0]);
    stage.check(CLIENT, &[("192.0.2.2", 80, true)]);
}

#[test]
fn names_are_asked_again_when_their_time_is_over_and_not_before() {
    let check = |ttl: u64, refresh: u64| {
        let mut stage = Stage::new(&[CLIENT]);
        stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
        stage.answer("a.example", &["192.0.2.2"], ttl);
        stage.take_asked();
        assert_eq!(stage.world.next_time(), Some(stage.now + seconds(refresh)), "{ttl}");
        stage.pass(seconds(refresh) - Duration::from_millis(1));
        assert_eq!(stage.take_asked(), [""; 0], "{ttl}");
        stage.pass(Duration::from_millis(1));
        assert_eq!(stage.take_asked(), ["a.example IPv4"], "{ttl}");
        // Until it is answered, it is not asked again.
        stage.pass(seconds(100_000));
        assert_eq!(stage.take_asked(), [""; 0], "{ttl}");
    };
    for (ttl, refresh) in [(0, 5), (4, 5), (5, 5), (60, 60), (3600, 3600), (604_800, 3600)] {
        check(ttl, refresh);
    }
}

#[test]
fn failures_are_asked_again_later_and_later_and_at_once_when_the_network_changes() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
    stage.take_asked();
    let mut pauses = Vec::new();
    for _ in 0..12 {
        stage.fail("a.example");
        let next = stage.world.next_time().expect("another attempt");
        pauses.push(next.since(stage.now).as_millis());
        stage.pass(next.since(stage.now));
        assert_eq!(stage.take_asked(), ["a.example IPv4"]);
    }
    for (failures, pause) in pauses.iter().enumerate() {
        let least = (1000_u128 << failures).min(60_000);
        assert!((least..=least + least / 4).contains(pause), "{pauses:?}");
    }
    stage.fail("a.example");
    let vif = Vif { index: 7, name: "vif7.0".to_owned(), addresses: [address(CLIENT)].into() };
    let locals = [(address("192.0.2.99"), Local::One)].into();
    stage.step(Event::Links(Links { vifs: vec![vif], locals, ..Links::default() }));
    assert_eq!(stage.take_asked(), ["a.example IPv4"]);
    // Other servers are asked even while the old ones still may answer, and about everything.
    let own = vec![address("192.0.2.53")];
    stage.step(Event::Servers { of_clients: Vec::new(), own });
    assert_eq!(stage.take_asked(), ["a.example IPv4"]);
}

#[test]
fn addresses_of_a_rotating_pool_add_up_and_leave_when_nobody_uses_them() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
    stage.answer("a.example", &["192.0.2.1"], 60);
    stage.pass(seconds(60));
    stage.answer("a.example", &["192.0.2.2"], 60);
    stage.pass(seconds(60));
    stage.answer("a.example", &["192.0.2.3"], 3600);
    let all = |first, second| {
        [("192.0.2.1", 80, first), ("192.0.2.2", 80, second), ("192.0.2.3", 80, true)]
    };
    stage.check(CLIENT, &all(true, true));
    // The first left after a minute, the second after two.
    stage.pass(seconds(600 - 60 - 1));
    assert!(!stage.reads_flows);
    stage.pass(seconds(1));
    assert!(std::mem::take(&mut stage.reads_flows), "nobody asks whether the address is in use");
    // The kernel is slow, or cannot say: nothing leaves, and it is asked again in a while.
    assert_eq!(stage.world.next_time(), Some(stage.now + seconds(10)));
    stage.pass(seconds(9));
    assert!(!stage.reads_flows);
    stage.in_use(CLIENT, &["192.0.2.1"]);
    stage.check(CLIENT, &all(true, true));
    stage.pass(seconds(60));
    stage.in_use(CLIENT, &["192.0.2.1"]);
    stage.check(CLIENT, &all(true, false));
    stage.pass(seconds(600));
    // Somebody else's connection is no reason.
    stage.in_use("10.137.0.2", &["192.0.2.1"]);
    stage.check(CLIENT, &all(false, false));
}

#[test]
fn answers_of_a_name_have_a_cap_that_shrinks_accepts_and_grows_drops() {
    let mut stage = Stage::new(&[CLIENT]);
    let rules = [
        "action=drop dsthost=a.example proto=tcp dstports=25-25",
        "action=accept dsthost=a.example",
    ];
    stage.rules(CLIENT, &rules);
    let many: Vec<String> = (0..300).map(|n| format!("198.51.{}.{}", n / 100, n % 100)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    stage.answer("a.example", &many[..256], 60);
    stage.check(CLIENT, &[("198.51.2.55", 80, true), ("198.51.2.55", 25, false)]);
    stage.answer("a.example", &many, 60);
    stage.check(CLIENT, &[("198.51.0.0", 80, true), ("198.51.2.99", 80, false)]);
    let everything =
        ["action=drop dsthost=a.example proto=tcp dstports=25-25", "action=accept dst4=0.0.0.0/0"];
    stage.rules(CLIENT, &everything);
    stage.check(CLIENT, &[("192.0.2.1", 25, false), ("192.0.2.1", 80, true)]);
}

#[test]
fn a_public_name_opens_no_private_network_and_closes_it_all_the_same() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
    stage.answer("a.example", &["192.168.1.1", "198.51.100.7", "10.137.0.2"], 60);
    let expected = [("192.168.1.1", 80, false), ("10.137.0.2", 80, false)];
    stage.check(CLIENT, &expected);
    stage.check(CLIENT, &[("198.51.100.7", 80, true)]);
    let names = stage.names();
    let problem = names[0].problem.as_deref().expect("a problem");
    let expected_problem = "no public address: 10.137.0.2, 192.168.1.1; accept rules leave it out; \
        `run --private-name a.example` lets them use it";
    assert_eq!(problem, expected_problem);
    stage.rules(CLIENT, &["action=drop dsthost=a.example", "action=accept dst4=0.0.0.0/0"]);
    stage.check(CLIENT, &expected);
}

#[test]
fn an_option_is_named_only_where_it_would_help() {
    let check = |addresses: &[&str], expected: &str| {
        let mut stage = Stage::new(&[CLIENT]);
        stage.rules(CLIENT, &["action=accept dsthost=host.ts.net"]);
        stage.answer("host.ts.net", addresses, 60);
        let names = stage.names();
        assert_eq!(names[0].problem.as_deref().expect("a problem"), expected);
    };
    check(
        &["100.100.1.2"],
        "no public address: 100.100.1.2; accept rules leave it out; \
         `run --private-name host.ts.net` lets them use it",
    );
    check(&["127.0.0.1"], "no public address: 127.0.0.1; accept rules leave it out");
    check(
        &["127.0.0.1", "192.168.1.1"],
        "no public address: 127.0.0.1, 192.168.1.1; accept rules leave it out; \
         `run --private-name host.ts.net` lets them use it",
    );
}

#[test]
fn names_that_make_no_difference_are_not_asked() {
    let check = |default: &str, rules: &[&str], expected: &[&str]| {
        let numbered = rules.iter().enumerate();
        let lines = numbered.map(|(number, rule)| format!("{number:04} = {rule}\n"));
        let text = format!("policy = {default}\n{}commit\n", lines.collect::<String>());
        let rules = rule_files::ruleset(address(CLIENT), &text).expect("rules");
        let found: Vec<&str> = relevant::names(&rules).into_iter().collect();
        assert_eq!(found, expected, "{text}");
    };
    let a = "action=accept dsthost=a.example";
    let a_tcp = "action=accept dsthost=a.example proto=tcp dstports=443-443";
    let all = "action=accept";
    check("drop", &[a], &["a.example"]);
    check("accept", &[a], &[]);
    // "Allow everything", with the rules that were there before.
    check("drop", &[a_tcp, "action=accept dsthost=b.example proto=udp", all], &[]);
    check("drop", &[all, a], &[]);
    check("drop", &["action=drop", a], &[]);
    check("drop", &["action=accept proto=tcp", a_tcp], &[]);
    check("drop", &["action=accept proto=tcp", a], &["a.example"]);
    check("drop", &["action=accept proto=tcp dstports=80-442", a_tcp], &["a.example"]);
    check("drop", &["action=accept dst4=192.0.2.0/24", a], &["a.example"]);
    // What comes between can deny what the name allows.
    check("drop", &[a, "action=drop dst4=192.0.2.0/24", all], &["a.example"]);
    check("drop", &[a, "action=drop dsthost=b.example", all], &["a.example", "b.example"]);
    check("drop", &[a, "action=accept dst4=192.0.2.0/24", all], &[]);
    check("drop", &["action=drop dsthost=b.example", "action=drop"], &[]);
    check("drop", &[a_tcp, "action=drop proto=udp", all], &[]);
    check("drop", &[a_tcp, "action=drop proto=tcp dstports=1-500", all], &["a.example"]);
    check("drop", &["action=accept specialtarget=dns", a], &["a.example"]);
    check("drop", &["action=accept proto=icmp", "action=accept dsthost=a.example proto=icmp"], &[]);
    // For the protocols that no option names, too.
    let others = ["action=accept proto=tcp", "action=accept proto=udp", "action=accept proto=icmp"];
    check("drop", &[&others[..], &[a]].concat(), &["a.example"]);
}

#[test]
fn what_an_earlier_agent_knew_is_used_until_something_newer_is_known() {
    let remember = |age: u64, used: bool| {
        let mut stage = Stage::new(&[CLIENT]);
        let question = Question { name: "a.example".to_owned(), family: Family::V4 };
        let at = stage.now - seconds(age);
        // One of them left in the future: nobody wrote that but by mistake.
        let leaving = [(address("192.0.2.6"), at), (address("192.0.2.5"), Moment::NEVER)].into();
        let known = Remembered { question, addresses: [address("192.0.2.7")].into(), at, leaving };
        stage.step(Event::Remembered(vec![known]));
        stage.rules(CLIENT, &["action=accept dsthost=a.example"]);
        assert_eq!(stage.take_asked(), ["a.example IPv4"], "what is old is asked at once");
        stage.fail("a.example");
        let known = [("192.0.2.7", 80, used), ("192.0.2.6", 80, used), ("192.0.2.5", 80, false)];
        stage.check(CLIENT, &known);
        stage.answer("a.example", &["192.0.2.8"], 60);
        stage.check(CLIENT, &[("192.0.2.8", 80, true)]);
    };
    remember(0, true);
    remember(24 * 3600, true);
    remember(24 * 3600 + 1, false);
}

#[test]
fn names_of_clients_that_are_gone_are_not_asked() {
    let mut stage = Stage::new(&[CLIENT]);
    stage.rules("10.138.0.9", &["action=accept dsthost=b.example"]);
    assert_eq!(stage.take_asked(), [""; 0]);
    stage.step(Event::Connected([address("10.138.0.9")].into()));
    assert_eq!(stage.take_asked(), ["b.example IPv4"], "one that may come is prepared for");
    stage.step(Event::Connected(BTreeSet::new()));
    assert_eq!(stage.names().len(), 0);
}
