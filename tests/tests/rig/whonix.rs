//! A Whonix gateway without us: what its own rules make of each kind of traffic; and what must stay
//! so with us.
//! Never has the agent running but where a test says so.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Place;
use firewall_tests::whonix::tables::{CONTROL_PORT, DNS_PORT, SOCKS, TRANS_PORT};
use firewall_tests::whonix::tor::{NEVER, Visit, tcp_ports};

/// What a connection of a qube comes to, as both ends see it: the qube is told by the listener where
/// it stands, and the listener asks the kernel where it was sent to. Its port may be another one: where
/// many destinations become one, two connections can have the same four numbers, and the kernel changes
/// one.
pub fn connect(gateway: &Gateway, qube: usize, to: SocketAddr) -> Result<Visit> {
    let mut told = [0; 2];
    let own = gateway.qubes[qube].namespace().run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut told)?;
        Ok(stream.local_addr()?.ip())
    });
    let own = own.with_context(|| format!("no connection to {to}"))?;
    let is_it = |it: &Visit| it.source.ip() == own && it.original == Some(to);
    let visit = gateway.tor()?.wait_for(&format!("{own} to {to}"), is_it, PATIENCE)?;
    ensure!(u16::from_be_bytes(told) == visit.local.port(), "told {told:?} of {visit:?}");
    Ok(visit)
}

/// Asks DNS somewhere, and waits for the answer to come from there.
pub fn ask(gateway: &Gateway, qube: usize, to: SocketAddr) -> Result<Visit> {
    let question: [u8; 8] = rand::random();
    let asked = gateway.qubes[qube].namespace().run(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(&question)?;
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer)?;
        ensure!(answer[..length] == question, "another answer");
        Ok(())
    });
    asked.with_context(|| format!("no answer from {to}"))?;
    let is_it = |it: &Visit| it.data == question;
    gateway.tor()?.wait_for(&format!("the question to {to}"), is_it, PATIENCE)
}

/// To which ports of the gateway's own a qube gets with TCP, if it names them.
fn own_ports() -> Vec<u16> {
    tcp_ports().into_iter().filter(|it| *it != TRANS_PORT).collect()
}

#[test]
fn each_port_of_a_whonix_gateway_is_where_the_facts_say() -> Result<()> {
    let gateway = Gateway::new("whonixports")?;
    for family in Family::BOTH {
        let own = [Place::Gateway, Place::Disposable, Place::Fixed];
        let others = [Place::Host, Place::Lan, Place::Onion, Place::Resolver, Place::Uplink];
        let address = |place: &Place| place.address(family);
        // By its name: the same port, whichever of the three addresses it is asked at.
        for to in own.iter().filter_map(address) {
            for port in own_ports() {
                let visit = connect(&gateway, 0, SocketAddr::new(to, port))?;
                let stands = SocketAddr::new(Gateway::on_vif(family), port);
                assert_eq!(visit.local, stands, "to {to} port {port}");
                assert_eq!(visit.original, Some(SocketAddr::new(to, port)));
            }
        }
        // By no name: TransPort, with the destination that the qube wrote, be it a port that has a
        // meaning elsewhere, or the gateway itself.
        let around = SOCKS.iter().flat_map(|(first, last)| [first - 1, last + 1]);
        let around: Vec<u16> = around.filter(|it| !tcp_ports().contains(it)).collect();
        let elsewhere = others.iter().filter_map(address);
        let elsewhere = elsewhere.flat_map(|to| {
            let some = [1, 53, 80, 443, 9050, CONTROL_PORT, 9229, u16::MAX];
            some.into_iter().map(move |port| (to, port))
        });
        let here = own.iter().filter_map(address).flat_map(|to| {
            let some = [TRANS_PORT, 53, 22, 8082, 9052, DNS_PORT];
            some.into_iter().chain(around.clone()).map(move |port| (to, port))
        });
        for (to, port) in elsewhere.chain(here) {
            let to = SocketAddr::new(to, port);
            let visit = connect(&gateway, 0, to)?;
            assert_eq!(visit.local, SocketAddr::new(Gateway::on_vif(family), TRANS_PORT), "{to}");
            assert_eq!(visit.original, Some(to));
        }
        // DNS, wherever it is asked.
        for to in own.iter().chain(&others).filter_map(address) {
            let visit = ask(&gateway, 0, SocketAddr::new(to, 53))?;
            assert_eq!(visit.local.port(), DNS_PORT, "{to}");
        }
    }
    let visits = gateway.tor()?.visits();
    let wrong: Vec<&Visit> = visits.iter().filter(|it| NEVER.contains(&it.local.port())).collect();
    ensure!(wrong.is_empty(), "came where nobody may come: {wrong:?}");
    let left = gateway.left_by_uplink()?;
    ensure!(left.is_empty(), "left by the uplink: {left:?}");
    Ok(())
}

/// Where Tor keeps circuits apart by who asks: that is the address of the qube, not of the gateway.
#[test]
fn two_qubes_are_two_addresses_to_tor() -> Result<()> {
    let gateway = Gateway::new("whonixtwo")?;
    two_addresses(&gateway)
}

/// Both qubes come to the same places, and each by its own address.
pub fn two_addresses(gateway: &Gateway) -> Result<()> {
    for family in Family::BOTH {
        let [host, own] = [Place::Host, Place::Gateway].map(|it| it.address(family));
        let (host, own) = (host.context("a host")?, own.context("a gateway")?);
        let by_qube = |visit: &dyn Fn(usize) -> Result<Visit>| -> Result<()> {
            let sources = [visit(0)?.source.ip(), visit(1)?.source.ip()];
            let expected: Vec<IpAddr> =
                [0, 1].map(|it| gateway.of_qube(it, family)).into_iter().collect::<Result<_>>()?;
            assert_eq!(sources.to_vec(), expected);
            assert_ne!(sources[0], sources[1]);
            Ok(())
        };
        for (to, port) in [(host, 443), (own, 9050), (own, 9150), (own, CONTROL_PORT)] {
            by_qube(&|qube| connect(gateway, qube, SocketAddr::new(to, port)))?;
        }
        by_qube(&|qube| ask(gateway, qube, SocketAddr::new(host, 53)))?;
    }
    Ok(())
}
