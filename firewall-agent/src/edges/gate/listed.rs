//! A table as it is in force, and whether what clients send gets through it.
//! Never changes one. Whatever is not understood counts as a way through.

use firewall_core::uplinks::Uplinks;
use serde_json::Value;

use super::errors::GateError;
use super::listing::{Chain, Listing, Rule};
use super::nft;
use super::rules::{FAMILIES, GATE, STRICT, UPLINKS};

/// Chains that lead to chains are followed no further.
const DEEPEST: usize = 8;

/// A table as it is in force.
#[derive(Debug)]
pub(super) struct Listed {
    pub is_asleep: bool,
    pub chains: Vec<Chain>,
    pub rules: Vec<Rule>,
}

/// What becomes of a packet that fits no condition of a rule or chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Denied,
    Passed,
    Continued,
    Returned,
}

impl Listed {
    /// Reads what `nft -j list table` prints.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        let listing: Listing = serde_json::from_slice(json)?;
        let mut table = Self { is_asleep: false, chains: Vec::new(), rules: Vec::new() };
        for object in listing.nftables {
            // `dormant`, which some versions of nft do not write out.
            table.is_asleep |= object.table.is_some_and(|table| table.get("flags").is_some());
            table.chains.extend(object.chain);
            table.rules.extend(object.rule);
        }
        Ok(table)
    }

    /// The table with the agent's rules alone.
    pub fn own(&self) -> Self {
        let own = self.rules.iter().filter(|rule| rule.seal().is_some());
        Self {
            is_asleep: self.is_asleep,
            chains: self.chains.clone(),
            rules: own.cloned().collect(),
        }
    }

    /// Whether the table lets nothing pass at a hook but what a rule with a condition takes out:
    /// packets with a permit, packets of others, answers.
    pub fn is_closed(&self, hook: &str) -> bool {
        let mut hooked = self.chains.iter().filter(|chain| {
            chain.hook.as_deref() == Some(hook) && chain.kind.as_deref() == Some("filter")
        });
        !self.is_asleep
            && hooked.any(|chain| match self.end(&chain.name, 0) {
                End::Denied => true,
                End::Passed => false,
                End::Continued | End::Returned => chain.policy.as_deref() == Some("drop"),
            })
    }

    /// The only links by which clients' packets may leave; `None` if any will do. Names that are not
    /// understood are none.
    pub fn uplinks(&self) -> Option<Uplinks> {
        let is_it = |rule: &&Rule| rule.chain == UPLINKS && rule.seal().is_some();
        let rule = self.rules.iter().find(is_it).filter(|_| !self.is_asleep)?;
        let condition = rule.expr.first().and_then(|first| first.get("match"));
        let condition = condition
            .filter(|it| it.pointer("/left/meta/key").and_then(Value::as_str) == Some("oifname"));
        let right = condition.and_then(|condition| condition.get("right"));
        let names = match right.and_then(|right| right.get("set")).and_then(Value::as_array) {
            Some(set) => set.iter().collect(),
            None => Vec::from_iter(right),
        };
        let names = names.into_iter().filter_map(Value::as_str);
        Some(Uplinks(names.filter_map(|name| name.parse().ok()).collect()))
    }

    /// Whether a rule lets pass whatever comes from any client.
    pub fn opens(&self, rule: &Rule) -> bool {
        self.end_of_rule(rule, 0) == End::Passed
    }

    fn end(&self, chain: &str, depth: usize) -> End {
        if depth > DEEPEST {
            return End::Passed;
        }
        for rule in self.rules.iter().filter(|rule| rule.chain == chain) {
            match self.end_of_rule(rule, depth) {
                End::Continued => {}
                End::Returned => return End::Continued,
                end @ (End::Denied | End::Passed) => return end,
            }
        }
        End::Continued
    }

    /// A condition on the vif alone takes every client's packets out, so for an accept it
    /// counts as none.
    fn end_of_rule(&self, rule: &Rule, depth: usize) -> End {
        let (mut is_conditional, mut is_for_few) = (false, false);
        for (word, value) in rule.expr.iter().flatten() {
            let end = match word.as_str() {
                "counter" | "log" | "mangle" | "notrack" | "set" | "ct helper" | "ct timeout" => {
                    continue;
                }
                "match" => {
                    is_conditional = true;
                    is_for_few |= !is_about_vifs(value);
                    continue;
                }
                "limit" | "quota" | "ct count" => {
                    (is_conditional, is_for_few) = (true, true);
                    continue;
                }
                "drop" | "reject" => End::Denied,
                "return" => End::Returned,
                "jump" => self.end_behind(value, depth),
                "goto" => match self.end_behind(value, depth) {
                    End::Denied => End::Denied,
                    End::Passed | End::Continued | End::Returned => End::Passed,
                },
                // `accept`, and what may do the same: `queue`, `vmap`, what is new.
                _ => End::Passed,
            };
            return match end {
                End::Denied if is_conditional => End::Continued,
                End::Passed | End::Returned if is_for_few => End::Continued,
                end => end,
            };
        }
        End::Continued
    }

    fn end_behind(&self, jump: &Value, depth: usize) -> End {
        let target = jump.get("target").and_then(Value::as_str);
        target.map_or(End::Passed, |chain| self.end(chain, depth + 1))
    }
}

