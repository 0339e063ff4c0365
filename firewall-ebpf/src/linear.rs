//! Bytes that a program reads and writes without a call: those between `data` and `data_end` of
//! its context.
//! Never goes beyond them, where a packet may go on in pages.

/// `N` bytes from `offset` on, at an offset that is a constant; `None` if not all of them are
/// there.
#[inline(always)]
pub fn read<const N: usize>(data: usize, data_end: usize, offset: u32) -> Option<[u8; N]> {
    let start = data + offset as usize;
    if start + N > data_end {
        return None;
    }
    // SAFETY: before `data_end`, as the verifier sees from the line above.
    Some(unsafe { *(start as *const [u8; N]) })
}

/// Writes the first bytes, if that many are there.
#[inline(always)]
pub fn write<const N: usize>(data: usize, data_end: usize, bytes: [u8; N]) {
    if data + N > data_end {
        return;
    }
    // SAFETY: before `data_end`, as the verifier sees from the line above.
    unsafe { *(data as *mut [u8; N]) = bytes };
}
