//! Where a packet stands in the datagram that it may be a piece of.
//! Never knows other pieces.

use crate::verdict::Reason;

/// Where a packet stands in the datagram that it may be a piece of. One word, since a packet is
/// mostly whole: the identification in the upper half, then the place, whose lowest bit tells
/// that more follow, and the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment(u64);

impl Fragment {
    /// A whole packet.
    pub const WHOLE: Self = Self(0);
    /// A fragment other than the first, of which nothing else is known.
    pub const LATER: Self = Self(8 << 16);

    /// A fragment whose data begin at `start`, a multiple of 8, and have `length` bytes. Refused
    /// is what no sender makes: all fragments but the last end at a multiple of 8 bytes, none is
    /// empty, and none ends beyond the 65,535 bytes of the longest datagram (RFC 791, section 3.2;
    /// RFC 8200, section 4.5). Of IPv4, the kernel keeps those until the datagram is complete.
    #[inline(always)]
    pub(crate) fn new(
        identification: u32,
        start: u16,
        length: u16,
        more: bool,
    ) -> Result<Self, Reason> {
        let ends_beyond = (start & !7).checked_add(length).is_none();
        if length == 0 || ends_beyond || more && length & 7 != 0 {
            return Err(Reason::Malformed);
        }
        let place = start & !7 | more as u16;
        Ok(Self((identification as u64) << 32 | (place as u64) << 16 | length as u64))
    }

    /// The identification that the pieces of one datagram have in common, in the machine's byte
    /// order; 0 for a whole packet.
    #[inline(always)]
    pub const fn identification(&self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Where the packet's data begin in the datagram's, in bytes; a multiple of 8.
    #[inline(always)]
    pub const fn start(&self) -> u16 {
        (self.0 >> 16) as u16 & !7
    }

    /// How many bytes of data the packet brings; 0 for a whole packet.
    #[inline(always)]
    pub const fn length(&self) -> u16 {
        self.0 as u16
    }

    /// Whether more data follow in another fragment.
    #[inline(always)]
    pub const fn more(&self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// Whether the packet is a fragment other than the first, which has no ports.
    #[inline(always)]
    pub const fn is_later(&self) -> bool {
        self.start() != 0
    }

    /// Whether the packet is a datagram of its own. An IPv6 fragment with all of a datagram is
    /// one (an atomic fragment, RFC 6946).
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.0 & 0xffff << 16 == 0
    }

    /// Whether the packet has a header that makes it a fragment, though perhaps an atomic one.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.0 != 0
    }

    /// This value as one word, for [`Self::from_bits`].
    #[inline(always)]
    pub const fn to_bits(&self) -> u64 {
        self.0
    }

    /// The value of which [`Self::to_bits`] made this word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}
