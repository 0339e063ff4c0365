//! A client that speaks in raw packets, and everything that came of them: what arrived
//! at the internet, what came back, and what was counted.
//! Never sends to a server: what is sent goes to addresses where nobody answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::packets::fragments;
use firewall_tests::packets::{self, ICMP, ICMPV6, V4, V6, VIF};
use firewall_tests::rig;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::{
    CLIENT_INTERFACE, GATEWAY_V4, GATEWAY_V6, INTERNET_V4, INTERNET_V6, UPLINK,
};
use firewall_tests::traffic::frames::{self, Capture};
use firewall_tests::traffic::probe::{Outcome, Probe};
use rand::random;

use super::world::*;

/// An IPv4 address behind the uplink that nobody has.
pub const NOBODY4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// An IPv6 address behind the uplink that nobody has.
pub const NOBODY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9);
/// "Local experimental" (IEEE 802), which no kernel answers.
const EXPERIMENTAL: u16 = 0x88b5;

/// A way to send a frame out of an interface of a namespace.
type Send = fn(&Namespace, &str, &[u8]) -> Result<()>;

/// What came back to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// ICMP or ICMPv6, of this type and code.
    Icmp(u8, u8),
    /// Another protocol, of this number.
    Other(u8),
}

/// The two ends of what is sent, in one family.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The family.
    pub family: Family,
    /// The client.
    pub from: IpAddr,
    /// Nobody.
    pub to: IpAddr,
    /// The netvm on the client's vif.
    pub gateway: IpAddr,
    /// The netvm on its uplink.
    pub uplink: IpAddr,
    /// "Administratively prohibited".
    pub prohibited: Answer,
    /// Number of the family's ICMP.
    pub icmp: u8,
    /// Type of its echo request.
    pub echo: u8,
}

impl Ends {
    /// A packet to nobody with the right checksums.
    pub fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        packet(self.from, self.to, protocol, payload)
    }

    /// A UDP packet to nobody.
    pub fn udp(&self, port: u16, data: &[u8]) -> Vec<u8> {
        self.packet(packets::UDP, &packets::datagram(40000, port, data))
    }

    /// An echo request.
    pub fn ping(&self, to: IpAddr) -> Vec<u8> {
        packet(self.from, to, self.icmp, &packets::icmp(self.echo, 0))
    }
}

/// A packet without Ethernet, with the right checksums.
pub fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let payload = packets::sealed(from, to, protocol, payload);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => V4::new(from, to, protocol, &payload).packet(),
        (IpAddr::V6(from), IpAddr::V6(to)) => V6::new(from, to, protocol, &payload).packet(),
        _ => Vec::new(),
    }
}

/// What shall come of packets.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// How many packets leave by the uplink.
    pub arrivals: usize,
    /// Everything that comes back.
    pub answers: &'a [Answer],
    /// Everything that is counted: `rule <index>` or a reason for the client, and
    /// `stray <reason>`.
    pub counted: &'a [(&'a str, u64)],
}

impl<'a> Expected<'a> {
    /// So many packets leave by the uplink, and nothing comes back.
    pub fn forwarded(arrivals: usize, counted: &'a [(&'a str, u64)]) -> Self {
        Self { arrivals, answers: &[], counted }
    }

    /// Nothing leaves, and this comes back.
    pub fn answered(answers: &'a [Answer], counted: &'a [(&'a str, u64)]) -> Self {
        Self { arrivals: 0, answers, counted }
    }

    /// Nothing leaves, and nothing comes back.
    pub fn silence(counted: &'a [(&'a str, u64)]) -> Self {
        Self { arrivals: 0, answers: &[], counted }
    }
}

/// What came of packets.
#[derive(Clone, Debug)]
pub struct Came {
    /// Packets that left by the uplink, without Ethernet.
    pub arrivals: Vec<Vec<u8>>,
    /// What came back.
    pub answers: Vec<Answer>,
    counted: BTreeMap<String, u64>,
}

impl Came {
    /// What arrived behind the IP header, put together where it came in fragments.
    pub fn whole(&self) -> Option<Vec<u8>> {
        fragments::whole(&self.arrivals)
    }
}

/// A world in which all neighbours know each other, with an agent.
pub struct Scene {
    pub world: World,
    pub agent: Agent,
}

