//! A few frames of a qube, and everything that came of them by the time that the gateway answered
//! the next one.
//! Never waits for a time: a neighbour solicitation, which every gateway answers, is the end.
//!
//! The frames and the solicitation leave by one processor, so the gateway takes them in their order
//! (`enqueue_to_backlog` in net/core/dev.c).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use rand::random;

use crate::packets::family::{Family, PerFamily as _};
use crate::packets::{self, ICMP, ICMPV6, TCP, UDP, V6, VIF};
use crate::rig::agent::PATIENCE;
use crate::rig::namespace::Namespace;
use crate::rig::{CLIENT_INTERFACE, GATEWAY_V6};
use crate::traffic::frames::{self, Capture, Sender};
use crate::whonix::Gateway;
use crate::whonix::watch::Delivery;

/// "Local experimental" (IEEE 802), which no kernel answers.
const EXPERIMENTAL: u16 = 0x88b5;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ETHERNET: usize = 14;
const SYN_ACK: u8 = 0x12;
const RST: u8 = 0x04;
/// All flags but those of congestion notification.
const CLASSIC: u8 = 0x3f;

/// What a qube heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A connection stands, with whom.
    SynAck(SocketAddr),
    /// A TCP reset, by whom.
    Reset(SocketAddr),
    /// ICMP or ICMPv6, of this type and code.
    Icmp(u8, u8),
    /// Of another protocol.
    Other(u8),
}

/// What came of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    /// What was handed to a socket of the gateway.
    pub delivered: Vec<Delivery>,
    /// What the gateway answered, but for what an application says over UDP.
    pub answers: Vec<Answer>,
}

impl Gateway {
    /// Sends packets of a qube, without Ethernet, all of them from this port if they have one.
    pub fn send(&self, qube: usize, port: u16, packets: &[Vec<u8>]) -> Result<Came> {
        let client = self.qubes.get(qube).context("there are two qubes")?;
        let own = self.of_qube(qube, Family::V6)?;
        let mut back = frames::capture(client.namespace(), CLIENT_INTERFACE)?;
        client.namespace().run(|| {
            stay_on_one_processor()?;
            let sender = Sender::open(client.namespace(), CLIENT_INTERFACE)?;
            for packet in packets {
                sender.send(&frame(packet))?;
            }
            sender.send(&frame(&solicitation(own)?))
        })?;
        let mut answers = Vec::new();
        loop {
            let received = back.wait_for(|it| it.get(6..12) == Some(&VIF), PATIENCE)?;
            let received = received.context("the gateway does not answer its neighbour")?;
            let Some((family, source, protocol, rest)) = split(&received) else { continue };
            if protocol == ICMPV6 && rest.first() == Some(&NEIGHBOUR_ADVERTISEMENT) {
                break;
            }
            if !is_chatter(&received) {
                answers.extend(answer(family, source, protocol, rest, port));
            }
        }
        let is_one = |it: &Delivery| it.source.port() == port;
        let delivered = self.delivered()?.into_iter().filter(is_one).collect();
        Ok(Came { delivered, answers })
    }
}

/// The calling thread's, from now on the one that it is on.
fn stay_on_one_processor() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// "Who has the gateway's address?", which it is asked itself (RFC 4861, section 4.3).
fn solicitation(from: IpAddr) -> Result<Vec<u8>> {
    let IpAddr::V6(own) = from else { anyhow::bail!("{from} is not of IPv6") };
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(GATEWAY_V6.octets());
    let message = packets::sealed(own.into(), GATEWAY_V6.into(), ICMPV6, &message);
    let mut packet = V6::new(own, GATEWAY_V6, ICMPV6, &message);
    packet.hop_limit = 255;
    Ok(packet.packet())
}

/// A packet in a frame to the vif.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    let is_v4 = packet.first().is_some_and(|it| it >> 4 == 4);
    let family = if is_v4 { Family::V4 } else { Family::V6 };
    let mut frame = packets::ethernet(family.ethertype(), packet);
    frame[..6].copy_from_slice(&VIF);
    frame
}

/// Family, source, protocol, and what follows the IP header.
fn split(frame: &[u8]) -> Option<(Family, IpAddr, u8, &[u8])> {
    let packet = frame.get(ETHERNET..)?;
    match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            Some((Family::V4, source.into(), *packet.get(9)?, packet.get(header..)?))
        }
        [0x86, 0xdd] => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            Some((Family::V6, source.into(), *packet.get(6)?, packet.get(40..)?))
        }
        _ => None,
    }
}

/// What this means for whom that port is, if anything.
fn answer(family: Family, source: IpAddr, protocol: u8, rest: &[u8], port: u16) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match protocol {
        TCP => {
            let from = SocketAddr::new(source, word(0)?);
            let flags = *rest.get(13)? & CLASSIC;
            let meant = word(2)? == port;
            let what = match flags {
                SYN_ACK => Answer::SynAck(from),
                flags if flags & RST != 0 => Answer::Reset(from),
                _ => Answer::Other(TCP),
            };
            meant.then_some(what)
        }
        UDP => None,
        ICMP | ICMPV6 => {
            // Of an error, what it quotes: its ports, if it has any, are behind its header.
            let quoted = rest.get(8..).unwrap_or_default();
            let v4_header = quoted.first().map_or(0, |it| usize::from(it & 0xf) * 4);
            let (of, at) = family.of([(quoted.get(9), v4_header), (quoted.get(6), 40)]);
            let is_by_port = of.is_some_and(|it| [TCP, UDP].contains(it));
            let meant = !is_by_port || word(8 + at) == Some(port);
            meant.then_some(Answer::Icmp(*rest.first()?, *rest.get(1)?))
        }
        other => Some(Answer::Other(other)),
    }
}

/// What kernels say to their neighbours without being asked (RFC 4861, RFC 3810).
pub fn is_chatter(frame: &[u8]) -> bool {
    let Some((family, _, protocol, rest)) = split(frame) else { return true };
    let of_neighbours = |it: &u8| (133..=137).contains(it);
    let is_report = protocol == packets::HOP_BY_HOP && rest.get(8) == Some(&143);
    family == Family::V6
        && (is_report || protocol == ICMPV6 && rest.first().is_some_and(of_neighbours))
}

/// Every frame that crossed an interface before one of our own.
pub fn until_marked(from: &Namespace, by: &str, seen: &mut Capture) -> Result<Vec<Vec<u8>>> {
    let token: [u8; 16] = random();
    let mut mark = packets::ethernet(EXPERIMENTAL, &token);
    mark[..6].fill(0xff);
    frames::send_raw(from, by, &mark)?;
    let found = seen.before(|it| it.ends_with(&token), PATIENCE)?;
    ensure!(seen.lost()? == 0, "frames were lost unseen");
    Ok(found)
}
