//! Fragments: the first one is judged, its mark is the whole packet's, and each other one is
//! handed on right behind the one before it.

use std::ops::Range;

use anyhow::Result;
use firewall_tests::oracle::Rule;
use firewall_tests::packets;
use firewall_tests::packets::family::PerFamily as _;
use firewall_tests::packets::fragments::{piece, pieces};

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

/// How many of the fragments of an accepted datagram follow in order, from the first on.
fn in_turn(order: &[usize]) -> u64 {
    order.iter().fold(0, |turn, index| if *index as u64 == turn { turn + 1 } else { turn })
}

/// Counters of an accepted datagram of three fragments, of which so many follow in order.
fn counted(rule: &str, in_turn: u64) -> Vec<(&str, u64)> {
    let all = [(rule, 1), ("fragment", in_turn - 1), ("stray-fragment", 3 - in_turn)];
    all.into_iter().filter(|(_, count)| *count > 0).collect()
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
            let pieces = ordered(&pieces(&ends.udp(443, &data), seed, &CUTS), &order);
            let name = format!("{} in order {order:?}", ends.from);
            let counted = counted("rule 0", in_turn(&order));
            if in_turn(&order) < 3 {
                scene.check(&name, &pieces, &Expected::silence(&counted));
                continue;
            }
            let came = scene.check(&name, &pieces, &Expected::forwarded(3, &counted));
            let whole = came.whole().expect("all of it");
            assert_eq!(port_of(&whole), 443, "{name}");
            assert!(whole[8..] == data, "{name}: other content");
        }
    }
    Ok(())
}

#[test]
fn a_datagram_in_fragments_goes_nowhere_if_its_first_fragment_is_denied() -> Result<()> {
    let scene = Scene::new("fragno", &[udp_443()])?;
    for ends in scene.families() {
        for (seed, order) in (0..).zip(ORDERS) {
            let pieces = pieces(&ends.udp(444, &data(seed)), seed, &CUTS);
            let expected = Expected::silence(&[("default", 1), ("stray-fragment", 2)]);
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
        let (echo_rule, other) = ends.family.of([("rule 0", 13), ("rule 1", 139)]);
        let [request, question] = [ends.echo, other]
            .map(|kind| ends.packet(ends.icmp, &[packets::icmp(kind, 0), data(1)].concat()));
        let gre = ends.packet(packets::GRE, &[vec![0, 0, 8, 0], data(1), vec![0; 4]].concat());
        id += 1;
        let cut = |packet: &[u8], id| pieces(packet, id, &CUTS);
        let name = ends.from.to_string();
        let counted = counted(echo_rule, 3);
        let expected = Expected::forwarded(3, &counted);
        let came = scene.check(&name, &cut(&request, id), &expected);
        assert!(came.whole().expect("all of it")[8..] == data(1), "{name}");
        let denied = Expected::silence(&[("default", 1), ("stray-fragment", 2)]);
        scene.check(&name, &cut(&gre, id + 100), &denied);
        scene.check(&name, &cut(&question, id + 200), &denied);
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
                &Expected::silence(&[("stray-fragment", 2)]),
            );
            scene.check(
                &format!("{name}, only the first"),
                &cut(20)[..1],
                &Expected::silence(&[(verdict, 1)]),
            );
            scene.check(
                &format!("{name}, without the second"),
                &ordered(&cut(30), &[0, 2]),
                &Expected::silence(&[(verdict, 1), ("stray-fragment", 1)]),
            );
        }
    }
    Ok(())
}

#[test]
fn a_datagram_with_a_bad_checksum_in_the_ipv4_header_of_a_piece_goes_nowhere() -> Result<()> {
    let scene = Scene::new("fragsum", &[udp_443()])?;
    let [ends, _] = scene.families();
    let mut pieces = pieces(&ends.udp(443, &data(1)), 1, &CUTS);
    pieces[1][10] ^= 0x40;
    let counted = [("rule 0", 1), ("stray malformed", 1), ("stray-fragment", 1)];
    scene.check("the second", &pieces, &Expected::silence(&counted));
    Ok(())
}

