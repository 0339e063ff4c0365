//! Names in rules, while servers, the network and the agent itself come and go.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use firewall_agent::edges::memory;
use firewall_core::names::answer::Remembered;
use firewall_core::rules::Family;
use firewall_core::rules::question::Question;
use firewall_core::time::Moment;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::rig::{UPLINK, UPLINK_V4};
use firewall_tests::traffic::probe::{OpenFlow, Outcome};
use hickory_proto::op::ResponseCode;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use super::named::{DNS, Named, ONE, TWO};
use super::world::{PROHIBITED4, PROHIBITED6, SERVER6};

const DNS2: &str = "198.51.100.54";
const DNS3: &str = "2001:db8:1::55";
const ACCEPT_A: [&str; 1] = ["action=accept dsthost=a.example proto=tcp"];

fn some(address: &str, ttl: u32) -> Reply {
    Reply::addresses("a.example", ttl, &[address])
}

#[test]
fn each_server_is_asked_when_those_before_it_fail() -> Result<()> {
    let named = Named::new("servers")?;
    let (second, third) = (named.other_dns(DNS2)?, named.other_dns(DNS3)?);
    named.dns.say("a.example", Reply::silence());
    second.say("a.example", Reply::code(ResponseCode::ServFail));
    third.say("a.example", some(ONE, 60));
    named.servers(&[DNS, DNS2, DNS3])?;
    named.rules(&ACCEPT_A)?;
    named.leads("a.example", &[ONE])?;
    named.check("from the third", &[(ONE, Outcome::Accepted)]);
    // An answer of the first is the last word.
    named.dns.say("a.example", Reply::no_such_name());
    named.agent.signal(Signal::SIGHUP)?;
    named.until("a.example", "gone", |it| {
        it.problem.as_deref() == Some("the name does not exist")
    })?;
    assert_eq!(third.asked("a.example").len(), 1);
    Ok(())
}

#[test]
fn other_servers_are_asked_at_once_and_the_old_ones_do_not_count_any_more() -> Result<()> {
    let named = Named::new("other_servers")?;
    let other = named.other_dns(DNS2)?;
    named.dns.say("a.example", some(ONE, 3600));
    named.dns.say("b.example", Reply::addresses("b.example", 3600, &[ONE]).held());
    other.say("a.example", some(TWO, 3600));
    other.say("b.example", Reply::addresses("b.example", 0, &[TWO]));
    named.rules(&[ACCEPT_A[0], "action=accept dsthost=b.example proto=tcp"])?;
    named.leads("a.example", &[ONE])?;
    named.dns.wait_for("b.example", 1, PATIENCE)?;
    named.servers(&[DNS2])?;
    named.leads("b.example", &[TWO])?;
    named.leads("a.example", &[ONE, TWO])?;
    named.dns.release();
    let known = other.asked("b.example").len();
    other.wait_for("b.example", known + 2, PATIENCE)?;
    named.leads("b.example", &[TWO])
}

#[test]
fn a_stub_on_loopback_is_asked() -> Result<()> {
    let named = Named::new("stub")?;
    let stub = DnsServer::start(named.world.rig.netvm(), "127.0.0.53".parse()?)?;
    stub.say("a.example", some(ONE, 60));
    named.servers(&["127.0.0.53"])?;
    named.rules(&ACCEPT_A)?;
    named.leads("a.example", &[ONE])
}

#[test]
fn what_failed_is_asked_again_at_once_when_the_network_changes() -> Result<()> {
    let named = Named::new("network")?;
    named.dns.say("a.example", Reply::code(ResponseCode::ServFail));
    named.rules(&ACCEPT_A)?;
    named.until("a.example", "fails again", |name| name.failures == 3)?;
    // Failures are counted anew from there.
    named.world.rig.netvm().ip(&["address", "add", "192.0.2.77/24", "dev", UPLINK])?;
    named.until("a.example", "is asked anew", |name| name.failures == 1)
}

