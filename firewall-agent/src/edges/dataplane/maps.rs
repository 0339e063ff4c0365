//! What is in force for clients, in the kernel's maps: staged where no packet looks, made live
//! by one store, taken back when no packet can see it any more. And which addresses are whose, and
//! what was counted.
//! Never decides what to install.
//!
//! What was replaced must outlive the packets that still read it: only after a wait until
//! all running programs have ended are indices used again.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use aya::maps::{MapData, MapError};
use firewall_common::abi::{
    Client, ClientKey, Counter, Local, MAX_CLIENTS, MAX_COUNTERS, MAX_INSTALLED, SETTLING,
    STATE_BLOCKED, STATE_POLICY, STATE_WAITING,
};
use firewall_common::fragments::{Datagrams, MAX_TABLES};
use firewall_common::verdict::{Reason, reason_counter, rule_counter};

use super::addresses::AddressMap;
use super::epoch::Epoch;
use super::mapped::MappedArray;
use super::object::{MapsError, indices, take, take_array, take_range};
use super::plain::Plain;
use super::policies::Policies;
use super::ranges::Ranges;
use super::stamps::Stamps;
use firewall_core::client::ClientId;
use firewall_core::events::Installation;
use firewall_core::rules::compile::Policy;

/// What is in force for a client.
struct InForce {
    /// Index of the record, and what it says.
    record: u32,
    client: Client,
    counters: Range<u32>,
    policy: Option<Arc<Policy>>,
}

/// All maps that the agent writes.
pub struct Maps {
    epoch: Epoch,
    clients: aya::maps::HashMap<MapData, Plain<ClientKey>, u32>,
    live: MappedArray<u32>,
    records: MappedArray<Client>,
    policies: Policies,
    locals: AddressMap,
    connected: AddressMap,
    counters: MappedArray<Counter>,
    stamps: Stamps,
    datagrams: aya::maps::Array<MapData, Plain<Datagrams>>,

    free_indices: Ranges,
    free_records: Ranges,
    free_counters: Ranges,

    indices: HashMap<ClientId, u32>,
    in_force: HashMap<ClientId, InForce>,
    /// Not in force any more, but perhaps still read by packets on their way.
    retired: Vec<InForce>,
    retired_indices: Vec<u32>,
}

impl Maps {
    /// Takes the maps of a freshly loaded object.
    pub fn new(ebpf: &mut aya::Ebpf) -> Result<Self, MapsError> {
        Ok(Self {
            epoch: Epoch::new(MappedArray::new(take_array(ebpf, "EPOCH")?, 1)?)?,
            clients: take(ebpf, "CLIENTS")?,
            live: MappedArray::new(take_array(ebpf, "LIVE")?, MAX_CLIENTS)?,
            records: MappedArray::new(take_array(ebpf, "INSTALLED")?, MAX_INSTALLED)?,
            policies: Policies::new(ebpf)?,
            locals: AddressMap::new(take(ebpf, "LOCALS")?, take(ebpf, "LOCALS_FILTER")?),
            connected: AddressMap::new(take(ebpf, "CONNECTED")?, take(ebpf, "CONNECTED_FILTER")?),
            counters: MappedArray::new(take_array(ebpf, "COUNTERS")?, MAX_COUNTERS)?,
            stamps: Stamps::new(take(ebpf, "STAMPS")?),
            datagrams: take(ebpf, "DATAGRAMS")?,
            free_indices: indices(0, MAX_CLIENTS),
            free_records: indices(0, MAX_INSTALLED),
            // The first counters are for packets without a client.
            free_counters: indices(Reason::COUNT, MAX_COUNTERS),
            indices: HashMap::new(),
            in_force: HashMap::new(),
            retired: Vec::new(),
            retired_indices: Vec::new(),
        })
    }

    /// Puts something in force for a client. On error nothing has changed.
    pub fn put(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
    ) -> Result<(), MapsError> {
        if !self.indices.contains_key(&client) && !self.retired_indices.is_empty() {
            // A new entry of CLIENTS may get the memory of one that was just removed, which
            // a packet of that client may still read.
            self.quiesce()?;
        }
        match self.try_put(client, installation, generation) {
            Err(MapsError::Full { .. }) if self.has_retired() => {
                self.quiesce()?;
                self.try_put(client, installation, generation)
            }
            outcome => outcome,
        }
    }

