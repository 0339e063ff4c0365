//! What rules deny ends at once, in both directions, and only that; and who floods pays
//! for it alone.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::conntrack::{self, Wanted};
use firewall_core::connection::Flow;
use firewall_core::told::status::State;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets;
use firewall_tests::packets::family::{Family, PerFamily as _};
use firewall_tests::rig::ClientSpec;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::scene::unspecified;
use super::world::*;

/// Protocol and port (or ICMP type) of what a client has open, as the kernel knows it.
fn open_flows(world: &World, client: IpAddr) -> Result<Vec<(u8, u16)>> {
    let flows = flows_of(world, client)?;
    let mut flows: Vec<_> =
        flows.iter().map(|flow| (flow.packet.number, flow.packet.port)).collect();
    flows.sort_unstable();
    flows.dedup();
    Ok(flows)
}

/// What a client has open, as the kernel knows it.
pub fn flows_of(world: &World, client: IpAddr) -> Result<Vec<Flow>> {
    world.rig.netvm().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(conntrack::flows(Wanted::From([client].into())))?)
    })
}

fn port(proto: Proto, port: u16) -> Rule {
    Rule { proto: Some(proto), ports: Some((port, port)), ..Rule::all(true) }
}

#[test]
fn a_tightened_policy_ends_tcp_udp_and_icmp_in_both_directions_and_spares_the_rest() -> Result<()> {
    let world = World::new("cut")?;
    let agent = world.start()?;
    for (client, server, icmp) in
        [(world.v4, SERVER4, (packets::ICMP, 8)), (world.v6, SERVER6, (packets::ICMPV6, 128))]
    {
        world.put(&agent, &[Rule::all(true)])?;
        let from = world.client.namespace();
        let mut doomed = OpenFlow::open(from, SocketAddr::new(server, 443), PATIENCE)?;
        let mut spared = OpenFlow::open(from, SocketAddr::new(server, 80), PATIENCE)?;
        for flow in [&mut doomed, &mut spared] {
            ensure!(flow.exchange(PATIENCE)?, "a flow does not work at first");
        }
        assert_eq!(Probe::ping(from, server).run(SILENCE)?, Outcome::Accepted);
        // A server that goes on talking, though the client says nothing more.
        let talker = world.rig.internet().run(|| Ok(UdpSocket::bind((server, 9000))?))?;
        let listener = from.run(|| {
            let socket = UdpSocket::bind((client, 0))?;
            socket.send_to(b"talk", (server, 9000))?;
            Ok(socket)
        })?;
        talker.set_read_timeout(Some(PATIENCE))?;
        let (_, translated) = talker.recv_from(&mut [0; 16])?;
        let hears = |timeout: Duration| -> Result<bool> {
            listener.set_read_timeout(Some(timeout))?;
            talker.send_to(b"more", translated)?;
            Ok(listener.recv(&mut [0; 16]).is_ok())
        };
        ensure!(hears(PATIENCE)?, "the server is not heard at first");
        let before = open_flows(&world, client)?;
        assert_eq!(before, {
            let mut all = vec![(packets::TCP, 80), (packets::TCP, 443), (packets::UDP, 9000), icmp];
            all.sort_unstable();
            all
        });

        world.put(&agent, &[port(Proto::Tcp, 80)])?;
        // The kernel has forgotten what is denied, before anybody sent a packet.
        assert_eq!(open_flows(&world, client)?, [(packets::TCP, 80)]);
        ensure!(!hears(SILENCE)?, "the server is still heard");
        ensure!(!doomed.exchange(SILENCE)?, "the denied connection goes on");
        ensure!(spared.exchange(PATIENCE)?, "the allowed connection was cut");
        let prohibited = Family::from(client).of([PROHIBITED4, PROHIBITED6]);
        assert_eq!(Probe::ping(from, server).run(SILENCE)?, prohibited);
        agent.wait_for_log("connections that rules deny now ended=")?;
    }
    Ok(())
}

#[test]
fn blocked_and_removed_rules_end_what_is_open() -> Result<()> {
    let world = World::new("cutblocked")?;
    let agent = world.start()?;
    let everything = Ruleset { default_accept: true, rules: Vec::new() };
    for text in [Some("policy = accept\n"), None] {
        agent.put(world.v4, &everything)?;
        let to = SocketAddr::new(SERVER4, 443);
        let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
        ensure!(flow.exchange(PATIENCE)?, "the flow does not work at first");
        let path = agent.rules_of(world.v4);
        match text {
            Some(text) => {
                std::fs::write(path, text)?;
                agent.wait_for_state(world.v4, State::Blocked)?;
            }
            None => {
                std::fs::remove_file(path)?;
                agent.wait_for_state(world.v4, State::Waiting)?;
            }
        }
        assert_eq!(open_flows(&world, world.v4)?, []);
        ensure!(!flow.exchange(SILENCE)?, "the flow goes on");
    }
    Ok(())
}

#[test]
fn rules_that_changed_while_no_agent_ran_end_what_they_deny() -> Result<()> {
    let world = World::new("cutrestart")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let to = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
    ensure!(flow.exchange(PATIENCE)?, "the flow does not work at first");
    let path = agent.rules_of(world.v4);
    agent.kill()?;
    std::fs::write(path, "policy = drop\ncommit\n")?;
    ensure!(flow.exchange(PATIENCE)?, "a dead agent has changed something");
    let agent = world.start()?;
    agent.wait_for_state(world.v4, State::Live)?;
    assert_eq!(open_flows(&world, world.v4)?, []);
    ensure!(!flow.exchange(SILENCE)?, "the flow goes on");
    Ok(())
}

