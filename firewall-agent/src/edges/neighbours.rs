//! What waits in the kernel for the address of a neighbour, and its end.
//! Never touches a neighbour whose address is known, or was asked for in vain: nothing waits for it.
//!
//! Only of an entry in state INCOMPLETE packets are kept, for 3 seconds as the kernel asks three times,
//! and they go with the entry (`__neigh_event_send` and `__neigh_update` in net/core/neighbour.c). Whoever sent
//! them is told that the host is unreachable. What is sent later makes a new entry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use nix::libc::{ENODEV, ENOENT, ENXIO};
use nix::net::if_::if_indextoname;
use rtnetlink::Handle;
use thiserror::Error;

/// How often entries are looked for, if there are always others. The kernel may leave some out of a list
/// if others go meanwhile.
const LOOKS: u32 = 10;

/// What waits could not be ended.
#[derive(Debug, Error)]
pub enum NeighboursError {
    /// No netlink socket.
    #[error("cannot open rtnetlink: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel does not tell, or does not do it.
    #[error(transparent)]
    Netlink(#[from] rtnetlink::Error),
}

/// A neighbour that is being asked for: index of its link, and its address.
type Waited = (u32, IpAddr);

/// Ends what waits for the address of a neighbour at links whose names may not stay. Must be called
/// inside a tokio runtime.
pub async fn end_waiting(may_stay: impl Fn(&str) -> bool) -> Result<(), NeighboursError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let ended = end_all(&handle, may_stay).await;
    connection.abort();
    ended
}

async fn end_all(handle: &Handle, may_stay: impl Fn(&str) -> bool) -> Result<(), NeighboursError> {
    let (mut ended, mut outcome) = (BTreeSet::new(), Ok(()));
    // Others may be asked for meanwhile, for ever, but nothing waits for these that was let pass before.
    for _ in 0..LOOKS {
        let mut waited = waited(handle).await?;
        waited.retain(|key @ (link, _), _| {
            let name = if_indextoname(*link).ok();
            !ended.contains(key) && !name.is_some_and(|name| may_stay(&name.to_string_lossy()))
        });
        if waited.is_empty() {
            break;
        }
        for (key, neighbour) in waited {
            match handle.neighbours().del(neighbour).execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if is_gone(error.raw_code()) => {}
                // The others are to go all the same.
                Err(error) => outcome = Err(error.into()),
                Ok(()) => {}
            }
            ended.insert(key);
        }
    }
    outcome
}

/// Whether the kernel says that there is no such entry, or no such link.
fn is_gone(error: i32) -> bool {
    [-ENOENT, -ENODEV, -ENXIO].contains(&error)
}

/// The neighbours that are being asked for, and what to say to the kernel about each.
async fn waited(handle: &Handle) -> Result<BTreeMap<Waited, NeighbourMessage>, rtnetlink::Error> {
    let mut waited = BTreeMap::new();
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(neighbour) = neighbours.try_next().await? {
        if neighbour.header.state != NeighbourState::Incomplete {
            continue;
        }
        let mut key = None;
        let mut message = NeighbourMessage::default();
        message.header.family = neighbour.header.family;
        message.header.ifindex = neighbour.header.ifindex;
        for attribute in neighbour.attributes {
            if let NeighbourAttribute::Destination(address) = &attribute {
                key = ip(address).map(|address| (neighbour.header.ifindex, address));
                message.attributes = vec![attribute];
            }
        }
        waited.extend(key.map(|key| (key, message)));
    }
    Ok(waited)
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some((*v4).into()),
        NeighbourAddress::Inet6(v6) => Some((*v6).into()),
        // The kernel forwards nothing else.
        _ => None,
    }
}
