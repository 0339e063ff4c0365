//! The layout and the limits of everything that crosses between the kernel programs and the agent.
//! Never holds behaviour, but for the two conversions of [`Local`].
//!
//! All numbers are in the machine's byte order unless a field says otherwise.
//! [`abi_type!`](crate::abi_type) is the only way to declare such a type: it fixes the layout,
//! and refuses to compile what is more than plain bytes.

/// Version of the layouts in this file. It changes with any of them, and is part of
/// the name under which links are pinned.
pub const ABI_VERSION: u32 = 5;

/// Declares a type that crosses between the kernel programs and the agent: `repr(C)`, and as
/// large as it says. Any bytes are a value of it, and any value is only bytes, as zerocopy's
/// derives prove from its fields.
///
/// ```
/// firewall_common::abi_type! {
///     /// A type as it should be.
///     Good: 8 bytes {
///         /// A number.
///         number: u32,
///         /// Is it so? 0 is no.
///         flag: u8,
///         /// Always 0.
///         reserved: [u8; 3],
///     }
/// }
/// ```
///
/// Not all bytes are a `bool`:
///
/// ```compile_fail,E0277
/// firewall_common::abi_type! {
///     /// Like `Good`, but for the flag.
///     WithBool: 8 bytes {
///         /// A number.
///         number: u32,
///         /// Is it so?
///         flag: bool,
///         /// Always 0.
///         reserved: [u8; 3],
///     }
/// }
/// ```
///
/// Nor are they an `Option`, of which Rust says nowhere how it is laid out:
///
/// ```compile_fail,E0277
/// firewall_common::abi_type! {
///     /// Like `Good`, but for the flag.
///     WithOption: 8 bytes {
///         /// A number.
///         number: u32,
///         /// Perhaps a number.
///         flag: Option<u8>,
///         /// Always 0.
///         reserved: [u8; 2],
///     }
/// }
/// ```
///
/// Padding is bytes that nobody wrote, and the kernel would show them to user space:
///
/// ```compile_fail,E0277
/// firewall_common::abi_type! {
///     /// Like `Good`, without what fills it up.
///     WithPadding: 8 bytes {
///         /// A number.
///         number: u32,
///         /// Is it so? 0 is no.
///         flag: u8,
///     }
/// }
/// ```
///
/// Whoever adds a field has to say how large the type is now:
///
/// ```compile_fail,E0080
/// firewall_common::abi_type! {
///     /// Of another size than it says.
///     Larger: 4 bytes {
///         /// A number.
///         number: u64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! abi_type {
    (
        $(#[$meta:meta])*
        $name:ident: $size:literal bytes {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(
            ::zerocopy::FromBytes,
            ::zerocopy::IntoBytes,
            ::zerocopy::Immutable,
            ::zerocopy::KnownLayout,
        )]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        const _: () = assert!(
            size_of::<$name>() == $size,
            concat!(stringify!($name), " is not the size it says"),
        );
    };
}

abi_type! {
    /// An IPv4 or IPv6 address in 16 bytes, as IPv6 writes it on the wire; IPv4 in its
    /// mapped form `::ffff:a.b.c.d`. A word holds four of those bytes in memory order.
    Address: 16 bytes {
        /// Four words in network byte order.
        words: [u32; 4],
    }
}

/// Bits in front of an IPv4 address in the 16-byte form.
pub const MAPPED_BITS: u8 = 96;

abi_type! {
    /// Key of the map of clients: which source address is at home behind which vif.
    ClientKey: 20 bytes {
        /// Interface index of the vif.
        vif: u32,
        /// The client's address.
        address: Address,
    }
}

abi_type! {
    /// Key of the map of flows to the netvm itself, and of the map of connections that were opened
    /// towards clients, which has the other way of each: what connection tracking has one entry for.
    FlowKey: 28 bytes {
        /// Interface index of the vif.
        vif: u32,
        /// The destination address.
        destination: Address,
        /// UDP or TCP destination port; of an ICMP echo request, its type in the upper half and
        /// its code in the lower.
        port: u16,
        /// UDP or TCP source port, or identifier of an ICMP echo request.
        source_port: u16,
        /// Number of the protocol as IANA assigns it; 256 is added for IPv6.
        protocol: u32,
    }
}

abi_type! {
    /// What is, was or will be in force for one client. Never changed while packets can
    /// see it: one store of its index into the map `LIVE` replaces one by another.
    Client: 32 bytes {
        /// One of the `STATE_` constants, with or without [`SETTLING`]; anything else
        /// drops.
        state: u32,
        /// Slot of the client's policy; only meaningful with [`STATE_POLICY`].
        policy: u32,
        /// Generation: number of what the agent put in force, by which it tells later where a
        /// verdict came from.
        generation: u32,
        /// Index of the client's first counter, in the map of counters.
        counters: u32,
        /// The client's own index, by which it has a budget of rejects.
        index: u32,
        /// Until when the client is audited: what its policy denies passes, and is told. In
        /// seconds since the machine booted (CLOCK_BOOTTIME), so that it ends without an agent;
        /// 0 is not at all.
        audit_until: u32,
        /// One more than the index of the class that answers for all destinations; 0 is that
        /// there are several, and the policy's prefixes tell which.
        only_class: u32,
        /// Number of this value, by which packets that it let pass are told apart from those
        /// that an earlier one did; 1 to [`MAX_STAMPS`], exclusive.
        stamp: u32,
    }
}

