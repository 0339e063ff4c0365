//! Names in clients' rules: which matter, who is asked, what is not written for a later agent yet,
//! and what the kernel is asked about addresses that may leave.
//! Never knows a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::connection::Flow;
use crate::events::{Effect, Notice};
use crate::names::Names;
use crate::names::answer::{Outcome, Remembered};
use crate::names::name::MOST_ADDRESSES;
use crate::names::rebinding::Guard;
use crate::rules::question::{Addresses, Question};
use crate::time::Moment;
use crate::told::status::{NameAddress, NameStatus};

/// Who of the clients uses a name, with the numbers of the rules.
type Users = BTreeMap<IpAddr, Vec<u16>>;

/// What is found out about connections to addresses that may leave.
#[derive(Debug)]
struct Look {
    /// When the kernel was asked.
    asked: Moment,
    /// Who opened connections so far, and to where.
    found: BTreeSet<(IpAddr, IpAddr)>,
}

/// Names in rules.
#[derive(Debug, Default)]
pub(super) struct Naming {
    names: Names,
    /// DNS servers that the agent asks.
    servers: Vec<SocketAddr>,
    /// Whether other names may matter now.
    are_names_old: bool,
    /// Whether a later agent would not find what is known now.
    is_unwritten: bool,
    look: Option<Look>,
}

impl Naming {
    /// Nothing is known yet.
    pub(super) fn new(guard: Guard) -> Self {
        Self { names: Names::new(guard), ..Self::default() }
    }

    /// Takes over what an earlier agent knew.
    pub(super) fn recall(&mut self, remembered: Vec<Remembered>, now: Moment) {
        self.names.recall(remembered, now);
    }

    /// The network changed: what failed is worth another attempt at once.
    pub(super) fn retry(&mut self) {
        self.names.retry();
    }

    /// Whether other DNS servers are asked than these.
    pub(super) fn asks_others(&self, servers: &[SocketAddr]) -> bool {
        self.servers != servers
    }

    /// Other DNS servers are asked from now on, about all names.
    pub(super) fn ask_others(&mut self, servers: Vec<SocketAddr>) -> Effect {
        self.servers = servers;
        self.ask_all()
    }

    /// Names are asked anew, and what was asked before is forgotten.
    pub(super) fn ask_all(&mut self) -> Effect {
        self.names.ask_all();
        Effect::SetServers(self.servers.clone())
    }

    /// Rules or clients changed: other names may matter.
    pub(super) fn grow_old(&mut self) {
        self.are_names_old = true;
    }

    /// Whether other names may matter. From then on those count that are wanted next.
    pub(super) fn take_old(&mut self) -> bool {
        std::mem::take(&mut self.are_names_old)
    }

    /// Whether other names may matter, and nobody said yet which.
    pub(super) fn is_old(&self) -> bool {
        self.are_names_old
    }

    /// Somebody wrote rules with these names: those of them that failed are worth another attempt
    /// soon.
    pub(super) fn ask_again(&mut self, questions: &BTreeSet<Question>) {
        self.names.ask_again(questions);
    }

    /// Whether nothing is known about a name that is asked, and nothing came of that yet.
    pub(super) fn awaits(&self, question: &Question) -> bool {
        self.names.get(question).is_some_and(|name| name.is_awaited)
    }

    /// Whether there is such a name.
    pub(super) fn awaits_any(&self) -> bool {
        self.names.iter().any(|(_, name)| name.is_awaited)
    }

    /// Says which names matter from now on. Returns those that lead elsewhere by that.
    pub(super) fn want(&mut self, wanted: &BTreeSet<Question>) -> BTreeSet<Question> {
        self.names.want(wanted)
    }

    /// Lets answers grow old. Returns the names that lead elsewhere by that.
    pub(super) fn age(&mut self, now: Moment) -> BTreeSet<Question> {
        self.names.age(now)
    }

    /// Asks what is to be asked now.
    pub(super) fn ask(&mut self, now: Moment) -> Vec<Effect> {
        self.names.take_due(now).into_iter().map(Effect::Ask).collect()
    }

    /// Finds out, if it is time, which addresses that have been away long enough are in use.
    pub(super) fn look_if_due(&mut self, now: Moment) -> Option<Effect> {
        if self.names.take_look(now) { self.look(now) } else { None }
    }

    /// Finds out which addresses that have been away long enough are in use, unless that is
    /// being done.
    pub(super) fn look(&mut self, now: Moment) -> Option<Effect> {
        let to: BTreeSet<IpAddr> = self.names.late(now).map(|(_, address)| address).collect();
        if self.is_looking() || to.is_empty() {
            return None;
        }
        self.look = Some(Look { asked: now, found: BTreeSet::new() });
        Some(Effect::ReadFlows(to))
    }

    /// Whether it is being found out which addresses are in use.
    pub(super) fn is_looking(&self) -> bool {
        self.look.is_some()
    }

