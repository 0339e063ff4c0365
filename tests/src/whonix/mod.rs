//! A Whonix gateway under Qubes OS in a rig: the netvm of it, with two qubes, Whonix' own rules, and
//! listeners in Tor's place.
//! Never has a rule of the firewall under test.
//!
//! ```text
//!  qube 12, 13          gateway (the rig's netvm)                    internet
//!  eth0 ──── vif12.0 │ tables ─▶ 9040, 5300, 9051, SOCKS │ eth0 ──── nothing may arrive
//!                    │ eth1: the address that Tor binds to
//! ```

pub mod flood;
pub mod kinds;
pub mod real;
pub mod sent;
pub mod tables;
pub mod tor;
pub mod watch;

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::packets::family::{Family, PerFamily as _};
use crate::rig::namespace::Namespace;
use crate::rig::{Client, ClientSpec, GATEWAY_V4, GATEWAY_V6, Rig, UPLINK};
use crate::traffic::frames::{self, Capture};
use crate::whonix::tables::{OF_INTERFACES, PARAMETERS, VIF_GROUP};
use crate::whonix::tor::StandIn;

/// The gateway's own IPv6 address as Qubes OS gives one; the rig's is not of that kind.
pub const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0x0a89, 1);
/// The interface with the address that Tor binds to (qubes-whonix, `network-proxy-setup`).
const FOR_TOR: &str = "eth1";
/// Where the rig's firewall looks for the file that says "this is a gateway".
pub const MARKER: &str = "usr/share/anon-gw-base-files/gateway";

/// A gateway. All of it is gone when this is dropped.
pub struct Gateway {
    /// Declared first, to end before the rig does. None where a real Tor is to run.
    tor: Option<StandIn>,
    /// Everything that left by the uplink.
    uplink: std::cell::RefCell<Capture>,
    /// Its qubes, 12 and 13.
    pub qubes: [Client; 2],
    /// Where it is.
    pub rig: Rig,
}

impl Gateway {
    /// A gateway with Whonix' rules in force.
    pub fn new(label: &str) -> Result<Self> {
        let gateway = Self::bare(label)?;
        gateway.load_whonix()?;
        Ok(gateway)
    }

    /// A gateway before Whonix' rules are loaded.
    pub fn bare(label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        let netvm = rig.netvm();
        // Qubes' is a dummy, which not every kernel has; the other end of this is never up.
        let link = ["link", "add", FOR_TOR, "type", "veth", "peer", "name", FOR_TOR];
        netvm.ip(&[&link[..], &["netns", rig.internet().name()]].concat())?;
        for (key, value) in PARAMETERS {
            netvm.sysctl(key, value)?;
        }
        for interface in ["all", "default", "lo", UPLINK, FOR_TOR] {
            for (family, key, value) in OF_INTERFACES {
                netvm.sysctl(&format!("net/{family}/conf/{interface}/{key}"), value)?;
            }
        }
        netvm.ip(&["address", "add", &format!("{GATEWAY_V4}/32"), "dev", FOR_TOR])?;
        netvm.ip(&["address", "add", &format!("{OWN_V6}/128"), "dev", FOR_TOR, "nodad"])?;
        netvm.ip(&["link", "set", FOR_TOR, "up"])?;
        let [first, second] = [12, 13].map(|number| rig.add_client(&ClientSpec::numbered(number)));
        let qubes = [first?, second?];
        for qube in &qubes {
            netvm.ip(&["link", "set", qube.vif(), "group", VIF_GROUP])?;
        }
        let vifs = qubes.each_ref().map(|it| (it.vif().to_owned(), it.spec().addresses()));
        netvm.nft(&tables::antispoof(&vifs))?;
        netvm.nft(&watch::table())?;
        let uplink = std::cell::RefCell::new(frames::capture(rig.internet(), "eth0")?);
        Ok(Self { tor: Some(StandIn::start(netvm)?), uplink, qubes, rig })
    }

    /// A gateway with Whonix' rules, where nobody listens in Tor's place.
    pub fn without_tor(label: &str) -> Result<Self> {
        Ok(Self { tor: None, ..Self::new(label)? })
    }

    /// What listens in Tor's place.
    pub fn tor(&self) -> Result<&StandIn> {
        self.tor.as_ref().context("nobody listens in Tor's place")
    }

    /// The namespace of the gateway itself.
    pub fn netvm(&self) -> &Namespace {
        self.rig.netvm()
    }

    /// Loads Whonix' rules, or loads them again.
    pub fn load_whonix(&self) -> Result<()> {
        self.netvm().nft(&tables::whonix())
    }

    /// Takes them away.
    pub fn unload_whonix(&self) -> Result<()> {
        self.netvm().nft(&tables::without_whonix())
    }

    /// Has the file there that says "this is a gateway", as the firewall under test finds it.
    pub fn mark(&self) -> Result<()> {
        let path = self.rig.directory().join("root").join(MARKER);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        Ok(fs::write(path, "")?)
    }

    /// The gateway as its qubes know it.
    pub fn address(family: Family) -> IpAddr {
        family.of([GATEWAY_V4.into(), OWN_V6.into()])
    }

    /// The gateway on a vif, where redirected packets stand.
    pub fn on_vif(family: Family) -> IpAddr {
        family.of([GATEWAY_V4.into(), GATEWAY_V6.into()])
    }

    /// A qube's address.
    pub fn of_qube(&self, qube: usize, family: Family) -> Result<IpAddr> {
        let qube = self.qubes.get(qube).context("there are two qubes")?;
        qube.spec().address(family).context("it has both")
    }

    /// Every frame with an address of a qube that left by the uplink since this was last asked.
    pub fn left_by_uplink(&self) -> Result<Vec<Vec<u8>>> {
        let mut uplink = self.uplink.borrow_mut();
        let frames = sent::until_marked(self.netvm(), UPLINK, &mut uplink)?;
        Ok(frames.into_iter().filter(|it| !sent::is_chatter(it)).collect())
    }

    /// What `nft` says in the gateway.
    pub fn nft(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("nft");
        command.args(arguments).stdout(Stdio::piped());
        let output = self.netvm().spawn(&mut command)?.wait_with_output()?;
        ensure!(output.status.success(), "`nft {}`: {}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}
