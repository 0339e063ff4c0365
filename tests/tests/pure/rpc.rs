//! Calls by qrexec: what an argument of a stranger is taken for, and what may leave.

use clap::ValueEnum as _;
use firewall_agent::cli::rpc::bounded::{MOST_JSON, MOST_TEXT, json, text};
use firewall_agent::cli::rpc::question::{Form, Question, Service, form, question};
use firewall_agent::cli::who::Who;
use firewall_core::told::own::Aim;
use firewall_tests::packets::{ICMP, ICMPV6, TCP, UDP};

fn ask(service: Service, argument: &str) -> Result<Question, String> {
    question(service, Some(b"work"), argument.as_bytes())
}

fn address(text: &str) -> Who {
    Who::Address(text.parse().expect("an address"))
}

fn name(text: &str) -> Who {
    Who::Name(text.to_owned())
}

#[test]
fn an_argument_is_read_field_by_field() {
    use Service::{Monitor, Show, Status};
    let check = |service: Service, argument: &str, expected: Question| {
        assert_eq!(ask(service, argument), Ok(expected), "{argument}");
    };
    check(Status, "", Question::Status);
    check(Status, "json", Question::Status);
    check(Show, "10.137.0.12", Question::Show(address("10.137.0.12")));
    check(Show, "fd09__c+json", Question::Show(address("fd09::c")));
    check(Show, "work", Question::Show(name("work")));
    check(Show, "wo_rk-2.x", Question::Show(name("wo_rk-2.x")));
    check(Show, "json+json", Question::Show(name("json")));
    check(Monitor, "", Question::Monitor { seconds: 10, learn: false });
    check(Monitor, "1", Question::Monitor { seconds: 1, learn: false });
    check(Monitor, "60+learn", Question::Monitor { seconds: 60, learn: true });
    check(Monitor, "learn", Question::Monitor { seconds: 10, learn: true });
    check(Monitor, "5+json", Question::Monitor { seconds: 5, learn: false });
    for (argument, expected) in [
        ("work+198.51.100.7+443+tcp", "198.51.100.7:443/tcp"),
        ("fd09__c+2001_db8__7+53+udp+json", "[2001:db8::7]:53/udp"),
        ("work+198.51.100.7+icmp", "198.51.100.7/icmp"),
        ("work+2001_db8__7+1+icmp", "[2001:db8::7]/icmp:1"),
        ("work+198.51.100.7+47", "198.51.100.7/47"),
        ("work+git.example+22+tcp", "git.example:22/tcp"),
    ] {
        let asked = ask(Service::Explain, argument);
        let is_it = matches!(&asked, Ok(Question::Explain(_, to)) if to.text == expected);
        assert!(is_it, "{argument}: {asked:?}");
    }
    assert_eq!(form(b"json"), Form::Json);
    assert_eq!(form(b"no such thing+json"), Form::Json);
    for argument in ["", "work", "xjson", "json+work", "JSON"] {
        assert_eq!(form(argument.as_bytes()), Form::Text, "{argument}");
    }
}

#[test]
fn a_qube_asks_about_itself_whatever_its_argument_says() {
    let check = |argument: &str, aim: Option<(&str, u8, u16)>| {
        let aim = aim.map(|(destination, protocol, port)| {
            let destination = destination.parse().expect("an address");
            Aim { destination, protocol, port }
        });
        let expected = Question::Why { qube: "work".to_owned(), aim };
        assert_eq!(ask(Service::Why, argument), Ok(expected), "{argument}");
    };
    check("", None);
    check("json", None);
    check("198.51.100.7+443+tcp", Some(("198.51.100.7", TCP, 443)));
    check("2001_db8__7+53+udp+json", Some(("2001:db8::7", UDP, 53)));
    check("198.51.100.7+icmp", Some(("198.51.100.7", ICMP, 8)));
    check("2001_db8__7+icmp", Some(("2001:db8::7", ICMPV6, 128)));
    check("198.51.100.7+47", Some(("198.51.100.7", 47, 0)));
    // Where names lead may be known because of others.
    for argument in ["play", "10.137.0.13", "git.example+22+tcp", "play+198.51.100.7+443+tcp"] {
        assert!(ask(Service::Why, argument).is_err(), "{argument}");
    }
    for caller in [None, Some(""), Some("dom0"), Some("@anyvm"), Some("a b"), Some("work\n")] {
        let asked = question(Service::Why, caller.map(str::as_bytes), b"");
        assert!(asked.is_err(), "{caller:?}: {asked:?}");
    }
    assert!(question(Service::Why, Some(b"w\xffork"), b"").is_err());
}

#[test]
fn what_is_wrong_in_an_argument_is_refused_in_one_line_of_ascii() {
    let long = "a".repeat(256);
    let wrong = [
        "+",
        "json+",
        "work+",
        "+work",
        "work++json",
        "..",
        "../x",
        "%00",
        "a b",
        "a\nb",
        "a;b",
        "$(x)",
        "\u{e9}",
        "-work",
        "--help",
        "--socket",
        "work+json+json+json",
        "10.137.0.12+x",
        &long,
    ];
    for &service in Service::value_variants() {
        for argument in wrong {
            let error = ask(service, argument).expect_err(argument);
            assert!(error.contains("call it as firewall."), "{error}");
            assert!(error.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{error}");
            assert!(error.len() < 600, "{error}");
        }
    }
    for argument in
        ["0", "61", "-1", "1.5", "99999999999999999999", "5+5", "learn+json", "5+learn+json"]
    {
        assert!(ask(Service::Monitor, argument).is_err(), "{argument}");
    }
    for argument in
        ["work", "work+198.51.100.7", "work+198.51.100.7+443", "work+198.51.100.7+65536+tcp"]
    {
        assert!(ask(Service::Explain, argument).is_err(), "{argument}");
    }
    assert!(ask(Service::Status, "work").is_err());
    assert!(ask(Service::Show, "json").is_err());
}

#[test]
fn what_leaves_is_printable_ascii_of_bounded_size() {
    assert_eq!(text("a\tb\u{1b}[2J\u{e9}\u{7f}\r\n"), "a\\u{9}b\\u{1b}[2J\\u{e9}\\u{7f}\\u{d}\n");
    assert_eq!(
        json("{\"a\":\"\u{e9}\u{1f600}\u{7f}\"}\n"),
        "{\"a\":\"\\u00e9\\ud83d\\ude00\\u007f\"}\n"
    );
    let back: String = serde_json::from_str(&json("\"\u{e9}\u{1f600}\u{7f}\"")).expect("JSON");
    assert_eq!(back, "\u{e9}\u{1f600}\u{7f}");
    let line = "x".repeat(99) + "\n";
    let whole = line.repeat(600);
    assert_eq!(text(&whole), whole);
    for long in [line.repeat(700), "x".repeat(70_000), "\u{1b}".repeat(60_000)] {
        let cut = text(&long);
        assert!(cut.len() <= MOST_TEXT, "{}", cut.len());
        assert!(cut.contains("CUT HERE: ") && cut.ends_with('\n'));
    }
    let long = format!("[\"{}\"]\n", "x".repeat(MOST_JSON));
    let error: serde_json::Value = serde_json::from_str(&json(&long)).expect("JSON");
    assert!(error["error"].as_str().is_some_and(|it| it.contains("more than")), "{error}");
}