#[test]
fn sighup_asks_for_all_names_anew() -> Result<()> {
    let named = Named::new("sighup")?;
    named.dns.say("a.example", some(ONE, 3600));
    named.rules(&ACCEPT_A)?;
    named.leads("a.example", &[ONE])?;
    named.dns.say("a.example", some(TWO, 3600));
    named.agent.signal(Signal::SIGHUP)?;
    named.leads("a.example", &[ONE, TWO])?;
    named.check("both for a while", &[(ONE, Outcome::Accepted), (TWO, Outcome::Accepted)]);
    Ok(())
}

#[test]
fn a_later_agent_knows_what_the_earlier_one_knew() -> Result<()> {
    let mut named = Named::new("restart")?;
    named.dns.say("a.example", some(ONE, 3600));
    named.rules(&ACCEPT_A)?;
    named.leads("a.example", &[ONE])?;
    let to = SocketAddr::new(ONE.parse()?, 443);
    let mut flow = OpenFlow::open(named.world.client.namespace(), to, PATIENCE)?;
    named.dns.say("a.example", Reply::silence());
    named.restart(&[])?;
    named.leads("a.example", &[ONE])?;
    named.until("a.example", "asked in vain", |name| name.failures > 0)?;
    named.check("with a silent server", &[(ONE, Outcome::Accepted)]);
    assert!(flow.exchange(PATIENCE)?, "cut: {}", named.agent.log());
    Ok(())
}

/// Two seconds before an address that left is let go of.
const LEFT_AGO: Duration = Duration::from_secs(598);

#[test]
fn an_address_that_left_stays_while_a_connection_to_it_is_open() -> Result<()> {
    let now = Moment::after_boot(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into());
    if now.since_boot() < LEFT_AGO {
        // Nothing can have left before the machine booted, and the agent asks its own clock.
        let why = format!("the machine booted less than {} seconds ago", LEFT_AGO.as_secs());
        firewall_tests::skip("an_address_that_left_stays_while_a_connection_to_it_is_open", &why)?;
        return Ok(());
    }
    let mut named = Named::new("in_use")?;
    let unused = "198.51.100.9";
    let names = ["a.example", "b.example"];
    let rules = names.map(|name| format!("action=accept dsthost={name} proto=tcp"));
    named.dns.say("a.example", some(TWO, 3600));
    named.dns.say("b.example", Reply::addresses("b.example", 3600, &[ONE]));
    named.rules(&rules.each_ref().map(|it| &it[..]))?;
    named.leads("a.example", &[TWO])?;
    let to = SocketAddr::new(TWO.parse()?, 443);
    let mut flow = OpenFlow::open(named.world.client.namespace(), to, PATIENCE)?;
    named.stop()?;
    // As if both had left ten minutes ago.
    let now = Moment::after_boot(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into());
    let left = now - LEFT_AGO;
    let remembered = names.map(|name| Remembered {
        question: Question { name: name.to_owned(), family: Family::V4 },
        addresses: [ONE.parse().expect("an address")].into(),
        at: now,
        leaving: [TWO, unused].map(|it| (it.parse().expect("an address"), left)).into(),
    });
    memory::write(&named.world.rig.directory().join("names.json"), &remembered)?;
    named.dns.say("a.example", some(ONE, 3600));
    named.start(&[])?;
    named.leads("a.example", &[ONE, TWO])?;
    named.leads("b.example", &[ONE, TWO])?;
    assert!(flow.exchange(PATIENCE)?, "cut: {}", named.agent.log());
    named.check("new connections too", &[(TWO, Outcome::Accepted)]);
    Ok(())
}

