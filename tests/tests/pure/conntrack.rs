//! What the kernel says about connections, in bytes: what counts, what ends the table, and
//! what is an error and no end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use firewall_agent::edges::conntrack::wire::{forget, list, outcomes, take_part};
use firewall_agent::edges::conntrack::{ConntrackError, Wanted};
use firewall_core::connection::Flow;
use firewall_tests::{rounds, seed};
use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::memory::address;

/// `NLMSG_NOOP`, `_ERROR`, `_DONE`, `_OVERRUN` (uapi/linux/netlink.h).
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 0x100;
/// `NLM_F_MULTI`, `NLM_F_DUMP_INTR`.
const MULTI: u16 = 2;
const INTERRUPTED: u16 = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

const SEQUENCE: u32 = 7;

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = u32::try_from(16 + payload.len()).expect("a length").to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(payload);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = u16::try_from(4 + value.len()).expect("a length").to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A tuple of TCP.
fn tuple(kind: u16, source: &str, destination: &str, ports: [u16; 2]) -> Vec<u8> {
    let (source, destination) = (address(source), address(destination));
    let first = if source.is_ipv4() { 1 } else { 3 };
    let addresses = [attribute(first, &bytes(source)), attribute(first + 1, &bytes(destination))];
    let protocol = [
        attribute(1, &[6]),
        attribute(2, &ports[0].to_be_bytes()),
        attribute(3, &ports[1].to_be_bytes()),
    ];
    let parts =
        [attribute(1 | NESTED, &addresses.concat()), attribute(2 | NESTED, &protocol.concat())];
    attribute(kind | NESTED, &parts.concat())
}

/// A connection of a client, translated; in a zone, with a number and a time-out.
fn connection(client: &str) -> Vec<u8> {
    let server = if client.contains(':') { "2001:db8::7" } else { "198.51.100.7" };
    let uplink = if client.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    [
        vec![if client.contains(':') { 10 } else { 2 }, 0, 0, 0],
        tuple(1, client, server, [40_000, 443]),
        tuple(2, server, uplink, [443, 50_000]),
        attribute(7, &[0, 0, 0, 30]),
        attribute(18, &[0, 5]),
        attribute(12, &[1, 2, 3, 4]),
    ]
    .concat()
}

fn new(client: &str) -> Vec<u8> {
    message(NEW, MULTI, SEQUENCE, &connection(client))
}

fn done(outcome: i32) -> Vec<u8> {
    message(DONE, MULTI, SEQUENCE, &outcome.to_ne_bytes())
}

fn from(clients: &[&str]) -> Wanted {
    Wanted::From(clients.iter().map(|it| address(it)).collect())
}

fn take(datagram: &[u8], wanted: &Wanted) -> (Vec<Flow>, Result<bool, ConntrackError>) {
    let mut flows = Vec::new();
    let outcome = take_part(datagram, SEQUENCE, wanted, &mut flows);
    (flows, outcome)
}

#[test]
fn a_connection_is_read_as_its_opener_and_as_the_other_side_see_it() {
    for client in ["10.137.0.1", "fd09::1"] {
        let datagram = [new(client), done(0)].concat();
        let (flows, outcome) = take(&datagram, &from(&[client]));
        assert!(outcome.expect("a table"));
        assert_eq!(flows.len(), 1);
        let Flow { packet, answer, .. } = &flows[0];
        let ends = (packet.number, packet.source_port, packet.port);
        assert_eq!((flows[0].source(), ends), (address(client), (6, 40_000, 443)));
        let answer = answer.expect("an answer");
        assert_eq!((answer.source, answer.port), (packet.destination, 50_000));
    }
}

#[test]
fn what_is_forgotten_is_named_in_the_kernels_own_words_with_zone_and_number() {
    let (flows, _) = take(&new("10.137.0.1"), &from(&["10.137.0.1"]));
    let mut request = Vec::new();
    forget(&mut request, &flows[0], 9);
    let expected = [
        vec![2, 0, 0, 0],
        tuple(1, "10.137.0.1", "198.51.100.7", [40_000, 443]),
        attribute(18, &[0, 5]),
        attribute(12, &[1, 2, 3, 4]),
    ];
    // IPCTNL_MSG_CT_DELETE; NLM_F_REQUEST and NLM_F_ACK.
    assert_eq!(request, message(0x102, 5, 9, &expected.concat()));
    // Requests are put one behind the other.
    forget(&mut request, &flows[0], 10);
    let length = request.len() / 2;
    assert_eq!(request[length..], message(0x102, 5, 10, &expected.concat()));
    // NLM_F_REQUEST and NLM_F_DUMP; of no family.
    assert_eq!(list(SEQUENCE), message(0x101, 0x301, SEQUENCE, &[0; 4]));
}

#[test]
fn only_what_is_asked_for_is_kept() {
    let all = ["10.137.0.1", "10.137.0.2", "fd09::1"];
    let datagram = [new(all[0]), new(all[1]), new(all[2])].concat();
    let check = |wanted: &Wanted, expected: &[&str]| {
        let (flows, outcome) = take(&datagram, wanted);
        assert!(!outcome.expect("a part"), "an end that is none");
        let sources: Vec<IpAddr> = flows.iter().map(Flow::source).collect();
        assert_eq!(sources, expected.iter().map(|it| address(it)).collect::<Vec<_>>());
    };
    let set = |texts: &[&str]| texts.iter().map(|it| address(it)).collect::<BTreeSet<_>>();
    check(&from(&all), &all);
    check(&from(&[all[1]]), &[all[1]]);
    check(&from(&[]), &[]);
    check(&Wanted::To(set(&["2001:db8::7"])), &[all[2]]);
    check(&Wanted::To(set(&[all[0]])), &[]);
    check(&Wanted::Of(set(&[all[0]])), &[all[0]]);
    // As the other side sees it, that is who answers.
    check(&Wanted::Of(set(&["198.51.100.7"])), &[all[0], all[1]]);
}