    /// Takes in a part of what is in use.
    pub(super) fn found(&mut self, flows: Vec<Flow>) {
        if let Some(look) = &mut self.look {
            let ends = |flow: Flow| (flow.source(), flow.packet.destination.into());
            look.found.extend(flows.into_iter().map(ends));
        }
    }

    /// Nobody finds out any more what is in use.
    pub(super) fn give_up(&mut self) {
        self.look = None;
    }

    /// All that is in use was told: addresses leave that have been away long enough, except those
    /// to which a client is connected whose rules have the name. Returns the names that changed.
    pub(super) fn leave(&mut self, users: impl Fn(&Question) -> Users) -> BTreeSet<Question> {
        let Some(Look { asked, found }) = self.look.take() else {
            return BTreeSet::new();
        };
        let is_used = |(question, address): &(&Question, IpAddr)| {
            users(question).keys().any(|client| found.contains(&(*client, *address)))
        };
        let used = self.names.late(asked).filter(is_used);
        let used = used.map(|(question, address)| (question.clone(), address)).collect();
        self.names.leave(&used, asked)
    }

    /// Takes in what came of questions. Returns what is told of that, and the names that lead
    /// elsewhere.
    pub(super) fn answered(
        &mut self,
        outcomes: Vec<(Question, Outcome)>,
        now: Moment,
    ) -> (Vec<Effect>, BTreeSet<Question>) {
        let mut effects = Vec::new();
        let mut changed = BTreeSet::new();
        for (question, outcome) in outcomes {
            let problem = self.problem(&question);
            if self.names.answered(&question, outcome, now) {
                changed.insert(question.clone());
            }
            let why = self.problem(&question);
            if why != problem {
                effects.push(Effect::Tell(Notice::NameProblem { question, why }));
            }
        }
        (effects, changed)
    }

    /// Takes note that a name leads elsewhere, and tells so, if it matters.
    pub(super) fn moved(
        &mut self,
        question: &Question,
        before: Option<&Addresses>,
    ) -> Option<Effect> {
        self.is_unwritten = true;
        let before = before.map(all).unwrap_or_default();
        let now = self.addresses(question).as_ref().map(all).unwrap_or_default();
        if before == now || self.names.get(question).is_none() {
            return None;
        }
        let (added, gone) = (&now - &before, &before - &now);
        Some(Effect::Tell(Notice::Name { question: question.clone(), added, gone }))
    }

    /// Writes what is known for a later agent, if that changed.
    pub(super) fn write(&mut self) -> Option<Effect> {
        let is_unwritten = std::mem::take(&mut self.is_unwritten);
        is_unwritten.then(|| Effect::Remember(self.names.to_remember()))
    }

    /// What rules with a name match; nothing if it is unresolved.
    pub(super) fn addresses(&self, question: &Question) -> Option<Addresses> {
        self.names.addresses(question)
    }

    /// When something is to be done about names, if at all.
    pub(super) fn next(&self) -> Option<Moment> {
        self.names.next()
    }

    /// What is wrong with a name, if anything is.
    fn problem(&self, question: &Question) -> Option<String> {
        let name = self.names.get(question)?;
        if let Some(problem) = &name.problem {
            return Some(problem.clone());
        }
        if name.crowded_until.is_some() {
            return Some(format!(
                "more than {MOST_ADDRESSES} addresses: accept rules use {MOST_ADDRESSES} of them, \
                 drop rules match every address"
            ));
        }
        let refused = self.names.refused(question);
        let list: Vec<String> = refused.iter().map(IpAddr::to_string).collect();
        let list = list.join(", ");
        // Of loopback and the like, no option makes anything that is of use.
        let hint = match self.names.could_use(&refused) {
            true => format!("; `run --private-name {}` lets them use it", question.name),
            false => String::new(),
        };
        let told = format!("no public address: {list}; accept rules leave it out{hint}");
        (!refused.is_empty()).then_some(told)
    }

    /// All names that matter, as they are at a time.
    pub(super) fn statuses(
        &self,
        now: Moment,
        users: impl Fn(&Question) -> Users,
    ) -> Vec<NameStatus> {
        let seconds = |before: Moment| now.since(before).as_secs();
        let statuses = self.names.iter().map(|(question, name)| {
            let refused = self.names.refused(question);
            let addresses = name.seen.iter().map(|(&address, &seen)| NameAddress {
                address,
                age_seconds: seconds(seen),
                in_answer: name.is_current(&address),
                usable: !refused.contains(&address),
            });
            NameStatus {
                name: question.name.clone(),
                family: question.family,
                addresses: addresses.collect(),
                answered_seconds_ago: name.answer.as_ref().map(|answer| seconds(answer.at)),
                next_seconds_left: name.due.since(now).as_secs(),
                failures: name.failures,
                problem: self.problem(question),
                refused: name.refused,
                users: users(question),
            }
        });
        statuses.collect()
    }
}

/// Every address of a name, whether a rule may use it or not.
fn all(addresses: &Addresses) -> BTreeSet<IpAddr> {
    addresses.accept.iter().chain(addresses.drop.iter().flatten()).copied().collect()
}
