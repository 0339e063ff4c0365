//! What instructions make of numbers (RFC 9669, section 4).
//! Never sees a register or an address.

use anyhow::{Result, bail};

/// Bytes that a load or store is about.
pub fn width(code: u8) -> usize {
    [4, 2, 1, 8][usize::from(code >> 3 & 3)]
}

/// The lowest bits, in the other order of bytes if they shall be.
pub fn in_order(value: u64, bits: i32, swap: bool) -> Result<u64> {
    Ok(match (bits, swap) {
        (16, true) => u64::from((value as u16).swap_bytes()),
        (32, true) => u64::from((value as u32).swap_bytes()),
        (64, true) => value.swap_bytes(),
        (16, false) => u64::from(value as u16),
        (32, false) => u64::from(value as u32),
        (64, false) => value,
        _ => bail!("an order of {bits} bits"),
    })
}

/// What an instruction of 32 bits makes of two numbers, if it is known here.
pub fn calculate32(code: u8, one: u32, other: u32, offset: i16) -> Option<u32> {
    Some(match (code, offset) {
        (12, 0) => (one as i32).wrapping_shr(other) as u32,
        (6, 0) => one.wrapping_shl(other),
        (7, 0) => one.wrapping_shr(other),
        (11, 8) => i32::from(other as i8) as u32,
        (11, 16) => i32::from(other as i16) as u32,
        (8, 0) => (one as i32).wrapping_neg() as u32,
        _ => calculate64(code, one.into(), other.into(), offset)? as u32,
    })
}

/// What an instruction of 64 bits makes of two numbers, if it is known here.
pub fn calculate64(code: u8, one: u64, other: u64, offset: i16) -> Option<u64> {
    Some(match (code, offset) {
        (0, 0) => one.wrapping_add(other),
        (1, 0) => one.wrapping_sub(other),
        (2, 0) => one.wrapping_mul(other),
        (3, 0) => one.checked_div(other).unwrap_or(0),
        (4, 0) => one | other,
        (5, 0) => one & other,
        (6, 0) => one.wrapping_shl(other as u32),
        (7, 0) => one.wrapping_shr(other as u32),
        (8, 0) => one.wrapping_neg(),
        (9, 0) => one.checked_rem(other).unwrap_or(one),
        (10, 0) => one ^ other,
        (11, 0) => other,
        (11, 8) => i64::from(other as i8) as u64,
        (11, 16) => i64::from(other as i16) as u64,
        (11, 32) => i64::from(other as i32) as u64,
        (12, 0) => (one as i64).wrapping_shr(other as u32) as u64,
        _ => return None,
    })
}

/// Whether a jump is taken. Numbers of 32 bits come with their sign, which keeps the order
/// of unsigned ones as well.
pub fn holds(code: u8, one: u64, other: u64) -> Option<bool> {
    let signed = (one as i64, other as i64);
    Some(match code {
        1 => one == other,
        2 => one > other,
        3 => one >= other,
        4 => one & other != 0,
        5 => one != other,
        6 => signed.0 > signed.1,
        7 => signed.0 >= signed.1,
        10 => one < other,
        11 => one <= other,
        12 => signed.0 < signed.1,
        13 => signed.0 <= signed.1,
        _ => return None,
    })
}
