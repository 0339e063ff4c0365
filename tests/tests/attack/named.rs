//! Attacks that succeeded once, each as small as it was.

use firewall_tests::attack::content::{Content, Port, Quote};
use firewall_tests::attack::frame::{Checksum, Frame, Header, Packet};
use firewall_tests::attack::keep;
use firewall_tests::attack::place::{Flow, Place, View, Whose};
use firewall_tests::attack::sequence::{Rules, Sequence, Step};
use firewall_tests::packets::family::{Family, PerFamily as _};

use super::play::check;

const C: Whose = Whose::Honest(0);

/// An error about a flow, with so many bytes of its own behind what it quotes.
fn error(family: Family, to: Place, kinds: [(u8, u8); 2], about: Quote, size: u16) -> Packet {
    let (kind, code) = match family {
        Family::V4 => kinds[0],
        Family::V6 => kinds[1],
    };
    Packet::new(family, to, Content::Error { kind, code, field: None, about, size })
}

/// Port unreachable in both families.
const PORT: [(u8, u8); 2] = [(3, 3), (1, 4)];

fn quote(whose: Whose, flow: Flow, view: View) -> Quote {
    Quote { whose, flow, view, later: false }
}

fn sequence(name: &str, family: Family, steps: impl IntoIterator<Item = Step>) -> Sequence {
    Sequence::new(format!("{name}, {family:?}"), steps)
}

fn send(packet: Packet) -> Step {
    Step::Send(vec![packet.into()])
}

/// Too big: the MTU that an error tells.
fn too_big(family: Family, to: Place, about: Quote) -> Packet {
    let (kind, code, mtu) = match family {
        Family::V4 => (3, 4, 552),
        Family::V6 => (2, 0, 1280),
    };
    Packet::new(family, to, Content::Error { kind, code, field: Some(mtu), about, size: 0 })
}

#[test]
fn errors_about_connections_of_others_go_nowhere_and_harm_nobody() {
    let mut sequences = Vec::new();
    for family in Family::BOTH {
        let answer = quote(C, Flow::Udp, View::AnswerIn);
        let sent_on = quote(C, Flow::Udp, View::SentOn);
        let cases = [
            (
                "to the server, about the answer to a client",
                error(family, Place::Server, PORT, answer, 1200),
            ),
            (
                "to the netvm, about what a client sent",
                error(family, Place::Uplink, PORT, sent_on, 0),
            ),
            ("to the netvm, too big", too_big(family, Place::Uplink, sent_on)),
            ("to the server, too big", too_big(family, Place::Server, answer)),
            (
                "to the server, about a ping",
                error(family, Place::Server, PORT, quote(C, Flow::Ping, View::AnswerIn), 400),
            ),
            (
                "to the server, about TCP",
                error(family, Place::Server, PORT, quote(C, Flow::Tcp, View::AnswerIn), 400),
            ),
            (
                "to the server, time exceeded",
                error(family, Place::Server, [(11, 0), (3, 0)], answer, 400),
            ),
            (
                "to the server, parameter problem",
                error(family, Place::Server, [(12, 0), (4, 0)], answer, 400),
            ),
            (
                "to the netvm, about its own flow",
                error(family, Place::Uplink, PORT, quote(Whose::Netvm, Flow::Udp, View::Sent), 0),
            ),
            (
                "to the netvm, its own flow is too big",
                too_big(family, Place::Uplink, quote(Whose::Netvm, Flow::Udp, View::Sent)),
            ),
        ];
        sequences.extend(cases.map(|(name, packet)| sequence(name, family, [send(packet)])));
    }
    check("attack_errors", &sequences);
}

#[test]
fn errors_hide_neither_behind_headers_nor_in_fragments_nor_as_unknown_types() {
    let mut sequences = Vec::new();
    let answer = quote(C, Flow::Udp, View::AnswerIn);
    for header in [Header::Authentication, Header::Destination, Header::Options, Header::Atomic] {
        // nftables looks behind each of these for ICMP but the first; conntrack behind all.
        let sent_on = quote(C, Flow::Udp, View::SentOn);
        for (to, about) in [(Place::Server, answer), (Place::Uplink, sent_on)] {
            let packet = error(Family::V6, to, PORT, about, 400);
            let packet = Packet { headers: vec![header], ..packet };
            let name = format!("behind {header:?}, to {to:?}");
            sequences.push(sequence(&name, Family::V6, [send(packet)]));
        }
    }
    for kind in [5, 99, 100, 101, 127] {
        let packet = error(Family::V6, Place::Server, [(3, 3), (kind, 0)], answer, 400);
        sequences.push(sequence(&format!("of type {kind}"), Family::V6, [send(packet)]));
    }
    for family in Family::BOTH {
        let packet = error(family, Place::Server, PORT, answer, 400);
        let pieces =
            [(0, 20), (20, u16::MAX)].map(|(start, end)| packet.clone().piece(7, start, end));
        sequences.push(sequence("in fragments", family, pieces.map(send)));
        let pieces =
            [(0, 1), (1, u16::MAX)].map(|(start, end)| packet.clone().piece(8, start, end));
        sequences.push(sequence(
            "in fragments of which the first is an empty error",
            family,
            pieces.map(send),
        ));
    }
    check("attack_hidden", &sequences);
}

