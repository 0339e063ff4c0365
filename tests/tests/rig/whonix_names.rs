//! Names in rules in a Whonix gateway: Tor is asked on loopback, and nobody else.
//! Never asserts what DNS over Tor would say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::status::State;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::skip;
use firewall_tests::traffic::probe::{Outcome, Probe};
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Place;
use firewall_tests::whonix::real::RealTor;
use firewall_tests::whonix::tables::OWN_DNS_PORT;

use super::whonix_matrix::start;
use super::whonix_tor::{ONION, question, resolve};
use super::world::{PROHIBITED4, SERVER4};

const NAME: &str = "named.example";

/// Has rules of the first qube in force, which say this of IPv4 and accept nothing in IPv6.
fn rules(gateway: &Gateway, agent: &Agent, rules: &[String]) -> Result<()> {
    for family in Family::BOTH {
        let client = gateway.of_qube(0, family)?;
        let rules = family.of([rules, &[]]);
        let lines = rules.iter().enumerate().map(|(number, it)| format!("{number:04} = {it}\n"));
        let text = format!("policy = drop\n{}commit\n", lines.collect::<String>());
        write_rules(gateway.rig.directory(), client, &text)?;
        agent.wait_for_state(client, State::Live)?;
    }
    Ok(())
}

/// Waits until a rule has an address of this name, or says why not.
fn until_named(agent: &Agent, name: &str, address: IpAddr) -> Result<()> {
    agent.wait_for(&format!("{name} leads to {address}"), |status| {
        let names = status.names.iter().filter(|it| it.name == name);
        names.flat_map(|it| &it.addresses).any(|it| it.address == address)
    })
}

#[test]
fn names_in_rules_are_asked_of_tor_and_of_nobody_else() -> Result<()> {
    let gateway = Gateway::new("whonixnames")?;
    // Nothing but the agent's own judgement keeps it from asking in the clear.
    gateway.netvm().nft("insert rule inet filter output accept\n")?;
    gateway.rig.add_internet_address(SERVER4)?;
    let clear = DnsServer::start(gateway.rig.internet(), SERVER4)?;
    clear.say(NAME, Reply::addresses(NAME, 60, &["203.0.113.9"]));
    let resolv_conf = gateway.rig.directory().join("resolv.conf");
    std::fs::write(resolv_conf, format!("nameserver {SERVER4}\n"))?;
    let agent = start(&gateway, &[])?;
    rules(&gateway, &agent, &[format!("action=accept dsthost={NAME}")])?;
    // Tor is not there yet.
    let asked = |status: &firewall_core::told::status::Status| {
        status.names.iter().any(|it| it.name == NAME && it.addresses.is_empty())
    };
    agent.wait_for("unresolved", asked)?;
    let [host, other] = [Place::Host, Place::Elsewhere].map(|it| it.address(Family::V4));
    let (host, other) = (host.context("a host")?, other.context("another")?);
    let from = gateway.qubes[0].namespace();
    let probe = |to| Probe::tcp(from, SocketAddr::new(to, 443)).run(PATIENCE);
    assert_eq!(probe(host)?, PROHIBITED4);
    assert_eq!(probe(other)?, PROHIBITED4);
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), OWN_DNS_PORT);
    let tor = DnsServer::start_at(gateway.netvm(), at)?;
    tor.say(NAME, Reply::addresses(NAME, 60, &[&host.to_string()]));
    until_named(&agent, NAME, host)?;
    agent.wait_for_settled()?;
    assert_eq!(probe(host)?, Outcome::Accepted, "{}", agent.log());
    assert_eq!(probe(other)?, PROHIBITED4);
    assert_eq!(clear.count(), 0, "asked in the clear");
    // It would have been seen.
    gateway.netvm().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.send_to(&question(NAME)?, SocketAddr::new(SERVER4, 53))?)
    })?;
    clear.wait_for(NAME, 1, PATIENCE)?;
    Ok(())
}

#[test]
fn a_rule_for_an_onion_name_lets_a_qube_reach_that_service() -> Result<()> {
    let gateway = Gateway::without_tor("whonixonion")?;
    let Some(mut tor) = RealTor::start(&gateway)? else {
        let test = "a_rule_for_an_onion_name_lets_a_qube_reach_that_service";
        return Ok(skip(test, "there is no tor here")?);
    };
    let agent = start(&gateway, &[])?;
    let accept = ["specialtarget=dns".to_owned(), format!("dsthost={ONION}")];
    rules(&gateway, &agent, &accept.map(|it| format!("action=accept {it}")))?;
    let resolver = Place::Resolver.address(Family::V4).context("a resolver")?;
    let onion = resolve(&gateway, 0, SocketAddr::new(resolver, 53))?;
    until_named(&agent, ONION, onion.into())?;
    agent.wait_for_settled()?;
    let from = gateway.qubes[0].namespace();
    let outcome = Probe::tcp(from, SocketAddr::new(onion.into(), 80)).run(PATIENCE)?;
    ensure!(outcome == Outcome::Accepted, "{outcome}\n{}", agent.log());
    let own = format!(" SOURCE_ADDR={}:", gateway.of_qube(0, Family::V4)?);
    tor.streams_until(&[&format!(" {onion}:80 "), &own])?;
    // Another onion service is another address.
    let other = Ipv4Addr::from(onion.to_bits() ^ 1);
    let outcome = Probe::tcp(from, SocketAddr::new(other.into(), 80)).run(PATIENCE)?;
    ensure!(outcome == PROHIBITED4, "{outcome}\n{}", agent.log());
    Ok(())
}
