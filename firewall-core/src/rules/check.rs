//! Translation check: a policy is compared with the ordered rules it was made from, on
//! representatives of every cell, before it may go live. It runs the evaluator that the
//! kernel runs.
//! Never trusts the compiler: it reads rules and tables, nothing in between.
//!
//! A cell is a range of addresses times a protocol times a range of ports, cut so finely
//! that rules and tables are both constant on it; one packet of it speaks for all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use firewall_common::abi::{
    ACTION_ACCEPT, Address, Class, Client, ClientKey, DEFAULT_RULE, Local, Segment, Span,
};
use firewall_common::packet::{Packet, Protocol};
use firewall_common::policy::{Tables, answer};
use serde::Serialize;
use thiserror::Error;

use super::compile::Policy;
use super::resolve::{Prefix, ResolvedRuleset, to_address};
use super::{Action, Service};

/// Bounds the time of a check: comparisons of one cell with one rule. What would need
/// more is checked on an even selection, and the figures say so.
const MAX_WORK: usize = 20_000_000;

/// All that policies tell apart.
pub(super) const PROTOCOLS: [Protocol; 4] =
    [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other];

/// A policy that passed the check. The only way to make one is to pass it.
#[derive(Clone, Debug)]
pub struct ProvedPolicy {
    policy: Arc<Policy>,
    proof: Proof,
}

impl ProvedPolicy {
    /// The policy that was proved.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Figures of the check that the policy passed.
    pub fn proof(&self) -> Proof {
        self.proof
    }
}

/// Figures of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Ranges of destination addresses on which rules and tables are constant.
    pub address_ranges: usize,
    /// How many address ranges were looked at.
    pub address_ranges_checked: usize,
    /// How many cells were compared in those address ranges.
    pub cells_checked: usize,
    /// Whether every cell was compared, not just an even selection.
    pub complete: bool,
}

/// A policy and its rules differ: the compiler is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "BUG: for {protocol:?} port or type {port} to {destination} \
     the rules say {expected}, the compiled policy {found}"
)]
pub struct Mismatch {
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
    expected: String,
    found: String,
}

/// Compares a policy with its rules. An error is a bug of the compiler.
pub fn prove(ruleset: &ResolvedRuleset, policy: Policy) -> Result<ProvedPolicy, Mismatch> {
    let tables = PolicyTables::new(&policy);
    let changes = changes(ruleset, &policy);
    let address_ranges = changes.len();
    let stride = stride(&changes);
    let mut proof = Proof { address_ranges, complete: stride == 1, ..Proof::default() };
    let mut covering = Covering::new();
    for (index, (first, changes)) in changes.into_iter().enumerate() {
        for (begins, rule, service) in changes {
            if begins {
                *covering.entry((rule, service)).or_default() += 1;
            } else if let Some(count) = covering.get_mut(&(rule, service)) {
                *count -= 1;
                if *count == 0 {
                    covering.remove(&(rule, service));
                }
            }
        }
        let of_family = Prefix::whole(ruleset.family);
        if index % stride == 0 && (of_family.first()..=of_family.last()).contains(&first) {
            let budget = MAX_WORK / address_ranges.div_ceil(stride);
            compare(ruleset, &tables, to_address(first), &covering, budget, &mut proof)?;
            proof.address_ranges_checked += 1;
        }
    }
    drop(tables);
    Ok(ProvedPolicy { policy: Arc::new(policy), proof })
}

/// Rules that cover an address, in order: index of the rule and of its match, and how
/// many of the match's prefixes cover it.
type Covering = BTreeMap<(usize, usize), usize>;

/// At which address which matches begin or end to cover.
type Changes = BTreeMap<u128, Vec<(bool, usize, usize)>>;

/// Cuts the line of addresses wherever a prefix of the rules or of the policy begins or
/// ends.
fn changes(ruleset: &ResolvedRuleset, policy: &Policy) -> Changes {
    let mut changes = Changes::new();
    for (rule, resolved) in ruleset.rules.iter().enumerate() {
        for (index, found) in resolved.matches.iter().enumerate() {
            for prefix in &found.prefixes {
                changes.entry(prefix.first()).or_default().push((true, rule, index));
                if let Some(after) = prefix.last().checked_add(1) {
                    changes.entry(after).or_default().push((false, rule, index));
                }
            }
        }
    }
    for (prefix, _) in &policy.prefixes {
        changes.entry(prefix.first()).or_default();
        if let Some(after) = prefix.last().checked_add(1) {
            changes.entry(after).or_default();
        }
    }
    changes.entry(Prefix::whole(ruleset.family).first()).or_default();
    changes
}

/// Every how-many-th address range can be looked at within [`MAX_WORK`].
fn stride(changes: &Changes) -> usize {
    let mut covering = 0_usize;
    let mut work = 0_usize;
    for changes in changes.values() {
        for (begins, _, _) in changes {
            covering = if *begins { covering + 1 } else { covering.saturating_sub(1) };
        }
        // Finding the cells alone takes a few steps for each rule.
        work = work.saturating_add(covering.saturating_mul(16));
    }
    work.div_ceil(MAX_WORK).max(1)
}

