//! Packets whose headers the qube's kernel hands over in pieces: so many bytes first, the rest in a
//! page of their own, with headers that reach beyond what netback copies.
//! Never writes to the rings itself: what xen-netfront makes of a frame is what is tried.
//!
//! Shorter linear parts cannot be had by other pieces: netback copies the first 128 bytes of a packet
//! (`XEN_NETBACK_TX_COPY_LEN`), from as many pieces as it takes ("xen/netback: Ensure protocol headers
//! don't fall in the non-linear area", XSA-423). What lies behind them stays in the qube's own pages.

use anyhow::{Result, ensure};

use firewall_tests::packets::{self, DESTINATION, UDP, V4, V6};

use super::reach::{ACCEPTED, DENIED};
use crate::domain::PATIENCE;
use crate::order::{Frame, Order};
use crate::outside::{LONG_MTU, MTU, SERVER4, SERVER6};
use crate::seen::Seen;
use crate::stage::{RULES, Stage, frame};

/// Longer than a page: the guest's kernel keeps a shorter frame in one piece.
const LONG: usize = 5000;
/// How many bytes the first piece has: around all ends of headers, and of what netback copies.
const CUTS: [u16; 22] =
    [14, 15, 17, 23, 24, 30, 33, 34, 35, 36, 37, 38, 41, 42, 53, 54, 55, 57, 62, 113, 127, 129];
/// How many bytes of options stand before the port, by kind of frame; the last ones keep it from being
/// among what netback copies.
const OPTIONS: [(Kind, usize); 5] =
    [(Kind::IPv4, 0), (Kind::IPv4, 40), (Kind::IPv6, 0), (Kind::IPv6, 64), (Kind::IPv6, 128)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    IPv4,
    IPv6,
}

/// Each kind of frame with each cut, to an accepted port and to a denied one.
pub fn linear(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    stage.outside.set_mtu(LONG_MTU)?;
    stage.work.ask(Order::Mtu(LONG_MTU))?;
    let outcome = each_kind(stage);
    stage.work.ask(Order::Mtu(MTU))?;
    stage.outside.set_mtu(MTU)?;
    outcome
}

fn each_kind(stage: &mut Stage) -> Result<String> {
    let mut told = Vec::new();
    for (kind, options) in OPTIONS {
        // What becomes of it when it is short, and in one piece.
        let whole = passed(stage, kind, options, 100, &[None])?;
        let cuts: Vec<Option<u16>> = CUTS.into_iter().map(Some).collect();
        let cut = passed(stage, kind, options, LONG, &cuts)?;
        let expected = if whole == 1 { cuts.len() } else { 0 };
        ensure!(
            cut == expected,
            "{kind:?} with {options} bytes of options: {cut} of {} left, in one piece {whole} of 1",
            cuts.len()
        );
        let verdict =
            if whole == 1 { "all accepted ones left" } else { "none leaves, in one piece neither" };
        told.push(format!("{kind:?} with {options} bytes of options: {verdict}"));
    }
    let (first, last) = (CUTS[0], CUTS[CUTS.len() - 1]);
    Ok(format!(
        "{} first pieces of {first} to {last} bytes; {}; of denied ones 0",
        CUTS.len(),
        told.join(", ")
    ))
}

/// Sends a frame with each cut to a denied port, and to an accepted one. Returns how many of the
/// latter left; an error if one of the former did.
fn passed(
    stage: &mut Stage,
    kind: Kind,
    options: usize,
    data: usize,
    cuts: &[Option<u16>],
) -> Result<usize> {
    let (uplink, vif) = (stage.watch_uplink()?, stage.watch_vif(&stage.work.vif())?);
    let tokens = [b"cut and denied!!", b"cut and accepted", b"the last of them"];
    let make = |stage: &Stage, kind, options, data, port, token: &[u8; 16], linear| {
        let bytes = frame(&stage.work, &packet(stage, kind, options, data, port, token));
        Frame { bytes, linear }
    };
    for cut in cuts {
        let denied = make(stage, kind, options, data, DENIED, tokens[0], *cut);
        let accepted = make(stage, kind, options, data, ACCEPTED, tokens[1], *cut);
        stage.work.ask(Order::Frames(vec![denied, accepted]))?;
    }
    let last = make(stage, Kind::IPv4, 0, 100, ACCEPTED, tokens[2], None);
    stage.work.ask(Order::Frames(vec![last]))?;
    uplink
        .wait_for("frames behind the cut ones", 1, PATIENCE, |it| it.left && it.has(tokens[2]))?;
    // Only datagrams: of some the guest sees the echo, and complains about it with an ICMP error.
    let denied = |it: &Seen| it.has(tokens[0]) && it.is_for_port(UDP, DENIED);
    let accepted = |it: &Seen| it.has(tokens[1]) && it.is_for_port(UDP, ACCEPTED);
    let came = vif.end(|it| !it.left && (denied(it) || accepted(it)))?.len();
    ensure!(came == 2 * cuts.len(), "{came} of {} cut frames came", 2 * cuts.len());
    let left = uplink.end(|it| it.left)?;
    let bad = left.iter().filter(|it| it.has(tokens[0]) || it.is_for_port(UDP, DENIED)).count();
    ensure!(bad == 0, "{kind:?} with {options} bytes of options: {bad} denied frames left");
    Ok(left.iter().filter(|it| accepted(it)).count())
}

/// A datagram with a token in front of its data, behind so many bytes of options.
fn packet(
    stage: &Stage,
    kind: Kind,
    options: usize,
    data: usize,
    port: u16,
    token: &[u8; 16],
) -> Vec<u8> {
    let mut content = token.to_vec();
    content.resize(data, b'.');
    let udp = packets::datagram(7000, port, &content);
    let addresses = stage.work.spec.addresses;
    match kind {
        Kind::IPv4 => {
            let udp = packets::sealed(addresses.v4.into(), SERVER4.into(), UDP, &udp);
            let mut packet = V4::new(addresses.v4, SERVER4, UDP, &udp);
            // "No operation", up to the end of the list.
            packet.options = vec![1; options];
            packet.packet()
        }
        Kind::IPv6 => {
            let udp = packets::sealed(addresses.v6.into(), SERVER6.into(), UDP, &udp);
            let mut packet = V6::new(addresses.v6, SERVER6, UDP, &udp);
            if let Some(pad) = options.checked_sub(4) {
                // Its length in units of 8 bytes without the first, and one option of padding.
                let head = [(options / 8 - 1) as u8, 1, pad as u8];
                packet = packet.with(DESTINATION, &[&head[..], &vec![0; pad]].concat());
            }
            packet.packet()
        }
    }
}
