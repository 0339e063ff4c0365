//! A world with a DNS server in its internet, and an agent that asks it.
//! Never has names or rules of its own.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use firewall_core::told::status::{NameStatus, State};
use firewall_tests::rig::agent::{Agent, write_rules};
use firewall_tests::rig::dns::DnsServer;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{Rig, UPLINK, UPLINK_V4};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};
use nix::sys::signal::Signal;

use super::world::World;

/// The DNS server.
pub const DNS: &str = "198.51.100.53";
/// A server of the world's, IPv4.
pub const ONE: &str = "198.51.100.7";
/// Another one.
pub const TWO: &str = "198.51.100.8";

pub struct Named {
    pub agent: Agent,
    pub dns: DnsServer,
    _two: EchoServer,
    pub world: World,
}

impl Named {
    pub fn new(label: &str) -> Result<Self> {
        Self::with(label, &[])
    }

    /// With more options for the agent.
    pub fn with(label: &str, options: &[&str]) -> Result<Self> {
        let world = World::new(label)?;
        let internet = world.rig.internet();
        world.rig.add_internet_address(DNS.parse()?)?;
        let dns = DnsServer::start(internet, DNS.parse()?)?;
        let two = serve(&world.rig, TWO)?;
        servers(&world.rig, &[DNS])?;
        let agent = Agent::start(&world.rig, options)?;
        agent.wait_for_vif(world.client.vif())?;
        Ok(Self { agent, dns, _two: two, world })
    }

    /// Lets the netvm use these DNS servers.
    pub fn servers(&self, addresses: &[&str]) -> Result<()> {
        servers(&self.world.rig, addresses)
    }

    /// One more server on port 443 in the internet.
    pub fn serve(&self, address: &str) -> Result<EchoServer> {
        serve(&self.world.rig, address)
    }

    /// One more DNS server in the internet.
    pub fn other_dns(&self, address: &str) -> Result<DnsServer> {
        let address = address.parse()?;
        self.world.rig.add_internet_address(address)?;
        DnsServer::start(self.world.rig.internet(), address)
    }

    /// Ends the agent and starts another.
    pub fn restart(&mut self, options: &[&str]) -> Result<()> {
        self.stop()?;
        self.start(options)
    }

    /// Ends the agent, as the service manager does.
    pub fn stop(&mut self) -> Result<()> {
        self.agent.signal(Signal::SIGTERM)?;
        ensure!(self.agent.wait()?, "the agent ended badly: {}", self.agent.log());
        Ok(())
    }

    /// Starts another agent.
    pub fn start(&mut self, options: &[&str]) -> Result<()> {
        self.agent = Agent::start(&self.world.rig, options)?;
        self.agent.wait_for_vif(self.world.client.vif())
    }

    /// Puts rules of the client's IPv4 address in force.
    pub fn rules(&self, rules: &[&str]) -> Result<()> {
        self.rules_of(self.world.v4, rules)
    }

    pub fn rules_of(&self, client: IpAddr, rules: &[&str]) -> Result<()> {
        let numbered = rules.iter().enumerate();
        let lines = numbered.map(|(number, rule)| format!("{number:04} = {rule}\n"));
        let text = format!("policy = drop\n{}commit\n", lines.collect::<String>());
        write_rules(self.world.rig.directory(), client, &text)?;
        self.agent.wait_for(&format!("{rules:?} in force"), |status| {
            let mut clients = status.clients.iter();
            let client = clients.find(|it| it.address == client && it.state == State::Live);
            client
                .is_some_and(|it| it.rules.iter().map(|it| &it.text[..]).eq(rules.iter().copied()))
        })?;
        self.agent.wait_for_settled()
    }

    /// Waits until a name leads to exactly these addresses.
    pub fn leads(&self, name: &str, addresses: &[&str]) -> Result<()> {
        self.until(name, &format!("leads to {addresses:?}"), |name| {
            let known = name.addresses.iter().map(|it| it.address.to_string());
            name.answered_seconds_ago.is_some() && known.eq(addresses.iter().copied())
        })
    }

    /// Waits until something is so about a name.
    pub fn until(&self, name: &str, what: &str, is_so: impl Fn(&NameStatus) -> bool) -> Result<()> {
        self.agent.wait_for(&format!("{name}: {what}"), |status| {
            status.names.iter().any(|it| it.name == name && is_so(it))
        })?;
        self.agent.wait_for_settled()
    }

    /// TCP to port 443 of each.
    #[track_caller]
    pub fn check(&self, what: &str, expected: &[(&str, Outcome)]) {
        for (to, expected) in expected {
            let probe = self.probe(to).run(SILENCE).expect("a probe");
            assert_eq!(probe, *expected, "{what}: {to}\n{}", self.agent.log());
        }
    }

    pub fn probe(&self, to: &str) -> Probe {
        let to = to.parse().expect("an address");
        Probe::tcp(self.world.client.namespace(), SocketAddr::new(to, 443))
    }
}

/// What is told of a DNS server that is silent.
pub fn does_not_answer() -> String {
    let hint = "(`run --resolv-conf FILE` names other servers)";
    format!("does not answer, asked from {UPLINK_V4} ({UPLINK}) {hint}")
}

/// A server on port 443 in the internet.
pub fn serve(rig: &Rig, address: &str) -> Result<EchoServer> {
    let address = address.parse()?;
    rig.add_internet_address(address)?;
    EchoServer::start(rig.internet(), SocketAddr::new(address, 443))
}

/// Lets a netvm use these DNS servers.
pub fn servers(rig: &Rig, addresses: &[&str]) -> Result<()> {
    let lines = addresses.iter().map(|address| format!("nameserver {address}\n"));
    let aside = rig.directory().join("resolv.conf.new");
    fs::write(&aside, lines.collect::<String>())?;
    Ok(fs::rename(aside, rig.directory().join("resolv.conf"))?)
}