impl Scene {
    pub fn new(label: &str, rules: &[Rule]) -> Result<Self> {
        Self::with(label, rules, &[])
    }

    /// A scene whose agent gets more arguments.
    pub fn with(label: &str, rules: &[Rule], arguments: &[&str]) -> Result<Self> {
        let world = World::new(label)?;
        world.rig.silence_nobody()?;
        for internet in [INTERNET_V4.into(), INTERNET_V6.into()] {
            let ping = Probe::ping(world.rig.netvm(), internet).run(PATIENCE)?;
            ensure!(ping == Outcome::Accepted, "no internet: {ping}");
        }
        let agent = world.start_with(arguments)?;
        world.put(&agent, rules)?;
        Ok(Self { world, agent })
    }

    /// IPv4, IPv6.
    pub fn families(&self) -> [Ends; 2] {
        Family::BOTH.map(|family| self.ends(family))
    }

    /// The ends in one family.
    pub fn ends(&self, family: Family) -> Ends {
        Ends {
            family,
            from: self.address(family),
            to: family.of([NOBODY4.into(), NOBODY6.into()]),
            gateway: family.of([GATEWAY_V4.into(), GATEWAY_V6.into()]),
            uplink: family.of([rig::UPLINK_V4.into(), rig::UPLINK_V6.into()]),
            prohibited: family.of([Answer::Icmp(3, 13), Answer::Icmp(1, 1)]),
            icmp: family.icmp(),
            echo: family.echo(),
        }
    }

    /// The client's address.
    fn address(&self, family: Family) -> IpAddr {
        family.of([self.world.v4, self.world.v6])
    }

    /// Sends packets of the client, and asserts everything that comes of them.
    #[track_caller]
    pub fn check(&self, name: &str, packets: &[Vec<u8>], expected: &Expected) -> Came {
        let frames: Vec<Vec<u8>> = packets.iter().map(|it| frame(it)).collect();
        let is_v4 = packets.iter().any(|it| it[0] >> 4 == 4);
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        self.check_frames(name, family, &frames, expected)
    }

    /// Sends frames that are not what they seem and concern this family, and asserts everything
    /// that comes of them.
    #[track_caller]
    pub fn check_frames(
        &self,
        name: &str,
        family: Family,
        frames: &[Vec<u8>],
        expected: &Expected,
    ) -> Came {
        self.check_sent(name, family, frames, expected, frames::send_raw)
    }

    /// Sends frames in a way of their own, and asserts everything that comes of them.
    #[track_caller]
    pub fn check_sent(
        &self,
        name: &str,
        family: Family,
        frames: &[Vec<u8>],
        expected: &Expected,
        send: Send,
    ) -> Came {
        let came = self.send(family, frames, send).expect("a working rig");
        let Came { arrivals, answers, counted } = &came;
        assert_eq!(answers, expected.answers, "answers: {name}: {counted:?}");
        let lengths: Vec<usize> = arrivals.iter().map(Vec::len).collect();
        assert_eq!(arrivals.len(), expected.arrivals, "arrivals: {name}: {counted:?}, {lengths:?}");
        let expected = expected.counted.iter().map(|(what, count)| (String::from(*what), *count));
        assert_eq!(*counted, expected.collect(), "counters: {name}");
        came
    }

    fn send(&self, family: Family, frames: &[Vec<u8>], send: Send) -> Result<Came> {
        let (client, internet) = (self.world.client.namespace(), self.world.rig.internet());
        let mut back = frames::capture(client, CLIENT_INTERFACE)?;
        let mut out = frames::capture(internet, "eth0")?;
        let before = self.counters(family)?;
        for frame in frames {
            send(client, CLIENT_INTERFACE, frame)?;
        }
        // What is asked for here was counted before it could be answered.
        let answers = self.until_gateway_answers(&mut back)?;
        let mut counted = self.counters(family)?;
        if family == Family::V4
            && let Some(own) = counted.get_mut("local")
        {
            *own -= 1;
        }
        let arrivals = self.until_uplink_is_empty(&mut out)?;
        for (what, count) in before {
            if let Some(now) = counted.get_mut(&what) {
                *now -= count;
            }
        }
        counted.retain(|_, count| *count > 0);
        Ok(Came { arrivals, answers, counted })
    }

