//! By which links clients' packets may leave, as far as somebody wants that limited, and which of
//! these there are.
//! Never decides by that: a link may come later.

use std::collections::BTreeMap;

use super::World;
use crate::client::{ClientId, Links};
use crate::events::{Effect, Notice, Task};
use crate::told::status::{UplinkStatus, UplinksFrom, UplinksStatus};
use crate::uplinks::{BadUplinks, KEY, Uplinks};

/// The only links by which clients' packets may leave.
#[derive(Debug, Default)]
pub(super) struct Limit {
    /// What the command line says.
    given: Option<Uplinks>,
    /// What the key says, or what was in force before the key was read.
    of_key: Option<Uplinks>,
    is_key_read: bool,
    /// The links there are, but vifs: names by index.
    there: BTreeMap<u32, String>,
    /// What is wrong with the key.
    problem: Option<String>,
    /// Whether something may wait at other links that was let pass before.
    has_waiting: bool,
}

impl Limit {
    /// What the command line says, and what an earlier agent left in force: as long as the key is not
    /// read, nobody may leave by another link.
    pub(super) fn new(given: Option<Uplinks>, before: Option<Uplinks>) -> Self {
        Self { given, of_key: before, has_waiting: true, ..Self::default() }
    }

    /// Takes in which links there are. One that was in the list under another name may have something
    /// waiting.
    fn see(&mut self, links: &Links) {
        let before = std::mem::replace(&mut self.there, links.uplinks.clone());
        let Some(list) = self.in_force() else { return };
        self.has_waiting |= before.iter().any(|(index, name)| {
            let now = self.there.get(index);
            list.contains(name) && now.is_some_and(|now| !list.contains(now))
        });
    }

    /// Something may wait at a link by which it may not leave.
    pub(super) fn lets_wait(&mut self) {
        self.has_waiting = true;
    }

    /// What is in force: each of both wishes takes links away, and none gives any.
    pub(super) fn in_force(&self) -> Option<Uplinks> {
        Uplinks::both(self.given.as_ref(), self.of_key.as_ref())
    }

    /// Takes in what the key says. What is wrong in it lets nothing leave that does not leave now.
    fn read(&mut self, key: Result<Option<Uplinks>, BadUplinks>) -> Vec<Effect> {
        let (before, problem_before) = (self.in_force(), self.problem.take());
        (self.of_key, self.problem) = match key {
            Ok(uplinks) => (uplinks, None),
            Err(bad) => {
                let problem = format!("{KEY}: {bad}");
                (Some(bad.instead(self.of_key.as_ref())), Some(problem))
            }
        };
        self.is_key_read = true;
        let mut effects = Vec::new();
        if self.problem != problem_before {
            effects.push(Effect::Tell(Notice::UplinksProblem(self.problem.clone())));
        }
        let now = self.in_force();
        if now != before {
            effects.push(Effect::Tell(Notice::Uplinks(now.clone())));
            effects.extend([Effect::LimitUplinks(now), Effect::LoadGate]);
            self.has_waiting = true;
        }
        effects
    }

    /// What is wrong with the key.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn origins(&self) -> Vec<UplinksFrom> {
        let of_key = if self.is_key_read { UplinksFrom::Qubesdb } else { UplinksFrom::Before };
        let given = self.given.as_ref().map(|_| UplinksFrom::Options);
        given.into_iter().chain(self.of_key.as_ref().map(|_| of_key)).collect()
    }
}

impl World {
    /// Takes in what the netvm's own key says. Names are asked by other links then.
    pub(super) fn uplinks(&mut self, key: Result<Option<Uplinks>, BadUplinks>) -> Vec<Effect> {
        // Nothing of a client leaves a Whonix gateway, by whatever link.
        if self.judges_all() {
            return Vec::new();
        }
        let mut effects = self.limit.read(key);
        if effects.iter().any(|effect| matches!(effect, Effect::LimitUplinks(_))) {
            effects.push(self.naming.ask_all());
            effects.extend(self.retries.works(Task::EndWaiting));
        }
        effects
    }

    /// Takes in which links there are, for the list.
    pub(super) fn see_uplinks(&mut self, links: &Links) -> Vec<Effect> {
        let had_waiting = self.limit.has_waiting;
        self.limit.see(links);
        // The gate knows names, and lets nothing more get to a link that has another one now.
        if self.limit.has_waiting && !had_waiting { self.end_waiting() } else { Vec::new() }
    }

    /// Ends what waits in the netvm, at a link by which it may not leave any more. To be called when
    /// the gate lets nothing more get there.
    pub(super) fn end_waiting(&mut self) -> Vec<Effect> {
        let has_waiting = std::mem::take(&mut self.limit.has_waiting);
        let Some(uplinks) = self.limit.in_force().filter(|_| has_waiting) else {
            return Vec::new();
        };
        // What rules accepted may also wait for something else than a neighbour.
        let clients: Vec<ClientId> = self.clients.installed().all().collect();
        let puts = clients.into_iter().flat_map(|client| self.put(client, false));
        puts.chain([Effect::EndWaiting(uplinks)]).collect()
    }

    /// What waits at other links than these, if anything may: to be tried again.
    pub(super) fn end_waiting_again(&self) -> Option<Effect> {
        self.limit.in_force().map(Effect::EndWaiting)
    }

    /// What is told of the only links by which clients' packets may leave; `None` if any will do.
    pub(super) fn uplinks_status(&self) -> Option<UplinksStatus> {
        let Uplinks(links) = self.limit.in_force()?;
        let link = |name: &str| UplinkStatus {
            name: name.to_owned(),
            there: self.limit.there.values().any(|it| it == name),
        };
        let links = links.iter().map(|name| link(name.as_str())).collect();
        Some(UplinksStatus { links, from: self.limit.origins() })
    }
}
