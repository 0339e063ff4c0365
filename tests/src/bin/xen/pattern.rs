//! Bytes by which a transfer is known to be right: each depends on where it stands.
//! Never the same twice within a transfer of the checks' size at a multiple of a page.

/// A length that no page, no segment and no power of two divides.
const PERIOD: usize = (1 << 20) - 17;

/// The pattern, and how far somebody is in it.
pub struct Pattern {
    bytes: Vec<u8>,
    at: usize,
}

impl Pattern {
    /// Its beginning.
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(PERIOD + 8);
        while bytes.len() < PERIOD {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        bytes.truncate(PERIOD);
        Self { bytes, at: 0 }
    }

    /// What comes next, at most so many bytes of it.
    pub fn next(&self, most: usize) -> &[u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        rest.get(..most).unwrap_or(rest)
    }

    /// So many bytes of that are done.
    pub fn advance(&mut self, by: usize) {
        self.at = (self.at + by) % PERIOD;
    }

    /// Whether these bytes come next; then they are done.
    pub fn is_next(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            let (part, rest) = bytes.split_at(expected.len());
            if part != expected {
                return false;
            }
            self.advance(part.len());
            bytes = rest;
        }
        true
    }
}
