//! What people read, word by word, and what scripts read, field by field. After a change
//! that is meant, FIREWALL_BLESS=1 writes the expected texts anew.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use firewall_common::abi::Local;

use firewall_agent::cli::colour::Colours;
use firewall_agent::cli::explain::text::explained;
use firewall_agent::cli::{check, text};
use firewall_agent::edges::sources::rule_files;
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::client::{Links, Vif};
use firewall_core::events::{Event, Why};
use firewall_core::rules::Action;
use firewall_core::rules::explain::Aspect;
use firewall_core::rules::source::SourceError;
use firewall_core::time::Moment;
use firewall_core::told::SCHEMA;
use firewall_core::told::explanation::{Connection, Explained, Outcome, PacketStatus};
use firewall_core::told::failure::ErrorStatus;
use firewall_core::told::passage::BaseChain;
use firewall_core::told::schema::schema;
use firewall_core::told::status::{Attachment, Mode, State};
use firewall_core::told::words::Named;
use firewall_core::world::{Settings, World};
use firewall_tests::packets::{ICMP, TCP, UDP};
use firewall_tests::rig::agent::binary;
use serde_json::Value;

use super::memory::{clients, settle, step};

const CLIENT: &str = "10.137.0.12";
const RULES: &str = "policy = drop\n\
    0000 = action=drop dst4=192.168.0.0/16\n\
    0001 = action=accept dst4=198.51.100.0/24 proto=tcp dstports=443-443\n\
    0002 = action=accept dst4=198.51.100.7 proto=tcp dstports=443-443\n\
    0003 = action=accept specialtarget=dns\n\
    0004 = action=accept dsthost=git.example proto=tcp dstports=22-22\n\
    0005 = action=accept proto=icmp\n\
    commit\n";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Compares a text with the file that holds what it should be.
