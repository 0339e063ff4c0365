//! The datagrams of a client whose fragments are on their way: which fragment is the next of
//! each, and how many wait in the kernel.
//! Never judges a first fragment, and never reads a clock.
//!
//! Connection tracking puts the fragments of a datagram together, in memory that all clients
//! share, and the first fragment's permit is the whole datagram's. It keeps fragments for 30
//! seconds (IPv4, `IP_FRAG_TIME` in net/ip.h) or 60 (IPv6, `IPV6_FRAG_TIMEOUT` in net/ipv6.h),
//! whatever changes meanwhile. So a later fragment is handed on only if it continues, without a
//! gap, what was handed on before while the same was in force. Honest senders send fragments in
//! their order, and a vif keeps it: all fragments of two hosts have the same hash, and hence
//! the same queue. What the kernel would throw away before it gets that far would leave a gap
//! there and none here, so the parser refuses it: [`crate::packet::parse`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::Address;
use crate::address::mix;

/// Places for unfinished datagrams of one client; a datagram can be in each of a set of them.
pub const PLACES: usize = 4;
/// Sets of places; a power of two.
pub const SETS: usize = 32;
/// Kernel memory for the fragments of one client in unfinished datagrams, in bytes, of 4 MiB that
/// IPv4 and IPv6 have each (`ipfrag_high_thresh`, `nf_conntrack_frag6_high_thresh`).
pub const MAX_WAITING: u32 = 1 << 20;
/// Clients with a table of unfinished datagrams of their own; a power of two. Two clients whose
/// indices are so far apart share one, and its limits.
pub const MAX_TABLES: usize = 1 << 8;
/// For how long an unfinished datagram counts, in nanoseconds: longer than the kernel keeps it.
pub const LIFETIME: u64 = 61_000_000_000;
/// For how long an unfinished datagram goes on, in nanoseconds: not as long as the kernel keeps it.
/// What came later would begin another one there, of which nothing is known here.
pub const PATIENCE: u64 = 20_000_000_000;
/// How many fragments of a client may come between two of one datagram. Where 64 do, the kernel
/// throws an IPv4 datagram away (`ipfrag_max_dist` in ip-sysctl.rst).
pub const MAX_DISTANCE: u32 = 60;

/// A datagram that is not finished.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Datagram {
    /// When its first fragment was handed on, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// Its destination address.
    pub destination: Address,
    /// The identification that its fragments have in common (RFC 791, section 3.1; RFC 8200,
    /// section 4.5), in the machine's byte order.
    pub identification: u32,
    /// Protocol of the IPv4 header; 0 for IPv6, which has none in what its fragments have in
    /// common (`frag_v6_compare_key` in net/ipv6_frag.h).
    pub protocol: u16,
    /// Where the next fragment's data begin in the datagram's, in bytes.
    pub next: u16,
    /// Stamp of the record that was in force when its first fragment passed:
    /// [`Client::stamp`](crate::abi::Client::stamp).
    pub stamp: u32,
    /// When an audit that let its first fragment pass ends, in seconds since the machine booted;
    /// 0 if none did.
    pub until: u32,
    /// [`Datagrams::count`] as of the last of its fragments.
    pub last: u32,
    /// Kernel memory for its fragments that were handed on, in bytes; 0 is an unused place.
    pub memory: u32,
}

/// All datagrams of a client that are not finished.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Datagrams {
    /// 1 while a processor works on this table, else 0.
    pub lock: u64,
    /// When a fragment was handed on last, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// When `waiting` was set to 0 because the kernel had given up everything, in nanoseconds of
    /// the monotonic clock.
    pub cleared: u64,
    /// How many fragments were handed on, modulo 2^32.
    pub count: u32,
    /// Kernel memory for the fragments in datagrams that are not finished, in bytes.
    pub waiting: u32,
    /// The datagrams that are not finished.
    pub unfinished: [[Datagram; PLACES]; SETS],
}

/// A fragment: its datagram, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its destination address.
    pub destination: Address,
    /// The identification that the fragments of its datagram have in common, in the machine's byte
    /// order.
    pub identification: u32,
    /// Protocol of the IPv4 header; 0 for IPv6.
    pub protocol: u16,
    /// Where its data begin in the datagram's, in bytes.
    pub start: u16,
    /// How many bytes of data it brings.
    pub length: u16,
    /// Whether more data follow in another fragment.
    pub more: bool,
}

