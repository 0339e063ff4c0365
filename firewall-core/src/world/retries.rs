//! What did not work and is tried again, less and less often.
//! Never gives up, and never says that something works before it does.

use std::collections::BTreeMap;
use std::time::Duration;

use super::World;
use crate::client::ClientId;
use crate::events::{Effect, Notice, Task, Why};
use crate::time::Moment;
use crate::told::status::FailingStatus;

/// How long after the first failure something is tried again; after each further one it is
/// twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
const LAST: Duration = Duration::from_secs(60);

/// A task that did not work.
#[derive(Debug)]
struct Failing {
    why: String,
    failures: u32,
    /// When it is tried again; nothing while it is being tried.
    due: Option<Moment>,
}

/// Tasks that did not work.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failing: BTreeMap<Task, Failing>,
}

impl Retries {
    /// Takes in a failure. Returns whether that is news.
    pub(super) fn failed(&mut self, task: Task, why: String, now: Moment) -> bool {
        let known = self.failing.get(&task);
        let failures = known.map_or(0, |it| it.failures);
        let is_news = known.is_none_or(|it| it.why != why);
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(LAST);
        let failures = failures.saturating_add(1);
        self.failing.insert(task, Failing { why, failures, due: Some(now + pause) });
        is_news
    }

    /// Takes in that a task is done, or needs not be any more. Returns whether it was failing.
    pub(super) fn done(&mut self, task: Task) -> bool {
        self.failing.remove(&task).is_some()
    }

    /// Whether a task did not work the last time.
    pub(super) fn is_failing(&self, task: Task) -> bool {
        self.failing.contains_key(&task)
    }

    /// Whether it is too early to try a task again.
    pub(super) fn waits(&self, task: Task) -> bool {
        self.failing.get(&task).is_some_and(|it| it.due.is_some())
    }

    /// The tasks that are to be tried now. They count as being tried from then on.
    fn take_due(&mut self, now: Moment) -> Vec<Task> {
        let due = self.failing.iter_mut().filter(|(_, it)| it.due.is_some_and(|due| due <= now));
        due.map(|(task, it)| {
            it.due = None;
            *task
        })
        .collect()
    }

    /// When something is to be tried next, if at all.
    pub(super) fn next(&self) -> Option<Moment> {
        self.failing.values().filter_map(|it| it.due).min()
    }
}

impl World {
    /// Takes in what came of a task.
    pub(super) fn tried(
        &mut self,
        task: Task,
        outcome: Result<(), Why>,
        now: Moment,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match outcome {
            Ok(()) if self.is_stand_in(task) => {}
            Ok(()) => effects.extend(self.works(task)),
            Err(Why(why)) => effects.extend(self.fails(task, why, now)),
        }
        if task == Task::Tidy && !self.retries.is_failing(Task::Tidy) {
            effects.extend(self.quiet());
        }
        effects
    }

    pub(super) fn fails(&mut self, task: Task, why: String, now: Moment) -> Option<Effect> {
        let is_news = self.retries.failed(task, why.clone(), now);
        let told = || Effect::Tell(Notice::Failing { what: self.what(task), why: Some(why) });
        is_news.then(told)
    }

    pub(super) fn works(&mut self, task: Task) -> Option<Effect> {
        let was_failing = self.retries.done(task);
        let told = || Effect::Tell(Notice::Failing { what: self.what(task), why: None });
        was_failing.then(told)
    }

    /// Tries again what is due.
    pub(super) fn retry(&mut self, now: Moment) -> Vec<Effect> {
        let due = self.retries.take_due(now);
        due.into_iter().flat_map(|task| self.retry_one(task, now)).collect()
    }

    fn retry_one(&mut self, task: Task, now: Moment) -> Vec<Effect> {
        let again: Vec<Effect> = match task {
            Task::Links => vec![Effect::ReadLinks],
            Task::Locals => vec![Effect::SetLocals(self.locals.clone())],
            Task::Connected => vec![Effect::SetConnected(self.connected.clone())],
            Task::Put(client) => self.put_again(client),
            Task::Audit(client) if self.clients.contains_key(&client) => {
                vec![self.audit_effect(client)]
            }
            Task::Remove(client) if !self.is_in_kernel(client) => vec![Effect::Remove(client)],
            Task::Settled(client) if self.clients.contains_key(&client) => {
                vec![Effect::Settled(client)]
            }
            // All that is done about an event ends with these.
            Task::Tidy | Task::Prepare => return Vec::new(),
            // They are tried together, and say so themselves.
            Task::ReadConnections | Task::Cut(_) => return Vec::new(),
            Task::ReadFlows => self.look(now).into_iter().collect(),
            Task::Forget(link) if !self.links_in_use().contains(&link) => {
                vec![Effect::Forget { link }]
            }
            Task::TakenOver => vec![Effect::TakenOver],
            Task::Audit(_) | Task::Remove(_) | Task::Settled(_) | Task::Forget(_) => Vec::new(),
        };
        if again.is_empty() {
            // Nobody needs it any more.
            self.retries.done(task);
        }
        again
    }

    /// Whether a task did not work the last time.
    pub fn is_failing(&self, task: Task) -> bool {
        self.retries.is_failing(task)
    }

    /// What does not work, and when it is tried again. What blocks a client is told with the
    /// client.
    pub fn failing_statuses(&self, now: Moment) -> Vec<FailingStatus> {
        let told = self.retries.failing.iter().filter(|(task, _)| !matches!(task, Task::Put(_)));
        let statuses = told.map(|(task, it)| FailingStatus {
            what: self.what(*task),
            why: it.why.clone(),
            next_seconds_left: it.due.map_or(0, |due| due.since(now).as_secs()),
        });
        statuses.collect()
    }

    /// What is so as long as a task does not work.
    fn what(&self, task: Task) -> String {
        let of = |client: ClientId| client.address;
        match task {
            Task::Links => "links are not known as they are now".to_owned(),
            Task::Locals => "the netvm's own addresses are not those that packets meet".to_owned(),
            Task::Connected => "addresses of clients are not all guarded on other links".to_owned(),
            Task::Put(client) => format!("the rules of {} are not in force", of(client)),
            Task::Audit(client) => format!("the audit of {} has not changed", of(client)),
            Task::Remove(client) => format!("{} is gone and not forgotten", of(client)),
            Task::Settled(client) => {
                format!("denied packets of {} are dropped and not rejected", of(client))
            }
            Task::Tidy => "what was replaced in the maps takes room, and connections that rules \
                           deny are not ended"
                .to_owned(),
            Task::Prepare => "no room is ready for the next policies".to_owned(),
            Task::ReadConnections => {
                "connections that rules deny are not ended, and denied packets of their clients \
                 are dropped"
                    .to_owned()
            }
            Task::Cut(client) => format!(
                "connections of {} that rules deny are not ended, and its denied packets are dropped",
                of(client)
            ),
            Task::ReadFlows => "old addresses of names stay".to_owned(),
            Task::Forget(link) => format!("a pin of link {link}, which is gone, stays"),
            Task::TakenOver => "pins of an earlier agent, or what it let pass, may stay".to_owned(),
        }
    }
}
