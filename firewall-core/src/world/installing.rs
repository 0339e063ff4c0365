//! What is put in force for each client, and what instead if the kernel refuses.
//! Never leaves in force what was there before, if that was something else than "reject all".

use super::{Standing, World};
use crate::client::ClientId;
use crate::events::{Effect, Installation, Notice, Task};
use crate::time::Moment;

/// What the kernel has for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// What its rules come to.
    Rules,
    /// "Reject all" in place of that.
    Block,
    /// Nothing: its packets are those of an unknown source.
    Nothing,
}

#[derive(Debug)]
pub(super) struct InForce {
    pub(super) generation: u32,
    holds: Holds,
    /// Generation and what the kernel had before the last change: it still has that if it
    /// refused the change.
    before: (u32, Holds),
    /// Why the kernel's tables could not take what the rules come to.
    pub(super) refused: Option<String>,
}

impl World {
    /// Puts what a client's rules come to in force. Whatever is new may deny what the client
    /// has open: it settles each time.
    pub(super) fn put(&mut self, client: ClientId) -> Vec<Effect> {
        // A failure of something else.
        self.retries.done(Task::Put(client));
        self.install(client)
    }

    /// The same after the kernel refused it, if it still does not have it.
    pub(super) fn put_again(&mut self, client: ClientId) -> Vec<Effect> {
        let is_refused = self.clients.get(&client).is_some_and(|it| it.refused.is_some());
        if is_refused { self.install(client) } else { Vec::new() }
    }

    fn install(&mut self, client: ClientId) -> Vec<Effect> {
        // 0 is "no policy" in drop records.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        let installation = match self.standings.get(&client.address) {
            None | Some(Standing::Waiting) => Installation::Waiting,
            Some(Standing::Blocked(_)) => Installation::Blocked,
            Some(Standing::Live(live)) => Installation::Policy {
                policy: live.policy.clone(),
                rules: u32::try_from(live.ruleset.rules.len()).unwrap_or(u32::MAX),
            },
        };
        let known = self.clients.get(&client);
        let before = known.map_or((0, Holds::Nothing), |it| (it.generation, it.holds));
        let in_force = InForce { generation, holds: Holds::Rules, before, refused: None };
        self.clients.insert(client, in_force);
        self.settle(client);
        let mut effects = vec![Effect::Put { client, installation, generation }];
        effects.extend(self.audit_of(client));
        effects
    }

    /// A client whose policy does not fit into the kernel's tables is blocked. If even
    /// that does not fit, the kernel forgets the client, and drops its packets.
    pub(super) fn refused(
        &mut self,
        client: ClientId,
        why: String,
        may_pass: bool,
        now: Moment,
    ) -> Vec<Effect> {
        let Some(in_force) = self.clients.get_mut(&client) else {
            return Vec::new();
        };
        let is_stand_in = in_force.refused.is_some();
        let mut instead = None;
        if is_stand_in {
            in_force.holds = Holds::Nothing;
            instead = Some(Effect::Remove(client));
        } else if in_force.before.1 == Holds::Block {
            // It still has that.
            (in_force.generation, in_force.holds) = in_force.before;
        } else {
            in_force.holds = Holds::Block;
            let generation = in_force.generation;
            instead = Some(Effect::Put { client, installation: Installation::Blocked, generation });
        }
        let told = if may_pass { format!("{why}; it is tried again") } else { why.clone() };
        in_force.refused = Some(told.clone());
        self.settle(client);
        // One attempt with two failures is one.
        let is_counted = is_stand_in && self.retries.is_failing(Task::Put(client));
        let is_news = !may_pass || is_counted || self.retries.failed(Task::Put(client), why, now);
        let notice = Notice::Blocked { client: client.address, why: told };
        is_news.then_some(Effect::Tell(notice)).into_iter().chain(instead).collect()
    }

    /// Whether what was put last is not what the rules come to.
    pub(super) fn is_stand_in(&self, task: Task) -> bool {
        match task {
            Task::Put(client) => self.clients.get(&client).is_some_and(|it| it.refused.is_some()),
            _ => false,
        }
    }

    /// Whether the kernel is to know a client.
    pub(super) fn is_in_kernel(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|it| it.holds != Holds::Nothing)
    }
}