/// In the map of stamps: nothing is known of a stamp, which an earlier agent may have given out. At
/// index 0 of the map: packets with stamps of which nothing is known pass.
pub const STAMP_UNKNOWN: u32 = 0;
/// In the map of stamps: the record with this stamp is in force.
pub const STAMP_CURRENT: u32 = 1;
/// In the map of stamps: the record with this stamp is not in force any more. At index 0 of the
/// map: nor are those with stamps of which nothing is known.
pub const STAMP_OVER: u32 = 2;

/// [`Client::state`]: the client's rules are not known yet; its packets are dropped silently.
pub const STATE_WAITING: u32 = 0;
/// [`Client::state`]: the client's policy decides.
pub const STATE_POLICY: u32 = 1;
/// [`Client::state`]: the client's rules cannot be used; everything is rejected.
pub const STATE_BLOCKED: u32 = 2;
/// Added to [`Client::state`] while connections that are denied may still be known to conntrack:
/// what would be rejected is dropped, so that not even a flowtable in front of the gate can
/// forward it.
pub const SETTLING: u32 = 1 << 8;

abi_type! {
    /// A run of segments: `length` of them from index `start`.
    Span: 8 bytes {
        /// Index of the first segment.
        start: u32,
        /// How many segments; never 0 in a policy that the agent installed.
        length: u32,
    }
}

abi_type! {
    /// All rules whose destination covers one prefix, reduced to segments per protocol.
    Class: 36 bytes {
        /// Index of a wider class to ask as well, or [`NO_CLASS`]; the lower rule wins.
        wider: u32,
        /// Segments by TCP destination port.
        tcp: Span,
        /// Segments by UDP destination port.
        udp: Span,
        /// Segments by ICMP type (ICMPv6 type for an IPv6 client).
        icmp: Span,
        /// For any other protocol: one segment.
        other: Span,
    }
}

/// [`Class::wider`] of a class that has no wider one to ask.
pub const NO_CLASS: u32 = u32::MAX;

abi_type! {
    /// A range of ports or ICMP types with one answer: from `start` to the next
    /// segment's `start`.
    Segment: 8 bytes {
        /// First port, or ICMP type.
        start: u16,
        /// One of the `ACTION_` constants; anything but [`ACTION_ACCEPT`] rejects.
        action: u16,
        /// Index of the rule in the ruleset, or [`DEFAULT_RULE`].
        rule: u32,
    }
}

/// [`Segment::action`] of dom0's `action=drop`, which Qubes answers with "admin prohibited" (ICMP
/// type 3 code 13, ICMPv6 type 1 code 1; `firewall.py` of qubes-core-agent-linux).
pub const ACTION_REJECT: u16 = 0;
/// [`Segment::action`] of dom0's `action=accept`.
pub const ACTION_ACCEPT: u16 = 1;

/// Index of no rule: none matched, and the default action decided. Compares above every rule, so
/// that the lower of two answers is the first match.
pub const DEFAULT_RULE: u32 = u32::MAX;

abi_type! {
    /// Packets and bytes.
    Counter: 16 bytes {
        /// Packets; a segmentation-offload packet counts as the segments it stands for.
        packets: u64,
        /// Bytes of frames from the Ethernet header on, without the checksum at the end.
        bytes: u64,
    }
}

abi_type! {
    /// One packet that was denied, or would have been.
    DropRecord: 72 bytes {
        /// When the packet was judged, in nanoseconds of CLOCK_MONOTONIC (`bpf_ktime_get_ns`).
        time: u64,
        /// Interface index of the vif it came in by.
        vif: u32,
        /// Generation of the policy that decided, or 0.
        generation: u32,
        /// Index of the rule that decided, or [`DEFAULT_RULE`].
        rule: u32,
        /// Length of the frame in bytes.
        length: u32,
        /// How many records of this vif were left out since the record before this one.
        suppressed: u32,
        /// UDP or TCP source port, or ICMP code.
        source_port: u16,
        /// UDP or TCP destination port, or ICMP type.
        destination_port: u16,
        /// Source address; all zero when the packet could not be read that far.
        source: Address,
        /// Destination address; all zero when the packet could not be read that far.
        destination: Address,
        /// Index of the reason, see [`crate::verdict::Reason`].
        reason: u8,
        /// Number of the final IP protocol, as IANA assigns it.
        protocol: u8,
        /// Index of what was done with it, see [`crate::verdict::Verdict`].
        verdict: u8,
        /// Always 0.
        reserved: [u8; 5],
    }
}

/// Drop records that one vif can cause in a second; the counters count all packets.
pub const RECORDS_PER_SECOND: u32 = 20;

