//! Connections that others open towards a client whose rules deny everything: what answers them is
//! told as an answer, and only that.
//! Never looks at what clients open themselves.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use firewall_common::abi::REJECT_BURST;
use firewall_common::answers::{ANSWERS_BURST, ANSWERS_PER_SECOND};
use firewall_core::told::status::ClientStatus;
use firewall_tests::rig::agent::PATIENCE;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{UPLINK, UPLINK_V4, UPLINK_V6, connections};
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

#[test]
fn answers_to_connections_of_the_netvm_itself_are_in_no_budget() -> Result<()> {
    const COUNT: usize = 300;
    let world = World::new("netvms")?;
    let agent = world.start_with(QUBES)?;
    world.put(&agent, &[])?;
    for client in [world.v4, world.v6] {
        let at = SocketAddr::new(client, PORT);
        let _server = EchoServer::start(world.client.namespace(), at)?;
        let connect = || Ok(TcpStream::connect_timeout(&at, PATIENCE)?);
        for number in 0..COUNT {
            let stream = world.rig.netvm().run(connect);
            stream.with_context(|| format!("{client}: connection {number}"))?;
        }
        let counters = agent.client(client)?.counters;
        ensure!(!counters.contains_key("too-many"), "{client}: {counters:?}");
    }
    Ok(())
}

#[test]
fn an_answer_that_leaves_in_fragments_is_given_back_once() -> Result<()> {
    // Beyond its budget of answers, what the client sends uses up that of rejects.
    const FAKES: u64 = ANSWERS_BURST + REJECT_BURST / 4;
    let world = World::new("giveback")?;
    open_routes(&world)?;
    world.rig.netvm().ip(&["link", "set", UPLINK, "mtu", "1280"])?;
    let agent = world.start_with(QUBES)?;
    world.put(&agent, &[])?;
    // Without "do not fragment".
    world.client.namespace().sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
    let bound = |port| world.client.namespace().run(|| Ok(UdpSocket::bind((world.v4, port))?));
    let (server, over) = (bound(PORT)?, bound(PORT + 1)?);
    let peer = world.rig.internet().run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let mut asked = Vec::new();
    for socket in [&server, &over, &peer] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    for (socket, port) in [(&server, PORT), (&over, PORT + 1)] {
        peer.send_to(b"question", (world.v4, port))?;
        asked.push(socket.recv_from(&mut [0; 16]).context("nobody asks the client")?.1);
    }
    // One of the two connections is over, and the other goes on.
    connections::forget(world.rig.netvm())?;
    peer.send_to(b"question", (world.v4, PORT))?;
    server.recv_from(&mut [0; 16]).context("nobody asks the client again")?;
    let since = Instant::now();
    for number in 0..FAKES {
        server.send_to(&[7; 1400], asked[0])?;
        let length = peer.recv(&mut [0; 2000]).with_context(|| format!("answer {number}"))?;
        assert_eq!(length, 1400);
        while over.send_to(b"no answer", asked[1]).is_err() {}
    }
    let [denied, answers] = denied_and_answers(&agent.client(world.v4)?);
    assert_eq!(denied + answers, 2 * FAKES);
    let most = FAKES + ANSWERS_BURST + (since.elapsed().as_secs() + 2) * ANSWERS_PER_SECOND;
    ensure!(answers <= most, "{answers} were told as answers, of at most {most}");
    Ok(())
}
