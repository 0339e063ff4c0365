//! Fragments that are handed on: each right behind the one before it, and no more of a client
//! than its share of the memory in which the kernel puts them together.
//! Never lets pass what was to be dropped.

use core::arch::asm;

use firewall_common::fragments::{self, MAX_TABLES, Piece, Turn};

use crate::clock;
use crate::maps::DATAGRAMS;

/// How often a processor tries to get at a table that another one works on, which takes that
/// one less than a microsecond.
const TRIES: u32 = 32;

/// Takes in a fragment that is to be handed on while what is in force for the client has this
/// stamp. `until` is the end of the audit that lets the fragment pass, in seconds since the machine
/// booted, or 0 without an audit; `now` is in nanoseconds of the coarse clock.
#[inline(always)]
pub fn turn(piece: &Piece, client: u32, stamp: u32, until: u32, now: u64) -> Turn {
    let Some(datagrams) = DATAGRAMS.get_ptr_mut(client & (MAX_TABLES as u32 - 1)) else {
        return Turn::Stray;
    };
    // SAFETY: the word is inside the map's value, aligned to 8 bytes.
    let lock = unsafe { &raw mut (*datagrams).lock };
    // SAFETY: as above.
    if !(0..TRIES).any(|_| unsafe { exchange(lock, 1) } == 0) {
        return Turn::TooMany;
    }
    // SAFETY: inside the map's value, which is this processor's own while it holds the lock.
    let datagrams = unsafe { &mut *datagrams };
    let turn = fragments::follow(datagrams, piece, stamp, until, now, clock::since_boot);
    // SAFETY: the word is inside the map's value, aligned to 8 bytes.
    unsafe { exchange(lock, 0) };
    turn
}

/// Writes a word and returns what it was, before all and after all other memory accesses. The
/// core library has no such operation for BPF; the kernel has it since 5.12.
///
/// # Safety
///
/// `word` points to 8 aligned bytes that stay where they are.
#[inline(always)]
unsafe fn exchange(word: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the instruction touches nothing but the word and the register.
    unsafe {
        asm!(
            "{value} = xchg_64({word} + 0, {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    value
}
