//! A netvm, its clients and an internet, as network namespaces: the layout that Qubes OS
//! makes out of qubes.
//! Never filters or translates an address: that is for the firewall under test.
//!
//! ```text
//!  client <n>                     netvm                              internet
//!  eth0 ────────────── vif<n>.0   │   eth0 ──────────────────────── eth0, lo
//!  its /32 and /128    gateway    │   192.0.2.2, 2001:db8:ffff::2    …1, and more on lo
//! ```
//!
//! The internet has no route to clients: without masquerade nothing comes back.

pub mod agent;
mod client;
pub mod connections;
pub mod dns;
mod leftovers;
pub mod manager;
pub mod namespace;
pub mod qrexec;
pub mod qubesdb;
pub mod server;
pub(crate) mod shared;

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::geteuid;

use crate::packets::family::{Family, PerFamily as _};
pub use crate::rig::client::{Client, ClientSpec};
use crate::rig::leftovers::Stem;
use crate::rig::namespace::{Namespace, ip};

/// Name of the interface in the netvm that leads to the internet.
pub const UPLINK: &str = "eth0";
/// Name of a client's interface, in its own namespace.
pub const CLIENT_INTERFACE: &str = "eth0";
/// Address of the netvm on its uplink.
pub const UPLINK_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Address of the netvm on its uplink.
pub const UPLINK_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2);
/// All hosts of the uplink's network.
pub const UPLINK_BROADCAST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 255);
/// All routers of the uplink's network.
pub const UPLINK_ANYCAST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0);
/// Address of the internet on the uplink.
pub const INTERNET_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Address of the internet on the uplink.
pub const INTERNET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// Address of the netvm on every vif.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 1);
/// Address of the netvm on every vif.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0, 1);
/// Hardware address of every vif.
pub const VIF_MAC: &str = "fe:ff:ff:ff:ff:ff";

/// Whether the kernel has IPv6 (it has not with `ipv6.disable=1`). Without it, a rig has IPv4 only.
pub fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Everything is removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub struct Rig {
    stem: Stem,
    netvm: Namespace,
    internet: Namespace,
    files: PathBuf,
    bpffs: PathBuf,
}

impl Rig {
    /// Makes a netvm and an internet, and removes what killed runs have left. The label
    /// tells the rigs of one process apart: letters, digits and underscores.
    pub fn new(label: &str) -> Result<Self> {
        ensure!(geteuid().is_root(), "network namespaces need root");
        leftovers::remove_dead()?;
        let stem = Stem::claim(label)?;
        let rig = Self {
            netvm: Namespace::named(stem.namespace("netvm")),
            internet: Namespace::named(stem.namespace("internet")),
            files: stem.directory().join("files"),
            bpffs: stem.bpffs(),
            stem,
        };
        rig.make_directories()?;
        rig.make_uplink()?;
        Ok(rig)
    }

    /// The namespace of the firewall under test.
    pub fn netvm(&self) -> &Namespace {
        &self.netvm
    }

    /// The namespace of servers.
    pub fn internet(&self) -> &Namespace {
        &self.internet
    }

    /// A directory for rule files, sockets and logs.
    pub fn directory(&self) -> &Path {
        &self.files
    }

