//! Who answers when a packet cannot go on, and when nobody does: time to live, size,
//! checksums, errors about errors, connections that began earlier.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::slice;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{self, ICMP, ICMPV6, TCP, UDP, V4, V6};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK};
use firewall_tests::traffic::frames;

use super::scene::*;
use super::world::*;

const FIN: u8 = 0x01;
const RST: u8 = 0x04;
const PUSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A UDP packet to nobody that lives so long, does not want to be fragmented, and has
/// this data.
fn limited(ends: &Ends, port: u16, life: u8, data: &[u8]) -> Result<Vec<u8>> {
    let datagram = packets::datagram(40000, port, data);
    let datagram = packets::sealed(ends.from, ends.to, UDP, &datagram);
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let packet = V4::new(from, to, UDP, &datagram);
            Ok(V4 { ttl: life, fragment: 0x4000, ..packet }.packet())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            Ok(V6 { hop_limit: life, ..V6::new(from, to, UDP, &datagram) }.packet())
        }
        _ => bail!("two families"),
    }
}

#[test]
fn the_last_hop_is_answered_by_the_kernel_whatever_rules_say() -> Result<()> {
    let scene = Scene::new("ttl", &[udp_443()])?;
    for ends in scene.families() {
        let exceeded = match ends.from {
            IpAddr::V4(_) => Answer::Icmp(11, 0),
            IpAddr::V6(_) => Answer::Icmp(3, 0),
        };
        for (port, reason) in [(443, "rule 0"), (444, "default")] {
            for life in [0, 1] {
                let name = format!("{} port {port}, life {life}", ends.from);
                let packet = limited(&ends, port, life, &[9; 32])?;
                scene.check(&name, &[packet], &Expected::answered(&[exceeded], &[(reason, 1)]));
            }
        }
        let packet = limited(&ends, 443, 2, &[9; 32])?;
        scene.check("one hop more", &[packet], &Expected::forwarded(1, &[("rule 0", 1)]));
        let packet = limited(&ends, 444, 2, &[9; 32])?;
        let expected = Expected::answered(slice::from_ref(&ends.prohibited), &[("default", 1)]);
        scene.check("one hop more, denied", &[packet], &expected);
    }
    Ok(())
}

#[test]
fn a_packet_too_big_for_the_uplink_is_answered_by_the_kernel_whatever_rules_say() -> Result<()> {
    let scene = Scene::new("toobig", &[udp_443()])?;
    scene.world.rig.netvm().ip(&["link", "set", UPLINK, "mtu", "1300"])?;
    for ends in scene.families() {
        let too_big = match ends.from {
            IpAddr::V4(_) => Answer::Icmp(3, 4),
            IpAddr::V6(_) => Answer::Icmp(2, 0),
        };
        for (port, reason) in [(443, "rule 0"), (444, "default")] {
            let name = format!("{} port {port}", ends.from);
            let packet = limited(&ends, port, 64, &[9; 1400])?;
            scene.check(&name, &[packet], &Expected::answered(&[too_big], &[(reason, 1)]));
        }
        let packet = limited(&ends, 443, 64, &[9; 1200])?;
        scene.check("small enough", &[packet], &Expected::forwarded(1, &[("rule 0", 1)]));
    }
    Ok(())
}

#[test]
fn a_packet_without_a_route_is_answered_by_the_kernel_whatever_rules_say() -> Result<()> {
    let scene = Scene::new("noroute", &[udp_443()])?;
    let netvm = scene.world.rig.netvm();
    netvm.ip(&["route", "add", "unreachable", "203.0.113.0/24"])?;
    netvm.ip(&["-6", "route", "add", "unreachable", "2001:db8:2::/48"])?;
    for ends in scene.families() {
        // Host unreachable; IPv6 says that there is no route.
        let unreachable = match ends.from {
            IpAddr::V4(_) => Answer::Icmp(3, 1),
            IpAddr::V6(_) => Answer::Icmp(1, 0),
        };
        for (port, reason) in [(443, "rule 0"), (444, "default")] {
            let name = format!("{} port {port}", ends.from);
            let packet = ends.udp(port, &[9; 32]);
            scene.check(&name, &[packet], &Expected::answered(&[unreachable], &[(reason, 1)]));
        }
    }
    Ok(())
}

