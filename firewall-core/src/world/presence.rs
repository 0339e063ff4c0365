//! Who is there, and who is only known by rules; and what is in force for each.
//! Never changes anything.

use std::net::IpAddr;

use super::World;
use super::standings::Standing;
use crate::client::ClientId;
use crate::events::Task;
use crate::told::status::{ProblemStatus, State};

/// A client that is there, or an address with rules that is behind no vif.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presence {
    /// The address.
    pub(super) address: IpAddr,
    /// Interface index of the vif, if there is one.
    pub(super) vif: Option<u32>,
}

impl Presence {
    /// The client, if it is there.
    pub(super) fn client(self) -> Option<ClientId> {
        self.vif.map(|vif| ClientId { vif, address: self.address })
    }
}

impl World {
    /// Whether denied packets of a client are dropped, because it settles.
    pub fn is_settling(&self, client: ClientId) -> bool {
        self.clients.settling().contains(client) || self.retries.is_failing(Task::Settled(client))
    }

    /// All clients that are there, and addresses with rules but no vif.
    pub(super) fn presences(&self) -> Vec<Presence> {
        let installed = self.clients.installed();
        let present = installed.all().map(|ClientId { vif, address }| (address, Some(vif)));
        let has_vif = installed.addresses();
        let absent = self.standings.addresses().filter(|address| !has_vif.contains(address));
        let all = present.chain(absent.map(|address| (address, None)));
        all.map(|(address, vif)| Presence { address, vif }).collect()
    }

    /// What is in force for somebody, and why it is blocked, if it is.
    pub(super) fn state(&self, presence: Presence) -> (State, Option<ProblemStatus>) {
        let refusal = presence.client().and_then(|it| self.clients.installed().refusal(it));
        let refused = refusal.map(|reason| ProblemStatus {
            origin: "the kernel's tables".to_owned(),
            line: None,
            text: String::new(),
            reason: reason.to_owned(),
        });
        let (state, problem) = match (self.standings.of(presence.address), refused) {
            (_, Some(problem)) => (State::Blocked, Some(problem)),
            (Standing::Blocked(problem), None) => (State::Blocked, Some(problem.clone())),
            (Standing::Waiting, None) => (State::Waiting, None),
            (Standing::Live(_), None) => (State::Live, None),
        };
        let is_absent = presence.vif.is_none() && problem.is_none();
        (if is_absent { State::Absent } else { state }, problem)
    }
}
