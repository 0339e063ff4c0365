//! Every map, with the types of its values, who writes it and who reads it.
//! Never does anything: what is done with a map is in the files of those who write and read it.
//!
//! A policy is staged in `POLICIES`, `CLASSES`, `SEGMENTS` and `INSTALLED` where no
//! packet looks, and made live by one store into `LIVE`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, RingBuf};
use aya_ebpf::macros::btf_map;
use firewall_common::abi::{
    Address, CACHED_ANSWERS, CACHED_CLIENTS, Class, Client, ClientKey, Counter, DropRecord,
    FILTER_WORDS, FlowKey, MAX_BUDGETS, MAX_CLASSES, MAX_CLIENTS, MAX_CONNECTED, MAX_COUNTERS,
    MAX_FLOWS, MAX_INSTALLED, MAX_LOCALS, MAX_POLICIES, MAX_PREFIXES, MAX_SEGMENTS, MAX_STAMPS,
    RECORDS_BYTES, Segment,
};
use firewall_common::answers::MAX_OPENINGS;
use firewall_common::fragments::{Datagrams, MAX_TABLES};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// A number that is another after each change of what follows, as far as `LIVE`, `CLIENTS`
/// or `LOCALS` make packets see it; never 0. Agent writes, right after the change; the cache
/// reads.
#[btf_map]
pub static EPOCH: Array<u64, 1, MMAPABLE> = Array::new();

/// Client to its index in `LIVE`. Agent writes, and never changes an entry: the kernel
/// may hand the memory of a replaced entry to another key while a packet still reads it.
/// The tables read.
#[btf_map]
pub static CLIENTS: HashMap<ClientKey, u32, MAX_CLIENTS> = HashMap::new();

/// Index in `INSTALLED` of what is in force. Agent writes, one atomic store at a time; the
/// tables read.
#[btf_map]
pub static LIVE: Array<u32, MAX_CLIENTS, MMAPABLE> = Array::new();

/// What is, was or will be in force. Agent writes, only where `LIVE` does not point; the
/// tables read.
#[btf_map]
pub static INSTALLED: Array<Client, MAX_INSTALLED, MMAPABLE> = Array::new();

/// Destination prefix to index in `CLASSES`, one trie for each policy. Agent writes; the
/// tables read.
#[btf_map]
pub static POLICIES: ArrayOfMaps<LpmTrie<Address, u32, MAX_PREFIXES>, MAX_POLICIES> =
    ArrayOfMaps::new();

/// Spans of `SEGMENTS` by protocol. Agent writes; the tables read.
#[btf_map]
pub static CLASSES: Array<Class, MAX_CLASSES, MMAPABLE> = Array::new();

/// Ranges of ports and ICMP types with their answers. Agent writes; the tables read.
#[btf_map]
pub static SEGMENTS: Array<Segment, MAX_SEGMENTS, MMAPABLE> = Array::new();

/// Addresses of the netvm itself. Agent writes; the tables read.
#[btf_map]
pub static LOCALS: HashMap<Address, u8, MAX_LOCALS> = HashMap::new();

/// Which addresses cannot be in `LOCALS`: hardly any packet needs to look there. Agent writes,
/// a bit before its address comes and after its last one went; the tables read.
#[btf_map]
pub static LOCALS_FILTER: Array<u64, FILTER_WORDS> = Array::new();

/// Addresses that belong to clients, whether these are there or not. Agent writes; uplinks
/// read.
#[btf_map]
pub static CONNECTED: HashMap<Address, u8, MAX_CONNECTED> = HashMap::new();

/// Which addresses cannot be in `CONNECTED`. Agent writes, in the order of `LOCALS_FILTER`;
/// uplinks read.
#[btf_map]
pub static CONNECTED_FILTER: Array<u64, FILTER_WORDS> = Array::new();

/// What is known of each stamp:
/// [`STAMP_CURRENT`](firewall_common::abi::STAMP_CURRENT) while it is in force; at 0, what counts
/// for stamps of which nothing is known. Agent writes: a stamp before packets can carry it, and
/// again right after the store that ends what is in force. Uplinks read.
#[btf_map]
pub static STAMPS: Array<u32, MAX_STAMPS> = Array::new();

/// A client, and what it depends on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CachedClient {
    /// 0 is an entry that nobody wrote.
    pub epoch: u64,
    /// The client's vif and address.
    pub key: ClientKey,
    /// What is in force for the client.
    pub client: Client,
}

