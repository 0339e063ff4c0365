//! What gets through and what does not: plain packets, strangers' addresses, fragments.
//! Never takes the guest's word for what left.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use firewall_tests::packets::{self, TCP, UDP, V4, V6};

use crate::domain::PATIENCE;
use crate::order::{Answer, Frame, How, Order};
use crate::outside::{ECHO, OTHER, SERVER, SERVER4};
use crate::stage::{self, PROHIBITED, RULES, Stage, frame};

pub const ACCEPTED: u16 = ECHO[0];
pub const DENIED: u16 = ECHO[1];

/// TCP, UDP and ping, in both families.
pub fn reach(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let watch = stage.watch_uplink()?;
    let mut count = 0;
    for family in [0, 1] {
        let (server, other) = (SERVER[family], OTHER[family]);
        for (how, to, port, expected) in [
            (How::Tcp, server, ACCEPTED, &Answer::Accepted),
            (How::Udp, server, ACCEPTED, &Answer::Accepted),
            (How::Ping, server, 0, &Answer::Accepted),
            (How::Tcp, server, DENIED, &PROHIBITED[family]),
            (How::Udp, server, DENIED, &PROHIBITED[family]),
            (How::Ping, other, 0, &PROHIBITED[family]),
            (How::Tcp, other, ACCEPTED, &PROHIBITED[family]),
        ] {
            let answer = stage.probe(how, to, port)?;
            ensure!(
                answer == *expected,
                "{how:?} to {to} port {port}: {answer:?}, not {expected:?}"
            );
            count += 1;
        }
    }
    let left = watch.end(|seen| {
        seen.left
            && (OTHER.iter().any(|it| seen.is_for(*it))
                || [TCP, UDP].iter().any(|it| seen.is_for_port(*it, DENIED)))
    })?;
    ensure!(left.is_empty(), "{} packets that rules deny left by the uplink", left.len());
    Ok(format!(
        "{count} attempts: 6 accepted, 8 rejected as administratively prohibited, none of these left"
    ))
}

/// A datagram in a frame, with a token by which it is known.
fn told(stage: &Stage, source: IpAddr, to: IpAddr, token: &[u8]) -> Vec<u8> {
    let udp = packets::datagram(7000, ACCEPTED, token);
    let udp = packets::sealed(source, to, UDP, &udp);
    let packet = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => V4::new(source, to, UDP, &udp).packet(),
        (IpAddr::V6(source), IpAddr::V6(to)) => V6::new(source, to, UDP, &udp).packet(),
        _ => Vec::new(),
    };
    frame(&stage.work, &packet)
}

/// Addresses that are not the guest's own.
pub fn spoofed(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let [own4, own6] = stage.work.spec.addresses.all();
    let [other4, other6] = stage::OTHER.addresses.all();
    let strangers = [
        other4,
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
        IpAddr::V4(Ipv4Addr::new(10, 137, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        other6,
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9)),
        IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1)),
    ];
    let (uplink, vif) = (stage.watch_uplink()?, stage.watch_vif(&stage.work.vif())?);
    let [bad, good] = [b"spoofed by work!", b"honestly by work"];
    let server = |source: &IpAddr| SERVER[usize::from(source.is_ipv6())];
    let spoofed = strangers.map(|source| told(stage, source, server(&source), bad));
    let honest = [own4, own6].map(|source| told(stage, source, server(&source), good));
    let frames = spoofed.iter().chain(&honest);
    let frames = frames.map(|bytes| Frame { bytes: bytes.clone(), linear: None }).collect();
    stage.work.ask(Order::Frames(frames))?;
    // The honest ones were sent last: when they are through, so is what was before them.
    uplink
        .wait_for("honest packets", honest.len(), PATIENCE, |seen| seen.left && seen.has(good))?;
    let came = vif.end(|seen| !seen.left && seen.has(bad))?.len();
    ensure!(
        came == strangers.len(),
        "{came} of {} spoofed packets came to the vif",
        strangers.len()
    );
    let left = uplink.end(|seen| seen.left && seen.has(bad))?.len();
    ensure!(left == 0, "{left} spoofed packets left");
    Ok(format!("{came} with addresses of others came to the vif, 0 left; 2 with its own left"))
}

/// Fragments that the guest's kernel makes, and later ones without a first.
pub fn fragments(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let (uplink, vif) = (stage.watch_uplink()?, stage.watch_vif(&stage.work.vif())?);
    let bytes = 4000;
    for server in SERVER {
        for (port, expected) in [(ACCEPTED, Answer::Number(bytes)), (DENIED, Answer::Silent)] {
            let to = SocketAddr::new(server, port);
            let order = Order::Datagram { to, bytes: usize::try_from(bytes)?, from_port: 0 };
            let answer = stage.work.ask(order)?;
            ensure!(answer == expected, "{bytes} bytes to {to}: {answer:?}, not {expected:?}");
        }
    }
    // To an accepted port, if there were a first fragment to say so.
    let token = b"a later fragment";
    let source = stage.work.spec.addresses.v4;
    let mut late = V4::new(source, SERVER4, UDP, &[&[0; 16], &token[..]].concat());
    late.fragment = 185;
    let bytes = frame(&stage.work, &late.packet());
    stage.work.ask(Order::Frames(vec![Frame { bytes, linear: None }]))?;
    vif.wait_for("later fragments", 1, PATIENCE, |seen| seen.has(token))?;
    let order =
        Order::Datagram { to: SocketAddr::new(SERVER[0], ACCEPTED), bytes: 16, from_port: 0 };
    ensure!(stage.work.ask(order)? == Answer::Number(16), "a datagram behind it does not pass");
    let is_fragment = |head: &[u8]| match head.get(12..14) {
        Some([0x08, 0x00]) => head.get(20..22).is_some_and(|it| it[0] & 0x3f != 0 || it[1] != 0),
        Some([0x86, 0xdd]) => head.get(20) == Some(&packets::FRAGMENT),
        _ => false,
    };
    let came = vif.end(|seen| !seen.left && is_fragment(&seen.head))?.len();
    ensure!(came >= 13, "only {came} fragments came to the vif");
    let left = uplink.end(|seen| seen.left)?;
    let denied = left.iter().filter(|it| it.is_for_port(UDP, DENIED) || it.has(token)).count();
    ensure!(denied == 0, "{denied} fragments of what rules deny left");
    let passed = left.iter().filter(|seen| is_fragment(&seen.head)).count();
    ensure!(passed == 6, "{passed} fragments left, and not the 6 that rules accept");
    Ok(format!(
        "{came} fragments came, the {passed} of the two accepted datagrams left, and their echo came back"
    ))
}

/// What rules accept and what they deny, in short.
pub fn rules_hold(stage: &mut Stage, family: usize) -> Result<()> {
    let answer = stage.probe(How::Tcp, SERVER[family], ACCEPTED)?;
    ensure!(answer == Answer::Accepted, "TCP that rules accept: {answer:?}");
    let answer = stage.probe(How::Tcp, SERVER[family], DENIED)?;
    ensure!(answer == PROHIBITED[family], "TCP that rules deny: {answer:?}");
    Ok(())
}

/// Whether the connection that stays is alive.
pub fn is_alive(stage: &mut Stage) -> Result<bool> {
    match stage.work.ask(Order::Exchange)? {
        Answer::Is(alive) => Ok(alive),
        other => Err(anyhow::anyhow!("{other:?}")).context("on the connection that stays"),
    }
}
