//! The XDP stage beside the program at tc: it drops the same, counts the same, and lets
//! everything else pass.

use std::net::IpAddr;
use std::num::NonZeroU64;

use anyhow::{Context as _, Result};
use firewall_common::abi::{Counter, REJECT_BURST};
use firewall_common::packet;
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::generate::Generator;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{Outcome, Program, VIF};
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::common::*;
use super::odd::odd_frames;

const RULES: u32 = 12;

/// Everything that counts for both clients and for packets of nobody.
fn counted(program: &Program) -> Vec<Counter> {
    let clients = [None, Some(CLIENT4), Some(CLIENT6)];
    let reasons = |client| Reason::ALL.iter().map(move |reason| program.counted(client, *reason));
    let rules = |client| (0..RULES).map(move |rule| program.counted_rule(client, rule));
    clients.into_iter().flat_map(|it| reasons(it).chain(it.into_iter().flat_map(rules))).collect()
}

/// How much more a second state counts than a first.
fn moved(before: &[Counter], after: &[Counter]) -> Vec<Counter> {
    let both = before.iter().zip(after);
    both.map(|(before, after)| Counter {
        packets: after.packets - before.packets,
        bytes: after.bytes - before.bytes,
    })
    .collect()
}

/// Has tc and the XDP stage judge a frame, and returns whether it was dropped.
#[track_caller]
fn check_both(program: &mut Program, frame: &[u8], what: &str) -> bool {
    let first = counted(program);
    program.rest().expect("maps");
    let handed_on = program.send(frame).expect("a test run").handed_on;
    let second = counted(program);
    let dropped = program.drops_early(frame).expect("a test run");
    let third = counted(program);
    // Any but a plain packet is left to tc.
    if handed_on || packet::parse_plain(frame).is_some() {
        assert_eq!(dropped, !handed_on, "{what}");
    }
    let by_tc = moved(&first, &second);
    let early = moved(&second, &third);
    let expected = if dropped { by_tc } else { vec![Counter::default(); early.len()] };
    assert_eq!(early, expected, "{what}");
    !handed_on
}

#[test]
fn the_xdp_stage_drops_and_counts_what_tc_would_and_nothing_else() -> Result<()> {
    let seed = seed();
    let mut generator = Generator::new(seed);
    let mut random = StdRng::seed_from_u64(seed);
    let mut program = Program::load()?;
    let (mut dropped, mut all) = (0, 0);
    for round in 0..rounds(60, 300) {
        for client in [CLIENT4, CLIENT6] {
            let ruleset = generator.ruleset(client.into(), RULES as usize);
            program.put(client, &ruleset, &known())?;
            let id = ClientId { vif: VIF, address: client };
            match round % 6 {
                // Denied packets are dropped while it settles.
                0 => program.maps.audit(id, 0)?,
                1 => program.install(client, &Installation::Waiting, 2)?,
                2 => program.install(client, &Installation::Blocked, 3)?,
                _ => {}
            }
            for _ in 0..200 {
                let probe = generator.probe(client.into(), &ruleset);
                let mut frame =
                    packets::plain(client, probe.destination, probe.protocol, probe.port);
                if random.random_bool(0.3) {
                    // Behind the addresses of Ethernet, of which XDP knows nothing.
                    let at = random.random_range(12..frame.len());
                    frame[at] = random.random();
                }
                let context = format!("seed {seed}: {probe:?} of\n{}\n{frame:x?}", ruleset.file());
                dropped += usize::from(check_both(&mut program, &frame, &context));
                all += 1;
            }
        }
    }
    println!("{dropped} of {all} frames dropped");
    assert!(dropped > all / 10 && dropped < all * 9 / 10, "the random frames are too much alike");
    Ok(())
}

#[test]
fn the_xdp_stage_leaves_odd_frames_to_tc() -> Result<()> {
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let odd = odd_frames();
    let is_plain = |frame: &[u8]| packet::parse_plain(frame).is_some();
    assert!(odd.iter().any(|(_, frame, _)| is_plain(frame)), "none that the stage drops");
    for (name, frame, reason) in odd {
        // The stage does not know what the network card took off a frame, nor whom it is for.
        let is_to_many = frame[0] & 1 != 0;
        if is_plain(&frame) && reason != Reason::OtherHost && !is_to_many {
            assert!(check_both(&mut program, &frame, name), "{name}");
        } else {
            assert!(!program.drops_early(&frame)?, "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_frame_of_several_buffers_is_judged_and_counted_as_a_whole() -> Result<()> {
    let mut program = program_with(&rules(&[Rule { proto: Some(Proto::Tcp), ..Rule::all(true) }]))?;
    let payload = packets::datagram(40000, 443, &[7; 8_000]);
    let nobody = "10.137.0.13".parse()?;
    let frames = [
        (V4::new(v4(CLIENT4), SERVER4, packets::TCP, &payload).frame(), false),
        (V6::new(v6(CLIENT6), SERVER6, packets::TCP, &payload).frame(), false),
        (V4::new(nobody, SERVER4, packets::TCP, &payload).frame(), true),
    ];
    for (frame, is_dropped) in frames {
        assert_eq!(program.drops_early(&frame)?, is_dropped);
        let counter = program.counted(None, Reason::UnknownSource);
        let bytes = if is_dropped { frame.len() as u64 } else { 0 };
        assert_eq!(counter, Counter { packets: u64::from(is_dropped), bytes });
    }
    Ok(())
}

#[test]
fn the_xdp_stage_leaves_rejects_within_the_budget_to_tc_and_drops_those_over_it() -> Result<()> {
    // One packet a second, beyond the burst.
    let slow = NonZeroU64::new(1).context("not zero")?;
    let mut program = Program::load_with(slow, false)?;
    program.put(CLIENT4, &rules(&[]), &known())?;
    let denied = packets::plain(CLIENT4, IpAddr::V4(SERVER4), packets::UDP, 1);
    for _ in 0..2 * REJECT_BURST {
        // It uses nothing up, so all of them fit.
        assert!(!program.drops_early(&denied)?);
    }
    while program.send(&denied)? == Outcome::NOT_PERMITTED {}
    let before = program.counted(Some(CLIENT4), Reason::OverBudget).packets;
    let default = program.counted(Some(CLIENT4), Reason::Default).packets;
    assert!(program.drops_early(&denied)?);
    assert_eq!(program.counted(Some(CLIENT4), Reason::OverBudget).packets, before + 1);
    assert_eq!(program.counted(Some(CLIENT4), Reason::Default).packets, default + 1);
    Ok(())
}

#[test]
fn what_the_xdp_stage_drops_is_told() -> Result<()> {
    let mut program = program_with(&rules(&[]))?;
    let stranger = IpAddr::V4([10, 137, 0, 13].into());
    let frame = packets::plain(stranger, IpAddr::V4(SERVER4), packets::TCP, 443);
    assert!(program.drops_early(&frame)?);
    let records = program.records()?;
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records[0];
    assert_eq!((record.vif, record.length), (VIF, u32::try_from(frame.len())?));
    assert_eq!(Reason::from_index(record.reason), Some(Reason::UnknownSource));
    assert_eq!(IpAddr::from(record.source), stranger);
    assert_eq!((record.destination_port, record.protocol), (443, packets::TCP));
    Ok(())
}