    /// Everything that came back before the gateway's answer to a ping.
    fn until_gateway_answers(&self, back: &mut Capture) -> Result<Vec<Answer>> {
        let token: [u8; 16] = random();
        let request = [packets::icmp(8, 0), token.to_vec()].concat();
        let request = packet(self.world.v4, GATEWAY_V4.into(), ICMP, &request);
        frames::send_raw(self.world.client.namespace(), CLIENT_INTERFACE, &frame(&request))?;
        let mut answers = Vec::new();
        loop {
            let received = back.wait_for(|_| true, PATIENCE)?;
            let Some(received) = received else { anyhow::bail!("the gateway does not answer") };
            let from_netvm = received.get(6..12) == Some(&VIF);
            if !from_netvm || is_chatter(&received) {
                continue;
            }
            let Some((protocol, message)) = split(&received) else { continue };
            if message.ends_with(&token) && message[0] == 0 {
                return Ok(answers);
            }
            answers.push(match protocol {
                ICMP | ICMPV6 => Answer::Icmp(message[0], message[1]),
                other => Answer::Other(other),
            });
        }
    }

    /// Everything that left by the uplink before a frame of the netvm's own.
    pub fn until_uplink_is_empty(&self, out: &mut Capture) -> Result<Vec<Vec<u8>>> {
        let token: [u8; 16] = random();
        let mut mark = packets::ethernet(EXPERIMENTAL, &token);
        mark[..6].fill(0xff);
        frames::send_raw(self.world.rig.netvm(), UPLINK, &mark)?;
        let mut arrivals = Vec::new();
        loop {
            let received = out.wait_for(|_| true, PATIENCE)?;
            let Some(received) = received else { anyhow::bail!("the uplink is dead") };
            if received.ends_with(&token) {
                return Ok(arrivals);
            }
            if split(&received).is_some() && !is_chatter(&received) {
                arrivals.push(received[14..].to_vec());
            }
        }
    }

    /// All counters of a client and of nobody, by name.
    fn counters(&self, family: Family) -> Result<BTreeMap<String, u64>> {
        let status = self.agent.client(self.address(family))?;
        let mut counters: BTreeMap<String, u64> = BTreeMap::new();
        for (index, rule) in status.rules.iter().enumerate() {
            counters.insert(format!("rule {index}"), rule.counter.packets);
        }
        counters.insert("default".to_owned(), status.default_counter.packets);
        for (reason, counter) in status.counters {
            counters.insert(reason.to_string(), counter.packets);
        }
        for (reason, counter) in self.agent.status()?.strays {
            counters.insert(format!("stray {reason}"), counter.packets);
        }
        // The kernels' own chatter.
        for chatter in ["stray arp", "stray link-local"] {
            counters.remove(chatter);
        }
        Ok(counters)
    }
}

/// A packet in a frame to the vif.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    frame_of(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

/// Anything in a frame to the vif.
pub fn frame_of(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = packets::ethernet(ethertype, payload);
    frame[..6].copy_from_slice(&VIF);
    frame
}

/// Protocol and what follows the IP header.
fn split(frame: &[u8]) -> Option<(u8, &[u8])> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            Some((*frame.get(23)?, frame.get(14 + usize::from(frame[14] & 0xf) * 4..)?))
        }
        [0x86, 0xdd] => Some((*frame.get(20)?, frame.get(54..)?)),
        _ => None,
    }
}

/// What kernels say to their neighbours without being asked (RFC 4861, RFC 3810).
fn is_chatter(frame: &[u8]) -> bool {
    let multicast_report = frame.get(20) == Some(&packets::HOP_BY_HOP);
    let is_it = |(protocol, message): (u8, &[u8])| {
        protocol == ICMPV6 && message.first().is_some_and(|kind| (133..=137).contains(kind))
    };
    let ipv6 = frame.get(12..14) == Some(&[0x86, 0xdd]);
    ipv6 && (split(frame).is_some_and(is_it) || multicast_report && frame.get(38) == Some(&0xff))
}

/// Any own address and port, in the family of that address.
pub fn unspecified(of: IpAddr) -> SocketAddr {
    match of {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// `action=accept proto=udp dstports=443-443`
pub fn udp_443() -> Rule {
    Rule { proto: Some(Proto::Udp), ports: Some((443, 443)), ..Rule::all(true) }
}