/// `iifname "vif*"`, or another pattern.
fn is_about_vifs(condition: &Value) -> bool {
    let key = condition.pointer("/left/meta/key").and_then(Value::as_str);
    let is_equal = condition.get("op").and_then(Value::as_str) != Some("!=");
    let right = condition.get("right").and_then(Value::as_str);
    key == Some("iifname") && is_equal && right.is_some_and(|name| name.ends_with('*'))
}

/// A table as it is in force; `None` if there is none.
pub(super) async fn list(family: &str, name: &str) -> Result<Option<Listed>, GateError> {
    let json = nft::list(family, name).await?;
    Ok(json.map(|json| Listed::parse(&json)).transpose()?)
}

/// The families (`ip`, `ip6`) in which nothing of this firewall stops what clients send; none, if
/// the gate is closed. In a Whonix gateway, `inet` is one more: what enters the gateway.
pub async fn open_families(is_gateway: bool) -> Result<Vec<&'static str>, GateError> {
    let mut open = Vec::new();
    for family in FAMILIES {
        let table = list(family.name, GATE).await?;
        if !table.is_some_and(|table| table.is_closed("forward")) {
            open.push(family.name);
        }
    }
    let entering = if is_gateway { list("inet", STRICT).await? } else { None };
    if is_gateway && !entering.is_some_and(|table| table.is_closed("prerouting")) {
        open.push("inet");
    }
    Ok(open)
}

/// Whether the gate of a Whonix gateway is there, closed or not.
pub async fn is_strict() -> Result<bool, GateError> {
    Ok(list("inet", STRICT).await?.is_some())
}

/// The only links by which clients' packets may leave as it is in force, in both families; `None` if
/// any will do.
pub async fn uplinks_in_force() -> Result<Option<Uplinks>, GateError> {
    let mut uplinks = None;
    for family in FAMILIES {
        let found = list(family.name, GATE).await?.and_then(|table| table.uplinks());
        uplinks = Uplinks::both(uplinks.as_ref(), found.as_ref());
    }
    Ok(uplinks)
}

#[cfg(test)]
mod tests {
    use super::Listed;

