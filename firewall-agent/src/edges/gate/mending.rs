//! What of a table that was loaded is not as it should be, and the text that mends it.
//! Never touches a rule that others added, nor says what such a rule does.
//!
//! A rule of nftables cannot be changed, only replaced, and each of ours has its seal in its
//! comment. So what is to be there is compared by seals, in their order.

use super::listed::Listed;
use super::listing::Rule;
use super::table::{Chain, Hook, Table};

/// How a table is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// Something is missing, or different.
    Lost(String),
    /// All is there, but others appended rules behind the last one of a chain.
    Appended(String),
}

/// How a chain is found.
struct Found<'a> {
    chain: &'a Chain,
    /// All of its rules in their order.
    rules: Vec<&'a Rule>,
}

impl<'a> Found<'a> {
    fn of(listed: &'a Listed, chain: &'a Chain) -> Self {
        let rules = listed.rules.iter().filter(|rule| rule.chain == chain.name).collect();
        Self { chain, rules }
    }

    fn own(&self) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().copied().filter(|rule| rule.seal().is_some())
    }

    fn difference(&self) -> Option<Difference> {
        let name = self.chain.name;
        let wanted: Vec<String> = self.chain.rules().map(|rule| rule.seal()).collect();
        let found: Vec<&str> = self.own().filter_map(Rule::seal).collect();
        let there = wanted.iter().filter(|seal| found.contains(&seal.as_str())).count();
        if there < wanted.len() {
            let lost = format!("the chain `{name}` has {there} of its {} rules", wanted.len());
            return Some(Difference::Lost(lost));
        }
        if found != wanted {
            let lost = format!("the chain `{name}` has its rules in another order, or too many");
            return Some(Difference::Lost(lost));
        }
        let is_closed = self.chain.last.is_none() || self.rules.last()?.seal().is_some();
        let appended = || format!("the chain `{name}` has rules behind its last one");
        (!is_closed).then(appended).map(Difference::Appended)
    }

    /// Rules of others in front of ours; none, if there are none of ours.
    fn in_front(&self) -> &[&'a Rule] {
        let first_own = self.rules.iter().position(|rule| rule.seal().is_some());
        self.rules.get(..first_own.unwrap_or(0)).unwrap_or_default()
    }

    /// Text that takes our rules away and puts them where they belong: in front of what others
    /// appended, behind what others put in front, and the last one at the end. Where none of ours is
    /// left, in front is what was there before.
    fn mending(&self, table: &str, was_in_front: impl Fn(u64) -> bool) -> String {
        let name = self.chain.name;
        let mut text: String = self
            .own()
            .map(|rule| format!("delete rule {table} {name} handle {}\n", rule.handle))
            .collect();
        let in_front = match self.own().next() {
            Some(_) => self.in_front().last(),
            None => self.rules.iter().rfind(|rule| was_in_front(rule.handle)),
        };
        let place = match in_front {
            Some(rule) => format!("add rule {table} {name} handle {}", rule.handle),
            None => format!("insert rule {table} {name}"),
        };
        // Each comes in front of those before it.
        text.extend(self.chain.first.iter().rev().map(|rule| format!("{place} {rule}\n")));
        text.extend(self.chain.last.iter().map(|rule| format!("add rule {table} {name} {rule}\n")));
        text
    }
}

/// What somebody changed of a table that was loaded, what is lost first; `None` if all of it is there.
pub(super) fn difference(wanted: &Table, listed: &Listed) -> Option<Difference> {
    let lost = |what: String| Some(Difference::Lost(what));
    if listed.is_asleep {
        return lost("the table is dormant".to_owned());
    }
    let mut appended = None;
    for chain in &wanted.chains {
        let name = chain.name;
        let Some(found) = listed.chains.iter().find(|it| it.name == name) else {
            return lost(format!("there is no chain `{name}`"));
        };
        if !found.is_at(chain.hook) {
            return lost(format!("the chain `{name}` is not at its hook"));
        }
        if !found.has_policy(chain.hook) {
            return lost(format!("the chain `{name}` has another policy"));
        }
        match Found::of(listed, chain).difference() {
            Some(Difference::Lost(what)) => return lost(what),
            Some(difference @ Difference::Appended(_)) => appended = Some(difference),
            None => {}
        }
    }
    if is_opened(wanted, listed) {
        return lost("a rule with the comment of one of ours lets everything pass".to_owned());
    }
    if let Some(chain) = strays(wanted, listed).next() {
        return lost(format!("the chain `{chain}` is not to be there any more"));
    }
    appended
}