/// Denied packets of one client that are handed on at once, to be rejected, beside those
/// that fit into 10 milliseconds.
pub const REJECT_BURST: u64 = 2_000;

/// How many new flows of a vif to the netvm itself, or to many, can come at once; with them it
/// makes entries in the tables of connection tracking, which all share.
pub const FLOWS_BURST: u64 = 200;
/// For how long a flow that was paid for is not new again, in seconds. Connection tracking
/// keeps no flow for a shorter time (nf_conntrack_tcp_timeout_close, 10 s).
pub const FLOW_SECONDS: u64 = 10;
/// The same of TCP, in seconds, whose connections may rest for longer.
pub const TCP_SECONDS: u64 = 120;
/// Flows to the netvm itself that are known at once, of all vifs together.
pub const MAX_FLOWS: usize = 1 << 13;
/// ARP packets, packets of neighbour discovery and ICMP errors, together, that one vif can have
/// handed on in a second.
pub const NOTICES_PER_SECOND: u64 = 1_000;
/// ARP packets, packets of neighbour discovery and ICMP errors, together, that one vif can have
/// handed on at once.
pub const NOTICES_BURST: u64 = 1_000;
/// The permit: how the hardware address that a frame is for begins, if the program `from_client`
/// accepted the packet; the gate looks for it. The rest of the address stays.
///
/// Nobody else comes by a permit. A frame for another address than its vif's is not forwarded
/// (`eth_type_trans` in net/ethernet/eth.c, `PACKET_HOST` in `ip_forward` and `ip6_forward`), and no
/// vif has such an address. A packet keeps the frame's header until it leaves (`skb->mac_header`),
/// also through defragmentation. The address is one of a single machine, administered locally
/// (IEEE 802, section 8.4), and stands for no maker.
pub const PERMIT: [u8; 4] = [0x0e, b'Q', b'E', b'F'];
/// The permit of an ICMP error: it counts only if connection tracking knows the connection that the
/// error is about. It differs from [`PERMIT`] in the last bit.
pub const PERMIT_RELATED: [u8; 4] = [0x0e, b'Q', b'E', b'G'];

/// The bit of `skb->tc_index` that says that the other bits are a stamp.
pub const STAMPED: u32 = 1 << 15;
/// What `skb->priority` is while the first packet of a connection leaves towards a client: nftables
/// writes it, and the program `to_client` reads it and writes 0. The lowest bits are those of
/// ordinary traffic (`TC_PRIO_BESTEFFORT`, uapi/linux/pkt_sched.h), and no qdisc has the upper half
/// for its handle.
pub const OPENING: u32 = 0x0e51_4600;

/// How many stamps there are, of which 0 is none. With [`STAMPED`], a stamp takes the 16 bits of
/// `skb->tc_index` (include/linux/skbuff.h).
pub const MAX_STAMPS: usize = 1 << 15;

/// Most clients (vif and address) at once.
pub const MAX_CLIENTS: usize = 4096;
/// Most [`Client`] values: one in force and one on its way in or out for each client.
pub const MAX_INSTALLED: usize = 2 * MAX_CLIENTS;
/// Most addresses that belong to clients, whether the clients are there or not.
pub const MAX_CONNECTED: usize = 8192;
/// Budgets of vifs, for drop records and for what is handed on; a power of two. Two vifs whose
/// indices are so far apart share one.
pub const MAX_BUDGETS: usize = 4096;
/// Most different policies at once, 8 bytes each.
pub const MAX_POLICIES: usize = 4096;
/// Most classes of all policies together, 40 bytes each in the kernel.
pub const MAX_CLASSES: usize = 1 << 16;
/// Most segments of all policies together, 8 bytes each.
pub const MAX_SEGMENTS: usize = 1 << 19;
/// Most counters of all clients together, 16 bytes each.
pub const MAX_COUNTERS: usize = 1 << 16;
/// Most addresses of the netvm itself.
pub const MAX_LOCALS: usize = 4096;

/// Whom an address stands for that the kernel takes for the netvm's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Local {
    /// The netvm alone.
    One = 1,
    /// The netvm among others: broadcast of an IPv4 network, anycast of an IPv6 network.
    Many = 2,
}

impl Local {
    /// What a value of the map of local addresses means. An unknown value stands for the netvm.
    pub const fn from_raw(raw: u8) -> Self {
        if raw == Self::Many as u8 { Self::Many } else { Self::One }
    }

    /// The value in the map of local addresses.
    pub const fn to_raw(self) -> u8 {
        self as u8
    }
}
/// Most prefixes in one policy.
pub const MAX_PREFIXES: usize = 1 << 17;
/// Clients that the program's cache keeps for each processor; a power of two.
pub const CACHED_CLIENTS: usize = 1 << 8;
/// Answers of policies that the program's cache keeps for each processor, 32 bytes each; a power of
/// two.
pub const CACHED_ANSWERS: usize = 1 << 14;
/// Words of a filter of addresses, 8 bytes each; a power of two.
pub const FILTER_WORDS: usize = 1 << 10;
/// Size of the ring buffer of drop records, in bytes.
pub const RECORDS_BYTES: usize = 1 << 17;
