//! Fragments: the first one is judged, and its mark is the whole packet's.

use std::ops::Range;
use std::slice;

use anyhow::Result;
use firewall_tests::fragments::{piece, pieces};
use firewall_tests::oracle::Rule;
use firewall_tests::packets;

use super::scene::*;
use super::world::*;

/// Where a datagram of 3,000 bytes is cut.
const CUTS: [usize; 2] = [1208, 2416];
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]];

/// 3,000 bytes that tell where they belong.
fn data(seed: u16) -> Vec<u8> {
    (0..1500_u16).flat_map(|index| (index ^ seed << 12).to_be_bytes()).collect()
}

fn ordered(pieces: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    order.iter().map(|index| pieces[*index].clone()).collect()
}

/// Destination port of UDP or TCP.
fn port_of(segment: &[u8]) -> u16 {
    u16::from_be_bytes([segment[2], segment[3]])
}

#[test]
fn a_datagram_in_fragments_arrives_whole_if_its_first_fragment_is_accepted() -> Result<()> {
    let scene = Scene::new("fragyes", &[udp_443()])?;
    for ends in scene.families() {
        for (seed, order) in (0..).zip(ORDERS) {
            let data = data(seed);
            let pieces = pieces(&ends.udp(443, &data), seed, &CUTS);
            let expected = Expected::forwarded(3, &[("rule 0", 1), ("fragment", 2)]);
            let name = format!("{} in order {order:?}", ends.from);
            let came = scene.check(&name, &ordered(&pieces, &order), &expected);
            let whole = came.whole().expect("all of it");
            assert_eq!(port_of(&whole), 443, "{name}");
            assert!(whole[8..] == data, "{name}: other content");
        }
    }
    Ok(())
}

#[test]
fn a_datagram_in_fragments_is_rejected_once_if_its_first_fragment_is_denied() -> Result<()> {
    let scene = Scene::new("fragno", &[udp_443()])?;
    for ends in scene.families() {
        for (seed, order) in (0..).zip(ORDERS) {
            let pieces = pieces(&ends.udp(444, &data(seed)), seed, &CUTS);
            let counted = &[("default", 1), ("fragment", 2)];
            let expected = Expected::answered(slice::from_ref(&ends.prohibited), counted);
            let name = format!("{} in order {order:?}", ends.from);
            scene.check(&name, &ordered(&pieces, &order), &expected);
        }
    }
    Ok(())
}

#[test]
fn what_has_no_ports_is_judged_by_its_first_fragment_as_well() -> Result<()> {
    let echo = |kind| Rule { icmp_type: Some(kind), ..ping() };
    let scene = Scene::new("fragping", &[echo(8), echo(128)])?;
    let mut id = 0;
    for ends in scene.families() {
        // Time stamp, and node information: types that no rule accepts.
        let (echo_rule, other) = if ends.from.is_ipv4() { ("rule 0", 13) } else { ("rule 1", 139) };
        let [request, question] = [ends.echo, other]
            .map(|kind| ends.packet(ends.icmp, &[packets::icmp(kind, 0), data(1)].concat()));
        let gre = ends.packet(packets::GRE, &[vec![0, 0, 8, 0], data(1), vec![0; 4]].concat());
        for order in ORDERS {
            id += 1;
            let cut = |packet| ordered(&pieces(packet, id, &CUTS), &order);
            let name = format!("{} in order {order:?}", ends.from);
            let counted: &[_] = &[(echo_rule, 1), ("fragment", 2)];
            let came = scene.check(&name, &cut(&request), &Expected::forwarded(3, counted));
            assert!(came.whole().expect("all of it")[8..] == data(1), "{name}");
            let counted: &[_] = &[("default", 1), ("fragment", 2)];
            let prohibited = slice::from_ref(&ends.prohibited);
            let expected = Expected::answered(prohibited, counted);
            id += 100;
            scene.check(&name, &ordered(&pieces(&gre, id, &CUTS), &order), &expected);
            id += 100;
            scene.check(&name, &ordered(&pieces(&question, id, &CUTS), &order), &expected);
        }
    }
    Ok(())
}

#[test]
fn an_incomplete_datagram_goes_nowhere_and_nobody_answers() -> Result<()> {
    let scene = Scene::new("fragpart", &[udp_443()])?;
    for ends in scene.families() {
        for (identification, port, verdict) in [(1, 443, "rule 0"), (2, 444, "default")] {
            let cut = |part: u16| pieces(&ends.udp(port, &data(1)), identification + part, &CUTS);
            let name = format!("{} port {port}", ends.from);
            scene.check(
                &format!("{name}, without the first"),
                &cut(10)[1..],
                &Expected::silence(&[("fragment", 2)]),
            );
            scene.check(
                &format!("{name}, only the first"),
                &cut(20)[..1],
                &Expected::silence(&[(verdict, 1)]),
            );
            scene.check(
                &format!("{name}, without the second"),
                &ordered(&cut(30), &[0, 2]),
                &Expected::silence(&[(verdict, 1), ("fragment", 1)]),
            );
        }
    }
    Ok(())
}

