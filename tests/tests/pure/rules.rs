//! Rule text: what is understood, and what is refused and why.

use std::net::IpAddr;

use firewall_core::rules::parse::{self, Entry};
use firewall_core::rules::problem::Problem;
use firewall_core::rules::{Action, Destination, Family, Rule, Ruleset, Service};
use proptest::prelude::*;

fn entries(lines: &[(&str, &str)]) -> Vec<Entry> {
    let entry = |(key, value): &(&str, &str)| Entry {
        line: None,
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    lines.iter().map(entry).collect()
}

fn parsed(family: Family, text: &str) -> Result<Rule, Problem> {
    let ruleset = parse::ruleset(family, &entries(&[("policy", "drop"), ("0000", text)]));
    ruleset.map(|mut ruleset| ruleset.rules.remove(0)).map_err(|error| error.problem)
}

#[test]
fn what_dom0_writes_is_understood() {
    let tcp = |ports| Service { tcp: Some(ports), ..Service::NONE };
    let check = |text: &str, action, destination, dns, service| {
        let expected = Rule { number: 0, text: text.to_owned(), action, destination, dns, service };
        assert_eq!(parsed(Family::V4, text), Ok(expected));
    };
    let net = |text: &str| Destination::Network(text.parse().expect("a network"));
    let name = |text: &str| Destination::Name(text.to_owned());
    let (accept, drop) = (Action::Accept, Action::Drop);
    check("action=accept", accept, Destination::Any, false, Service::ANY);
    check("action=drop", drop, Destination::Any, false, Service::ANY);
    check("action=drop dst4=10.0.0.0/8", drop, net("10.0.0.0/8"), false, Service::ANY);
    check("action=drop dst4=192.168.1.77/24", drop, net("192.168.1.0/24"), false, Service::ANY);
    check("action=accept dst4=0.0.0.0/0", accept, net("0.0.0.0/0"), false, Service::ANY);
    check("action=accept dst4=8.8.8.8", accept, net("8.8.8.8/32"), false, Service::ANY);
    check(
        "action=accept dsthost=www.example.com proto=tcp dstports=443-443",
        accept,
        name("www.example.com"),
        false,
        tcp(443..=443),
    );
    check("action=accept proto=tcp dstports=80", accept, Destination::Any, false, tcp(80..=80));
    check("action=accept proto=tcp", accept, Destination::Any, false, tcp(0..=65535));
    let both = Service { udp: Some(0..=65535), ..tcp(0..=65535) };
    check("action=accept dstports=0-65535", accept, Destination::Any, false, both);
    let dns = Service { udp: Some(53..=53), ..tcp(53..=53) };
    check("action=accept specialtarget=dns", accept, Destination::Any, true, dns.clone());
    check("action=accept specialtarget=dns dstports=53-53", accept, Destination::Any, true, dns);
    let none = Service::NONE;
    check("action=accept specialtarget=dns dstports=50-60", accept, Destination::Any, true, none);
    let tcp_dns = tcp(53..=53);
    check("action=drop proto=tcp specialtarget=dns", drop, Destination::Any, true, tcp_dns);
    let icmp = |types| Service { icmp: Some(types), ..Service::NONE };
    check("action=accept proto=icmp", accept, Destination::Any, false, icmp(0..=65535));
    check("action=accept proto=icmp icmptype=8", accept, Destination::Any, false, icmp(8..=8));
    check("action=accept icmptype=255", accept, Destination::Any, false, icmp(255..=255));
    check("action=accept dsthost=a.example.", accept, name("a.example"), false, Service::ANY);
    check("action=accept dsthost=xn--a_-1.", accept, name("xn--a_-1"), false, Service::ANY);
}

#[test]
fn what_is_not_understood_is_refused_with_its_reason() {
    let quoted = |text: &str| text.to_owned();
    let check = |text: &str, expected: Problem| {
        assert_eq!(parsed(Family::V4, text), Err(expected), "{text:?}");
    };
    check("", Problem::EmptyOption);
    check(" action=accept", Problem::EmptyOption);
    check("action=accept ", Problem::EmptyOption);
    check("action=accept  proto=tcp", Problem::EmptyOption);
    check("accept", Problem::NotAnOption(quoted("accept")));
    check("action=accept\tproto=tcp", Problem::NotAnAction(quoted("accept\tproto=tcp")));
    check("action=accept dst4=1.2.3.4=5", Problem::NotANetwork(quoted("1.2.3.4=5")));
    check("proto=tcp", Problem::NoAction);
    check("action=reject", Problem::NotAnAction(quoted("reject")));
    check("action=", Problem::NotAnAction(quoted("")));
    check("action=Accept", Problem::NotAnAction(quoted("Accept")));
    check("action=accept foo=bar", Problem::UnknownOption(quoted("foo")));
    check("action=accept expire=1", Problem::UnknownOption(quoted("expire")));
    check("action=accept comment=x", Problem::UnknownOption(quoted("comment")));
    check("action=accept dpi=x", Problem::UnknownOption(quoted("dpi")));
    check("action=accept action=drop", Problem::OptionTwice(quoted("action")));
    check("action=accept proto=tcp proto=udp", Problem::OptionTwice(quoted("proto")));
    check("action=accept dst4=1.2.3.4/32 dsthost=a", Problem::TwoDestinations);
    check("action=accept dstports=1 proto=tcp", {
        Problem::OutOfOrder(quoted("proto"), quoted("dstports"))
    });
    check("proto=tcp action=accept", Problem::OutOfOrder(quoted("action"), quoted("proto")));
    check("action=accept dst4=1.2.3.400/32", Problem::NotANetwork(quoted("1.2.3.400/32")));
    check("action=accept dst4=1.2.3.4/33", Problem::NotANetwork(quoted("1.2.3.4/33")));
    check("action=accept dst4=1.2.3.4/08", Problem::NotANetwork(quoted("1.2.3.4/08")));
    check("action=accept dst4=1.2.3.4/", Problem::NotANetwork(quoted("1.2.3.4/")));
    check("action=accept dst4=01.2.3.4/32", Problem::NotANetwork(quoted("01.2.3.4/32")));
    check("action=accept dst4=host", Problem::NotANetwork(quoted("host")));
    check("action=accept dst4=::1/128", Problem::NotANetwork(quoted("::1/128")));
    check("action=accept dst6=::1/128", Problem::OtherFamily(quoted("::1/128"), Family::V4));
    for name in [
        "",
        ".",
        "..",
        ".a",
        "a..b",
        "*.example",
        "A.example",
        "a b",
        "1.2",
        "01.2.3.4",
        "8.8.8.8",
        "0x7f.1",
        "a.0x7f",
        "host.1",
        "ä",
        "a%b",
        "a/b",
    ] {
        if name != "a b" {
            check(&format!("action=accept dsthost={name}"), Problem::NotAName(quoted(name)));
        }
    }
    let long = "a".repeat(64);
    check(&format!("action=accept dsthost={long}.b"), Problem::NotAName(format!("{long}.b")));
    let long = format!("{}b", "a.".repeat(127));
    check(&format!("action=accept dsthost={long}"), Problem::NotAName(long.clone()));
    check("action=accept proto=sctp", Problem::UnknownProtocol(quoted("sctp")));
    check("action=accept proto=47", Problem::UnknownProtocol(quoted("47")));
    check("action=accept specialtarget=foo", Problem::UnknownTarget(quoted("foo")));
    check("action=accept specialtarget=", Problem::UnknownTarget(quoted("")));
    for ports in ["90-80", "65536", "0-65536", "-1", "80-", "http", "080", "+80", "1-2-3", "", "-"]
    {
        let text = format!("action=accept proto=tcp dstports={ports}");
        check(&text, Problem::NotPorts(quoted(ports)));
    }
    for kind in ["256", "300", "-1", "", "echo", "08"] {
        let text = format!("action=accept proto=icmp icmptype={kind}");
        check(&text, Problem::NotAnIcmpType(quoted(kind)));
    }
    check("action=accept proto=icmp dstports=1", Problem::Conflict("proto=icmp", "dstports"));
    check("action=accept proto=icmp specialtarget=dns", {
        Problem::Conflict("proto=icmp", "specialtarget=dns")
    });
    check("action=accept proto=tcp icmptype=8", {
        Problem::Conflict("icmptype", "a protocol other than icmp")
    });
    check("action=accept dstports=1 icmptype=8", Problem::Conflict("icmptype", "dstports"));
    check("action=accept specialtarget=dns icmptype=8", {
        Problem::Conflict("icmptype", "specialtarget=dns")
    });
    check(&format!("action=accept dsthost={}", "a".repeat(3072)), Problem::TooLong);
    check("action=accept; drop", Problem::NotAnAction(quoted("accept;")));
}

#[test]
fn a_rule_of_the_other_family_blocks_the_client() {
    let refused = parsed(Family::V6, "action=accept dst4=1.2.3.4/32");
    assert_eq!(refused, Err(Problem::OtherFamily("1.2.3.4/32".to_owned(), Family::V6)));
    assert!(parsed(Family::V6, "action=accept dst6=2001:db8::/32").is_ok());
}

#[test]
fn keys_are_policy_and_four_digits_each_once() {
    let check = |lines: &[(&str, &str)], expected: Problem| {
        let error = parse::ruleset(Family::V4, &entries(lines));
        assert_eq!(error.map_err(|error| error.problem), Err(expected), "{lines:?}");
    };
    let policy = ("policy", "drop");
    let accept = "action=accept";
    check(&[("0000", accept)], Problem::NoPolicy);
    check(&[], Problem::NoPolicy);
    check(&[("policy", "")], Problem::NotAnAction(String::new()));
    check(&[("policy", "reject")], Problem::NotAnAction("reject".to_owned()));
    check(&[policy, policy], Problem::KeyTwice("policy".to_owned()));
    check(&[policy, ("0000", accept), ("0000", accept)], Problem::KeyTwice("0000".to_owned()));
    for key in ["00000", "abcd", "000", "", "+001", "0000/x", "٠٠٠٠", "Policy"] {
        check(&[policy, (key, accept)], Problem::UnknownKey(key.to_owned()));
    }
}

#[test]
fn rules_are_ordered_by_number_and_gaps_are_normal() {
    let lines = [
        ("0010", "action=drop"),
        ("policy", "accept"),
        ("9999", "action=accept"),
        ("0002", "action=drop"),
    ];
    let Ruleset { default, rules } =
        parse::ruleset(Family::V4, &entries(&lines)).expect("a ruleset");
    assert_eq!(default, Action::Accept);
    let numbers: Vec<u16> = rules.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, [2, 10, 9999]);
}

