//! PURE: a client as a person names it: by its address, or by the qube that dom0 has introduced.
//! Never guesses: what can be an address is one.

use std::net::IpAddr;
use std::str::FromStr;

use firewall_core::introductions::is_name;
use firewall_core::told::status::{ClientStatus, Status};

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The client with this address.
    Address(IpAddr),
    /// All addresses of the qube of this name.
    Name(String),
}

impl Who {
    /// Whether a client is meant.
    pub fn is(&self, client: &ClientStatus) -> bool {
        match self {
            Self::Address(address) => client.address == *address,
            Self::Name(name) => client.name.as_ref() == Some(name),
        }
    }

    /// The address that is meant; of a qube's, if one of this family is wanted, that one. An error if
    /// no client is known by the name.
    pub fn address(&self, status: Option<&Status>, is_v4: Option<bool>) -> Result<IpAddr, String> {
        let name = match self {
            Self::Address(address) => return Ok(*address),
            Self::Name(name) => name,
        };
        let status = status.ok_or_else(|| unknown_without_agent(name))?;
        let own: Vec<IpAddr> =
            status.clients.iter().filter(|it| self.is(it)).map(|it| it.address).collect();
        let of_family = own.iter().find(|it| is_v4.is_none_or(|is_v4| it.is_ipv4() == is_v4));
        of_family.or(own.first()).copied().ok_or_else(|| nobody(name))
    }
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) if is_name(text) => Ok(Self::Name(text.to_owned())),
            Err(_) => Err("an address or the name of a qube is wanted".to_owned()),
        }
    }
}

/// That no client is known by a name.
pub fn nobody(name: &str) -> String {
    format!(
        "no client here is known as `{name}`: dom0 has not introduced it, or it has neither vif nor \
         rules; in dom0: qubes-firewall-rules --introduce {name}"
    )
}

/// That names are the agent's to know.
pub fn unknown_without_agent(name: &str) -> String {
    format!("only a running agent knows who `{name}` is; give an address instead")
}
