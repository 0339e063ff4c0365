//! What the daemon does and may have to try again.
//! Never says when.

use crate::client::ClientId;

/// What the daemon does for the world and may have to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// [`super::Effect::ReadLinks`].
    Links,
    /// [`super::Effect::SetLocals`].
    Locals,
    /// [`super::Effect::SetConnected`].
    Connected,
    /// [`super::Effect::Put`].
    Put(ClientId),
    /// [`super::Effect::Audit`].
    Audit(ClientId),
    /// [`super::Effect::Remove`].
    Remove(ClientId),
    /// [`super::Effect::Settled`].
    Settled(ClientId),
    /// [`super::Effect::Tidy`].
    Tidy,
    /// [`super::Effect::Prepare`].
    Prepare,
    /// [`super::Effect::ReadConnections`].
    ReadConnections,
    /// Ending the connections that a client must not have any more: [`super::Effect::Disconnect`].
    Cut(ClientId),
    /// [`super::Effect::ReadFlows`].
    ReadFlows,
    /// [`super::Effect::Forget`].
    Forget(u32),
    /// [`super::Effect::TakenOver`].
    TakenOver,
}
