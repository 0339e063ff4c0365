//! Numbers of which the verifier forgets what it knows.
//! Never changes a number.
//!
//! Where many ways through a program meet, the verifier goes on once for each range of a number
//! that the ways leave behind, as far as the number is compared later. Of a number that it knows
//! nothing of, it goes on once for all of them.

use core::ptr;

/// Always 0. In memory that could be written to, so that the verifier does not know.
#[unsafe(no_mangle)]
static mut NOTHING: u32 = 0;

/// Returns `number`, of which the verifier knows nothing any more.
#[inline(always)]
pub fn forget(number: u32) -> u32 {
    // SAFETY: nobody writes to it.
    number | unsafe { ptr::read_volatile(&raw const NOTHING) }
}
