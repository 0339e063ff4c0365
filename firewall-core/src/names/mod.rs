//! What is known about names: their addresses, how old that is, and what is to be
//! asked next.
//! Never asks, and never reads a clock: time is an argument.
//!
//! An address that left the answers stays for a while, since large services hand out a few
//! of many addresses at a time; and as long as a connection to it is open. The last answer
//! is used until there is a newer one or it is a day old: a server that is silent changes
//! nothing. If servers say that the name does not exist, its addresses leave like others,
//! and with the last of them the name is unresolved again.

pub mod answer;
pub mod rebinding;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use crate::names::answer::{Answer, Failure, Outcome, Remembered};
use crate::rules::question::Addresses;
use crate::rules::question::Question;
use crate::time::Moment;
use rebinding::Guard;

/// No answer is asked for again sooner; some servers say 0.
const FLOOR: Duration = Duration::from_secs(5);
/// None is used longer without asking; some servers say a week.
const CEILING: Duration = Duration::from_secs(3600);
/// How long an address stays that is in no answer any more.
const GRACE: Duration = Duration::from_secs(600);
/// The kernel is not asked more often what is in use.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);
/// How long after a failure the next attempt is; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// An answer that is older is not used any more, be it this agent's or an earlier one's.
const OLDEST: Duration = Duration::from_secs(24 * 3600);
/// Most addresses of one name in one family.
pub const MOST_ADDRESSES: usize = 256;

/// An answer, and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastAnswer {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// When that was.
    pub at: Moment,
}

/// All that is known about one question.
#[derive(Clone, Debug, Default)]
pub struct Name {
    /// Every address that is used, and when it was last in the answer in force, or found in
    /// use after that.
    pub seen: BTreeMap<IpAddr, Moment>,
    /// The answer in force: not if the name does not exist, or it is too old.
    pub answer: Option<LastAnswer>,
    /// Until when addresses may be missing, since there were too many.
    pub crowded_until: Option<Moment>,
    /// When to ask next.
    pub due: Moment,
    /// Whether it is being asked.
    pub is_asked: bool,
    /// Failures since the last answer.
    pub failures: u32,
    /// The last of them.
    pub problem: Option<String>,
    /// How often an answer had an address that no accept rule may use.
    pub refused: u64,
}

impl Name {
    /// Whether an address is in the answer in force.
    pub fn is_current(&self, address: &IpAddr) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.addresses.contains(address))
    }

    /// Addresses that are in no answer any more, and how long they stay.
    fn leaving(&self) -> impl Iterator<Item = (IpAddr, Moment)> {
        let gone = self.seen.iter().filter(|(address, _)| !self.is_current(address));
        gone.map(|(address, seen)| (*address, *seen + GRACE))
    }

    /// When something is to be done about it, if the kernel can be asked from then on.
    fn next(&self, look_at: Moment) -> Option<Moment> {
        let ask = Some(self.due).filter(|_| !self.is_asked);
        let leave = self.leaving().map(|(_, until)| until.max(look_at)).min();
        let old = self.answer.as_ref().map(|answer| answer.at + OLDEST);
        [ask, leave, old, self.crowded_until].into_iter().flatten().min()
    }

    /// Takes in an answer.
    fn answered(&mut self, mut addresses: BTreeSet<IpAddr>, now: Moment) {
        let was_too_many = addresses.len() > MOST_ADDRESSES;
        while addresses.len() > MOST_ADDRESSES {
            addresses.pop_last();
        }
        self.put_aside(now);
        self.seen.extend(addresses.iter().map(|address| (*address, now)));
        self.answer = Some(LastAnswer { addresses, at: now });
        if self.seen.len() > MOST_ADDRESSES || was_too_many {
            self.crowded_until = Some(now + GRACE);
        }
        // Those go that have been away longest.
        let mut leaving: Vec<(IpAddr, Moment)> = self.leaving().collect();
        leaving.sort_by_key(|(_, until)| *until);
        let surplus = self.seen.len().saturating_sub(MOST_ADDRESSES);
        for (address, _) in leaving.iter().take(surplus) {
            self.seen.remove(address);
        }
    }

    /// There is no answer in force any more; its addresses stay for a while.
    fn put_aside(&mut self, now: Moment) {
        let before = self.answer.take().map(|answer| answer.addresses);
        self.seen.extend(before.into_iter().flatten().map(|address| (address, now)));
    }

    fn failed(&mut self, question: &Question, problem: String, now: Moment) {
        self.due = now + pause(question, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.problem = Some(problem);
    }

    fn addresses(&self, name: &str, guard: &Guard) -> Option<Addresses> {
        if self.answer.is_none() && self.seen.is_empty() {
            return None;
        }
        let known = || self.seen.keys().copied();
        let accept = known().filter(|address| guard.allows(name, *address)).collect();
        let drop = self.crowded_until.is_none().then(|| known().collect());
        Some(Addresses { accept, drop })
    }
}

