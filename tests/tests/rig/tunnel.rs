//! A netvm with a tunnel beside its uplink, and what of a client is seen on the uplink.
//! Never has an agent or rules of its own.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use firewall_tests::packets;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::{INTERNET_V4, INTERNET_V6, UPLINK};
use firewall_tests::traffic::frames::{self, Capture};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};
use rand::random;

use super::world::*;

/// Name of the tunnel, at both ends.
pub const TUNNEL: &str = "wg0";
/// What nobody but a client sends.
pub const CANARY: &[u8] = b"what only a client says";
/// The other end of the tunnel, as the netvm sends to it.
const PEERS: [&str; 2] = ["192.0.3.1", "2001:db8:fffe::1"];
/// "Local experimental" (IEEE 802), which no kernel answers.
const EXPERIMENTAL: u16 = 0x88b5;

/// A world whose netvm has a tunnel, and somebody who looks at its uplink.
pub struct Tunnel {
    pub world: World,
    uplink: Capture,
}

impl Tunnel {
    /// A world with a tunnel that all goes through.
    pub fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let uplink = frames::capture(world.rig.internet(), "eth0")?;
        let tunnel = Self { world, uplink };
        tunnel.add()?;
        tunnel.lead(TUNNEL)?;
        Ok(tunnel)
    }

    pub fn netvm(&self) -> &Namespace {
        self.world.rig.netvm()
    }

    /// Where the agent looks for QubesDB.
    pub fn socket(&self) -> PathBuf {
        self.world.rig.directory().join("root/var/run/qubes/qubesdb.sock")
    }

    /// Starts a QubesDB in which the client's rules accept everything.
    pub fn qubesdb(&self) -> Result<FakeQubesDb> {
        let db = FakeQubesDb::start(&self.socket())?;
        for client in [self.world.v4, self.world.v6] {
            db.reload(&client.to_string(), "drop", &[("0000", b"action=accept")]);
        }
        Ok(db)
    }

    /// Makes the tunnel.
    pub fn add(&self) -> Result<()> {
        let (netvm, internet) = (self.netvm(), self.world.rig.internet());
        let link = ["link", "add", TUNNEL, "type", "veth", "peer", "name", TUNNEL, "netns"];
        netvm.ip(&[&link[..], &[internet.name()]].concat())?;
        for (on, v4, v6) in [
            (netvm, "192.0.3.2/24", "2001:db8:fffe::2/64"),
            (internet, "192.0.3.1/24", "2001:db8:fffe::1/64"),
        ] {
            on.ip(&["address", "add", v4, "dev", TUNNEL])?;
            on.ip(&["address", "add", v6, "dev", TUNNEL, "nodad"])?;
            // Stays where the link goes down, as the other end of a tunnel does.
            on.sysctl(&format!("net/ipv6/conf/{TUNNEL}/keep_addr_on_down"), "1")?;
            on.ip(&["link", "set", TUNNEL, "up"])?;
        }
        Ok(())
    }

    /// Leads everything by a link: the uplink, or the tunnel under some name.
    pub fn lead(&self, link: &str) -> Result<()> {
        let internet = [INTERNET_V4.to_string(), INTERNET_V6.to_string()];
        let via = match link {
            UPLINK => internet.each_ref().map(String::as_str),
            _ => PEERS,
        };
        for (family, via) in ["-4", "-6"].into_iter().zip(via) {
            self.netvm().ip(&[family, "route", "flush", "default"])?;
            self.netvm().ip(&[family, "route", "add", "default", "via", via, "dev", link])?;
        }
        Ok(())
    }

    /// Sets the tunnel up or down, under some name.
    pub fn set(&self, link: &str, state: &str) -> Result<()> {
        self.netvm().ip(&["link", "set", link, state]).map(drop)
    }

    /// Gives the tunnel another name.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.set(from, "down")?;
        self.netvm().ip(&["link", "set", from, "name", to])?;
        self.set(to, "up")
    }

    /// What of clients left by the uplink since this was last asked: to a server, or with the canary.
    pub fn strays(&mut self) -> Result<Vec<Vec<u8>>> {
        let token: [u8; 16] = random();
        let mut last = packets::ethernet(EXPERIMENTAL, &token);
        last[..6].fill(0xff);
        frames::send_raw(self.netvm(), UPLINK, &last)?;
        let mut strays = Vec::new();
        loop {
            let frame = self.uplink.wait_for(|_| true, PATIENCE)?;
            let frame = frame.context("the uplink is dead")?;
            if frame.ends_with(&token) {
                return Ok(strays);
            }
            if is_clients(&frame) {
                strays.push(frame);
            }
        }
    }

    /// Checks what becomes of what a client sends, and that none of it is seen on the uplink.
    #[track_caller]
    pub fn check(&mut self, name: &str, v4: [Outcome; 4], v6: [Outcome; 4]) {
        self.world.check(name, v4, v6);
        let strays = self.strays().expect("an uplink");
        assert!(strays.is_empty(), "{name}: left in the clear: {strays:?}");
    }

    /// Checks that what a client sends leaves by the uplink.
    #[track_caller]
    pub fn check_clear(&mut self, name: &str) {
        self.world.check(name, ACCEPTED, ACCEPTED);
        assert!(!self.strays().expect("an uplink").is_empty(), "{name}: not by the uplink");
    }

    /// Whether DNS for somebody is answered.
    pub fn asks(&self, server: IpAddr) -> Result<Outcome> {
        Probe::udp(self.world.client.namespace(), SocketAddr::new(server, 53)).run(SILENCE)
    }
}

/// Whether a frame is for one of the servers, or quotes what a client sent.
fn is_clients(frame: &[u8]) -> bool {
    let is_for = |server: IpAddr| match server {
        // All of its network.
        IpAddr::V4(server) => frame.get(30..33) == server.octets().get(..3),
        IpAddr::V6(server) => frame.get(38..54) == Some(&server.octets()),
    };
    is_for(SERVER4) || is_for(SERVER6) || frame.windows(CANARY.len()).any(|it| it == CANARY)
}