    /// A bpf file system that nobody else uses.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Leaves everything in place at the end, and for all later runs.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.stem.keep_mark(), "").context("cannot mark the rig as kept")
    }

    /// Commands that enter the namespaces, and that remove all of it.
    pub fn how_to_enter(&self) -> String {
        let names = self.stem.namespaces();
        let mut text = String::from("To enter:\n");
        let mut line = |line: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        };
        names.iter().for_each(|name| line(format!("  ip netns exec {name} bash")));
        line("To remove:".to_owned());
        names.iter().for_each(|name| line(format!("  ip netns delete {name}")));
        line(format!("  umount {}", self.bpffs.display()));
        line(format!("  rm -r {}", self.stem.directory().display()));
        text
    }

    /// Gives the internet one more address, for a server.
    pub fn add_internet_address(&self, address: IpAddr) -> Result<()> {
        add_address(&self.internet, "lo", address, host_bits(address))
    }

    /// Has nobody answer for addresses of nobody (203.0.113.0/24, 2001:db8:2::/48), where the
    /// internet would say that there is no route.
    pub fn silence_nobody(&self) -> Result<()> {
        self.internet.ip(&["route", "add", "blackhole", "203.0.113.0/24"])?;
        self.internet.ip(&["-6", "route", "add", "blackhole", "2001:db8:2::/48"])?;
        Ok(())
    }

    /// Attaches a client, as Qubes does it.
    pub fn add_client(&self, spec: &ClientSpec) -> Result<Client> {
        let client = self.add_link(spec)?;
        self.add_addresses(&client)?;
        self.set_up(&client)?;
        self.add_routes(&client)?;
        Ok(client)
    }

    /// Only the namespace and the link, which is down and without addresses.
    pub fn add_link(&self, spec: &ClientSpec) -> Result<Client> {
        let name = self.stem.namespace(&format!("client{}", spec.number));
        let client = Client::new(*spec, Namespace::named(name));
        make_namespace(client.namespace())?;
        let mut arguments = vec!["link", "add", client.vif(), "address", VIF_MAC, "type", "veth"];
        let mac = client.mac();
        arguments.extend(["peer", "name", CLIENT_INTERFACE, "address", &mac]);
        arguments.extend(["netns", client.namespace().name()]);
        self.netvm.ip(&arguments)?;
        self.netvm.sysctl(&format!("net/ipv4/conf/{}/proxy_arp", client.vif()), "1")?;
        Ok(client)
    }

    /// Only the addresses of both ends. The link may be down.
    pub fn add_addresses(&self, client: &Client) -> Result<()> {
        for address in client.spec().addresses() {
            let gateway = gateway(address);
            add_address(&self.netvm, client.vif(), gateway, host_bits(gateway))?;
            add_address(client.namespace(), CLIENT_INTERFACE, address, host_bits(address))?;
        }
        Ok(())
    }

    /// Only sets both ends up.
    pub fn set_up(&self, client: &Client) -> Result<()> {
        self.netvm.ip(&["link", "set", client.vif(), "up"])?;
        client.namespace().ip(&["link", "set", CLIENT_INTERFACE, "up"])?;
        Ok(())
    }

    /// Only the permanent neighbours and the routes of both ends. The link must be up.
    pub fn add_routes(&self, client: &Client) -> Result<()> {
        for address in client.spec().addresses() {
            let gateway = gateway(address).to_string();
            let address = address.to_string();
            let inside = client.namespace();
            add_neighbour(&self.netvm, client.vif(), &address, &client.mac())?;
            add_neighbour(inside, CLIENT_INTERFACE, &gateway, VIF_MAC)?;
            self.netvm.ip(&["route", "add", &address, "dev", client.vif()])?;
            inside.ip(&["route", "add", &gateway, "dev", CLIENT_INTERFACE])?;
            add_default_route(inside, CLIENT_INTERFACE, &gateway)?;
        }
        Ok(())
    }

    /// Makes a client a netvm that masquerades, with one qube behind it, and returns the qube's
    /// namespace.
    pub fn add_behind(&self, client: &Client) -> Result<Namespace> {
        let outer = client.namespace();
        let inner =
            Namespace::named(self.stem.namespace(&format!("behind{}", client.spec().number)));
        make_namespace(&inner)?;
        let link = ["link", "add", "vif1.0", "type", "veth", "peer", "name", CLIENT_INTERFACE];
        outer.ip(&[&link[..], &["netns", inner.name()]].concat())?;
        outer.ip(&["link", "set", "vif1.0", "up"])?;
        inner.ip(&["link", "set", CLIENT_INTERFACE, "up"])?;
        for (own, gateway, bits) in
            [("10.138.0.2", "10.138.0.1", "/24"), ("fd09:24ef:417a::2", "fd09:24ef:417a::1", "/64")]
        {
            let set = |address: &str| format!("{address}{bits}");
            let nodad: &[&str] = if own.contains(':') { &["nodad"] } else { &[] };
            let at = |address: &str, link: &str, on: &Namespace| {
                let words = ["address", "add", &set(address), "dev", link];
                on.ip(&[&words[..], nodad].concat())
            };
            at(gateway, "vif1.0", outer)?;
            at(own, CLIENT_INTERFACE, &inner)?;
            add_default_route(&inner, CLIENT_INTERFACE, gateway)?;
        }
        outer.sysctl("net/ipv4/ip_forward", "1")?;
        outer.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        outer.nft(&format!(
            "table inet nested {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    oifname {CLIENT_INTERFACE} masquerade
                }}
            }}"
        ))?;
        Ok(inner)
    }

    /// Detaches a client: its link and its namespace are gone.
    pub fn remove_client(&self, client: &Client) -> Result<()> {
        self.netvm.ip(&["link", "delete", client.vif()])?;
        ip(&["netns", "delete", client.namespace().name()])?;
        Ok(())
    }

    fn make_directories(&self) -> Result<()> {
        // Not `recursive`: a directory that is there already is somebody else's.
        for path in [&self.stem.directory(), &self.files, &self.bpffs] {
            DirBuilder::new()
                .create(path)
                .with_context(|| format!("cannot make the directory {}", path.display()))?;
        }
        mount(Some("bpf"), &self.bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpf file system on {}", self.bpffs.display()))
    }

    fn make_uplink(&self) -> Result<()> {
        make_namespace(&self.internet)?;
        make_namespace(&self.netvm)?;
        self.netvm.sysctl("net/ipv4/ip_forward", "1")?;
        let mut arguments = vec!["link", "add", UPLINK, "type", "veth"];
        arguments.extend(["peer", "name", "eth0", "netns", self.internet.name()]);
        self.netvm.ip(&arguments)?;
        add_address(&self.internet, "eth0", INTERNET_V4.into(), 24)?;
        add_address(&self.netvm, UPLINK, UPLINK_V4.into(), 24)?;
        if has_v6() {
            self.netvm.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            add_address(&self.internet, "eth0", INTERNET_V6.into(), 64)?;
            add_address(&self.netvm, UPLINK, UPLINK_V6.into(), 64)?;
        }
        self.internet.ip(&["link", "set", "eth0", "up"])?;
        self.netvm.ip(&["link", "set", UPLINK, "up"])?;
        add_default_route(&self.netvm, UPLINK, &INTERNET_V4.to_string())?;
        if has_v6() {
            add_default_route(&self.netvm, UPLINK, &INTERNET_V6.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.stem.keep_mark().exists() {
            return;
        }
        if let Err(error) = self.stem.remove() {
            eprintln!("the rig could not be removed: {error:#}");
        }
        self.stem.release();
    }
}

fn make_namespace(namespace: &Namespace) -> Result<()> {
    ip(&["netns", "add", namespace.name()])?;
    // New interfaces copy `default`. No address shall be tentative, and nothing shall be
    // on the wire that no test asked for.
    for interface in ["all", "default"].into_iter().filter(|_| has_v6()) {
        namespace.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        namespace.sysctl(&format!("net/ipv6/conf/{interface}/router_solicitations"), "0")?;
    }
    // The kernel answers with a few ICMP errors a second only; a test that expects the
    // tenth would see silence.
    namespace.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    namespace.sysctl("net/ipv4/icmp_ratemask", "0")?;
    if has_v6() {
        namespace.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        // An empty list of types; without the line's end nothing would be written at all.
        namespace.sysctl("net/ipv6/icmp/ratemask", "\n")?;
    }
    namespace.ip(&["link", "set", "lo", "up"])?;
    Ok(())
}

fn add_address(to: &Namespace, interface: &str, address: IpAddr, length: u8) -> Result<()> {
    let with_length = format!("{address}/{length}");
    let mut arguments = vec!["address", "add", &with_length, "dev", interface];
    if address.is_ipv6() {
        arguments.push("nodad");
    }
    to.ip(&arguments).map(drop)
}

fn add_neighbour(to: &Namespace, interface: &str, address: &str, mac: &str) -> Result<()> {
    let arguments = ["neighbour", "add", address, "lladdr", mac, "dev", interface];
    let arguments: Vec<&str> = arguments.into_iter().chain(["nud", "permanent"]).collect();
    to.ip(&arguments).map(drop)
}

fn add_default_route(to: &Namespace, interface: &str, gateway: &str) -> Result<()> {
    to.ip(&["route", "add", "default", "via", gateway, "dev", interface]).map(drop)
}

fn gateway(address: IpAddr) -> IpAddr {
    Family::from(address).of([GATEWAY_V4.into(), GATEWAY_V6.into()])
}

fn host_bits(address: IpAddr) -> u8 {
    Family::from(address).bits()
}
