//! A rig with an internet that answers, and one client.
//! Never has rules of its own.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{Client, ClientSpec, Rig};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

pub const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7));
pub const PROHIBITED4: Outcome = Outcome::Rejected { icmp_type: 3, icmp_code: 13 };
pub const PROHIBITED6: Outcome = Outcome::Rejected { icmp_type: 1, icmp_code: 1 };

/// A rig with an internet that answers on two ports, and one client.
pub struct World {
    pub rig: Rig,
    pub client: Client,
    pub v4: IpAddr,
    pub v6: IpAddr,
    _servers: Vec<EchoServer>,
}

impl World {
    pub fn new(label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        let mut servers = Vec::new();
        for server in [SERVER4, SERVER6] {
            rig.add_internet_address(server)?;
            for port in [443, 80] {
                let address = SocketAddr::new(server, port);
                servers.push(EchoServer::start(rig.internet(), address)?);
            }
        }
        let spec = ClientSpec::numbered(12);
        let client = rig.add_client(&spec)?;
        let (v4, v6) = (
            spec.v4.context("no IPv4 address")?.into(),
            spec.v6.context("no IPv6 address")?.into(),
        );
        Ok(Self { rig, client, v4, v6, _servers: servers })
    }

    pub fn start(&self) -> Result<Agent> {
        self.start_with(&[])
    }

    pub fn start_with(&self, arguments: &[&str]) -> Result<Agent> {
        let agent = Agent::start(&self.rig, arguments)?;
        agent.wait_for_vif(self.client.vif())?;
        Ok(agent)
    }

    /// Pins of an agent, of all versions, whose names begin like this.
    pub fn pins(&self, beginning: &str) -> Result<Vec<PathBuf>> {
        let mut pins = Vec::new();
        for version in fs::read_dir(self.rig.bpffs().join("firewall"))? {
            pins.extend(fs::read_dir(version?.path())?.flatten().map(|entry| entry.path()));
        }
        let begins_so = |name: &OsStr| name.to_string_lossy().starts_with(beginning);
        pins.retain(|pin| pin.file_name().is_some_and(begins_so));
        Ok(pins)
    }

    pub fn put(&self, agent: &Agent, rules: &[Rule]) -> Result<()> {
        let rules = Ruleset { default_accept: false, rules: rules.to_vec() };
        agent.put(self.v4, &rules)?;
        agent.put(self.v6, &rules)
    }

    /// TCP to port 443, TCP to port 80, UDP to port 80, ping; IPv4, then IPv6.
    #[track_caller]
    pub fn check(&self, name: &str, v4: [Outcome; 4], v6: [Outcome; 4]) {
        check(self.client.namespace(), name, v4, v6);
    }
}

/// Whether the kernel has tcx (since Linux 6.6); if not, an agent takes clsact.
pub fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

/// The ways to attach that the kernel has.
pub fn ways() -> &'static [&'static str] {
    if has_tcx() { &["tcx", "clsact"] } else { &["clsact"] }
}

/// Does something while a client sends what it may not send, with a pause after each packet;
/// returns how many there were as well.
pub fn while_sending<T>(
    client: &Client,
    denied: SocketAddr,
    pause: Duration,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, u64)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            client.namespace().run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    // The answer to the one before can make this call fail.
                    sent += u64::from(socket.send_to(b"no", denied).is_ok());
                    std::thread::sleep(pause);
                }
                Ok(sent)
            })
        });
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let sent = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        Ok((outcome?, sent))
    })
}

#[track_caller]
pub fn check(from: &Namespace, name: &str, v4: [Outcome; 4], v6: [Outcome; 4]) {
    for (server, expected) in [(SERVER4, v4), (SERVER6, v6)] {
        let probes = [
            Probe::tcp(from, SocketAddr::new(server, 443)),
            Probe::tcp(from, SocketAddr::new(server, 80)),
            Probe::udp(from, SocketAddr::new(server, 80)),
            Probe::ping(from, server),
        ];
        let outcomes: Vec<Outcome> =
            probes.iter().map(|probe| probe.run(SILENCE).expect("a probe")).collect();
        assert_eq!(outcomes, expected, "{name}: {server}");
    }
}

pub const ACCEPTED: [Outcome; 4] = [Outcome::Accepted; 4];
pub const ALL_PROHIBITED4: [Outcome; 4] = [PROHIBITED4; 4];
pub const ALL_PROHIBITED6: [Outcome; 4] = [PROHIBITED6; 4];
pub const SILENT: [Outcome; 4] = [Outcome::Silent; 4];

/// What `world.put` with [`tcp_443`] comes to.
pub const WEB: ([Outcome; 4], [Outcome; 4]) = (
    [Outcome::Accepted, PROHIBITED4, PROHIBITED4, PROHIBITED4],
    [Outcome::Accepted, PROHIBITED6, PROHIBITED6, PROHIBITED6],
);

pub fn tcp_443() -> Rule {
    Rule { proto: Some(Proto::Tcp), ports: Some((443, 443)), ..Rule::all(true) }
}

pub fn ping() -> Rule {
    Rule { proto: Some(Proto::Icmp), ..Rule::all(true) }
}
