//! Raw Ethernet frames: sending any bytes, and watching an interface.
//! Never interprets a frame: what to look for is an argument.
//!
//! A capture sits where `tcpdump` does: what arrives is seen before tc programs and nft,
//! what leaves is seen after them. Checksums may be left for hardware that does not
//! exist, and one frame may be longer than the link's MTU.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc::{self, AF_PACKET, ETH_P_ALL, SOL_PACKET, sockaddr_ll};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, getsockopt, recv,
    send, setsockopt, socket,
};

use crate::rig::namespace::Namespace;
use crate::traffic::options::PacketStatistics;
use crate::traffic::wait::Deadline;

/// Longest frame that offloading makes, and some more.
const MAX_FRAME: usize = 1 << 17;

/// The socket option by which a `virtio_net_hdr` precedes each frame (linux/if_packet.h).
pub(crate) const PACKET_VNET_HDR: i32 = 15;
/// Length of an Ethernet header.
const ETHERNET: u16 = 14;
/// Room for the frames of a test that sends many before it looks.
const BUFFER: usize = 1 << 22;

/// Sends one frame, Ethernet header first, out of an interface of the namespace.
pub fn send_raw(from: &Namespace, interface: &str, frame: &[u8]) -> Result<()> {
    let sender = Sender::open(from, interface)?;
    sender.send(frame).with_context(|| format!("out of `{interface}`"))
}

/// A way out of an interface, for many frames.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    /// Opens it, in the namespace.
    pub fn open(from: &Namespace, interface: &str) -> Result<Self> {
        // Protocol 0: this socket receives nothing.
        Ok(Self { socket: from.run(|| open(interface, 0))? })
    }

    /// Sends one frame, Ethernet header first.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .context("cannot send a frame")?;
        ensure!(sent == frame.len(), "only {sent} of {} bytes were sent", frame.len());
        Ok(())
    }
}

/// Sends one frame of more than a page, of which the kernel keeps but the Ethernet header
/// in a packet's linear part, and all that follows in pages beside it.
pub fn send_paged(from: &Namespace, interface: &str, frame: &[u8]) -> Result<()> {
    let socket = from.run(|| open(interface, 0))?;
    let yes: i32 = 1;
    let length = u32::try_from(size_of::<i32>())?;
    // SAFETY: the pointer is to a whole integer, whose size goes with it, and which is
    // only read.
    let result = unsafe {
        let value = (&raw const yes).cast();
        libc::setsockopt(socket.as_raw_fd(), SOL_PACKET, PACKET_VNET_HDR, value, length)
    };
    Errno::result(result).context("no virtio headers on a packet socket")?;
    // Of a `virtio_net_hdr` only `hdr_len`: how much shall be linear.
    let header = [&[0, 0], &ETHERNET.to_ne_bytes()[..], &[0; 6], frame].concat();
    let sent = send(socket.as_raw_fd(), &header, MsgFlags::empty())
        .with_context(|| format!("cannot send a frame out of `{interface}`"))?;
    ensure!(sent == header.len(), "only {sent} of {} bytes left `{interface}`", header.len());
    Ok(())
}

/// Watches an interface of the namespace from now on, in both directions.
pub fn capture(on: &Namespace, interface: &str) -> Result<Capture> {
    let socket = on.run(|| open(interface, u16::try_from(ETH_P_ALL)?))?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("no room for frames")?;
    Ok(Capture { socket, buffer: vec![0; MAX_FRAME] })
}

/// Frames that crossed an interface since it was made.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Capture {
    /// The next frame that fits; those before it are gone. `None` if none came in time.
    pub fn wait_for(
        &mut self,
        fits: impl Fn(&[u8]) -> bool,
        timeout: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Deadline::after(timeout);
        loop {
            while let Some(frame) = self.next()? {
                if fits(frame) {
                    return Ok(Some(frame.to_vec()));
                }
            }
            let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if !deadline.poll(&mut descriptors)? {
                return Ok(None);
            }
        }
    }

    /// All frames before one that fits; an error if that one does not come in time.
    pub(crate) fn before(
        &mut self,
        fits: impl Fn(&[u8]) -> bool,
        timeout: Duration,
    ) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.wait_for(|_| true, timeout)?;
            let frame = frame.context("the last frame did not come")?;
            if fits(&frame) {
                return Ok(frames);
            }
            frames.push(frame);
        }
    }

    /// How many frames were lost since this was last asked, because nobody had looked.
    pub(crate) fn lost(&self) -> Result<u32> {
        Ok(getsockopt(&self.socket, PacketStatistics)?.tp_drops)
    }

    /// A frame that is already here.
    fn next(&mut self) -> Result<Option<&[u8]>> {
        match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(self.buffer.get(..length)),
            // The interface went down or away: nothing more to see yet.
            Err(Errno::EAGAIN | Errno::ENETDOWN) => Ok(None),
            Err(error) => Err(error).context("cannot read a frame"),
        }
    }
}

/// A packet socket of the calling thread's namespace, bound to one interface.
pub fn open(interface: &str, protocol: u16) -> Result<OwnedFd> {
    let index = if_nametoindex(interface)
        .with_context(|| format!("there is no interface `{interface}`"))?;
    // Without a protocol until it is bound, or it would see all interfaces first.
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
        .context("cannot open a packet socket")?;
    bind(socket.as_raw_fd(), &link_address(i32::try_from(index)?, protocol)?)
        .with_context(|| format!("cannot bind a packet socket to `{interface}`"))?;
    Ok(socket)
}

/// Has a packet socket that was opened without a protocol hear everything from now on.
pub fn listen(socket: &OwnedFd, interface: &str) -> Result<()> {
    let index = i32::try_from(if_nametoindex(interface)?)?;
    Ok(bind(socket.as_raw_fd(), &link_address(index, u16::try_from(ETH_P_ALL)?)?)?)
}

fn link_address(index: i32, protocol: u16) -> Result<LinkAddr> {
    let address = sockaddr_ll {
        sll_family: u16::try_from(AF_PACKET)?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = u32::try_from(size_of::<sockaddr_ll>())?;
    // SAFETY: the pointer is to a whole `sockaddr_ll`, whose length goes with it, and
    // which is copied before it goes away.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.context("not a link address")
}
