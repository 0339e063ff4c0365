//! Everything that leaves the netvm by another way than back to the attacker, frame by frame:
//! where the attacker's marks are in it, and whether it is an error to an honest client.
//! Never misses a frame without saying so.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use rand::random;

use super::mark::{self, Mark};
use super::place::Place;
use crate::packets::family::Family;
use crate::packets::{self, ICMP, ICMPV6, VIF};
use crate::rig::agent::PATIENCE;
use crate::rig::{CLIENT_INTERFACE, Client, Rig, UPLINK};
use crate::traffic::frames::{Capture, Sender, capture};

/// "Local experimental" (IEEE 802), which no kernel answers.
const EXPERIMENTAL: u16 = 0x88b5;
const ETHERNET: usize = 14;

/// One way out of the netvm, seen from its far end.
struct Way {
    name: String,
    capture: Capture,
    /// Out of the netvm's end, behind everything that was on its way.
    last: Sender,
    is_uplink: bool,
}

/// What was seen since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// All frames.
    pub(crate) frames: u64,
    /// Bytes of canaries, and where they were.
    pub(crate) canary: u64,
    pub(crate) leaks: Vec<String>,
    /// Frames outside that an open client sent to nobody.
    pub(crate) open: u64,
    /// ICMP errors that honest clients got.
    pub(crate) errors: Vec<String>,
}

/// The watch.
pub(crate) struct Watch {
    vif: Capture,
    ways: Vec<Way>,
}

impl Watch {
    /// From now on, behind the uplink and at the ends of these clients.
    pub(crate) fn new(rig: &Rig, attacker: &Client, honest: &[Client]) -> Result<Self> {
        let mut ways = vec![Way {
            name: "the uplink".to_owned(),
            capture: capture(rig.internet(), "eth0")?,
            last: Sender::open(rig.netvm(), UPLINK)?,
            is_uplink: true,
        }];
        for client in honest {
            ways.push(Way {
                name: client.vif().to_owned(),
                capture: capture(client.namespace(), CLIENT_INTERFACE)?,
                last: Sender::open(rig.netvm(), client.vif())?,
                is_uplink: false,
            });
        }
        Ok(Self { vif: capture(rig.netvm(), attacker.vif())?, ways })
    }

    /// Looks at all frames so far. `send` sends a frame of the attacker: when that is there,
    /// so is all that it sent before, since its thread stays on one processor.
    pub(crate) fn look(&mut self, send: impl FnOnce(&[u8]) -> Result<()>) -> Result<Seen> {
        let token: [u8; 16] = random();
        send(&marker(&token))?;
        let is_last = |frame: &[u8]| frame.ends_with(&token);
        self.vif.before(is_last, PATIENCE).context("at the attacker's vif")?;
        let mut seen = Seen::default();
        for way in &mut self.ways {
            let token: [u8; 16] = random();
            way.last.send(&marker(&token))?;
            let is_last = |frame: &[u8]| frame.ends_with(&token);
            let frames = way.capture.before(is_last, PATIENCE).with_context(|| way.name.clone())?;
            let lost = way.capture.lost()?;
            ensure!(lost == 0, "{lost} frames were not seen at {}", way.name);
            for frame in frames {
                seen.look_at(&frame, way);
            }
        }
        Ok(seen)
    }
}

impl Seen {
    fn look_at(&mut self, frame: &[u8], way: &Way) {
        self.frames += 1;
        let canaries = Mark::Canary.count(frame);
        if canaries > 0 {
            self.canary += (canaries * mark::LENGTH) as u64;
            self.leaks.push(format!("{} by {}", describe(frame), way.name));
        }
        if way.is_uplink && is_for_nobody(frame) && Mark::Open.count(frame) > 0 {
            self.open += 1;
        }
        if !way.is_uplink && is_error(frame) {
            self.errors.push(format!("{} by {}", describe(frame), way.name));
        }
    }
}

/// A frame that nobody answers.
fn marker(token: &[u8]) -> Vec<u8> {
    let mut frame = packets::ethernet(EXPERIMENTAL, token);
    frame[..6].copy_from_slice(&VIF);
    frame
}

/// Protocol and what follows the IP header.
fn split(frame: &[u8]) -> Option<(u8, &[u8])> {
    let header = usize::from(frame.get(ETHERNET)? & 0xf) * 4;
    match frame.get(12..14)? {
        [0x08, 0x00] => Some((*frame.get(23)?, frame.get(ETHERNET + header..)?)),
        [0x86, 0xdd] => Some((*frame.get(20)?, frame.get(ETHERNET + 40..)?)),
        _ => None,
    }
}

/// The server answers what it gets, when it gets to it; nobody never does.
fn is_for_nobody(frame: &[u8]) -> bool {
    let nobody = |family| Place::Nobody.address(family, Mark::Open, 0);
    [nobody(Family::V4), nobody(Family::V6)].iter().any(|address| match address {
        IpAddr::V4(address) => frame.get(30..34) == Some(&address.octets()),
        IpAddr::V6(address) => frame.get(38..54) == Some(&address.octets()),
    })
}

fn is_error(frame: &[u8]) -> bool {
    match split(frame) {
        Some((ICMP, message)) => matches!(message.first(), Some(3 | 4 | 5 | 11 | 12)),
        Some((ICMPV6, message)) => matches!(message.first(), Some(0..128 | 137)),
        _ => false,
    }
}

/// A frame for a person: its protocol, and how it begins.
fn describe(frame: &[u8]) -> String {
    let head = frame.iter().take(96).map(|byte| format!("{byte:02x}"));
    let head: String = head.collect();
    let about = split(frame).map(|(protocol, message)| {
        let kind: Vec<u8> = message.iter().take(2).copied().collect();
        format!(" of protocol {protocol} beginning with {kind:?}")
    });
    format!("{} bytes{}: {head}", frame.len(), about.unwrap_or_default())
}
