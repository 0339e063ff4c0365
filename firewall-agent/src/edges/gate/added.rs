//! Rules that others added to the agent's tables: which they are, their texts, and what their places
//! make of them.
//! Never changes one, and never says what a rule with a condition does to a packet.

use std::collections::BTreeMap;

use firewall_core::told::added::{AddedRule, Warning};

use super::listed::Listed;
use super::listing::{Rule, Says};
use super::rules::{FORWARD, GATE, STRICT, UPLINKS, USERS};
use super::table::Table;

/// What `nft -a` prints in front of the number of a rule, a chain or a set.
const NUMBERED: &str = " # handle ";

/// Whether there is any rule of others.
pub(super) fn is_any(listed: &Listed) -> bool {
    listed.rules.iter().any(|rule| rule.seal().is_none())
}

/// Rules of others, chain by chain in their order. The text is what `nft -s -a list table` prints.
pub(super) fn rules(wanted: &Table, listed: &Listed, text: &str) -> Vec<AddedRule> {
    let texts = texts(text);
    let chains = listed.chains.iter();
    chains.flat_map(|chain| of_chain(wanted, listed, &chain.name, &texts)).collect()
}

fn of_chain(
    wanted: &Table,
    listed: &Listed,
    chain: &str,
    texts: &BTreeMap<u64, String>,
) -> Vec<AddedRule> {
    let Table { family, name, .. } = wanted;
    let ours = wanted.chains.iter().find(|it| it.name == chain).map(|it| it.first.len());
    let (mut behind, mut is_over, mut added) = (0, false, Vec::new());
    for rule in listed.rules.iter().filter(|rule| rule.chain == chain) {
        let says_all = !rule.has_condition();
        if rule.seal().is_some() {
            behind += 1;
            is_over |= says_all && rule.says() == Says::Denies;
            continue;
        }
        // What is asked about here had no permit: `qubes-forward` is jumped to behind the rule of
        // `forward` that looks for it.
        let is_late = chain == USERS || (chain == FORWARD && ours.is_some_and(|it| behind >= it));
        let is_gate = *name == STRICT || *name == GATE && (chain == USERS || chain == FORWARD);
        added.push(AddedRule {
            table: format!("{family} {name}"),
            chain: chain.to_owned(),
            text: texts.get(&rule.handle).cloned().unwrap_or(format!("handle {}", rule.handle)),
            warning: match is_over {
                true => Some(Warning::NeverReached),
                false if *name == GATE && chain == UPLINKS => leaves_elsewhere(rule),
                false if is_gate => warning(listed, rule, is_late),
                false => None,
            },
        });
        is_over |= says_all
            && match rule.says() {
                Says::Accepts | Says::Denies | Says::Leaves => true,
                Says::Jumps | Says::Nothing => false,
            };
    }
    added
}

/// What is to be said of a rule in a chain of the gate that packets reach; if it is late, behind what
/// accepts by the permit.
fn warning(listed: &Listed, rule: &Rule, is_late: bool) -> Option<Warning> {
    match rule.says() {
        Says::Denies => is_late.then_some(Warning::SeesOnlyDenied),
        Says::Accepts | Says::Jumps => listed.opens(rule).then_some(Warning::OpensAll),
        Says::Leaves | Says::Nothing => None,
    }
}

/// What is to be said of a rule in the chain that asks by which link a packet leaves.
fn leaves_elsewhere(rule: &Rule) -> Option<Warning> {
    match rule.says() {
        Says::Accepts | Says::Jumps | Says::Leaves => Some(Warning::LeavesElsewhere),
        Says::Denies | Says::Nothing => None,
    }
}

