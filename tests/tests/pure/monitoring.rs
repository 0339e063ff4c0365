//! What `monitor` says: its sentences, its JSON, and the rules that it learns.

use firewall_agent::cli::learn::Lessons;
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::told::SCHEMA;
use firewall_core::told::news::{Denied, DeniedBy, News};

/// A packet of a client to a server: `198.51.100.7:443/tcp`.
pub fn denied(destination: &str, protocol: u8, port: u16) -> Denied {
    let source = if destination.contains(':') { "fd09:24ef:4179::a89:c" } else { "10.137.0.12" };
    Denied {
        time_ms: 1_700_000_000_123,
        vif: "vif12.0".to_owned(),
        source: Some(source.parse().expect("an address")),
        destination: Some(destination.parse().expect("an address")),
        names: Vec::new(),
        protocol,
        source_port: 40000,
        port,
        length_bytes: 74,
        verdict: Verdict::Reject,
        reason: Reason::Default,
        rule: None,
        generation: Some(2),
        suppressed: 0,
    }
}

fn by_rule(number: u16, denied: Denied) -> Denied {
    let rule = DeniedBy { number, text: "action=drop".to_owned() };
    Denied { rule: Some(rule), reason: Reason::Rule, ..denied }
}

fn named(names: &[&str], denied: Denied) -> Denied {
    Denied { names: names.iter().map(|name| (*name).to_owned()).collect(), ..denied }
}

#[test]
fn a_denied_packet_is_a_sentence_in_the_words_of_explain() {
    let plain = || denied("198.51.100.7", 6, 443);
    let stray = Denied {
        source: None,
        destination: None,
        verdict: Verdict::Drop,
        reason: Reason::Truncated,
        generation: None,
        ..plain()
    };
    for (denied, expected) in [
        (plain(), "10.137.0.12 to 198.51.100.7:443/tcp: rejected by default, generation 2"),
        (
            denied("2001:db8:1::7", 17, 53),
            "fd09:24ef:4179::a89:c to [2001:db8:1::7]:53/udp: rejected by default, generation 2",
        ),
        (
            denied("198.51.100.7", 1, 8),
            "10.137.0.12 to 198.51.100.7/icmp:8: rejected by default, generation 2",
        ),
        (
            denied("2001:db8:1::7", 58, 128),
            "fd09:24ef:4179::a89:c to 2001:db8:1::7/icmp:128: rejected by default, generation 2",
        ),
        // The other family's ICMP is any protocol.
        (
            denied("198.51.100.7", 58, 0),
            "10.137.0.12 to 198.51.100.7/58: rejected by default, generation 2",
        ),
        (
            by_rule(3, named(&["a.example", "b.example"], plain())),
            "10.137.0.12 to 198.51.100.7:443/tcp (a.example, b.example): rejected by rule 0003 \
             `action=drop`, generation 2",
        ),
        (
            by_rule(3, Denied { verdict: Verdict::Audit, ..plain() }),
            "10.137.0.12 to 198.51.100.7:443/tcp: AUDIT, PASSED; denied by rule 0003 \
             `action=drop`, generation 2",
        ),
        (
            Denied { suppressed: 7, ..plain() },
            "10.137.0.12 to 198.51.100.7:443/tcp: rejected by default, generation 2; 7 more \
             before it not shown",
        ),
        (stray, "a packet of 74 bytes: dropped: truncated"),
    ] {
        assert_eq!(denied.to_string(), format!("vif12.0: {expected}"));
    }
}

#[test]
fn the_json_of_monitor_is_what_its_documentation_says() {
    let document = include_str!("../../../docs/json.md");
    let news = [
        News::Hello {
            schema: SCHEMA,
            version: "0.1.0".to_owned(),
            pid: 4711,
            records_per_second: 20,
        },
        News::Denied(Box::new(by_rule(3, named(&["git.example"], denied("198.51.100.7", 6, 443))))),
        News::Missed { lines: 12 },
        News::Full { readers: 64 },
    ];
    for news in news {
        let line = serde_json::to_string(&news).expect("JSON");
        assert!(document.contains(&line), "docs/json.md lacks this example:\n{line}");
        assert_eq!(serde_json::from_str::<News>(&line).expect("JSON"), news);
    }
}

