//! The parser on slices: total, and never reads what is not there.

use std::net::{IpAddr, Ipv6Addr};

use firewall_common::abi::Address;
use firewall_common::fragments::{Datagrams, LIFETIME, PATIENCE, Piece, Turn, follow};
use firewall_common::packet::{Frame, Packet, parse, parse_plain};
use firewall_common::verdict::Reason;
use firewall_tests::packets::{self, V4, V6};
use proptest::prelude::*;

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const DESTINATION: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

#[test]
fn every_cut_of_a_packet_is_truncated() {
    // So long that it can be a first fragment.
    let tcp = [packets::tcp(1, 2), vec![0; 4]].concat();
    let v4 = V4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), packets::TCP, &tcp);
    let v6 = V6::new(SOURCE, DESTINATION, packets::TCP, &tcp);
    let frames = [
        v4.frame(),
        V4 { options: vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1], ..v4 }.frame(),
        v6.frame(),
        v6.clone().with(packets::HOP_BY_HOP, &packets::options(2)).frame(),
        v6.with(packets::FRAGMENT, &packets::fragment(0, true)).frame(),
    ];
    for frame in frames {
        assert!(matches!(parse(frame.as_slice()), Ok(Frame::Ip(_))));
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), Err(Reason::Truncated), "{length}");
        }
    }
}

/// An authentication header of IPv6 (RFC 4302), as it stands in front of TCP: the first byte of what
/// follows is its length, in units of 4 bytes, less 2.
#[test]
fn an_authentication_header_of_ipv6_is_walked_over() {
    let tcp = packets::tcp(1, 443);
    let of_length = |units: u8, bytes: usize| {
        let mut header = vec![units];
        header.resize(bytes - 1, 0);
        header
    };
    let fragment = |offset, more| (packets::FRAGMENT, packets::fragment(offset, more));
    let options = || (packets::DESTINATION, packets::options(1));
    let ah = |units, bytes| (packets::AUTHENTICATION, of_length(units, bytes));
    // The first header is the one next to the payload.
    let check = |name: &str, headers: Vec<(u8, Vec<u8>)>, expected: Result<u16, Reason>| {
        let packet = V6::new(SOURCE, DESTINATION, packets::TCP, &tcp);
        let packet =
            headers.into_iter().fold(packet, |packet, (number, rest)| packet.with(number, &rest));
        let found = parse(packet.frame().as_slice()).map(|frame| match frame {
            Frame::Ip(packet) => (packet.number, packet.port),
            Frame::Arp { .. } => (0, 0),
        });
        assert_eq!(found, expected.map(|port| (packets::TCP, port)), "{name}");
        assert_eq!(parse_plain(packet.frame().as_slice()), None, "{name}");
    };
    check("the shortest", vec![ah(0, 8)], Ok(443));
    check("of 24 bytes", vec![ah(4, 24)], Ok(443));
    check("the longest", vec![ah(255, 1028)], Ok(443));
    check("two", vec![ah(4, 24), ah(1, 12)], Ok(443));
    check("behind options", vec![ah(4, 24), options()], Ok(443));
    check("in front of options", vec![options(), ah(4, 24)], Ok(443));
    check("in a first fragment", vec![ah(4, 24), fragment(0, false)], Ok(443));
    check("eight", vec![ah(4, 24); 8], Ok(443));
    check("nine", vec![ah(4, 24); 9], Err(Reason::TooManyHeaders));
    check("longer than the packet", vec![ah(40, 24)], Err(Reason::Truncated));
    check("hides a route", vec![(packets::ROUTING, packets::options(1)), ah(4, 24)], {
        Err(Reason::RoutingHeader)
    });
}

#[test]
fn what_nearly_all_packets_are_is_plain() {
    for protocol in [packets::TCP, packets::UDP, packets::ICMP, 47] {
        let payload = [packets::tcp(8 << 8, 2), vec![0; 4]].concat();
        let v4 = V4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), protocol, &payload);
        assert!(parse_plain(v4.frame().as_slice()).is_some(), "{protocol}");
    }
    for protocol in [packets::TCP, packets::UDP, packets::ICMPV6, 47] {
        let payload = [packets::tcp(128 << 8, 2), vec![0; 4]].concat();
        let v6 = V6::new(SOURCE, DESTINATION, protocol, &payload);
        assert!(parse_plain(v6.frame().as_slice()).is_some(), "{protocol}");
    }
}

#[test]
fn a_fragment_that_ends_beyond_the_longest_datagram_is_refused() {
    for (length, fits) in [(528, true), (536, false), (544, false)] {
        let data = vec![7; length];
        let v4 = V4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), packets::UDP, &data);
        let v4 = V4 { fragment: 0x2000 | (65_000 / 8), ..v4 }.frame();
        let v6 = V6::new(SOURCE, DESTINATION, packets::UDP, &data);
        let v6 = v6.with(packets::FRAGMENT, &packets::fragment(65_000 / 8, true)).frame();
        for frame in [v4, v6] {
            let parsed = parse(frame.as_slice());
            match fits {
                true => assert!(parsed.is_ok(), "{length}: {parsed:?}"),
                false => assert_eq!(parsed, Err(Reason::Malformed), "{length}"),
            }
        }
    }
}