proptest! {
    // Nothing is written beside the sources: what fails is printed, and becomes a named case.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The parser is total, and what it takes it took whole: the text is kept.
    #[test]
    fn any_text_gives_rules_or_an_error(text in "\\PC{0,80}", key in "[0-9]{4}|\\PC{0,6}") {
        let _ = parse::ruleset(Family::V6, &entries(&[("policy", "drop"), (&key, &text)]));
    }

    /// Text that is nearly right is the most dangerous.
    #[test]
    fn an_edited_rule_is_refused_or_says_what_its_text_says(
        position in 0_usize..64,
        insert in "[ =/.0-9a-z,-]{0,2}",
        cut in 0_usize..3,
    ) {
        let whole = "action=accept dst4=10.0.0.0/24 proto=tcp dstports=80-443";
        let at = position.min(whole.len());
        let text = format!("{}{insert}{}", &whole[..at], &whole[(at + cut).min(whole.len())..]);
        if let Ok(rule) = parsed(Family::V4, &text) {
            let again: Vec<String> = again(&rule);
            for token in text.split(' ') {
                prop_assert!(again.iter().any(|it| it == token), "{text:?} became {rule:?}");
            }
        }
    }
}

/// All ways to write the options of a rule that only has these.
fn again(rule: &Rule) -> Vec<String> {
    let mut tokens = vec![format!("action={}", rule.action.name())];
    if let Destination::Network(network) = &rule.destination {
        // Host bits and a missing length are dom0's freedom.
        let written: Vec<&str> =
            rule.text.split(' ').filter(|token| token.starts_with("dst4=")).collect();
        for token in written {
            let value = &token["dst4=".len()..];
            let (address, length) = value.split_once('/').unwrap_or((value, "32"));
            let address: IpAddr = address.parse().expect("an address");
            let length: u8 = length.parse().expect("a length");
            let meant = ipnet::IpNet::new(address, length).expect("a network").trunc();
            assert_eq!(&meant, network);
            tokens.push(token.to_owned());
        }
    }
    match (&rule.service.tcp, &rule.service.udp, &rule.service.icmp) {
        (Some(_), None, None) => tokens.push("proto=tcp".to_owned()),
        (None, Some(_), None) => tokens.push("proto=udp".to_owned()),
        (None, None, Some(_)) => tokens.push("proto=icmp".to_owned()),
        _ => {}
    }
    if let Some(ports) = &rule.service.tcp {
        tokens.push(format!("dstports={}-{}", ports.start(), ports.end()));
        tokens.push(format!("dstports={}", ports.start()));
    }
    tokens
}
