//! What real packets meet.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets::{self, V4};
use firewall_tests::rig::CLIENT_INTERFACE;
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::rig::server::EchoServer;
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};

use super::world::*;

#[test]
fn rules_decide_about_real_packets_and_count_them() -> Result<()> {
    let world = World::new("rules")?;
    let agent = world.start()?;
    world.check("no rules yet", SILENT, SILENT);
    world.put(&agent, &[tcp_443(), ping()])?;
    use Outcome::Accepted;
    world.check(
        "tcp 443 and ping",
        [Accepted, PROHIBITED4, PROHIBITED4, Accepted],
        [Accepted, PROHIBITED6, PROHIBITED6, Accepted],
    );
    for client in [world.v4, world.v6] {
        let status = agent.client(client)?;
        let [tcp, ping] = &status.rules[..] else { bail!("{status:?}") };
        // A handshake and its end take three packets or more, of at least 54 bytes.
        assert!(tcp.counter.packets >= 3 && tcp.counter.bytes >= 54 * 3, "{tcp:?}");
        assert_eq!(ping.counter.packets, 1, "{ping:?}");
        // One datagram, and one SYN: an "admin prohibited" ends the attempt.
        assert!(status.default_counter.packets >= 2, "{status:?}");
    }
    assert_eq!(agent.status()?.strays.get("unknown-source"), None);
    world.put(&agent, &[])?;
    world.check("nothing", ALL_PROHIBITED4, ALL_PROHIBITED6);
    world.put(&agent, &[Rule::all(true)])?;
    world.check("everything", ACCEPTED, ACCEPTED);
    agent.wait_for_log("vif12.0: 10.137.0.12 to 198.51.100.7:80/udp: rejected by default")
}

#[test]
fn a_rule_change_bites_at_the_next_packet_of_an_open_connection() -> Result<()> {
    let world = World::new("change")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    let mut flows = Vec::new();
    for server in [SERVER4, SERVER6] {
        let to = SocketAddr::new(server, 443);
        let mut flow = OpenFlow::open(world.client.namespace(), to, PATIENCE)?;
        ensure!(flow.exchange(PATIENCE)?, "the flow does not work at first");
        flows.push(flow);
    }
    world.put(&agent, &[ping()])?;
    for flow in &mut flows {
        ensure!(!flow.exchange(SILENCE)?, "a flow goes on although no rule accepts it");
    }
    let denied = agent.client(world.v4)?.default_counter.packets;
    ensure!(denied > 0, "the cut flow's packets were not counted");
    Ok(())
}

#[test]
fn answers_to_connections_towards_a_client_pass_although_its_rules_drop() -> Result<()> {
    let world = World::new("inbound")?;
    // Without NAT, and with a way back, the internet can open connections to the client.
    let agent = Agent::start(&world.rig, &["--mode", "qubes"])?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[])?;
    let netvm4 = firewall_tests::rig::UPLINK_V4.to_string();
    let netvm6 = firewall_tests::rig::UPLINK_V6.to_string();
    let internet = world.rig.internet();
    internet.ip(&["route", "add", &world.v4.to_string(), "via", &netvm4])?;
    internet.ip(&["-6", "route", "add", &world.v6.to_string(), "via", &netvm6])?;
    for client in [world.v4, world.v6] {
        let address = SocketAddr::new(client, 7);
        let _server = EchoServer::start(world.client.namespace(), address)?;
        for probe in [Probe::tcp(internet, address), Probe::udp(internet, address)] {
            assert_eq!(probe.run(SILENCE)?, Outcome::Accepted, "{probe:?}");
        }
        assert_eq!(Probe::ping(internet, client).run(SILENCE)?, Outcome::Accepted);
        // An error of the client about such a connection passes as well.
        let closed = Probe::udp(internet, SocketAddr::new(client, 9));
        assert_eq!(closed.run(SILENCE)?, Outcome::Refused);
    }
    world.check("the client itself", ALL_PROHIBITED4, ALL_PROHIBITED6);
    Ok(())
}

