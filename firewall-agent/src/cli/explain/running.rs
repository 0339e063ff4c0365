//! What the running agent and the kernel say about packets, side by side.
//! Never decides who is right: the kernel decides about packets.

use anyhow::{Result, ensure};
use firewall_core::connection::Flow;
use firewall_core::told::explanation::{Explained, Explanation};
use firewall_core::told::status::Status;

use super::arguments::Explain;
use super::kernel::{behind_gate, by_kernel, flows, open_families, vifs_of};
use super::subject::{Subject, subjects};
use super::target::Host;
use super::whole::whole;
use crate::cli::text;
use crate::edges::control::Request;

/// The agent and the kernel are asked one after the other, while rules may change.
const ATTEMPTS: u32 = 3;

/// Asks both, for every packet and each vif that leads to its client.
pub(super) fn by_agent_and_kernel(arguments: &Explain) -> Result<Vec<Explained>> {
    let status: Result<Status, String> = arguments.ask.agent(&Request::Status)?;
    let (status, agent_problem) = match status {
        Ok(status) => (Some(status), None),
        Err(why) => (None, Some(why)),
    };
    let is_v4 = arguments.to.as_ref().and_then(|target| match target.host {
        Host::Address(address) => Some(address.is_ipv4()),
        Host::Name(_) => None,
    });
    let from = arguments.from.as_ref().map(|from| from.address(status.as_ref(), is_v4));
    let from = from.transpose().map_err(anyhow::Error::msg)?;
    let subjects = subjects(arguments, from, status.as_ref())?;
    if let (Some(status), Some(given)) = (&status, from) {
        let is_known = status.clients.iter().any(|client| client.address == given);
        ensure!(is_known, "{}; `firewall-agent show` lists all", text::nobody(status, given));
    }
    let flows = flows(&subjects);
    // A running agent looks at the gate itself.
    let gate = agent_problem.is_some().then(open_families);
    let mut all = Vec::new();
    for subject in &subjects {
        let mut explained = by_both(arguments, subject, agent_problem.as_deref(), &flows)?;
        for _ in 1..ATTEMPTS {
            if explained.iter().all(|it| it.agree != Some(false)) {
                break;
            }
            explained = by_both(arguments, subject, agent_problem.as_deref(), &flows)?;
        }
        all.extend(explained.into_iter().map(|it| behind_gate(it, gate.as_ref())));
    }
    Ok(all)
}

/// For each vif that leads to the client.
fn by_both(
    arguments: &Explain,
    subject: &Subject,
    agent_problem: Option<&str>,
    flows: &Result<Vec<Flow>, String>,
) -> Result<Vec<Explained>> {
    let pins = &arguments.ask.pins;
    let of_agent: Vec<Explanation> = match (agent_problem, subject.packet()) {
        (None, Some(packet)) => {
            let request = Request::Explain { client: subject.client, packet };
            let answer: Result<Vec<Explanation>, String> = arguments.ask.agent(&request)?;
            answer.unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if of_agent.is_empty() {
        let vifs = vifs_of(pins, subject.client);
        let vifs = if vifs.is_empty() { vec![None] } else { vifs.into_iter().map(Some).collect() };
        let each = vifs.into_iter().map(|vif| {
            let kernel = by_kernel(pins, vif, false, &subject.frame);
            whole(subject, None, agent_problem, kernel, flows)
        });
        return Ok(each.collect());
    }
    let each = of_agent.into_iter().map(|explanation| {
        let Explanation { vif_index, guards_neighbours, .. } = explanation;
        let kernel = by_kernel(pins, vif_index, guards_neighbours, &subject.frame);
        whole(subject, Some(explanation), agent_problem, kernel, flows)
    });
    Ok(each.collect())
}
