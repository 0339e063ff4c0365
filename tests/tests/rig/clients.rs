//! Clients of one netvm among themselves.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{self, CLIENT_INTERFACE, Client, ClientSpec};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::scene::{udp_443, unspecified};
use super::world::*;

/// One more client behind the same netvm, with its addresses.
pub fn neighbour(world: &World, agent: &Agent) -> Result<(Client, [IpAddr; 2])> {
    let spec = ClientSpec::numbered(13);
    let client = world.rig.add_client(&spec)?;
    agent.wait_for_vif(client.vif())?;
    let v4 = spec.v4.context("no IPv4 address")?.into();
    let v6 = spec.v6.context("no IPv6 address")?.into();
    Ok((client, [v4, v6]))
}

pub fn put(agent: &Agent, addresses: [IpAddr; 2], rules: &[Rule]) -> Result<()> {
    let rules = Ruleset { default_accept: false, rules: rules.to_vec() };
    addresses.into_iter().try_for_each(|address| agent.put(address, &rules))
}

/// TCP, UDP to port 443, and ping.
fn outcomes(from: &Namespace, to: IpAddr) -> Result<[Outcome; 3]> {
    let port = SocketAddr::new(to, 443);
    let probes = [Probe::tcp(from, port), Probe::udp(from, port), Probe::ping(from, to)];
    let [tcp, udp, ping] = probes.map(|probe| probe.run(SILENCE));
    Ok([tcp?, udp?, ping?])
}

#[test]
fn clients_do_not_talk_to_each_other_whatever_their_rules_accept() -> Result<()> {
    let world = World::new("apart")?;
    let agent = world.start()?;
    let (other, addresses) = neighbour(&world, &agent)?;
    world.put(&agent, &[Rule::all(true)])?;
    put(&agent, addresses, &[Rule::all(true)])?;
    let mut arrivals = frames::capture(other.namespace(), CLIENT_INTERFACE)?;
    for (own, to) in [world.v4, world.v6].into_iter().zip(addresses) {
        let server = EchoServer::start(other.namespace(), SocketAddr::new(to, 443))?;
        let _back = EchoServer::start(world.client.namespace(), SocketAddr::new(own, 443))?;
        assert_eq!(outcomes(world.client.namespace(), to)?, [Outcome::Silent; 3]);
        assert_eq!(outcomes(other.namespace(), own)?, [Outcome::Silent; 3]);
        assert_eq!(server.received().udp_packets, 0);
        for client in [own, to] {
            // At least a SYN, a datagram and an echo request; the rule has a say, and
            // says yes.
            let status = agent.client(client)?;
            ensure!(status.rules[0].counter.packets >= 3, "{status:?}");
            assert_eq!(status.default_counter.packets, 0);
        }
    }
    // Nothing from the one was ever on the wire of the other.
    let IpAddr::V4(from) = world.v4 else { anyhow::bail!("not IPv4") };
    let from_client = |frame: &[u8]| frame.get(26..30) == Some(&from.octets());
    ensure!(arrivals.wait_for(from_client, SILENCE)?.is_none(), "a packet crossed");
    Ok(())
}

/// What Qubes OS has beside this firewall, where the user lets client 12 reach client 13.
const CUSTOM: &str = "table inet custom {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ip saddr 10.137.0.12 ip daddr 10.137.0.13 accept
        ip6 saddr fd09:24ef:4179::a89:c ip6 daddr fd09:24ef:4179::a89:d accept
        ct state invalid drop
        ct state established,related accept
        oifname \"vif*\" drop
    }
}";

/// That, and an agent.
fn custom_world(label: &str) -> Result<(World, Agent)> {
    let world = World::new(label)?;
    // As on Qubes OS it is there first, and so asked last.
    world.rig.netvm().nft(CUSTOM)?;
    let agent = world.start_with(&["--mode", "qubes"])?;
    Ok((world, agent))
}

