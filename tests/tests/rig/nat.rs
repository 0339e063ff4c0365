//! Network address translation that others do, in front of the gate: what rules say of where a
//! packet was sent, and what becomes of it where it goes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{UPLINK_V4, UPLINK_V6};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::clients::{neighbour, put};
use super::closed::Lacking;
use super::files::cli;
use super::world::*;

/// A port of the netvm that leads to port 80 of client 13, also for clients.
const HAIRPIN: &str = "table inet custom {
    chain pre {
        type nat hook prerouting priority dstnat
        fib daddr type local tcp dport 8080 dnat ip to 10.137.0.13:80
        fib daddr type local tcp dport 8080 dnat ip6 to [fd09:24ef:4179::a89:d]:80
    }
}";

#[test]
fn what_is_led_from_the_netvm_to_another_client_passes_if_rules_accept_the_netvms_address()
-> Result<()> {
    let world = World::new("hairpin")?;
    world.rig.netvm().nft(HAIRPIN)?;
    let agent = world.start_with(&["--mode", "qubes"])?;
    let (other, addresses) = neighbour(&world, &agent)?;
    put(&agent, addresses, &[])?;
    let from = world.client.namespace();
    for (to, own, prohibited, served) in [
        (UPLINK_V4.into(), world.v4, PROHIBITED4, addresses[0]),
        (UPLINK_V6.into(), world.v6, PROHIBITED6, addresses[1]),
    ] {
        let _server = EchoServer::start(other.namespace(), SocketAddr::new(served, 80))?;
        let port = SocketAddr::new(to, 8080);
        world.put(&agent, &[])?;
        assert_eq!(Probe::tcp(from, port).run(PATIENCE)?, prohibited, "{port}");
        world.put(&agent, &[Rule { proto: Some(Proto::Tcp), ..Rule::all(true) }])?;
        assert_eq!(Probe::tcp(from, port).run(PATIENCE)?, Outcome::Accepted, "{port}");
        // For the one it was for the netvm itself; the other's answers are not denied.
        // The last of them may still be on its way.
        for (client, reason, least) in [(own, "local", 3), (served, "answer", 2)] {
            agent.wait_for(reason, |_| {
                let counters = agent.client(client).map(|it| it.counters).unwrap_or_default();
                counters.get(reason).is_some_and(|it| it.packets >= least)
            })?;
        }
        let status = agent.client(served)?;
        assert_eq!(status.default_counter.packets, 0, "{status:?}");
    }
    Ok(())
}

/// As Qubes has it, in front of one of the two virtual resolvers.
const ONE_RESOLVER: &str = "table ip qubes {
    chain dnat-dns {
        type nat hook prerouting priority dstnat
        ip daddr 10.139.1.1 udp dport 53 dnat to 192.0.2.1
        ip daddr 10.139.1.1 tcp dport 53 dnat to 192.0.2.1
    }
}";

#[test]
fn a_virtual_resolver_that_nobody_redirects_is_no_dns_server() -> Result<()> {
    let world = World::new("undirected")?;
    let agent = world.start_with(&["--mode", "qubes"])?;
    world.put(&agent, &[Rule { dns: true, ..Rule::all(true) }])?;
    let from = world.client.namespace();
    // Nobody masquerades here.
    let (client, netvm) = (world.v4.to_string(), UPLINK_V4.to_string());
    world.rig.internet().ip(&["route", "add", &client, "via", &netvm])?;
    // Until the agent knows better, a question can leave to nobody.
    let ask = |resolver: &str| -> Result<Outcome> {
        let resolver: SocketAddr = resolver.parse()?;
        Probe::udp(from, resolver).run(SILENCE)
    };
    let _real = EchoServer::start(world.rig.internet(), "192.0.2.1:53".parse()?)?;
    // Nobody does at first; then somebody does for one of the two, and no more.
    assert_eq!(ask("10.139.1.1:53")?, PROHIBITED4);
    assert_eq!(ask("10.139.1.2:53")?, PROHIBITED4);
    for round in 0..2 {
        world.rig.netvm().nft(ONE_RESOLVER)?;
        let accepted = || ask("10.139.1.1:53").is_ok_and(|it| it == Outcome::Accepted);
        agent.wait_for("the redirected one to be accepted", |_| accepted())?;
        assert_eq!(ask("10.139.1.2:53")?, PROHIBITED4, "round {round}");
        world.rig.netvm().nft("delete table ip qubes")?;
        let prohibited = || ask("10.139.1.1:53").is_ok_and(|it| it == PROHIBITED4);
        agent.wait_for("it to be rejected again", |_| prohibited())?;
    }
    Ok(())
}

#[test]
fn that_nobody_knows_which_resolvers_are_redirected_is_a_problem_as_long_as_it_is_so() -> Result<()>
{
    let world = World::new("unlisted")?;
    let lacking = Lacking::new(&world.rig, "")?;
    let agent = Agent::start_in(&world.rig, &["--mode", "qubes"], &[lacking.environment()?])?;
    agent.wait_for_vif(world.client.vif())?;
    assert_eq!(cli(&agent, &["status"])?.0, 0);
    lacking.refuse_to_list("list chains")?;
    world.rig.netvm().nft("add table ip somebody")?;
    agent.wait_for("told", |status| status.agent.resolvers_problem.is_some())?;
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 1, "{text}");
    let problem = "PROBLEM: nobody knows which virtual resolvers are redirected";
    ensure!(text.contains(problem) && text.contains("Out of memory"), "{text}");
    // The gate itself can be read, and is left alone.
    ensure!(!agent.log().contains("the gate;"), "{}", agent.log());
    lacking.refuse_to_list("")?;
    world.rig.netvm().nft("delete table ip somebody")?;
    agent.wait_for("over", |status| status.agent.resolvers_problem.is_none())?;
    assert_eq!(cli(&agent, &["status"])?.0, 0);
    Ok(())
}