#[test]
fn the_table_ends_where_the_kernel_says_that_it_was_whole_and_nowhere_else() {
    let wanted = from(&["10.137.0.1"]);
    let check = |datagram: &[u8], expected: &str| {
        let (_, outcome) = take(datagram, &wanted);
        let outcome = match outcome {
            Ok(end) => (if end { "end" } else { "more" }).to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(outcome.contains(expected), "`{outcome}` and not `{expected}`");
    };
    let flow = new("10.137.0.1");
    check(&[], "more");
    check(&flow, "more");
    check(&message(NOOP, 0, SEQUENCE, &[]), "more");
    check(&[flow.clone(), done(0)].concat(), "end");
    // Of another question.
    check(&message(DONE, MULTI, SEQUENCE + 1, &[0; 4]), "more");
    check(&message(ERROR, 0, SEQUENCE + 1, &[0xff; 4]), "more");
    // The table ends, but early.
    check(&done(-(Errno::ENOMEM as i32)), "Cannot allocate memory");
    check(
        &[flow.clone(), done(-(Errno::EBADMSG as i32))].concat(),
        "does not list connections: Bad message",
    );
    check(&message(ERROR, 0, SEQUENCE, &(-1_i32).to_ne_bytes()), "Operation not permitted");
    check(&message(ERROR, 0, SEQUENCE, &[0; 4]), "acknowledgement without an end");
    check(&message(DONE, MULTI | INTERRUPTED, SEQUENCE, &[0; 4]), "changed while it was read");
    check(&message(NEW, MULTI | INTERRUPTED, SEQUENCE, &flow[16..]), "changed while it was read");
    check(&message(OVERRUN, 0, SEQUENCE, &[0; 4]), "another kind");
    check(&message(NEW + 1, 0, SEQUENCE, &[0; 4]), "another kind");
    // No kernel says this.
    check(&message(DONE, MULTI, SEQUENCE, &[]), "without its outcome");
    check(&done(4), "an error that is none");
    check(&done(i32::MIN), "an error that is none");
    check(&message(NEW, MULTI, SEQUENCE, &[2, 0, 0, 0]), "without addresses");
    check(&message(NEW, MULTI, SEQUENCE, &[2]), "without a family");
    check(
        &message(NEW, MULTI, SEQUENCE, &[&[2, 0, 0, 0][..], &attribute(1, &[])].concat()),
        "without addresses or protocol",
    );
}

#[test]
fn a_kernel_without_conntracks_messages_is_told_with_the_module_that_is_missing() {
    let refused = message(ERROR, 0, SEQUENCE, &(-(Errno::EINVAL as i32)).to_ne_bytes());
    let (_, outcome) = take(&refused, &from(&[]));
    let error = outcome.expect_err("a refusal").to_string();
    assert!(error.contains("modprobe nf_conntrack_netlink"), "{error}");
}

#[test]
fn a_message_that_is_cut_anywhere_is_never_an_end() {
    let whole = [new("10.137.0.1"), new("fd09::1"), done(0)].concat();
    let wanted = from(&["10.137.0.1", "fd09::1"]);
    let begins: Vec<usize> = [0, new("10.137.0.1").len(), whole.len() - done(0).len()].into();
    for length in 0..whole.len() {
        let (_, outcome) = take(&whole[..length], &wanted);
        // Between two messages there is nothing to see of what is missing but the end.
        if begins.contains(&length) {
            assert!(!outcome.expect("a part"), "{length}");
        } else {
            assert!(outcome.is_err(), "{length} of {} bytes are {outcome:?}", whole.len());
        }
    }
    assert!(take(&whole, &wanted).1.expect("a table"));
}

#[test]
fn any_bytes_are_flows_or_an_error() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let wanted = from(&["10.137.0.1", "fd09::1"]);
    let whole = [new("10.137.0.1"), new("fd09::1"), done(0)].concat();
    for _ in 0..rounds(20_000, 1_000_000) {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        let _ = take(&bytes, &wanted);
        let _ = outcomes(&bytes);
        random.fill_bytes(&mut bytes);
        let _ = take(&bytes, &wanted);
        let _ = outcomes(&bytes);
    }
}

#[test]
fn requests_are_answered_one_by_one() {
    let ok = message(ERROR, 0, 8, &[0; 4]);
    let busy = message(ERROR, 0, 9, &(-(Errno::EBUSY as i32)).to_ne_bytes());
    let found = outcomes(&[ok.clone(), busy].concat()).expect("answers");
    let found: Vec<_> = found
        .into_iter()
        .map(|(sequence, error)| (sequence, error.and_then(|it| it.raw_os_error())))
        .collect();
    assert_eq!(found, [(8, None), (9, Some(Errno::EBUSY as i32))]);
    assert!(outcomes(&ok[..ok.len() - 1]).is_err());
    assert!(outcomes(&new("10.137.0.1")).is_err());
}
