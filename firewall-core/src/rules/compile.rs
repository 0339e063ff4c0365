//! [`ResolvedRuleset`] to [`Policy`]: a trie of prefixes to classes, and their segments.
//! Never touches the kernel; indices in a policy count from 0.
//!
//! Why first match is exact: prefixes nest or are disjoint, so the longest prefix that
//! covers an address decides which rules cover it. Those rules, reduced to segments per
//! protocol, are the prefix's class.
//!
//! Why it stays small: a class that repeats all rules of its ancestors is quadratic in
//! bad cases (many port rules on a wide prefix, many narrow prefixes). So a class may
//! hold only the rules since the nearest ancestor that holds everything, its *anchor*,
//! and link to that one; the lower rule index of the two answers is the first match.
//! A prefix becomes an anchor itself where that is cheaper than repeating its rules in
//! everything below it. What is still too large is refused.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use firewall_common::abi::{
    ACTION_ACCEPT, ACTION_REJECT, Class, DEFAULT_RULE, MAX_PREFIXES, NO_CLASS, Segment, Span,
};
use thiserror::Error;

use super::resolve::{Prefix, ResolvedRuleset};
use super::{Action, Service};

/// Most classes of one policy.
pub const MAX_POLICY_CLASSES: usize = 1 << 15;
/// Most segments of one policy.
pub const MAX_POLICY_SEGMENTS: usize = 1 << 18;
/// Most rules in the classes of one policy, counted in each class: bounds the time.
const MAX_POLICY_WORK: usize = 1 << 22;

/// A compiled ruleset. Two equal policies behave the same, and share their memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Destination prefixes with the index of their class, ascending.
    pub prefixes: Vec<(Prefix, u32)>,
    /// The classes; their spans and links count from 0.
    pub classes: Vec<Class>,
    /// The segments; the spans of classes are runs of them.
    pub segments: Vec<Segment>,
}

/// Why a ruleset cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the rules are too complex: more than {most} {what}; use fewer or wider destinations")]
pub struct TooComplex {
    what: &'static str,
    most: usize,
}

/// A rule as far as one prefix is concerned.
#[derive(Clone, Copy)]
struct Own<'a> {
    rule: u32,
    action: u16,
    service: &'a Service,
}

/// A prefix on the way from the root to the one at hand.
struct Step<'a> {
    prefix: Prefix,
    /// Rules that name this prefix, in order.
    own: Vec<Own<'a>>,
    /// Rules of this prefix and its ancestors that the anchor's class does not hold, in
    /// order.
    since_anchor: Vec<Own<'a>>,
    /// Class of the anchor, or this prefix's own if it is one.
    anchor: u32,
}

/// Compiles a ruleset. An error says that the policy would be too large, or take too long to make.
pub fn compile(ruleset: &ResolvedRuleset) -> Result<Policy, TooComplex> {
    let own = own_rules(ruleset)?;
    let sizes = subtree_sizes(own.keys());
    let mut builder = Builder::new(ruleset.default);
    let mut path: Vec<Step> = Vec::new();
    for ((prefix, own), subtree) in own.into_iter().zip(sizes) {
        while path.last().is_some_and(|step| !step.prefix.covers(&prefix)) {
            path.pop();
        }
        let linked = path.last().map(|parent| {
            let since_anchor = in_order([&parent.since_anchor, &own]);
            let all = path.iter().map(|step| step.own.len()).sum::<usize>() + own.len();
            let repeated = since_anchor.len().saturating_mul(subtree);
            let is_cheaper = subtree == 1 || repeated <= all + since_anchor.len();
            (since_anchor, parent.anchor, is_cheaper)
        });
        let step = match linked {
            Some((since_anchor, anchor, true)) => {
                builder.add(prefix, &since_anchor, anchor)?;
                Step { prefix, own, since_anchor, anchor }
            }
            None | Some((_, _, false)) => {
                let all = in_order(path.iter().map(|step| &step.own).chain([&own]));
                let anchor = builder.add(prefix, &all, NO_CLASS)?;
                Step { prefix, own, since_anchor: Vec::new(), anchor }
            }
        };
        path.push(step);
    }
    Ok(builder.policy)
}

/// The rules that name each prefix, in order. Sorted, a prefix stands behind those that
/// cover it and before all else; the first one is the whole family.
fn own_rules(ruleset: &ResolvedRuleset) -> Result<BTreeMap<Prefix, Vec<Own<'_>>>, TooComplex> {
    let mut own = BTreeMap::from([(Prefix::whole(ruleset.family), Vec::new())]);
    for (rule, resolved) in (0..).zip(&ruleset.rules) {
        let action = abi_action(resolved.action);
        for found in &resolved.matches {
            for prefix in &found.prefixes {
                let service = &found.service;
                own.entry(*prefix).or_default().push(Own { rule, action, service });
            }
        }
    }
    bounded(own.len(), MAX_PREFIXES, "destination prefixes")?;
    Ok(own)
}

