//! PURE: conntrack's netlink messages: what is asked of the kernel, and what it says.
//! Never opens a socket, and never takes a part of something for the whole.
//!
//! In messages, numbers are in the machine's byte order, but for ports, which are in network byte
//! order.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use firewall_common::packet::{Packet, Protocol};
use netlink_packet_core::{
    NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP,
};
use thiserror::Error;

use firewall_core::connection::Flow;
use firewall_core::protocol::protocol;

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_NEW`, `_GET` and `_DELETE`
/// (uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h).
const NEW: u16 = 1 << 8;
/// See [`NEW`].
const GET: u16 = 1 << 8 | 1;
/// See [`NEW`].
const DELETE: u16 = 1 << 8 | 2;

/// Attributes of a connection: `CTA_TUPLE_ORIG`, `_REPLY`, `CTA_ID`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
/// See [`ORIGINAL`].
const REPLY: u16 = 2;
/// See [`ORIGINAL`].
const ID: u16 = 12;
/// See [`ORIGINAL`].
const ZONE: u16 = 18;

/// Attributes of a tuple: `CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
/// See [`ADDRESSES`].
const PROTOCOL: u16 = 2;

/// `struct nlmsghdr`, `struct nfgenmsg`, and what both and all attributes are padded to.
const HEADER: usize = 16;
/// See [`HEADER`].
const GENERIC: usize = 4;
/// See [`HEADER`].
const ALIGNMENT: usize = 4;

/// The table cannot be read or changed.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// The socket does not work, or had no room for an answer.
    #[error("netlink: {0}")]
    Netlink(#[from] io::Error),
    /// The kernel does not tell the table, or not all of it.
    #[error("the kernel does not list connections: {error}{}", hint(.error))]
    NotListed {
        /// The kernel's error.
        error: io::Error,
    },
    /// The kernel says that parts of what it said do not fit together.
    #[error("the table was changed while it was read")]
    Interrupted,
    /// What the kernel says is no whole message, or not the answer to what was asked.
    #[error("the kernel's answer is not understood: {0}")]
    Odd(&'static str),
}

/// What the kernel answers where nothing in it knows conntrack's messages
/// (`nfnetlink_rcv_msg` in net/netfilter/nfnetlink.c).
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
            "; its module nf_conntrack_netlink may be missing: `modprobe nf_conntrack_netlink`"
        }
        _ => "",
    }
}

/// Which connections somebody asks about.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Connections that one of these addresses opened.
    From(BTreeSet<IpAddr>),
    /// Connections that were opened towards one of these addresses.
    To(BTreeSet<IpAddr>),
    /// Connections that one of these addresses answers, whatever address they were opened to.
    AnsweredBy(BTreeSet<IpAddr>),
    /// Connections that one of these addresses opened or answers.
    Of(BTreeSet<IpAddr>),
}

impl Wanted {
    fn has(&self, packet: &Packet, answer: Option<&Packet>) -> bool {
        let has_source = |all: &BTreeSet<IpAddr>, it: &Packet| all.contains(&it.source.into());
        match self {
            Self::From(all) => has_source(all, packet),
            Self::To(all) => all.contains(&packet.destination.into()),
            Self::AnsweredBy(all) => answer.is_some_and(|it| has_source(all, it)),
            Self::Of(all) => {
                has_source(all, packet) || answer.is_some_and(|it| has_source(all, it))
            }
        }
    }
}

/// The message that asks for the whole table: both families, all zones. `sequence` comes back in
/// each message of the answer.
pub fn list(sequence: u32) -> Vec<u8> {
    let mut message = Vec::new();
    write(&mut message, GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0, &[]);
    message
}

/// Adds the request to forget a connection: this one, and none that has taken its place. `sequence`
/// comes back in the answer.
/// (Without any attribute it would mean all of them; a flow always has its tuple.)
pub fn forget(messages: &mut Vec<u8>, flow: &Flow, sequence: u32) {
    write(messages, DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, flow.family, &flow.name);
}