#[test]
fn answers_pass_where_a_custom_rule_lets_one_client_reach_another() -> Result<()> {
    let (world, agent) = custom_world("custom")?;
    let (other, addresses) = neighbour(&world, &agent)?;
    world.put(&agent, &[udp_443(), tcp_443()])?;
    put(&agent, addresses, &[])?;
    let (here, there) = (world.client.namespace(), other.namespace());
    let mut flows = Vec::new();
    let families = [world.v4, world.v6].into_iter().zip([PROHIBITED4, PROHIBITED6]);
    for ((own, prohibited), to) in families.clone().zip(addresses) {
        let server = SocketAddr::new(to, 443);
        let _back = EchoServer::start(here, SocketAddr::new(own, 443))?;
        flows.push((EchoServer::start(there, server)?, OpenFlow::open(here, server, PATIENCE)?));
        use Outcome::Accepted;
        // Its own rules count as well, and the custom rule has one direction.
        assert_eq!(outcomes(here, to)?, [Accepted, Accepted, prohibited]);
        assert_eq!(outcomes(there, own)?, [prohibited; 3]);
        let status = agent.client(to)?;
        let answers = status.counters.get("answer").map_or(0, |it| it.packets);
        // What it opened itself was denied, and what it answered was not.
        ensure!(status.default_counter.packets >= 3 && answers >= 2, "{status:?}");
    }
    // The other client's rules would accept; there is no custom rule.
    put(&agent, addresses, &[Rule::all(true)])?;
    for (own, _) in families {
        assert_eq!(outcomes(there, own)?, [Outcome::Silent; 3]);
    }
    for (_server, flow) in &mut flows {
        ensure!(flow.exchange(PATIENCE)?, "an open connection was cut");
    }
    Ok(())
}

