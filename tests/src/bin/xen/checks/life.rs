//! What outlives an agent, and what does not outlive a qube.
//! Never stops an agent in an orderly way.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};

use firewall_agent::edges::conntrack::{self, Wanted};
use firewall_tests::packets::TCP;

use super::reach::{ACCEPTED, DENIED, is_alive, rules_hold};
use crate::domain::PATIENCE;
use crate::order::{How, Order};
use crate::outside::SERVER;
use crate::stage::{NO_RULES, PROHIBITED, RULES, Stage};
use crate::wait::until;

/// SIGKILL, and another agent.
pub fn killed(stage: &mut Stage) -> Result<String> {
    let outcome = killed_and_replaced(stage);
    if !stage.netvm.has_agent() {
        stage.netvm.start_agent()?;
    }
    outcome
}

fn killed_and_replaced(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    stage.work.ask(Order::Open { to: SocketAddr::new(SERVER[0], ACCEPTED) })?;
    ensure!(is_alive(stage)?, "the connection does not work at first");
    let uplink = stage.watch_uplink()?;
    stage.netvm.kill_agent()?;
    ensure!(stage.netvm.status().is_err(), "somebody answers for the killed agent");
    for family in [0, 1] {
        rules_hold(stage, family)?;
    }
    ensure!(is_alive(stage)?, "the connection ended with the agent");
    // Nobody reads it yet.
    for address in stage.work.spec.addresses.all() {
        stage.netvm.write(address, &NO_RULES);
    }
    ensure!(is_alive(stage)?, "rules that nobody read changed something");
    stage.netvm.start_agent()?;
    stage.netvm.wait_for(&stage.work)?;
    let flows = || Ok(flows_of(stage.work.spec.addresses.v4.into())?.is_empty().then_some(()));
    until("the end of what new rules forbid", PATIENCE, flows)?;
    ensure!(
        !is_alive(stage)?,
        "the connection goes on though the new agent read rules that forbid it"
    );
    let denied = uplink.end(|seen| seen.left && seen.is_for_port(TCP, DENIED))?.len();
    ensure!(denied == 0, "{denied} denied packets left");
    stage.put(&RULES)?;
    for family in [0, 1] {
        rules_hold(stage, family)?;
    }
    Ok("without an agent, an open connection and a new one went on, denied ones were rejected and 0 \
        packets of them left; the new agent ended what rules written meanwhile forbid"
        .to_owned())
}

/// A qube that ends, and comes again with the same addresses and other rules.
pub fn restart(stage: &mut Stage) -> Result<String> {
    stage.put(&RULES)?;
    let addresses = stage.work.spec.addresses.all();
    let address: IpAddr = stage.work.spec.addresses.v4.into();
    stage.work.ask(Order::Open { to: SocketAddr::new(SERVER[0], ACCEPTED) })?;
    ensure!(is_alive(stage)?, "the connection does not work at first");
    let before = flows_of(address)?.len();
    ensure!(before > 0, "the kernel knows no connection of {address}");
    let old = stage.work.vif();
    let mut between = 0;
    stage.restart(|netvm| {
        until("the agent's word that the vif is gone", PATIENCE, || {
            let status = netvm.status()?;
            Ok((!status.vifs.iter().any(|it| it.name == old)).then_some(()))
        })?;
        between = flows_of(address)?.len();
        addresses.iter().for_each(|address| netvm.write(*address, &NO_RULES));
        Ok(())
    })?;
    let new = stage.work.vif();
    until("the end of connections from before", PATIENCE, || {
        Ok(flows_of(address)?.is_empty().then_some(()))
    })?;
    for family in [0, 1] {
        let answer = stage.probe(How::Tcp, SERVER[family], ACCEPTED)?;
        ensure!(answer == PROHIBITED[family], "TCP that rules deny meanwhile: {answer:?}");
    }
    stage.put(&RULES)?;
    for family in [0, 1] {
        rules_hold(stage, family)?;
    }
    Ok(format!(
        "{before} connections on {old}, {between} still known when it was gone, 0 once {new} was there \
         with rules that deny them; there, what was accepted is rejected, and accepted after another change"
    ))
}

/// What a client has open, as the kernel knows it.
fn flows_of(client: IpAddr) -> Result<Vec<u16>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let flows = runtime.block_on(conntrack::flows(Wanted::From([client].into())))?;
    Ok(flows.iter().map(|flow| flow.packet.port).collect())
}