#[test]
fn a_reject_comes_from_the_gateway_and_quotes_the_packet() -> Result<()> {
    let scene = Scene::new("quote", &[])?;
    let client = scene.world.client.namespace();
    for ends in scene.families() {
        let mut back = frames::capture(client, CLIENT_INTERFACE)?;
        let packet = ends.udp(443, &(0..=255).cycle().take(1400).collect::<Vec<u8>>());
        frames::send_raw(client, CLIENT_INTERFACE, &frame(&packet))?;
        let (source, hops, header, length) = match ends.from {
            // RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4: no longer than that.
            IpAddr::V4(_) => (12..16, 8, 20, 576),
            IpAddr::V6(_) => (8..24, 7, 40, 1280),
        };
        let gateway = match ends.gateway {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let Answer::Icmp(kind, code) = ends.prohibited else { bail!("not ICMP") };
        let is_it = |frame: &[u8]| frame[14 + source.start..14 + source.end] == gateway;
        let error = back.wait_for(is_it, PATIENCE)?.context("no answer")?.split_off(14);
        assert_eq!(error.len(), length);
        assert_eq!(error[hops], 64);
        assert_eq!(error[header..header + 2], [kind, code]);
        let quote = &error[header + 8..];
        // The header before it has one hop less; ports, length and data are as they were.
        assert_eq!(quote[header..], packet[header..quote.len()]);
        // Precedence "internetwork control" (RFC 1812, section 4.3.2.5); IPv6 has none.
        let class = u16::from_be_bytes([error[0], error[1]]);
        assert_eq!(class & 0xfff0, if header == 20 { 0x45c0 } else { 0x6000 });
    }
    Ok(())
}

#[test]
fn a_denied_packet_with_a_bad_checksum_is_not_answered() -> Result<()> {
    let scene = Scene::new("badsum", &[])?;
    for ends in scene.families() {
        let echo = [packets::icmp(ends.echo, 0), vec![1; 32]].concat();
        for (protocol, payload) in [
            (TCP, packets::tcp(40000, 443)),
            (UDP, packets::datagram(40000, 443, &[1; 32])),
            (ends.icmp, echo),
        ] {
            let good = ends.packet(protocol, &payload);
            let mut bad = good.clone();
            // A byte that nobody looks at but the checksum.
            let at = bad.len() - 1;
            bad[at] ^= 0xff;
            let name = format!("{protocol} from {}", ends.from);
            scene.check(&name, &[bad], &Expected::silence(&[("default", 1)]));
            let expected = Expected::answered(slice::from_ref(&ends.prohibited), &[("default", 1)]);
            scene.check(&name, &[good], &expected);
        }
    }
    Ok(())
}

#[test]
fn a_bad_checksum_of_an_ipv4_header_is_the_end_of_a_packet() -> Result<()> {
    let scene = Scene::new("badheader", &[udp_443()])?;
    let [ends, _] = scene.families();
    for (port, reason) in [(443, "rule 0"), (444, "default")] {
        let mut packet = ends.udp(port, &[1; 32]);
        packet[10] ^= 0x40;
        scene.check(reason, &[packet], &Expected::silence(&[(reason, 1)]));
    }
    Ok(())
}

/// Types and codes of errors.
const ERRORS4: [(u8, u8); 4] = [(3, 1), (3, 4), (11, 0), (12, 0)];
/// The same of IPv6.
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
            let types = if ends.icmp == ICMP { &types4[..] } else { &ERRORS6 };
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
        for (kind, code) in if ends.icmp == ICMP { ERRORS4 } else { ERRORS6 } {
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

#[test]
fn a_segment_in_mid_stream_is_judged_by_rules() -> Result<()> {
    let scene = Scene::new("midstream", &[tcp_443()])?;
    for ends in scene.families() {
        let segment = |flags: u8, port| {
            let mut segment = packets::segment(40000 + u16::from(flags), port, &[6; 32]);
            segment[13] = flags;
            [ends.packet(TCP, &segment)]
        };
        for flags in [ACK, ACK | PUSH] {
            let name = format!("flags {flags:#x} from {}", ends.from);
            let expected = Expected::answered(slice::from_ref(&ends.prohibited), &[("default", 1)]);
            scene.check(&name, &segment(flags, 444), &expected);
            let expected = Expected::forwarded(1, &[("rule 0", 1)]);
            let came = scene.check(&name, &segment(flags, 443), &expected);
            assert!(came.arrivals[0].ends_with(&[6; 32]), "{name}");
        }
        // Connection tracking calls the end of what never began invalid.
        for flags in [ACK | FIN, ACK | RST] {
            let name = format!("flags {flags:#x} from {}", ends.from);
            let silence = Expected::silence(&[("default", 1)]);
            scene.check(&name, &segment(flags, 444), &silence);
            scene.check(&name, &segment(flags, 443), &Expected::silence(&[("rule 0", 1)]));
        }
    }
    Ok(())
}

#[test]
fn the_first_and_the_last_port_are_ports_like_others() -> Result<()> {
    let edges = |proto| {
        [0, u16::MAX].map(|port| Rule {
            proto: Some(proto),
            ports: Some((port, port)),
            ..Rule::all(true)
        })
    };
    let all_but_edges =
        |proto| Rule { proto: Some(proto), ports: Some((1, u16::MAX - 1)), ..Rule::all(true) };
    let scene = Scene::new("ports", &[edges(Proto::Tcp), edges(Proto::Udp)].concat())?;
    let packet = |ends: &Ends, protocol, source, destination| match protocol {
        TCP => ends.packet(TCP, &packets::tcp(source, destination)),
        _ => ends.packet(UDP, &packets::datagram(source, destination, &[1; 32])),
    };
    let check = |edges_accepted: bool| {
        for ends in scene.families() {
            for (protocol, first_rule) in [(TCP, 0), (UDP, 2)] {
                for (source, port) in [0, 1, u16::MAX - 1, u16::MAX]
                    .into_iter()
                    .flat_map(|source| [0, 1, 65534, 65535].map(|port| (source, port)))
                {
                    let edge = matches!(port, 0 | u16::MAX);
                    let rule = match (edges_accepted, port) {
                        (true, u16::MAX) => format!("rule {}", first_rule + 1),
                        (true, _) => format!("rule {first_rule}"),
                        (false, _) => format!("rule {}", first_rule / 2),
                    };
                    let name = format!("{} {protocol} {source} to {port}", ends.from);
                    let packet = packet(&ends, protocol, source, port);
                    if edge == edges_accepted {
                        let counted = &[(rule.as_str(), 1)];
                        let expected = Expected::forwarded(1, counted);
                        let whole = scene.check(&name, &[packet], &expected).whole();
                        assert_eq!(whole.expect("it")[2..4], port.to_be_bytes(), "{name}");
                    } else {
                        let prohibited = slice::from_ref(&ends.prohibited);
                        let expected = Expected::answered(prohibited, &[("default", 1)]);
                        scene.check(&name, &[packet], &expected);
                    }
                }
            }
        }
    };
    check(true);
    scene.world.put(&scene.agent, &[all_but_edges(Proto::Tcp), all_but_edges(Proto::Udp)])?;
    check(false);
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
