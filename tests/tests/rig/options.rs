//! Options that dom0 sets in QubesDB: in force at once, under traffic, told with their source; and what
//! is wrong with one changes nothing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use firewall_core::told::options::OptionFrom;
use firewall_core::told::status::Status;
use firewall_core::told::totals::problems;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::traffic::probe::OpenFlow;

use super::cycles::DENIED;
use super::world::*;

const ANEW: &str = "starts anew: dom0 sets other options";

fn key(name: &str) -> String {
    format!("/vm-config/firewall-{name}")
}

/// The value of an option that dom0 set.
fn of_dom0<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    let mut options = status.agent.options.iter();
    let option = options.find(|it| it.name == name && it.from == OptionFrom::Qubesdb)?;
    Some(&option.value)
}

struct Netvm {
    world: World,
    db: FakeQubesDb,
}

impl Netvm {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let db =
            FakeQubesDb::start(&world.rig.directory().join("root/var/run/qubes/qubesdb.sock"))?;
        let web: &[(&str, &[u8])] = &[("0000", b"action=accept proto=tcp dstports=443-443")];
        for client in [world.v4, world.v6] {
            db.reload(&client.to_string(), "drop", web);
        }
        Ok(Self { world, db })
    }

    fn start(&self) -> Result<Agent> {
        let agent = Agent::start(&self.world.rig, &[])?;
        agent.wait_for_vif(self.world.client.vif())?;
        agent.wait_for_settled()?;
        self.world.check("at first", WEB.0, WEB.1);
        Ok(agent)
    }
}

#[test]
fn an_option_of_dom0_counts_at_once_and_breaks_nothing() -> Result<()> {
    let netvm = Netvm::new("options")?;
    netvm.db.write(&key("reject-rate"), b"500");
    let agent = netvm.start()?;
    // It was known before anything started.
    ensure!(of_dom0(&agent.status()?, "reject-rate") == Some("500"), "{:?}", agent.status()?.agent);
    ensure!(!agent.log().contains(ANEW), "{}", agent.log());
    let client = netvm.world.client.namespace();
    let mut flow = OpenFlow::open(client, SocketAddr::new(SERVER4, 443), PATIENCE)?;
    let denied = EchoServer::start(netvm.world.rig.internet(), DENIED)?;
    let values: [(&str, &[u8], &str); 4] = [
        ("reject-rate", b"900", "900"),
        ("guard-neighbours", b"1", "on"),
        ("private-name", b"home.example", "home.example"),
        ("local-rate", b"30", "30"),
    ];
    let change = || {
        for (name, value, told) in values {
            netvm.db.write(&key(name), value);
            agent.wait_for(name, |status| of_dom0(status, name) == Some(told))?;
            agent.wait_for_vif(netvm.world.client.vif())?;
            agent.wait_for_settled()?;
            ensure!(flow.exchange(PATIENCE)?, "{name}: an allowed flow broke:\n{}", agent.log());
        }
        Ok(())
    };
    let pause = Duration::from_millis(1);
    let ((), sent) = while_sending(&netvm.world.client, DENIED, pause, change)?;
    let came = denied.received().udp_packets;
    ensure!(came == 0, "{came} of {sent} denied packets left");
    ensure!(sent > 0, "nothing was sent");
    ensure!(agent.log().matches(ANEW).count() == values.len(), "{}", agent.log());
    netvm.world.check("with options", WEB.0, WEB.1);
    // All of them go as they came.
    netvm.db.remove("/vm-config/");
    let is_alone =
        |status: &Status| status.agent.options.iter().all(|it| it.from != OptionFrom::Qubesdb);
    agent.wait_for("no option of dom0", is_alone)?;
    agent.wait_for_vif(netvm.world.client.vif())?;
    agent.wait_for_settled()?;
    ensure!(agent.terminate()?, "SIGTERM is not a clean end after all that");
    netvm.world.check("stopped", WEB.0, WEB.1);
    Ok(())
}

#[test]
fn an_option_of_dom0_that_is_wrong_changes_nothing_and_is_a_problem() -> Result<()> {
    let netvm = Netvm::new("wrongoptions")?;
    netvm.db.write(&key("local-rate"), b"often");
    let agent = netvm.start()?;
    let problem = |status: &Status, text: &str| {
        status.agent.option_problems.iter().any(|it| it.contains(text))
    };
    let status = agent.status()?;
    ensure!(
        problem(&status, "/vm-config/firewall-local-rate: invalid value 'often'"),
        "{status:?}"
    );
    ensure!(problems(&status) == 1, "{status:?}");
    netvm.db.write(&key("local-rate"), b"30");
    agent.wait_for("a rate", |status| {
        of_dom0(status, "local-rate") == Some("30") && status.agent.option_problems.is_empty()
    })?;
    // What was good stays.
    netvm.db.write(&key("local-rate"), b"0");
    agent.wait_for("a bad rate", |status| {
        of_dom0(status, "local-rate") == Some("30") && problem(status, "what it said before stays")
    })?;
    netvm.db.write(&key("nonsense"), b"1");
    agent.wait_for("a bad name", |status| problem(status, "firewall-nonsense"))?;
    ensure!(agent.log().matches(ANEW).count() == 1, "{}", agent.log());
    // What the parser cannot know: nothing is pinned there.
    netvm.db.write(&key("pins"), b"/proc/nobody");
    agent.wait_for("pins", |status| {
        of_dom0(status, "local-rate") == Some("30")
            && problem(status, "firewall-pins: the agent does not start")
    })?;
    agent.wait_for_vif(netvm.world.client.vif())?;
    agent.wait_for_settled()?;
    netvm.world.check("with problems", WEB.0, WEB.1);
    // A change of something else does not try again for ever, nor forget.
    netvm.db.remove(&key("pins"));
    netvm.db.remove(&key("nonsense"));
    netvm.db.write(&key("local-rate"), b"40");
    agent.wait_for("all is well", |status| {
        of_dom0(status, "local-rate") == Some("40") && problems(status) == 0
    })?;
    agent.wait_for_vif(netvm.world.client.vif())?;
    agent.wait_for_settled()?;
    netvm.world.check("at last", WEB.0, WEB.1);
    Ok(())
}