    fn try_put(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
    ) -> Result<(), MapsError> {
        let (state, policy, rules) = match installation {
            Installation::Waiting => (STATE_WAITING, None, 0),
            Installation::Blocked => (STATE_BLOCKED, None, 0),
            Installation::Policy { policy, rules } => (STATE_POLICY, Some(policy.policy()), *rules),
        };
        let mut staged = self.stage(policy, rules)?;
        let index = match self.indices.get(&client) {
            Some(index) => Ok(*index),
            None => take_range(&mut self.free_indices, 1, "clients", MAX_CLIENTS)
                .map(|index| index.start),
        };
        let outcome = index.and_then(|index| {
            staged.client = Client {
                state: state | SETTLING,
                policy: policy.map_or(0, |it| self.policies.slot_of(it)),
                generation,
                counters: staged.counters.start,
                index,
                audit_until: 0,
                only_class: policy.map_or(0, |it| self.policies.only_class(it, client.address)),
                stamp: self.stamps.take()?,
            };
            self.records.store(staged.record, [staged.client])?;
            self.make_live(client, index, staged.record)
        });
        match outcome {
            Ok(()) => {
                if let Some(old) = self.in_force.insert(client, staged) {
                    self.stamps.retire(old.client.stamp);
                    self.retired.push(old);
                }
                Ok(())
            }
            Err(error) => {
                self.stamps.retire(staged.client.stamp);
                self.retired.push(staged);
                Err(error)
            }
        }
    }

    /// Lets a client's denied packets be rejected again, now that nothing is left of what
    /// it had open and must not have.
    pub fn settle(&mut self, client: ClientId) -> Result<(), MapsError> {
        self.amend(client, |it| Client { state: it.state & !SETTLING, ..it })
    }

    /// Lets what a client's policy denies pass up to `until`, in seconds since the machine
    /// booted; 0: not any more. Either way the client has to settle. A client for which nothing is
    /// in force is left alone.
    pub fn audit(&mut self, client: ClientId, until: u32) -> Result<(), MapsError> {
        if !self.in_force.contains_key(&client) {
            return Ok(());
        }
        let stamp = self.stamps.take()?;
        let outcome = self.amend(client, |it| {
            let state = it.state | SETTLING;
            Client { state, audit_until: until, stamp, ..it }
        });
        if self.in_force.get(&client).is_none_or(|it| it.client.stamp != stamp) {
            self.stamps.retire(stamp);
        }
        outcome
    }

    /// What an earlier agent let pass leaves no more if it waited until now, when this agent has
    /// taken over. Takes some milliseconds.
    pub fn take_over(&mut self) -> Result<(), MapsError> {
        self.policies.wait()?;
        Ok(self.stamps.end_others()?)
    }

    /// Changes what is in force for a client; its policy and counters stay.
    fn amend(
        &mut self,
        client: ClientId,
        change: impl Fn(Client) -> Client,
    ) -> Result<(), MapsError> {
        if self.free_records.is_empty() {
            self.quiesce()?;
        }
        let Some(in_force) = self.in_force.get_mut(&client) else {
            return Ok(());
        };
        let amended = change(in_force.client);
        let record = take_range(&mut self.free_records, 1, "clients", MAX_CLIENTS)?.start;
        self.records.store(record, [amended])?;
        self.live.publish(amended.index, record)?;
        self.epoch.advance()?;
        let old = std::mem::replace(&mut in_force.record, record);
        let before = std::mem::replace(&mut in_force.client, amended);
        if before.stamp != amended.stamp {
            self.stamps.retire(before.stamp);
        }
        // Counters and policy are still in use; only the record is not.
        self.retired.push(InForce { record: old, client: amended, counters: 0..0, policy: None });
        Ok(())
    }

    /// Takes all that a client needs to be put in force, and fills in all but the record.
    fn stage(&mut self, policy: Option<&Arc<Policy>>, rules: u32) -> Result<InForce, MapsError> {
        let counters = Reason::COUNT.saturating_add(rules);
        let record = take_range(&mut self.free_records, 1, "clients", MAX_CLIENTS)?;
        let counters = take_range(&mut self.free_counters, counters, "rule counters", MAX_COUNTERS)
            .inspect_err(|_| self.free_records.give(record.clone()))?;
        let client = Client::default();
        let mut staged = InForce { record: record.start, client, counters, policy: None };
        let zeros = staged.counters.clone().map(|_| Counter::default());
        let cleared = self.counters.store(staged.counters.start, zeros).map_err(MapsError::from);
        let filled = cleared.and_then(|()| match policy {
            None => Ok(()),
            Some(policy) => {
                self.policies.share(policy)?;
                staged.policy = Some(Arc::clone(policy));
                Ok(())
            }
        });
        if let Err(error) = filled {
            // No packet has seen it.
            self.free_records.give(record);
            self.free_counters.give(staged.counters);
            return Err(error);
        }
        Ok(staged)
    }