#[test]
fn a_client_that_may_send_anything_harms_nobody_by_errors_either() {
    let mut sequences = Vec::new();
    for family in Family::BOTH {
        let sent_on = quote(C, Flow::Udp, View::SentOn);
        let open = || Step::Rules(Rules::Accept);
        let to_netvm = error(family, Place::Uplink, PORT, sent_on, 0);
        sequences.push(sequence("an open client complains", family, [open(), send(to_netvm)]));
        let narrow = too_big(family, Place::Uplink, sent_on);
        sequences.push(sequence("an open client says too big", family, [open(), send(narrow)]));
        let to_server = too_big(family, Place::Server, quote(C, Flow::Udp, View::AnswerIn));
        sequences.push(sequence(
            "an open client narrows the way back",
            family,
            [open(), send(to_server)],
        ));
    }
    check("attack_open", &sequences);
}

/// A datagram in two fragments, with something between them.
fn in_two(name: &str, family: Family, number: u16, between: &[Step]) -> Sequence {
    let datagram = Packet::new(family, Place::Server, Content::Udp(Port::Marked, 1200));
    let [first, last] = [(0, 80), (80, u16::MAX)]
        .map(|(start, end)| datagram.clone().piece(0x4d00 + number, start, end));
    let steps = [Step::Rules(Rules::Accept), send(first)].into_iter();
    sequence(name, family, steps.chain(between.iter().cloned()).chain([send(last)]))
}

#[test]
fn a_fragment_from_before_a_change_completes_nothing_after_it() {
    let mut sequences = Vec::new();
    for family in Family::BOTH {
        let rules = |rules| Step::Rules(rules);
        let cases: [(&str, &[Step]); 5] = [
            ("denied", &[rules(Rules::Deny)]),
            ("blocked", &[rules(Rules::Broken)]),
            ("removed", &[rules(Rules::Gone)]),
            ("denied by a new agent", &[Step::Kill, rules(Rules::Deny), Step::Start]),
            ("denied, and the agent is killed", &[rules(Rules::Deny), Step::Kill]),
        ];
        for (number, (name, between)) in (0..).zip(cases) {
            sequences.push(in_two(name, family, number, between));
        }
        let datagram = Packet::new(family, Place::Server, Content::Udp(Port::Marked, 1200));
        let [first, last] = [(0, 80), (80, u16::MAX)]
            .map(|(start, end)| datagram.clone().piece(0x4e00, start, end));
        let steps = [Step::Audit(true), send(first), Step::Audit(false), send(last)];
        sequences.push(sequence("an audit's end", family, steps));
    }
    check("attack_fragments", &sequences);
}

#[test]
fn fragments_of_one_client_do_not_take_the_room_of_all() {
    let mut sequences = Vec::new();
    for family in Family::BOTH {
        let datagram = Packet::new(family, Place::Server, Content::Udp(Port::Marked, 2800));
        let later = datagram.clone().piece(0, 180, u16::MAX);
        let lone = Step::Flood(Frame::Ip(later), 2400);
        sequences.push(sequence("later fragments without a first", family, [lone]));
        let first = Step::Flood(Frame::Ip(datagram.piece(0, 0, 180)), 2400);
        let open = Step::Rules(Rules::Accept);
        sequences.push(sequence("first fragments that are denied", family, [first.clone()]));
        sequences.push(sequence("first fragments that are accepted", family, [open, first]));
    }
    check("attack_memory", &sequences);
}

#[test]
fn what_is_for_the_netvm_itself_does_not_fill_the_tables_of_all() {
    let mut sequences = Vec::new();
    for family in Family::BOTH {
        let cases = [
            ("pings", Content::Echo(0)),
            ("UDP", Content::Udp(Port::Is(9), 0)),
            ("acknowledgements", Content::Tcp(Port::Is(9), 0x10, 0)),
            ("SYNs", Content::Tcp(Port::Is(9), 0x02, 0)),
            ("SCTP", Content::Sctp(Port::Is(9))),
        ];
        for (name, content) in cases {
            let packet = Packet::new(family, Place::Gateway, content);
            let flood = Step::Flood(Frame::Ip(packet), 6000);
            sequences.push(sequence(name, family, [flood]));
        }
        let unchecked = Packet {
            checksum: Checksum::Zero,
            ..Packet::new(family, Place::Uplink, Content::Udp(Port::Is(9), 0))
        };
        let flood = Step::Flood(Frame::Ip(unchecked), 6000);
        sequences.push(sequence("UDP without a checksum to the uplink's address", family, [flood]));
    }
    check("attack_tables", &sequences);
}

#[test]
fn forged_neighbours_do_not_fill_the_table_of_all() {
    // The kernel has one table for all namespaces: what fills it would harm whoever else runs
    // tests, so this is less than an attacker would send, and more than the share.
    let forged =
        |operation| Step::Flood(Frame::Arp(operation, Place::Numbered, Place::Gateway), 600);
    let solicitation = |from, target| {
        let content = Content::Neighbour(135, target);
        let packet = Packet { from, hops: 255, ..Packet::new(Family::V6, Place::Gateway, content) };
        Step::Flood(packet.into(), 600)
    };
    check(
        "attack_neighbours",
        &[
            Sequence::new("ARP requests with forged senders", [forged(1)]),
            Sequence::new("ARP answers with forged senders", [forged(2)]),
            Sequence::new(
                "solicitations with forged sources",
                [solicitation(Place::Numbered, Place::Gateway)],
            ),
            Sequence::new("solicitations for anybody", [solicitation(Place::Own, Place::Numbered)]),
        ],
    );
}

#[test]
fn what_a_random_run_found_once_is_found_no_more() {
    check("attack_kept", &keep::kept().expect("readable sequences"));
}
