//! What the maps say: the evaluator's questions, behind the cache, and those that uplinks have.
//! Never decides, and never writes to a map: only the cache keeps what was said.

use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::btf_maps::lpm_trie::Key;
use firewall_common::abi::{
    Address, Class, Client, ClientKey, FILTER_WORDS, Local, STAMP_CURRENT, STAMP_UNKNOWN, Segment,
};
use firewall_common::packet::Packet;
use firewall_common::policy::Tables;

use crate::maps::{
    CLASSES, CLIENTS, CONNECTED, CONNECTED_FILTER, INSTALLED, LIVE, LOCALS, LOCALS_FILTER, OTHERS,
    POLICIES, SEGMENTS, STAMPS,
};
use crate::{cache, clock};

const ADDRESS_BITS: u32 = 128;

/// Whether IPv6 neighbour discovery is judged; 0 is no. The agent sets it before loading.
#[unsafe(no_mangle)]
static GUARD_NEIGHBOURS: Global<u32> = Global::new(0);

/// Whether rules judge all that clients send, also to the netvm itself; 0 is no. The agent sets it
/// before loading, and finds it in the map of this name.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.strict")]
static JUDGE_ALL: Global<u32> = Global::new(0);

/// Whether rules judge all that clients send.
#[inline(always)]
pub fn judges_all() -> bool {
    JUDGE_ALL.load() != 0
}

/// Whether an address belongs to a client, be it there or not.
#[inline(always)]
pub fn is_connected(address: &Address) -> bool {
    may_hold(&CONNECTED_FILTER, address) && CONNECTED.get_ptr(address).is_some()
}

/// Whether a packet with this stamp was let pass by what is not in force any more; 0 is no stamp.
/// Nothing is known of the stamps of an earlier agent, until this one has taken over.
#[inline(always)]
pub fn is_stale(stamp: u32) -> bool {
    if stamp == 0 {
        return false;
    }
    match STAMPS.get(stamp) {
        Some(&STAMP_CURRENT) => false,
        Some(&STAMP_UNKNOWN) => STAMPS.get(0).is_none_or(|known| *known != STAMP_UNKNOWN),
        _ => true,
    }
}

#[inline(always)]
fn may_hold(filter: &Array<u64, FILTER_WORDS>, address: &Address) -> bool {
    let (word, bit) = address.filter_bit();
    filter.get(word).is_none_or(|word| word & bit != 0)
}

/// The maps as the evaluator sees them, and the number that `EPOCH` had before they are read. With
/// `CACHED`, what the tables said last is asked first.
pub struct KernelMaps<const CACHED: bool> {
    epoch: u64,
}

impl<const CACHED: bool> KernelMaps<CACHED> {
    /// The maps as they are now.
    #[inline(always)]
    pub fn now() -> Self {
        Self { epoch: cache::epoch() }
    }
}

impl<const CACHED: bool> Tables for KernelMaps<CACHED> {
    #[inline(always)]
    fn client(&self, key: &ClientKey) -> Option<Client> {
        if CACHED && let Some(client) = cache::client(self.epoch, key) {
            return Some(client);
        }
        // SAFETY: an entry of CLIENTS is never changed in place.
        let index = *unsafe { CLIENTS.get(key) }?;
        let installed = *LIVE.get(index)?;
        let client = INSTALLED.get(installed)?;
        if CACHED {
            cache::keep_client(self.epoch, key, client);
        }
        Some(*client)
    }

    #[inline(always)]
    fn guards_neighbours(&self) -> bool {
        GUARD_NEIGHBOURS.load() != 0
    }

    #[inline(always)]
    fn local(&self, address: &Address) -> Option<Local> {
        if !may_hold(&LOCALS_FILTER, address) {
            return None;
        }
        // SAFETY: an entry of LOCALS is one byte.
        unsafe { LOCALS.get(address) }.map(|raw| Local::from_raw(*raw))
    }

    #[inline(always)]
    fn class_of(&self, policy: u32, address: &Address) -> Option<u32> {
        let key = Key::new(ADDRESS_BITS, *address);
        POLICIES.get(policy)?.get(&key).copied()
    }

    #[inline(always)]
    fn class(&self, index: u32) -> Option<Class> {
        CLASSES.get(index).copied()
    }

    #[inline(always)]
    fn segment(&self, index: u32) -> Option<Segment> {
        SEGMENTS.get(index).copied()
    }

    #[inline(always)]
    fn asks_others(&self) -> bool {
        // SAFETY: a word, which is read as a whole.
        unsafe { ptr::read_volatile(&raw const OTHERS) != 0 }
    }

    #[inline(always)]
    fn recall(&self, client: &Client, packet: &Packet) -> Option<Segment> {
        if !CACHED {
            return None;
        }
        cache::answer(self.epoch, client, packet)
    }

    #[inline(always)]
    fn keep(&self, client: &Client, packet: &Packet, answer: &Segment) {
        if CACHED {
            cache::keep_answer(self.epoch, client, packet, answer);
        }
    }

    #[inline(always)]
    fn judges_all(&self) -> bool {
        judges_all()
    }

    #[inline(always)]
    fn seconds(&self) -> u64 {
        clock::since_boot()
    }
}