impl Piece {
    /// Kernel memory that it takes, in bytes, or a little more: a packet in a buffer that is
    /// allocated in powers of two, and what the kernel keeps beside it (`skb->truesize`).
    #[inline(always)]
    const fn memory(&self) -> u32 {
        2 * self.length as u32 + 1024
    }
}

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Turn {
    /// The fragment is the next of its datagram, or the first.
    Next,
    /// The fragment is not the next of any datagram, or of one that an audit let pass which is
    /// over; or it is the first of a datagram like one that the kernel may still keep.
    Stray,
    /// There is no room for the fragment.
    TooMany,
}

/// Takes in a fragment that is to be handed on while the client's record has this stamp.
/// `until` is the end of the audit that lets it pass, in seconds since the machine booted, or 0;
/// `now` is in nanoseconds of the monotonic clock; `seconds` tells those since the machine booted,
/// and is asked only when an audit let the first fragment pass.
#[inline(always)]
pub fn follow(
    datagrams: &mut Datagrams,
    piece: &Piece,
    stamp: u32,
    until: u32,
    now: u64,
    seconds: impl Fn() -> u64,
) -> Turn {
    let Datagrams { since, cleared, count, waiting, unfinished, .. } = datagrams;
    // By now the kernel has given up all of them, those too whose places nobody asked for since.
    if now.wrapping_sub(*since) > LIFETIME {
        *waiting = 0;
        *cleared = now;
    }
    let Some(set) = unfinished.get_mut(set_of(piece)) else {
        return Turn::Stray;
    };
    let (mut own, mut free) = (PLACES, PLACES);
    for (place, datagram) in set.iter_mut().enumerate() {
        if datagram.memory != 0 && now.wrapping_sub(datagram.since) > LIFETIME {
            // Of what began before, nothing is in it any more.
            if datagram.since >= *cleared {
                *waiting = waiting.saturating_sub(datagram.memory);
            }
            datagram.memory = 0;
        }
        if datagram.memory == 0 {
            free = place;
        } else if is_of(piece, datagram) {
            own = place;
        }
    }
    let is_full = waiting.saturating_add(piece.memory()) > MAX_WAITING;
    let datagram = if piece.start != 0 {
        let Some(datagram) = set.get_mut(own) else {
            return Turn::Stray;
        };
        if datagram.stamp != stamp || datagram.next != piece.start {
            return Turn::Stray;
        }
        if now.wrapping_sub(datagram.since) > PATIENCE {
            return Turn::Stray;
        }
        if count.wrapping_sub(datagram.last) > MAX_DISTANCE {
            return Turn::Stray;
        }
        if datagram.until != 0 && seconds() >= u64::from(datagram.until) {
            return Turn::Stray;
        }
        // The last fragment makes room and takes none.
        if is_full && piece.more {
            return Turn::TooMany;
        }
        datagram
    } else {
        // The kernel may still keep an earlier datagram with this identification, and would
        // finish that one with what follows, or end it because the two overlap.
        if own < PLACES {
            return Turn::Stray;
        }
        let Some(datagram) = set.get_mut(free).filter(|_| !is_full) else {
            return Turn::TooMany;
        };
        *datagram = Datagram {
            since: now,
            destination: piece.destination,
            identification: piece.identification,
            stamp,
            until,
            protocol: piece.protocol,
            ..Datagram::default()
        };
        datagram
    };
    *since = now;
    *count = count.wrapping_add(1);
    datagram.last = *count;
    if piece.more {
        datagram.next = piece.start.wrapping_add(piece.length);
        datagram.memory = datagram.memory.wrapping_add(piece.memory());
        *waiting = waiting.wrapping_add(piece.memory());
    } else {
        *waiting = waiting.saturating_sub(datagram.memory);
        datagram.memory = 0;
    }
    Turn::Next
}

/// Which set of places a fragment's datagram is in.
#[inline(always)]
fn set_of(piece: &Piece) -> usize {
    let [a, b, c, d] = piece.destination.words;
    let hash = mix(piece.identification ^ a ^ b, u32::from(piece.protocol) ^ c ^ d);
    (hash >> 40) as usize & (SETS - 1)
}

#[inline(always)]
fn is_of(piece: &Piece, datagram: &Datagram) -> bool {
    datagram.identification == piece.identification
        && datagram.destination == piece.destination
        && datagram.protocol == piece.protocol
}
