//! What of the qubes' packets was handed to a socket of the gateway, as the kernel's last hook sees
//! it: behind all rules of others.
//! Never changes what becomes of a packet.
//!
//! A listener hears of a connection when it stands. A single packet that gets as far as a listening
//! socket is seen here, at once: before the next packet of the same qube is looked at.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::packets::{TCP, UDP};
use crate::whonix::Gateway;

/// A table of the rig's own, with a chain behind all others. Five things are the most that nft
/// takes together, so there is a set for each protocol of each family.
pub fn table() -> String {
    let families = [("ip", "ipv4_addr"), ("ip6", "ipv6_addr")];
    let sets = families.iter().flat_map(|it| ["tcp", "udp"].map(|protocol| (it, protocol)));
    let (mut declared, mut rules) = (String::new(), String::new());
    for ((family, kind), protocol) in sets {
        declared += &format!(
            "    set {protocol}_{family} {{
        type {kind} . inet_service . inet_service . {kind} . inet_service
        flags dynamic
        size 65535
    }}\n"
        );
        rules += &format!(
            "        update @{protocol}_{family} {{ {family} saddr . {protocol} sport . {protocol} dport \
             . ct original {family} daddr . ct original proto-dst }} accept\n"
        );
    }
    format!(
        "table inet watch {{
{declared}    counter other {{ }}
    chain delivered {{
        type filter hook input priority 1000; policy accept;
        iifname != \"vif*\" accept
{rules}        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        meta l4proto ipv6-icmp ip6 daddr ff00::/8 accept
        counter name other
    }}
}}
"
    )
}

/// A packet that was handed to a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivery {
    /// Who sent it.
    pub source: SocketAddr,
    /// TCP or UDP.
    pub protocol: u8,
    /// The port of the socket.
    pub port: u16,
    /// Where it was sent to.
    pub original: SocketAddr,
}

impl Gateway {
    /// Each flow that had a packet handed to a socket since [`Gateway::forget`].
    pub fn delivered(&self) -> Result<Vec<Delivery>> {
        let objects = self.watched()?;
        let mut found = Vec::new();
        for set in objects.iter().map(|it| &it["set"]) {
            let name = set["name"].as_str().unwrap_or_default();
            let protocol = if name.starts_with("tcp") { TCP } else { UDP };
            for element in set["elem"].as_array().into_iter().flatten() {
                let one = delivery(protocol, element);
                found.push(one.with_context(|| format!("not a delivery: {element}"))?);
            }
        }
        Ok(found)
    }

    /// How many packets were handed to sockets that are neither of TCP nor of UDP, nor of how
    /// neighbours find each other.
    pub fn others_delivered(&self) -> Result<u64> {
        let objects = self.watched()?;
        let packets = objects.iter().find_map(|it| it["counter"]["packets"].as_u64());
        packets.context("no counter")
    }

    fn watched(&self) -> Result<Vec<Value>> {
        let text = self.nft(&["-j", "list", "table", "inet", "watch"])?;
        let mut json: Value = serde_json::from_str(&text)?;
        let objects = json["nftables"].as_array_mut().context("no objects")?;
        Ok(std::mem::take(objects))
    }

    /// Forgets all that was delivered.
    pub fn forget(&self) -> Result<()> {
        let sets = ["tcp_ip", "udp_ip", "tcp_ip6", "udp_ip6"];
        self.netvm().nft(&sets.map(|it| format!("flush set inet watch {it}\n")).concat())
    }
}

fn delivery(protocol: u8, element: &Value) -> Option<Delivery> {
    // An element with a timeout or a counter would be an object around this.
    let parts = element["concat"].as_array()?;
    let [source, from_port, port, original, to_port] = parts.as_slice() else { return None };
    let address = |it: &Value| it.as_str()?.parse::<IpAddr>().ok();
    let number = |it: &Value| u16::try_from(it.as_u64()?).ok();
    Some(Delivery {
        source: SocketAddr::new(address(source)?, number(from_port)?),
        protocol,
        port: number(port)?,
        original: SocketAddr::new(address(original)?, number(to_port)?),
    })
}
