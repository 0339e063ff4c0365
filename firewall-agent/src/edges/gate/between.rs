//! Which chains of others packets of clients come by, as nftables lists them.
//! Never says what a chain does.

use serde::Deserialize;

use super::errors::GateError;
use super::nft;
use super::rules::{GATE, NAT};

/// Hooks on the way of a packet that is forwarded, in the order in which it comes by.
const HOOKS: [&str; 3] = ["prerouting", "forward", "postrouting"];

#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    chain: Option<Chain>,
}

#[derive(Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    prio: Option<i32>,
}

fn read(json: &[u8]) -> serde_json::Result<Vec<String>> {
    let listing: Listing = serde_json::from_slice(json)?;
    let mut found: Vec<(usize, i32, String)> = Vec::new();
    for chain in listing.nftables.into_iter().filter_map(|object| object.chain) {
        let Chain { family, table, name, hook: Some(hook), prio: Some(priority) } = chain else {
            continue;
        };
        let is_own = [GATE, NAT].contains(&table.as_str());
        let place = HOOKS.iter().position(|it| *it == hook);
        let Some(place) = place.filter(|_| !is_own && family != "bridge") else {
            continue;
        };
        let text = format!("{hook}, priority {priority}: table {family} {table}, chain {name}");
        found.push((place, priority, text));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, text)| text).collect())
}

/// The base chains of others that packets of clients come by, in that order.
pub async fn between() -> Result<Vec<String>, GateError> {
    Ok(read(&nft::list_chains().await?)?)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn chains_of_others_are_told_in_the_order_in_which_packets_come_by() {
        let json = r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "ip", "table": "qubes-firewall", "name": "forward", "handle": 1,
             "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "others", "name": "a", "handle": 1}},
            {"chain": {"family": "inet", "table": "others", "name": "b", "handle": 2,
             "type": "filter", "hook": "forward", "prio": -1, "policy": "accept"}},
            {"chain": {"family": "ip", "table": "others", "name": "c", "handle": 3,
             "type": "filter", "hook": "prerouting", "prio": -150, "policy": "accept"}},
            {"chain": {"family": "ip", "table": "others", "name": "d", "handle": 4,
             "type": "filter", "hook": "output", "prio": 0, "policy": "accept"}}]}"#;
        assert_eq!(
            read(json.as_bytes()).expect("chains"),
            [
                "prerouting, priority -150: table ip others, chain c",
                "forward, priority -1: table inet others, chain b",
            ]
        );
    }
}
