//! What an address is: of which family, to one or to many, on one link or beyond; and where a
//! filter of addresses has it.
//! Never looks an address up: whose it is, tables know.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi::{Address, FILTER_WORDS};

const MAPPED_WORD: u32 = 0xffff_u32.to_be();

impl Address {
    /// All zero: no address.
    pub const NONE: Self = Self { words: [0; 4] };

    /// The mapped form of the four bytes of an IPv4 address, in network byte order.
    #[inline(always)]
    pub const fn from_ipv4(octets: [u8; 4]) -> Self {
        Self { words: [0, 0, MAPPED_WORD, u32::from_ne_bytes(octets)] }
    }

    /// Whether this is the mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn is_mapped(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_WORD
    }

    /// Where a filter of addresses has this one: index of a word, and a mask with one bit. A
    /// bit that is not set tells that no such address is in the set.
    #[inline(always)]
    pub const fn filter_bit(&self) -> (u32, u64) {
        let [a, b, c, d] = self.words;
        let hash = mix(a ^ c, b ^ d) >> 32;
        (hash as u32 >> 6 & (FILTER_WORDS as u32 - 1), 1 << (hash & 63))
    }

    /// Whether this is 0.0.0.0 or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words;
        (a | b | d) == 0 && (c == 0 || c == MAPPED_WORD)
    }

    /// Whether the kernel delivers to many: IPv4 224.0.0.0/4 and 255.255.255.255
    /// (RFC 1112, RFC 919), IPv6 ff00::/8 (RFC 4291, section 2.7).
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        if self.is_mapped() {
            let first = self.words[3].to_ne_bytes()[0];
            first & 0xf0 == 0xe0 || self.words[3] == u32::MAX
        } else {
            self.words[0].to_ne_bytes()[0] == 0xff
        }
    }

    /// Whether this is an IPv6 source of a single link: fe80::/10, or none yet, `::`
    /// (RFC 4291, section 2.5).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        let [first, second, _, _] = self.words[0].to_ne_bytes();
        let [a, b, c, d] = self.words;
        (first == 0xfe && second & 0xc0 == 0x80) || (a | b | c | d) == 0
    }
}

/// A hash of two words, good in its upper bits: multiplication moves every bit up to them.
#[inline(always)]
pub const fn mix(high: u32, low: u32) -> u64 {
    let word = (high as u64) << 32 | low as u64;
    let hash = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ hash >> 32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_ipv4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v6.octets();
                let words = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]];
                Self { words: words.map(u32::from_ne_bytes) }
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_mapped() {
            return Self::V4(Ipv4Addr::from(address.words[3].to_ne_bytes()));
        }
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]] =
            address.words.map(u32::to_ne_bytes);
        Self::V6(Ipv6Addr::from([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]))
    }
}
