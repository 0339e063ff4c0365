//! Clients whose denied packets pass for a while: which, how they are counted and told, and
//! when that ends.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use firewall_common::verdict::{Reason, Verdict};
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::packets;
use firewall_tests::program::{Outcome, Program, VIF};
use nix::time::{ClockId, clock_gettime};

use super::common::*;

const CLIENTS: [(IpAddr, IpAddr); 2] =
    [(CLIENT4, IpAddr::V4(SERVER4)), (CLIENT6, IpAddr::V6(SERVER6))];

/// Since the machine booted.
fn now() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// Whole seconds from now on, and more than the given ones.
fn in_seconds(seconds: u64) -> Result<u32> {
    Ok(u32::try_from(now()?.as_secs() + seconds + 1)?)
}

fn audit(program: &mut Program, client: IpAddr, until: u32) -> Result<()> {
    Ok(program.maps.audit(ClientId { vif: VIF, address: client }, until)?)
}

#[test]
fn an_audited_clients_denied_packets_pass_and_are_counted_until_its_end() -> Result<()> {
    let tcp = Rule { proto: Some(Proto::Tcp), ..Rule::all(false) };
    let icmp = Rule { proto: Some(Proto::Icmp), ..Rule::all(true) };
    let rules = rules(&[tcp, icmp]);
    for (client, server) in CLIENTS {
        let mut program = program_with(&rules)?;
        let by_rule = packets::plain(client, server, packets::TCP, 443);
        let by_default = packets::plain(client, server, packets::UDP, 53);
        assert_eq!(program.send(&by_rule)?, Outcome::NOT_PERMITTED);
        program.records()?;
        let until = in_seconds(2)?;
        audit(&mut program, client, until)?;
        // As soon as it is on, and after the client has settled.
        assert_eq!(program.send(&by_rule)?, Outcome::ACCEPTED);
        program.maps.settle(ClientId { vif: VIF, address: client })?;
        assert_eq!(program.send(&by_default)?, Outcome::ACCEPTED);
        let told: Vec<_> = program.records()?.iter().map(|it| (it.verdict, it.rule)).collect();
        let audit = Verdict::Audit.index();
        assert_eq!(told, [(audit, 0), (audit, u32::MAX)]);
        // It ends by itself, not before it is time and not long after.
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut passed = 2;
        while program.send(&by_rule)? == Outcome::ACCEPTED {
            passed += 1;
            ensure!(Instant::now() < deadline, "it never ends");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(now()? >= Duration::from_secs(until.into()));
        assert_eq!(program.send(&by_rule)?, Outcome::NOT_PERMITTED);
        assert_eq!(program.counted(Some(client), Reason::Audit).packets, passed);
        // Beside the rule and the default, which counted what came before and after as well.
        assert_eq!(program.counted_rule(client, 0).packets, passed + 2);
        assert_eq!(program.counted(Some(client), Reason::Default).packets, 1);
    }
    Ok(())
}

#[test]
fn an_audit_that_is_switched_off_ends_at_once() -> Result<()> {
    let mut program = program_with(&rules(&[]))?;
    let (client, server) = CLIENTS[0];
    let denied = packets::plain(client, server, packets::TCP, 443);
    let others = packets::plain(CLIENT6, SERVER6.into(), packets::TCP, 443);
    audit(&mut program, client, in_seconds(3600)?)?;
    assert_eq!(program.send(&denied)?, Outcome::ACCEPTED);
    assert_eq!(program.send(&others)?, Outcome::NOT_PERMITTED);
    audit(&mut program, client, 0)?;
    // What it had open is still to be ended, so nothing denied is handed on.
    check(&mut program, "settling", &denied, Outcome::DROPPED, Reason::Default);
    program.maps.settle(ClientId { vif: VIF, address: client })?;
    check(&mut program, "settled", &denied, Outcome::NOT_PERMITTED, Reason::Default);
    Ok(())
}

#[test]
fn an_audit_lets_pass_only_what_rules_deny() -> Result<()> {
    let mut program = program_with(&rules(&[]))?;
    for (client, server) in CLIENTS {
        audit(&mut program, client, in_seconds(3600)?)?;
        let denied = packets::plain(client, server, packets::TCP, 443);
        let truncated = &denied[..denied.len() - 10];
        check(&mut program, "truncated", truncated, Outcome::DROPPED, Reason::Truncated);
        let spoofed = packets::plain(server, client, packets::TCP, 443);
        check(&mut program, "spoofed", &spoofed, Outcome::DROPPED, Reason::UnknownSource);
        for (installation, outcome, reason) in [
            (Installation::Waiting, Outcome::DROPPED, Reason::Waiting),
            (Installation::Blocked, Outcome::NOT_PERMITTED, Reason::Blocked),
        ] {
            program.install(client, &installation, 2)?;
            audit(&mut program, client, in_seconds(3600)?)?;
            program.maps.settle(ClientId { vif: VIF, address: client })?;
            check(&mut program, reason.name(), &denied, outcome, reason);
            assert_eq!(program.counted(Some(client), Reason::Audit).packets, 0);
        }
    }
    Ok(())
}
