//! Which virtual resolvers no rule of nftables leads elsewhere, whoever's rule it is.
//! Never changes anything. Whatever is not understood counts as a rule that leads them elsewhere.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use serde_json::Value;

use super::errors::GateError;
use super::listed;
use super::listing::{Chain, Rule, chains};

/// What may lead a packet elsewhere; `xt` is what iptables wrote.
const TRANSLATING: [&str; 4] = ["dnat", "redirect", "tproxy", "xt"];

/// The families and names of tables that can lead packets of clients elsewhere: what does that can be
/// in a chain at this hook alone, or in one that such a chain jumps to
/// (`nft_nat_validate` in net/netfilter/nft_nat.c, and its like). All other tables need not be read,
/// however many rules they have.
fn translating(chains: &[Chain]) -> BTreeSet<(&str, &str)> {
    let is_of_family = |it: &&Chain| ["ip", "inet"].contains(&it.family.as_str());
    let of_hook = chains.iter().filter(|it| it.hook.as_deref() == Some("prerouting"));
    of_hook.filter(is_of_family).map(|it| (it.family.as_str(), it.table.as_str())).collect()
}

/// Whether a packet to this address may be led elsewhere by a rule. That nobody comes to the rule's
/// chain, or that other conditions are never met, is not looked at.
fn leads_elsewhere(rule: &Rule, resolver: Ipv4Addr) -> bool {
    let mut conditions = rule.expr.iter().filter_map(|statement| statement.get("match"));
    rule.words().any(|word| TRANSLATING.contains(&word))
        && conditions.all(|condition| may_be_met(condition, resolver))
}

/// Whether DNS to this address may meet a condition.
fn may_be_met(condition: &Value, resolver: Ipv4Addr) -> bool {
    let of_payload =
        |key: &str| condition.pointer(&format!("/left/payload/{key}")).and_then(Value::as_str);
    let is_equal = condition.get("op").and_then(Value::as_str) == Some("==");
    if of_payload("protocol") == Some("ip6") {
        return false;
    }
    let port = condition.get("right").and_then(Value::as_u64);
    if is_equal && of_payload("field") == Some("dport") && port.is_some_and(|port| port != 53) {
        return false;
    }
    let is_destination =
        of_payload("protocol") == Some("ip") && of_payload("field") == Some("daddr");
    let Some(right) = condition.get("right").filter(|_| is_destination && is_equal) else {
        return true;
    };
    let is_it = |value: &Value| {
        let address = value.as_str().and_then(|text| text.parse::<Ipv4Addr>().ok());
        address.is_none_or(|address| address == resolver)
    };
    match right.get("set").and_then(Value::as_array) {
        Some(set) => set.iter().any(is_it),
        None => is_it(right),
    }
}

/// The virtual resolvers that none of these rules leads elsewhere.
fn left_alone(rules: &[Rule]) -> BTreeSet<Ipv4Addr> {
    let is_left_alone = |it: &Ipv4Addr| !rules.iter().any(|rule| leads_elsewhere(rule, *it));
    VIRTUAL_RESOLVERS.into_iter().filter(is_left_alone).collect()
}

/// The virtual resolvers that no rule in force leads elsewhere.
pub(super) async fn not_redirected() -> Result<BTreeSet<Ipv4Addr>, GateError> {
    // What iptables wrote in the old way, nft does not list.
    let legacy = tokio::fs::read_to_string("/proc/net/ip_tables_names").await.unwrap_or_default();
    if legacy.lines().any(|table| table == "nat") {
        return Ok(BTreeSet::new());
    }
    let mut resolvers = BTreeSet::from(VIRTUAL_RESOLVERS);
    for (family, name) in translating(&chains().await?) {
        // One that is gone by now leads nothing anywhere.
        let rules = listed::list(family, name).await?.map(|table| table.rules);
        let left_alone = left_alone(&rules.unwrap_or_default());
        resolvers.retain(|resolver| left_alone.contains(resolver));
    }
    Ok(resolvers)
}

#[cfg(test)]
mod tests {
    use super::super::listed::Listed;
    use super::super::listing::chains_in;
    use super::{VIRTUAL_RESOLVERS, left_alone, translating};

