//! Names in rules, with a DNS server that tells the truth: they are looked up, followed and
//! shown.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use firewall_tests::rig::agent::{self, PATIENCE};
use firewall_tests::rig::dns::Reply;
use firewall_tests::traffic::probe::{Outcome, SILENCE};

use nix::sys::signal::Signal;

use super::named::{DNS, Named, ONE, TWO, does_not_answer};
use super::world::PROHIBITED4;

/// An answer is used that long, even if its time is shorter.
const FLOOR: Duration = Duration::from_secs(5);

#[test]
fn a_rule_follows_its_name_when_the_time_of_an_answer_is_over() -> Result<()> {
    let named = Named::new("follow")?;
    named.dns.say("a.example", Reply::addresses("a.example", 1, &[ONE]));
    named.rules(&["action=accept dsthost=a.example proto=tcp"])?;
    named.leads("a.example", &[ONE])?;
    named.check("at first", &[(ONE, Outcome::Accepted), (TWO, PROHIBITED4)]);
    named.dns.say("a.example", Reply::addresses("a.example", 1, &[TWO]));
    let known = named.dns.asked("a.example").len();
    let asked = named.dns.wait_for("a.example", known + 1, PATIENCE)?;
    let deadline = Instant::now() + PATIENCE;
    while named.probe(TWO).run(SILENCE)? != Outcome::Accepted {
        assert!(Instant::now() < deadline, "{}", named.agent.log());
    }
    let live = Instant::now();
    let [.., before, asked] = &asked[..] else { bail!("asked {} times", asked.len()) };
    let late = asked.at.duration_since(before.at).saturating_sub(FLOOR);
    println!("asked again {late:?} too late, in force {:?} after that", live - asked.at);
    Ok(())
}

/// What a command of the agent prints, with `N` for all numbers of seconds, and its exit code.
fn told(named: &Named, arguments: &[&str]) -> Result<(String, Option<i32>)> {
    let mut command = Command::new(agent::binary()?);
    let output = command.args(arguments).arg("--socket").arg(named.agent.socket()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let words = text.split(' ').collect::<Vec<_>>();
    let seconds = |(index, word): (usize, &&str)| {
        let number = word.trim_start_matches('(');
        let unit = words.get(index + 1).is_some_and(|it| it.starts_with('s'));
        let is_seconds = unit && number.parse::<u64>().is_ok();
        if is_seconds { word.replace(number, "N") } else { (*word).to_owned() }
    };
    Ok((words.iter().enumerate().map(seconds).collect::<Vec<_>>().join(" "), output.status.code()))
}

#[test]
fn status_and_show_tell_all_about_every_name() -> Result<()> {
    let named = Named::new("told")?;
    named.dns.say("a.example", Reply::addresses("a.example", 3600, &[ONE, "10.1.1.1"]));
    named.dns.say("b.example", Reply::silence());
    named.dns.say("c.example", Reply::addresses("c.example", 3600, &[TWO]));
    let rules = [
        "action=accept dsthost=a.example proto=tcp",
        "action=drop dsthost=b.example proto=tcp",
        "action=accept dsthost=c.example proto=tcp dstports=443-443",
        "action=accept dsthost=c.example proto=icmp",
        "action=drop",
        "action=accept dsthost=d.example",
    ];
    named.rules(&rules)?;
    named.leads("c.example", &[TWO])?;
    named.dns.say("c.example", Reply::addresses("c.example", 3600, &[ONE]));
    named.agent.signal(Signal::SIGHUP)?;
    named.leads("c.example", &[ONE, TWO])?;
    named.until("b.example", "fails", |name| name.failures == 1)?;
    let (text, code) = told(&named, &["status"])?;
    let names = text.lines().skip_while(|it| !it.starts_with("names"));
    // A client's own IPv6 chatter may have been counted by now, or not.
    let names: Vec<&str> = names.filter(|it| !it.starts_with("packets of no client")).collect();
    let client = named.world.v4;
    let refused = "no public address: 10.1.1.1; accept rules leave it out; `run --private-name a.example` lets them use it";
    let a = format!("10.1.1.1 (N s, not for accept rules), {ONE} (N s); {refused}");
    let silent = format!("{DNS} {}", does_not_answer());
    let c = format!("{ONE} (N s), {TWO} (N s, in no answer any more)");
    let again = "asked again in N s";
    assert_eq!(
        names,
        [
            "names in rules: 3".to_owned(),
            format!("  a.example (IPv4): {a}; {again}; rule 0000 of {client}"),
            format!("  b.example (IPv4): not resolved; {silent}; {again}; rule 0001 of {client}"),
            format!("  c.example (IPv4): {c}; {again}; rules 0002, 0003 of {client}"),
            format!("PROBLEM: the name a.example in rules of {client}: {refused}"),
            format!("PROBLEM: the name b.example in rules of {client}: {silent}"),
        ]
    );
    assert_eq!(code, Some(1));
    let (text, code) = told(&named, &["show", &client.to_string()])?;
    let names = text.lines().filter(|line| line.contains("example: ")).map(str::trim);
    assert_eq!(
        names.collect::<Vec<_>>(),
        [
            format!("a.example: {a}; {again}"),
            format!("b.example: not resolved; {silent}; {again}"),
            format!("c.example: {c}; {again}"),
            format!("c.example: {c}; {again}"),
            "d.example: not looked up, it makes no difference".to_owned(),
        ]
    );
    assert_eq!(code, Some(1));
    // Each change stands in the log once.
    let log = named.agent.log();
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    let changes = [
        format!("name=\"a.example\" family=IPv4 added=\"10.1.1.1, {ONE}\" gone=\"\""),
        format!("name=\"c.example\" family=IPv4 added=\"{TWO}\" gone=\"\""),
        format!("name=\"c.example\" family=IPv4 added=\"{ONE}\" gone=\"\""),
        format!("name=\"a.example\" family=IPv4 why=\"{refused}\""),
        format!("name=\"b.example\" family=IPv4 why=\"{silent}\""),
    ];
    assert_eq!(changes.each_ref().map(|it| told(it)), [1; 5], "{log}");
    assert_eq!(told("leads elsewhere") + told("not as it should be"), 5, "{log}");
    assert_eq!(named.dns.asked("d.example").len(), 0);
    Ok(())
}