/// Chains in which a rule of ours is, and none is to be.
fn strays<'a>(wanted: &Table, listed: &'a Listed) -> impl Iterator<Item = &'a str> {
    let is_wanted = |name: &str| wanted.chains.iter().any(|chain| chain.name == name);
    let has_own =
        |name: &str| listed.rules.iter().any(|rule| rule.chain == name && rule.seal().is_some());
    let names = listed.chains.iter().map(|chain| chain.name.as_str());
    names.filter(move |name| !is_wanted(name) && has_own(name))
}

/// Whether our rules, or others with their comments, do not close what they are to close.
fn is_opened(wanted: &Table, listed: &Listed) -> bool {
    let closing = wanted.chains.iter().filter_map(|chain| chain.hook);
    let mut closing = closing.filter(|hook| hook.policy == "drop");
    closing.any(|Hook { hook, .. }| !listed.own().is_closed(hook))
}

/// The numbers of rules of others that are in front of ours.
pub(super) fn in_front(wanted: &Table, listed: &Listed) -> Vec<u64> {
    let found = wanted.chains.iter().map(|chain| Found::of(listed, chain));
    found.flat_map(|it| it.in_front().iter().map(|rule| rule.handle).collect::<Vec<_>>()).collect()
}

/// Text that makes a table as it should be, in one transaction. What others added stays, unless the
/// table has to be made anew: in front of ours if it is there, or was when ours were.
pub(super) fn text(wanted: &Table, listed: &Listed, was_in_front: impl Fn(u64) -> bool) -> String {
    let found = |chain: &Chain| listed.chains.iter().find(|it| it.name == chain.name);
    let is_at = |chain: &Chain| found(chain).is_none_or(|found| found.is_at(chain.hook));
    if listed.is_asleep || !wanted.chains.iter().all(is_at) {
        return wanted.text();
    }
    let table = format!("{} {}", wanted.family, wanted.name);
    let mut text = String::new();
    for chain in &wanted.chains {
        let hook = chain.hook.map(|hook| hook.to_string()).unwrap_or_default();
        text += &format!("table {table} {{ chain {} {{ {hook} }}; }}\n", chain.name);
    }
    let differing = wanted.chains.iter().map(|chain| Found::of(listed, chain));
    let is_opened = is_opened(wanted, listed);
    let differing = differing.filter(|found| is_opened || found.difference().is_some());
    text.extend(differing.map(|found| found.mending(&table, &was_in_front)));
    let strays = strays(wanted, listed);
    text.extend(strays.map(|it| format!("flush chain {table} {it}\ndelete chain {table} {it}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::super::listed::Listed;
    use super::super::rules::{FAMILIES, gate};
    use super::super::table::Table;
    use super::{Difference, difference, in_front, text};

    /// A rule of the chain `forward`: ours by its place among the first ones, or somebody else's.
    #[derive(Clone, Copy, Debug)]
    enum It {
        First(usize),
        Last,
        Others,
    }
    use It::{First, Last, Others};

    /// Whose a chain is.
    const OF: &str = r#""family": "ip", "table": "qubes-firewall","#;
    const WHOLE: [It; 6] = [First(0), First(1), First(2), First(3), First(4), Last];

    /// The gate with another chain `forward`, as `nft -j` lists it, with handles from 10 on.
    fn listed(wanted: &Table, forward: &[It], policy: &str) -> Listed {
        let chain_of = |name| wanted.chains.iter().find(|it| it.name == name).expect("a chain");
        let [chain, users, openings] = ["forward", "qubes-forward", "openings"].map(chain_of);
        let rule = |chain: &str, handle: usize, seal: &str| {
            format!(
                r#", {{"rule": {{"chain": "{chain}", "handle": {handle}, "comment": "{seal}"}}}}"#
            )
        };
        let sealed = |seal: String| format!("firewall-agent {seal}");
        let comment = |it: &It| match it {
            First(at) => sealed(chain.first[*at].seal()),
            Last => sealed(chain.last.as_ref().expect("a last rule").seal()),
            Others => "mine".to_owned(),
        };
        let forward = forward.iter().zip(10..);
        let forward = forward.map(|(it, handle)| rule("forward", handle, &comment(it)));
        let users = users.first.iter().zip(30..);
        let users = users.map(|(it, handle)| rule("qubes-forward", handle, &sealed(it.seal())));
        let opening = rule("openings", 40, &sealed(openings.first[0].seal()));
        let json = format!(
            r#"{{"nftables": [{{"table": {{"name": "qubes-firewall"}}}},
            {{"chain": {{{OF} "name": "forward", "type": "filter", "hook": "forward", "prio": 0,
            "policy": "{policy}"}}}}, {{"chain": {{{OF} "name": "qubes-forward"}}}},
            {{"chain": {{{OF} "name": "openings", "type": "nat", "hook": "postrouting", "prio": 90,
            "policy": "accept"}}}}{}{opening}]}}"#,
            forward.chain(users).collect::<String>()
        );
        Listed::parse(json.as_bytes()).expect("a table")
    }

    #[test]
    fn a_rule_of_ours_that_is_not_in_its_place_is_noticed_and_what_others_add_is_not() {
        let wanted = gate(FAMILIES[0], "vif*", None);
        let check = |name: &str, forward: &[It], policy: &str, expected: Option<&str>| {
            let found = difference(&wanted, &listed(&wanted, forward, policy));
            let expected = expected.map(str::to_owned).map(|what| match what.contains("behind") {
                true => Difference::Appended(what),
                false => Difference::Lost(what),
            });
            assert_eq!(found, expected, "{name}");
        };
        let with = |at: usize, it: It| {
            let mut rules = WHOLE.to_vec();
            rules.insert(at, it);
            rules
        };
        check("whole", &WHOLE, "drop", None);
        check("one in front", &with(0, Others), "drop", None);
        check("one appended", &with(5, Others), "drop", None);
        let behind = Some("the chain `forward` has rules behind its last one");
        check("one behind", &with(6, Others), "drop", behind);
        let order = Some("the chain `forward` has its rules in another order, or too many");
        check("one twice", &with(1, First(0)), "drop", order);
        let mut turned = WHOLE;
        turned.swap(1, 2);
        check("another order", &turned, "drop", order);
        let fewer = Some("the chain `forward` has 5 of its 6 rules");
        check("without the last", &WHOLE[..5], "drop", fewer);
        // What is lost is told first.
        let one_behind_another = [First(0), First(1), First(2), First(4), Last, Others];
        check("one behind, one lost", &one_behind_another, "drop", fewer);
        check("without the first", &WHOLE[1..], "drop", fewer);
        check("empty", &[], "drop", Some("the chain `forward` has 0 of its 6 rules"));
        check("open", &WHOLE, "accept", Some("the chain `forward` has another policy"));
    }

    #[test]
    fn mending_leaves_what_others_added_where_it_was() {
        let wanted = gate(FAMILIES[0], "vif*", None);
        let check = |name: &str, forward: &[It], expected: &[&str]| {
            let before = listed(&wanted, &[&[Others][..], &WHOLE].concat(), "drop");
            let before = in_front(&wanted, &before);
            assert_eq!(before, [10]);
            let now = listed(&wanted, forward, "drop");
            let text = text(&wanted, &now, |number| before.contains(&number));
            let changes = text.lines().filter(|line| line.contains("rule"));
            let words = changes.map(|line| {
                let end = if line.contains("handle") { 7 } else { 5 };
                line.split(' ').take(end).collect::<Vec<_>>().join(" ")
            });
            let words: Vec<String> = words.collect();
            assert_eq!(words, expected, "{name}");
        };
        check("whole", &WHOLE, &[]);
        let insert = "insert rule ip qubes-firewall forward";
        let add = "add rule ip qubes-firewall forward";
        let behind: Vec<String> = (11..15)
            .map(|at| format!("delete rule ip qubes-firewall forward handle {at}"))
            .collect();
        let mut expected: Vec<&str> = behind.iter().map(String::as_str).collect();
        expected.extend(["add rule ip qubes-firewall forward handle 10"; 5]);
        expected.push(add);
        let others_around = [Others, First(0), First(1), First(2), First(3), Others];
        check("two lost, others around", &others_around, &expected);
        check("flushed", &[], &[insert, insert, insert, insert, insert, add]);
        // The first was in front before, the second was not.
        let behind_the_first = ["add rule ip qubes-firewall forward handle 10"; 5];
        let expected = [&behind_the_first[..], &[add]].concat();
        check("only others are left", &[Others, Others], &expected);
    }
}
