//! Packets that a qube sends without end, one kind of which is allowed, and how many of each kind
//! were handed to a socket of the gateway.
//! Never reads what came back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::rig::agent::PATIENCE;
use crate::rig::{CLIENT_INTERFACE, Client};
use crate::traffic::frames::Sender;
use crate::whonix::Gateway;
use crate::whonix::kinds::{Kind, Odd, Place, What};
use crate::whonix::sent::frame;

/// The kind that rules shall accept: DNS.
pub const ALLOWED: &str = "dns";
/// Each kind of packet: its name, the port that it comes from, where to and what. The first needs
/// none of Whonix' rules to come to Tor.
const KINDS: [(&str, u16, Place, What); 5] = [
    ("dnsport", 6001, Place::Gateway, What::Udp(5300)),
    ("transport", 6002, Place::Host, What::Open(80)),
    ("socks", 6003, Place::Gateway, What::Open(9050)),
    ("control", 6004, Place::Gateway, What::Open(9051)),
    (ALLOWED, 7001, Place::Host, What::Udp(53)),
];
/// Between two rounds of packets.
const PAUSE: Duration = Duration::from_micros(500);

/// A frame of each kind, from each of these addresses.
pub fn frames(addresses: &[IpAddr]) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for from in addresses {
        for (_, port, to, what) in KINDS {
            let packets = Kind { to, what, odd: Odd::Plain }.packets(*from, port)?;
            frames.extend(packets.iter().map(|it| frame(it)));
        }
    }
    Ok(frames)
}

/// Sends these frames again and again, and counts the rounds.
pub fn send(
    client: &Client,
    frames: &[Vec<u8>],
    done: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let sender = Sender::open(client.namespace(), CLIENT_INTERFACE)?;
    while !done.load(Ordering::Relaxed) {
        for frame in frames {
            sender.send(frame)?;
        }
        sent.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

impl Gateway {
    /// Counts packets of each kind from now on, behind all other chains, whoever sends them.
    pub fn count_kinds(&self) -> Result<()> {
        let (mut names, mut rules) = (String::new(), String::new());
        for (name, port, ..) in KINDS {
            names += &format!("    counter {name} {{ }}\n");
            rules += &format!("        iifname \"vif*\" th sport {port} counter name {name}\n");
        }
        self.netvm().nft(&format!(
            "table inet counted {{\n{names}    chain delivered {{
        type filter hook input priority 1001; policy accept;\n{rules}    }}\n}}\n"
        ))
    }

    /// How many packets of each kind were handed to a socket.
    pub fn counted_kinds(&self) -> Result<BTreeMap<String, u64>> {
        let json = self.nft(&["-j", "list", "counters", "table", "inet", "counted"])?;
        let json: Value = serde_json::from_str(&json)?;
        let objects = json["nftables"].as_array().into_iter().flatten();
        let counters = objects.filter_map(|it| {
            let counter = it.get("counter")?;
            Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
        });
        let counters: BTreeMap<String, u64> = counters.collect();
        ensure!(counters.len() == KINDS.len(), "{counters:?}");
        Ok(counters)
    }

    /// Makes sure that each kind comes to a socket as things are, and forgets them. So a kind of which
    /// nothing comes later is one that somebody stops.
    pub fn all_kinds_come(&self, from: &Client, frames: &[Vec<u8>]) -> Result<()> {
        let sender = Sender::open(from.namespace(), CLIENT_INTERFACE)?;
        frames.iter().try_for_each(|frame| sender.send(frame))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counted = self.counted_kinds()?;
            // IPv4 and IPv6 of each.
            if counted.values().all(|packets| *packets >= 2) {
                self.nft(&["reset", "counters", "table", "inet", "counted"])?;
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all kinds come: {counted:?}");
            std::thread::yield_now();
        }
    }
}
