//! How the agent knows that it is in a Whonix gateway, what dom0 may say there, and what rules of
//! dom0 come to.
//! Never writes a rule file: rules come through QubesDB.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use firewall_core::tor::Access;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::traffic::probe::{Outcome, Probe};
use firewall_tests::whonix::Gateway;
use firewall_tests::whonix::kinds::Place;

use super::world::{PROHIBITED4, PROHIBITED6};

const SOCKS: &str = "/vm-config/firewall-tor-socks";
const CONTROL: &str = "/vm-config/firewall-tor-control";

/// A gateway whose QubesDB has no rules for anybody yet.
struct Qube {
    agent: Option<Agent>,
    db: FakeQubesDb,
    gateway: Gateway,
}

impl Qube {
    fn new(label: &str) -> Result<Self> {
        let gateway = Gateway::new(label)?;
        gateway.mark()?;
        let socket = gateway.rig.directory().join("root/var/run/qubes/qubesdb.sock");
        let db = FakeQubesDb::start(&socket)?;
        Ok(Self { agent: None, db, gateway })
    }

    /// Starts the agent, which finds out by itself where it is.
    fn start(&mut self, arguments: &[&str]) -> Result<()> {
        self.agent = None;
        let agent = Agent::start(&self.gateway.rig, arguments)?;
        for qube in &self.gateway.qubes {
            agent.wait_for_vif(qube.vif())?;
        }
        self.agent = Some(agent);
        Ok(())
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().ok_or_else(|| anyhow::anyhow!("no agent runs"))
    }

    fn clients(&self) -> Vec<IpAddr> {
        self.gateway.qubes[0].spec().addresses()
    }

    /// Writes rules of the first qube as dom0 does, for the count-th time, and waits until users' scripts
    /// would say that they hold.
    fn write(&self, count: u32, rules: &[(&str, &[u8])]) -> Result<()> {
        for client in self.clients() {
            self.db.reload(&client.to_string(), "drop", rules);
        }
        for client in self.clients() {
            let key = format!("/qubes-firewall-handled/{client}");
            self.db.wait_for(&key, &count.to_string(), PATIENCE)?;
        }
        Ok(())
    }

    /// Waits until this is what qubes may do.
    fn until(&self, socks: Access, control: Access) -> Result<()> {
        self.agent()?.wait_for(&format!("SOCKS {socks}, control {control}"), |status| {
            let services = status.agent.gateway.as_ref().map(|it| &it.services);
            let is_so = services.is_some_and(|it| it.socks == socks && it.control == control);
            is_so && status.clients.iter().all(|it| !it.settling)
        })
    }

    /// What comes of connections of the first qube to a host, to SOCKS and to the control port.
    fn check(&self, name: &str, comes: [bool; 3]) -> Result<()> {
        let from = self.gateway.qubes[0].namespace();
        for family in Family::BOTH {
            let prohibited = family.of([PROHIBITED4, PROHIBITED6]);
            let places = [(Place::Host, 443), (Place::Gateway, 9150), (Place::Gateway, 9051)];
            for ((place, port), comes) in places.into_iter().zip(comes) {
                let Some(to) = place.address(family) else { continue };
                let to = SocketAddr::new(to, port);
                let outcome = Probe::tcp(from, to).run(PATIENCE)?;
                let expected = if comes { Outcome::Accepted } else { prohibited };
                ensure!(outcome == expected, "{name}: {to}: {outcome}\n{}", self.agent()?.log());
            }
        }
        Ok(())
    }
}

#[test]
fn a_whonix_gateway_is_known_by_its_file_and_dom0_says_what_of_tor_is_allowed() -> Result<()> {
    use Access::{Allow, Deny};
    let mut qube = Qube::new("whonixkeys")?;
    qube.start(&[])?;
    let status = qube.agent()?.status()?;
    ensure!(status.agent.gateway.is_some_and(|it| it.enforced), "not known as a gateway");
    let web: &[(&str, &[u8])] = &[("0000", b"action=accept proto=tcp dstports=443-443")];
    qube.write(1, web)?;
    qube.until(Deny, Deny)?;
    qube.check("nothing said", [true, false, false])?;
    qube.db.write(SOCKS, b"allow");
    qube.until(Allow, Deny)?;
    qube.check("SOCKS", [true, true, false])?;
    qube.db.write(CONTROL, b"allow");
    qube.until(Allow, Allow)?;
    qube.check("both", [true, true, true])?;
    qube.db.write(SOCKS, b"Allow");
    qube.until(Deny, Allow)?;
    qube.check("what nobody understands", [true, false, true])?;
    qube.db.remove(CONTROL);
    qube.until(Deny, Deny)?;
    qube.check("removed", [true, false, false])?;
    qube.db.write(SOCKS, b"allow");
    qube.until(Allow, Deny)?;
    // A rule that says so comes first.
    qube.write(2, &[("0000", b"action=drop proto=tcp"), ("0001", b"action=accept")])?;
    qube.check("a rule drops it", [false, false, false])?;
    qube.write(3, &[("0000", b"action=accept")])?;
    qube.check("all is accepted", [true, true, true])?;
    qube.write(4, web)?;
    // A new agent finds the same; and whoever starts it can only take away.
    qube.start(&[])?;
    qube.until(Allow, Deny)?;
    qube.check("a new agent", [true, true, false])?;
    qube.start(&["--tor-socks", "deny"])?;
    qube.until(Deny, Deny)?;
    qube.check("denied by who starts it", [true, false, false])
}

#[test]
fn in_a_gateway_any_other_mode_says_that_rules_are_not_enforced() -> Result<()> {
    let mut qube = Qube::new("whonixother")?;
    qube.start(&["--mode", "qubes"])?;
    qube.write(1, &[])?;
    let status = qube.agent()?.status()?;
    ensure!(status.agent.gateway.is_some_and(|it| !it.enforced), "it does not say so");
    // It is true.
    qube.check("in mode qubes", [true, true, true])
}