    fn daddr(op: &str, right: &str) -> String {
        format!(
            r#"{{"match": {{"op": "{op}", "left": {{"payload": {{"protocol": "ip",
            "field": "daddr"}}}}, "right": {right}}}}}"#
        )
    }

    const TO: &str = r#"{"dnat": {"addr": "192.0.2.53"}}"#;
    const PORT: &str = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "udp",
        "field": "dport"}}, "right": 53}}"#;

    #[test]
    fn a_virtual_resolver_counts_as_redirected_if_any_rule_may_lead_it_elsewhere() {
        let [one, other] = VIRTUAL_RESOLVERS;
        let check = |name: &str, rules: &[&[&str]], expected: &[_]| {
            let rules = rules.iter().map(|expressions| {
                let expressions = expressions.join(", ");
                format!(r#", {{"rule": {{"chain": "c", "handle": 1, "expr": [{expressions}]}}}}"#)
            });
            let rules: String = rules.collect();
            let json = format!(r#"{{"nftables": [{{"metainfo": {{}}}}{rules}]}}"#);
            let listed = Listed::parse(json.as_bytes()).expect("rules");
            let found: Vec<_> = left_alone(&listed.rules).into_iter().collect();
            assert_eq!(found, expected, "{name}");
        };
        let first = daddr("==", r#""10.139.1.1""#);
        let second = daddr("==", r#""10.139.1.2""#);
        check("no rules", &[], &[one, other]);
        check("Qubes' own", &[&[&first, PORT, TO], &[&second, PORT, TO]], &[]);
        check("only one", &[&[&first, PORT, TO]], &[other]);
        check("whatever is DNS", &[&[PORT, TO]], &[]);
        check("the same to itself", &[&[PORT, r#"{"redirect": {"port": 53}}"#]], &[]);
        check("by iptables", &[&[r#"{"xt": {"type": "target", "name": "DNAT"}}"#]], &[]);
        let web = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp",
            "field": "dport"}}, "right": 8080}}"#;
        check("of another port", &[&[web, TO]], &[one, other]);
        let v6 = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip6",
            "field": "daddr"}}, "right": "2001:db8::1"}}"#;
        check("for IPv6 in both families", &[&[v6, TO]], &[one, other]);
        check("no translation", &[&[&first, PORT, r#"{"accept": null}"#]], &[one, other]);
        check("to somebody else", &[&[&daddr("==", r#""192.0.2.1""#), TO]], &[one, other]);
        let set = daddr("==", r#"{"set": ["192.0.2.1", "10.139.1.2"]}"#);
        check("a set", &[&[&set, TO]], &[one]);
        check("a named set", &[&[&daddr("==", r#""@dns""#), TO]], &[]);
        let network = daddr("==", r#"{"prefix": {"addr": "10.139.1.0", "len": 24}}"#);
        check("a network", &[&[&network, TO]], &[]);
        check("all but", &[&[&daddr("!=", r#""192.0.2.1""#), TO]], &[]);
    }

    #[test]
    fn only_tables_that_can_lead_a_packet_of_ipv4_elsewhere_are_read() {
        let chain = |family: &str, table: &str, hook: &str| {
            let hook = match hook {
                "" => String::new(),
                hook => format!(r#", "type": "nat", "hook": "{hook}", "prio": -100"#),
            };
            format!(
                r#", {{"chain": {{"family": "{family}", "table": "{table}", "name": "c"{hook}}}}}"#
            )
        };
        let chains = [
            chain("ip", "qubes", ""),
            chain("ip", "qubes", "prerouting"),
            chain("ip", "qubes", "postrouting"),
            chain("inet", "many", "forward"),
            chain("inet", "many", "input"),
            chain("inet", "mine", "prerouting"),
            chain("ip6", "other", "prerouting"),
            chain("bridge", "other", "prerouting"),
            chain("netdev", "other", "ingress"),
        ];
        let json = format!(r#"{{"nftables": [{{"metainfo": {{}}}}{}]}}"#, chains.concat());
        let chains = chains_in(json.as_bytes()).expect("chains");
        let tables: Vec<(&str, &str)> = translating(&chains).into_iter().collect();
        assert_eq!(tables, [("inet", "mine"), ("ip", "qubes")]);
    }
}
