//! The firewalls that are measured side by side, each in a netvm of its own with one
//! client, the same rules and the same masquerade.
//! Never sends a packet.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::{Client, ClientSpec, INTERNET_V4, Rig, UPLINK};
use firewall_tests::stock::Netvm;
use firewall_tests::traffic::kernel::{Native, PORT, Sink};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::firewalls::Firewall;

/// Hardware address of the uplink.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const INTERNET_MAC: &str = "02:00:00:00:00:01";

/// A netvm with its firewall.
pub struct Side {
    /// What it is.
    pub firewall: Firewall,
    /// What its rules are about.
    proto: Proto,
    /// Its only client.
    pub client: Client,
    /// The client's address.
    pub address: IpAddr,
    /// The agent, where there is one.
    pub agent: Option<Agent>,
    /// What drops everything, where something does.
    drop: Option<Sink>,
    xdp_drop: Option<Native>,
    // Behind the agent, so that it goes last.
    /// All that it is in.
    pub rig: Rig,
}

impl Side {
    /// Sets it up, with rules about TCP or UDP. `label` tells it from others in this
    /// process.
    pub fn new(firewall: Firewall, proto: Proto, label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        let client = rig.add_client(&ClientSpec::numbered(12))?;
        let address = client.spec().v4.context("no IPv4 address")?.into();
        let inside = rig.netvm();
        rig.internet().ip(&["link", "set", "eth0", "address", INTERNET_MAC])?;
        let [a, b, c, d, e, f] = UPLINK_MAC;
        let own = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        inside.ip(&["link", "set", UPLINK, "address", &own])?;
        let internet = INTERNET_V4.to_string();
        let mut neighbour = vec!["neighbour", "replace", &internet, "lladdr", INTERNET_MAC];
        neighbour.extend(["dev", UPLINK, "nud", "permanent"]);
        inside.ip(&neighbour)?;
        // A rig answers without limits, as tests want it; netvms have the kernel's limits.
        inside.sysctl("net/ipv4/icmp_ratelimit", "1000")?;
        inside.sysctl("net/ipv4/icmp_ratemask", "6168")?;
        let mut side =
            Self { firewall, proto, client, address, agent: None, drop: None, xdp_drop: None, rig };
        side.set_up().with_context(|| format!("cannot set up `{firewall}`"))?;
        Ok(side)
    }

