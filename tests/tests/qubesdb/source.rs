//! What the source tells, when, and what it writes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use firewall_core::tor::Service;
use firewall_core::uplinks::KEY;
use firewall_tests::rig::qubesdb::{Behaviour, Lie};

use super::scene::{ACCEPT, NONE, ONE, Scene, TWO};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// What every source tells first.
const EMPTY: [&str; 3] = ["readable", "connected ", "all"];

#[test]
fn everything_that_is_committed_is_read_at_first() {
    let mut scene = Scene::new(|server| {
        server.reload(ONE, "drop", &[("0000", b"action=accept"), ("0003", b"action=drop")]);
        server.reload("fd09:24ef:4179::a89:b", "drop", ACCEPT);
        // Never committed; written another way than addresses are; not an address.
        server.begin(TWO, "drop", ACCEPT);
        server.reload("010.137.0.1", "accept", ACCEPT);
        server.reload("FD09::1", "accept", ACCEPT);
        server.reload("work", "accept", ACCEPT);
        server.write("/connected-ips", b"10.137.0.1 10.137.0.9 10.137.0.1 fd09::1 nonsense");
        server.write("/connected-ips6", b"");
        server.write("/qubes-firewall-handled/10.137.0.1", b"7");
    });
    scene.expect(&["readable", "connected 10.137.0.1 10.137.0.9"]);
    scene.expect(&["all 10.137.0.1: drop 0000 0003, fd09:24ef:4179::a89:b: drop 0000"]);
}

#[test]
fn only_a_commit_counts() {
    let mut scene = Scene::new(|_| {});
    scene.expect(&EMPTY);
    scene.server.begin(ONE, "drop", ACCEPT);
    // Another client's commit comes behind it, and is the first that is told.
    scene.server.reload(TWO, "drop", NONE);
    scene.expect(&["10.137.0.2: drop"]);
    scene.server.write("/qubes-firewall/10.137.0.1", b"");
    scene.expect(&["10.137.0.1: drop 0000"]);
    // The same once more is told once more: whoever wrote it waits for it.
    scene.server.reload(ONE, "drop", ACCEPT);
    scene.expect(&["10.137.0.1: drop 0000"]);
    scene.server.reload(ONE, "accept", NONE);
    scene.expect(&["10.137.0.1: accept"]);
    // Without the commit key and without rules, there is nothing.
    scene.server.remove("/qubes-firewall/10.137.0.1/");
    scene.server.remove("/qubes-firewall/10.137.0.1");
    scene.expect(&["10.137.0.1: none"]);
}

#[test]
fn a_reload_reads_what_stands_there_as_a_new_agent_would() {
    let mut scene = Scene::new(|server| server.reload(ONE, "drop", ACCEPT));
    scene.expect(&["readable", "connected ", "all 10.137.0.1: drop 0000"]);
    scene.server.begin(ONE, "accept", NONE);
    // Never committed: a new agent would not take it for rules either.
    scene.server.begin(TWO, "accept", NONE);
    scene.source.reload();
    scene.expect(&["readable", "connected ", "all 10.137.0.1: accept"]);
    scene.server.write("/qubes-firewall/10.137.0.1/0007", b"action=drop");
    scene.source.reload();
    scene.expect(&["readable", "connected ", "all 10.137.0.1: accept 0007"]);
    // Half of rules can be wrong ones; a commit is still told.
    scene.server.remove("/qubes-firewall/10.137.0.1/");
    scene.source.reload();
    let no_policy = "all 10.137.0.1: error /qubes-firewall/10.137.0.1: there is no `policy`";
    scene.expect(&["readable", "connected ", no_policy]);
    scene.server.reload(ONE, "drop", ACCEPT);
    scene.expect(&["10.137.0.1: drop 0000"]);
    scene.server.write("/qubes-firewall/10.137.0.2", b"");
    scene.expect(&["10.137.0.2: accept"]);
}

#[test]
fn addresses_of_clients_are_told_when_they_change() {
    let mut scene = Scene::new(|_| {});
    scene.expect(&EMPTY);
    scene.server.write("/connected-ips", b"10.137.0.1");
    scene.expect(&["connected 10.137.0.1"]);
    scene.server.write("/connected-ips6", b"fd09::1  fd09::2 ");
    scene.expect(&["connected 10.137.0.1 fd09::1 fd09::2"]);
    scene.server.write("/connected-ips", b"10.137.0.256 \xff\xfe 10.137.0.2");
    scene.expect(&["connected 10.137.0.2 fd09::1 fd09::2"]);
    scene.server.remove("/connected-ips6");
    scene.expect(&["connected 10.137.0.2"]);
}

