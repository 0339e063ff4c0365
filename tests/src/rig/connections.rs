//! The kernel's table of connections of a namespace, emptied between measurements.
//! Never looks at a connection.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

use crate::rig::namespace::Namespace;

/// `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`: without a tuple, all of them
/// (uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h).
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST | NLM_F_ACK` (uapi/linux/netlink.h).
const ACKNOWLEDGED_REQUEST: u16 = 1 | 4;
/// A netlink header, and what ctnetlink wants behind it.
const LENGTH: u32 = 16 + 4;

/// Makes the kernel forget all connections of a namespace.
pub fn forget(namespace: &Namespace) -> Result<()> {
    namespace.run(|| {
        let protocol = SockProtocol::NetlinkNetFilter;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut message = LENGTH.to_ne_bytes().to_vec();
        message.extend(DELETE.to_ne_bytes());
        message.extend(ACKNOWLEDGED_REQUEST.to_ne_bytes());
        message.resize(LENGTH as usize, 0);
        send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; 64];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let error = answer[..length].get(16..20).context("no answer of conntrack")?;
        ensure!(error == [0; 4], "conntrack refuses: {error:?}");
        Ok(())
    })
}
