//! What the kernel has for each client, as far as the agent knows, and what it is to have instead
//! of what it refuses.
//! Never leaves in force what was there before, if that was something else than "reject all".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::client::ClientId;
use crate::events::{Effect, Installation};

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
struct InForce {
    generation: u32,
    holds: Holds,
    /// Generation and what the kernel had before the last change: it still has that if it
    /// refused the change.
    before: (u32, Holds),
    /// Why the kernel's tables could not take what the rules come to.
    refused: Option<String>,
}

/// What the kernel has.
#[derive(Debug, Default)]
pub(super) struct Installed {
    clients: BTreeMap<ClientId, InForce>,
    /// The last generation that was given out.
    generation: u32,
}

impl Installed {
    /// What a client's rules come to is put in force. Returns its generation.
    pub(super) fn put(&mut self, client: ClientId) -> u32 {
        // 0 is "no policy" in drop records.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        let known = self.clients.get(&client);
        let before = known.map_or((0, Holds::Nothing), |it| (it.generation, it.holds));
        let in_force = InForce { generation, holds: Holds::Rules, before, refused: None };
        self.clients.insert(client, in_force);
        generation
    }

    /// The kernel refused what was put last. A client whose policy does not fit into the
    /// kernel's tables is blocked. If even that does not fit, the kernel forgets the client, and
    /// drops its packets.
    pub(super) fn refused(&mut self, client: ClientId, why: &str) -> Option<Effect> {
        let in_force = self.clients.get_mut(&client)?;
        let mut instead = None;
        if in_force.refused.is_some() {
            in_force.holds = Holds::Nothing;
            instead = Some(Effect::Remove(client));
        } else if in_force.before.1 == Holds::Block {
            // It still has that.
            (in_force.generation, in_force.holds) = in_force.before;
        } else {
            in_force.holds = Holds::Block;
            let generation = in_force.generation;
            let installation = Installation::Blocked;
            instead = Some(Effect::Put { client, installation, generation, settles: true });
        }
        in_force.refused = Some(why.to_owned());
        instead
    }

    /// A client is gone.
    pub(super) fn remove(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// Whether a client is there.
    pub(super) fn is_present(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Whether the kernel is to know a client.
    pub(super) fn is_in_kernel(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|it| it.holds != Holds::Nothing)
    }

    /// Whether the kernel has what a client's rules come to.
    pub(super) fn has_rules(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|it| it.holds == Holds::Rules)
    }

    /// All clients that are there.
    pub(super) fn all(&self) -> impl Iterator<Item = ClientId> {
        self.clients.keys().copied()
    }

    /// The clients that have an address, one behind each vif that leads to it.
    pub(super) fn of(&self, address: IpAddr) -> Vec<ClientId> {
        self.all().filter(|client| client.address == address).collect()
    }

    /// Addresses of all clients that are there.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.all().map(|client| client.address).collect()
    }

    /// Number of what was put in force last, if the client is there.
    pub(super) fn generation(&self, client: ClientId) -> Option<u32> {
        self.clients.get(&client).map(|it| it.generation)
    }

    /// Why the kernel's tables could not take what the client's rules come to.
    pub(super) fn refusal(&self, client: ClientId) -> Option<&str> {
        self.clients.get(&client)?.refused.as_deref()
    }
}