#[test]
fn a_second_first_fragment_with_another_port_does_not_win() -> Result<()> {
    let scene = Scene::new("fragtwice", &[udp_443()])?;
    for ends in scene.families() {
        let (yes, no) = (data(1), data(2));
        let accepted = |id| pieces(&ends.udp(443, &yes), id, &CUTS);
        let denied = |id| pieces(&ends.udp(444, &no), id, &CUTS);
        // The denied one takes no part, be it first or second.
        let counted: &[_] = &[("rule 0", 1), ("default", 1), ("fragment", 2)];
        for (id, order) in [(11, [3, 0, 1, 2]), (12, [0, 3, 1, 2]), (13, [0, 1, 3, 2])] {
            let all = [accepted(id), denied(id)].concat();
            let expected = Expected::forwarded(3, counted);
            let name = format!("{} {order:?}", ends.from);
            let whole = scene.check(&name, &ordered(&all, &order), &expected).whole();
            let whole = whole.expect("all of it");
            assert_eq!(port_of(&whole), 443, "{name}");
            assert!(whole[8..] == yes, "{name}: other content");
        }
        // Nor does an accepted one, while the kernel may still keep another.
        let second = pieces(&ends.udp(443, &no), 14, &CUTS);
        let all = [accepted(14), second].concat();
        let counted: &[_] = &[("rule 0", 1), ("stray-fragment", 1), ("fragment", 2)];
        let came =
            scene.check("twice", &ordered(&all, &[0, 3, 1, 2]), &Expected::forwarded(3, counted));
        assert!(came.whole().expect("all of it")[8..] == yes, "other content");
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
        let silence = [("rule 0", 1), ("default", 1), ("stray-fragment", 2)];
        let expected = Expected::silence(&silence);
        scene.check("in a denied one", &cut(1, &denied, &accepted), &expected);
        let expected = Expected::forwarded(3, counted);
        let came = scene.check("in an accepted one", &cut(2, &accepted, &denied), &expected);
        assert_eq!(port_of(&came.whole().expect("all of it")), 443);
    }
    Ok(())
}

#[test]
fn fragments_that_overlap_others_go_nowhere() -> Result<()> {
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
        check("the end of the first", 1, &ranges, &[("rule 0", 1), ("stray-fragment", 2)]);
        let ranges = [(yes, 0..1208), (no, 8..1208), (yes, 1216..2416), last.clone()];
        check("all but the ports", 2, &ranges, &[("rule 0", 1), ("stray-fragment", 3)]);
        // An accepted header first, then a denied datagram over it.
        let ranges = [(yes, 0..16), (no, 0..1208), (no, 1208..2416), last];
        let counted = [("rule 0", 1), ("default", 1), ("stray-fragment", 2)];
        check("an accepted header", 3, &ranges, &counted);
    }
    Ok(())
}

#[test]
fn a_header_in_fragments_of_8_bytes_is_judged_by_its_port() -> Result<()> {
    let scene = Scene::new("fragtiny", &[tcp_443(), udp_443()])?;
    let mut id = 0;
    for ends in scene.families() {
        for port in [443, 444] {
            let tcp = ends.packet(packets::TCP, &packets::tcp(40000, port));
            let udp = ends.udp(port, &[7; 12]);
            for (name, rule, packet) in [("TCP", "rule 0", tcp), ("UDP", "rule 1", udp)] {
                id += 1;
                let name = format!("{name} from {} to port {port}", ends.from);
                let pieces = pieces(&packet, id, &[8, 16]);
                // The kernel would throw an IPv6 first fragment away that does not hold the whole
                // TCP header (RFC 8200, section 4.5).
                if ends.from.is_ipv6() && rule == "rule 0" {
                    let counted: &[_] = &[("stray truncated", 1), ("stray-fragment", 2)];
                    scene.check(&name, &pieces, &Expected::silence(counted));
                } else if port == 444 {
                    let counted: &[_] = &[("default", 1), ("stray-fragment", 2)];
                    scene.check(&name, &pieces, &Expected::silence(counted));
                } else {
                    let counted: &[_] = &[(rule, 1), ("fragment", 2)];
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
