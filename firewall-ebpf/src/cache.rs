//! What the tables said last, so that packets like the last ones cost no look-up in a hash
//! map or a trie: clients by vif and address, answers by policy and destination.
//! Never decides, and never says what the tables would not say any more.
//!
//! An entry is kept with the number that `EPOCH` had before the tables were read, and counts
//! as long as `EPOCH` still has it. The agent changes a table first and `EPOCH` right after:
//! whoever sees the new number sees the new table, and what was kept with an older one is
//! void.
//!
//! This holds where loads are not reordered with other loads, since `EPOCH` is read before a
//! table: on x86 (Intel's manual, volume 3, "memory ordering"), not on arm64. And each
//! processor has entries of its own, with no locks: a program of tc runs with softirqs
//! disabled (`__netif_receive_skb_core`), so no other one comes between on the same processor,
//! but on PREEMPT_RT, where softirqs are preempted. On any other machine the agent switches
//! the caches off before it loads the program, and the verifier takes the code out that keeps.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use firewall_common::abi::{
    CACHED_ANSWERS, CACHED_CLIENTS, Client, ClientKey, MAX_POLICIES, Segment,
};
use firewall_common::address::mix;
use firewall_common::packet::Packet;

use crate::maps::{ANSWER_CACHE, CLIENT_CACHE, CachedAnswer, CachedClient, EPOCH};

/// Whether anything is kept; 0 is no: then every entry stays one that nobody wrote, and fits
/// nothing. The agent sets it before loading.
#[unsafe(no_mangle)]
static CACHES: Global<u32> = Global::new(0);

/// Bits of a policy's slot.
const SLOT_BITS: u32 = 12;
const _: () = assert!(MAX_POLICIES <= 1 << SLOT_BITS, "a slot has more bits");

/// The number that `EPOCH` has now; to be read before the tables are.
#[inline(always)]
pub fn epoch() -> u64 {
    match EPOCH.get_ptr(0) {
        // SAFETY: inside the map's value, which the agent changes with one aligned store.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}

/// A client as the tables said last; `None` if it is not kept, or does not count any more.
#[inline(always)]
pub fn client(epoch: u64, key: &ClientKey) -> Option<Client> {
    let entry = CLIENT_CACHE.get(client_slot(key))?;
    if entry.epoch != epoch || entry.key.vif != key.vif || entry.key.address != key.address {
        return None;
    }
    Some(entry.client)
}

/// Keeps a client that was just looked up.
#[inline(always)]
pub fn keep_client(epoch: u64, key: &ClientKey, client: &Client) {
    if CACHES.load() == 0 {
        return;
    }
    let Some(entry) = CLIENT_CACHE.get_ptr_mut(client_slot(key)) else {
        return;
    };
    let new = CachedClient { epoch, key: *key, client: *client };
    // SAFETY: inside the map's value, which is this processor's own.
    unsafe { entry.write(new) };
}

/// The answer to a packet like this one; `None` if it is not kept, or does not count any more.
#[inline(always)]
pub fn answer(epoch: u64, client: &Client, packet: &Packet) -> Option<Segment> {
    let first = answer_slot(client, packet);
    if let Some(found) = match_answer(first, epoch, client, packet) {
        return Some(found);
    }
    match_answer(first + 1, epoch, client, packet)
}

#[inline(always)]
fn match_answer(slot: u32, epoch: u64, client: &Client, packet: &Packet) -> Option<Segment> {
    let entry = ANSWER_CACHE.get(slot)?;
    if entry.stamp != stamp(epoch, client) || entry.port != packet.port {
        return None;
    }
    if entry.protocol != packet.protocol as u8 || entry.destination != packet.destination {
        return None;
    }
    Some(Segment { start: 0, action: u16::from(entry.action), rule: entry.rule })
}

/// Keeps an answer that was just found; what was in its place moves to the second place.
#[inline(always)]
pub fn keep_answer(epoch: u64, client: &Client, packet: &Packet, answer: &Segment) {
    if CACHES.load() == 0 {
        return;
    }
    let first = answer_slot(client, packet);
    let (Some(entry), Some(second)) =
        (ANSWER_CACHE.get_ptr_mut(first), ANSWER_CACHE.get_ptr_mut(first + 1))
    else {
        return;
    };
    // SAFETY: both are values of the map, which are this processor's own.
    unsafe { second.write(*entry) };
    let new = CachedAnswer {
        stamp: stamp(epoch, client),
        destination: packet.destination,
        rule: answer.rule,
        port: packet.port,
        protocol: packet.protocol as u8,
        action: answer.action as u8,
    };
    // SAFETY: as above.
    unsafe { entry.write(new) };
}

/// Clients with the same policy share its slot, and its answers.
#[inline(always)]
fn stamp(epoch: u64, client: &Client) -> u64 {
    epoch << SLOT_BITS | u64::from(client.policy)
}

#[inline(always)]
fn client_slot(key: &ClientKey) -> u32 {
    let [a, b, c, d] = key.address.words;
    slot(a ^ c ^ key.vif, b ^ d, CACHED_CLIENTS as u32)
}

/// The first of the two places, side by side, that an answer can be in.
#[inline(always)]
fn answer_slot(client: &Client, packet: &Packet) -> u32 {
    let [a, b, c, d] = packet.destination.words;
    let service = u32::from(packet.port) << 2 | packet.protocol as u32;
    slot(a ^ c ^ client.policy.rotate_left(16) ^ service, b ^ d, CACHED_ANSWERS as u32) & !1
}

/// One of this processor's entries, of which it has `entries`, a power of two.
#[inline(always)]
fn slot(high: u32, low: u32, entries: u32) -> u32 {
    let hash = mix(high, low) >> 40;
    // SAFETY: the helper takes nothing and only returns a number.
    let processor = unsafe { bpf_get_smp_processor_id() };
    processor.wrapping_mul(entries).wrapping_add(hash as u32 & (entries - 1))
}
