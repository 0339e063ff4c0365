//! The rules that are tried for a packet, as `explain` tells them.
//! Never decides: the evaluator does.

use firewall_common::packet::Packet;
use firewall_common::verdict::Reason;

use crate::rules::Ruleset;
use crate::rules::explain::{Trial, tries};
use crate::rules::resolve::ResolvedRuleset;
use crate::told::explanation::{DifferenceStatus, Judgement, TriedStatus};

/// Whether rules had a say in a verdict with this reason.
pub fn is_judged_by_rules(reason: Reason) -> bool {
    matches!(reason, Reason::Rule | Reason::Default)
}

/// The rules that are tried for a packet, in order.
pub fn tried(ruleset: &Ruleset, resolved: &ResolvedRuleset, packet: &Packet) -> Vec<TriedStatus> {
    let trials = tries(ruleset, resolved, packet).into_iter();
    let tried = trials.filter_map(|Trial { rule, differs }| {
        let rule = ruleset.rules.get(rule)?;
        let differs = differs.into_iter().map(|(aspect, why)| DifferenceStatus { aspect, why });
        Some(TriedStatus {
            number: rule.number,
            text: rule.text.clone(),
            differs: differs.collect(),
        })
    });
    tried.collect()
}

/// Key number of the rule that a judgement names; `None` if it names none, or none of this ruleset.
pub fn number(ruleset: Option<&Ruleset>, judgement: &Judgement) -> Option<u16> {
    let index = usize::try_from(judgement.rule_index?).ok()?;
    Some(ruleset?.rules.get(index)?.number)
}