/// What is known about all names that matter.
#[derive(Debug, Default)]
pub struct Names {
    guard: Guard,
    known: BTreeMap<Question, Name>,
    /// What an earlier agent knew, for names that are not asked for yet.
    remembered: BTreeMap<Question, Remembered>,
    /// When the kernel may be asked again what is in use.
    look_at: Moment,
}

impl Names {
    /// Nothing is known yet.
    pub fn new(guard: Guard) -> Self {
        Self { guard, ..Self::default() }
    }

    /// Takes over what an earlier agent knew, as far as it is not too old.
    pub fn recall(&mut self, remembered: Vec<Remembered>, now: Moment) {
        let usable = remembered.into_iter().filter(|it| it.at <= now && now.since(it.at) <= OLDEST);
        let usable = usable.map(|mut it| {
            it.leaving.retain(|_, since| *since <= now);
            (it.question.clone(), it)
        });
        self.remembered = usable.collect();
    }

    /// Says which names matter from now on. Returns those about which something is known
    /// from earlier, or was.
    pub fn want(&mut self, wanted: &BTreeSet<Question>) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        self.known.retain(|question, name| {
            let stays = wanted.contains(question);
            if !stays && name.addresses(&question.name, &self.guard).is_some() {
                changed.insert(question.clone());
            }
            stays
        });
        for question in wanted {
            if self.known.contains_key(question) {
                continue;
            }
            let mut name = Name::default();
            if let Some(Remembered { addresses, leaving, at, .. }) =
                self.remembered.remove(question)
            {
                name.seen = leaving;
                name.seen.extend(addresses.iter().map(|address| (*address, at)));
                name.answer = Some(LastAnswer { addresses, at });
                changed.insert(question.clone());
            }
            self.known.insert(question.clone(), name);
        }
        changed
    }

    /// What is to be asked now. It counts as being asked from then on.
    pub fn take_due(&mut self, now: Moment) -> Vec<Question> {
        let due = self.known.iter_mut().filter(|(_, name)| !name.is_asked && name.due <= now);
        due.map(|(question, name)| {
            name.is_asked = true;
            question.clone()
        })
        .collect()
    }

    /// When something is to be done next, if at all.
    pub fn next(&self) -> Option<Moment> {
        self.known.values().filter_map(|name| name.next(self.look_at)).min()
    }

    /// Takes in what came of a question. Returns whether addresses changed.
    pub fn answered(&mut self, question: &Question, outcome: Outcome, now: Moment) -> bool {
        let before = self.addresses(question);
        let Some(name) = self.known.get_mut(question) else {
            return false;
        };
        name.is_asked = false;
        match outcome {
            Ok(Answer { addresses, ttl }) => {
                let is_refused = |it: &&IpAddr| !self.guard.allows(&question.name, **it);
                let refused = addresses.iter().filter(is_refused).count();
                name.refused = name.refused.saturating_add(u64::try_from(refused).unwrap_or(0));
                name.answered(addresses, now);
                name.due = now + ttl.clamp(FLOOR, CEILING);
                name.failures = 0;
                name.problem = None;
            }
            Err(failure @ Failure::NoSuchName) => {
                name.put_aside(now);
                name.failed(question, failure.to_string(), now);
            }
            Err(failure @ Failure::NoAnswer(_)) => {
                name.failed(question, failure.to_string(), now);
            }
        }
        self.addresses(question) != before
    }

    /// The network changed: what failed is worth another attempt at once.
    pub fn retry(&mut self) {
        let failing = self.known.values_mut().filter(|name| name.problem.is_some());
        failing.for_each(|name| (name.due, name.failures) = (Moment::BOOT, 0));
    }

    /// All is to be asked anew; answers to what was asked before do not come.
    pub fn ask_all(&mut self) {
        for name in self.known.values_mut() {
            (name.due, name.failures, name.is_asked) = (Moment::BOOT, 0, false);
        }
    }

    /// Lets answers grow old. Returns the names that lead elsewhere by that.
    pub fn age(&mut self, now: Moment) -> BTreeSet<Question> {
        let mut changed = BTreeSet::new();
        for (question, name) in &mut self.known {
            let before = name.addresses(&question.name, &self.guard);
            if name.answer.as_ref().is_some_and(|answer| answer.at + OLDEST <= now) {
                name.put_aside(now);
            }
            name.crowded_until = name.crowded_until.filter(|until| *until > now);
            if name.addresses(&question.name, &self.guard) != before {
                changed.insert(question.clone());
            }
        }
        changed
    }

    /// Whether it is time to find out what is in use. It counts as done from then on.
    pub fn take_look(&mut self, now: Moment) -> bool {
        let is_time = now >= self.look_at && self.late(now).next().is_some();
        if is_time {
            self.look_at = now + BETWEEN_LOOKS;
        }
        is_time
    }

    /// Addresses that have been away long enough to go, unless they are in use.
    pub fn late(&self, now: Moment) -> impl Iterator<Item = (&Question, IpAddr)> {
        self.known.iter().flat_map(move |(question, name)| {
            let late = name.leaving().filter(move |(_, until)| *until <= now);
            late.map(move |(address, _)| (question, address))
        })
    }

    /// Lets go of addresses that have been away long enough, except those that are in use.
    /// Returns the names that changed.
    pub fn leave(
        &mut self,
        in_use: &BTreeSet<(Question, IpAddr)>,
        now: Moment,
    ) -> BTreeSet<Question> {
        let late: Vec<(Question, IpAddr)> =
            self.late(now).map(|(question, address)| (question.clone(), address)).collect();
        let mut changed = BTreeSet::new();
        for late in late {
            let Some(name) = self.known.get_mut(&late.0) else {
                continue;
            };
            if in_use.contains(&late) {
                name.seen.insert(late.1, now);
            } else {
                name.seen.remove(&late.1);
                changed.insert(late.0);
            }
        }
        changed
    }

    /// What rules with a name match; `None` if it is unresolved.
    pub fn addresses(&self, question: &Question) -> Option<Addresses> {
        self.known.get(question)?.addresses(&question.name, &self.guard)
    }

    /// Addresses of a name that no accept rule may use.
    pub fn refused(&self, question: &Question) -> BTreeSet<IpAddr> {
        let seen = self.known.get(question).map(|name| name.seen.keys().copied());
        let seen = seen.into_iter().flatten();
        seen.filter(|address| !self.guard.allows(&question.name, *address)).collect()
    }

    /// All that is known about a name that matters.
    pub fn get(&self, question: &Question) -> Option<&Name> {
        self.known.get(question)
    }

    /// All names that matter.
    pub fn iter(&self) -> impl Iterator<Item = (&Question, &Name)> {
        self.known.iter()
    }

    /// What a later agent may take over.
    pub fn to_remember(&self) -> Vec<Remembered> {
        let answered = self.known.iter().filter_map(|(question, name)| {
            let LastAnswer { addresses, at } = name.answer.clone()?;
            let mut leaving = name.seen.clone();
            leaving.retain(|address, _| !addresses.contains(address));
            Some(Remembered { question: question.clone(), addresses, leaving, at })
        });
        // What is not asked for again yet may be so later.
        answered.chain(self.remembered.values().cloned()).collect()
    }
}

/// How long to wait after so many failures. Names that failed together are not asked again
/// together: up to a quarter is added, another part for each name and each time.
fn pause(question: &Question, failures: u32) -> Duration {
    let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LAST_RETRY);
    let mut hasher = DefaultHasher::new();
    (question, failures).hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or(0);
    pause + pause / 4 * part / 256
}