#[test]
fn a_first_fragment_of_ipv6_holds_the_whole_header_that_the_kernel_wants() {
    let options = packets::options(0);
    for (protocol, short, enough) in [(packets::ESP, 0, 8), (packets::ICMPV6, 0, 8)] {
        for (length, fits) in [(short, false), (enough, true)] {
            let packet = V6::new(SOURCE, DESTINATION, protocol, &vec![128; length]);
            let packet = packet.with(packets::FRAGMENT, &packets::fragment(0, true));
            let frame = packet.with(packets::DESTINATION, &options).frame();
            assert_eq!(parse(frame.as_slice()).is_ok(), fits, "{protocol}, {length}");
        }
    }
}

#[test]
fn a_fragment_takes_of_the_share_as_much_as_it_is_long() {
    let mut datagrams = Datagrams::default();
    let mut take = |identification: u32, length: u16, now: u64| {
        let address = Address::from(IpAddr::V6(SOURCE));
        let piece = Piece {
            destination: address,
            identification,
            protocol: 17,
            start: 0,
            length,
            more: true,
        };
        follow(&mut datagrams, &piece, 1, 0, now, || 0)
    };
    // Each of 65,528 bytes counts as 132,080, of 1 MiB.
    let turns: Vec<Turn> = (0..9).map(|id| take(id, 65_528, 1)).collect();
    assert_eq!(turns, [vec![Turn::Next; 7], vec![Turn::TooMany; 2]].concat());
    assert_eq!(take(99, 1_480, 1), Turn::Next);
    // When the kernel has given all of them up, there is room for as many, and no more: what was
    // given up is taken off once.
    let later = 2 + LIFETIME;
    let turns: Vec<Turn> = (0..9).map(|id| take(id, 65_528, later)).collect();
    assert_eq!(turns, [vec![Turn::Next; 7], vec![Turn::TooMany; 2]].concat());
}

/// The kernel gives an unfinished datagram up after 30 or 60 seconds, and takes what comes later
/// for the beginning of another.
#[test]
fn a_datagram_goes_on_for_less_time_than_the_kernel_keeps_it() {
    for (waited, expected) in [
        (0, Turn::Next),
        (PATIENCE, Turn::Next),
        (PATIENCE + 1, Turn::Stray),
        (LIFETIME, Turn::Stray),
        (LIFETIME + 1, Turn::Stray),
    ] {
        let mut datagrams = Datagrams::default();
        let mut take = |start: u16, now: u64| {
            let destination = Address::from(IpAddr::V6(SOURCE));
            let piece =
                Piece { destination, identification: 1, protocol: 0, start, length: 8, more: true };
            follow(&mut datagrams, &piece, 1, 0, now, || 0)
        };
        assert_eq!(take(0, 7), Turn::Next);
        assert_eq!(take(8, 7 + waited), expected, "after {waited} ns");
    }
}

proptest! {
    // Nothing is written beside the sources: what fails is printed, and becomes a named case.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What the shorter parser reads, the longer one reads as well, and the same.
    #[test]
    fn a_plain_packet_is_what_it_is_to_the_whole_parser(
        payload in prop::collection::vec(any::<u8>(), 0..80),
        protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), any::<u8>()],
        changes in prop::collection::vec((12_usize..80, any::<u8>()), 0..3),
        is_v4: bool,
    ) {
        let mut frame = if is_v4 {
            V4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), protocol, &payload).frame()
        } else {
            V6::new(SOURCE, DESTINATION, protocol, &payload).frame()
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if let Some(plain) = parse_plain(frame.as_slice()) {
            let whole = match parse(frame.as_slice()) {
                Ok(Frame::Ip(packet)) => Ok(packet),
                other => Err(other),
            };
            prop_assert_eq!(whole.map(|it| Packet { identifier: 0, ..it }), Ok(plain));
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0..3,
    ) {
        let ethertype = match kind {
            0 => 0x0800,
            1 => 0x86dd,
            _ => 0x0806,
        };
        let frame = packets::ethernet(ethertype, &bytes);
        let _ = parse(frame.as_slice());
    }

    /// What lies behind the IP packet in the frame must not be read as its header.
    #[test]
    fn padding_behind_a_packet_changes_nothing(
        payload in prop::collection::vec(any::<u8>(), 0..40),
        padding in prop::collection::vec(any::<u8>(), 0..40),
        protocol: u8,
    ) {
        let v4 = V4::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), protocol, &payload).frame();
        let padded = [v4.clone(), padding.clone()].concat();
        prop_assert_eq!(parse(v4.as_slice()), parse(padded.as_slice()));
        let v6 = V6::new(SOURCE, DESTINATION, protocol, &payload).frame();
        let padded = [v6.clone(), padding].concat();
        prop_assert_eq!(parse(v6.as_slice()), parse(padded.as_slice()));
    }
}
