//! What has come to pass when QubesDB says that rules with names were handled.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::named::{DNS, ONE, servers};
use super::world::{PROHIBITED4, World};

/// A netvm with QubesDB and a DNS server, and its agent.
struct Qube {
    agent: Agent,
    dns: DnsServer,
    db: FakeQubesDb,
    world: World,
    written: u64,
}

impl Qube {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        world.rig.add_internet_address(DNS.parse()?)?;
        let dns = DnsServer::start(world.rig.internet(), DNS.parse()?)?;
        servers(&world.rig, &[DNS])?;
        let socket = world.rig.directory().join("root/var/run/qubes/qubesdb.sock");
        let db = FakeQubesDb::start(&socket)?;
        let agent = Agent::start(&world.rig, &[])?;
        agent.wait_for_vif(world.client.vif())?;
        Ok(Self { agent, dns, db, world, written: 0 })
    }

    fn client(&self) -> IpAddr {
        self.world.v4
    }

    /// Writes a rule for a name, as dom0 does, and waits as users' scripts do.
    fn write(&mut self, name: &str) -> Result<()> {
        let rule = format!("action=accept dsthost={name} proto=tcp");
        self.db.reload(&self.client().to_string(), "drop", &[("0000", rule.as_bytes())]);
        self.written += 1;
        let key = format!("/qubes-firewall-handled/{}", self.client());
        self.db.wait_for(&key, &self.written.to_string(), PATIENCE)
    }

    /// What becomes of a connection, without waiting for anything.
    #[track_caller]
    fn check(&self, what: &str, expected: Outcome) {
        let to = SocketAddr::new(ONE.parse().expect("an address"), 443);
        let probe = Probe::tcp(self.world.client.namespace(), to).run(SILENCE).expect("a probe");
        assert_eq!(probe, expected, "{what}\n{}", self.agent.log());
    }
}

#[test]
fn a_connection_passes_as_soon_as_rules_with_its_name_were_handled() -> Result<()> {
    let mut qube = Qube::new("handled_names")?;
    for round in 0..20 {
        // A name that nobody has asked about.
        let name = format!("n{round}.example");
        qube.dns.say(&name, Reply::addresses(&name, 3600, &[ONE]));
        qube.write(&name)?;
        qube.check(&name, Outcome::Accepted);
        qube.write("gone.example")?;
        qube.check("no such name", PROHIBITED4);
    }
    Ok(())
}

#[test]
fn rules_that_are_written_again_ask_again_for_a_name_that_failed() -> Result<()> {
    let mut qube = Qube::new("handled_again")?;
    for name in ["a.example", "b.example"] {
        qube.dns.say(name, Reply::no_such_name());
        qube.write(name)?;
        qube.check("no such name", PROHIBITED4);
        qube.dns.say(name, Reply::addresses(name, 3600, &[ONE]));
        qube.write(name)?;
        qube.check("it is there by now", Outcome::Accepted);
    }
    Ok(())
}

#[test]
fn a_dns_server_that_is_silent_does_not_keep_rules_from_being_handled() -> Result<()> {
    let mut qube = Qube::new("handled_silent")?;
    qube.dns.say("a.example", Reply::silence());
    qube.write("a.example")?;
    qube.check("silent", PROHIBITED4);
    let told = "rules count as handled before DNS says where these lead";
    qube.agent.wait_for_log(told)
}
