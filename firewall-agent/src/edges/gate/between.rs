//! Which chains of others packets of clients come by, as nftables lists them.
//! Never says what a chain does.

use firewall_core::told::passage::BaseChain;

use super::errors::GateError;
use super::listing::{Chain, chains};
use super::rules::{GATE, NAT};

/// Hooks on the way of a packet that is forwarded, in the order in which it comes by.
const HOOKS: [&str; 3] = ["prerouting", "forward", "postrouting"];

/// The chains of others among these that packets of clients come by, in that order.
pub(super) fn in_order(chains: Vec<Chain>) -> Vec<BaseChain> {
    let mut found: Vec<(usize, BaseChain)> = Vec::new();
    for chain in chains {
        let Chain { family, table, name, hook: Some(hook), prio: Some(priority), .. } = chain
        else {
            continue;
        };
        let is_own = [GATE, NAT].contains(&table.as_str());
        let place = HOOKS.iter().position(|it| *it == hook);
        let Some(place) = place.filter(|_| !is_own && family != "bridge") else {
            continue;
        };
        found.push((
            place,
            BaseChain { hook, priority, table: format!("{family} {table}"), chain: name },
        ));
    }
    found.sort_by(|(place, chain), (other_place, other)| {
        (place, chain.priority, chain).cmp(&(other_place, other.priority, other))
    });
    found.into_iter().map(|(_, chain)| chain).collect()
}

/// The base chains of others that packets of clients come by, in that order.
pub async fn between() -> Result<Vec<BaseChain>, GateError> {
    Ok(in_order(chains().await?))
}

#[cfg(test)]
mod tests {
    use super::super::listing::chains_in;
    use super::in_order;

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
        let chains = in_order(chains_in(json.as_bytes()).expect("chains"));
        assert_eq!(
            chains.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "prerouting, priority -150: table ip others, chain c",
                "forward, priority -1: table inet others, chain b",
            ]
        );
    }
}
