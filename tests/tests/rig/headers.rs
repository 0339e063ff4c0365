//! What stands between the IP header and the protocol: options and extension headers.

use std::net::IpAddr;
use std::slice;

use anyhow::{Result, bail};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{
    self, AUTHENTICATION, DESTINATION, ESP, FRAGMENT, GRE, HOP_BY_HOP, NO_NEXT, ROUTING, UDP, V4,
    V6,
};

use super::scene::*;

/// Number of an extension header, and all of it but its first byte.
type Header = (u8, Vec<u8>);

/// Data behind a UDP header.
const DATA: [u8; 24] = [0x5a; 24];

/// A UDP packet of IPv6 behind these extension headers.
fn extended(ends: &Ends, port: u16, headers: &[Header]) -> Result<Vec<u8>> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (ends.from, ends.to) else {
        bail!("not IPv6");
    };
    let datagram = packets::datagram(40000, port, &DATA);
    let datagram = packets::sealed(ends.from, ends.to, UDP, &datagram);
    let packet = V6::new(from, to, UDP, &datagram);
    Ok(headers.iter().fold(packet, |packet, (number, rest)| packet.with(*number, rest)).packet())
}

/// A UDP packet of IPv4 with these options.
fn with_options(ends: &Ends, to: IpAddr, options: &[u8]) -> Result<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (ends.from, to) else {
        bail!("not IPv4");
    };
    let datagram = packets::datagram(40000, 443, &DATA);
    let datagram = packets::sealed(from.into(), to.into(), UDP, &datagram);
    Ok(V4 { options: options.to_vec(), ..V4::new(from, to, UDP, &datagram) }.packet())
}

#[test]
fn extension_headers_do_not_hide_a_port_from_rules() -> Result<()> {
    let scene = Scene::new("exthdr", &[udp_443()])?;
    let [_, ends] = scene.families();
    let none = || packets::options(0);
    let long = || packets::options(5);
    let atomic = || packets::fragment(0, false);
    let orders: [&[Header]; 8] = [
        &[(DESTINATION, none())],
        &[(HOP_BY_HOP, none())],
        &[(HOP_BY_HOP, none()), (DESTINATION, none())],
        &[(DESTINATION, none()), (DESTINATION, none())],
        &[(DESTINATION, long())],
        &[(FRAGMENT, atomic())],
        &[(HOP_BY_HOP, none()), (FRAGMENT, atomic()), (DESTINATION, none())],
        &[(HOP_BY_HOP, none()), (DESTINATION, long()), (FRAGMENT, atomic())],
    ];
    for headers in orders {
        let name: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
        let expected = Expected::forwarded(1, &[("rule 0", 1)]);
        let packet = extended(&ends, 443, headers)?;
        let came = scene.check(&format!("{name:?} accepted"), &[packet], &expected);
        assert!(came.arrivals[0].ends_with(&DATA), "{name:?}");
        let packet = extended(&ends, 444, headers)?;
        // A denied fragment is not handed on, be it all of its datagram.
        let expected = match headers.iter().any(|(number, _)| *number == FRAGMENT) {
            true => Expected::silence(&[("default", 1)]),
            false => Expected::answered(slice::from_ref(&ends.prohibited), &[("default", 1)]),
        };
        scene.check(&format!("{name:?} denied"), &[packet], &expected);
    }
    Ok(())
}

#[test]
fn extension_headers_in_an_order_that_rfc_8200_forbids_hide_nothing() -> Result<()> {
    let scene = Scene::new("oddorder", &[udp_443()])?;
    let [_, ends] = scene.families();
    let none = || packets::options(0);
    let orders: [&[Header]; 3] = [
        &[(DESTINATION, none()), (HOP_BY_HOP, none())],
        &[(HOP_BY_HOP, none()), (HOP_BY_HOP, none())],
        &[(DESTINATION, none()), (HOP_BY_HOP, none()), (DESTINATION, none())],
    ];
    for headers in orders {
        let name: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
        let expected = Expected::forwarded(1, &[("rule 0", 1)]);
        scene.check(&format!("{name:?}"), &[extended(&ends, 443, headers)?], &expected);
        let expected = Expected::answered(slice::from_ref(&ends.prohibited), &[("default", 1)]);
        scene.check(&format!("{name:?}"), &[extended(&ends, 444, headers)?], &expected);
    }
    Ok(())
}

#[test]
fn routing_headers_and_nine_headers_are_dropped_without_an_answer() -> Result<()> {
    let scene = Scene::new("routing", &[Rule::all(true)])?;
    let [_, ends] = scene.families();
    let none = || packets::options(0);
    // Type, segments left, reserved; a type 0 header names one address.
    let type_0 = || [vec![2, 0, 1, 0, 0, 0, 0], vec![0x20; 16]].concat();
    let type_4 = || vec![0, 4, 0, 0, 0, 0, 0];
    let nine: Vec<Header> = (0..9).map(|_| (DESTINATION, none())).collect();
    let cases: [(&str, &[Header]); 6] = [
        ("stray routing-header", &[(ROUTING, type_0())]),
        ("stray routing-header", &[(ROUTING, type_4())]),
        ("stray routing-header", &[(HOP_BY_HOP, none()), (ROUTING, type_0())]),
        ("stray routing-header", &[(DESTINATION, none()), (ROUTING, type_4())]),
        ("stray routing-header", &[(FRAGMENT, packets::fragment(0, true)), (ROUTING, type_0())]),
        ("stray too-many-headers", &nine),
    ];
    for (reason, headers) in cases {
        let packet = extended(&ends, 443, headers)?;
        scene.check(reason, &[packet], &Expected::silence(&[(reason, 1)]));
    }
    let expected = Expected::forwarded(1, &[("rule 0", 1)]);
    scene.check("eight", &[extended(&ends, 443, &nine[1..])?], &expected);
    Ok(())
}

