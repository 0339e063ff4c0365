//! Options that dom0 sets: what each key comes to, together with the command line.

use std::ffi::OsString;

use firewall_agent::cli::Command;
use firewall_agent::cli::said::{Merged, merge};
use firewall_agent::daemon::Options;
use firewall_core::options::Said;
use firewall_core::told::options::{OptionFrom, OptionStatus};

fn said(keys: &[(&str, &str)]) -> Said {
    keys.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn merged(line: &str, keys: &[(&str, &str)], before: &[(&str, &str)]) -> Merged {
    let line: Vec<OsString> = line.split(' ').map(Into::into).collect();
    let merged = merge(&line, &said(keys), &said(before), |command| match command {
        Command::Run(run) => Options::try_from(run).map(drop),
        _ => Ok(()),
    });
    merged.expect("a good command line")
}

/// What is set, as `NAME=VALUE`, with a `*` if dom0 says so, and the problems.
fn seen(line: &str, keys: &[(&str, &str)], before: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let heard = merged(line, keys, before).heard;
    let options = heard.options.iter().map(|OptionStatus { name, value, from }| {
        let by = if *from == OptionFrom::Qubesdb { "*" } else { "" };
        format!("{by}{name}={value}")
    });
    (options.collect(), heard.problems)
}

#[test]
fn dom0_sets_what_the_command_line_can_set_and_the_last_word_is_dom0s() {
    #[track_caller]
    fn check(line: &str, keys: &[(&str, &str)], expected: &[&str]) {
        let (options, problems) = seen(line, keys, &[]);
        assert_eq!(
            (options, problems),
            (expected.iter().map(|it| it.to_string()).collect(), vec![])
        );
    }
    const RUN: &str = "firewall-agent run --mode qubes";
    check(RUN, &[], &["mode=qubes"]);
    check(RUN, &[("reject-rate", "5")], &["mode=qubes", "*reject-rate=5"]);
    check(
        &format!("{RUN} --reject-rate 7"),
        &[("reject-rate", "5")],
        &["mode=qubes", "*reject-rate=5"],
    );
    check(RUN, &[("mode", "standalone")], &["*mode=standalone"]);
    check(
        RUN,
        &[("xdp", "1"), ("guard-neighbours", "")],
        &["mode=qubes", "*xdp=on", "*guard-neighbours=off"],
    );
    check(&format!("{RUN} --xdp"), &[("xdp", "off")], &["mode=qubes", "*xdp=off"]);
    let names = "*private-name=a.example, b.example, c.example";
    check(
        &format!("{RUN} --private-name a.example"),
        &[("private-name", "b.example,c.example")],
        &["mode=qubes", names],
    );
    check(RUN, &[("private-name", "")], &["mode=qubes", "*private-name="]);
    // The other one is looked at again, with this one.
    check(
        "firewall-agent run --mode standalone",
        &[("mode", "qubes"), ("open-on-stop", "yes")],
        &["*mode=qubes", "*open-on-stop=on"],
    );
    check(
        "firewall-agent run --mode standalone",
        &[("local-rate", "9"), ("open-on-stop", "0"), ("source", "files")],
        &["mode=standalone", "*source=files", "*local-rate=9", "*open-on-stop=off"],
    );
    // What only `run` has is nothing to `prepare`.
    check(
        "firewall-agent prepare --mode qubes",
        &[("reject-rate", "?"), ("vifs", "tap*"), ("nonsense", "1")],
        &["*vifs=tap*", "mode=qubes"],
    );
}

#[test]
fn what_is_wrong_in_a_key_changes_nothing_and_names_the_key() {
    #[track_caller]
    fn check(keys: &[(&str, &str)], before: &[(&str, &str)], expected: &[&str], wrong: &[&str]) {
        let (options, problems) = seen("firewall-agent run --mode standalone", keys, before);
        assert_eq!(options[0], "mode=standalone");
        assert_eq!(options[1..], *expected, "{problems:?}");
        assert_eq!(problems.len(), wrong.len(), "{problems:?}");
        for (problem, wrong) in problems.iter().zip(wrong) {
            assert!(
                problem.starts_with("/vm-config/firewall-") && problem.contains(wrong),
                "{problem}"
            );
            assert!(!problem.contains('\n'), "{problem}");
        }
    }
    let none = "it does not count";
    check(&[("reject-rate", "0")], &[], &[], &["firewall-reject-rate: invalid value '0'"]);
    check(
        &[("reject-rate", "fast")],
        &[("reject-rate", "5")],
        &["*reject-rate=5"],
        &["what it said before stays"],
    );
    check(&[("xdp", "maybe")], &[], &[], &[none]);
    check(&[("nonsense", "1")], &[], &[], &["firewall-nonsense: dom0 sets no option of this name"]);
    check(&[("help", "1"), ("root", "/tmp")], &[], &[], &[none, none]);
    check(&[("vifs", "a b")], &[], &[], &["is not an interface name"]);
    // It goes with mode qubes only.
    check(
        &[("open-on-stop", "1"), ("local-rate", "9")],
        &[],
        &["*local-rate=9"],
        &["--open-on-stop"],
    );
    check(&[("socket", "")], &[], &[], &[none]);
    // Nobody gets another option in by a value.
    check(&[("reject-rate", "5 --xdp")], &[], &[], &[none]);
    check(&[("private-name", "a.example --xdp")], &[], &["*private-name=a.example, --xdp"], &[]);
}