/// An answer, and what it depends on: half a line of a processor's cache.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CachedAnswer {
    /// The epoch, and the slot of the policy in the lowest bits; 0 is an entry that nobody
    /// wrote.
    pub stamp: u64,
    /// Destination of the packet that was answered.
    pub destination: Address,
    /// Index of the rule that answered.
    pub rule: u32,
    /// Destination port or ICMP type of the packet, in the machine's byte order.
    pub port: u16,
    /// Index of the packet's protocol among those that rules tell apart.
    pub protocol: u8,
    /// What the rule says of the packet.
    pub action: u8,
}

/// Clients that were looked up last, for each processor in turn; the agent says for how many
/// processors when it loads the map. The cache writes and reads.
#[btf_map]
pub static CLIENT_CACHE: Array<CachedClient, CACHED_CLIENTS> = Array::new();

/// Answers that were found last, for each processor in turn; the agent says for how many
/// processors when it loads the map. The cache writes and reads.
#[btf_map]
pub static ANSWER_CACHE: Array<CachedAnswer, CACHED_ANSWERS> = Array::new();

/// When the budget of a client's denied packets is whole again, by index of the client,
/// in nanoseconds of the coarse clock. The budget of rejects writes and reads.
#[btf_map]
pub static REJECT_BUDGETS: Array<u64, MAX_CLIENTS> = Array::new();

/// When the budget of a client's answers is whole again, by index of the client, in nanoseconds of
/// the coarse clock. What knows answers writes and reads.
#[btf_map]
pub static ANSWER_BUDGETS: Array<u64, MAX_CLIENTS> = Array::new();

/// How many records an interface may still send in the current second.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RecordBudget {
    /// Start of the second, in nanoseconds of the coarse clock.
    pub since: u64,
    /// Records sent since the second began.
    pub sent: u32,
    /// Records left out since the last one sent.
    pub suppressed: u32,
}

/// Rate limit of drop records, by the lowest bits of an interface's index: a look-up there is
/// no call, and two interfaces whose indices are so far apart share one. The budget of records
/// writes and reads.
#[btf_map]
pub static RECORD_BUDGETS: Array<RecordBudget, MAX_BUDGETS> = Array::new();

/// When a vif's budgets of what is for the netvm itself, and of ICMP errors to anybody, are whole
/// again, in nanoseconds of the coarse clock.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PassBudget {
    /// The budget of packets that begin a flow.
    pub flows: u64,
    /// The budget of ARP, neighbour discovery and ICMP errors.
    pub notices: u64,
}

/// How much of what is for the netvm itself, and how many ICMP errors, are handed on, by the lowest
/// bits of an interface's index. What limits the packets that are handed on writes and reads.
#[btf_map]
pub static PASS_BUDGETS: Array<PassBudget, MAX_BUDGETS> = Array::new();

/// When a flow to the netvm itself was paid for, in nanoseconds of the coarse clock; the least
/// recently used goes first. What limits the packets that are handed on writes and reads.
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, u64, MAX_FLOWS> = LruHashMap::new();

/// Connections that were opened towards clients; the least recently used goes first. What knows
/// answers writes and reads; the agent adds those that were open before.
#[btf_map]
pub static OPENINGS: LruHashMap<FlowKey, u8, MAX_OPENINGS> = LruHashMap::new();

/// Unfinished datagrams, by the lowest bits of a client's index. What lets fragments pass
/// writes and reads, one processor at a time; agent clears for a new client.
#[btf_map]
pub static DATAGRAMS: Array<Datagrams, MAX_TABLES> = Array::new();

/// Packets and bytes by client and reason or rule. The report adds; the agent reads, and clears
/// where no packet looks. Not by processor: a client's packets mostly come in on one, and
/// an atomic addition there costs no more than finding the processor's own copy.
#[btf_map]
pub static COUNTERS: Array<Counter, MAX_COUNTERS, MMAPABLE> = Array::new();

/// Whether others have rules in the gate, which are asked about clients without rules; 0 is no.
/// The agent writes; the program reads.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.others")]
pub static mut OTHERS: u32 = 0;

/// Frames that got a permit, and frames with a stamp that left, in this order. The programs add;
/// the agent reads.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.passage")]
pub static mut PASSAGE: [u64; 2] = [0; 2];

/// Drop records. The report writes; the agent reads.
#[btf_map]
pub static RECORDS: RingBuf<DropRecord, RECORDS_BYTES> = RingBuf::new();
