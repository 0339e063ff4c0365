//! Names in rules, with a DNS server that tells the truth: they are looked up, followed and
//! shown.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use firewall_tests::agent::PATIENCE;
use firewall_tests::dns::Reply;
use firewall_tests::probe::{Outcome, SILENCE};

use super::named::{Named, ONE, TWO};
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
