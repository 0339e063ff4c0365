//! Names in rules, with a DNS server that lies, stutters and is silent.

use anyhow::Result;
use firewall_core::rules::Family;
use firewall_core::told::status::NameStatus;
use firewall_tests::rig::dns::Reply;
use firewall_tests::traffic::probe::Outcome;
use hickory_proto::op::ResponseCode;

use super::named::{DNS, Named, ONE, TWO, does_not_answer};
use super::world::PROHIBITED4;

/// What shall be known about a name.
struct Expected {
    addresses: Vec<String>,
    /// Whether it is resolved.
    is_answered: bool,
    problem: Option<String>,
    /// In how many seconds it may be asked again at most, and at least half of that.
    next: u64,
}

impl Expected {
    fn leads(addresses: &[&str], next: u64) -> Self {
        let addresses = addresses.iter().map(|it| (*it).to_owned()).collect();
        Self { addresses, is_answered: true, problem: None, next }
    }

    fn fails(problem: &str) -> Self {
        // It is asked again later and later.
        Self {
            addresses: Vec::new(),
            is_answered: false,
            problem: Some(problem.to_owned()),
            next: 0,
        }
    }

    fn but(self, problem: &str) -> Self {
        Self { problem: Some(problem.to_owned()), ..self }
    }

    fn is_met(&self, name: &NameStatus) -> bool {
        let Self { addresses, is_answered, problem, next } = self;
        let known = name.addresses.iter().map(|it| it.address.to_string());
        known.eq(addresses.iter().cloned())
            && name.answered_seconds_ago.is_some() == *is_answered
            && name.problem == *problem
            && (problem.is_some() && !is_answered
                || (*next / 2..=*next).contains(&name.next_seconds_left))
    }
}

/// Every reply of the server, and what is to come of it.
fn cases() -> Vec<(&'static str, Reply, Expected)> {
    let some = |name: &str, ttl: u32| Reply::addresses(name, ttl, &[ONE]);
    let none = || Reply::code(ResponseCode::NoError);
    let does_not_exist = || Expected::fails("the name does not exist");
    let fails = |why: &str| Expected::fails(&format!("{DNS} {why}"));
    let crowd: Vec<String> =
        (0..300).map(|it| format!("203.0.{}.{}", it / 100, it % 100)).collect();
    let crowd: Vec<&str> = crowd.iter().map(String::as_str).collect();
    let mut kept = crowd.clone();
    kept.sort_by_key(|it| it.parse::<std::net::Ipv4Addr>().ok());
    vec![
        ("one.odd", some("one.odd", 60), Expected::leads(&[ONE], 60)),
        ("two.odd", some("two.odd", 60).address("two.odd", 30, TWO), Expected::leads(&[ONE, TWO], 30)),
        ("zero.odd", some("zero.odd", 0), Expected::leads(&[ONE], 5)),
        ("week.odd", some("week.odd", 604_800), Expected::leads(&[ONE], 3600)),
        // A chain of aliases, as a whole, out of order, and in part.
        (
            "chain.odd",
            some("c.odd", 60).alias("chain.odd", 20, "b.odd").alias("b.odd", 60, "c.odd"),
            Expected::leads(&[ONE], 20),
        ),
        (
            "order.odd",
            none().alias("b.odd", 60, "c.odd").alias("order.odd", 60, "b.odd").address("c.odd", 20, ONE),
            Expected::leads(&[ONE], 20),
        ),
        ("half.odd", none().alias("half.odd", 20, "one.odd"), Expected::leads(&[ONE], 20)),
        ("half-gone.odd", none().alias("half-gone.odd", 60, "gone.odd"), does_not_exist()),
        (
            "loop.odd",
            none().alias("loop.odd", 60, "pool.odd").alias("pool.odd", 60, "loop.odd"),
            fails("gives aliases without end"),
        ),
        // No address of this family is an answer.
        (
            "six.odd",
            Reply::addresses("six.odd", 60, &["2001:db8::1"]).zone("odd", 40),
            Expected::leads(&[], 40),
        ),
        ("nothing.odd", none(), Expected::leads(&[], 60)),
        ("alias-six.odd", none().alias("alias-six.odd", 20, "b.odd").zone("odd", 40), Expected::leads(&[], 20)),
        ("gone.odd", Reply::no_such_name().zone("odd", 40), does_not_exist()),
        ("alias-gone.odd", Reply::no_such_name().alias("alias-gone.odd", 60, "b.odd"), does_not_exist()),
        ("broken.odd", Reply::code(ResponseCode::ServFail), fails("says \"Server Failure\"")),
        ("refused.odd", Reply::code(ResponseCode::Refused), fails("says \"Query Refused\"")),
        ("silent.odd", Reply::silence(), fails(&does_not_answer())),
        ("elsewhere.odd", none().referral("odd", "ns.odd"), fails("names other servers only")),
        // What does not fit into UDP is asked for by TCP.
        ("large.odd", some("large.odd", 60).address("large.odd", 60, TWO).large(), Expected::leads(&[ONE, TWO], 60)),
        ("old.odd", some("old.odd", 60).old(), Expected::leads(&[ONE], 60)),
        // What stands elsewhere, or is about another name, does not count.
        ("poison.odd", some("poison.odd", 60).poison("poison.odd", TWO).poison("one.odd", TWO), Expected::leads(&[ONE], 60)),
        ("only-poison.odd", none().poison("only-poison.odd", TWO), Expected::leads(&[], 60)),
        ("half-poison.odd", none().alias("half-poison.odd", 20, "one.odd").poison("one.odd", TWO), Expected::leads(&[ONE], 20)),
        ("stranger.odd", some("stranger.odd", 60).address("one.odd", 60, TWO), Expected::leads(&[ONE], 60)),
        (
            "rebind.odd",
            some("rebind.odd", 60).address("rebind.odd", 60, "192.168.1.1"),
            Expected::leads(&["192.168.1.1", ONE], 60)
                .but("no public address: 192.168.1.1; accept rules leave it out; `run --private-name rebind.odd` lets them use it"),
        ),
        (
            "crowd.odd",
            Reply::addresses("crowd.odd", 60, &crowd).large(),
            Expected::leads(&kept[..256], 60).but(
                "more than 256 addresses: accept rules use 256 of them, drop rules match every address",
            ),
        ),
    ]
}

