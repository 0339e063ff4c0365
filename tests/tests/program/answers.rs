//! What answers connections that were opened towards a client: it is handed on, and neither counted
//! nor told as denied, nor taken out of the budget of rejects.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::time::Instant;

use anyhow::{Result, ensure};
use firewall_common::abi::{FLOWS_BURST, Local};
use firewall_common::answers::{ANSWERS_BURST, ANSWERS_PER_SECOND};
use firewall_common::verdict::Reason;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::packets::{self, V4, V6};
use firewall_tests::program::{Outcome, Program, VIF};

use super::common::*;

const PEER: u16 = 40_000;
const SERVED: u16 = 7;

fn between(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            V4::new(source, destination, protocol, payload).frame()
        }
        _ => V6::new(v6(source), v6(destination), protocol, payload).frame(),
    }
}

fn peer_of(client: IpAddr) -> IpAddr {
    if client.is_ipv4() { SERVER4.into() } else { SERVER6.into() }
}

/// The first packet towards the client, and one that answers.
fn both_ways(client: IpAddr, protocol: u8) -> [Vec<u8>; 2] {
    let peer = peer_of(client);
    let [there, back] = match protocol {
        packets::TCP => [packets::tcp(PEER, SERVED), packets::tcp(SERVED, PEER)],
        packets::UDP => [packets::udp(PEER, SERVED), packets::udp(SERVED, PEER)],
        packets::ICMP => [packets::icmp(8, 0), packets::icmp(0, 0)],
        packets::ICMPV6 => [packets::icmp(128, 0), packets::icmp(129, 0)],
        _ => [vec![0; 16], vec![0; 16]],
    };
    [between(peer, client, protocol, &there), between(client, peer, protocol, &back)]
}

#[test]
fn what_answers_a_connection_towards_a_client_is_not_denied() -> Result<()> {
    let mut program = program_with(&rules(&[]))?;
    const SCTP: u8 = 132;
    for (client, protocols) in [
        (CLIENT4, [packets::TCP, packets::UDP, packets::ICMP, SCTP]),
        (CLIENT6, [packets::TCP, packets::UDP, packets::ICMPV6, SCTP]),
    ] {
        for protocol in protocols {
            let name = format!("{client}, protocol {protocol}");
            let [there, back] = both_ways(client, protocol);
            check(&mut program, &name, &back, Outcome::NOT_PERMITTED, Reason::Default);
            program.leave(&there, false)?;
            check(&mut program, &name, &back, Outcome::NOT_PERMITTED, Reason::Default);
            program.leave(&there, true)?;
            check(&mut program, &name, &back, Outcome::NOT_PERMITTED, Reason::Answer);
            // What the client opens itself, with the same peer.
            let own = between(client, peer_of(client), packets::UDP, &packets::udp(1, 2));
            check(&mut program, &name, &own, Outcome::NOT_PERMITTED, Reason::Default);
        }
        let ping = if client.is_ipv4() { packets::icmp(8, 0) } else { packets::icmp(128, 0) };
        let number = if client.is_ipv4() { packets::ICMP } else { packets::ICMPV6 };
        let ping = between(client, peer_of(client), number, &ping);
        check(&mut program, "a ping of its own", &ping, Outcome::NOT_PERMITTED, Reason::Default);
    }
    Ok(())
}

#[test]
fn answers_go_on_whatever_is_in_force_and_over_every_budget() -> Result<()> {
    let mut program = Program::load_with(NonZeroU64::MIN, false)?;
    let [there, back] = both_ways(CLIENT4, packets::UDP);
    program.leave(&there, true)?;
    program.put(CLIENT4, &rules(&[]), &known())?;
    let count = ANSWERS_BURST / 2;
    for _ in 0..count {
        assert_eq!(program.send(&back)?, Outcome::NOT_PERMITTED);
    }
    assert_eq!(program.counted(Some(CLIENT4), Reason::Answer).packets, count);
    assert_eq!(program.counted(Some(CLIENT4), Reason::OverBudget).packets, 0);
    let client = ClientId { vif: VIF, address: CLIENT4 };
    program.maps.audit(client, u32::MAX)?;
    check(&mut program, "audited", &back, Outcome::NOT_PERMITTED, Reason::Answer);
    program.maps.put(client, &Installation::Blocked, 2)?;
    check(&mut program, "settling", &back, Outcome::NOT_PERMITTED, Reason::Answer);
    program.install(CLIENT4, &Installation::Blocked, 3)?;
    check(&mut program, "blocked", &back, Outcome::NOT_PERMITTED, Reason::Answer);
    Ok(())
}

#[test]
fn what_the_netvm_opened_takes_nothing_else_out_of_the_budget_of_flows() -> Result<()> {
    const SCTP: u8 = 132;
    let mut program = program_with(&rules(&[]))?;
    program.maps.set_locals([(SERVER4.into(), Local::One), (SERVER6.into(), Local::One)])?;
    for (client, icmp, others) in
        [(CLIENT4, packets::ICMP, [13, 15, 17]), (CLIENT6, packets::ICMPV6, [139, 128, 200])]
    {
        for protocol in [icmp, SCTP] {
            program.leave(&both_ways(client, protocol)[0], true)?;
        }
        let other = |kind| between(client, peer_of(client), icmp, &packets::icmp(kind, 0));
        let [_, reply] = both_ways(client, icmp);
        let [_, sctp] = both_ways(client, SCTP);
        let frames = others.map(other).into_iter().chain([sctp]);
        for frame in frames {
            program.rest()?;
            let too_many = program.counted(Some(client), Reason::TooMany).packets;
            // Of what has a key, the same again is no new flow.
            let mut frame = frame;
            for id in 0..2 * FLOWS_BURST as u16 {
                let at = frame.len() - 4;
                frame[at..][..2].copy_from_slice(&id.to_be_bytes());
                program.send(&frame)?;
            }
            let now = program.counted(Some(client), Reason::TooMany).packets;
            ensure!(now > too_many, "{client}: all were handed on of {frame:x?}");
            // What the netvm asked for is still handed on.
            assert_eq!(program.send(&reply)?, Outcome::NOT_PERMITTED);
        }
    }
    Ok(())
}

#[test]
fn answers_that_do_not_leave_are_denied_once_their_budget_is_used_up() -> Result<()> {
    const SENT: u64 = 20 * ANSWERS_BURST;
    let mut program = program_with(&rules(&[]))?;
    for client in [CLIENT4, CLIENT6] {
        let [there, back] = both_ways(client, packets::UDP);
        program.leave(&there, true)?;
        let since = Instant::now();
        for _ in 0..SENT {
            program.send(&back)?;
        }
        let counted = |reason| program.counted(Some(client), reason).packets;
        let (answers, denied) = (counted(Reason::Answer), counted(Reason::Default));
        assert_eq!(answers + denied, SENT);
        let most = ANSWERS_BURST + (since.elapsed().as_secs() + 2) * ANSWERS_PER_SECOND;
        ensure!((ANSWERS_BURST..=most).contains(&answers), "{client}: {answers} of {most}");
    }
    Ok(())
}