    /// Sets a firewall up, or says by `progress` that this kernel has it no more.
    pub fn if_there(
        firewall: Firewall,
        proto: Proto,
        label: &str,
        progress: &ProgressBar,
    ) -> Result<Option<Self>> {
        match Self::new(firewall, proto, label) {
            Ok(side) => Ok(Some(side)),
            Err(error) if matches!(firewall, Firewall::Iptables(_)) => {
                progress.println(format!("left out: {error:#}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn set_up(&mut self) -> Result<()> {
        let inside = self.rig.netvm();
        if self.firewall.translates() {
            inside.nft(MASQUERADE)?;
        }
        match self.firewall {
            Firewall::None | Firewall::Nat => Ok(()),
            Firewall::Accept => self.stock(&Ruleset { default_accept: true, rules: Vec::new() }),
            Firewall::Stock(rules) => self.stock(&ruleset(rules, self.proto)),
            Firewall::Hash(rules) => inside.nft(&expert("", rules, self.proto)),
            Firewall::Intervals(rules) => {
                inside.nft(&expert("flags interval; ", rules, self.proto))
            }
            Firewall::Iptables(rules) => self.iptables(rules),
            Firewall::OursAccept => {
                self.ours(&Ruleset { default_accept: true, rules: Vec::new() }, &[])
            }
            Firewall::Ours(rules) => self.ours(&ruleset(rules, self.proto), &[]),
            Firewall::OursRejecting(rules) => {
                self.ours(&ruleset(rules, self.proto), &["--reject-rate", "1000000000"])
            }
            Firewall::OursXdp(rules) => self.ours(&ruleset(rules, self.proto), &["--xdp"]),
            Firewall::Drop => {
                self.drop = Some(Sink::new(inside, self.client.vif())?);
                Ok(())
            }
            Firewall::XdpDrop => {
                self.xdp_drop = Some(Native::swallow(inside, self.client.vif())?);
                Ok(())
            }
        }
    }

    /// Attaches the firewall to one more client, which has rules as many and the same.
    pub fn deny(&mut self, client: &Client, address: IpAddr) -> Result<()> {
        let ruleset = ruleset(self.firewall.rules().unwrap_or_default(), self.proto);
        match (self.firewall, &self.agent) {
            (Firewall::Stock(_), _) => {
                let inside = self.rig.netvm();
                let chain = netvm(&[(client, address)]).rules(address, &ruleset);
                // It makes a client the only one that has rules.
                let keep = "flush chain ip qubes-firewall qubes-forward\n";
                let name = format!("qbs-{}", address.to_string().replace('.', "-"));
                inside.nft(&format!("add chain ip qubes-firewall {name}\n"))?;
                inside.nft(&chain.replace(keep, ""))
            }
            (Firewall::Hash(_) | Firewall::Intervals(_), _) => self
                .rig
                .netvm()
                .nft(&format!("add rule ip expert forward ip saddr {address} jump client")),
            (_, Some(agent)) => {
                agent.wait_for_vif(client.vif())?;
                agent.put(address, &ruleset)
            }
            _ => bail!("`{}` has no rules for another client", self.firewall),
        }
    }

    fn stock(&self, ruleset: &Ruleset) -> Result<()> {
        let netvm = netvm(&[(&self.client, self.address)]);
        self.rig.netvm().nft(&netvm.stock())?;
        self.put_stock(ruleset)
    }

    /// Replaces the client's rules as today's firewall does.
    pub fn put_stock(&self, ruleset: &Ruleset) -> Result<()> {
        let netvm = netvm(&[(&self.client, self.address)]);
        self.rig.netvm().nft(&netvm.rules(self.address, ruleset))
    }

    fn ours(&mut self, ruleset: &Ruleset, options: &[&str]) -> Result<()> {
        // In this mode the agent leaves translation to others, as on Qubes.
        let agent = Agent::start(&self.rig, &[&["--mode", "qubes"], options].concat())?;
        agent.wait_for_vif(self.client.vif())?;
        agent.put(self.address, ruleset)?;
        self.agent = Some(agent);
        Ok(())
    }

    fn iptables(&self, rules: usize) -> Result<()> {
        let mut text = String::from(
            "*filter\n:FORWARD DROP\n:client -\n\
             -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
             -A FORWARD ! -i vif+ -j ACCEPT\n",
        );
        text += &format!("-A FORWARD -s {} -j client\n", self.address);
        let proto = name(self.proto);
        for host in hosts(rules) {
            text += &format!("-A client -d {host} -p {proto} --dport {PORT} -j ACCEPT\n");
        }
        text += "-A client -j REJECT --reject-with icmp-admin-prohibited\nCOMMIT\n";
        let mut restore = Command::new("iptables-legacy-restore");
        let mut restore = self.rig.netvm().spawn(restore.stdin(Stdio::piped()))?;
        restore.stdin.take().context("no pipe")?.write_all(text.as_bytes())?;
        ensure!(restore.wait()?.success(), "iptables refuses");
        Ok(())
    }
}

fn netvm(clients: &[(&Client, IpAddr)]) -> Netvm {
    let vif = |(client, address): &(&Client, IpAddr)| (client.vif().to_owned(), vec![*address]);
    Netvm { vifs: clients.iter().map(vif).collect(), absent: Vec::new(), resolvers: Vec::new() }
}

const MASQUERADE: &str = "table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname != \"vif*\" masquerade
    }
}";

/// What somebody would write who knows nftables well.
fn expert(flags: &str, rules: usize, proto: Proto) -> String {
    let proto = name(proto);
    let elements: Vec<String> =
        hosts(rules).iter().map(|host| format!("{host} . {PORT} : accept")).collect();
    format!(
        "table ip expert {{
    map rules {{
        type ipv4_addr . inet_service : verdict
        {flags}elements = {{ {} }}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname != \"vif*\" accept
        ip saddr 10.137.0.12 jump client
    }}
    chain client {{
        meta l4proto {proto} ip daddr . {proto} dport vmap @rules
        reject with icmp type admin-prohibited
    }}
}}",
        elements.join(", ")
    )
}

fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
        Proto::Icmp => "icmp",
    }
}

/// One rule for each host.
pub fn ruleset(rules: usize, proto: Proto) -> Ruleset {
    let rules = hosts(rules).iter().map(|host| rule(*host, proto)).collect();
    Ruleset { default_accept: false, rules }
}

/// A rule that accepts what is for a host.
pub fn rule(host: IpAddr, proto: Proto) -> Rule {
    Rule {
        network: Some((host, 32)),
        proto: Some(proto),
        ports: Some((PORT, PORT)),
        ..Rule::all(true)
    }
}

/// A host that no rule names.
pub const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1));

/// The host of the last rule.
pub fn last_host(firewall: Firewall) -> Result<IpAddr> {
    let hosts = hosts(firewall.rules().unwrap_or(WITHOUT_RULES));
    hosts.last().copied().context("a firewall without rules")
}

/// Hosts of a firewall that has no rules.
pub const WITHOUT_RULES: usize = 1_000;

/// As many hosts, the same ones whenever this is called.
pub fn hosts(count: usize) -> Vec<IpAddr> {
    let mut random = StdRng::seed_from_u64(7);
    let mut known = BTreeSet::new();
    let mut hosts = Vec::new();
    while hosts.len() < count {
        // Away from the networks of the rig.
        let host = Ipv4Addr::from_bits(random.random_range(0x2000_0000..0x6000_0000));
        if known.insert(host) {
            hosts.push(host.into());
        }
    }
    hosts
}
