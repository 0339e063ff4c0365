//! A bulk upload that new rules forbid: when its last packet left, and when that was promised.
//! Never measures by what the receiver has read: it reads on from its own buffers.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use firewall_tests::packets::TCP;

use crate::domain::PATIENCE;
use crate::netvm::Changed;
use crate::order::Order;
use crate::outside::{SERVER, SINK};
use crate::seen::Seen;
use crate::stage::{NO_RULES, RULES, Stage};
use crate::wait::until;

const ROUNDS: usize = 4;
/// So much is to be on its way before rules change.
const ENOUGH: u64 = 4 << 20;
/// So often the guest is to try again afterwards.
const TRIES: usize = 3;

/// Uploads in both families.
pub fn cut(stage: &mut Stage) -> Result<String> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(one(stage, round % 2)?);
        stage.put(&RULES)?;
    }
    Ok(rounds.join("; "))
}

fn one(stage: &mut Stage, family: usize) -> Result<String> {
    stage.put(&RULES)?;
    let to = SocketAddr::new(SERVER[family], SINK);
    let (uplink, vif) = (stage.watch_uplink()?, stage.watch_vif(&stage.work.vif())?);
    let before = stage.outside.growth();
    stage.work.give(Order::Upload { to, bytes: u64::MAX })?;
    let is_new = |growth: &[(Duration, u64)]| growth.first() != before.first();
    until("an upload that goes well", PATIENCE, || {
        let growth = stage.outside.growth();
        let so_far = growth.last().map_or(0, |(_, bytes)| *bytes);
        Ok((is_new(&growth) && so_far >= ENOUGH).then_some(()))
    })?;
    let address = stage.work.spec.addresses.all()[family];
    let Changed { written, handled } = stage.netvm.put_for(address, &NO_RULES)?;
    // The guest knows nothing of rules, and tries again, later and later.
    let is_its = |seen: &Seen| seen.is_for_port(TCP, SINK);
    let tries = |seen: &Seen| !seen.left && is_its(seen) && seen.at > handled;
    vif.wait_for("packets of the upload after the rules", TRIES, PATIENCE, tries)?;
    let came = vif.end(tries)?.len();
    // Or it would go on under the next rules.
    stage.work.ask(Order::Abandon)?;
    let left = uplink.end(|seen| seen.left && is_its(seen))?;
    let late = left.iter().filter(|seen| seen.at > handled).count();
    ensure!(late == 0, "{late} packets left after the rules were handled, {came} came meanwhile");
    let last = left.last().map_or(written, |seen| seen.at);
    let sent: u64 = left.iter().map(|seen| seen.length as u64).sum();
    let growth = stage.outside.growth();
    let (read_last, read) = growth.last().copied().unwrap_or_default();
    let read_by = |at: Duration| {
        growth.iter().rev().find(|(when, _)| *when <= at).map_or(0, |(_, bytes)| *bytes)
    };
    Ok(format!(
        "IPv{}: rules handled {}, last packet out {} after they were written, 0 of {came} tries left \
         later ({} packets, {} kB before); the receiver went on reading for {} ms, {} kB from its own buffers",
        [4, 6][family],
        ms(handled, written),
        ms(last, written),
        left.len(),
        sent / 1000,
        read_last.saturating_sub(last).as_millis(),
        read.saturating_sub(read_by(last)) / 1000,
    ))
}

/// From one moment to a later one.
fn ms(to: Duration, from: Duration) -> String {
    format!("{:.1} ms", to.saturating_sub(from).as_secs_f64() * 1e3)
}
