//! What tests have two of, one for IPv4 and one for IPv6.
//! Never an enum of its own: a family is what the product calls so.

pub use firewall_core::rules::Family;

use crate::packets::{ICMP, ICMPV6};

/// Choices by family.
pub trait PerFamily: Copy {
    /// Both families.
    const BOTH: [Self; 2];

    /// The one of two, that of IPv4 first.
    fn of<T>(self, pair: [T; 2]) -> T;

    /// Number of the family's ICMP.
    fn icmp(self) -> u8 {
        self.of([ICMP, ICMPV6])
    }

    /// Type of the family's echo request.
    fn echo(self) -> u8 {
        self.of([8, 128])
    }

    /// Ethertype of the family's packets.
    fn ethertype(self) -> u16 {
        self.of([0x0800, 0x86dd])
    }

    /// Bits of an address.
    fn bits(self) -> u8 {
        self.of([32, 128])
    }
}

impl PerFamily for Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn of<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}
