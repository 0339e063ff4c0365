//! Answers that the program keeps: the same packet again, after each kind of change.

use std::net::{IpAddr, Ipv4Addr};

use firewall_common::abi::Local;

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program, VIF};
use firewall_tests::seed;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::common::*;

const CLIENTS: [(IpAddr, IpAddr); 2] =
    [(CLIENT4, IpAddr::V4(SERVER4)), (CLIENT6, IpAddr::V6(SERVER6))];

/// Sends a packet until its answer is kept, and then some.
#[track_caller]
fn check(program: &mut Program, frame: &[u8], expected: Outcome) {
    for _ in 0..3 {
        assert_eq!(program.send(frame).expect("a test run"), expected);
    }
}

#[test]
fn what_is_kept_is_void_after_every_change_of_the_tables() -> Result<()> {
    for (client, server) in CLIENTS {
        let mut program = Program::load()?;
        let id = ClientId { vif: VIF, address: client };
        let frame = packets::plain(client, server, packets::TCP, 443);
        check(&mut program, &frame, Outcome::DROPPED);
        program.put(client, &rules(&[Rule::all(true)]), &known())?;
        check(&mut program, &frame, Outcome::ACCEPTED);
        program.put(client, &rules(&[]), &known())?;
        check(&mut program, &frame, Outcome::NOT_PERMITTED);
        program.maps.audit(id, u32::MAX)?;
        check(&mut program, &frame, Outcome::ACCEPTED);
        program.maps.audit(id, 0)?;
        // It has to settle.
        check(&mut program, &frame, Outcome::DROPPED);
        program.maps.settle(id)?;
        check(&mut program, &frame, Outcome::NOT_PERMITTED);
        program.put(client, &rules(&[Rule::all(true)]), &known())?;
        check(&mut program, &frame, Outcome::ACCEPTED);
        assert_eq!(program.counted_rule(client, 0).packets, 3);
        program.maps.set_locals([(server, Local::One)])?;
        check(&mut program, &frame, Outcome::ACCEPTED);
        assert_eq!(program.counted(Some(client), Reason::Local).packets, 3);
        program.maps.set_locals([])?;
        check(&mut program, &frame, Outcome::ACCEPTED);
        // Each right after it is put there, while the client settles.
        for installation in [Installation::Blocked, Installation::Waiting] {
            program.maps.put(id, &installation, 2)?;
            check(&mut program, &frame, Outcome::DROPPED);
            program.put(client, &rules(&[Rule::all(true)]), &known())?;
            check(&mut program, &frame, Outcome::ACCEPTED);
        }
        program.maps.remove(id)?;
        check(&mut program, &frame, Outcome::DROPPED);
    }
    Ok(())
}

#[test]
fn what_is_kept_for_one_packet_is_not_said_of_another() -> Result<()> {
    let server = IpAddr::V4(SERVER4);
    let web = Rule { proto: Some(Proto::Tcp), ports: Some((443, 443)), ..Rule::all(true) };
    let mut program = Program::load()?;
    let other: IpAddr = Ipv4Addr::new(10, 137, 0, 13).into();
    program.put(CLIENT4, &rules(&[Rule { network: Some((server, 32)), ..web }]), &known())?;
    program.put(other, &rules(&[]), &known())?;
    let next: IpAddr = Ipv4Addr::from_bits(SERVER4.to_bits() + 1).into();
    // All of them again and again, so that each finds the others' answers.
    for _ in 0..5 {
        for (client, server, protocol, port, expected) in [
            (CLIENT4, server, packets::TCP, 443, Outcome::ACCEPTED),
            (CLIENT4, server, packets::TCP, 444, Outcome::NOT_PERMITTED),
            (CLIENT4, server, packets::UDP, 443, Outcome::NOT_PERMITTED),
            (CLIENT4, next, packets::TCP, 443, Outcome::NOT_PERMITTED),
            (other, server, packets::TCP, 443, Outcome::NOT_PERMITTED),
        ] {
            let frame = packets::plain(client, server, protocol, port);
            assert_eq!(program.send(&frame)?, expected, "{client} {server} {protocol} {port}");
        }
    }
    Ok(())
}

#[test]
fn a_filter_never_hides_an_address() -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed());
    let mut program = program_with(&rules(&[Rule::all(true)]))?;
    let mut locals: Vec<Ipv4Addr> = (0..1_000)
        .map(|_| Ipv4Addr::from_bits(random.random_range(0x0100_0000..0x0900_0000)))
        .collect();
    locals.sort();
    locals.dedup();
    locals.shuffle(&mut random);
    // So many that bits are shared; then fewer, whose bits have to stay.
    for count in [locals.len(), 500, 1, 700] {
        let (there, gone) = locals.split_at(count.min(locals.len()));
        program.maps.set_locals(there.iter().map(|it| (IpAddr::from(*it), Local::One)))?;
        for (addresses, counts) in [(there, 1), (gone, 0)] {
            for address in addresses {
                let frame = packets::plain(CLIENT4, (*address).into(), packets::TCP, 443);
                program.rest()?;
                let before = program.counted(Some(CLIENT4), Reason::Local).packets;
                assert_eq!(program.send(&frame)?, Outcome::ACCEPTED, "{address} of {count}");
                let after = program.counted(Some(CLIENT4), Reason::Local).packets;
                assert_eq!(after, before + counts, "{address} of {count}");
            }
        }
    }
    Ok(())
}
