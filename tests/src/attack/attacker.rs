//! The attacker's way out: raw frames, large packets with all that a card would be asked for.
//! Never says anything by itself: its own kernel has no address.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send, setsockopt};

use crate::packets::family::{Family, PerFamily as _};
use crate::rig::{CLIENT_INTERFACE, Client};
use crate::traffic::frames::open;
use crate::traffic::options::VirtioHeaders;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`, and `VIRTIO_NET_HDR_GSO_*` (linux/virtio_net.h).
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;

/// What a sender leaves to the card: a `virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    flags: u8,
    kind: u8,
    headers: u16,
    segment: u16,
    checksum_from: u16,
    checksum_at: u16,
}

impl Offload {
    /// A TCP packet, whose header starts at `transport`, in segments.
    pub(crate) fn tcp(family: Family, transport: u16, segment: u16) -> Self {
        let kind = family.of([GSO_TCPV4, GSO_TCPV6]);
        Self {
            flags: NEEDS_CHECKSUM,
            kind,
            headers: transport + 20,
            segment,
            checksum_from: transport,
            checksum_at: 16,
        }
    }

    /// A UDP packet, whose header starts at `transport`, in segments.
    pub(crate) fn udp(transport: u16, segment: u16) -> Self {
        let headers = transport + 8;
        let checksum_at = 6;
        Self { kind: GSO_UDP, headers, checksum_at, ..Self::tcp(Family::V4, transport, segment) }
    }

    /// How many packets a frame of this length is on a wire.
    fn packets(self, length: usize) -> u64 {
        let segment = usize::from(self.segment).max(1);
        let content = length.saturating_sub(usize::from(self.headers));
        if self.kind == 0 { 1 } else { content.div_ceil(segment).max(1) as u64 }
    }

    fn bytes(self) -> Vec<u8> {
        let numbers = [self.headers, self.segment, self.checksum_from, self.checksum_at];
        let mut bytes = vec![self.flags, self.kind];
        bytes.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        bytes
    }
}

/// A client that has nothing but a packet socket.
#[derive(Debug)]
pub(crate) struct Attacker {
    socket: OwnedFd,
    /// Packets sent so far; a large one is as many as it would be on a wire.
    pub(crate) sent: u64,
}

impl Attacker {
    /// Takes a client's addresses away, so that its kernel says nothing unasked.
    pub(crate) fn new(client: &Client) -> Result<Self> {
        let namespace = client.namespace();
        namespace.sysctl(&format!("net/ipv6/conf/{CLIENT_INTERFACE}/disable_ipv6"), "1")?;
        namespace.ip(&["address", "flush", "dev", CLIENT_INTERFACE])?;
        let socket = namespace.run(|| open(CLIENT_INTERFACE, 0))?;
        setsockopt(&socket, VirtioHeaders, &true).context("no virtio headers")?;
        Ok(Self { socket, sent: 0 })
    }

    /// Sends a frame; `false` if its own kernel refuses it, as it does one too long for the
    /// link, or one whose headers do not fit what is said beside it.
    pub(crate) fn send(&mut self, frame: &[u8], offload: Offload) -> Result<bool> {
        let bytes = [&offload.bytes()[..], frame].concat();
        match send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()) {
            Ok(length) => ensure!(length == bytes.len(), "only {length} bytes were sent"),
            Err(Errno::EMSGSIZE | Errno::EINVAL) => return Ok(false),
            Err(error) => return Err(error).context("the attacker cannot send"),
        }
        self.sent += offload.packets(frame.len());
        Ok(true)
    }
}