    /// The one store that makes packets see a record.
    fn make_live(&mut self, client: ClientId, index: u32, record: u32) -> Result<(), MapsError> {
        if self.indices.contains_key(&client) {
            self.live.publish(index, record)?;
            return Ok(self.epoch.advance()?);
        }
        // What a client that is gone left unfinished is not this one's. Where another client shares
        // the table, its datagrams are dropped.
        let table = index & (MAX_TABLES as u32 - 1);
        let inserted = self
            .datagrams
            .set(table, Plain(Datagrams::default()), 0)
            .map_err(MapsError::from)
            .and_then(|()| Ok(self.live.publish(index, record)?))
            .and_then(|()| Ok(self.clients.insert(Plain(key(client)), index, 0)?));
        match inserted {
            Ok(()) => {
                self.indices.insert(client, index);
                Ok(())
            }
            Err(error) => {
                self.free_indices.give(index..index + 1);
                Err(error)
            }
        }
    }

    /// Makes the kernel forget a client: its packets are those of an unknown source.
    pub fn remove(&mut self, client: ClientId) -> Result<(), MapsError> {
        let Some(index) = self.indices.get(&client).copied() else {
            return Ok(());
        };
        match self.clients.remove(&Plain(key(client))) {
            // That is what was wanted.
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
        self.epoch.advance()?;
        self.indices.remove(&client);
        self.retired_indices.push(index);
        if let Some(removed) = self.in_force.remove(&client) {
            self.stamps.retire(removed.client.stamp);
            self.retired.push(removed);
        }
        Ok(())
    }

    /// Whether [`Self::quiesce`] would give something back.
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.retired_indices.is_empty()
    }

    /// Waits until no packet can see what was replaced, and makes room of it. From then on,
    /// nothing leaves that what was replaced let pass. Takes some milliseconds. On error nothing is
    /// given back, and nothing is lost.
    pub fn quiesce(&mut self) -> Result<(), MapsError> {
        self.policies.wait()?;
        self.stamps.end_retired()?;
        for index in self.retired_indices.drain(..) {
            self.free_indices.give(index..index + 1);
        }
        for retired in self.retired.drain(..) {
            let InForce { record, client: _, counters, policy } = retired;
            self.free_records.give(record..record + 1);
            self.free_counters.give(counters);
            if let Some(policy) = policy {
                self.policies.leave(&policy);
            }
        }
        Ok(())
    }

    /// Makes room of what was replaced, and prepares for the next policy. Takes some milliseconds.
    pub fn tidy(&mut self) -> Result<(), MapsError> {
        if self.has_retired() {
            self.quiesce()?;
        }
        self.prepare()
    }

    /// Whether the next policy need not wait.
    pub fn is_prepared(&self) -> bool {
        self.policies.is_prepared()
    }

    /// Makes room ready, so that the next policy need not wait. Takes some milliseconds.
    pub fn prepare(&mut self) -> Result<(), MapsError> {
        self.policies.prepare()
    }

    /// Makes the netvm's own addresses known: exactly these.
    pub fn set_locals(
        &mut self,
        addresses: impl IntoIterator<Item = (IpAddr, Local)>,
    ) -> Result<(), MapsError> {
        let addresses = addresses.into_iter().map(|(address, local)| (address, local.to_raw()));
        let outcome = self.locals.set(addresses);
        // Some may have changed before an error.
        self.epoch.advance()?;
        Ok(outcome?)
    }

    /// Makes known which addresses belong to clients: exactly these.
    pub fn set_connected(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<(), MapsError> {
        Ok(self.connected.set(addresses.map(|address| (address, 1)))?)
    }

    /// What was counted for a reason; without a client, for packets of nobody known. Zeros if
    /// nothing is in force for the client.
    pub fn reason_counter(&self, client: Option<ClientId>, reason: Reason) -> Counter {
        match client.map(|client| self.in_force.get(&client)) {
            None => self.counters.load(reason_counter(0, reason)),
            Some(None) => Counter::default(),
            Some(Some(it)) => self.counters.load(reason_counter(it.counters.start, reason)),
        }
    }

    /// What was counted for the rule with this index; zeros if the client has no such rule.
    pub fn rule_counter(&self, client: ClientId, rule: u32) -> Counter {
        let Some(in_force) = self.in_force.get(&client) else {
            return Counter::default();
        };
        let index = rule_counter(in_force.counters.start, rule);
        if in_force.counters.contains(&index) {
            self.counters.load(index)
        } else {
            Counter::default()
        }
    }
}

fn key(client: ClientId) -> ClientKey {
    ClientKey { vif: client.vif, address: client.address.into() }
}
