//! Rules that never decide, and which rules in front of them are to blame.
//! Never looks at a compiled policy: it is exact on the rules alone.
//!
//! A rule is a set of boxes: a prefix times a protocol times a range of ports. It is hidden
//! if the boxes of earlier rules cover all of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::Service;
use super::resolve::{Prefix, ResolvedRule};

/// Why a rule never decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Never {
    /// No packet matches it.
    MatchesNothing,
    /// These earlier rules match all of its packets first, by their indices: one of them, if
    /// one is enough.
    Hidden(Vec<usize>),
}

type Ports = RangeInclusive<u16>;

/// What is left of a range of ports.
type Rest = Vec<Ports>;

/// Sets of rules that hide another are not made smaller beyond this size.
const MOST_REDUCED: usize = 32;

/// tcp, udp, icmp and other, by number.
const PROTOCOLS: usize = 4;

/// The boxes of some rules, by their prefix.
#[derive(Default)]
struct Boxes {
    by_prefix: BTreeMap<Prefix, Vec<(usize, usize, Ports)>>,
    lengths: BTreeSet<u8>,
}

/// For each rule of a list, why it never decides, if it never does.
pub fn hidden(rules: &[ResolvedRule]) -> Vec<Option<Never>> {
    hidden_by(rules, rules)
}

/// For each rule of a list, why it never decides, if it never does, where not all is known about
/// the rules: `most` is what they match at most, and `least` what they match in any case, so that
/// no rule is said to be hidden that may not be.
pub fn hidden_by(least: &[ResolvedRule], most: &[ResolvedRule]) -> Vec<Option<Never>> {
    let mut earlier = Boxes::default();
    let mut all = Vec::new();
    for (index, (rule, hiding)) in most.iter().zip(least).enumerate() {
        all.push(never(least, rule, &earlier));
        earlier.add(index, hiding);
    }
    all
}

fn never(hiding: &[ResolvedRule], rule: &ResolvedRule, earlier: &Boxes) -> Option<Never> {
    let Some((prefix, protocol, ports)) = boxes(rule).next() else {
        return Some(Never::MatchesNothing);
    };
    let mut together = BTreeSet::new();
    if !earlier.cover(rule, &mut together) {
        return None;
    }
    // One that covers all of it covers its first packet.
    let first = earlier
        .around(prefix)
        .filter(|(_, of, range)| *of == protocol && range.contains(ports.start()));
    let candidates: BTreeSet<usize> = first.map(|(index, _, _)| *index).collect();
    let covers = |some: &BTreeSet<usize>| {
        let mut boxes = Boxes::default();
        let rules = some.iter().filter_map(|&index| Some((index, hiding.get(index)?)));
        rules.for_each(|(index, rule)| boxes.add(index, rule));
        boxes.cover(rule, &mut BTreeSet::new())
    };
    let alone = candidates.into_iter().map(|index| BTreeSet::from([index])).find(&covers);
    let by = alone.unwrap_or_else(|| fewest(together, covers));
    Some(Never::Hidden(by.into_iter().collect()))
}

/// Leaves out, the last first, what is not needed. Large sets stay as they are.
fn fewest(
    mut all: BTreeSet<usize>,
    are_enough: impl Fn(&BTreeSet<usize>) -> bool,
) -> BTreeSet<usize> {
    if all.len() > MOST_REDUCED {
        return all;
    }
    for index in all.clone().into_iter().rev() {
        all.remove(&index);
        if !are_enough(&all) {
            all.insert(index);
        }
    }
    all
}

/// The boxes of a rule.
fn boxes(rule: &ResolvedRule) -> impl Iterator<Item = (Prefix, usize, Ports)> {
    rule.matches.iter().flat_map(|found| {
        let prefixes = found.prefixes.iter();
        prefixes.flat_map(|prefix| {
            let ranges = ranges(&found.service).into_iter().enumerate();
            ranges.filter_map(|(protocol, ports)| Some((*prefix, protocol, ports?)))
        })
    })
}

fn ranges(service: &Service) -> [Option<Ports>; PROTOCOLS] {
    let other = service.other.then_some(0..=u16::MAX);
    [service.tcp.clone(), service.udp.clone(), service.icmp.clone(), other]
}

impl Boxes {
    fn add(&mut self, index: usize, rule: &ResolvedRule) {
        for (prefix, protocol, ports) in boxes(rule) {
            self.lengths.insert(prefix.length());
            self.by_prefix.entry(prefix).or_default().push((index, protocol, ports));
        }
    }

    /// Boxes whose prefix covers all of `prefix`, widest first.
    fn around(&self, prefix: Prefix) -> impl Iterator<Item = &(usize, usize, Ports)> {
        let lengths = self.lengths.range(..=prefix.length());
        lengths.filter_map(move |&length| self.by_prefix.get(&prefix.widened(length))).flatten()
    }

    /// Whether these cover a rule. Adds those that take part.
    fn cover(&self, rule: &ResolvedRule, together: &mut BTreeSet<usize>) -> bool {
        boxes(rule).all(|(prefix, protocol, ports)| {
            let rest = subtract(vec![ports], protocol, self.around(prefix), together);
            self.cover_rest(prefix, protocol, rest, together)
        })
    }

    /// Whether narrower boxes cover what those around a prefix leave of it.
    fn cover_rest(
        &self,
        prefix: Prefix,
        protocol: usize,
        rest: Rest,
        together: &mut BTreeSet<usize>,
    ) -> bool {
        if rest.is_empty() {
            return true;
        }
        let Some(halves) = prefix.halves() else {
            return false;
        };
        let inside = self.by_prefix.range(prefix..).skip_while(|(inner, _)| **inner == prefix);
        let mut inside = inside.take_while(|(inner, _)| prefix.covers(inner));
        let may_help = inside.any(|(_, boxes)| {
            boxes
                .iter()
                .any(|(_, of, range)| *of == protocol && rest.iter().any(|it| overlap(it, range)))
        });
        may_help
            && halves.into_iter().all(|half| {
                let exactly = self.by_prefix.get(&half).into_iter().flatten();
                let rest = subtract(rest.clone(), protocol, exactly, together);
                self.cover_rest(half, protocol, rest, together)
            })
    }
}

fn overlap(one: &Ports, other: &Ports) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

/// What boxes of a protocol leave. Adds those that take something away.
fn subtract<'a>(
    mut rest: Rest,
    protocol: usize,
    boxes: impl Iterator<Item = &'a (usize, usize, Ports)>,
    together: &mut BTreeSet<usize>,
) -> Rest {
    for (index, of, range) in boxes {
        if *of != protocol || !rest.iter().any(|it| overlap(it, range)) {
            continue;
        }
        together.insert(*index);
        let left = |it: &Ports| {
            let below = range.start().checked_sub(1).map(|end| *it.start()..=end.min(*it.end()));
            let above = range.end().checked_add(1).map(|start| start.max(*it.start())..=*it.end());
            [below, above]
        };
        let pieces = rest.iter().flat_map(left).flatten();
        rest = pieces.filter(|it| !it.is_empty()).collect();
    }
    rest
}
