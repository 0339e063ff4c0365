//! Everything that checks need: an outside, the netvm, two guests with the same rules.
//! Never checks anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use firewall_tests::packets;
use firewall_tests::rig::namespace::{Namespace, ip};

use crate::domain::{Boot, Domain, Spec};
use crate::netvm::Netvm;
use crate::order::{Addresses, Answer, How, Order};
use crate::outside::{Outside, UPLINK};
use crate::seen::Watch;

/// Rules under which most checks begin. `SERVER` stands for a destination of the client's family.
pub const RULES: [&str; 4] = [
    "action=accept SERVER proto=tcp dstports=443-443",
    "action=accept SERVER proto=udp dstports=443-443",
    "action=accept SERVER proto=icmp",
    "action=accept SERVER proto=tcp dstports=5001-5002",
];
/// Nothing.
pub const NO_RULES: [&str; 0] = [];

/// What a guest gets for a packet that rules deny, in IPv4 and IPv6.
pub const PROHIBITED: [Answer; 2] = [
    Answer::Rejected { icmp_type: 3, icmp_code: 13 },
    Answer::Rejected { icmp_type: 1, icmp_code: 1 },
];

/// A guest with a queue for each of its two processors, and one with a single queue.
const WORK: Spec = spec("work", 12, 2);
pub const OTHER: Spec = spec("other", 13, 1);

const fn spec(name: &'static str, number: u8, processors: u32) -> Spec {
    let v4 = Ipv4Addr::new(10, 137, 0, number);
    let v6 = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, number as u16);
    let mac = [0x00, 0x16, 0x3e, 0x5e, 0x6c, number];
    Spec { name, processors, mac, addresses: Addresses { v4, v6 } }
}

/// The stage.
pub struct Stage {
    pub work: Domain,
    other: Option<Domain>,
    pub netvm: Netvm,
    pub outside: Outside,
    boot: Boot,
}

impl Stage {
    /// Sets it up.
    pub fn new(boot: &Boot) -> Result<Self> {
        let outside = Outside::new().context("outside")?;
        ip(&["netns", "attach", "dom0", &std::process::id().to_string()])?;
        println!("starting the agent");
        let netvm = Netvm::start()?;
        println!("starting a guest");
        let work = Domain::start(boot, WORK)?;
        let stage = Self { work, other: None, netvm, outside, boot: boot.clone() };
        stage.put(&RULES)?;
        stage.netvm.wait_for(&stage.work)?;
        Ok(stage)
    }

    /// The second guest, which is started when it is first asked for.
    pub fn other(&mut self) -> Result<&mut Domain> {
        if self.other.is_none() {
            println!("starting another guest");
            let other = Domain::start(&self.boot, OTHER)?;
            self.netvm.put(&other, &RULES)?;
            self.netvm.wait_for(&other)?;
            self.other = Some(other);
        }
        self.other.as_mut().context("no other guest")
    }

    /// Gives the first guest these rules.
    pub fn put(&self, rules: &[&str]) -> Result<()> {
        self.netvm.put(&self.work, rules)
    }

    /// Watches the uplink from now on.
    pub fn watch_uplink(&self) -> Result<Watch> {
        Watch::begin(&dom0(), UPLINK)
    }

    /// Watches a guest's vif from now on.
    pub fn watch_vif(&self, vif: &str) -> Result<Watch> {
        Watch::begin(&dom0(), vif)
    }

    /// What becomes of the first guest's attempt to reach something.
    pub fn probe(&mut self, how: How, to: IpAddr, port: u16) -> Result<Answer> {
        self.work.ask(Order::Probe { how, to: SocketAddr::new(to, port) })
    }

    /// Destroys the first guest, and starts it anew.
    pub fn restart(&mut self, meanwhile: impl FnOnce(&Netvm) -> Result<()>) -> Result<()> {
        self.work.destroy()?;
        meanwhile(&self.netvm)?;
        self.work = Domain::start(&self.boot, WORK)?;
        self.netvm.wait_for(&self.work)
    }
}

/// The namespace of dom0 itself.
pub fn dom0() -> Namespace {
    Namespace::named("dom0".to_owned())
}

/// A frame as a guest sends it to its vif, around an IP packet.
pub fn frame(guest: &Domain, packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet.first().is_some_and(|it| it >> 4 == 4) { 0x0800 } else { 0x86dd };
    let mut frame = packets::ethernet(ethertype, packet);
    let addresses = [packets::VIF, guest.spec.mac].concat();
    frame.iter_mut().zip(addresses).for_each(|(to, from)| *to = from);
    frame
}
