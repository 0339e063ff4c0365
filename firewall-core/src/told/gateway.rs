//! What is told of a Whonix gateway: the types of its JSON.
//! Never decides anything.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tor::{Access, Each, Fate};

/// What is in force in a Whonix gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GatewayStatus {
    /// Whether rules are enforced there: only mode `whonix` does that.
    pub enforced: bool,
    /// What clients whose default is `drop` may do with Tor's services without a rule.
    pub services: Each<Access>,
    /// What is wrong with the keys that say so; such a key counts as `deny`.
    pub problems: Vec<String>,
    /// Why denied packets are not answered with an ICMP error; nothing if they are.
    pub silent: Option<String>,
}

/// What becomes of one packet in a Whonix gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PacketInGateway {
    /// What the gateway does with the packet if rules accept it.
    pub fate: Fate,
    /// Whether the packet ends silently if rules deny it, without an ICMP error.
    pub silent: bool,
}
