//! Addresses, rules and checks of these tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use firewall_common::verdict::Reason;
use firewall_core::rules::resolve::Surroundings;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::program::{Outcome, Program, VIF};

pub const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 12));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 0xc));
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);

pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => unreachable!("an IPv4 address"),
    }
}

pub fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(v6) => v6,
        IpAddr::V4(_) => unreachable!("an IPv6 address"),
    }
}

pub fn known() -> Surroundings {
    let resolvers = [Ipv4Addr::new(192, 168, 1, 1).into(), SERVER6.into()];
    Surroundings { resolvers: resolvers.to_vec(), ..Surroundings::default() }
}

/// What `specialtarget=dns` means with [`known`] resolvers.
pub fn dns_servers() -> Vec<IpAddr> {
    let virtual_resolvers = [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];
    let all = virtual_resolvers.into_iter().map(IpAddr::from);
    all.chain(known().resolvers).collect()
}

pub fn rules(rules: &[Rule]) -> Ruleset {
    Ruleset { default_accept: false, rules: rules.to_vec() }
}

pub fn program_with(rules: &Ruleset) -> Result<Program> {
    let mut program = Program::load()?;
    for client in [CLIENT4, CLIENT6] {
        let of_family = |rule: &&Rule| {
            rule.network.is_none_or(|(network, _)| network.is_ipv4() == client.is_ipv4())
        };
        let rules: Vec<Rule> = rules.rules.iter().filter(of_family).cloned().collect();
        program.put(client, &Ruleset { default_accept: false, rules }, &known())?;
    }
    Ok(program)
}

/// Sends a frame and asserts outcome, the one counter that moves, and the drop record.
#[track_caller]
pub fn check(program: &mut Program, name: &str, frame: &[u8], expected: Outcome, reason: Reason) {
    let client = match frame.get(12..14) {
        _ if reason_without_client(reason) => None,
        Some([0x08, 0x00]) => Some(CLIENT4),
        _ => Some(CLIENT6),
    };
    let count = |program: &Program| program.counted(client, reason);
    let before = count(program);
    program.records().expect("records");
    let outcome = program.send(frame).expect("a test run");
    assert_eq!(outcome, expected, "{name}");
    let after = count(program);
    assert_eq!(after.packets, before.packets + 1, "{name}: packets counted as {reason:?}");
    assert_eq!(after.bytes, before.bytes + frame.len() as u64, "{name}: bytes");
    let records = program.records().expect("records");
    let is_told = expected != Outcome::ACCEPTED && !is_untold(reason);
    assert!(records.len() <= usize::from(is_told), "{name}: {records:?}");
    for record in records {
        assert_eq!(Reason::from_index(record.reason), Some(reason), "{name}");
        assert_eq!((record.vif, record.length), (VIF, frame.len() as u32), "{name}");
    }
}

/// Exhaustive on purpose: a new reason must be placed here, and tested below.
pub fn reason_without_client(reason: Reason) -> bool {
    match reason {
        Reason::Rule
        | Reason::Default
        | Reason::Blocked
        | Reason::Waiting
        | Reason::Local
        | Reason::Answer
        | Reason::Fragment
        | Reason::StrayFragment
        | Reason::TooManyFragments
        | Reason::IcmpError
        | Reason::ForeignError
        | Reason::Redirect
        | Reason::TooMany
        | Reason::Settling
        | Reason::OverBudget
        | Reason::Audit
        | Reason::Inconsistent => false,
        Reason::Arp
        | Reason::UnknownSource
        | Reason::LinkLocal
        | Reason::ForeignNeighbour
        | Reason::ConnectedSource
        | Reason::ConnectedDestination
        | Reason::Outdated
        | Reason::OtherHost
        | Reason::Tagged
        | Reason::ForeignEthertype
        | Reason::Truncated
        | Reason::Malformed
        | Reason::SourceRoute
        | Reason::RoutingHeader
        | Reason::TooManyHeaders
        | Reason::MappedAddress => true,
    }
}

pub fn is_untold(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Arp
            | Reason::Local
            | Reason::Answer
            | Reason::Fragment
            | Reason::IcmpError
            | Reason::LinkLocal
    )
}
