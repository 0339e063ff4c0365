//! Socket options that nix has no name for.
//! Never sets one.

use nix::libc::{self, IPPROTO_IPV6, SOL_PACKET};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use crate::traffic::frames::PACKET_VNET_HDR;

sockopt_impl!(
    /// A `virtio_net_hdr` precedes each frame of a packet socket (linux/if_packet.h).
    VirtioHeaders,
    SetOnly,
    SOL_PACKET,
    PACKET_VNET_HDR,
    bool
);

sockopt_impl!(
    /// Frames that a packet socket saw and lost; reading begins anew (packet(7)).
    PacketStatistics,
    GetOnly,
    SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

sockopt_impl!(
    /// The path MTU that the kernel knows for a connected socket (ipv6(7)).
    Ipv6Mtu,
    GetOnly,
    IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);