#[track_caller]
fn check_lessons(news: Vec<News>, expected: &str) {
    let mut lessons = Lessons::default();
    news.iter().for_each(|news| lessons.learn(news));
    assert_eq!(lessons.to_string(), expected);
}

fn told(denied: impl IntoIterator<Item = Denied>) -> Vec<News> {
    denied.into_iter().map(|it| News::Denied(Box::new(it))).collect()
}

const LIMIT: &str = "# Only what was seen is here, and at most some packets a second are told.\n";

#[test]
fn learnt_rules_stand_by_name_in_front_of_the_rule_that_denied() {
    let by_name = |port| by_rule(5, named(&["git.example"], denied("198.51.100.7", 6, port)));
    let other = named(&["a.example", "b.example"], denied("198.51.100.9", 17, 443));
    let packets = [
        by_name(443),
        by_name(22),
        by_name(443),
        by_name(23),
        by_rule(2, denied("198.51.100.8", 17, 123)),
        by_rule(5, denied("198.51.100.8", 1, 8)),
        by_rule(5, denied("10.139.1.1", 17, 53)),
        by_rule(5, denied("10.139.1.2", 6, 53)),
        by_rule(5, denied("10.139.1.2", 6, 80)),
        denied("2001:db8:1::7", 58, 128),
        other,
    ];
    let expected = "\
# 10.137.0.12, fd09:24ef:4179::a89:c on vif12.0: 11 packets denied. For dom0, with the name of
# the qube for QUBE, in this order, because a line moves the rules behind it:
qvm-firewall QUBE add accept dst4=198.51.100.9/32 proto=udp dstports=443-443
qvm-firewall QUBE add accept dst6=2001:db8:1::7/128 proto=icmp icmptype=128
qvm-firewall QUBE add --before 5 accept specialtarget=dns
qvm-firewall QUBE add --before 5 accept dsthost=git.example proto=tcp dstports=22-23
qvm-firewall QUBE add --before 5 accept dsthost=git.example proto=tcp dstports=443-443
qvm-firewall QUBE add --before 5 accept dst4=10.139.1.2/32 proto=tcp dstports=80-80
qvm-firewall QUBE add --before 5 accept dst4=198.51.100.8/32 proto=icmp icmptype=8
qvm-firewall QUBE add --before 2 accept dst4=198.51.100.8/32 proto=udp dstports=123-123
# 198.51.100.9 belongs to several names: a.example, b.example
";
    check_lessons(told(packets), &format!("{expected}{LIMIT}"));
}

#[test]
fn what_no_rule_allows_is_left_out_and_counted() {
    let of = |reason: Reason| Denied { reason, ..denied("198.51.100.7", 6, 1) };
    let mut news = told([
        of(Reason::Blocked),
        of(Reason::Waiting),
        of(Reason::Waiting),
        of(Reason::UnknownSource),
        // By a rule that is not in force any more.
        of(Reason::Rule),
        denied("198.51.100.7", 47, 0),
        Denied { suppressed: 30, ..of(Reason::Truncated) },
    ]);
    news.push(News::Missed { lines: 12 });
    let left_out = "\
# No packet was seen that a rule could allow.
# Left out, no line above allows it: 1 packet, a rule that is not in force any more on vif12.0
# Left out, no line above allows it: 1 packet, blocked on vif12.0
# Left out, no line above allows it: 1 packet, protocol 47 to 198.51.100.7 on vif12.0
# Left out, no line above allows it: 1 packet, truncated on vif12.0
# Left out, no line above allows it: 1 packet, unknown-source on vif12.0
# Left out, no line above allows it: 2 packets, waiting on vif12.0
";
    let untold = "\
# 30 packets more were denied and not told.
# 12 lines came faster than they were read.
";
    check_lessons(news, &format!("{left_out}{LIMIT}{untold}"));
}

#[test]
fn a_name_that_dom0_would_not_take_is_no_name() {
    for name in ["", "-rf", "a b", "a;reboot", "$(x)", "A.example", "a\nb", "*.example"] {
        let expected = "qvm-firewall QUBE add accept dst4=198.51.100.7/32 proto=tcp dstports=1-1\n";
        let mut lessons = Lessons::default();
        let packet = named(&[name], denied("198.51.100.7", 6, 1));
        lessons.learn(&News::Denied(Box::new(packet)));
        let text = lessons.to_string();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, [expected.trim_end()], "{name}");
    }
}
