//! What is in force for clients, in the kernel's maps: staged where no packet looks, made live
//! by one store, taken back when no packet can see it any more. And which addresses are whose.
//! Never decides what to install.
//!
//! What was replaced must outlive the packets that still read it: only after a wait until
//! all running programs have ended are indices used again.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use aya::maps::{Array, MapData, MapError};
use firewall_common::abi::{
    Client, ClientKey, Counter, Local, MAX_CLIENTS, MAX_COUNTERS, MAX_INSTALLED, SETTLING,
    STATE_BLOCKED, STATE_POLICY, STATE_WAITING,
};
use firewall_common::fragments::{Datagrams, MAX_TABLES};
use firewall_common::verdict::Reason;

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
pub(super) struct InForce {
    /// Index of the record, and what it says.
    record: u32,
    client: Client,
    pub(super) counters: Range<u32>,
    policy: Option<Arc<Policy>>,
}

/// All maps that the agent writes.
pub struct Maps {
    epoch: Epoch,
    clients: aya::maps::HashMap<MapData, Plain<ClientKey>, u32>,
    live: MappedArray<u32>,
    records: MappedArray<Client>,
    policies: Policies,
    others: Array<MapData, u32>,
    pub(super) passage: Array<MapData, [u64; 2]>,
    locals: AddressMap,
    connected: AddressMap,
    pub(super) counters: MappedArray<Counter>,
    stamps: Stamps,
    datagrams: Array<MapData, Plain<Datagrams>>,
    free_indices: Ranges,
    free_records: Ranges,
    free_counters: Ranges,

    indices: HashMap<ClientId, u32>,
    pub(super) in_force: HashMap<ClientId, InForce>,
    /// Not in force any more, but perhaps still read by packets on their way.
    retired: Vec<InForce>,
    /// As `retired`; but what replaced it accepts all that it let pass, so nobody waits until that
    /// is gone.
    retired_at_leisure: Vec<InForce>,
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
            others: take(ebpf, ".data.others")?,
            passage: take(ebpf, ".data.passage")?,
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
            retired_at_leisure: Vec::new(),
            retired_indices: Vec::new(),
        })
    }

    /// Puts something in force for a client, which settles from then on. On error nothing has
    /// changed.
    pub fn put(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
    ) -> Result<(), MapsError> {
        self.put_settling(client, installation, generation, SETTLING)
    }

    /// Puts something in force for a client that has settled, which accepts all that was accepted
    /// before. On error nothing has changed.
    pub fn widen(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
    ) -> Result<(), MapsError> {
        self.put_settling(client, installation, generation, 0)
    }

    fn put_settling(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
        settling: u32,
    ) -> Result<(), MapsError> {
        if !self.indices.contains_key(&client) && !self.retired_indices.is_empty() {
            // A new entry of CLIENTS may get the memory of one that was just removed, which
            // a packet of that client may still read.
            self.quiesce()?;
        }
        match self.try_put(client, installation, generation, settling) {
            Err(MapsError::Full { .. }) if self.has_any_retired() => {
                self.quiesce()?;
                self.try_put(client, installation, generation, settling)
            }
            outcome => outcome,
        }
    }

    fn try_put(
        &mut self,
        client: ClientId,
        installation: &Installation,
        generation: u32,
        settling: u32,
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
                state: state | settling,
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
                    let is_urgent = settling != 0;
                    if is_urgent { &mut self.retired } else { &mut self.retired_at_leisure }
                        .push(old);
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
        // Counters and policy are still in use; only the record is not.
        let old = InForce { record: old, client: amended, counters: 0..0, policy: None };
        if before.stamp == amended.stamp {
            self.retired_at_leisure.push(old);
        } else {
            self.stamps.retire(before.stamp);
            self.retired.push(old);
        }
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

    /// Whether something was replaced that may have let pass what is to pass no more: it is over
    /// with [`Self::quiesce`].
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty() || !self.retired_indices.is_empty()
    }

    /// Whether [`Self::quiesce`] would give something back.
    fn has_any_retired(&self) -> bool {
        self.has_retired() || !self.retired_at_leisure.is_empty()
    }

    /// Waits until no packet can see what was replaced, and makes room of it. From then on,
    /// nothing leaves that what was replaced let pass. On error nothing is given back, and nothing
    /// is lost.
    pub fn quiesce(&mut self) -> Result<(), MapsError> {
        self.policies.wait()?;
        self.stamps.end_retired()?;
        for index in self.retired_indices.drain(..) {
            self.free_indices.give(index..index + 1);
        }
        for retired in self.retired.drain(..).chain(self.retired_at_leisure.drain(..)) {
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
        if self.has_any_retired() {
            self.quiesce()?;
        }
        self.policies.prepare()
    }

    /// Whether [`Self::tidy`] has nothing to do.
    pub fn is_tidy(&self) -> bool {
        !self.has_any_retired() && self.policies.is_prepared()
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

    /// Makes known whether others' rules in the gate are asked about clients without rules.
    pub fn leave_to_others(&mut self, others: bool) -> Result<(), MapsError> {
        Ok(self.others.set(0, u32::from(others), 0)?)
    }

    /// Makes known which addresses belong to clients: exactly these.
    pub fn set_connected(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<(), MapsError> {
        Ok(self.connected.set(addresses.map(|address| (address, 1)))?)
    }
}

fn key(client: ClientId) -> ClientKey {
    ClientKey { vif: client.vif, address: client.address.into() }
}