#[track_caller]
fn check(name: &str, found: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pure/expected");
    let path: PathBuf = directory.join(name);
    if std::env::var_os("FIREWALL_BLESS").is_some() {
        fs::write(&path, found).expect("a file that can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}: FIREWALL_BLESS=1 takes what is there for right");
}

/// An agent's memory with one client that has these rules, and one that has none.
fn world(rules: &str) -> World {
    let mut world = World::new(Settings { mode: Mode::Standalone, ..Settings::default() });
    let client = address(CLIENT);
    step(&mut world, Event::AllRules([].into()));
    let of_clients = vec![address("192.0.2.53")];
    step(&mut world, Event::Servers { of_clients, own: Vec::new() });
    let addresses = [client, address("10.137.0.13")].into();
    let vifs = vec![Vif { index: 7, name: "vif12.0".to_owned(), addresses }];
    let locals = [(address("10.137.0.1"), Local::One)].into();
    step(&mut world, Event::Links(Links { vifs, locals, ..Links::default() }));
    let rules = rule_files::ruleset(client, rules).map_err(|error| SourceError {
        origin: "rules.d/10.137.0.12".to_owned(),
        error: Box::new(error),
    });
    step(&mut world, Event::Rules { client, rules: Some(rules) });
    settle(&mut world);
    world
}

fn packet(from: &str, to: &str, protocol: u8, port: u16) -> PacketStatus {
    PacketStatus::plain(address(from), address(to), protocol, port)
}

/// All that is said about a packet, with tables in the kernel that say the same.
fn told(world: &World, packet: &PacketStatus, connection: Option<Connection>) -> Explained {
    let agent = world.explain(Moment::BOOT, packet.source, &packet.packet()).remove(0);
    Explained {
        schema: SCHEMA,
        client: packet.source,
        name: None,
        packet: Some(*packet),
        outcome: Outcome::of(&agent.judgement, connection, agent.to_client, packet.first_fragment),
        gateway: None,
        judgement: agent.judgement.clone(),
        kernel: Some(agent.judgement.clone()),
        agent: Some(agent),
        agent_problem: None,
        kernel_problem: None,
        agree: Some(true),
        connection,
        connection_problem: None,
    }
}

fn as_text(explanations: &[Explained]) -> String {
    let texts = explanations.iter().map(|it| explained(it, false, Colours::NONE));
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn explanations_read_as_they_should() {
    let live = world(RULES);
    let (web, lan) = ("198.51.100.7", "192.168.1.1");
    check("explain-accepted.txt", &as_text(&[told(&live, &packet(CLIENT, web, TCP, 443), None)]));
    check("explain-rule.txt", &as_text(&[told(&live, &packet(CLIENT, lan, TCP, 443), None)]));
    check("explain-default.txt", &as_text(&[told(&live, &packet(CLIENT, web, UDP, 443), None)]));
    let dns = packet(CLIENT, "10.139.1.1", UDP, 53);
    check("explain-dns.txt", &as_text(&[told(&live, &dns, None)]));
    let gateway = packet(CLIENT, "10.137.0.1", TCP, 8082);
    let accepted = packet(CLIENT, "10.137.0.1", ICMP, 8);
    check("explain-local.txt", &as_text(&[gateway, accepted].map(|it| told(&live, &it, None))));
    let answer = packet(CLIENT, web, TCP, 40_000);
    let answers = Some(Connection::Answers);
    check("explain-answer.txt", &as_text(&[told(&live, &answer, answers)]));
    let waiting = packet("10.137.0.13", web, TCP, 443);
    check("explain-waiting.txt", &as_text(&[told(&live, &waiting, None)]));
    let all = world("policy = drop\n0000 = action=accept\ncommit\n");
    let other = packet(CLIENT, "10.137.0.13", TCP, 22);
    check("explain-other-client.txt", &as_text(&[told(&all, &other, None)]));
    let blocked = world("policy = drop\n0000 = action=accept proto=tpc\ncommit\n");
    let https = packet(CLIENT, web, TCP, 443);
    check("explain-blocked.txt", &as_text(&[told(&blocked, &https, None)]));
    let mut wrong = told(&live, &https, None);
    if let Some(kernel) = &mut wrong.kernel {
        kernel.rule_index = Some(4);
    }
    wrong.agree = Some(false);
    check("explain-disagreement.txt", &as_text(&[wrong]));
    let many: String =
        (0..60).map(|it| format!("{it:04} = action=drop dst4=10.9.{it}.0/24\n")).collect();
    let many = world(&format!("policy = drop\n{many}0060 = action=accept\ncommit\n"));
    check("explain-many.txt", &as_text(&[told(&many, &https, None)]));
}

/// A chain of others, as nftables lists it.
fn between(hook: &str, priority: i32, table: &str) -> BaseChain {
    let [hook, table, chain] = [hook, table, "strict"].map(str::to_owned);
    BaseChain { hook, priority, table, chain }
}

#[test]
fn what_is_accepted_and_does_not_leave_is_explained_with_what_is_in_between() {
    let mut world = world(RULES);
    let at = |second| Moment::after_boot(Duration::from_secs(second));
    world.step(at(0), Event::Passage([0, 0]));
    world.step(at(10), Event::Passage([100, 40]));
    let https = packet(CLIENT, "198.51.100.7", TCP, 443);
    let explain = |world: &World| told(world, &https, None);
    let chains = vec![
        between("prerouting", -150, "ip6 others"),
        between("forward", -5, "inet others"),
        between("postrouting", 0, "ip others"),
    ];
    world.step(at(10), Event::Between(Ok(chains.clone())));
    let lost = explain(&world);
    check("explain-lost.txt", &as_text(std::slice::from_ref(&lost)));
    let json = serde_json::to_string_pretty(&[lost]).expect("JSON");
    check("explain-lost.json", &(json + "\n"));
    // Of what is denied, and of what is for the netvm itself, none is missing.
    for (to, protocol, port) in [("192.168.1.1", TCP, 443), ("10.137.0.1", ICMP, 8)] {
        let told = told(&world, &packet(CLIENT, to, protocol, port), None);
        assert_eq!(told.lost(), None, "{to}");
        assert!(!as_text(&[told]).contains("lost"), "{to}");
    }
    world.step(at(10), Event::Between(Err(Why::of("no nft"))));
    let text = as_text(&[explain(&world)]);
    assert!(text.contains("nobody knows what: no nft"), "{text}");
    world.step(at(20), Event::Passage([200, 140]));
    assert_eq!(explain(&world).lost(), None);
}

#[test]
fn rules_are_shown_with_what_hides_them() {
    let world = world(RULES);
    let shown = clients(&world).into_iter();
    let shown = shown.map(|it| text::details(&it, &[], Colours::NONE));
    check("show.txt", &shown.collect::<Vec<_>>().join("\n"));
}

#[test]
fn mistakes_in_a_file_are_told_with_their_place_and_what_to_write() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pure/expected");
    let text = fs::read_to_string(directory.join("mistakes.rules")).expect("a file");
    let report = check::report(Path::new("mistakes.rules"), address(CLIENT), &text, None);
    check("check.txt", &check::rendered(&report, Colours::NONE));
    let json = serde_json::to_string_pretty(&report).expect("JSON");
    check("check.json", &(json + "\n"));
    let text = "policy = drop\ncommit\n";
    let right = check::report(Path::new("right.rules"), address(CLIENT), text, None);
    check("check-right.txt", &check::rendered(&right, Colours::NONE));
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    let live = world(RULES);
    for (to, protocol, port) in [("198.51.100.7", TCP, 443), ("192.168.1.1", UDP, 53)] {
        let told = as_text(&[told(&live, &packet(CLIENT, to, protocol, port), None)]);
        assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
    }
}

/// What docs/json.md says.
fn documented() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join("docs/json.md")).expect("text")
}

