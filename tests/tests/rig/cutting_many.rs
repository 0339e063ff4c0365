//! What rules deny ends whatever else is in the kernel's table of connections, and while it
//! ends, the agent goes on.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_agent::edges::conntrack::Forgetting;
use firewall_core::connection::Flow;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::rounds;
use firewall_tests::traffic::probe::{OpenFlow, SILENCE};

use super::cutting::flows_of;
use super::world::*;

/// Ports of each destination to which something is open, and how many of them tighter rules
/// spare.
const PORTS: u16 = 10_000;
const SPARED: u16 = 100;
/// The most of its own memory that an agent may take, and the most more than before while it
/// ends connections, in KiB. However many there are, it sees few at a time.
const MOST_MEMORY: u64 = 32 * 1024;
const MOST_GROWTH: u64 = 1_536;

/// Rules that spare some of what is open.
fn tighter() -> Ruleset {
    let spared = Rule { proto: Some(Proto::Udp), ports: Some((1, SPARED)), ..Rule::all(true) };
    Ruleset { default_accept: false, rules: vec![spared] }
}

/// How many connections the kernel knows in the netvm.
fn count(world: &World) -> Result<usize> {
    world.rig.netvm().run(|| {
        let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
        Ok(count.trim().parse()?)
    })
}

/// Lets the client have [`PORTS`] connections to each of so many destinations.
fn open_many(world: &World, agent: &Agent, destinations: u8) -> Result<()> {
    world.rig.silence_nobody()?;
    // Nobody answers; that must not be the end of them.
    world.rig.netvm().sysctl("net/netfilter/nf_conntrack_udp_timeout", "600")?;
    world.put(agent, &[Rule::all(true)])?;
    let wanted = usize::from(destinations) * usize::from(PORTS);
    let deadline = Instant::now() + 3 * PATIENCE;
    while count(world)? < wanted {
        ensure!(Instant::now() < deadline, "{} of {wanted} are open", count(world)?);
        world.client.namespace().run(|| {
            let socket = UdpSocket::bind((world.v4, 40_000))?;
            for destination in 0..destinations {
                for port in 1..=PORTS {
                    let to = Ipv4Addr::new(203, 0, 113, destination);
                    socket.send_to(b"many", (to, port))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Replaces the client's rules by tighter ones, and asks until what they deny has ended.
/// Returns how often that was asked meanwhile, the longest time that an answer took, and the
/// most memory that the agent took.
fn tighten(world: &World, agent: &Agent) -> Result<(usize, Duration, u64)> {
    let before = agent.client(world.v4)?.generation;
    let (mut asked, mut longest, mut memory) = (0, Duration::ZERO, 0);
    write_rules(world.rig.directory(), world.v4, &tighter().file())?;
    let deadline = Instant::now() + 6 * PATIENCE;
    loop {
        let asking = Instant::now();
        let client = agent.client(world.v4)?;
        longest = longest.max(asking.elapsed());
        memory = memory.max(agent.memory("RssAnon")?);
        match (client.generation != before, client.settling) {
            (true, false) => return Ok((asked, longest, memory)),
            (true, true) => asked += 1,
            (false, _) => {}
        }
        ensure!(Instant::now() < deadline, "it never settles: {client:#?}\n{}", agent.log());
    }
}

#[test]
fn a_large_table_is_cut_in_little_memory_while_the_agent_answers() -> Result<()> {
    let destinations = u8::try_from(rounds(2, 26))?;
    let world = World::new("cutmany")?;
    let agent = world.start()?;
    let mut asked = 0;
    // On a busy machine all may be over before anybody asks; then once more.
    for _ in 0..3 {
        open_many(&world, &agent, destinations)?;
        let before = agent.memory("RssAnon")?;
        let (meanwhile, longest, memory) = tighten(&world, &agent)?;
        println!(
            "{destinations} times {PORTS}: {meanwhile} answers meanwhile, the slowest after \
             {longest:?}; {memory} KiB of memory, {before} before"
        );
        let left = flows_of(&world, world.v4)?;
        let denied = left.iter().filter(|flow| flow.packet.port > SPARED).count();
        assert_eq!(denied, 0, "of {}", left.len());
        assert_eq!(left.len(), usize::from(destinations) * usize::from(SPARED));
        ensure!(memory < MOST_MEMORY, "{memory} KiB of memory");
        ensure!(memory < before + MOST_GROWTH, "{memory} KiB of memory after {before}");
        asked += meanwhile;
        if asked > 0 {
            break;
        }
    }
    ensure!(asked > 0, "nothing was answered while connections were being ended");
    let ended = usize::from(destinations) * usize::from(PORTS - SPARED);
    agent.wait_for_log(&format!("connections that rules deny now ended={ended}"))
}

#[test]
fn an_agent_that_is_asked_to_stop_ends_what_it_has_begun_to_end() -> Result<()> {
    let world = World::new("cutstop")?;
    let agent = world.start()?;
    open_many(&world, &agent, 3)?;
    write_rules(world.rig.directory(), world.v4, &tighter().file())?;
    agent.wait_for("settling", |status| status.clients.iter().any(|client| client.settling))?;
    ensure!(agent.terminate()?, "the agent failed");
    assert_eq!(flows_of(&world, world.v4)?.len(), 3 * usize::from(SPARED));
    Ok(())
}

#[test]
fn connections_in_zones_end_like_all_others() -> Result<()> {
    let world = World::new("cutzones")?;
    let agent = world.start()?;
    // In one zone, and in a zone for one direction only.
    for zone in ["ct zone set 5", "iifname \"vif*\" ct original zone set 6"] {
        world.put(&agent, &[Rule::all(true)])?;
        world.rig.netvm().nft(&format!(
            "table inet zones {{\nchain prerouting {{\ntype filter hook prerouting priority raw;\n\
             {zone}\n}}\n}}\n"
        ))?;
        let from = world.client.namespace();
        let open = |port| OpenFlow::open(from, SocketAddr::new(SERVER4, port), PATIENCE);
        let (mut doomed, mut spared) = (open(443)?, open(80)?);
        for flow in [&mut doomed, &mut spared] {
            ensure!(flow.exchange(PATIENCE)?, "a flow does not work at first: {zone}");
        }
        let ports = |flows: Vec<Flow>| {
            let mut ports: Vec<u16> = flows.iter().map(|flow| flow.packet.port).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        };
        assert_eq!(ports(flows_of(&world, world.v4)?), [80, 443], "{zone}");
        let web = Rule { proto: Some(Proto::Tcp), ports: Some((80, 80)), ..Rule::all(true) };
        world.put(&agent, &[web])?;
        assert_eq!(ports(flows_of(&world, world.v4)?), [80], "{zone}");
        ensure!(!doomed.exchange(SILENCE)?, "the denied connection goes on: {zone}");
        ensure!(spared.exchange(PATIENCE)?, "the allowed connection was cut: {zone}");
        world.rig.netvm().nft("delete table inet zones\n")?;
        drop((doomed, spared));
        firewall_tests::rig::connections::forget(world.rig.netvm())?;
    }
    Ok(())
}

#[test]
fn what_the_kernel_refuses_to_forget_is_told_and_keeps_nothing_else() -> Result<()> {
    let world = World::new("cutrefused")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    world.client.namespace().run(|| {
        let socket = UdpSocket::bind((world.v4, 40_000))?;
        for port in 1..=4 {
            socket.send_to(b"open", (SERVER4, port))?;
        }
        Ok(())
    })?;
    let mut flows = flows_of(&world, world.v4)?;
    flows.sort_by_key(|flow| flow.packet.port);
    let ports = |flows: &[Flow]| flows.iter().map(|flow| flow.packet.port).collect::<Vec<_>>();
    assert_eq!(ports(&flows), [1, 2, 3, 4]);
    // IPv6 with addresses of IPv4 is nothing that the kernel knows.
    flows[1].family = 10;
    // One that came after another of the same name, of which only the number differs.
    *flows[2].name.last_mut().context("no number")? ^= 1;
    let forgotten = world.rig.netvm().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { Ok(Forgetting::open()?.forget(&flows).await) })
    })?;
    assert_eq!(forgotten.gone, 3);
    let refused: Vec<(IpAddr, String)> = forgotten.refused.into_iter().collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].0, world.v4);
    ensure!(refused[0].1.contains("Invalid argument"), "{refused:?}");
    let mut left = flows_of(&world, world.v4)?;
    left.sort_by_key(|flow| flow.packet.port);
    assert_eq!(ports(&left), [2, 3]);
    Ok(())
}
