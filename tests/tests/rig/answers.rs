//! Who answers when a packet cannot go on, and when nobody does: time to live, size, routes,
//! checksums, connections that began earlier.

use std::net::IpAddr;
use std::slice;

use anyhow::{Context as _, Result, bail};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::PerFamily as _;
use firewall_tests::packets::{self, TCP, UDP, V4, V6};
use firewall_tests::rig::agent::PATIENCE;
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
        let exceeded = ends.family.of([Answer::Icmp(11, 0), Answer::Icmp(3, 0)]);
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
        let too_big = ends.family.of([Answer::Icmp(3, 4), Answer::Icmp(2, 0)]);
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
        let unreachable = ends.family.of([Answer::Icmp(3, 1), Answer::Icmp(1, 0)]);
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
        // RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4: no longer than that.
        let (source, hops, header, length) =
            ends.family.of([(12..16, 8, 20, 576), (8..24, 7, 40, 1280)]);
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