#[test]
fn what_keys_say_of_tors_services_is_told_before_the_rules_and_when_it_changes() {
    let [socks, control] = Service::ALL.map(Service::key);
    let mut scene = Scene::new(|server| {
        server.write(socks, b"allow");
        server.reload(ONE, "drop", ACCEPT);
    });
    scene.expect(&["readable", "connected ", "tor allow nobody says"]);
    scene.expect(&["all 10.137.0.1: drop 0000"]);
    scene.server.write(control, b"deny");
    scene.expect(&["tor allow deny"]);
    scene.server.write(socks, b"yes");
    scene.expect(&["tor `yes` deny"]);
    scene.server.remove(socks);
    scene.expect(&["tor nobody says deny"]);
    scene.server.write(control, b"");
    scene.expect(&["tor nobody says"]);
}

#[test]
fn uplinks_are_told_before_the_rules_and_when_they_change() {
    let mut scene = Scene::new(|server| {
        server.write(KEY, b"wg0 tun0");
        server.reload(ONE, "drop", ACCEPT);
    });
    scene.expect(&["readable", "connected ", "uplinks tun0, wg0"]);
    scene.expect(&["all 10.137.0.1: drop 0000"]);
    scene.server.write(KEY, b"wg0");
    scene.expect(&["uplinks wg0"]);
    scene.server.write(KEY, b"wg0 \xff");
    let bad = scene.next();
    assert!(bad.starts_with("uplinks `wg0 \u{fffd}` is no list of links: "), "{bad}");
    scene.server.write(KEY, b"");
    scene.expect(&["uplinks any"]);
    scene.server.write(KEY, b"wg0");
    scene.expect(&["uplinks wg0"]);
    scene.server.remove(KEY);
    scene.expect(&["uplinks any"]);
    // Another key that begins like it is another key.
    scene.server.write("/vm-config/firewall-uplinks2", b"eth0");
    scene.server.hang_up();
    scene.server.write(KEY, b"tun0");
    let all = scene.until("all ");
    assert!(all.iter().any(|it| it == "uplinks tun0"), "{all:?}");
}

#[test]
fn a_key_of_the_netvm_that_changes_while_rules_are_read_is_read_then() {
    let mut scene = Scene::new(|server| {
        server.behave(Behaviour { delay: Duration::from_millis(50), ..Behaviour::default() });
    });
    scene.expect(&EMPTY);
    for links in ["tun0", "tun1"] {
        let server = Arc::clone(&scene.server);
        let dom0 = std::thread::spawn(move || {
            let before = server.requests().len();
            server.reload(ONE, "drop", ACCEPT);
            let request = format!("MULTIREAD /qubes-firewall/{ONE}/");
            server.wait_for_request(&request, before, super::scene::PATIENCE).expect("a request");
            server.write(KEY, links.as_bytes());
            server.write("/connected-ips", b"");
        });
        scene.expect(&["10.137.0.1: drop 0000"]);
        scene.until(&format!("uplinks {links}"));
        dom0.join().expect("dom0");
    }
}

#[test]
fn a_slow_daemon_that_cuts_and_holds_back_its_words_is_understood() {
    let ways = [
        Behaviour { delay: Duration::from_millis(20), ..Behaviour::default() },
        Behaviour { piece: 1, ..Behaviour::default() },
        Behaviour { piece: 71, ..Behaviour::default() },
        Behaviour { piece: 73, delay: Duration::from_millis(5), ..Behaviour::default() },
    ];
    for behaviour in ways {
        let mut scene = Scene::new(|server| {
            server.behave(behaviour.clone());
            server.reload(TWO, "drop", ACCEPT);
        });
        scene.expect(&["readable", "connected ", "all 10.137.0.2: drop 0000"]);
        for _ in 0..5 {
            // A byte at a time fills the socket long before dom0 is done.
            let server = Arc::clone(&scene.server);
            let dom0 = std::thread::spawn(move || server.reload(ONE, "drop", ACCEPT));
            let news = scene.until("10.137.0.1: drop 0000");
            dom0.join().expect("dom0");
            // Never half of it on the way there.
            assert!(news.iter().all(|it| it == "10.137.0.1: drop 0000"), "{behaviour:?}: {news:?}");
        }
    }
}

