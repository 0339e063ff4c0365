//! Start, kill, restart: what is open and what is closed while the agent is not there,
//! and what it owns in nftables.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use firewall_core::told::status::{Attachment, State};
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rig::{ClientSpec, Rig, UPLINK};
use firewall_tests::traffic::probe::{OpenFlow, Outcome};
use nix::net::if_::if_nametoindex;

use super::world::*;

#[test]
fn after_sigkill_policies_go_on_and_a_new_vif_forwards_nothing() -> Result<()> {
    let world = World::new("sigkill")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    use Outcome::Accepted;
    let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
    let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
    agent.kill()?;
    world.check("dead agent", v4, v6);
    // A vif that comes while the agent is dead has no program: nothing gets a permit.
    let late = ClientSpec::numbered(13);
    let late_client = world.rig.add_client(&late)?;
    let late_v4: IpAddr = late.v4.context("no IPv4 address")?.into();
    let everything = Ruleset { default_accept: true, rules: Vec::new() };
    write_rules(world.rig.directory(), late_v4, &everything.file())?;
    check(late_client.namespace(), "dead agent, new vif", ALL_PROHIBITED4, ALL_PROHIBITED6);
    world.check("dead agent, still", v4, v6);
    // A new agent takes over without a gap: a flow that was open before goes on.
    let to = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
    let agent = world.start()?;
    ensure!(flow.exchange(PATIENCE)?, "an allowed flow was broken by a restart");
    agent.wait_for_state(late_v4, State::Live)?;
    world.check("new agent", v4, v6);
    check(late_client.namespace(), "new agent, new vif", ACCEPTED, SILENT);
    // Two programs on each vif, not two for each agent; and two on the uplink. A kernel may have made
    // other links, which are guarded too.
    let index = |name: &str| world.rig.netvm().run(|| Ok(if_nametoindex(name)?));
    let of_vif = ["from_client", "to_client"];
    let all = [
        (world.client.vif(), of_vif),
        (late_client.vif(), of_vif),
        (UPLINK, ["from_uplink", "to_uplink"]),
    ];
    for (link, programs) in all {
        for program in programs {
            // Filters of clsact have no pins.
            let pins = world.pins(&format!("{program}-{}", index(link)?))?;
            ensure!(pins.len() == usize::from(has_tcx()), "{program} of {link}: {pins:?}");
        }
    }
    ensure!(agent.terminate()?, "SIGTERM is not a clean end");
    world.check("stopped agent", v4, v6);
    Ok(())
}

#[test]
fn a_gate_without_any_program_forwards_nothing_from_vifs() -> Result<()> {
    let world = World::new("gate")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    world.check("with a program", ACCEPTED, ACCEPTED);
    agent.kill()?;
    fs::remove_dir_all(world.rig.bpffs().join("firewall"))?;
    if !has_tcx() {
        let mut tc = Command::new("tc");
        tc.args(["qdisc", "del", "dev", world.client.vif(), "clsact"]);
        ensure!(world.rig.netvm().spawn(&mut tc)?.wait()?.success());
    }
    // The kernel detaches a link without owner a moment later.
    let deadline = Instant::now() + PATIENCE;
    while has_tcx() && attached_programs(&world)? > 0 {
        ensure!(Instant::now() < deadline, "the program stays although nothing holds it");
        std::thread::sleep(Duration::from_millis(10));
    }
    world.check("without", ALL_PROHIBITED4, ALL_PROHIBITED6);
    let listed = list_ruleset(&world.rig)?;
    for table in ["table ip qubes-firewall", "table ip6 qubes-firewall"] {
        assert!(listed.contains(table), "{listed}");
    }
    assert!(listed.contains("run `firewall-agent show`"), "{listed}");
    Ok(())
}

fn attached_programs(world: &World) -> Result<usize> {
    world.rig.netvm().run(|| {
        let (_, programs) = SchedClassifier::query_tcx(world.client.vif(), TcAttachType::Ingress)?;
        Ok(programs.len())
    })
}

