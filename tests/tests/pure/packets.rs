//! The parser on slices: total, and never reads what is not there.

use std::net::Ipv6Addr;

use firewall_common::packet::{Frame, parse};
use firewall_common::verdict::Reason;
use firewall_tests::packets::{self, V4, V6};
use proptest::prelude::*;

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const DESTINATION: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

#[test]
fn every_cut_of_a_packet_is_truncated() {
    let tcp = packets::tcp(1, 2);
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

proptest! {
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
