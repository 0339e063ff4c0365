//! Policies in the kernel's maps: each in a slot of its own, shared by all clients that have it.
//! Never knows which client has which policy.
//!
//! A slot whose trie is replaced makes the kernel wait until all running programs have ended
//! (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), which takes 10 to 20 milliseconds. So
//! some slots have an empty trie of their own before they are needed: a policy is written
//! into it where no packet looks, and no change has to wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use aya::maps::{ArrayOfMaps, LpmTrie, MapData};
use firewall_common::abi::{
    Address, Class, MAX_CLASSES, MAX_POLICIES, MAX_PREFIXES, MAX_SEGMENTS, NO_CLASS, Segment, Span,
};
use tracing::debug;

use super::mapped::StagedArray;
use super::object::{MapsError, indices, take, take_array, take_range};
use super::plain::Plain;
use super::ranges::Ranges;
use super::running::wait_by_visits;
use firewall_core::rules::Family;
use firewall_core::rules::compile::Policy;
use firewall_core::rules::resolve::Prefix;

/// Bit of the flags that an LPM trie must have (uapi/linux/bpf.h); it takes memory by entry.
const BPF_F_NO_PREALLOC: u32 = 1;

/// How many slots are made ready before they are needed: for a change and the next one.
const READY: usize = 2;

type Trie = LpmTrie<MapData, Plain<Address>, u32>;

/// A policy in the maps.
struct Installed {
    slot: u32,
    classes: Range<u32>,
    segments: Range<u32>,
    clients: usize,
}

/// All policies, and room for more.
pub(super) struct Policies {
    tries: ArrayOfMaps<MapData, Trie>,
    classes: StagedArray<Class>,
    segments: StagedArray<Segment>,
    /// Stands in every slot that was emptied: no prefix, so nothing is accepted.
    empty: Trie,
    /// Slots with an empty trie of their own.
    ready: Vec<(u32, Trie)>,

    free_slots: Ranges,
    /// Free slots in which a policy still is, though no packet can see it.
    to_clear: Vec<u32>,
    free_classes: Ranges,
    free_segments: Ranges,

    installed: HashMap<Arc<Policy>, Installed>,
}

impl Policies {
    /// Takes the maps of a freshly loaded object.
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> Result<Self, MapsError> {
        let mut policies = Self {
            tries: take(ebpf, "POLICIES")?,
            classes: StagedArray::new(take_array(ebpf, "CLASSES")?, MAX_CLASSES),
            segments: StagedArray::new(take_array(ebpf, "SEGMENTS")?, MAX_SEGMENTS),
            empty: LpmTrie::create(1, BPF_F_NO_PREALLOC)?,
            ready: Vec::new(),
            // Slot 0 is for waiting only.
            free_slots: indices(1, MAX_POLICIES),
            to_clear: Vec::new(),
            free_classes: indices(0, MAX_CLASSES),
            free_segments: indices(0, MAX_SEGMENTS),
            installed: HashMap::new(),
        };
        policies.prepare()?;
        Ok(policies)
    }

    /// Waits until all programs have ended that run now.
    pub(super) fn wait(&mut self) -> Result<(), MapsError> {
        if let Err(error) = wait_by_visits() {
            debug!(%error, "the kernel has to wait for running programs");
            self.tries.set(0, &self.empty, 0)?;
        }
        Ok(())
    }

    /// The slot of a policy that is shared; 0 if it is not.
    pub(super) fn slot_of(&self, policy: &Policy) -> u32 {
        self.installed.get(policy).map_or(0, |installed| installed.slot)
    }

    /// One more than the index of the class that answers for all destinations of the client's
    /// family; 0 if the policy has several prefixes, or is not in the maps. Of a policy for the
    /// client's family the first prefix is the whole family; of another one, the trie will find
    /// nothing.
    pub(super) fn only_class(&self, policy: &Policy, client: IpAddr) -> u32 {
        let whole = Prefix::whole(Family::from(client));
        match (policy.prefixes.as_slice(), self.installed.get(policy)) {
            ([(prefix, class)], Some(installed)) if *prefix == whole => {
                class + installed.classes.start + 1
            }
            _ => 0,
        }
    }

