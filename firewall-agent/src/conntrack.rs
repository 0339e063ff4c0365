//! The kernel's table of connections, over netlink: what clients have open, and an end to
//! what they must not have.
//! Never decides which.

use std::io;
use std::net::IpAddr;

use firewall_common::packet::{Packet, Protocol};
use futures_util::StreamExt as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_proto::ConnectionHandle;
use netlink_proto::sys::SocketAddr;
use netlink_proto::sys::protocols::NETLINK_NETFILTER;
use thiserror::Error;

use crate::explanation::protocol;

/// `CTA_PROTO_ICMP_TYPE` and its IPv6 twin (uapi/linux/netfilter/nfnetlink_conntrack.h).
const ICMP_TYPES: [u16; 2] = [5, 8];

/// A connection, as whoever opened it sees it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who opened it.
    pub source: IpAddr,
    /// A packet of it, as the opener sends it: before any translation.
    pub packet: Packet,
    /// A packet that answers, as the other side sends it.
    pub answer: Option<Packet>,
    family: NetfilterProtoFamily,
    original: Vec<Tuple>,
}

/// The table cannot be read or changed.
#[derive(Debug, Error)]
pub enum ConntrackError {
    /// No answer.
    #[error("netlink: {0}")]
    Netlink(#[from] netlink_proto::NetlinkProtoError),
    /// The kernel refuses.
    #[error("the kernel refuses: {0}")]
    Refused(io::Error),
}

/// A way to talk to the table.
pub struct Conntrack {
    handle: ConnectionHandle<NetfilterMessage>,
}

impl Conntrack {
    /// Opens a netlink socket. Must be called inside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = netlink_proto::new_connection(NETLINK_NETFILTER)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All connections of both families.
    pub async fn flows(&self) -> Result<Vec<Flow>, ConntrackError> {
        let mut flows = Vec::new();
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            let get = ConntrackMessage::Get(Vec::new());
            let answers = self.ask(family, get, NLM_F_REQUEST | NLM_F_DUMP).await?;
            flows.extend(answers.iter().filter_map(|message| flow(family, message)));
        }
        Ok(flows)
    }

    /// Forgets a connection. One that is gone already is no error.
    pub async fn delete(&self, flow: &Flow) -> Result<(), ConntrackError> {
        let original = ConntrackAttribute::CtaTupleOrig(flow.original.clone());
        let delete = ConntrackMessage::Delete(vec![original]);
        match self.ask(flow.family, delete, NLM_F_REQUEST | NLM_F_ACK).await {
            Err(ConntrackError::Refused(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    async fn ask(
        &self,
        family: NetfilterProtoFamily,
        message: ConntrackMessage,
        flags: u16,
    ) -> Result<Vec<ConntrackMessage>, ConntrackError> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        let message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        let mut answers = self.handle.request(message, SocketAddr::new(0, 0))?;
        let mut messages = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(message),
                    ..
                }) => messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(ConntrackError::Refused(error.to_io()));
                }
                _ => {}
            }
        }
        Ok(messages)
    }
}

fn flow(family: NetfilterProtoFamily, message: &ConntrackMessage) -> Option<Flow> {
    let (ConntrackMessage::New(attributes) | ConntrackMessage::Get(attributes)) = message else {
        return None;
    };
    let tuples = |original: bool| {
        attributes.iter().find_map(|attribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) if original => Some(tuples),
            ConntrackAttribute::CtaTupleReply(tuples) if !original => Some(tuples),
            _ => None,
        })
    };
    let original = tuples(true)?.clone();
    let packet = packet(&original)?;
    let answer = tuples(false).and_then(|reply| self::packet(reply));
    Some(Flow { source: packet.source.into(), packet, answer, family, original })
}

/// The packet that tuples describe.
fn packet(tuples: &[Tuple]) -> Option<Packet> {
    let (mut source, mut destination) = (None, None);
    let (mut number, mut source_port, mut port) = (None, 0, 0);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(details) => {
                for detail in details {
                    match detail {
                        ProtoTuple::Protocol(protocol) => number = Some(u8::from(*protocol)),
                        ProtoTuple::SourcePort(found) => source_port = *found,
                        ProtoTuple::DestinationPort(found) => port = *found,
                        ProtoTuple::Other(other) if ICMP_TYPES.contains(&other.kind()) => {
                            let mut kind = [0; 1];
                            if other.value_len() == kind.len() {
                                other.emit_value(&mut kind);
                            }
                            port = u16::from(kind[0]);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (source, destination, number) = (source?, destination?, number?);
    let protocol = protocol(number, source.is_ipv4());
    let port = if protocol == Protocol::Other { 0 } else { port };
    let addresses = Packet::of_addresses(source.into(), destination.into());
    Some(Packet { protocol, number, port, source_port, ..addresses })
}