/// Whether a datagram of so many bytes comes back from a server in time.
fn comes_back(from: &Namespace, server: SocketAddr, bytes: usize, time: Duration) -> Result<bool> {
    let socket = from.run(|| Ok(UdpSocket::bind(unspecified(server.ip()))?))?;
    socket.set_read_timeout(Some(time))?;
    socket.connect(server)?;
    socket.send(&vec![7; bytes])?;
    match socket.recv(&mut vec![0; bytes]) {
        Ok(length) => Ok(length == bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("no answer"),
    }
}

#[test]
fn an_answer_in_fragments_to_another_client_passes_only_if_rules_accept_it() -> Result<()> {
    let (world, agent) = custom_world("customfrag")?;
    let (other, addresses) = neighbour(&world, &agent)?;
    world.put(&agent, &[udp_443()])?;
    put(&agent, addresses, &[])?;
    let here = world.client.namespace();
    for to in addresses {
        let address = SocketAddr::new(to, 443);
        let _server = EchoServer::start(other.namespace(), address)?;
        ensure!(comes_back(here, address, 1000, PATIENCE)?, "{to}: a whole answer");
        ensure!(!comes_back(here, address, 3000, SILENCE)?, "{to}: although rules deny it");
        agent.wait_for("two fragments behind a first one that is denied", |status| {
            let mut clients = status.clients.iter().filter(|it| it.address == to);
            let strays = clients.next().and_then(|it| it.counters.get("stray-fragment"));
            strays.is_some_and(|it| it.packets == 2)
        })?;
    }
    put(&agent, addresses, &[Rule::all(true)])?;
    for to in addresses {
        let address = SocketAddr::new(to, 443);
        let _server = EchoServer::start(other.namespace(), address)?;
        ensure!(comes_back(here, address, 3000, PATIENCE)?, "{to}: although rules accept it");
    }
    Ok(())
}

#[test]
fn nobody_upstream_opens_a_connection_to_a_client() -> Result<()> {
    let world = World::new("upstream")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let internet = world.rig.internet();
    let (via4, via6) = (rig::UPLINK_V4.to_string(), rig::UPLINK_V6.to_string());
    internet.ip(&["route", "add", &world.v4.to_string(), "via", &via4])?;
    internet.ip(&["-6", "route", "add", &world.v6.to_string(), "via", &via6])?;
    for client in [world.v4, world.v6] {
        let address = SocketAddr::new(client, 443);
        let server = EchoServer::start(world.client.namespace(), address)?;
        assert_eq!(outcomes(internet, client)?, [Outcome::Silent; 3]);
        assert_eq!(server.received().udp_packets, 0);
    }
    world.check("the other way", ACCEPTED, ACCEPTED);
    Ok(())
}

/// An address in a network that is routed behind a vif, of IPv4 and of IPv6.
fn routed(number: u8) -> Result<[IpAddr; 2]> {
    Ok([format!("10.9.0.{number}").parse()?, format!("fd09:9::{number}").parse()?])
}

/// From now on, the client sends with these source addresses.
fn send_as(client: &Client, sources: [IpAddr; 2]) -> Result<()> {
    let gateways = [rig::GATEWAY_V4.to_string(), rig::GATEWAY_V6.to_string()];
    for ((source, gateway), family) in sources.into_iter().zip(gateways).zip(["-4", "-6"]) {
        let source = source.to_string();
        let namespace = client.namespace();
        namespace.ip(&[family, "address", "replace", &source, "dev", CLIENT_INTERFACE])?;
        let way = ["default", "via", &gateway, "dev", CLIENT_INTERFACE];
        namespace.ip(&[&[family, "route", "replace"][..], &way, &["src", &source]].concat())?;
    }
    Ok(())
}

/// Changes a route of both families in the netvm.
fn route(world: &World, what: &str, to: [&str; 2], way: &[&str]) -> Result<()> {
    for (family, to) in ["-4", "-6"].into_iter().zip(to) {
        world.rig.netvm().ip(&[&[family, "route", what, to], way].concat())?;
    }
    Ok(())
}

/// Waits until both addresses are clients behind a vif, or behind none.
fn wait_for_place(agent: &Agent, addresses: [IpAddr; 2], vif: Option<&str>) -> Result<()> {
    agent.wait_for(&format!("{addresses:?} behind {vif:?}"), |status| {
        let found = status.clients.iter().filter(|it| addresses.contains(&it.address));
        let places: Vec<_> = found.map(|it| (it.vif.as_deref(), it.settling)).collect();
        places == [(vif, false); 2]
    })
}

/// How many packets with an unknown source were counted.
fn unknown_sources(agent: &Agent) -> Result<u64> {
    let strays = agent.status()?.strays;
    Ok(strays.get("unknown-source").map_or(0, |counter| counter.packets))
}

#[test]
fn a_route_to_a_network_makes_its_addresses_with_rules_clients_of_that_vif() -> Result<()> {
    let world = World::new("routed")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let (other, _) = neighbour(&world, &agent)?;
    let (vif, from) = (world.client.vif(), world.client.namespace());
    let (networks, own) = (["10.9.0.0/24", "fd09:9::/64"], routed(7)?);
    route(&world, "add", networks, &["dev", vif])?;
    put(&agent, own, &[tcp_443()])?;
    wait_for_place(&agent, own, Some(vif))?;
    send_as(&world.client, own)?;
    check(from, "with rules", WEB.0, WEB.1);
    for address in own {
        let status = agent.client(address)?;
        ensure!(status.rules[0].counter.packets > 0, "{status:?}");
        ensure!(status.default_counter.packets > 0, "{status:?}");
    }
    // A neighbour without rules is nobody, and what it sends is said to be that.
    send_as(&world.client, routed(8)?)?;
    let before = unknown_sources(&agent)?;
    check(from, "without rules", SILENT, SILENT);
    ensure!(unknown_sources(&agent)? > before, "not counted");
    send_as(&world.client, own)?;
    // A route to the address alone wins, and so does one to a smaller network, wherever it leads.
    let hosts = ["10.9.0.7", "fd09:9::7"];
    route(&world, "add", hosts, &["dev", other.vif()])?;
    wait_for_place(&agent, own, Some(other.vif()))?;
    check(from, "elsewhere", SILENT, SILENT);
    send_as(&other, own)?;
    check(other.namespace(), "there", WEB.0, WEB.1);
    route(&world, "delete", hosts, &[])?;
    wait_for_place(&agent, own, Some(vif))?;
    let smaller = ["10.9.0.0/28", "fd09:9::/112"];
    route(&world, "add", smaller, &["dev", rig::UPLINK])?;
    wait_for_place(&agent, own, None)?;
    check(from, "upstream", SILENT, SILENT);
    route(&world, "delete", smaller, &[])?;
    wait_for_place(&agent, own, Some(vif))?;
    check(from, "again", WEB.0, WEB.1);
    // By way of the router's own address is the same.
    route(&world, "delete", networks, &[])?;
    wait_for_place(&agent, own, None)?;
    check(from, "without a route", SILENT, SILENT);
    for ((family, network), via) in ["-4", "-6"].into_iter().zip(networks).zip([world.v4, world.v6])
    {
        let via = via.to_string();
        world.rig.netvm().ip(&[family, "route", "add", network, "via", &via, "dev", vif])?;
    }
    wait_for_place(&agent, own, Some(vif))?;
    check(from, "by way of the router", WEB.0, WEB.1);
    // A default route is not for anybody's addresses.
    route(&world, "delete", networks, &[])?;
    route(&world, "add", ["default"; 2], &["dev", vif, "metric", "4000"])?;
    wait_for_place(&agent, own, None)?;
    check(from, "a default route", SILENT, SILENT);
    Ok(())
}
