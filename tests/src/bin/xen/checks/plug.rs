//! Vifs that come while the qube behind them sends already.
//! Never stops sending for the firewall's sake.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use firewall_tests::packets::UDP;

use super::reach::{ACCEPTED, DENIED};
use crate::domain::PATIENCE;
use crate::order::{Answer, Order};
use crate::outside::{SERVER, now};
use crate::seen::Seen;
use crate::stage::Stage;

const TOKEN: &[u8] = b"as soon as there is a way";
const ROUNDS: usize = 2;

/// Has the second guest send all the time, to accepted ports and to denied ones.
fn pump(stage: &mut Stage) -> Result<()> {
    let ports = [ACCEPTED, DENIED];
    let to = SERVER.into_iter().flat_map(|server| ports.map(|port| SocketAddr::new(server, port)));
    stage.other()?.ask(Order::Pump { to: to.collect(), token: TOKEN.to_vec() }).map(drop)
}

fn left(seen: &Seen) -> bool {
    seen.left && seen.has(TOKEN)
}

/// Takes the vif away and plugs it in again, and waits until the guest uses it. Returns when `xl`
/// was asked for it.
fn replug(stage: &mut Stage) -> Result<Duration> {
    let guest = stage.other()?;
    guest.unplug()?;
    let begin = now();
    guest.plug()?;
    guest.configure()?;
    Ok(begin)
}

/// With an agent that does its work.
pub fn plug(stage: &mut Stage) -> Result<String> {
    pump(stage)?;
    let uplink = stage.watch_uplink()?;
    let mut waits = Vec::new();
    for _ in 0..ROUNDS {
        let begin = replug(stage)?;
        let name = stage.other()?.vif();
        let vif = stage.watch_vif(&name)?;
        let is_new = |seen: &Seen| left(seen) && seen.at > begin;
        uplink.wait_for("accepted packets of the new vif", 1, PATIENCE, is_new)?;
        let denied = |seen: &Seen| !seen.left && seen.is_for_port(UDP, DENIED);
        vif.wait_for("denied packets", 10, PATIENCE, denied)?;
        let new = uplink.so_far(is_new);
        waits.extend(new.first().map(|first| first.at.saturating_sub(begin).as_millis()));
        let agent = stage.netvm.status()?;
        ensure!(agent.vifs.iter().any(|it| it.name == name), "the agent does not know {name}");
    }
    let sent = stage.other()?.ask(Order::StopPump)?;
    let Answer::Number(sent) = sent else { anyhow::bail!("{sent:?} were sent") };
    let all = uplink.end(left)?;
    let denied = all.iter().filter(|seen| seen.is_for_port(UDP, DENIED)).count();
    ensure!(denied == 0, "{denied} denied packets left");
    Ok(format!(
        "plugged in {ROUNDS} times under traffic of {sent} datagrams, half of them denied: {} accepted \
         ones left, the first {waits:?} ms after `xl network-attach` began; 0 denied ones",
        all.len()
    ))
}

/// With an agent that is held while the vif comes.
pub fn held(stage: &mut Stage) -> Result<String> {
    pump(stage)?;
    let uplink = stage.watch_uplink()?;
    stage.netvm.signal(Signal::SIGSTOP)?;
    let outcome = unseen(stage);
    stage.netvm.signal(Signal::SIGCONT)?;
    let (begin, came) = outcome?;
    let end = now();
    let is_new = |seen: &Seen| left(seen) && seen.at > begin;
    uplink.wait_for("accepted packets once the agent goes on", 10, PATIENCE, is_new)?;
    stage.other()?.ask(Order::StopPump)?;
    let all = uplink.end(is_new)?;
    let early = all.iter().filter(|seen| seen.at < end).count();
    ensure!(early == 0, "{early} packets left while the agent was held");
    let denied = all.iter().filter(|seen| seen.is_for_port(UDP, DENIED)).count();
    ensure!(denied == 0, "{denied} denied packets left");
    let first = all.first().map_or(0, |first| first.at.saturating_sub(end).as_millis());
    Ok(format!(
        "while the agent was stopped, {came} datagrams came by the new vif and 0 left; the first \
         accepted one {first} ms after it went on"
    ))
}

/// A vif that no agent sees; returns when it began, and how many datagrams came by it.
fn unseen(stage: &mut Stage) -> Result<(Duration, usize)> {
    let begin = replug(stage)?;
    let name = stage.other()?.vif();
    let vif = stage.watch_vif(&name)?;
    let came = vif.wait_for("datagrams", 200, PATIENCE, |it| !it.left && it.has(TOKEN))?;
    Ok((begin, came.len()))
}