#[test]
fn a_second_first_fragment_with_another_port_does_not_win() -> Result<()> {
    let scene = Scene::new("fragtwice", &[udp_443()])?;
    for ends in scene.families() {
        let (yes, no) = (data(1), data(2));
        let accepted = |id| pieces(&ends.udp(443, &yes), id, &CUTS);
        let denied = |id| pieces(&ends.udp(444, &no), id, &CUTS);
        let counted: &[_] = &[("rule 0", 1), ("default", 1), ("fragment", 2)];
        // The accepted one comes second, among the pieces of the denied datagram.
        for (id, order) in [(1, [0, 3, 1, 2]), (2, [2, 0, 3, 1]), (3, [0, 1, 3, 2])] {
            let all = [denied(id), accepted(id)].concat();
            let expected = Expected::answered(slice::from_ref(&ends.prohibited), counted);
            let name = format!("{} denied first, {order:?}", ends.from);
            scene.check(&name, &ordered(&all, &order), &expected);
        }
        // The denied one comes second: it takes no part.
        for (id, order) in [(11, [0, 3, 1, 2]), (12, [2, 0, 3, 1]), (13, [0, 1, 3, 2])] {
            let all = [accepted(id), denied(id)].concat();
            let expected = Expected::forwarded(3, counted);
            let name = format!("{} accepted first, {order:?}", ends.from);
            let whole = scene.check(&name, &ordered(&all, &order), &expected).whole();
            let whole = whole.expect("all of it");
            assert_eq!(port_of(&whole), 443, "{name}");
            assert!(whole[8..] == yes, "{name}: other content");
        }
    }
    Ok(())
}

#[test]
fn a_piece_that_lies_within_another_does_not_win() -> Result<()> {
    let scene = Scene::new("fraginside", &[udp_443()])?;
    for ends in scene.families() {
        let (accepted, denied) = (ends.udp(443, &data(1)), ends.udp(444, &data(1)));
        let cut = |id, packet: &[u8], over: &[u8]| {
            let mut pieces = pieces(packet, id, &CUTS);
            pieces.insert(1, piece(over, id, 0..16));
            pieces
        };
        let counted: &[_] = &[("rule 0", 1), ("default", 1), ("fragment", 2)];
        let prohibited = slice::from_ref(&ends.prohibited);
        let expected = Expected::answered(prohibited, counted);
        scene.check("in a denied one", &cut(1, &denied, &accepted), &expected);
        let expected = Expected::forwarded(3, counted);
        let came = scene.check("in an accepted one", &cut(2, &accepted, &denied), &expected);
        assert_eq!(port_of(&came.whole().expect("all of it")), 443);
    }
    Ok(())
}

#[test]
fn fragments_that_overlap_go_nowhere() -> Result<()> {
    let scene = Scene::new("fraglap", &[udp_443()])?;
    for ends in scene.families() {
        let (accepted, denied) = (ends.udp(443, &data(1)), ends.udp(444, &data(1)));
        let check = |name: &str, id, ranges: &[(&[u8], Range<usize>)], counted: &[_]| {
            let cut = |(packet, range): &(&[u8], Range<usize>)| piece(packet, id, range.clone());
            let pieces: Vec<Vec<u8>> = ranges.iter().map(cut).collect();
            let name = format!("{} over {name}", ends.from);
            scene.check(&name, &pieces, &Expected::silence(counted));
        };
        let (yes, no) = (&accepted[..], &denied[..]);
        let last = (yes, 2416..3008);
        let ranges = [(yes, 0..1208), (no, 1200..2416), last.clone()];
        check("the end of the first", 1, &ranges, &[("rule 0", 1), ("fragment", 2)]);
        let ranges = [(no, 8..1208), (yes, 0..1208), (yes, 1208..2416), last.clone()];
        check("all but the ports", 2, &ranges, &[("rule 0", 1), ("fragment", 3)]);
        // An accepted header first, then a denied datagram over it.
        let ranges = [(yes, 0..16), (no, 0..1208), (no, 1208..2416), last];
        let counted = [("rule 0", 1), ("default", 1), ("fragment", 2)];
        check("an accepted header", 3, &ranges, &counted);
    }
    Ok(())
}

#[test]
fn a_header_in_fragments_of_8_bytes_is_judged_by_its_port() -> Result<()> {
    let scene = Scene::new("fragtiny", &[tcp_443(), udp_443()])?;
    let mut id = 0;
    for ends in scene.families() {
        for (port, order) in
            [(443, [0, 1, 2]), (443, [2, 1, 0]), (444, [0, 1, 2]), (444, [2, 1, 0])]
        {
            let tcp = ends.packet(packets::TCP, &packets::tcp(40000, port));
            let udp = ends.udp(port, &[7; 12]);
            for (name, rule, packet) in [("TCP", "rule 0", tcp), ("UDP", "rule 1", udp)] {
                id += 1;
                let name = format!("{name} from {} to port {port}, {order:?}", ends.from);
                let pieces = ordered(&pieces(&packet, id, &[8, 16]), &order);
                let verdict = if port == 443 { rule } else { "default" };
                let counted: &[_] = &[(verdict, 1), ("fragment", 2)];
                // The kernel throws an IPv6 first fragment away that does not hold the whole
                // TCP header (RFC 8200, section 4.5).
                if ends.from.is_ipv6() && rule == "rule 0" {
                    scene.check(&name, &pieces, &Expected::silence(counted));
                } else if port == 444 {
                    let prohibited = slice::from_ref(&ends.prohibited);
                    scene.check(&name, &pieces, &Expected::answered(prohibited, counted));
                } else {
                    let expected = Expected::forwarded(3, counted);
                    let whole = scene.check(&name, &pieces, &expected).whole();
                    let whole = whole.expect("all of it");
                    assert_eq!(port_of(&whole), 443, "{name}");
                    assert_eq!(whole.len(), 20, "{name}");
                }
            }
        }
    }
    Ok(())
}
