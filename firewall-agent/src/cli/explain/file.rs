//! `explain --rules`: what a file of rules says about a packet.
//! Never asks the agent or the kernel.

use std::path::Path;

use anyhow::{Context as _, Result};
use firewall_common::policy::decide;
use firewall_core::rules::check::{self, PolicyTables};
use firewall_core::rules::resolve::{self, Surroundings};
use firewall_core::rules::{Family, compile};
use firewall_core::told::explanation::{Explained, Explanation, Judgement};
use firewall_core::told::status::State;
use firewall_core::told::tried::{is_judged_by_rules, number, tried};

use super::arguments::Explain;
use super::subject::{Subject, subjects};
use super::whole::whole;
use crate::edges::sources::rule_files;

/// What a file of rules says.
pub(super) fn by_file(arguments: &Explain, file: &Path) -> Result<Vec<Explained>> {
    let by_name = || file.file_name()?.to_str()?.parse().ok();
    let from = arguments.from.as_ref().map(|from| from.address(None, None));
    let from = from.transpose().map_err(anyhow::Error::msg)?.or_else(by_name);
    let subjects = subjects(arguments, from, None)?;
    let text =
        rule_files::read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
    let each = subjects.iter().map(|subject| {
        let explanation = of_text(subject, &text).with_context(|| {
            let file = file.display();
            format!("{file} blocks its client; `firewall-agent check {file}` says more")
        })?;
        let without = format!("not asked: by the file {} alone", file.display());
        Ok(whole(subject, Some(explanation), None, Err(without.clone()), &Err(without)))
    });
    each.collect()
}

fn of_text(subject: &Subject, text: &str) -> Result<Explanation> {
    let client = subject.client;
    let ruleset = rule_files::ruleset(client, text)?;
    // Names and DNS servers are the netvm's to know.
    let resolved = resolve::resolve(Family::from(client), &ruleset, &Surroundings::default());
    let policy = check::prove(&resolved, compile::compile(&resolved)?)?;
    let decision = decide(&PolicyTables::new(policy.policy()), 0, &subject.frame);
    let judgement = Judgement::from(&decision);
    let packet = subject.packet().filter(|_| is_judged_by_rules(decision.reason));
    let tried = packet.map(|packet| tried(&ruleset, &resolved, &packet.packet()));
    Ok(Explanation {
        client,
        vif: None,
        vif_index: None,
        state: State::Absent,
        problem: None,
        settling: false,
        guards_neighbours: false,
        rule: number(Some(&ruleset), &judgement),
        judgement,
        tried: tried.unwrap_or_default(),
        rules: ruleset.rules.len(),
        default: Some(ruleset.default),
        mode: None,
        added_rules: 0,
        lost: None,
        to_client: false,
        uplinks: None,
        redirected_to: None,
        gateway: None,
    })
}