/// Every field of the schema, with its form; every word that a field may have, without one.
fn told_by_schema() -> (Vec<(String, Value)>, Vec<String>) {
    fn collect(value: &Value, fields: &mut Vec<(String, Value)>, words: &mut Vec<String>) {
        let properties = value.get("properties").and_then(Value::as_object).into_iter().flatten();
        fields.extend(properties.map(|(name, form)| (name.clone(), form.clone())));
        let listed = value.get("enum").and_then(Value::as_array).into_iter().flatten();
        let words_here = listed.chain(value.get("const")).filter_map(Value::as_str);
        words.extend(words_here.map(str::to_owned));
        match value {
            Value::Object(all) => all.values().for_each(|it| collect(it, fields, words)),
            Value::Array(all) => all.iter().for_each(|it| collect(it, fields, words)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let schema = serde_json::to_value(schema()).expect("JSON");
    let (mut fields, mut words) = (Vec::new(), Vec::new());
    collect(&schema, &mut fields, &mut words);
    assert!(fields.len() > 100 && words.len() > 50, "{} {}", fields.len(), words.len());
    (fields, words)
}

#[test]
fn every_field_and_word_of_the_json_is_documented() {
    let documented = documented();
    assert!(documented.contains(&format!("`schema` is {SCHEMA}")));
    let (fields, words) = told_by_schema();
    for (name, _) in &fields {
        assert!(documented.contains(&format!("`{name}`")), "docs/json.md lacks `{name}`");
    }
    // Those of the kernel program are in SECURITY.md.
    let reasons: Vec<&str> = Reason::ALL.iter().map(|it| it.name()).collect();
    for word in words.iter().filter(|word| !reasons.contains(&word.as_str())) {
        assert!(documented.contains(&format!("`{word}`")), "docs/json.md lacks `{word}`");
    }
}

#[test]
fn no_field_is_documented_that_there_is_not() {
    let (fields, _) = told_by_schema();
    let names: BTreeSet<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    let documented = documented();
    let rows = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let mut count = 0;
    for (first, _) in rows {
        for name in first.trim_end_matches('`').split("`, `") {
            assert!(names.contains(name), "docs/json.md tells of `{name}`, which no type has");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn a_number_with_a_unit_says_it_in_its_name() {
    let (fields, _) = told_by_schema();
    let mut count = 0;
    for (name, form) in &fields {
        let kind = form["type"].to_string();
        let about = form["description"].as_str().unwrap_or_default().to_lowercase();
        for (word, unit) in [("second", "second"), ("bytes", "bytes"), ("how long ago", "second")] {
            if kind.contains("integer") && about.contains(word) && !about.contains("milli") {
                assert!(name.contains(unit), "{name}: {about}");
                count += 1;
            }
        }
        assert!(!about.contains("milli") || name.ends_with("_ms"), "{name}: {about}");
    }
    assert!(count > 5, "{count}");
}

#[test]
fn a_word_of_json_is_the_one_that_people_read() {
    fn check(value: impl serde::Serialize + std::fmt::Debug, name: &str) {
        assert_eq!(serde_json::to_value(&value).expect("JSON"), name, "{value:?}");
    }
    for &it in Attachment::ALL {
        check(it, it.name());
    }
    for it in [State::Live, State::Blocked, State::Waiting, State::Absent] {
        check(it, it.name());
    }
    for it in [Mode::Qubes, Mode::Standalone, Mode::Whonix] {
        check(it, it.name());
    }
    for it in [Action::Accept, Action::Drop] {
        check(it, it.name());
    }
    for it in [Aspect::Destination, Aspect::Protocol, Aspect::Port] {
        check(it, it.name());
    }
    for &it in Reason::ALL {
        check(Named(it), it.name());
    }
    for &it in Verdict::ALL {
        check(Named(it), it.name());
    }
    let unknown = serde_json::from_str::<Named<Verdict>>("\"allow\"").map_err(|it| it.to_string());
    assert_eq!(unknown.expect_err("no verdict"), "`allow` is no verdict");
}

#[test]
fn the_json_of_explain_is_as_documented() {
    let live = world(RULES);
    let explained = told(&live, &packet(CLIENT, "198.51.100.7", TCP, 443), None);
    let json = serde_json::to_string_pretty(&[explained]).expect("JSON");
    check("explain.json", &(json.clone() + "\n"));
    let back: Vec<Explained> = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(back[0].outcome, Outcome::Forwarded);
}

/// Exit code of a command, and what it prints for scripts.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut agent = Command::new(binary().expect("an agent"));
    let output = agent.args(arguments).output().expect("an end");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn a_command_without_an_answer_tells_scripts_why() {
    let nobody = ["--socket", "/nobody/listens/here"];
    for (arguments, code, why) in [
        (["audit", CLIENT, "--off"].as_slice(), 3, "no agent answers at /nobody/listens/here"),
        (&["monitor"], 3, "no agent answers at /nobody/listens/here"),
        (&["explain", "--to", "192.0.2.1:1/tcp"], 2, "say who sends the packet"),
        (&["check", "/no.rules"], 2, "whose rules are these?"),
    ] {
        let socket = if arguments[0] == "check" { &nobody[..0] } else { &nobody[..] };
        let (exit, text) = run(&[arguments, socket].concat());
        assert_eq!((exit, text.as_str()), (Some(code), ""), "{arguments:?}, for people");
        let (exit, text) = run(&[arguments, socket, &["--json"]].concat());
        let told: ErrorStatus = serde_json::from_str(&text).expect("an error");
        assert_eq!((exit, told.schema), (Some(code), SCHEMA), "{arguments:?}");
        assert!(told.error.starts_with(why), "{arguments:?}: {}", told.error);
    }
}

#[test]
fn the_schema_can_be_had_from_the_command() {
    let (exit, text) = run(&["schema"]);
    assert_eq!(exit, Some(0));
    let printed: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(printed, serde_json::to_value(schema()).expect("JSON"));
}
