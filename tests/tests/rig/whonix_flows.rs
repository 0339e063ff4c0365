//! Connections of a qube to Tor that are open: what tightens ends them, errors about them pass, and
//! nothing else does.
//! Never sends through a connection what its other end would not expect.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::{self, TCP, V4, V6};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::traffic::probe::{OpenFlow, SILENCE};
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Place;
use firewall_tests::whonix::sent::Came;
use firewall_tests::whonix::tables::TRANS_PORT;

use super::whonix_matrix::{put, start};

/// A gateway where TransPort echoes.
fn echoing(label: &str) -> Result<(Gateway, Vec<EchoServer>)> {
    let gateway = Gateway::without_tor(label)?;
    let at = Family::BOTH.map(|it| SocketAddr::new(Gateway::on_vif(it), TRANS_PORT));
    let servers = at.map(|at| EchoServer::start(gateway.netvm(), at));
    let servers: Result<Vec<EchoServer>> = servers.into_iter().collect();
    Ok((gateway, servers?))
}

fn host(family: Family, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(Place::Host.address(family).context("a host")?, port))
}

#[test]
fn an_open_connection_to_tor_ends_when_rules_deny_it_and_others_go_on() -> Result<()> {
    let (gateway, servers) = echoing("whonixcut")?;
    let agent = start(&gateway, &[])?;
    let port =
        |port| Rule { proto: Some(Proto::Tcp), ports: Some((port, port)), ..Rule::all(true) };
    let from = gateway.qubes[0].namespace();
    for (family, server) in Family::BOTH.into_iter().zip(&servers) {
        put(&gateway, &agent, 0, &[port(443), port(80)])?;
        let mut stays = OpenFlow::open(from, host(family, 443)?, PATIENCE)?;
        let mut ends = OpenFlow::open(from, host(family, 80)?, PATIENCE)?;
        ensure!(stays.exchange(PATIENCE)? && ends.exchange(PATIENCE)?, "no echo");
        put(&gateway, &agent, 0, &[port(443)])?;
        let before = server.received().tcp_bytes;
        ensure!(!ends.exchange(SILENCE)?, "{family:?}: it goes on\n{}", agent.log());
        ensure!(stays.exchange(PATIENCE)?, "{family:?}: the other one ended");
        // Eight bytes of the one that stays.
        assert_eq!(server.received().tcp_bytes, before + 8, "{family:?}");
    }
    Ok(())
}

/// "Too big", of the qube, about a segment to it from there (RFC 792; RFC 4443, section 3.2).
fn too_big(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let quoted = packets::segment(to.port(), from.port(), b"");
    let (from, to) = (from.ip(), to.ip());
    let family = Family::from(from);
    let quoted = packets::sealed(to, from, TCP, &quoted);
    let packet = |from, to, protocol, payload: &[u8]| match (from, to) {
        (std::net::IpAddr::V4(from), std::net::IpAddr::V4(to)) => {
            V4::new(from, to, protocol, payload).packet()
        }
        (std::net::IpAddr::V6(from), std::net::IpAddr::V6(to)) => {
            V6::new(from, to, protocol, payload).packet()
        }
        _ => Vec::new(),
    };
    let quoted = packet(to, from, TCP, &quoted);
    let header = family.of([[3, 4, 0, 0, 0, 0, 5, 100], [2, 0, 0, 0, 0, 0, 5, 100]]);
    let error = packets::sealed(from, to, family.icmp(), &[&header[..], &quoted].concat());
    packet(from, to, family.icmp(), &error)
}

#[test]
fn errors_about_connections_to_tor_get_there_as_without_us_and_no_other_does() -> Result<()> {
    for is_with_us in [false, true] {
        let (gateway, _servers) = echoing("whonixerrors")?;
        let agent = is_with_us.then(|| start(&gateway, &[])).transpose()?;
        if let Some(agent) = &agent {
            let web = Rule { proto: Some(Proto::Tcp), ports: Some((443, 443)), ..Rule::all(true) };
            put(&gateway, agent, 0, &[web])?;
        }
        for (already, family) in Family::BOTH.into_iter().enumerate() {
            let to = host(family, 443)?;
            let from = gateway.qubes[0].namespace();
            let stream = from.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
            let own = stream.local_addr()?;
            let already = u64::try_from(already)?;
            let no_other = SocketAddr::new(own.ip(), own.port() ^ 1);
            for (name, from, delivered) in
                [("of nothing", no_other, already), ("of this one", own, already + 1)]
            {
                let came = gateway.send(0, from.port(), &[too_big(from, to)])?;
                assert_eq!(came, Came { delivered: Vec::new(), answers: Vec::new() }, "{name}");
                let others = gateway.others_delivered()?;
                assert_eq!(others, delivered, "{family:?}, {name}, with us: {is_with_us}");
                gateway.forget()?;
            }
        }
    }
    Ok(())
}