fn write(to: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) {
    let length = HEADER + GENERIC + attributes.len();
    to.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    // From no port: the kernel knows the socket's.
    to.extend([0; 4]);
    // Version 0, and no resource.
    to.extend([family, 0, 0, 0]);
    to.extend(attributes);
}

/// Takes in a datagram that answers [`list`], and adds what is wanted of it. Returns whether
/// the table ends with it; then, and only then, all of it was told. An error if the kernel reports
/// one, or says what is not understood.
pub fn take_part(
    datagram: &[u8],
    sequence: u32,
    wanted: &Wanted,
    flows: &mut Vec<Flow>,
) -> Result<bool, ConntrackError> {
    for message in messages(datagram) {
        let Message { kind, flags, sequence: of, payload } = message?;
        if of != sequence {
            continue;
        }
        if flags & NLM_F_DUMP_INTR != 0 {
            return Err(ConntrackError::Interrupted);
        }
        match kind {
            NEW => flows.extend(flow(payload, wanted)?),
            NLMSG_DONE | NLMSG_ERROR => {
                let outcome = outcome(payload)?;
                let is_end = kind == NLMSG_DONE;
                return match outcome {
                    Some(error) => Err(ConntrackError::NotListed { error }),
                    None if is_end => Ok(true),
                    None => Err(ConntrackError::Odd("an acknowledgement without an end")),
                };
            }
            NLMSG_NOOP => {}
            // NLMSG_OVERRUN among them: data was lost.
            _ => return Err(ConntrackError::Odd("a message of another kind")),
        }
    }
    Ok(false)
}

/// Takes in a datagram that answers requests of [`forget`]: the sequence numbers of requests, each
/// with the error if it failed. An error if the datagram is not understood.
pub fn outcomes(datagram: &[u8]) -> Result<Vec<(u32, Option<io::Error>)>, ConntrackError> {
    let all = messages(datagram).map(|message| {
        let Message { kind, flags: _, sequence, payload } = message?;
        match kind {
            NLMSG_ERROR => Ok((sequence, outcome(payload)?)),
            _ => Err(ConntrackError::Odd("no acknowledgement")),
        }
    });
    all.collect()
}

/// The error number that ends a table and a request; 0 is none.
fn outcome(payload: &[u8]) -> Result<Option<io::Error>, ConntrackError> {
    let number = payload.first_chunk().ok_or(ConntrackError::Odd("an end without its outcome"))?;
    let number = i32::from_ne_bytes(*number);
    match number {
        0 => Ok(None),
        i32::MIN | 1.. => Err(ConntrackError::Odd("an error that is none")),
        _ => Ok(Some(io::Error::from_raw_os_error(-number))),
    }
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// All messages of a datagram; an error is the last.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = Result<Message<'_>, ConntrackError>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = message(rest);
        rest = message.as_ref().map_or(&[], |(_, behind)| *behind);
        Some(message.map(|(message, _)| message))
    })
}

fn message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), ConntrackError> {
    const CUT: ConntrackError = ConntrackError::Odd("a message that is cut off");
    let (header, _) = bytes.split_first_chunk::<HEADER>().ok_or(CUT)?;
    let [a, b, c, d, kind_a, kind_b, flags_a, flags_b, s, t, u, v, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).map_err(|_| CUT)?;
    let message = Message {
        kind: u16::from_ne_bytes([kind_a, kind_b]),
        flags: u16::from_ne_bytes([flags_a, flags_b]),
        sequence: u32::from_ne_bytes([s, t, u, v]),
        payload: bytes.get(HEADER..length).ok_or(CUT)?,
    };
    let behind = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
    Ok((message, behind))
}

/// A netlink attribute.
struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
    /// With its header and padding, as the kernel wrote it.
    whole: &'a [u8],
}

/// All attributes of a message, or of an attribute that holds others; an error is the last.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, ConntrackError>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let attribute = attribute(rest);
        rest = attribute.as_ref().ok().and_then(|it| rest.get(it.whole.len()..)).unwrap_or(&[]);
        Some(attribute)
    })
}