#[test]
fn events_that_come_in_the_middle_of_an_answer_are_not_lost() {
    use firewall_agent::edges::sources::qubesdb::client::Connection;
    use firewall_agent::edges::sources::qubesdb::wire::Path;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("qubesdb.sock");
    let server = firewall_tests::rig::qubesdb::FakeQubesDb::start(&socket).expect("a daemon");
    server.reload(ONE, "drop", ACCEPT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let path = |text: &str| Path::new(text).expect("a path");
        let open = Connection::open(&socket, super::scene::PATIENCE).await;
        let mut connection = open.expect("a connection");
        connection.watch(&path("/qubes-firewall/")).await.expect("a watch");
        for piece in [0, 1, 100] {
            let behaviour = Behaviour { holds_events: true, piece, ..Behaviour::default() };
            server.behave(behaviour);
            let keys = ["/qubes-firewall/b", "/qubes-firewall/a", "/qubes-firewall/b"];
            keys.iter().for_each(|key| server.write(key, b""));
            let found = connection.multiread(&path("/qubes-firewall/10")).await.expect("a series");
            let found: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
            let expected =
                ["", "/0000", "/policy"].map(|key| format!("/qubes-firewall/{ONE}{key}"));
            assert_eq!(found, expected);
            for key in keys {
                assert_eq!(connection.next_event().await.expect("an event"), key);
            }
        }
    });
}

#[test]
fn a_daemon_that_went_away_is_found_again_and_everything_is_read() {
    let mut scene = Scene::new(|server| server.reload(ONE, "drop", ACCEPT));
    scene.until("all");
    for round in 0..3 {
        scene.server.hang_up();
        let news = scene.until("readable");
        assert!(news[0].starts_with("unreadable "), "{news:?}");
        scene.until("all 10.137.0.1: drop 0000");
        // Watches are there again.
        scene.server.reload(TWO, "drop", if round % 2 == 0 { ACCEPT } else { NONE });
        scene.until(if round % 2 == 0 { "10.137.0.2: drop 0000" } else { "10.137.0.2: drop" });
        scene.server.remove("/qubes-firewall/10.137.0.2/");
        scene.server.remove("/qubes-firewall/10.137.0.2");
        scene.until("10.137.0.2: none");
    }
}

#[test]
fn a_daemon_that_hangs_up_anywhere_is_asked_again() {
    for answers in 0..18 {
        let mut scene = Scene::new(|server| {
            server.reload(ONE, "drop", ACCEPT);
            let behaviour = Behaviour { hangs_up_after: Some(answers), ..Behaviour::default() };
            server.behave(behaviour);
        });
        // Until it is better, it may be so for ever.
        if answers < 8 {
            scene.until("unreadable");
            scene.server.behave(Behaviour::default());
        }
        scene.until("all 10.137.0.1: drop 0000");
        scene.server.behave(Behaviour::default());
        scene.server.reload(TWO, "drop", NONE);
        let news = scene.next();
        if news.starts_with("unreadable") {
            scene.until("all 10.137.0.1: drop 0000, 10.137.0.2: drop");
        } else {
            assert_eq!(news, "10.137.0.2: drop");
        }
    }
}

#[test]
fn a_silent_daemon_is_a_problem_and_so_is_one_that_lies() {
    let check = |behaviour: Behaviour, expected: &str| {
        let mut scene = Scene::new(|server| {
            server.reload(ONE, "drop", ACCEPT);
            server.behave(behaviour);
        });
        let news = scene.next();
        assert_eq!(news, format!("unreadable {expected}"));
        scene.server.behave(Behaviour::default());
        scene.until("all 10.137.0.1: drop 0000");
    };
    let silent = Behaviour { is_silent: true, ..Behaviour::default() };
    check(silent, "the daemon does not answer about `/qubes-firewall/`");
    let lies = |lie| Behaviour { lie: Some(lie), ..Behaviour::default() };
    let about = |text: &str| format!("asked about `/qubes-firewall/`, the daemon says {text}");
    check(lies(Lie::OtherKind), &about("Read about `/qubes-firewall/`"));
    check(lies(Lie::OtherPath), &about("Read about `/foreign/key`"));
    check(lies(Lie::HugeData), "4294967295 bytes of data in a message; there may be 3072");
    check(lies(Lie::NoEnd), "a message without a path that can be read");
    check(lies(Lie::NoKind), "77 is not the number of a response");
    check(lies(Lie::Endless), &about("Multiread about `/qubes-firewall/10.137.0.1/0000`"));
}

#[test]
fn lies_about_later_questions_change_nothing_that_is_known() {
    for lie in
        [Lie::OtherKind, Lie::OtherPath, Lie::HugeData, Lie::NoEnd, Lie::NoKind, Lie::Endless]
    {
        let mut scene = Scene::new(|server| server.reload(ONE, "drop", ACCEPT));
        scene.until("all 10.137.0.1: drop 0000");
        scene.server.behave(Behaviour { lie: Some(lie), ..Behaviour::default() });
        scene.source.reload();
        assert!(scene.next().starts_with("unreadable "), "{lie:?}");
        scene.server.behave(Behaviour::default());
        let news = scene.until("all");
        assert!(news.iter().all(|it| !it.contains("foreign")), "{lie:?}: {news:?}");
        assert_eq!(news.last().map(String::as_str), Some("all 10.137.0.1: drop 0000"));
    }
}