/// Compares the cells of one address range.
fn compare(
    ruleset: &ResolvedRuleset,
    tables: &PolicyTables<'_>,
    destination: Address,
    covering: &Covering,
    budget: usize,
    proof: &mut Proof,
) -> Result<(), Mismatch> {
    for protocol in PROTOCOLS {
        let rules: Vec<(u32, Action, RangeInclusive<u16>)> = covering
            .keys()
            .filter_map(|&(rule, index)| {
                let resolved = ruleset.rules.get(rule)?;
                let ports = ports_of(&resolved.matches.get(index)?.service, protocol)?;
                Some((u32::try_from(rule).ok()?, resolved.action, ports))
            })
            .collect();
        let mut ports = tables.edges(&destination, protocol);
        for (_, _, range) in &rules {
            ports.insert(*range.start());
            ports.extend(range.end().checked_add(1));
        }
        let work = ports.len().saturating_mul(rules.len() + 1);
        let stride = work.div_ceil(budget.max(1)).max(1);
        proof.complete &= stride == 1;
        for port in ports.into_iter().step_by(stride) {
            let first = rules.iter().find(|(_, _, range)| range.contains(&port));
            let expected = match first {
                Some((rule, action, _)) => (*rule, *action),
                None => (DEFAULT_RULE, ruleset.default),
            };
            let found = tables.ask(destination, protocol, port);
            if found != Some(expected) {
                return Err(Mismatch {
                    destination: destination.into(),
                    protocol,
                    port,
                    expected: format!("{expected:?}"),
                    found: format!("{found:?}"),
                });
            }
            proof.cells_checked += 1;
        }
    }
    Ok(())
}

fn ports_of(service: &Service, protocol: Protocol) -> Option<RangeInclusive<u16>> {
    match protocol {
        Protocol::Tcp => service.tcp.clone(),
        Protocol::Udp => service.udp.clone(),
        Protocol::Icmp => service.icmp.clone(),
        Protocol::Other => service.other.then_some(0..=u16::MAX),
    }
}

/// A policy as the evaluator sees it, outside the kernel: the policy of every client.
pub struct PolicyTables<'a> {
    policy: &'a Policy,
    /// Prefix lengths in use, longest first.
    lengths: Vec<u8>,
}

impl<'a> PolicyTables<'a> {
    /// Prepares the look-up of a policy's prefixes, which takes little time and next to no memory.
    /// If the prefixes are not in order, none of them is found.
    pub fn new(policy: &'a Policy) -> Self {
        let is_in_order = policy.prefixes.is_sorted_by(|(one, _), (next, _)| one < next);
        let prefixes = policy.prefixes.iter().filter(|_| is_in_order);
        let lengths: BTreeSet<u8> = prefixes.map(|(prefix, _)| prefix.length()).collect();
        Self { policy, lengths: lengths.into_iter().rev().collect() }
    }

    /// The deciding rule and what it says.
    pub(super) fn ask(
        &self,
        destination: Address,
        protocol: Protocol,
        port: u16,
    ) -> Option<(u32, Action)> {
        let addresses = Packet::of_addresses(Address::NONE, destination);
        let packet = Packet { protocol, port, ..addresses };
        let answer = answer(self, 0, &packet)?;
        let action = if answer.action == ACTION_ACCEPT { Action::Accept } else { Action::Drop };
        Some((answer.rule, action))
    }

    /// Where the policy's answer for a destination and protocol may change.
    pub(super) fn edges(&self, destination: &Address, protocol: Protocol) -> BTreeSet<u16> {
        let mut edges = BTreeSet::from([0]);
        let mut next = self.class_of(0, destination);
        // A link leads to a class that has none.
        for _ in 0..2 {
            let Some(class) = next.and_then(|index| self.class(index)) else {
                break;
            };
            let Span { start, length } = match protocol {
                Protocol::Tcp => class.tcp,
                Protocol::Udp => class.udp,
                Protocol::Icmp => class.icmp,
                Protocol::Other => class.other,
            };
            let indices = start..start.saturating_add(length);
            edges.extend(indices.filter_map(|it| self.segment(it)).map(|it| it.start));
            next = Some(class.wider);
        }
        edges
    }
}

impl Tables for PolicyTables<'_> {
    fn client(&self, _: &ClientKey) -> Option<Client> {
        Some(Client { state: firewall_common::abi::STATE_POLICY, ..Client::default() })
    }

    fn guards_neighbours(&self) -> bool {
        false
    }

    fn local(&self, _: &Address) -> Option<Local> {
        None
    }

    fn class_of(&self, _: u32, address: &Address) -> Option<u32> {
        let host = Prefix::host((*address).into());
        let prefixes = &self.policy.prefixes;
        let mut covering = self.lengths.iter().map(|length| host.widened(*length));
        let longest = covering
            .find_map(|wanted| prefixes.binary_search_by_key(&wanted, |(prefix, _)| *prefix).ok());
        prefixes.get(longest?).map(|(_, class)| *class)
    }

    fn class(&self, index: u32) -> Option<Class> {
        self.policy.classes.get(usize::try_from(index).ok()?).copied()
    }

    fn segment(&self, index: u32) -> Option<Segment> {
        self.policy.segments.get(usize::try_from(index).ok()?).copied()
    }

    fn seconds(&self) -> u64 {
        // Only an audit asks, and nobody is audited here.
        0
    }
}
