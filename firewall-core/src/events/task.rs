//! What the daemon does and may have to try again.
//! Never says when.

use crate::client::ClientId;

/// What the daemon does for the world and may have to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// [`Effect::ReadLinks`](super::Effect::ReadLinks).
    Links,
    /// [`Effect::SetLocals`](super::Effect::SetLocals).
    Locals,
    /// [`Effect::LeaveToOthers`](super::Effect::LeaveToOthers).
    LeaveToOthers,
    /// [`Effect::EndWaiting`](super::Effect::EndWaiting).
    EndWaiting,
    /// [`Effect::SetConnected`](super::Effect::SetConnected).
    Connected,
    /// [`Effect::Put`](super::Effect::Put).
    Put(ClientId),
    /// [`Effect::Audit`](super::Effect::Audit).
    Audit(ClientId),
    /// [`Effect::Remove`](super::Effect::Remove).
    Remove(ClientId),
    /// [`Effect::Settled`](super::Effect::Settled).
    Settled(ClientId),
    /// [`Effect::Tidy`](super::Effect::Tidy).
    Tidy,
    /// [`Effect::Prepare`](super::Effect::Prepare).
    Prepare,
    /// [`Effect::ReadConnections`](super::Effect::ReadConnections).
    ReadConnections,
    /// Ending the connections that a client must not have any more:
    /// [`Effect::Disconnect`](super::Effect::Disconnect).
    Cut(ClientId),
    /// [`Effect::ReadFlows`](super::Effect::ReadFlows).
    ReadFlows,
    /// [`Effect::Forget`](super::Effect::Forget) of the link with this interface index.
    Forget(u32),
    /// [`Effect::TakenOver`](super::Effect::TakenOver).
    TakenOver,
}