#[test]
fn odd_frames_from_a_vif_are_dropped_and_counted() -> Result<()> {
    let world = World::new("frames")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let (IpAddr::V4(source), IpAddr::V4(server)) = (world.v4, SERVER4) else {
        bail!("not IPv4");
    };
    let udp = packets::udp(1, 80);
    let plain = V4::new(source, server, packets::UDP, &udp).packet();
    let spoofed = V4::new(Ipv4Addr::new(10, 137, 0, 99), server, packets::UDP, &udp).packet();
    let routed = V4 {
        options: vec![131, 7, 4, 198, 51, 100, 7],
        ..V4::new(source, server, packets::UDP, &udp)
    };
    let tagged = |inner: &[u8]| [&[0, 0, 0x08, 0x00], inner].concat();
    let double = [vec![0, 0, 0x81, 0x00], tagged(&plain)].concat();
    let frames = [
        ("tagged", 0x8100, tagged(&plain)),
        ("tagged", 0x88a8, double.clone()),
        ("tagged", 0x8100, double),
        ("foreign-ethertype", 0x8847, plain.clone()),
        ("unknown-source", 0x0800, spoofed),
        ("source-route", 0x0800, routed.packet()),
        ("malformed", 0x0800, vec![0x44; 40]),
    ];
    let to_vif = |ethertype: u16, payload: &[u8]| {
        let mut frame = packets::ethernet(ethertype, payload);
        // The vif's address, as `VIF_MAC` writes it.
        frame[..6].copy_from_slice(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
        frame
    };
    for (reason, ethertype, payload) in &frames {
        let count = || -> Result<u64> {
            Ok(agent.status()?.strays.get(*reason).map_or(0, |counter| counter.packets))
        };
        let before = count()?;
        let frame = to_vif(*ethertype, payload);
        frames::send_raw(world.client.namespace(), CLIENT_INTERFACE, &frame)?;
        agent.wait_for(reason, |_| count().is_ok_and(|now| now == before + 1))?;
    }
    // The same datagram, plain, does arrive.
    let mut arrivals = frames::capture(world.rig.internet(), "eth0")?;
    frames::send_raw(world.client.namespace(), CLIENT_INTERFACE, &to_vif(0x0800, &plain))?;
    let is_it = |frame: &[u8]| frame.get(23) == Some(&packets::UDP);
    ensure!(arrivals.wait_for(is_it, PATIENCE)?.is_some(), "the plain datagram is lost");
    Ok(())
}

#[test]
fn replacing_a_policy_under_traffic_never_shows_another_than_the_old_or_the_new() -> Result<()> {
    let world = World::new("replace")?;
    let agent = world.start()?;
    let denied = SocketAddr::new(SERVER4, 82);
    let allowed = SocketAddr::new(SERVER4, 83);
    let denied_server = EchoServer::start(world.rig.internet(), denied)?;
    let allowed_server = EchoServer::start(world.rig.internet(), allowed)?;
    // Both rulesets accept port 83 and deny port 82, in very different tables.
    let udp = |accept, port| Rule {
        proto: Some(Proto::Udp),
        ports: Some((port, port)),
        ..Rule::all(accept)
    };
    let one = Ruleset {
        default_accept: true,
        rules: vec![Rule { network: Some((SERVER4, 32)), ..udp(false, 82) }],
    };
    let network = |index: u32| Some((Ipv4Addr::from_bits(0xc633_6400 + index).into(), 32));
    let many = (0..400).map(|index| Rule { network: network(index % 256), ..udp(true, 83) });
    let other = Ruleset { default_accept: false, rules: many.collect() };
    agent.put(world.v4, &one)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| {
            world.client.namespace().run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.set_nonblocking(true)?;
                let mut sent = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"no", denied);
                    // The answer to the one before can make this call fail; then it was
                    // not sent.
                    sent += u64::from(socket.send_to(b"yes", allowed).is_ok());
                    // Few enough on their way for any socket's buffer, on any machine: what
                    // does not arrive then was lost in the netvm.
                    let arrives =
                        allowed_server.wait_until(|it| it.udp_packets + 32 > sent, PATIENCE);
                    ensure!(arrives, "{sent} sent, {:?} arrived", allowed_server.received());
                }
                Ok(sent)
            })
        });
        let swaps = (0..100)
            .try_for_each(|index| agent.put(world.v4, if index % 2 == 0 { &other } else { &one }));
        done.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("no panic")?;
        swaps?;
        ensure!(sent > 1000, "only {sent} packets");
        let all = allowed_server.wait_until(|it| it.udp_packets == sent, PATIENCE);
        ensure!(all, "{sent} allowed, {} arrived", allowed_server.received().udp_packets);
        Ok(())
    })?;
    assert_eq!(denied_server.received().udp_packets, 0);
    Ok(())
}