/// Packets of protocols that have no ports, at least to rules.
fn without_ports(ends: &Ends) -> Vec<(&'static str, Vec<u8>)> {
    let udp = packets::datagram(40000, 443, &DATA);
    // GRE without any flag, an IPv4 packet inside; AH of 24 bytes before UDP.
    let gre = [&[0, 0, 0x08, 0x00], &DATA[..]].concat();
    let authentication = [&[UDP, 4], &[0; 22][..], &udp].concat();
    let encrypted = [&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1], &DATA[..]].concat();
    vec![
        ("GRE", ends.packet(GRE, &gre)),
        ("AH", ends.packet(AUTHENTICATION, &authentication)),
        ("ESP", ends.packet(ESP, &encrypted)),
        ("experimental", ends.packet(253, &DATA)),
    ]
}

#[test]
fn protocols_without_ports_are_forwarded_by_a_bare_accept_only() -> Result<()> {
    let scene = Scene::new("noports", &[Rule::all(true)])?;
    for ends in scene.families() {
        for (name, packet) in without_ports(&ends) {
            let name = format!("{name} from {}", ends.from);
            let expected = Expected::forwarded(1, &[("rule 0", 1)]);
            let came = scene.check(&name, slice::from_ref(&packet), &expected);
            assert!(came.arrivals[0].ends_with(&packet[packet.len() - 20..]), "{name}");
        }
    }
    let of = |proto| Rule { proto: Some(proto), ..Rule::all(true) };
    scene.world.put(&scene.agent, &[of(Proto::Tcp), of(Proto::Udp), of(Proto::Icmp)])?;
    for ends in scene.families() {
        for (name, packet) in without_ports(&ends) {
            // Before it answers, the kernel looks for the checksum of a protocol it does
            // not know where ICMP has it, and finds it wrong.
            let answers: &[Answer] = match name {
                "experimental" => &[],
                _ => slice::from_ref(&ends.prohibited),
            };
            let expected = match name {
                // An IPv6 packet is judged by what is behind the header.
                "AH" if ends.from.is_ipv6() => Expected::forwarded(1, &[("rule 1", 1)]),
                _ => Expected::answered(answers, &[("default", 1)]),
            };
            scene.check(&format!("{name} from {}", ends.from), &[packet], &expected);
        }
    }
    Ok(())
}

#[test]
fn a_packet_of_headers_alone_is_judged_and_goes_nowhere() -> Result<()> {
    let scene = Scene::new("nonext", &[udp_443()])?;
    let [_, ends] = scene.families();
    let packets = |data: &[u8]| [ends.packet(NO_NEXT, data)];
    // Connection tracking finds no protocol in it and calls it invalid.
    for (rules, reason) in [(None, "default"), (Some(Rule::all(true)), "rule 0")] {
        if let Some(rule) = rules {
            scene.world.put(&scene.agent, &[rule])?;
        }
        scene.check("empty", &packets(&[]), &Expected::silence(&[(reason, 1)]));
        scene.check("with data", &packets(&DATA), &Expected::silence(&[(reason, 1)]));
    }
    Ok(())
}

#[test]
fn harmless_options_of_ipv4_are_forwarded() -> Result<()> {
    let scene = Scene::new("options", &[udp_443()])?;
    let [ends, _] = scene.families();
    let no_operation = vec![1, 1, 1, 0];
    // Room for three addresses; a time stamp with room for two; a router alert.
    let record_route = [vec![7, 15, 4], vec![0; 12]].concat();
    let time_stamp = [vec![68, 12, 5, 0], vec![0; 8]].concat();
    for (name, options) in [("NOP", no_operation), ("RR", record_route), ("timestamp", time_stamp)]
    {
        let packet = with_options(&ends, ends.to, &options)?;
        let came = scene.check(name, &[packet], &Expected::forwarded(1, &[("rule 0", 1)]));
        assert!(came.arrivals[0].ends_with(&DATA), "{name}");
        assert!(came.arrivals[0][0] > 0x45, "{name}: the options are lost");
    }
    Ok(())
}

#[test]
fn source_routes_are_dropped_whatever_the_kernel_would_do_with_them() -> Result<()> {
    let scene = Scene::new("sourceroute", &[Rule::all(true)])?;
    let [ends, _] = scene.families();
    let netvm = scene.world.rig.netvm();
    for kernel_takes_them in ["0", "1"] {
        for interface in ["all", scene.world.client.vif()] {
            let key = format!("net/ipv4/conf/{interface}/accept_source_route");
            netvm.sysctl(&key, kernel_takes_them)?;
        }
        for kind in [131, 137] {
            // Through the netvm to nobody, and to nobody through the netvm's next hop.
            for to in [ends.gateway, ends.to] {
                for before in [&[][..], &[1], &[1, 1, 1, 7, 7, 4, 0, 0, 0, 0]] {
                    let options = [before, &[kind, 7, 4, 203, 0, 113, 9]].concat();
                    let packet = with_options(&ends, to, &options)?;
                    let name = format!("{kind} to {to}, sysctl {kernel_takes_them}");
                    let counted = &[("stray source-route", 1)];
                    scene.check(&name, &[packet], &Expected::silence(counted));
                }
            }
        }
    }
    Ok(())
}