#[test]
fn an_unresolved_drop_closes_its_ports_everywhere_until_its_name_exists() -> Result<()> {
    let named = Named::new("drop")?;
    named.dns.say("bad.example", Reply::no_such_name());
    let drop = "action=drop dsthost=bad.example proto=tcp dstports=443-443";
    named.rules(&[drop, "action=accept"])?;
    named.until("bad.example", "does not exist", |name| name.failures > 0)?;
    named.check("unresolved", &[(ONE, PROHIBITED4), (TWO, PROHIBITED4)]);
    named.dns.say("bad.example", Reply::addresses("bad.example", 60, &[TWO]));
    named.leads("bad.example", &[TWO])?;
    named.check("resolved", &[(ONE, Outcome::Accepted), (TWO, PROHIBITED4)]);
    Ok(())
}

#[test]
fn each_family_has_its_own_answer() -> Result<()> {
    let named = Named::new("families")?;
    named.dns.say("a.example", some(ONE, 60).address("a.example", 60, &SERVER6.to_string()));
    for client in [named.world.v4, named.world.v6] {
        named.rules_of(client, &["action=accept dsthost=a.example proto=tcp dstports=443-443"])?;
    }
    named.leads("a.example", &[ONE])?;
    named.leads("a.example", &[&SERVER6.to_string()])?;
    let v4 = [Outcome::Accepted, PROHIBITED4, PROHIBITED4, PROHIBITED4];
    named.world.check("names", v4, [Outcome::Accepted, PROHIBITED6, PROHIBITED6, PROHIBITED6]);
    Ok(())
}

#[test]
fn a_public_name_leads_into_the_own_network_only_if_the_owner_says_so() -> Result<()> {
    let mut named = Named::new("rebinding")?;
    let own = "192.168.77.7";
    let own_server = named.serve(own)?;
    named.dns.say("a.example", some(own, 60).address("a.example", 60, ONE));
    named.rules(&ACCEPT_A)?;
    named.leads("a.example", &[own, ONE])?;
    named.check("by default", &[(own, PROHIBITED4), (ONE, Outcome::Accepted)]);
    named.restart(&["--private-name", "example"])?;
    named.leads("a.example", &[own, ONE])?;
    named.check("with --private-name", &[(own, Outcome::Accepted), (ONE, Outcome::Accepted)]);
    drop(own_server);
    Ok(())
}

#[test]
fn a_server_that_cannot_be_asked_is_told_with_the_way_and_what_the_kernel_says() -> Result<()> {
    let named = Named::new("closed_output")?;
    named.dns.say("a.example", Reply::addresses("a.example", 60, &[ONE]));
    named.rules(&["action=accept dsthost=a.example"])?;
    named.leads("a.example", &[ONE])?;
    let hint = "(`run --resolv-conf FILE` names other servers)";
    let check = |what: &str, server: &str, expected: &str| -> Result<()> {
        named.servers(&[server])?;
        named.agent.signal(Signal::SIGHUP)?;
        let problem = format!("{server} {expected} {hint}");
        named.until("a.example", what, |name| name.problem.as_deref() == Some(&*problem))
    };
    let from = format!("from {UPLINK_V4} ({UPLINK})");
    let netvm = named.world.rig.netvm();
    let output = |rule: &str| {
        let chain = "type filter hook output priority filter; policy accept;";
        netvm.nft(&format!("table ip closed {{\nchain output {{\n{chain}\n{rule}\n}}\n}}"))
    };
    output("udp dport 53 drop; tcp dport 53 drop;")?;
    let refused = format!("cannot be asked {from}: Operation not permitted (os error 1)");
    check("dropped", DNS, &refused)?;
    netvm.nft("delete table ip closed")?;
    output("meta l4proto { tcp, udp } th dport 53 reject;")?;
    check("rejected", "198.51.100.54", &refused)?;
    netvm.nft("delete table ip closed")?;
    let unreachable = "203.0.113.53";
    netvm.ip(&["route", "add", "unreachable", unreachable])?;
    let no_route = "cannot be asked: No route to host (os error 113)";
    check("without a route", unreachable, no_route)?;
    Ok(())
}