fn attribute(bytes: &[u8]) -> Result<Attribute<'_>, ConntrackError> {
    const CUT: ConntrackError = ConntrackError::Odd("an attribute that is cut off");
    let [a, b, kind_a, kind_b] = *bytes.first_chunk().ok_or(CUT)?;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    let value = bytes.get(4..length).ok_or(CUT)?;
    let whole = bytes.get(..length.next_multiple_of(ALIGNMENT)).ok_or(CUT)?;
    let kind = u16::from_ne_bytes([kind_a, kind_b]) & NLA_TYPE_MASK;
    Ok(Attribute { kind, value, whole })
}

/// A connection, if it is wanted.
fn flow(payload: &[u8], wanted: &Wanted) -> Result<Option<Flow>, ConntrackError> {
    let generic = payload.split_at_checked(GENERIC);
    let (generic, content) = generic.ok_or(ConntrackError::Odd("a connection without a family"))?;
    let (mut original, mut answer, mut name) = (None, None, [None; 3]);
    for attribute in attributes(content) {
        let Attribute { kind, value, whole } = attribute?;
        match kind {
            ORIGINAL => (original, name[0]) = (Some(packet(value)?), Some(whole)),
            REPLY => answer = Some(packet(value)?),
            ZONE => name[1] = Some(whole),
            ID => name[2] = Some(whole),
            _ => {}
        }
    }
    let packet = original.ok_or(ConntrackError::Odd("a connection without addresses"))?;
    if !wanted.has(&packet, answer.as_ref()) {
        return Ok(None);
    }
    let family = generic.first().copied().unwrap_or(0);
    let name = name.map(Option::unwrap_or_default).concat();
    Ok(Some(Flow { packet, answer, family, name }))
}

/// The packet that a tuple describes. The zone that it may have for this direction alone is
/// part of its bytes.
fn packet(tuple: &[u8]) -> Result<Packet, ConntrackError> {
    let (mut source, mut destination) = (None, None);
    let (mut number, mut source_port, mut port) = (None, 0, 0);
    for part in attributes(tuple) {
        let Attribute { kind: part, value: details, .. } = part?;
        if part != ADDRESSES && part != PROTOCOL {
            continue;
        }
        for detail in attributes(details) {
            let Attribute { kind, value, .. } = detail?;
            match (part, kind) {
                // CTA_IP_V4_SRC, _DST, CTA_IP_V6_SRC, _DST.
                (ADDRESSES, 1 | 3) => source = Some(address(value)?),
                (ADDRESSES, 2 | 4) => destination = Some(address(value)?),
                // CTA_PROTO_NUM, _SRC_PORT, _DST_PORT; CTA_PROTO_ICMP_TYPE and its IPv6 twin.
                (PROTOCOL, 1) => number = Some(byte(value)?),
                (PROTOCOL, 2) => source_port = double(value)?,
                (PROTOCOL, 3) => port = double(value)?,
                (PROTOCOL, 5 | 8) => port = byte(value)?.into(),
                _ => {}
            }
        }
    }
    let whole = source.zip(destination).zip(number);
    let ((source, destination), number) =
        whole.ok_or(ConntrackError::Odd("a connection without addresses or protocol"))?;
    let protocol = protocol(number, source.is_ipv4());
    let port = if protocol == Protocol::Other { 0 } else { port };
    let addresses = Packet::of_addresses(source.into(), destination.into());
    Ok(Packet { protocol, number, port, source_port, ..addresses })
}

const LENGTH: ConntrackError = ConntrackError::Odd("a value of another length");

fn address(value: &[u8]) -> Result<IpAddr, ConntrackError> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).map_err(|_| LENGTH)
}

fn byte(value: &[u8]) -> Result<u8, ConntrackError> {
    <[u8; 1]>::try_from(value).map(|[byte]| byte).map_err(|_| LENGTH)
}

/// In network order.
fn double(value: &[u8]) -> Result<u16, ConntrackError> {
    <[u8; 2]>::try_from(value).map(u16::from_be_bytes).map_err(|_| LENGTH)
}
