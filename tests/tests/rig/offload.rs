//! Packets that are larger inside the kernel than on a wire, or not all in one piece.

use std::hint;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_core::told::status::CounterStatus;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::{self, DESTINATION, HOP_BY_HOP, UDP, V4, V6};
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{CLIENT_INTERFACE, UPLINK};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::shared::SharedFrame;
use nix::sys::socket::{setsockopt, sockopt};

use super::scene::*;
use super::world::*;

/// What one bulk transfer moves.
const BULK: u64 = 48 << 20;
/// Most data in one TCP segment: an MTU of 1,500, without headers and time stamps.
const SEGMENT4: u64 = 1448;
const SEGMENT6: u64 = 1428;

/// Ethernet, and the headers of such a segment.
const HEADERS4: u64 = 14 + 20 + 32;
const HEADERS6: u64 = 14 + 40 + 32;

fn rule_counter(scene: &Scene, client: IpAddr) -> Result<CounterStatus> {
    let status = scene.agent.client(client)?;
    Ok(status.rules.first().context("no rule")?.counter)
}

#[test]
fn a_bulk_transfer_is_counted_in_segments_although_the_kernel_moves_larger_packets() -> Result<()> {
    let rule = Rule { proto: Some(Proto::Tcp), ports: Some((5001, 5001)), ..Rule::all(true) };
    let scene = Scene::new("bulk", &[rule])?;
    let cases = [
        (scene.world.v4, SERVER4, SEGMENT4, HEADERS4),
        (scene.world.v6, SERVER6, SEGMENT6, HEADERS6),
    ];
    for (client, server, segment, headers) in cases {
        let to = SocketAddr::new(server, 5001);
        let listener = scene.world.rig.internet().run(|| Ok(TcpListener::bind(to)?))?;
        let receiving = thread::spawn(move || -> Result<u64> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut buffer = vec![0; 1 << 18];
            let mut received = 0;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(received),
                    length => received += length as u64,
                }
            }
        });
        let namespace = scene.world.client.namespace();
        let connected = namespace.run(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?));
        let mut stream = connected?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let chunk = vec![0x42; 1 << 20];
        for _ in 0..BULK / chunk.len() as u64 {
            stream.write_all(&chunk)?;
        }
        drop(stream);
        let received = receiving.join().expect("no panic")?;
        assert_eq!(received, BULK);
        let counter = rule_counter(&scene, client)?;
        let full = BULK / segment;
        // Some segments are not full, and there is a beginning and an end.
        let expected = full..full + full / 10 + 100;
        ensure!(expected.contains(&counter.packets), "{expected:?}: {counter:?}");
        // One packet of many segments has one header: that is how to tell that the kernel
        // did move larger packets.
        let if_all_were_small = BULK + counter.packets * headers;
        let few_headers = BULK..BULK + (if_all_were_small - BULK) / 2;
        ensure!(few_headers.contains(&counter.bytes), "{few_headers:?}: {counter:?}");
        assert_eq!(scene.agent.client(client)?.default_counter.packets, 0);
    }
    Ok(())
}

