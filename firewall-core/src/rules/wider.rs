//! Whether a policy accepts all that another one accepts: then nothing that a client has open has
//! to end when the one replaces the other.
//! Never says so of policies that were not compared everywhere; and asks the evaluator that the
//! kernel runs.

use std::collections::BTreeSet;

use firewall_common::policy::Tables as _;

use super::Action;
use super::check::{PROTOCOLS, PolicyTables};
use super::compile::Policy;
use super::resolve::to_address;

/// Most ranges of addresses that are compared, and most cells in them: it takes some milliseconds.
/// To end connections in vain takes longer, but delays no packet.
const MAX_RANGES: usize = 5_000;
const MAX_CELLS: usize = 50_000;

/// Whether `now` accepts every packet that `before` accepts. `false` says nothing.
pub fn accepts_all_of(now: &Policy, before: &Policy) -> bool {
    let both = now.prefixes.iter().chain(&before.prefixes);
    let edges = both.flat_map(|(prefix, _)| [Some(prefix.first()), prefix.last().checked_add(1)]);
    // Between two of these, no policy tells one address from another.
    let ranges: BTreeSet<u128> = edges.flatten().chain([0]).collect();
    if ranges.len() > MAX_RANGES {
        return false;
    }
    let (now, before) = (PolicyTables::new(now), PolicyTables::new(before));
    let mut compared = BTreeSet::new();
    let mut cells = 0;
    for first in ranges {
        let destination = to_address(first);
        let classes = (now.class_of(0, &destination), before.class_of(0, &destination));
        if !compared.insert(classes) {
            continue;
        }
        for protocol in PROTOCOLS {
            let mut ports = now.edges(&destination, protocol);
            ports.append(&mut before.edges(&destination, protocol));
            cells += ports.len();
            let accepts = |tables: &PolicyTables, port| {
                let answer = tables.ask(destination, protocol, port);
                answer.is_some_and(|(_, action)| action == Action::Accept)
            };
            let is_denied = |port: &u16| accepts(&before, *port) && !accepts(&now, *port);
            if cells > MAX_CELLS || ports.iter().any(is_denied) {
                return false;
            }
        }
    }
    true
}