/// For each prefix, how many prefixes it covers, itself included.
fn subtree_sizes<'a>(prefixes: impl Iterator<Item = &'a Prefix>) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    let mut path: Vec<(Prefix, usize)> = Vec::new();
    for (index, prefix) in prefixes.enumerate() {
        path.retain(|(ancestor, _)| ancestor.covers(prefix));
        for (_, ancestor) in &path {
            sizes[*ancestor] += 1;
        }
        sizes.push(1);
        path.push((*prefix, index));
    }
    sizes
}

/// Lists of rules to one, in rule order.
fn in_order<'a: 'b, 'b>(lists: impl IntoIterator<Item = &'b Vec<Own<'a>>>) -> Vec<Own<'a>> {
    let mut rules: Vec<Own<'a>> = lists.into_iter().flatten().copied().collect();
    rules.sort_by_key(|own| own.rule);
    rules
}

fn abi_action(action: Action) -> u16 {
    match action {
        Action::Accept => ACTION_ACCEPT,
        Action::Drop => ACTION_REJECT,
    }
}

fn bounded(count: usize, most: usize, what: &'static str) -> Result<u32, TooComplex> {
    if count > most {
        return Err(TooComplex { what, most });
    }
    u32::try_from(count).map_err(|_| TooComplex { what, most })
}

/// Collects classes and segments, each different one once.
struct Builder {
    policy: Policy,
    default: Segment,
    work: usize,
    classes: HashMap<Class, u32>,
    spans: HashMap<Vec<Segment>, Span>,
}

impl Builder {
    fn new(default: Action) -> Self {
        Self {
            policy: Policy { prefixes: Vec::new(), classes: Vec::new(), segments: Vec::new() },
            default: Segment { start: 0, action: abi_action(default), rule: DEFAULT_RULE },
            work: 0,
            classes: HashMap::new(),
            spans: HashMap::new(),
        }
    }

    /// Adds a prefix whose class holds `rules` and asks `wider` as well.
    fn add(&mut self, prefix: Prefix, rules: &[Own<'_>], wider: u32) -> Result<u32, TooComplex> {
        let class = self.class(rules, wider)?;
        self.policy.prefixes.push((prefix, class));
        Ok(class)
    }

    fn class(&mut self, rules: &[Own<'_>], wider: u32) -> Result<u32, TooComplex> {
        self.work += rules.len();
        bounded(self.work, MAX_POLICY_WORK, "combinations of destinations and rules")?;
        let class = Class {
            wider,
            tcp: self.span(rules, |service| service.tcp.clone())?,
            udp: self.span(rules, |service| service.udp.clone())?,
            icmp: self.span(rules, |service| service.icmp.clone())?,
            other: self.span(rules, |service| service.other.then_some(0..=u16::MAX))?,
        };
        if let Some(index) = self.classes.get(&class) {
            return Ok(*index);
        }
        let index = bounded(self.policy.classes.len(), MAX_POLICY_CLASSES, "classes")?;
        self.policy.classes.push(class);
        bounded(self.policy.classes.len(), MAX_POLICY_CLASSES, "classes")?;
        self.classes.insert(class, index);
        Ok(index)
    }

    fn span(
        &mut self,
        rules: &[Own<'_>],
        ports: impl Fn(&Service) -> Option<RangeInclusive<u16>>,
    ) -> Result<Span, TooComplex> {
        let segments = segments(rules, ports, self.default);
        if let Some(span) = self.spans.get(&segments) {
            return Ok(*span);
        }
        let start = self.policy.segments.len();
        bounded(start + segments.len(), MAX_POLICY_SEGMENTS, "port ranges")?;
        let span = Span {
            start: bounded(start, MAX_POLICY_SEGMENTS, "port ranges")?,
            length: bounded(segments.len(), MAX_POLICY_SEGMENTS, "port ranges")?,
        };
        self.policy.segments.extend_from_slice(&segments);
        self.spans.insert(segments, span);
        Ok(span)
    }
}

/// The first match for every port, as the fewest segments: sweeps over the ports where a
/// rule begins or ends and keeps the rules that cover the current one.
fn segments(
    rules: &[Own<'_>],
    ports: impl Fn(&Service) -> Option<RangeInclusive<u16>>,
    default: Segment,
) -> Vec<Segment> {
    let mut edges: BTreeMap<u16, Vec<(bool, u32, u16)>> = BTreeMap::from([(0, Vec::new())]);
    for own in rules {
        let Some(range) = ports(own.service) else {
            continue;
        };
        edges.entry(*range.start()).or_default().push((true, own.rule, own.action));
        if let Some(after) = range.end().checked_add(1) {
            edges.entry(after).or_default().push((false, own.rule, own.action));
        }
    }
    // A rule may be here more than once: two of its prefixes can cover the same address.
    let mut covering: BTreeMap<(u32, u16), usize> = BTreeMap::new();
    let mut segments: Vec<Segment> = Vec::new();
    for (start, changes) in edges {
        for (begins, rule, action) in changes {
            let count = covering.entry((rule, action)).or_default();
            if begins {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
            }
            if *count == 0 {
                covering.remove(&(rule, action));
            }
        }
        let segment = match covering.first_key_value() {
            Some((&(rule, action), _)) => Segment { start, action, rule },
            None => Segment { start, ..default },
        };
        if segments.last().is_none_or(|last| last.rule != segment.rule) {
            segments.push(segment);
        }
    }
    segments
}