#[test]
fn whatever_a_server_says_counts_for_what_it_is() -> Result<()> {
    let named = Named::new("odd")?;
    let cases = cases();
    let rules = cases.iter().map(|(name, ..)| format!("action=accept dsthost={name} proto=tcp"));
    let rules: Vec<String> = rules.collect();
    for (name, reply, _) in &cases {
        named.dns.say(name, reply.clone());
    }
    named.rules(&rules.iter().map(String::as_str).collect::<Vec<_>>())?;
    for (name, _, expected) in &cases {
        named.until(name, "as expected", |name| {
            assert_eq!(name.family, Family::V4);
            expected.is_met(name)
        })?;
    }
    named.check("after all of this", &[(ONE, Outcome::Accepted), (TWO, Outcome::Accepted)]);
    let by_tcp = |name: &str| named.dns.asked(name).iter().filter(|it| !it.is_udp).count();
    assert_eq!(["large.odd", "crowd.odd", "one.odd"].map(by_tcp), [1, 1, 0]);
    Ok(())
}

#[test]
fn poison_opens_nothing() -> Result<()> {
    let named = Named::new("poison")?;
    let own = Reply::addresses("a.example", 60, &[ONE]);
    named.dns.say("a.example", own.poison("a.example", TWO).poison("b.example", TWO));
    named
        .dns
        .say("b.example", Reply::addresses("b.example", 60, &[ONE]).address("c.example", 60, TWO));
    let names = ["a.example", "b.example", "c.example"];
    named.rules(
        &names.map(|name| format!("action=accept dsthost={name}")).each_ref().map(|it| &it[..]),
    )?;
    for name in ["a.example", "b.example"] {
        named.leads(name, &[ONE])?;
    }
    named.until("c.example", "fails", |name| name.failures > 0)?;
    named.check("poisoned", &[(ONE, Outcome::Accepted), (TWO, PROHIBITED4)]);
    Ok(())
}
