//! A frame in memory that its sender shares with the kernel, and so can change after it was sent.
//! Never sends two frames at a time.
//!
//! A file that is sent by UDP is not copied (`MSG_SPLICE_PAGES`), only its pages are told. So the
//! frame is sent in VXLAN to the client itself, over loopback: what is unpacked there goes through
//! a bridge out of the client's interface, still in the file's pages but for its Ethernet header.
//! Pages of a packet socket's ring would be copied on their way (`skb_orphan_frags`).

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, ensure};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::rig::namespace::Namespace;

/// Port of VXLAN (RFC 7348, section 5), and a header with network identifier 5.
const PORT: u16 = 4789;
const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 5, 0];
/// Room for a frame with that header, in bytes: a page.
const ROOM: usize = 4096;

/// A frame that the kernel may read while somebody writes to it.
#[derive(Debug)]
pub struct SharedFrame {
    socket: UdpSocket,
    file: File,
    memory: MmapRaw,
    length: usize,
}

impl SharedFrame {
    /// Has a client's interface in a bridge from now on, and puts a frame where it can be sent from.
    pub fn new(from: &Namespace, interface: &str, frame: &[u8]) -> Result<Self> {
        let id = u32::from_be_bytes([0, HEADER[4], HEADER[5], HEADER[6]]).to_string();
        if !from.ip(&["-brief", "link"])?.contains("vxlan0") {
            from.ip(&["link", "set", "lo", "up"])?;
            let local = ["local", "127.0.0.1", "dstport", "4789", "dev", "lo"];
            let add = ["link", "add", "vxlan0", "type", "vxlan", "id", &id];
            from.ip(&[&add[..], &local].concat())?;
            from.ip(&["link", "add", "bridge0", "type", "bridge"])?;
            // What is merged there would have its headers copied.
            from.run(|| switch_off_merging("vxlan0"))?;
            for link in ["vxlan0", interface] {
                from.ip(&["link", "set", link, "master", "bridge0"])?;
                from.ip(&["link", "set", link, "up"])?;
            }
            from.ip(&["link", "set", "bridge0", "up"])?;
        }
        let socket = from.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(("127.0.0.1", PORT))?;
            Ok(socket)
        })?;
        let bytes = [&HEADER[..], frame].concat();
        ensure!(bytes.len() <= ROOM, "{} bytes are too many", bytes.len());
        let file = File::from(memfd_create("frame", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(ROOM as u64)?;
        let memory = MmapOptions::new().len(ROOM).map_raw(&file)?;
        let shared = Self { socket, file, memory, length: bytes.len() };
        for (index, pair) in bytes.chunks(2).enumerate() {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            shared.at(2 * index).store(u16::from_ne_bytes(pair), Ordering::Relaxed);
        }
        Ok(shared)
    }

    /// Two bytes of the frame, in memory order. Their offset is even.
    pub fn pair(&self, offset: usize) -> &AtomicU16 {
        self.at(HEADER.len() + offset)
    }

    /// Sends the frame.
    pub fn send(&self) -> Result<()> {
        let mut start = 0;
        // SAFETY: both descriptors are open, and the offset is a whole one.
        let sent = unsafe {
            libc::sendfile(
                self.socket.as_raw_fd(),
                self.file.as_raw_fd(),
                &raw mut start,
                self.length,
            )
        };
        Errno::result(sent).context("cannot send the file with the frame")?;
        Ok(())
    }

    fn at(&self, at: usize) -> &AtomicU16 {
        assert!(at.is_multiple_of(2) && at < ROOM, "{at} is no pair of the frame");
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned.
        let pair = unsafe { self.memory.as_mut_ptr().add(at) };
        // SAFETY: as above; the kernel reads it and does not write.
        unsafe { AtomicU16::from_ptr(pair.cast()) }
    }
}

/// Generic receive offload, of an interface of the calling thread's namespace
/// (uapi/linux/ethtool.h).
fn switch_off_merging(interface: &str) -> Result<()> {
    const ETHTOOL_SGRO: u32 = 0x2c;
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let mut value = [ETHTOOL_SGRO, 0];
    // SAFETY: all bytes 0 are a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the request and the value that it points to live as long as the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    Errno::result(result).with_context(|| format!("cannot switch GRO of `{interface}` off"))?;
    Ok(())
}
