//! ICMP errors that clients send, and those that they get: which pass, and who answers one that
//! is denied.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::PerFamily as _;
use firewall_tests::packets::{self, ICMPV6, UDP, V6};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::namespace::Namespace;

use super::scene::*;
use super::world::*;

/// Types and codes of ICMP errors.
const ERRORS4: [(u8, u8); 4] = [(3, 1), (3, 4), (11, 0), (12, 0)];
/// Types and codes of ICMPv6 errors.
const ERRORS6: [(u8, u8); 4] = [(1, 0), (2, 0), (3, 0), (4, 0)];

/// An ICMP error about a packet from nobody to the client which never was.
fn out_of_nowhere(ends: &Ends, kind: u8, code: u8) -> Vec<u8> {
    let mut error = packets::icmp(kind, code);
    error[4..].fill(0);
    error.extend(packet(ends.to, ends.from, UDP, &packets::datagram(53, 40000, &[1; 32])));
    error
}

#[test]
fn a_denied_icmp_error_is_not_answered_and_one_out_of_nowhere_is_not_forwarded() -> Result<()> {
    let scene = Scene::new("icmperror", &[])?;
    let types4 = [&ERRORS4[..], &[(5, 1)]].concat();
    for rules in [&[][..], &[Rule::all(true)]] {
        if !rules.is_empty() {
            scene.world.put(&scene.agent, rules)?;
        }
        for ends in scene.families() {
            let types = ends.family.of([&types4[..], &ERRORS6]);
            for &(kind, code) in types {
                let error = ends.packet(ends.icmp, &out_of_nowhere(&ends, kind, code));
                let name = format!("{kind}/{code} from {}, {} rules", ends.from, rules.len());
                let reason = if kind == 5 { "redirect" } else { "icmp-error" };
                scene.check(&name, &[error], &Expected::silence(&[(reason, 1)]));
            }
        }
    }
    Ok(())
}

/// Nothing but program and gate drops anything here: Qubes' own tables are not there, and in mode
/// qubes the agent loads no other than the gate.
fn only_the_gate(label: &str) -> Result<Scene> {
    Scene::with(label, &[udp_443()], &["--mode", "qubes"])
}

/// Errors out of nowhere are handed on to the gate, and end there.
fn check_errors_out_of_nowhere(scene: &Scene) {
    for ends in scene.families() {
        for (kind, code) in ends.family.of([ERRORS4, ERRORS6]) {
            let error = ends.packet(ends.icmp, &out_of_nowhere(&ends, kind, code));
            let name = format!("{kind}/{code} from {}", ends.from);
            scene.check(&name, &[error], &Expected::silence(&[("icmp-error", 1)]));
        }
        let accepted = Expected::forwarded(1, &[("rule 0", 1)]);
        scene.check("what is accepted", &[ends.udp(443, &[1; 32])], &accepted);
    }
}

#[test]
fn an_error_out_of_nowhere_is_not_forwarded_although_no_other_table_drops_it() -> Result<()> {
    let scene = only_the_gate("errorsgate")?;
    check_errors_out_of_nowhere(&scene);
    // The gate does not see what is behind an authentication header.
    let [_, ends] = scene.families();
    let (IpAddr::V6(from), IpAddr::V6(to)) = (ends.from, ends.to) else { bail!("not IPv6") };
    for (kind, code) in ERRORS6 {
        let error = out_of_nowhere(&ends, kind, code);
        let error = V6::new(from, to, ICMPV6, &packets::sealed(ends.from, ends.to, ICMPV6, &error));
        let error = error.with(packets::AUTHENTICATION, &packets::authentication()).packet();
        let name = format!("{kind}/{code} behind an authentication header");
        scene.check(&name, &[error], &Expected::silence(&[("foreign-error", 1)]));
    }
    Ok(())
}

#[test]
fn an_error_out_of_nowhere_is_not_forwarded_where_a_script_jumps_to_qubes_forward() -> Result<()> {
    let scene = only_the_gate("errorsjump")?;
    for family in ["ip", "ip6"] {
        let rule = format!("insert rule {family} qubes-firewall forward jump qubes-forward");
        scene.world.rig.netvm().nft(&rule)?;
    }
    check_errors_out_of_nowhere(&scene);
    Ok(())
}

/// What is asked of an error on its way.
struct Errors {
    scene: Scene,
    /// Port of the servers of these tests.
    port: u16,
}

impl Errors {
    /// The client may talk to a UDP port, and no rule of its accepts ICMP.
    fn new(label: &str) -> Result<Self> {
        let port = 444;
        let rule = Rule { proto: Some(Proto::Udp), ports: Some((port, port)), ..Rule::all(true) };
        Ok(Self { scene: Scene::new(label, &[rule])?, port })
    }

    /// Somebody behind the client's address sends to a server and goes; returns whether the
    /// server's answer makes the server's kernel hear of it.
    fn server_hears(&self, from: &Namespace, server: IpAddr) -> Result<bool> {
        let address = SocketAddr::new(server, self.port);
        let socket = self.scene.world.rig.internet().run(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let client = from.run(|| Ok(UdpSocket::bind(unspecified(server))?))?;
        client.send_to(b"question", address)?;
        let mut bytes = [0; 16];
        let (length, peer) = socket.recv_from(&mut bytes).context("nothing arrived")?;
        ensure!(&bytes[..length] == b"question", "something else arrived");
        drop(client);
        socket.connect(peer)?;
        socket.send(b"answer")?;
        Ok(is_refused(&socket))
    }

    /// The client asks at a port that nobody serves; returns whether it hears of that.
    fn client_hears(&self, from: &Namespace, server: IpAddr) -> Result<bool> {
        let socket = from.run(|| Ok(UdpSocket::bind(unspecified(server))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(SocketAddr::new(server, self.port))?;
        socket.send(b"question")?;
        Ok(is_refused(&socket))
    }

    /// Errors of a client that the program has handed on.
    fn handed_on(&self, client: IpAddr) -> Result<u64> {
        let counters = self.scene.agent.client(client)?.counters;
        Ok(counters.get("icmp-error").map_or(0, |counter| counter.packets))
    }
}

/// Whether the next thing that a socket hears is "port unreachable".
fn is_refused(socket: &UdpSocket) -> bool {
    let outcome = socket.recv(&mut [0; 16]);
    outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn errors_about_a_clients_own_connections_pass_both_ways() -> Result<()> {
    let errors = Errors::new("errorsown")?;
    let World { client, v4, v6, .. } = &errors.scene.world;
    for (own, server) in [(*v4, SERVER4), (*v6, SERVER6)] {
        ensure!(errors.client_hears(client.namespace(), server)?, "{own}: towards the client");
        assert_eq!(errors.handed_on(own)?, 0);
        ensure!(errors.server_hears(client.namespace(), server)?, "{own}: from the client");
        assert_eq!(errors.handed_on(own)?, 1);
    }
    Ok(())
}

#[test]
fn errors_pass_both_ways_where_the_client_is_a_netvm_that_masquerades() -> Result<()> {
    let errors = Errors::new("errorsnest")?;
    let World { rig, client, v4, v6, .. } = &errors.scene.world;
    let qube = rig.add_behind(client)?;
    for (own, server) in [(*v4, SERVER4), (*v6, SERVER6)] {
        ensure!(errors.client_hears(&qube, server)?, "{own}: towards the qube");
        ensure!(errors.server_hears(&qube, server)?, "{own}: from the qube");
        assert_eq!(errors.handed_on(own)?, 1);
    }
    Ok(())
}
