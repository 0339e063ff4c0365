//! Policies replaced while packets are judged: each packet sees the old one or the new.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program, VIF, proved};
use firewall_tests::rounds;

use super::common::*;

/// Every swap frees what the one before took, so that another client's policy, which says
/// the opposite, moves in where a late packet would still look.
fn count() -> u32 {
    u32::try_from(rounds(300, 2_000)).unwrap_or(u32::MAX)
}

#[test]
fn no_packet_is_judged_by_a_torn_policy() -> Result<()> {
    let other: IpAddr = Ipv4Addr::new(10, 137, 0, 13).into();
    let tcp = |accept, port| Rule {
        proto: Some(Proto::Tcp),
        ports: Some((port, port)),
        ..Rule::all(accept)
    };
    let host = |index: u32| Some((Ipv4Addr::from_bits(0x0808_0000 + index).into(), 32));
    let server = Some((SERVER4.into(), 32));
    // Two shapes that say the same of our packets: 443 passes, 80 does not.
    let small = rules(&[Rule { network: server, ..tcp(true, 443) }]);
    let mut large: Vec<Rule> =
        (0..40).map(|it| Rule { network: host(it), ..tcp(true, 1) }).collect();
    large.extend([tcp(false, 80), tcp(true, 443)]);
    let large = rules(&large);
    // And two that say the opposite.
    let contrary = rules(&[tcp(false, 443), Rule::all(true)]);
    let mut contrary_large: Vec<Rule> =
        (0..40).map(|it| Rule { network: host(it), ..tcp(false, 443) }).collect();
    contrary_large.extend([tcp(false, 443), Rule { network: server, ..Rule::all(true) }]);
    let contrary_large = rules(&contrary_large);
    let installation =
        |client, ruleset: &firewall_tests::oracle::Ruleset| -> Result<Installation> {
            let policy = proved(client, &ruleset.file(), &known())?;
            Ok(Installation::Policy { policy, rules: u32::try_from(ruleset.rules.len())? })
        };
    let ours = [installation(CLIENT4, &small)?, installation(CLIENT4, &large)?];
    let theirs = [installation(other, &contrary)?, installation(other, &contrary_large)?];

    let mut program = Program::load()?;
    program.install(CLIENT4, &ours[0], 1)?;
    let accepted = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 443);
    let rejected = packets::plain(CLIENT4, SERVER4.into(), packets::TCP, 80);
    let done = AtomicBool::new(false);
    let (sender, maps) = program.split()?;
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                ensure!(sender.send(&accepted, 0)? == Outcome::ACCEPTED, "packet {sent}");
                // While it settles, what is denied is dropped.
                let outcome = sender.send(&rejected, 0)?;
                let denied = [Outcome::NOT_PERMITTED, Outcome::DROPPED].contains(&outcome);
                ensure!(denied, "packet {sent}: {outcome:?}");
                sent += 2;
            }
            Ok(sent)
        });
        let swaps = (0..count()).try_for_each(|swap| -> Result<()> {
            let which = (swap % 2) as usize;
            for (client, installation) in [(CLIENT4, &ours[1 - which]), (other, &theirs[which])] {
                let client = ClientId { vif: VIF, address: client };
                maps.put(client, installation, swap + 2)?;
                maps.settle(client)?;
                maps.tidy()?;
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("no panic")?;
        println!("{sent} packets during {} swaps of two policies each, none misjudged", count());
        ensure!(sent > 10_000, "only {sent} packets");
        swaps
    })
}

#[test]
fn what_has_no_room_now_has_some_when_others_give_theirs_back() -> Result<()> {
    let mut program = Program::load()?;
    let all = proved(CLIENT4, &rules(&[Rule::all(true)]).file(), &known())?;
    let wants = |rules| Installation::Policy { policy: all.clone(), rules };
    let [one, other] = [7, VIF].map(|vif| ClientId { vif, address: CLIENT4 });
    let frame = packets::plain(CLIENT4, SERVER4.into(), packets::UDP, 1);
    // Each rule takes one of 65,536 counters.
    program.maps.put(one, &wants(40_000), 1)?;
    let error = program.maps.put(other, &wants(30_000), 2).expect_err("room for both");
    assert!(error.may_pass(), "{error}");
    let never = program.maps.put(other, &wants(70_000), 2).expect_err("room for 70,000");
    assert!(!never.may_pass(), "{never}");
    // What stands in for it until then has room.
    program.maps.put(other, &Installation::Blocked, 2)?;
    program.maps.settle(other)?;
    check(&mut program, "no room", &frame, Outcome::NOT_PERMITTED, Reason::Blocked);
    program.maps.remove(one)?;
    program.maps.put(other, &wants(30_000), 3)?;
    assert_eq!(program.send(&frame)?, Outcome::ACCEPTED);
    Ok(())
}