    /// A table with a chain `forward` of these rules, and one `other`, as `nft -j` lists it.
    fn table(policy: &str, flags: &str, rules: &[(&str, &str)]) -> Listed {
        let rules: Vec<String> = rules
            .iter()
            .zip(3..)
            .map(|((chain, expressions), handle)| {
                format!(
                    r#", {{"rule": {{"family": "ip", "table": "qubes-firewall", "chain": "{chain}",
                    "handle": {handle}, "expr": [{expressions}]}}}}"#
                )
            })
            .collect();
        let json = format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6", "json_schema_version": 1}}}},
            {{"table": {{"family": "ip", "name": "qubes-firewall", "handle": 1 {flags}}}}},
            {{"chain": {{"family": "ip", "table": "qubes-firewall", "name": "forward", "handle": 1,
            "type": "filter", "hook": "forward", "prio": 0, "policy": "{policy}"}}}},
            {{"chain": {{"family": "ip", "table": "qubes-firewall", "name": "other", "handle": 2}}}}
            {}]}}"#,
            rules.concat()
        );
        Listed::parse(json.as_bytes()).expect("a table")
    }

    const PERMITTED: &str = r#"{"match": {"op": "==",
        "left": {"payload": {"base": "ll", "offset": 0, "len": 32}}, "right": 240207174}}"#;
    const VIFS: &str =
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "vif*"}}"#;
    const NO_VIFS: &str =
        r#"{"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "vif*"}}"#;
    const ACCEPT: &str = r#"{"accept": null}"#;
    const DROP: &str = r#"{"drop": null}"#;
    const REJECT: &str = r#"{"reject": {"type": "icmp", "expr": "admin-prohibited"}}"#;
    const JUMP: &str = r#"{"jump": {"target": "other"}}"#;
    const GOTO: &str = r#"{"goto": {"target": "other"}}"#;
    const COUNTER: &str = r#"{"counter": {"packets": 0, "bytes": 0}}"#;
    const LIMIT: &str = r#"{"limit": {"rate": 1, "burst": 5, "per": "second"}}"#;

    #[test]
    fn a_chain_is_closed_if_nothing_gets_past_it_but_by_a_condition() {
        let check = |name: &str, policy: &str, rules: &[(&str, &[&str])], expected: bool| {
            let joined: Vec<(&str, String)> =
                rules.iter().map(|(chain, all)| (*chain, all.join(", "))).collect();
            let rules: Vec<(&str, &str)> =
                joined.iter().map(|(chain, all)| (*chain, all.as_str())).collect();
            assert_eq!(table(policy, "", &rules).is_closed("forward"), expected, "{name}");
            // A table that is asleep stops nothing.
            let asleep = table(policy, r#", "flags": "dormant""#, &rules);
            assert!(!asleep.is_closed("forward"), "{name}, asleep");
        };
        let (f, o) = ("forward", "other");
        check("no rules", "accept", &[], false);
        check("no rules, policy drop", "drop", &[], true);
        check("a bare gate", "drop", &[(f, &[NO_VIFS, ACCEPT]), (f, &[DROP])], true);
        check("by a rule alone", "accept", &[(f, &[NO_VIFS, ACCEPT]), (f, &[COUNTER, DROP])], true);
        let whole: [(&str, &[&str]); 5] = [
            (f, &[PERMITTED, ACCEPT]),
            (f, &[NO_VIFS, ACCEPT]),
            (f, &[JUMP]),
            (o, &[PERMITTED, ACCEPT]),
            (o, &[REJECT]),
        ];
        check("the gate", "accept", &whole, true);
        check("the gate without its last rule", "accept", &whole[..4], false);
        check("the same with a policy", "drop", &whole[..4], true);
        check("all is accepted first", "drop", &[(f, &[COUNTER, ACCEPT]), (f, &[DROP])], false);
        check("all vifs are accepted", "drop", &[(f, &[VIFS, ACCEPT]), (f, &[DROP])], false);
        check("some are", "drop", &[(f, &[VIFS, PERMITTED, ACCEPT]), (f, &[DROP])], true);
        check("a few a second", "drop", &[(f, &[LIMIT, ACCEPT]), (f, &[DROP])], true);
        check("some are dropped", "accept", &[(f, &[VIFS, DROP])], false);
        check("a few are dropped", "accept", &[(f, &[LIMIT, DROP])], false);
        check("behind a jump", "drop", &[(f, &[JUMP]), (f, &[DROP]), (o, &[ACCEPT])], false);
        check("for some behind it", "drop", &[(f, &[PERMITTED, JUMP]), (o, &[ACCEPT])], true);
        check("a return", "accept", &[(f, &[r#"{"return": null}"#]), (f, &[DROP])], false);
        check(
            "the same behind a jump",
            "accept",
            &[(f, &[JUMP]), (f, &[DROP]), (o, &[r#"{"return": null}"#])],
            true,
        );
        check("gone elsewhere", "drop", &[(f, &[GOTO]), (f, &[DROP])], false);
        check("gone to a drop", "accept", &[(f, &[GOTO]), (o, &[DROP])], true);
        check("what is new", "drop", &[(f, &[r#"{"teleport": {}}"#])], false);
        check("round and round", "drop", &[(f, &[JUMP]), (o, &[JUMP])], false);
    }
}