#[test]
fn dns_to_the_virtual_resolvers_reaches_the_real_one_where_rules_allow_it() -> Result<()> {
    let world = World::new("dns")?;
    let real: IpAddr = [198, 51, 100, 53].into();
    world.rig.add_internet_address(real)?;
    let _resolver = EchoServer::start(world.rig.internet(), SocketAddr::new(real, 53))?;
    fs::write(world.rig.directory().join("resolv.conf"), format!("nameserver {real}\n"))?;
    let agent = world.start()?;
    let dns = Rule { dns: true, ..Rule::all(true) };
    let probe = |address: IpAddr, port| {
        Probe::udp(world.client.namespace(), SocketAddr::new(address, port)).run(SILENCE)
    };
    let all = Rule::all(true);
    for (rules, expected) in [
        (vec![dns], Outcome::Accepted),
        (vec![Rule { network: Some((real, 24)), ..Rule::all(true) }], Outcome::Accepted),
        (vec![Rule { network: Some((real, 24)), ..Rule::all(false) }, Rule::all(true)], {
            Outcome::Accepted
        }),
        (vec![Rule { network: Some(([10, 0, 0, 0].into(), 8)), ..Rule::all(false) }, all], {
            Outcome::Accepted
        }),
        (vec![], PROHIBITED4),
    ] {
        agent.put(world.v4, &Ruleset { default_accept: false, rules })?;
        for virtual_resolver in [[10, 139, 1, 1], [10, 139, 1, 2]] {
            assert_eq!(probe(virtual_resolver.into(), 53)?, expected);
        }
    }
    Ok(())
}

#[test]
fn dns_rules_and_redirection_follow_resolv_conf() -> Result<()> {
    let world = World::new("resolv")?;
    let servers: [IpAddr; 2] = [[198, 51, 100, 53].into(), [198, 51, 100, 54].into()];
    let mut running = Vec::new();
    for server in servers {
        world.rig.add_internet_address(server)?;
        running.push(EchoServer::start(world.rig.internet(), SocketAddr::new(server, 53))?);
    }
    let resolv_conf = world.rig.directory().join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver\t{}\n", servers[0]))?;
    let agent = world.start()?;
    let dns = Rule { dns: true, ..Rule::all(true) };
    agent.put(world.v4, &Ruleset { default_accept: false, rules: vec![dns] })?;
    let probe = |address: IpAddr| {
        Probe::udp(world.client.namespace(), SocketAddr::new(address, 53)).run(SILENCE)
    };
    let virtual_resolver = [10, 139, 1, 1].into();
    assert_eq!(probe(virtual_resolver)?, Outcome::Accepted);
    assert_eq!([probe(servers[0])?, probe(servers[1])?], [Outcome::Accepted, PROHIBITED4]);
    // Replaced, as network managers do it, with lines that are none among it.
    let aside = resolv_conf.with_extension("new");
    fs::write(
        &aside,
        format!("nameserver\nnameserver fe80::1%eth0\nnameserver  {} x\n", servers[1]),
    )?;
    fs::rename(aside, &resolv_conf)?;
    agent.wait_for("new resolvers", |status| status.agent.resolvers == servers[1..])?;
    agent.wait_for_settled()?;
    assert_eq!([probe(servers[0])?, probe(servers[1])?], [PROHIBITED4, Outcome::Accepted]);
    assert_eq!(probe(virtual_resolver)?, Outcome::Accepted);
    ensure!(running[1].received().udp_packets == 2, "DNS went elsewhere");
    // None at all: nothing may leave for a resolver that does not exist.
    fs::write(&resolv_conf, "")?;
    agent.wait_for("no resolvers", |status| status.agent.resolvers.is_empty())?;
    assert_eq!(probe(virtual_resolver)?, Outcome::Silent);
    Ok(())
}
