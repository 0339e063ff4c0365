//! Which qube has which address, as dom0 says in keys of QubesDB.

use std::ffi::OsString;

use firewall_agent::cli::said::merge;
use firewall_core::introductions::{Introductions, is_name};
use firewall_core::options::Said;

fn said(keys: &[(&str, &str)]) -> Said {
    keys.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Who has which address, as `ADDRESS NAME`.
fn names(introductions: &Introductions) -> Vec<String> {
    introductions.names.iter().map(|(address, name)| format!("{address} {name}")).collect()
}

#[test]
fn a_key_introduces_a_qube_with_all_its_addresses() {
    #[track_caller]
    fn check(keys: &[(&str, &str)], expected: &[&str]) {
        let introductions = Introductions::of(&said(keys));
        assert_eq!(names(&introductions), expected);
        assert_eq!(introductions.problems, Vec::<String>::new());
    }
    check(&[], &[]);
    check(&[("client-work", "10.137.0.12")], &["10.137.0.12 work"]);
    check(&[("client-work", " 10.137.0.12,fd09::c\n")], &["10.137.0.12 work", "fd09::c work"]);
    check(&[("client-work", "10.137.0.12 , 10.137.0.12")], &["10.137.0.12 work"]);
    check(&[("client-work", "FD09:0::C")], &["fd09::c work"]);
    check(
        &[("client-work", "10.137.0.12"), ("client-Work", "10.137.0.13")],
        &["10.137.0.12 work", "10.137.0.13 Work"],
    );
    check(&[("client-work", ""), ("client-play", " , ")], &[]);
    check(&[("reject-rate", "10.137.0.12"), ("clients", "10.137.0.12")], &[]);
}

#[test]
fn an_address_that_two_claim_or_that_is_none_is_nobodys_and_the_key_is_named() {
    #[track_caller]
    fn check(keys: &[(&str, &str)], expected: &[&str], wrong: &[&str]) {
        let introductions = Introductions::of(&said(keys));
        assert_eq!(names(&introductions), expected, "{:?}", introductions.problems);
        assert_eq!(introductions.problems.len(), wrong.len(), "{:?}", introductions.problems);
        for (problem, wrong) in introductions.problems.iter().zip(wrong) {
            assert!(problem.contains(wrong), "{problem}");
            assert!(problem.starts_with("/vm-config/firewall-client-"), "{problem}");
            assert!(problem.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{problem}");
        }
    }
    check(
        &[("client-a", "10.137.0.12 10.137.0.13"), ("client-b", "10.137.0.12 10.137.0.14")],
        &["10.137.0.13 a", "10.137.0.14 b"],
        &["firewall-client-a and /vm-config/firewall-client-b: each claims 10.137.0.12; nobody"],
    );
    // However it is written.
    check(&[("client-a", "fd09::c"), ("client-b", "FD09:0::C")], &[], &["each claims fd09::c"]);
    check(
        &[("client-a", "10.137.0.12/32 10.137.0.13")],
        &["10.137.0.13 a"],
        &["firewall-client-a: `10.137.0.12/32` is no address"],
    );
    check(&[("client-a", "\u{1b}[2J")], &[], &["`\\u{1b}[2J` is no address"]);
    for name in ["", "1a", "-a", "a b", "a/b", "a+b", "\u{e9}", &"a".repeat(32)] {
        check(&[(&format!("client-{name}"), "10.137.0.12")], &[], &["no qube can have this name"]);
    }
    // Who cannot be introduced takes nothing from others.
    check(
        &[("client-a b", "10.137.0.12"), ("client-a", "10.137.0.12")],
        &["10.137.0.12 a"],
        &["no qube can have this name"],
    );
}

#[test]
fn a_name_is_one_that_a_qube_can_have() {
    for name in ["a", "work", "Work-2.x_y", &"a".repeat(31)] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", "2work", "_a", ".a", "a b", "a\n", "a+b", "a%", "@anyvm", &"a".repeat(32)] {
        assert!(!is_name(name), "{name}");
    }
}

#[test]
fn what_introduces_a_qube_is_no_option() {
    let keys = said(&[("client-work", "10.137.0.12"), ("client-x", "?"), ("reject-rate", "5")]);
    for command in ["run", "prepare"] {
        let line: Vec<OsString> = ["firewall-agent", command].map(Into::into).into();
        let heard = merge(&line, &keys, &Said::new(), |_| Ok(())).expect("a good line").heard;
        assert_eq!(heard.problems, Vec::<String>::new());
        assert_eq!(names(&heard.introductions), ["10.137.0.12 work"]);
        assert_eq!(heard.introductions.problems.len(), 1);
        // A daemon starts anew when these are others.
        assert!(heard.good.keys().all(|name| name == "reject-rate"), "{:?}", heard.good);
    }
}
