//! A client: what it shall be like, and where it is once it was added to a rig.
//! Never makes anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packets::family::{Family, PerFamily as _};
use crate::rig::namespace::Namespace;
use crate::rig::{GATEWAY_V4, GATEWAY_V6};

/// What a client shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSpec {
    /// Its domain number: the vif is `vif<number>.0`.
    pub number: u8,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl ClientSpec {
    /// Client `number` with the addresses that Qubes would give it.
    pub fn numbered(number: u8) -> Self {
        let [a, b, c, _] = GATEWAY_V4.octets();
        let [p, q, r, ..] = GATEWAY_V6.segments();
        Self {
            number,
            v4: Some(Ipv4Addr::new(a, b, c, number)),
            // 10.137 in hexadecimal, then the number.
            v6: Some(Ipv6Addr::new(p, q, r, 0, 0, 0, 0x0a89, u16::from(number))),
        }
    }

    /// The address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        family.of([self.v4.map(IpAddr::from), self.v6.map(IpAddr::from)])
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        Family::BOTH.iter().filter_map(|family| self.address(*family)).collect()
    }
}

/// A client that was added to a rig.
#[derive(Clone, Debug)]
pub struct Client {
    spec: ClientSpec,
    namespace: Namespace,
    vif: String,
}

impl Client {
    pub(super) fn new(spec: ClientSpec, namespace: Namespace) -> Self {
        Self { spec, namespace, vif: format!("vif{}.0", spec.number) }
    }

    /// What it is like.
    pub fn spec(&self) -> ClientSpec {
        self.spec
    }

    /// Where its programs run.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Name of its interface in the netvm.
    pub fn vif(&self) -> &str {
        &self.vif
    }

    /// Hardware address of its own interface.
    pub fn mac(&self) -> String {
        format!("00:16:3e:5e:6c:{:02x}", self.spec.number)
    }
}
