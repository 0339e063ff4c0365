//! A Whonix gateway with a real Tor: who came, and where to, as Tor itself says it.
//! Never needs the Tor network: a stream is told before a circuit is looked for.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr as _;

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::skip;
use firewall_tests::traffic::probe::Probe;
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Place;
use firewall_tests::whonix::real::RealTor;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use super::whonix_matrix::{dns, put, start};
use super::world::{PROHIBITED4, PROHIBITED6};

/// A name that Tor believes: this is not looked for.
pub const ONION: &str = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion";
/// Networks of which Tor takes addresses in place of onion names.
const AUTOMAPPED: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 192, 0, 0), 10);

/// A question for the IPv4 addresses of a name, as DNS has it.
pub fn question(name: &str) -> Result<Vec<u8>> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_str(&format!("{name}."))?, RecordType::A));
    Ok(question.to_vec()?)
}

/// Asks DNS, at any address, for the address of an onion name.
pub fn resolve(gateway: &Gateway, qube: usize, at: SocketAddr) -> Result<Ipv4Addr> {
    gateway.qubes[qube].namespace().run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(at)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&question(ONION)?)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).context("no answer of Tor")?;
        let answer = Message::from_vec(&answer[..length])?;
        let mut addresses = answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
        addresses.next_back().with_context(|| format!("no address in {answer:?}"))
    })
}

/// Opens a connection that Tor shall take, and keeps it.
fn connect(gateway: &Gateway, qube: usize, to: SocketAddr) -> Result<TcpStream> {
    let stream =
        gateway.qubes[qube].namespace().run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?));
    stream.with_context(|| format!("no connection to {to}"))
}

/// What Tor says of a qube as a source. The port can be another one than the qube's own: see
/// `whonix::connect`.
fn source(gateway: &Gateway, qube: usize, family: Family) -> Result<String> {
    Ok(format!(" SOURCE_ADDR={}:", gateway.of_qube(qube, family)?))
}

/// A name, asked by DNS, a connection to its address, another to a host, and one by SOCKS: Tor says
/// of each that this qube came, and where to.
fn all_come(gateway: &Gateway, tor: &mut RealTor, qube: usize) -> Result<()> {
    let resolver = Place::Resolver.address(Family::V4).context("a resolver")?;
    let onion = resolve(gateway, qube, SocketAddr::new(resolver, 53))?;
    let (network, length) = AUTOMAPPED;
    let differing = onion.to_bits() ^ network.to_bits();
    ensure!(differing >> (32 - length) == 0, "{onion} is none that Tor gives");
    let own = source(gateway, qube, Family::V4)?;
    tor.streams_until(&[ONION, &own, "CLIENT_PROTOCOL=DNS"])?;
    for family in Family::BOTH {
        let host = Place::Host.address(family).context("a host")?;
        let to = SocketAddr::new(host, 443);
        let _stream = connect(gateway, qube, to)?;
        let (target, source) = (format!(" {to} "), source(gateway, qube, family)?);
        tor.streams_until(&[&target, &source, "CLIENT_PROTOCOL=TRANS", "CLIENTADDR"])?;
    }
    let _stream = connect(gateway, qube, SocketAddr::new(onion.into(), 80))?;
    // Before Tor looks up which name it has given this address to.
    let target = format!(" {onion}:80 ");
    tor.streams_until(&[&target, &own, "CLIENT_PROTOCOL=TRANS", "CLIENTADDR"])?;
    let mut stream = connect(gateway, qube, SocketAddr::new(Gateway::address(Family::V4), 9050))?;
    stream.write_all(&[5, 1, 0])?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [5, 0], "SOCKS says {answer:?}");
    // By name, as Tor Browser does (RFC 1928).
    let name = b"inside.example";
    let length = u8::try_from(name.len())?;
    stream.write_all(&[&[5, 1, 0, 3, length], &name[..], &443_u16.to_be_bytes()].concat())?;
    tor.streams_until(&[" inside.example:443 ", &own, "CLIENT_PROTOCOL=SOCKS5"])?;
    Ok(())
}

const SKIPPED: &str = "there is no tor here";

#[test]
fn a_real_tor_is_told_who_came_and_where_to() -> Result<()> {
    let gateway = Gateway::without_tor("whonixtor")?;
    let Some(mut tor) = RealTor::start(&gateway)? else {
        return Ok(skip("a_real_tor_is_told_who_came_and_where_to", SKIPPED)?);
    };
    for qube in [0, 1] {
        all_come(&gateway, &mut tor, qube).with_context(|| tor.log())?;
    }
    Ok(())
}

#[test]
fn a_real_tor_hears_of_what_rules_accept_and_of_nothing_else() -> Result<()> {
    let gateway = Gateway::without_tor("whonixtorus")?;
    let Some(mut tor) = RealTor::start(&gateway)? else {
        return Ok(skip("a_real_tor_hears_of_what_rules_accept_and_of_nothing_else", SKIPPED)?);
    };
    let agent = start(&gateway, &[])?;
    put(&gateway, &agent, 1, &[Rule::all(true)])?;
    all_come(&gateway, &mut tor, 1).with_context(|| agent.log())?;
    // Onion services and DNS alone.
    let (network, length) = AUTOMAPPED;
    let onions = Rule { network: Some((network.into(), length)), ..Rule::all(true) };
    let own = gateway.of_qube(0, Family::V4)?;
    agent.put(own, &Ruleset { default_accept: false, rules: vec![onions, dns()] })?;
    let none = Ruleset { default_accept: false, rules: Vec::new() };
    agent.put(gateway.of_qube(0, Family::V6)?, &none)?;
    let from = gateway.qubes[0].namespace();
    for family in Family::BOTH {
        let prohibited = family.of([PROHIBITED4, PROHIBITED6]);
        let [host, gateway] = [Place::Host, Place::Gateway].map(|it| it.address(family));
        for (to, port) in [(host, 443), (gateway, 9050), (gateway, 9051)] {
            let to = SocketAddr::new(to.context("a place")?, port);
            let outcome = Probe::tcp(from, to).run(PATIENCE)?;
            ensure!(outcome == prohibited, "{to}: {outcome}\n{}", agent.log());
        }
    }
    let resolver = Place::Resolver.address(Family::V4).context("a resolver")?;
    let onion = resolve(&gateway, 0, SocketAddr::new(resolver, 53))?;
    let _stream = connect(&gateway, 0, SocketAddr::new(onion.into(), 80))?;
    let target = format!(" {onion}:80 ");
    let of_this = source(&gateway, 0, Family::V4)?;
    let streams = tor.streams_until(&[&target, &of_this, "CLIENT_PROTOCOL=TRANS"])?;
    // All that Tor heard of this qube: its question, and this.
    let of_qube = |it: &&String| it.contains(&of_this);
    assert_eq!(streams.iter().filter(of_qube).count(), 2, "{streams:?}");
    Ok(())
}
