//! Which virtual resolvers no rule of nftables leads elsewhere, whoever's rule it is.
//! Never changes anything. Whatever is not understood counts as a rule that leads them elsewhere.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use firewall_core::rules::resolve::VIRTUAL_RESOLVERS;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::errors::GateError;
use super::nft;

#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    rule: Option<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    family: String,
    #[serde(default)]
    expr: Vec<Map<String, Value>>,
}

impl Rule {
    fn statement(&self, word: &str) -> Option<&Value> {
        self.expr.iter().find_map(|statement| statement.get(word))
    }

    /// Whether a packet to this address may be led elsewhere. That nobody comes to the rule's chain,
    /// or that other conditions are never met, is not looked at.
    fn leads_elsewhere(&self, resolver: Ipv4Addr) -> bool {
        // `xt` is what iptables wrote.
        let is_nat =
            ["dnat", "redirect", "tproxy", "xt"].iter().any(|it| self.statement(it).is_some());
        let is_of_family = ["ip", "inet"].contains(&self.family.as_str());
        let mut conditions = self.expr.iter().filter_map(|statement| statement.get("match"));
        is_nat && is_of_family && conditions.all(|condition| may_be_met(condition, resolver))
    }
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

fn read(json: &[u8]) -> serde_json::Result<BTreeSet<Ipv4Addr>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let rules: Vec<Rule> = listing.nftables.into_iter().filter_map(|it| it.rule).collect();
    let is_left_alone = |it: &Ipv4Addr| !rules.iter().any(|rule| rule.leads_elsewhere(*it));
    Ok(VIRTUAL_RESOLVERS.into_iter().filter(is_left_alone).collect())
}

/// The virtual resolvers that no rule in force leads elsewhere.
pub async fn not_redirected() -> Result<BTreeSet<Ipv4Addr>, GateError> {
    // What iptables wrote in the old way, nft does not list.
    let legacy = tokio::fs::read_to_string("/proc/net/ip_tables_names").await.unwrap_or_default();
    if legacy.lines().any(|table| table == "nat") {
        return Ok(BTreeSet::new());
    }
    Ok(read(&nft::list_all().await?)?)
}

#[cfg(test)]
mod tests {
    use super::{VIRTUAL_RESOLVERS, read};

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
        let check = |name: &str, family: &str, rules: &[&[&str]], left_alone: &[_]| {
            let rules = rules.iter().map(|expressions| {
                let expressions = expressions.join(", ");
                format!(r#", {{"rule": {{"family": "{family}", "expr": [{expressions}]}}}}"#)
            });
            let rules: String = rules.collect();
            let json = format!(r#"{{"nftables": [{{"metainfo": {{}}}}{rules}]}}"#);
            let found: Vec<_> = read(json.as_bytes()).expect("rules").into_iter().collect();
            assert_eq!(found, left_alone, "{name}");
        };
        let first = daddr("==", r#""10.139.1.1""#);
        let second = daddr("==", r#""10.139.1.2""#);
        check("no rules", "ip", &[], &[one, other]);
        check("Qubes' own", "ip", &[&[&first, PORT, TO], &[&second, PORT, TO]], &[]);
        check("only one", "ip", &[&[&first, PORT, TO]], &[other]);
        check("whatever is DNS", "ip", &[&[PORT, TO]], &[]);
        check("the same to itself", "inet", &[&[PORT, r#"{"redirect": {"port": 53}}"#]], &[]);
        check("of IPv6", "ip6", &[&[PORT, TO]], &[one, other]);
        check("by iptables", "ip", &[&[r#"{"xt": {"type": "target", "name": "DNAT"}}"#]], &[]);
        let web = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp",
            "field": "dport"}}, "right": 8080}}"#;
        check("of another port", "ip", &[&[web, TO]], &[one, other]);
        let v6 = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip6",
            "field": "daddr"}}, "right": "2001:db8::1"}}"#;
        check("for IPv6 in both families", "inet", &[&[v6, TO]], &[one, other]);
        check("no translation", "ip", &[&[&first, PORT, r#"{"accept": null}"#]], &[one, other]);
        check("to somebody else", "ip", &[&[&daddr("==", r#""192.0.2.1""#), TO]], &[one, other]);
        let set = daddr("==", r#"{"set": ["192.0.2.1", "10.139.1.2"]}"#);
        check("a set", "ip", &[&[&set, TO]], &[one]);
        check("a named set", "ip", &[&[&daddr("==", r#""@dns""#), TO]], &[]);
        let network = daddr("==", r#"{"prefix": {"addr": "10.139.1.0", "len": 24}}"#);
        check("a network", "ip", &[&[&network, TO]], &[]);
        check("all but", "ip", &[&[&daddr("!=", r#""192.0.2.1""#), TO]], &[]);
    }
}
