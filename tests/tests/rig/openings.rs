//! Connections that others open towards a client whose rules deny everything: what answers them is
//! told as an answer, and only that.
//! Never looks at what clients open themselves.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use firewall_common::answers::{ANSWERS_BURST, ANSWERS_PER_SECOND};
use firewall_core::told::status::ClientStatus;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{UPLINK_V4, UPLINK_V6, connections};
use firewall_tests::traffic::probe::{OpenFlow, SILENCE};

use super::scene::unspecified;
use super::world::*;

/// Where others may open connections towards clients.
const QUBES: &[&str] = &["--mode", "qubes"];
const PORT: u16 = 8000;

/// A port of the netvm that leads to client 12.
const FORWARDED: &str = "table inet custom {
    chain pre {
        type nat hook prerouting priority dstnat
        iifname \"eth0\" tcp dport 8080 dnat ip to 10.137.0.12:8000
        iifname \"eth0\" tcp dport 8080 dnat ip6 to [fd09:24ef:4179::a89:c]:8000
    }
}";

/// Lets the internet send to the client's own addresses.
fn open_routes(world: &World) -> Result<()> {
    for (client, netvm) in [(world.v4, UPLINK_V4.into()), (world.v6, IpAddr::from(UPLINK_V6))] {
        let (client, netvm) = (client.to_string(), netvm.to_string());
        world.rig.internet().ip(&["route", "add", &client, "via", &netvm])?;
    }
    Ok(())
}

/// Packets that rules denied, and packets that were told as answers.
fn denied_and_answers(client: &ClientStatus) -> [u64; 2] {
    let answers = client.counters.get("answer").map_or(0, |it| it.packets);
    [client.default_counter.packets, answers]
}

#[test]
fn answers_of_what_was_open_before_the_agent_are_told_as_answers() -> Result<()> {
    let world = World::new("openbefore")?;
    open_routes(&world)?;
    world.rig.netvm().nft(FORWARDED)?;
    let agent = world.start_with(QUBES)?;
    world.put(&agent, &[])?;
    let clients = [(world.v4, IpAddr::from(UPLINK_V4)), (world.v6, UPLINK_V6.into())];
    let mut flows = Vec::new();
    let mut servers = Vec::new();
    for (client, netvm) in clients {
        let own = SocketAddr::new(client, PORT);
        servers.push(EchoServer::start(world.client.namespace(), own)?);
        for to in [own, SocketAddr::new(netvm, 8080)] {
            let flow = OpenFlow::open(world.rig.internet(), to, PATIENCE);
            flows.push((to, flow.with_context(|| format!("{to}: no connection"))?));
        }
    }
    agent.kill()?;
    let agent = world.start_with(QUBES)?;
    agent.wait_for_settled()?;
    for (to, flow) in &mut flows {
        ensure!(flow.exchange(PATIENCE)?, "{to}: the connection does not go on");
    }
    for (client, _) in clients {
        let [denied, answers] = denied_and_answers(&agent.client(client)?);
        ensure!(denied == 0 && answers >= 2, "{client}: {denied} denied, {answers} answers");
    }
    Ok(())
}

#[test]
fn what_looks_like_answers_of_a_connection_that_is_over_is_told_as_denied() -> Result<()> {
    const SENT: u64 = 10 * ANSWERS_BURST;
    let world = World::new("looklike")?;
    open_routes(&world)?;
    let agent = world.start_with(QUBES)?;
    world.put(&agent, &[])?;
    for client in [world.v4, world.v6] {
        let server = world.client.namespace().run(|| Ok(UdpSocket::bind((client, PORT))?))?;
        let peer = world.rig.internet().run(|| Ok(UdpSocket::bind(unspecified(client))?))?;
        server.set_read_timeout(Some(PATIENCE))?;
        peer.set_read_timeout(Some(PATIENCE))?;
        peer.send_to(b"question", (client, PORT))?;
        let (_, from) = server.recv_from(&mut [0; 16]).context("nobody asks the client")?;
        // Each of these leaves, so there is always room for more.
        for number in 0..2 * ANSWERS_BURST {
            server.send_to(b"answer", from)?;
            peer.recv(&mut [0; 16]).with_context(|| format!("{client}: answer {number}"))?;
        }
        let before = denied_and_answers(&agent.client(client)?);
        assert_eq!(before, [0, 2 * ANSWERS_BURST], "{client}");

        connections::forget(world.rig.netvm())?;
        let since = Instant::now();
        for _ in 0..SENT {
            // The answer to the one before can make this call fail.
            while server.send_to(b"no answer", from).is_err() {}
        }
        let [denied, answers] = denied_and_answers(&agent.client(client)?);
        let answers = answers - before[1];
        assert_eq!(denied + answers, SENT, "{client}");
        let most = ANSWERS_BURST + since.elapsed().as_secs() * ANSWERS_PER_SECOND;
        // One for what the coarse clock is late, and one for the second that has begun.
        let most = most + 2 * ANSWERS_PER_SECOND;
        ensure!(answers <= most, "{client}: {answers} were told as answers, of at most {most}");
        peer.set_read_timeout(Some(SILENCE))?;
        ensure!(peer.recv(&mut [0; 16]).is_err(), "{client}: one passed");
    }
    Ok(())
}
