//! What the attacker writes into every byte that it can choose, so that its bytes are known
//! wherever they come out.
//! Never decides when which is written.

/// How long a mark is.
pub(crate) const LENGTH: usize = 4;

/// A mark, repeated as often as there is room: any seven bytes of it hold it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Of a client that may send nothing: nobody else may ever see it.
    Canary,
    /// Of a client that may send anything at the moment. Both have the same Internet
    /// checksum, so that a datagram can be of both and still be right.
    Open,
}

impl Mark {
    /// The mark once.
    pub(crate) const fn once(self) -> [u8; LENGTH] {
        match self {
            Self::Canary => [0xca, 0x9a, 0x17, 0xe5],
            Self::Open => [0xca, 0x9b, 0x17, 0xe4],
        }
    }

    /// So many bytes of it.
    pub(crate) fn bytes(self, length: usize) -> Vec<u8> {
        self.once().into_iter().cycle().take(length).collect()
    }

    /// The mark as two numbers of 16 bits.
    pub(crate) fn halves(self) -> [u16; 2] {
        let [a, b, c, d] = self.once();
        [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
    }

    /// How often it is in these bytes, at whatever place.
    pub(crate) fn count(self, bytes: &[u8]) -> usize {
        let mark = self.once();
        bytes.windows(LENGTH).filter(|window| *window == mark).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::checksum;

    #[test]
    fn seven_bytes_hold_the_mark_whole_and_never_the_other_one() {
        for (mark, other) in [(Mark::Canary, Mark::Open), (Mark::Open, Mark::Canary)] {
            let bytes = mark.bytes(64);
            for window in bytes.windows(7) {
                assert_eq!((mark.count(window), other.count(window)), (1, 0));
            }
        }
    }

    #[test]
    fn a_datagram_of_both_marks_has_the_checksum_of_one() {
        let [canary, open] = [Mark::Canary, Mark::Open].map(|mark| mark.bytes(64));
        assert_eq!(checksum(&canary), checksum(&open));
        assert_eq!(checksum(&[&canary[..24], &open[24..]].concat()), checksum(&open));
    }
}