/// A UDP socket of the client towards a server.
fn udp_socket(scene: &Scene, to: SocketAddr) -> Result<UdpSocket> {
    let socket = scene.world.client.namespace().run(|| {
        let socket = UdpSocket::bind(unspecified(to.ip()))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

#[test]
fn a_datagram_larger_than_the_mtu_goes_there_and_back() -> Result<()> {
    let scene = Scene::new("largeudp", &[udp_443()])?;
    for (client, server) in [(scene.world.v4, SERVER4), (scene.world.v6, SERVER6)] {
        let socket = udp_socket(&scene, SocketAddr::new(server, 443))?;
        for length in [1473, 20_000, 60_000] {
            let sent: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
            let before = scene.agent.client(client)?;
            socket.send(&sent)?;
            let mut received = vec![0; 1 << 16];
            let echoed = socket.recv(&mut received)?;
            ensure!(received[..echoed] == sent, "{length} bytes from {client} came back changed");
            let after = scene.agent.client(client)?;
            let later = |status: &firewall_core::told::status::ClientStatus| {
                status.counters.get("fragment").map_or(0, |counter| counter.packets)
            };
            let in_one = Family::from(server).of([1480, 1448]);
            let expected = (length as u64 + 8).div_ceil(in_one) - 1;
            assert_eq!(later(&after) - later(&before), expected, "{length} from {client}");
            let judged = after.rules[0].counter.packets - before.rules[0].counter.packets;
            assert_eq!(judged, 1, "{length} from {client}");
        }
        // Denied, it is denied once.
        let denied = udp_socket(&scene, SocketAddr::new(server, 444))?;
        denied.send(&[1; 20_000])?;
        ensure!(denied.recv(&mut [0; 16]).is_err(), "something came back");
        assert_eq!(scene.agent.client(client)?.default_counter.packets, 1);
    }
    Ok(())
}

#[test]
fn datagrams_that_the_kernel_moves_as_one_are_counted_one_by_one() -> Result<()> {
    let rule = Rule { ports: Some((5002, 5002)), ..udp_443() };
    let scene = Scene::new("udpgso", &[rule])?;
    for (client, server) in [(scene.world.v4, SERVER4), (scene.world.v6, SERVER6)] {
        let to = SocketAddr::new(server, 5002);
        let echo = EchoServer::start(scene.world.rig.internet(), to)?;
        let socket = udp_socket(&scene, to)?;
        setsockopt(&socket, sockopt::UdpGsoSegment, &1000)?;
        socket.send(&[3; 10_500])?;
        ensure!(echo.wait_until(|it| it.udp_packets == 11, PATIENCE), "{:?}", echo.received());
        assert_eq!(echo.received().udp_bytes, 10_500);
        let counter = rule_counter(&scene, client)?;
        assert_eq!(counter.packets, 11, "{counter:?}");
        ensure!(counter.bytes >= 10_500, "{counter:?}");
    }
    Ok(())
}

#[test]
fn headers_that_are_not_in_the_linear_part_of_a_packet_are_read_all_the_same() -> Result<()> {
    let scene = Scene::new("paged", &[udp_443()])?;
    let (netvm, internet) = (scene.world.rig.netvm(), scene.world.rig.internet());
    let client = scene.world.client.namespace();
    let vif = scene.world.client.vif();
    for (namespace, link) in
        [(netvm, vif), (netvm, UPLINK), (internet, "eth0"), (client, CLIENT_INTERFACE)]
    {
        namespace.ip(&["link", "set", link, "mtu", "9000"])?;
    }
    for ends in scene.families() {
        let datagram = |port| {
            let datagram = packets::datagram(40000, port, &[8; 6000]);
            packets::sealed(ends.from, ends.to, UDP, &datagram)
        };
        let packet = |port, dressed: bool| -> Result<Vec<u8>> {
            match (ends.from, ends.to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let options = if dressed { vec![1; 40] } else { Vec::new() };
                    Ok(V4 { options, ..V4::new(from, to, UDP, &datagram(port)) }.packet())
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let packet = V6::new(from, to, UDP, &datagram(port));
                    let none = packets::options(0);
                    let dress =
                        |packet: V6| packet.with(HOP_BY_HOP, &none).with(DESTINATION, &none);
                    Ok(if dressed { dress(packet) } else { packet }.packet())
                }
                _ => bail!("two families"),
            }
        };
        for dressed in [false, true] {
            let name = format!("{} {dressed}", ends.from);
            let frames = [frame(&packet(443, dressed)?)];
            let expected = Expected::forwarded(1, &[("rule 0", 1)]);
            let came = scene.check_sent(&name, ends.family, &frames, &expected, frames::send_paged);
            assert!(came.arrivals[0].ends_with(&[8; 6000]), "{name}");
            let frames = [frame(&packet(444, dressed)?)];
            let prohibited = slice::from_ref(&ends.prohibited);
            let expected = Expected::answered(prohibited, &[("default", 1)]);
            scene.check_sent(&name, ends.family, &frames, &expected, frames::send_paged);
        }
    }
    Ok(())
}

/// Much of a packet may lie in pages to which its sender can still write. Whatever the program read
/// there, connection tracking, the gate and NAT would read again.
#[test]
fn what_a_sender_changes_afterwards_is_what_was_judged() -> Result<()> {
    const SENT: usize = 8_000;
    const ALLOWED: u16 = 443;
    const DENIED: u16 = 444;
    let rule = Rule { proto: Some(Proto::Udp), ports: Some((ALLOWED, ALLOWED)), ..Rule::all(true) };
    let scene = Scene::new("changed", &[rule])?;
    let port_of = |frame: &[u8], at: usize| -> Option<u16> {
        let ports = frame.get(at..at + 4)?;
        (ports[..2] == 40000_u16.to_be_bytes()).then(|| u16::from_be_bytes([ports[2], ports[3]]))
    };
    for ends in scene.families() {
        let packet = ends.udp(ALLOWED, &[7; 64]);
        let ports = 14 + ends.family.of([20, 40]);
        let client = scene.world.client.namespace();
        let shared = SharedFrame::new(client, CLIENT_INTERFACE, &frame(&packet))?;
        let mut outside = frames::capture(scene.world.rig.internet(), UPLINK)?;
        let is_over = AtomicBool::new(false);
        let (mut allowed, mut denied) = (0, 0);
        thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                let port = shared.pair(ports + 2);
                for wait in (0..64).cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    for number in [ALLOWED, DENIED] {
                        port.store(number.to_be(), Ordering::Relaxed);
                        (0..wait).for_each(|_| hint::spin_loop());
                    }
                }
            });
            let outcome = (0..SENT).try_for_each(|_| {
                shared.send()?;
                while let Some(frame) = outside.wait_for(|_| true, Duration::ZERO)? {
                    match port_of(&frame, ports) {
                        Some(ALLOWED) => allowed += 1,
                        Some(DENIED) => denied += 1,
                        Some(_) | None => {}
                    }
                }
                Ok(())
            });
            is_over.store(true, Ordering::Relaxed);
            outcome
        })?;
        println!("{:?}: {allowed} of {SENT} accepted, {denied} denied ones left", ends.family);
        ensure!(allowed > 0, "nothing was accepted");
        assert_eq!(denied, 0, "packets left that had another port when they were judged");
    }
    Ok(())
}
