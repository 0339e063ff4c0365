//! What did not work and is tried again, less and less often.
//! Never gives up, and never says that something works before it does.

use std::collections::BTreeMap;
use std::time::Duration;

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
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<Task> {
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

    /// Takes in that a task did not work. Says so, if that is news.
    pub(super) fn fails(&mut self, task: Task, why: Why, now: Moment) -> Option<Effect> {
        let is_news = self.failed(task, why.0.clone(), now);
        is_news.then(|| Effect::Tell(Notice::Failing { what: what(task), why: Some(why.0) }))
    }

    /// Takes in that a task works. Says so, if it did not before.
    pub(super) fn works(&mut self, task: Task) -> Option<Effect> {
        let was_failing = self.done(task);
        was_failing.then(|| Effect::Tell(Notice::Failing { what: what(task), why: None }))
    }

    /// What does not work, and when it is tried again. What blocks a client is told with the
    /// client.
    pub(super) fn statuses(&self, now: Moment) -> Vec<FailingStatus> {
        let told = self.failing.iter().filter(|(task, _)| !matches!(task, Task::Put(_)));
        let statuses = told.map(|(task, it)| FailingStatus {
            what: what(*task),
            why: it.why.clone(),
            next_seconds_left: it.due.map_or(0, |due| due.since(now).as_secs()),
        });
        statuses.collect()
    }
}

/// What is so as long as a task does not work.
fn what(task: Task) -> String {
    let of = |client: ClientId| client.address;
    match task {
        Task::Links => "links are not known as they are now".to_owned(),
        Task::Locals => "the netvm's own addresses are not those that packets meet".to_owned(),
        Task::LeaveToOthers => {
            "rules of others in the gate are not asked about clients without rules".to_owned()
        }
        Task::EndWaiting => {
            "what waits at a link by which clients may not leave any more is not ended".to_owned()
        }
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
