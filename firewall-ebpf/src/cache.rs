//! The last verdicts of policies, by client and destination, so that packets like the last
//! ones cost no look-up in a trie.
//! Never decides, and never answers with a verdict from before a change of the tables.
//!
//! A verdict depends on nothing but the tables and what an entry names. It is kept with the
//! number that `EPOCH` had before the tables were read, and counts as long as `EPOCH` still
//! has it. The agent changes a table first and `EPOCH` right after: whoever sees the new
//! number sees the new table, and what was kept with an older one is void.
//!
//! Each processor has entries of its own. A program of tc runs with softirqs disabled
//! (`__netif_receive_skb_core`), so no other one comes between on the same processor.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use firewall_common::abi::{Address, DEFAULT_RULE};
use firewall_common::packet::Packet;
use firewall_common::verdict::{Decision, Reason, Verdict};

use crate::maps::EPOCH;

/// Entries of one processor; a power of two.
const ENTRIES: usize = 1 << 12;

/// A verdict, and all that it depends on: 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    /// What `EPOCH` had; 0 is an empty entry.
    epoch: u64,
    vif: u32,
    port: u16,
    protocol: u8,
    /// Index of the verdict.
    verdict: u8,
    source: Address,
    destination: Address,
    rule: u32,
    generation: u32,
    counters: u32,
    client: u32,
}

/// Kernel only.
#[btf_map]
static VERDICTS: PerCpuArray<Entry, ENTRIES> = PerCpuArray::new();

/// What the tables are numbered with now. To be read before them.
#[inline(always)]
pub fn epoch() -> u64 {
    match EPOCH.get_ptr(0) {
        // SAFETY: inside the map's value, which the agent changes with one aligned store.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}

/// The verdict on a packet like this one, if it is kept and still counts.
#[inline(always)]
pub fn recall(epoch: u64, vif: u32, packet: &Packet) -> Option<Decision> {
    if packet.later_fragment {
        return None;
    }
    let entry = VERDICTS.get(slot(vif, packet))?;
    if entry.epoch != epoch || entry.vif != vif || entry.port != packet.port {
        return None;
    }
    if entry.protocol != packet.protocol as u8 {
        return None;
    }
    if entry.destination != packet.destination || entry.source != packet.source {
        return None;
    }
    let verdict = match Verdict::from_index(entry.verdict) {
        Some(verdict) => verdict,
        None => Verdict::Drop,
    };
    let reason = if entry.rule == DEFAULT_RULE { Reason::Default } else { Reason::Rule };
    let Entry { rule, generation, counters, client, .. } = *entry;
    Some(Decision { verdict, reason, rule, generation, counters, client })
}

/// Keeps a verdict, if it is one of a policy and stays the same until the tables change.
#[inline(always)]
pub fn keep(epoch: u64, vif: u32, packet: &Packet, decision: &Decision) {
    match decision.reason {
        Reason::Rule | Reason::Default => {}
        _ => return,
    }
    // An audit ends by the clock.
    if decision.verdict == Verdict::Audit {
        return;
    }
    let Some(entry) = VERDICTS.get_ptr_mut(slot(vif, packet)) else {
        return;
    };
    let Decision { verdict, reason: _, rule, generation, counters, client } = *decision;
    let new = Entry {
        epoch,
        vif,
        port: packet.port,
        protocol: packet.protocol as u8,
        verdict: verdict.index(),
        source: packet.source,
        destination: packet.destination,
        rule,
        generation,
        counters,
        client,
    };
    // SAFETY: inside the map's value, which is this processor's own.
    unsafe { entry.write(new) };
}

/// Where a packet's verdict is kept. Multiplication moves every bit of an address up to
/// those that are used.
#[inline(always)]
fn slot(vif: u32, packet: &Packet) -> u32 {
    let two = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let [a, b, c, d] = packet.destination.words;
    let [e, f, g, h] = packet.source.words;
    let service = u32::from(packet.port) << 8 | packet.protocol as u32;
    let high = two(a ^ e, b ^ f).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let low = two(c, d).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let rest = (two(g, h) ^ two(vif, service)).wrapping_mul(0x1656_67b1_9e37_79f9);
    ((high ^ low ^ rest) >> 48) as u32 & (ENTRIES as u32 - 1)
}