    /// Counts one more client of a policy, and puts it into the maps if it is the first.
    pub(super) fn share(&mut self, policy: &Arc<Policy>) -> Result<(), MapsError> {
        if let Some(installed) = self.installed.get_mut(policy) {
            installed.clients += 1;
            return Ok(());
        }
        let classes = u32::try_from(policy.classes.len()).unwrap_or(u32::MAX);
        let segments = u32::try_from(policy.segments.len()).unwrap_or(u32::MAX);
        let classes = take_range(&mut self.free_classes, classes, "classes", MAX_CLASSES)?;
        let segments = take_range(&mut self.free_segments, segments, "port ranges", MAX_SEGMENTS)
            .inspect_err(|_| self.free_classes.give(classes.clone()))?;
        let (slot, trie) = self.ready_slot().inspect_err(|_| {
            self.free_classes.give(classes.clone());
            self.free_segments.give(segments.clone());
        })?;
        let installed = Installed { slot, classes, segments, clients: 1 };
        if let Err(error) = self.fill(policy, &installed, trie) {
            // What is in the trie already, no packet has seen.
            self.give_back(installed);
            return Err(error);
        }
        self.installed.insert(Arc::clone(policy), installed);
        Ok(())
    }

    /// Writes a policy where no packet looks yet; its indices are moved to where it is.
    fn fill(&mut self, policy: &Policy, to: &Installed, mut trie: Trie) -> Result<(), MapsError> {
        let moved = |span: Span| Span { start: span.start + to.segments.start, ..span };
        self.segments.store(to.segments.start, policy.segments.iter().copied())?;
        let classes = policy.classes.iter().map(|class| Class {
            wider: match class.wider {
                NO_CLASS => NO_CLASS,
                wider => wider + to.classes.start,
            },
            tcp: moved(class.tcp),
            udp: moved(class.udp),
            icmp: moved(class.icmp),
            other: moved(class.other),
        });
        self.classes.store(to.classes.start, classes)?;
        for (prefix, class) in &policy.prefixes {
            let key = Key::new(u32::from(prefix.length()), Plain(prefix.address()));
            trie.insert(&key, class + to.classes.start, 0)?;
        }
        Ok(())
    }

    /// Counts one client of a policy less, and frees the policy after the last. To be called when
    /// no packet of the client can see the policy any more.
    pub(super) fn leave(&mut self, policy: &Arc<Policy>) {
        let Entry::Occupied(mut entry) = self.installed.entry(Arc::clone(policy)) else {
            return;
        };
        entry.get_mut().clients -= 1;
        if entry.get().clients == 0 {
            let installed = entry.remove();
            self.give_back(installed);
        }
    }

    fn give_back(&mut self, installed: Installed) {
        let Installed { slot, classes, segments, clients: _ } = installed;
        self.free_classes.give(classes);
        self.free_segments.give(segments);
        self.to_clear.push(slot);
    }

    /// Whether [`Self::prepare`] has nothing to do.
    pub(super) fn is_prepared(&self) -> bool {
        let is_enough = self.ready.len() >= READY || self.free_slots.is_empty();
        self.to_clear.is_empty() && is_enough
    }

    /// Makes slots ready, as many as may be needed soon, and empties those that were given
    /// back. Waits for each. What could not be done is to be done again.
    pub(super) fn prepare(&mut self) -> Result<(), MapsError> {
        while self.ready.len() < READY && self.ready_one_more()? {}
        while let Some(slot) = self.to_clear.last().copied() {
            self.tries.set(slot, &self.empty, 0)?;
            self.to_clear.pop();
            self.free_slots.give(slot..slot + 1);
        }
        Ok(())
    }

    fn ready_slot(&mut self) -> Result<(u32, Trie), MapsError> {
        if self.ready.is_empty() {
            self.ready_one_more()?;
        }
        self.ready.pop().ok_or(MapsError::Full { what: "policies", needed: 1, most: MAX_POLICIES })
    }

    /// Makes a free slot ready, if there is one.
    fn ready_one_more(&mut self) -> Result<bool, MapsError> {
        if let Some(slot) = self.to_clear.last().copied() {
            self.make_ready(slot)?;
            self.to_clear.pop();
            return Ok(true);
        }
        let Some(slot) = self.free_slots.take(1) else {
            return Ok(false);
        };
        let made = self.make_ready(slot.start);
        if made.is_err() {
            self.free_slots.give(slot);
        }
        made.map(|()| true)
    }

    fn make_ready(&mut self, slot: u32) -> Result<(), MapsError> {
        let size = u32::try_from(MAX_PREFIXES).unwrap_or(u32::MAX);
        let trie = Trie::create(size, BPF_F_NO_PREALLOC)?;
        self.tries.set(slot, &trie, 0)?;
        self.ready.push((slot, trie));
        Ok(())
    }
}