#[test]
fn a_reload_is_always_answered() {
    let mut scene = Scene::new(|_| {});
    scene.expect(&EMPTY);
    scene.source.reload();
    scene.expect(&EMPTY);
    scene.server.behave(Behaviour { is_silent: true, ..Behaviour::default() });
    scene.server.hang_up();
    scene.until("unreadable the daemon does not answer");
    // Also while there is a pause between attempts.
    scene.source.reload();
    scene.until("unreadable the daemon does not answer");
}

#[test]
fn whoever_waits_for_rules_sees_them_counted() {
    let mut scene = Scene::new(|server| {
        server.write("/qubes-firewall-handled/10.137.0.1", b"41");
        server.write("/qubes-firewall-handled/10.137.0.2", b"nonsense");
        server.write("/qubes-firewall-handled/10.137.0.3", b"\xff");
    });
    scene.expect(&EMPTY);
    for (client, expected) in [("1", "42"), ("2", "1"), ("3", "1"), ("4", "1"), ("1", "43")] {
        scene.source.handled(address(&format!("10.137.0.{client}")));
        scene.wait_for(&format!("/qubes-firewall-handled/10.137.0.{client}"), expected);
    }
    scene.source.handled(address("fd09:24ef:4179::a89:b"));
    scene.wait_for("/qubes-firewall-handled/fd09:24ef:4179::a89:b", "1");
}

#[test]
fn where_names_lead_is_told_as_a_python_set() {
    let mut scene = Scene::new(|server| {
        server.write("/dns/10.137.0.1/stale.example", b"{'192.0.2.99/32'}");
        server.write("/dns/10.137.0.12/other.example", b"{'192.0.2.98/32'}");
    });
    scene.expect(&EMPTY);
    let set = |addresses: &[&str]| addresses.iter().map(|it| address(it)).collect::<BTreeSet<_>>();
    let long = format!("{}.example", "a".repeat(42));
    let many: BTreeSet<IpAddr> = (0..200).map(|last| IpAddr::from([198, 51, 100, last])).collect();
    let names: BTreeMap<String, BTreeSet<IpAddr>> = [
        ("a.example".to_owned(), set(&["185.199.109.153", "185.199.108.153"])),
        ("none.example".to_owned(), set(&[])),
        ("many.example".to_owned(), many),
        (long.clone(), set(&["192.0.2.1"])),
        (format!("b{long}"), set(&["192.0.2.1"])),
        ("z.example".to_owned(), set(&["192.0.2.7"])),
    ]
    .into();
    scene.source.publish(address(ONE), names.clone());
    scene.source.handled(address(ONE));
    scene.wait_for("/qubes-firewall-handled/10.137.0.1", "1");
    let told = |scene: &Scene, name: &str| scene.server.get(&format!("/dns/10.137.0.1/{name}"));
    let expected = Some("{'185.199.108.153/32', '185.199.109.153/32'}");
    assert_eq!(told(&scene, "a.example").as_deref(), expected);
    assert_eq!(told(&scene, "none.example").as_deref(), Some("set()"));
    assert_eq!(told(&scene, "stale.example"), None);
    // What is too long is left out, and the others are told all the same.
    assert_eq!(told(&scene, "many.example"), None);
    assert_eq!(told(&scene, &format!("b{long}")), None);
    assert_eq!(told(&scene, "z.example").as_deref(), Some("{'192.0.2.7/32'}"));
    let v6 = [("six.example".to_owned(), set(&["2001:db8::7"]))].into();
    scene.source.publish(address("fd09::1"), v6);
    scene.wait_for("/dns/fd09::1/six.example", "{'2001:db8::7/128'}");
    // The same again is not written again.
    let before = scene.server.requests().len();
    scene.source.publish(address(ONE), names);
    scene.source.handled(address(ONE));
    scene.wait_for("/qubes-firewall-handled/10.137.0.1", "2");
    assert_eq!(scene.server.requests().len(), before + 2);
    // Nothing of anybody else was written or removed.
    let other = scene.server.get("/dns/10.137.0.12/other.example");
    assert_eq!(other.as_deref(), Some("{'192.0.2.98/32'}"));
    for request in scene.server.requests() {
        let (kind, path) = request.split_once(' ').expect("a request");
        match kind {
            "WRITE" => assert!(
                path.starts_with("/dns/") || path.starts_with("/qubes-firewall-handled/"),
                "{request}"
            ),
            "RM" => assert_eq!(path, "/dns/10.137.0.1/"),
            _ => {}
        }
    }
}