/// What nftables has in force, whichever table was made first.
pub fn list_ruleset(rig: &Rig) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(["list", "ruleset"]).stdout(std::process::Stdio::piped());
    let output = rig.netvm().spawn(&mut nft)?.wait_with_output()?;
    let listed = String::from_utf8(output.stdout)?;
    let mut tables: Vec<&str> = listed.split_inclusive("\n}\n").collect();
    tables.sort_unstable();
    Ok(tables.concat())
}

#[test]
fn the_gate_is_as_large_with_many_rules_as_with_none() -> Result<()> {
    let world = World::new("size")?;
    let agent = world.start()?;
    let before = list_ruleset(&world.rig)?;
    let network = |index: u32| Some((Ipv4Addr::from_bits(0x0808_0000 + index).into(), 32));
    let rules = (0..10_000).map(|index| Rule { network: network(index), ..tcp_443() });
    let rules = Ruleset { default_accept: false, rules: rules.collect() };
    agent.put(world.v4, &rules)?;
    assert_eq!(list_ruleset(&world.rig)?, before);
    let policy = agent.client(world.v4)?.policy.context("no policy")?;
    assert_eq!(policy.prefixes, 10_001);
    assert!(policy.complete && policy.cells_checked > 40_000, "{policy:?}");
    Ok(())
}

#[test]
fn qubes_mode_touches_no_table_but_its_own() -> Result<()> {
    let world = World::new("qubes")?;
    let mut nft = Command::new("nft");
    nft.arg("table ip qubes { chain custom-forward { counter; }; }");
    ensure!(world.rig.netvm().spawn(&mut nft)?.wait()?.success());
    let before = list_ruleset(&world.rig)?;
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    let after = list_ruleset(&world.rig)?;
    assert!(after.contains(before.trim()), "{after}");
    let tables: Vec<&str> = after.lines().filter(|line| line.starts_with("table")).collect();
    assert_eq!(
        tables,
        ["table ip qubes {", "table ip qubes-firewall {", "table ip6 qubes-firewall {"]
    );
    Ok(())
}

#[test]
fn clsact_filters_as_tcx_does_and_is_replaced_by_the_next_agent() -> Result<()> {
    let world = World::new("clsact")?;
    use Outcome::Accepted;
    let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
    let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
    for round in 0..2 {
        let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
        agent.wait_for_vif(world.client.vif())?;
        let status = agent.status()?;
        assert_eq!(status.vifs[0].attached, Some(Attachment::Clsact));
        if round == 0 {
            world.put(&agent, &[tcp_443(), ping()])?;
        }
        world.check("clsact", v4, v6);
        agent.kill()?;
        world.check("clsact, dead agent", v4, v6);
    }
    Ok(())
}

#[test]
fn a_gate_that_somebody_removed_comes_back() -> Result<()> {
    let world = World::new("flushed")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    use Outcome::Accepted;
    let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
    let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
    let whole = list_ruleset(&world.rig)?;
    for removal in
        ["flush ruleset", "delete table ip6 qubes-firewall", "flush table ip qubes-firewall"]
    {
        let mut nft = Command::new("nft");
        ensure!(world.rig.netvm().spawn(nft.arg(removal))?.wait()?.success());
        let deadline = Instant::now() + PATIENCE;
        while list_ruleset(&world.rig)? != whole {
            ensure!(Instant::now() < deadline, "{removal}: never back\n{}", agent.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        world.check(removal, v4, v6);
    }
    agent.wait_for_log("somebody removed the gate")
}

#[test]
fn a_new_way_to_attach_leaves_nothing_of_the_old_one() -> Result<()> {
    let world = World::new("reattach")?;
    let hows = ["clsact", "tcx", "clsact", "auto"].into_iter();
    for (index, how) in hows.filter(|how| *how != "tcx" || has_tcx()).enumerate() {
        let agent = Agent::start(&world.rig, &["--attach", how])?;
        agent.wait_for_vif(world.client.vif())?;
        // Each agent accepts what the one before denied, and the other way round.
        if index % 2 == 0 {
            world.put(&agent, &[Rule::all(true)])?;
            world.check(how, ACCEPTED, ACCEPTED);
        } else {
            world.put(&agent, &[])?;
            world.check(how, ALL_PROHIBITED4, ALL_PROHIBITED6);
        }
        agent.kill()?;
    }
    Ok(())
}