#[test]
fn a_flood_of_denied_packets_is_dropped_counted_and_harms_no_other_client() -> Result<()> {
    let world = World::new("flood")?;
    let other = world.rig.add_client(&ClientSpec::numbered(13))?;
    let other_v4: IpAddr = other.spec().v4.context("no IPv4 address")?.into();
    let agent = Agent::start(&world.rig, &["--reject-rate", "100"])?;
    agent.wait_for_vif(world.client.vif())?;
    agent.wait_for_vif(other.vif())?;
    world.put(&agent, &[])?;
    agent.put(other_v4, &Ruleset { default_accept: true, rules: Vec::new() })?;
    let to = SocketAddr::new(SERVER4, 443);
    let mut flow = OpenFlow::open(other.namespace(), to, PATIENCE)?;

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let flooding = scope.spawn(|| {
            world.client.namespace().run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                let mut sent = 0_u64;
                while !done.load(Ordering::Relaxed) && sent < 2_000_000 {
                    // A reject of an earlier one can make a call fail; then it sends nothing.
                    sent += u64::from(socket.send_to(b"flood", (SERVER4, 9)).is_ok());
                }
                Ok(sent)
            })
        });
        let over = |status: &firewall_core::told::status::Status| {
            let mut clients = status.clients.iter();
            let flooder = clients.find(|it| it.address == world.v4);
            flooder.and_then(|it| it.counters.get("over-budget")).map_or(0, |it| it.packets)
        };
        let outcome = agent.wait_for("over the budget", |status| over(status) > 100);
        let exchanged = flow.exchange(PATIENCE);
        done.store(true, Ordering::Relaxed);
        let sent = flooding.join().expect("no panic")?;
        outcome?;
        ensure!(exchanged?, "the other client's connection does not work");
        let status = agent.client(world.v4)?;
        ensure!(status.default_counter.packets == sent, "{sent} sent: {status:?}");
        Ok(())
    })
}

#[test]
fn clients_addresses_neither_come_in_nor_go_out_by_the_uplink() -> Result<()> {
    let world = World::new("guard")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let count = |reason: &'static str| -> Result<u64> {
        Ok(agent.status()?.strays.get(reason).map_or(0, |counter| counter.packets))
    };
    let own4: IpAddr = firewall_tests::rig::UPLINK_V4.into();
    let own6: IpAddr = firewall_tests::rig::UPLINK_V6.into();
    let link = world.rig.netvm().ip(&["-o", "link", "show", "dev", "eth0"])?;
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac: Vec<u8> = mac
        .context("no hardware address")?
        .split(':')
        .map(|byte| Ok(u8::from_str_radix(byte, 16)?))
        .collect::<Result<_>>()?;
    for (client, own) in [(world.v4, own4), (world.v6, own6)] {
        let before = count("connected-source")?;
        let mut frame = packets::plain(client, own, packets::UDP, 9);
        frame[..6].copy_from_slice(&mac);
        frames::send_raw(world.rig.internet(), "eth0", &frame)?;
        agent.wait_for("a spoofed packet from upstream dropped", |_| {
            count("connected-source").is_ok_and(|now| now == before + 1)
        })?;
    }
    // A qube that is not running still has rules; what is for it must not go upstream.
    world.rig.remove_client(&world.client)?;
    agent.wait_for("the vif gone", |status| status.vifs.is_empty())?;
    let mut arrivals = frames::capture(world.rig.internet(), "eth0")?;
    for client in [world.v4, world.v6] {
        let before = count("connected-destination")?;
        world.rig.netvm().run(|| {
            // It may be told that the packet was dropped.
            let _ = UdpSocket::bind(unspecified(client))?.send_to(b"for nobody", (client, 9));
            Ok(())
        })?;
        ensure!(count("connected-destination")? == before + 1, "{client} was not guarded");
    }
    let leaked = arrivals.wait_for(|frame| frame.ends_with(b"for nobody"), SILENCE)?;
    ensure!(leaked.is_none(), "a packet for an absent client went upstream");
    // Strangers come and go.
    let stranger: IpAddr = firewall_tests::rig::INTERNET_V4.into();
    assert_eq!(Probe::ping(world.rig.netvm(), stranger).run(SILENCE)?, Outcome::Accepted);
    Ok(())
}

#[test]
fn a_flowtable_in_front_of_the_gate_keeps_nothing_that_is_denied() -> Result<()> {
    let world = World::new("flowtable")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let vif = world.client.vif();
    let table = format!(
        "table inet accelerate {{ flowtable fast {{ hook ingress priority filter; \
         devices = {{ eth0, {vif} }}; }}; chain forward {{ type filter hook forward \
         priority filter + 5; ct state established flow add @fast; }}; }}"
    );
    let mut nft = Command::new("nft");
    let loaded = world.rig.netvm().spawn(nft.arg(table).stderr(Stdio::null()))?.wait()?;
    if !loaded.success() {
        firewall_tests::skip("a flowtable in front of the gate", "this kernel has none")?;
        return Ok(());
    }
    let from = world.client.namespace();
    let mut doomed = OpenFlow::open(from, SocketAddr::new(SERVER4, 443), PATIENCE)?;
    let mut spared = OpenFlow::open(from, SocketAddr::new(SERVER4, 80), PATIENCE)?;
    for _ in 0..10 {
        for flow in [&mut doomed, &mut spared] {
            ensure!(flow.exchange(PATIENCE)?, "a flow does not work at first");
        }
    }
    world.put(&agent, &[port(Proto::Tcp, 80)])?;
    ensure!(!doomed.exchange(SILENCE)?, "the denied connection goes on");
    ensure!(spared.exchange(PATIENCE)?, "the allowed connection was cut");
    assert_eq!(open_flows(&world, world.v4)?, [(packets::TCP, 80)]);
    Ok(())
}
