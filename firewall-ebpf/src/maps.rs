//! Every map, with who writes it and who reads it.
//! Never decides: [`KernelMaps`] only answers the evaluator's questions.
//!
//! A policy is staged in `POLICIES`, `CLASSES`, `SEGMENTS` and `INSTALLED` where no
//! packet looks, and made live by one store into `LIVE`.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::btf_map;
use firewall_common::abi::{
    Address, Class, Client, ClientKey, Counter, DropRecord, FILTER_WORDS, MAX_BUDGETS, MAX_CLASSES,
    MAX_CLIENTS, MAX_CONNECTED, MAX_COUNTERS, MAX_INSTALLED, MAX_LOCALS, MAX_POLICIES,
    MAX_PREFIXES, MAX_SEGMENTS, MAX_STAMPS, RECORDS_BYTES, STAMP_CURRENT, STAMP_UNKNOWN, Segment,
};
use firewall_common::packet::Packet;
use firewall_common::policy::Tables;

use crate::budget::RecordBudget;
use crate::cache;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const ADDRESS_BITS: u32 = 128;
/// In nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// A number that is another after each change of what follows, as far as `LIVE`, `CLIENTS`
/// or `LOCALS` make packets see it; never 0. Agent writes, right after the change.
#[btf_map]
pub static EPOCH: Array<u64, 1, MMAPABLE> = Array::new();

/// Client to its index in `LIVE`. Agent writes, and never changes an entry: the kernel
/// may hand the memory of a replaced entry to another key while a packet still reads it.
#[btf_map]
static CLIENTS: HashMap<ClientKey, u32, MAX_CLIENTS> = HashMap::new();

/// Index in `INSTALLED` of what is in force. Agent writes, one atomic store at a time.
#[btf_map]
static LIVE: Array<u32, MAX_CLIENTS, MMAPABLE> = Array::new();

/// What is, was or will be in force. Agent writes, only where `LIVE` does not point.
#[btf_map]
static INSTALLED: Array<Client, MAX_INSTALLED, MMAPABLE> = Array::new();

/// Destination prefix to index in `CLASSES`, one trie for each policy. Agent writes.
#[btf_map]
static POLICIES: ArrayOfMaps<LpmTrie<Address, u32, MAX_PREFIXES>, MAX_POLICIES> =
    ArrayOfMaps::new();

/// Agent writes.
#[btf_map]
static CLASSES: Array<Class, MAX_CLASSES, MMAPABLE> = Array::new();

/// Agent writes.
#[btf_map]
static SEGMENTS: Array<Segment, MAX_SEGMENTS, MMAPABLE> = Array::new();

/// When the next denied packet of a client fits into its budget, by index of the client,
/// in nanoseconds of the coarse clock. Kernel writes.
#[btf_map]
pub static REJECT_BUDGETS: Array<u64, MAX_CLIENTS> = Array::new();

/// Addresses that belong to clients, whether these are there or not. Agent writes.
#[btf_map]
static CONNECTED: HashMap<Address, u8, MAX_CONNECTED> = HashMap::new();

/// Which addresses cannot be in `CONNECTED`: hardly any packet needs to look there. Agent
/// writes, a bit before its address comes and after its last one went.
#[btf_map]
static CONNECTED_FILTER: Array<u64, FILTER_WORDS> = Array::new();

/// The same for `LOCALS`.
#[btf_map]
static LOCALS_FILTER: Array<u64, FILTER_WORDS> = Array::new();

/// Addresses of the netvm itself. Agent writes.
#[btf_map]
static LOCALS: HashMap<Address, u8, MAX_LOCALS> = HashMap::new();

/// Packets and bytes by client and reason or rule. Kernel adds, agent reads, and clears
/// where no packet looks. Not by processor: a client's packets mostly come in on one, and
/// an atomic addition there costs no more than finding the processor's own copy.
#[btf_map]
pub static COUNTERS: Array<Counter, MAX_COUNTERS, MMAPABLE> = Array::new();

/// Drop records. Kernel writes, agent reads.
#[btf_map]
pub static RECORDS: RingBuf<DropRecord, RECORDS_BYTES> = RingBuf::new();

/// Rate limit of drop records, by the lowest bits of an interface's index: a look-up there is
/// no call, and two interfaces whose indices are so far apart share one. Kernel writes.
#[btf_map]
pub static RECORD_BUDGETS: Array<RecordBudget, MAX_BUDGETS> = Array::new();

/// What is known of each stamp: [`STAMP_CURRENT`] while it is in force; at 0, what counts for
/// stamps of which nothing is known. Agent writes: a stamp before packets can carry it, and
/// again right after the store that ends what is in force.
#[btf_map]
static STAMPS: Array<u32, MAX_STAMPS> = Array::new();

/// Whether neighbour discovery is judged; 0 is no. The agent sets it before
/// loading.
#[unsafe(no_mangle)]
static GUARD_NEIGHBOURS: Global<u32> = Global::new(0);

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

/// The maps as the evaluator sees them, and what they were numbered with before. What the tables
/// said last is asked first, if that is wanted.
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
    fn is_local(&self, address: &Address) -> bool {
        may_hold(&LOCALS_FILTER, address) && LOCALS.get_ptr(address).is_some()
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
    fn seconds(&self) -> u64 {
        // SAFETY: the helper takes nothing and only returns a number.
        let now = unsafe { bpf_ktime_get_boot_ns() };
        now / SECOND
    }
}
