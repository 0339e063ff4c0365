//! What people may write behind `explain --to` and `--packet`.

use std::net::IpAddr;

use firewall_agent::cli::explain::capture::frames;
use firewall_agent::cli::explain::target::{Host, Service, Target};
use firewall_tests::packets;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_target_is_a_host_a_port_and_a_protocol() {
    let check = |text: &str, host: Host, service: Service| {
        assert_eq!(text.parse(), Ok(Target { host, service }), "{text}");
    };
    let at = |text: &str| Host::Address(address(text));
    let name = |text: &str| Host::Name(text.to_owned());
    check("198.51.100.7:443/tcp", at("198.51.100.7"), Service::Tcp(443));
    check("198.51.100.7:0/udp", at("198.51.100.7"), Service::Udp(0));
    check("[2001:db8::7]:65535/tcp", at("2001:db8::7"), Service::Tcp(65535));
    check("2001:db8::7/icmp", at("2001:db8::7"), Service::Icmp(None));
    check("[2001:db8::7]/icmp:1", at("2001:db8::7"), Service::Icmp(Some(1)));
    check("198.51.100.7/icmp:255", at("198.51.100.7"), Service::Icmp(Some(255)));
    check("198.51.100.7/47", at("198.51.100.7"), Service::Other(47));
    check("198.51.100.7/58", at("198.51.100.7"), Service::Icmp(None));
    check("Git.Example.:22/tcp", name("git.example"), Service::Tcp(22));
    check("printer:631/tcp", name("printer"), Service::Tcp(631));
    let refused = |text: &str, teaches: &str| {
        let error = text.parse::<Target>().expect_err(text);
        assert!(error.contains(teaches), "{text}: {error}");
    };
    refused("198.51.100.7:443", "/tcp");
    refused("198.51.100.7/tcp", "198.51.100.7:443/tcp");
    refused("2001:db8::7/tcp", "[2001:db8::7]:443/tcp");
    refused("2001:db8::7:443/tcp", "[2001:db8::7:443]:443/tcp");
    refused("198.51.100.7:65536/tcp", "`65536` is not a port");
    refused("198.51.100.7:53/icmp", "icmp has no ports");
    refused("198.51.100.7/sctp", "the number of a protocol");
    refused("198.51.100.7/icmp:256", "a type of ICMP");
    refused("198.51.100.7/6", "write tcp");
    refused("a b:22/tcp", "neither an address nor a name");
    refused("[2001:db8::7:22/tcp", "`[` without `]`");
    refused("/tcp", "neither an address nor a name");
}

/// A file as tcpdump writes it: one packet of a kind of link, of which `captured` bytes were
/// kept.
fn pcap(kind: u32, packet: &[u8], captured: usize) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, kind, 1, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend((captured as u32).to_le_bytes());
    file.extend((packet.len() as u32).to_le_bytes());
    file.extend(&packet[..captured]);
    file
}

/// A file as Wireshark writes it: section, interface, and one packet in an enhanced block.
fn pcapng(kind: u16, packet: &[u8]) -> Vec<u8> {
    let block = |kind: u32, body: Vec<u8>| {
        let length = (body.len() as u32 + 12).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, &body, &length].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    let interface = [&kind.to_le_bytes()[..], &[0, 0], &[0, 0, 1, 0]].concat();
    let length = (packet.len() as u32).to_le_bytes();
    let mut enhanced = [&[0; 12][..], &length, &length, packet].concat();
    enhanced.resize(enhanced.len().next_multiple_of(4), 0);
    [block(0x0a0d_0d0a, section), block(1, interface), block(6, enhanced)].concat()
}

/// One frame.
fn only(frame: &[u8]) -> Vec<Vec<u8>> {
    vec![frame.to_vec()]
}

#[test]
fn packets_are_read_from_digits_and_from_capture_files() {
    let frame = packets::plain(address("10.137.0.12"), address("192.0.2.1"), packets::TCP, 443);
    let bare = &frame[14..];
    let dressed = [&[0; 12], &frame[12..]].concat();
    let hex = |bytes: &[u8], between: &str| {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(between)
    };
    let digits = |text: String| frames(&text).expect("a packet");
    assert_eq!(digits(hex(&frame, "")), only(&frame));
    assert_eq!(digits(hex(&frame, ":")), only(&frame));
    assert_eq!(digits(hex(bare, " ")), only(&dressed));
    assert!(frames("abc").is_err() && frames("").is_err() && frames("no.pcap").is_err());

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("packets.pcap");
    let file = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("a file");
        frames(path.to_str().expect("a name"))
    };
    let cooked = [&[0; 14], &frame[12..]].concat();
    let cooked_2 = [&frame[12..14], &[0; 18], bare].concat();
    for (kind, bytes, expected) in [
        (1, &frame[..], &frame),
        (101, bare, &dressed),
        (228, bare, &dressed),
        (113, &cooked, &dressed),
        (276, &cooked_2, &dressed),
    ] {
        assert_eq!(file(&pcap(kind, bytes, bytes.len())).expect("pcap"), only(expected));
        let kind = u16::try_from(kind).expect("small");
        assert_eq!(file(&pcapng(kind, bytes)).expect("pcapng"), only(expected));
    }
    // What the recorder cut off counts as zeros: the headers are what matters.
    let cut = file(&pcap(1, &frame, 40)).expect("a cut packet");
    assert_eq!((cut[0].len(), &cut[0][..40]), (frame.len(), &frame[..40]));
    assert!(file(&pcap(147, &frame, 40)).is_err(), "a kind of link that nobody knows");
    assert!(file(b"no capture file at all").is_err());
    assert!(file(&pcap(1, &frame, frame.len())[..60]).is_err(), "half a file");
}
