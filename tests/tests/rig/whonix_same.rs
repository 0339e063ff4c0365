//! A qube without restrictions behind a Whonix gateway: with us all is as without us.
//! Never knows what is right there; it compares.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::Rule;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::Agent;
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::{Kind, Odd, Place, What};
use firewall_tests::whonix::sent::Came;
use firewall_tests::whonix::tables::SOCKS;
use firewall_tests::{rounds, seed};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::whonix::two_addresses;
use super::whonix_matrix::{MATRIX, Runner, put, start};

const PLACES: [Place; 9] = [
    Place::Host,
    Place::Elsewhere,
    Place::Lan,
    Place::Onion,
    Place::Gateway,
    Place::Uplink,
    Place::Disposable,
    Place::Fixed,
    Place::Resolver,
];

/// Any kind, with ports that mean something more often than not.
fn any(random: &mut StdRng) -> Result<Kind> {
    let known = [53, 80, 443, 5300, 9040, 9051, 9052];
    let edges = SOCKS.iter().flat_map(|(first, last)| [first - 1, *first, *last, last + 1]);
    let known: Vec<u16> = known.into_iter().chain(edges).collect();
    let port = match random.random_range(0..4) {
        0 => random.random(),
        _ => *known.choose(random).context("ports")?,
    };
    let what = match random.random_range(0..10) {
        0..=4 => What::Open(port),
        5..=6 => What::Udp(port),
        7 => What::Segment(port),
        8 => What::Echo,
        _ => What::Protocol(random.random_range(60..=254)),
    };
    let odd = match random.random_range(0..8) {
        0 => Odd::OneHop,
        1 => Odd::Options,
        // What does not have its ports in the first piece is another matter.
        2 if matches!(what, What::Udp(_)) => Odd::Fragments,
        _ => Odd::Plain,
    };
    Ok(Kind { to: *PLACES.choose(random).context("places")?, what, odd })
}

/// What came of packets, but for the port that they came from.
fn without_port(came: Came) -> Came {
    let mut came = came;
    for delivery in &mut came.delivered {
        delivery.source = SocketAddr::new(delivery.source.ip(), 0);
    }
    came
}

#[test]
fn with_us_a_qube_without_restrictions_gets_what_it_gets_without_us() -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed());
    let mut kinds = Vec::new();
    for _ in 0..rounds(150, 1500) {
        kinds.push(any(&mut random)?);
    }
    kinds.extend(MATRIX.iter().map(|line| Kind { to: line.1, what: line.2, odd: line.3 }));
    let gateway = Gateway::new("whonixsame")?;
    let runner = Runner::new(&gateway);
    let all = || -> Result<Vec<Option<Came>>> {
        let each = kinds.iter().flat_map(|kind| Family::BOTH.map(|family| (kind, family)));
        let came: Result<Vec<_>> = each
            .map(|(kind, family)| {
                Ok(runner.send(kind, family)?.map(|(_, came)| without_port(came)))
            })
            .collect();
        gateway.forget()?;
        runner.nothing_else_passed()?;
        came
    };
    let without = all()?;
    let agent = start(&gateway, &[])?;
    put(&gateway, &agent, 0, &[Rule::all(true)])?;
    let with = all()?;
    let each = kinds.iter().flat_map(|kind| Family::BOTH.map(|family| (kind, family)));
    let mut different = Vec::new();
    for ((kind, without), with) in each.zip(&without).zip(&with) {
        if without != with {
            different.push(format!("{kind:?}: without us {without:?}, with us {with:?}"));
        }
    }
    let landed = without.iter().flatten().filter(|it| !it.delivered.is_empty()).count();
    ensure!(landed * 3 > without.len(), "only {landed} of {} came to anybody", without.len());
    ensure!(different.is_empty(), "{}\n{}", different.join("\n"), agent.log());
    Ok(())
}

#[test]
fn with_us_two_qubes_are_two_addresses_to_tor() -> Result<()> {
    let gateway = Gateway::new("whonixisolated")?;
    let agent: Agent = start(&gateway, &[])?;
    for qube in [0, 1] {
        put(&gateway, &agent, qube, &[Rule::all(true)])?;
    }
    two_addresses(&gateway).with_context(|| agent.log())
}
