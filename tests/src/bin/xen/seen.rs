//! Frames at an interface of dom0, each with its time, as the network stack has them: what arrives
//! before all filters, what leaves after them.
//! Never loses a frame without saying so.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestampns};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, getsockopt, recvmsg, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use firewall_tests::packets::FRAGMENT;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::traffic::frames::{listen, open};
use firewall_tests::traffic::options::{PacketStatistics, VirtioHeaders};

use crate::wait::until;

/// How much of a frame is kept.
const HEAD: usize = 512;
const VIRTIO_HEADER: usize = 10;
const ETHERNET: usize = 14;
const BUFFER: usize = 1 << 25;

/// A frame.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When, since 1970.
    pub at: Duration,
    /// Whether it left by the interface, and did not come by it.
    pub left: bool,
    /// Whether its checksum is still to be completed.
    pub is_partial: bool,
    /// Size of the segments that it is to be cut into, and how much of it is linear; if any.
    pub segments: Option<(u16, u16)>,
    /// How long it is.
    pub length: usize,
    /// Its beginning.
    pub head: Vec<u8>,
}

/// A watch at an interface, from its beginning to its end.
pub struct Watch {
    interface: String,
    socket: Arc<OwnedFd>,
    seen: Arc<Mutex<Vec<Seen>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// From now on.
    pub fn begin(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.run(|| {
            let socket = open(interface, 0)?;
            setsockopt(&socket, VirtioHeaders, &true)?;
            setsockopt(&socket, ReceiveTimestampns, &true)?;
            setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
            setsockopt(&socket, RcvBufForce, &BUFFER)?;
            listen(&socket, interface)?;
            Ok(socket)
        })?;
        let (socket, seen) = (Arc::new(socket), Arc::<Mutex<Vec<Seen>>>::default());
        let is_over = Arc::<AtomicBool>::default();
        let (its, all, end) = (Arc::clone(&socket), Arc::clone(&seen), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while let Some(one) = next(&its, &end) {
                all.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            }
        });
        Ok(Self { interface: interface.to_owned(), socket, seen, is_over, thread: Some(thread) })
    }

    /// All frames so far that fit.
    pub fn so_far(&self, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|one| fits(one)).cloned().collect()
    }

    /// Waits until so many frames fit.
    pub fn wait_for(
        &self,
        what: &str,
        count: usize,
        patience: Duration,
        fits: impl Fn(&Seen) -> bool,
    ) -> Result<Vec<Seen>> {
        let what = format!("{count} of {what} at {}", self.interface);
        until(&what, patience, || {
            let seen = self.so_far(&fits);
            Ok((seen.len() >= count).then_some(seen))
        })
    }

    /// Ends it, and returns all frames that fit.
    pub fn end(mut self, fits: impl Fn(&Seen) -> bool) -> Result<Vec<Seen>> {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let lost = getsockopt(&*self.socket, PacketStatistics)?.tp_drops;
        ensure!(lost == 0, "{lost} frames at {} were not seen", self.interface);
        Ok(self.so_far(fits))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The next frame; nothing if the watch is over and all was read, or the interface is gone.
fn next(socket: &OwnedFd, is_over: &AtomicBool) -> Option<Seen> {
    loop {
        let mut buffer = [0; VIRTIO_HEADER + HEAD];
        let mut times = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_TRUNC;
        match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut times), flags) {
            Ok(message) => {
                let at = message.cmsgs().ok()?.find_map(|it| match it {
                    ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                    _ => None,
                })?;
                let address: &libc::sockaddr_ll = message.address.as_ref()?.as_ref();
                let left = address.sll_pkttype == libc::PACKET_OUTGOING;
                let length = message.bytes.checked_sub(VIRTIO_HEADER)?;
                let (header, head) = buffer.split_at(VIRTIO_HEADER);
                let number =
                    |at: usize| Some(u16::from_ne_bytes([*header.get(at)?, *header.get(at + 1)?]));
                let segments = (header[1] != 0).then_some((number(4)?, number(2)?));
                let head = head.get(..length.min(HEAD))?.to_vec();
                return Some(Seen {
                    at,
                    left,
                    is_partial: header[0] & 1 != 0,
                    segments,
                    length,
                    head,
                });
            }
            // Nothing came in time, or the interface went.
            Err(_) => {
                if is_over.load(Ordering::Relaxed) {
                    return None;
                }
            }
        }
    }
}

impl Seen {
    /// Protocol, destination, and what follows the IP header, of IPv4 and IPv6.
    fn parts(&self) -> Option<(u8, IpAddr, &[u8])> {
        let packet = self.head.get(ETHERNET..)?;
        match self.head.get(12..14)? {
            [0x08, 0x00] => {
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                let header = usize::from(packet.first()? & 0xf) * 4;
                Some((*packet.get(9)?, Ipv4Addr::from(to).into(), packet.get(header..)?))
            }
            [0x86, 0xdd] => {
                let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                let (mut protocol, mut rest) = (*packet.get(6)?, packet.get(40..)?);
                while matches!(protocol, 0 | 43 | 60) {
                    protocol = *rest.first()?;
                    rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
                }
                if protocol == FRAGMENT {
                    (protocol, rest) = (*rest.first()?, rest.get(8..)?);
                }
                Some((protocol, Ipv6Addr::from(to).into(), rest))
            }
            _ => None,
        }
    }

    /// Whether it is for this address.
    pub fn is_for(&self, address: IpAddr) -> bool {
        self.parts().is_some_and(|(_, to, _)| to == address)
    }

    /// Whether it is for this port, if the port is where a first fragment has it.
    pub fn is_for_port(&self, protocol: u8, port: u16) -> bool {
        self.parts().is_some_and(|(number, _, rest)| {
            number == protocol && rest.get(2..4) == Some(&port.to_be_bytes())
        })
    }

    /// Whether these bytes are in its beginning.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.head.windows(bytes.len()).any(|window| window == bytes)
    }
}
