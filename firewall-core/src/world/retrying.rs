//! Trying again: what is to be done for each task that did not work, if somebody still needs it.
//! Never says when; `retries.rs` remembers that.

use super::World;
use crate::events::{Effect, Task, Why};
use crate::time::Moment;

impl World {
    /// Takes in what came of a task.
    pub(super) fn tried(
        &mut self,
        task: Task,
        outcome: Result<(), Why>,
        now: Moment,
    ) -> Vec<Effect> {
        let told = match outcome {
            // It worked, and is not what the rules come to.
            Ok(()) if self.is_stand_in(task) => None,
            Ok(()) => self.retries.works(task),
            Err(why) => self.retries.fails(task, why, now),
        };
        let is_quiet = task == Task::Tidy && !self.retries.is_failing(Task::Tidy);
        let begun = if is_quiet { self.clients.quiet(&mut self.retries) } else { None };
        told.into_iter().chain(begun).collect()
    }

    /// Whether what was put last is not what the rules come to.
    fn is_stand_in(&self, task: Task) -> bool {
        let is_refused = |client| self.clients.installed().refusal(client).is_some();
        matches!(task, Task::Put(client) if is_refused(client))
    }

    /// Tries again what did not work, if somebody still needs it.
    pub(super) fn retry(&mut self, task: Task, now: Moment) -> Vec<Effect> {
        let is_present = |client| self.clients.installed().is_present(client);
        let again: Vec<Effect> = match task {
            Task::Links => vec![Effect::ReadLinks],
            Task::Locals => vec![self.links.locals_effect()],
            Task::LeaveToOthers => vec![self.gate.leave_effect()],
            Task::EndWaiting => self.end_waiting_again().into_iter().collect(),
            Task::Connected => vec![self.connected.effect()],
            Task::Put(client) if self.is_stand_in(task) => {
                let installation = self.standings.installation(client.address);
                self.clients.install(client, installation, &mut self.retries)
            }
            Task::Audit(client) if is_present(client) => {
                vec![self.clients.audit_effect(client, &mut self.retries)]
            }
            Task::Remove(client) if !self.clients.installed().is_in_kernel(client) => {
                vec![Effect::Remove(client)]
            }
            Task::Settled(client) if is_present(client) => vec![Effect::Settled(client)],
            // All that is done about an event ends with these.
            Task::Tidy | Task::Prepare => return Vec::new(),
            // They are tried together, and say so themselves.
            Task::ReadConnections | Task::Cut(_) => return Vec::new(),
            // It is being tried.
            Task::ReadFlows if self.naming.is_looking() => return Vec::new(),
            Task::ReadFlows => self.naming.look(now).into_iter().collect(),
            Task::Forget(link) if !self.links.in_use().contains(&link) => {
                vec![Effect::Forget { link }]
            }
            Task::TakenOver => vec![Effect::TakenOver(self.links.in_use())],
            Task::Put(_)
            | Task::Audit(_)
            | Task::Remove(_)
            | Task::Settled(_)
            | Task::Forget(_) => Vec::new(),
        };
        if again.is_empty() {
            // Nobody needs it any more.
            self.retries.done(task);
        }
        again
    }
}