/// Texts of rules by their numbers. A rule with a long list may have several lines.
fn texts(text: &str) -> BTreeMap<u64, String> {
    let (mut texts, mut begun) = (BTreeMap::new(), String::new());
    for line in text.lines().map(str::trim) {
        let (words, number) = match line.rsplit_once(NUMBERED) {
            Some((words, number)) => (words, number.parse().ok()),
            None => (line, None),
        };
        let is_other = words.ends_with('{') && number.is_some();
        if is_other || words == "}" || words.ends_with(';') {
            begun.clear();
            continue;
        }
        if !begun.is_empty() {
            begun.push(' ');
        }
        begun.push_str(words);
        if let Some(number) = number {
            texts.insert(number, std::mem::take(&mut begun));
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use firewall_core::told::added::Warning;

    use super::super::listed::Listed;
    use super::super::rules::{FAMILIES, gate, nat};
    use super::super::table::Table;
    use super::{is_any, rules, texts};

    const SEALED: &str = "OURS";
    const VIFS: &str =
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "vif*"}}"#;
    const VIF: &str =
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "vif12.0"}}"#;
    const FROM: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip",
        "field": "saddr"}}, "right": "10.137.0.12"}}"#;
    const LIMIT: &str = r#"{"limit": {"rate": 1, "burst": 5, "per": "second"}}"#;
    const COUNTER: &str = r#"{"counter": {"packets": 0, "bytes": 0}}"#;
    const ACCEPT: &str = r#"{"accept": null}"#;
    const DROP: &str = r#"{"drop": null}"#;
    const RETURN: &str = r#"{"return": null}"#;
    const REJECT: &str = r#"{"reject": {"type": "icmp", "expr": "admin-prohibited"}}"#;
    const TO_MINE: &str = r#"{"jump": {"target": "mine"}}"#;

    /// A table as `nft -j` lists it: rules of a chain, with numbers from 10 on.
    fn listed(chains: &[(&str, &[&[&str]])]) -> Listed {
        let mut objects = vec![r#"{"table": {"name": "it"}}"#.to_owned()];
        let mut handle = 10;
        for (chain, rules) in chains {
            objects.push(format!(
                r#"{{"chain": {{"family": "ip", "table": "it", "name": "{chain}"}}}}"#
            ));
            for rule in *rules {
                let ours =
                    if *rule == [SEALED] { r#""comment": "firewall-agent 01234567","# } else { "" };
                let expressions = if ours.is_empty() { rule.join(", ") } else { String::new() };
                objects.push(format!(
                    r#"{{"rule": {{"chain": "{chain}", "handle": {handle}, {ours} "expr": [{expressions}]}}}}"#
                ));
                handle += 1;
            }
        }
        let json = format!(r#"{{"nftables": [{}]}}"#, objects.join(", "));
        Listed::parse(json.as_bytes()).expect("a table")
    }

    fn warnings(wanted: &Table, chains: &[(&str, &[&[&str]])]) -> Vec<Option<Warning>> {
        rules(wanted, &listed(chains), "").into_iter().map(|rule| rule.warning).collect()
    }

    #[test]
    fn a_rule_that_does_not_do_what_it_seems_to_is_warned_of() {
        let gate = gate(FAMILIES[0], "vif*", None);
        let our = [SEALED];
        let check = |name: &str, chain: &str, mine: &[&[&str]], expected: &[Option<Warning>]| {
            // Behind our rules, where the agent sees to it that they are.
            let ours = gate.chains.iter().find(|it| it.name == chain).expect("a chain").first.len();
            let all: Vec<&[&str]> =
                std::iter::repeat_n(&our[..], ours).chain(mine.iter().copied()).collect();
            let last: &[&[&str]] = &[&[ACCEPT]];
            assert_eq!(
                warnings(&gate, &[(chain, &all), ("mine", last)]),
                [expected, &[None]].concat(),
                "{name} in {chain}"
            );
        };
        let (never, late, opens) =
            (Some(Warning::NeverReached), Some(Warning::SeesOnlyDenied), Some(Warning::OpensAll));
        for chain in ["forward", "qubes-forward"] {
            check("nothing", chain, &[], &[]);
            check("one client", chain, &[&[FROM, ACCEPT]], &[None]);
            check("one vif", chain, &[&[VIF, ACCEPT]], &[None]);
            check("some of all", chain, &[&[LIMIT, ACCEPT]], &[None]);
            check("a counter", chain, &[&[COUNTER]], &[None]);
            check("all vifs", chain, &[&[VIFS, COUNTER, ACCEPT]], &[opens]);
            check("all", chain, &[&[ACCEPT]], &[opens]);
            check("all, elsewhere", chain, &[&[TO_MINE]], &[opens]);
            check("one client, elsewhere", chain, &[&[FROM, TO_MINE]], &[None]);
            check("what is new", chain, &[&[r#"{"vmap": {}}"#]], &[None]);
            check("a drop", chain, &[&[FROM, DROP]], &[late]);
            check("a reject", chain, &[&[FROM, COUNTER, REJECT]], &[late]);
            check("a return of some", chain, &[&[FROM, RETURN]], &[None]);
            check("behind an accept", chain, &[&[ACCEPT], &[FROM, ACCEPT]], &[opens, never]);
            check("behind a drop", chain, &[&[DROP], &[FROM, ACCEPT]], &[late, never]);
            check("behind a return", chain, &[&[RETURN], &[FROM, DROP]], &[None, never]);
            check("behind that of some", chain, &[&[FROM, RETURN], &[FROM, ACCEPT]], &[None, None]);
            check("behind a counter", chain, &[&[COUNTER], &[FROM, ACCEPT]], &[None, None]);
        }
        // In front of our rules.
        let check = |chain: &str, expected: &[Option<Warning>]| {
            let all: [&[&str]; 2] = [&[FROM, DROP], &[SEALED]];
            assert_eq!(warnings(&gate, &[(chain, &all)]), expected, "in front in {chain}");
        };
        check("forward", &[None]);
        check("qubes-forward", &[late]);
        check("mine", &[None]);
        // Nothing of the gate's is asked about in the tables of mode standalone.
        let nat = nat("vif*", &[]);
        assert_eq!(warnings(&nat, &[("forward", &[&[FROM, DROP], &[ACCEPT]])]), [None, None]);
        assert!(!is_any(&listed(&[("forward", &[&[SEALED]])])));
        assert!(is_any(&listed(&[("mine", &[&[ACCEPT]])])));
    }

    #[test]
    fn a_rule_is_told_in_the_words_of_nft() {
        let text = "table ip qubes-firewall { # handle 7
\tcomment \"a table\"
\tset mine { # handle 9
\t\ttype ipv4_addr
\t\telements = { 192.0.2.1,
\t\t\t     192.0.2.2 }
\t}

\tchain forward { # handle 1
\t\ttype filter hook forward priority filter; policy drop;
\t\t@ll,0,32 0xe514546 accept comment \"ours; firewall-agent 01234567\" # handle 4
\t\tip saddr 10.137.0.12 drop comment \"as # handle 99 says\" # handle 12
\t\tip daddr { 192.0.2.1,
\t\t\t   192.0.2.2 } accept # handle 13
\t}
}
";
        let texts = texts(text);
        let of = |number| texts.get(&number).map(String::as_str);
        assert_eq!(of(12), Some("ip saddr 10.137.0.12 drop comment \"as # handle 99 says\""));
        assert_eq!(of(13), Some("ip daddr { 192.0.2.1, 192.0.2.2 } accept"));
        assert_eq!(texts.len(), 3, "{texts:?}");
    }
}
