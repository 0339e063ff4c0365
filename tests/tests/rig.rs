//! Ring 3: does the product work? The real agent in a netvm of namespaces, real sockets,
//! real nft. Needs root.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firewall_agent::status::State;
use firewall_tests::agent::{Agent, PATIENCE, write_rules};
use firewall_tests::frames;
use firewall_tests::namespace::Namespace;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::packets::{self, V4};
use firewall_tests::probe::{OpenFlow, Outcome, Probe, SILENCE};
use firewall_tests::rig::{CLIENT_INTERFACE, Client, ClientSpec, Rig};
use firewall_tests::server::EchoServer;

const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7));
const PROHIBITED4: Outcome = Outcome::Rejected { icmp_type: 3, icmp_code: 13 };
const PROHIBITED6: Outcome = Outcome::Rejected { icmp_type: 1, icmp_code: 1 };

/// A rig with an internet that answers on two ports, and one client.
struct World {
    rig: Rig,
    client: Client,
    v4: IpAddr,
    v6: IpAddr,
    _servers: Vec<EchoServer>,
}

impl World {
    fn new(label: &str) -> Result<Self> {
        let rig = Rig::new(label)?;
        let mut servers = Vec::new();
        for server in [SERVER4, SERVER6] {
            rig.add_internet_address(server)?;
            for port in [443, 80] {
                let address = SocketAddr::new(server, port);
                servers.push(EchoServer::start(rig.internet(), address)?);
            }
        }
        let spec = ClientSpec::numbered(12);
        let client = rig.add_client(&spec)?;
        let (v4, v6) = (
            spec.v4.context("no IPv4 address")?.into(),
            spec.v6.context("no IPv6 address")?.into(),
        );
        Ok(Self { rig, client, v4, v6, _servers: servers })
    }

    fn start(&self) -> Result<Agent> {
        let agent = Agent::start(&self.rig, &[])?;
        agent.wait_for_vif(self.client.vif())?;
        Ok(agent)
    }

    fn put(&self, agent: &Agent, rules: &[Rule]) -> Result<()> {
        let rules = Ruleset { default_accept: false, rules: rules.to_vec() };
        agent.put(self.v4, &rules)?;
        agent.put(self.v6, &rules)
    }

    /// TCP to port 443, TCP to port 80, UDP to port 80, ping; IPv4, then IPv6.
    #[track_caller]
    fn check(&self, name: &str, v4: [Outcome; 4], v6: [Outcome; 4]) {
        check(self.client.namespace(), name, v4, v6);
    }
}

#[track_caller]
fn check(from: &Namespace, name: &str, v4: [Outcome; 4], v6: [Outcome; 4]) {
    for (server, expected) in [(SERVER4, v4), (SERVER6, v6)] {
        let probes = [
            Probe::tcp(from, SocketAddr::new(server, 443)),
            Probe::tcp(from, SocketAddr::new(server, 80)),
            Probe::udp(from, SocketAddr::new(server, 80)),
            Probe::ping(from, server),
        ];
        let outcomes: Vec<Outcome> =
            probes.iter().map(|probe| probe.run(SILENCE).expect("a probe")).collect();
        assert_eq!(outcomes, expected, "{name}: {server}");
    }
}

const ACCEPTED: [Outcome; 4] = [Outcome::Accepted; 4];
const ALL_PROHIBITED4: [Outcome; 4] = [PROHIBITED4; 4];
const ALL_PROHIBITED6: [Outcome; 4] = [PROHIBITED6; 4];
const SILENT: [Outcome; 4] = [Outcome::Silent; 4];

fn tcp_443() -> Rule {
    Rule { proto: Some(Proto::Tcp), ports: Some((443, 443)), ..Rule::all(true) }
}

fn ping() -> Rule {
    Rule { proto: Some(Proto::Icmp), ..Rule::all(true) }
}

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
        let [tcp, ping] = &status.rules[..] else { panic!("{status:?}") };
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
    let log = agent.log();
    assert!(log.contains("10.137.0.12 to 198.51.100.7, protocol 17, port or type 80"), "{log}");
    Ok(())
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
fn after_sigkill_policies_go_on_and_a_new_vif_forwards_nothing() -> Result<()> {
    let world = World::new("sigkill")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    use Outcome::Accepted;
    let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
    let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
    agent.kill()?;
    world.check("dead agent", v4, v6);
    // A vif that comes while the agent is dead has no program: nothing is marked.
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
    // One program on each vif, not one for each agent.
    let links = fs::read_dir(world.rig.bpffs().join("firewall/v1"))?.count();
    assert_eq!(links, 2);
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
    world.check("without", ALL_PROHIBITED4, ALL_PROHIBITED6);
    let listed = list_ruleset(&world.rig)?;
    for table in ["table ip qubes-firewall", "table ip6 qubes-firewall"] {
        assert!(listed.contains(table), "{listed}");
    }
    assert!(listed.contains("run `firewall-agent show`"), "{listed}");
    Ok(())
}

fn list_ruleset(rig: &Rig) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(["list", "ruleset"]).stdout(std::process::Stdio::piped());
    let output = rig.netvm().spawn(&mut nft)?.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?)
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
fn a_bad_file_blocks_its_own_client_only_and_status_says_what_is_wrong() -> Result<()> {
    let world = World::new("badfile")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    world.check("good files", ACCEPTED, ACCEPTED);
    let path = agent.rules_of(world.v4);
    fs::write(&path, "policy = drop\n0000 = action=accept specialtarget=evil\ncommit\n")?;
    agent.wait_for_state(world.v4, State::Blocked)?;
    world.check("one bad file", ALL_PROHIBITED4, ACCEPTED);
    let problem = agent.client(world.v4)?.problem.context("no problem told")?;
    assert_eq!(problem.origin, path.display().to_string());
    assert_eq!(problem.line, Some(2));
    assert_eq!(problem.text, "action=accept specialtarget=evil");
    assert_eq!(problem.reason, "unknown special target `evil`");
    let output = cli(&agent, &["status"])?;
    assert_eq!(output.0, 1);
    let expected = format!(
        "PROBLEM: 10.137.0.12 is blocked: {}, line 2: unknown special target `evil` \
         in `action=accept specialtarget=evil`",
        path.display()
    );
    assert!(output.1.contains(&expected), "{}", output.1);
    Ok(())
}

/// Exit code and standard output of the agent's command line.
fn cli(agent: &Agent, arguments: &[&str]) -> Result<(i32, String)> {
    let output = Command::new(firewall_tests::agent::binary()?)
        .args(arguments)
        .arg("--socket")
        .arg(agent.socket())
        .output()?;
    Ok((output.status.code().context("a signal")?, String::from_utf8(output.stdout)?))
}

#[test]
fn show_and_status_tell_what_is_in_force() -> Result<()> {
    let world = World::new("show")?;
    let agent = world.start()?;
    world.put(&agent, &[tcp_443(), ping()])?;
    assert_eq!(Probe::ping(world.client.namespace(), SERVER4).run(SILENCE)?, Outcome::Accepted);
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("clients: 2 live, 0 blocked"), "{text}");
    let (code, text) = cli(&agent, &["show", "10.137.0.12"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("10.137.0.12 on vif12.0: live, generation "), "{text}");
    let line = |number: &str| {
        let mut lines = text.lines().filter(|line| line.trim_start().starts_with(number));
        lines.next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("0001"), "0001 action=accept proto=icmp 1 packets, 58 bytes");
    assert!(line("0000").ends_with("dstports=443-443 0 packets, 0 bytes"), "{text}");
    let (_, json) = cli(&agent, &["show", "10.137.0.12", "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(json["schema"], 1);
    assert_eq!(json["clients"][0]["rules"][1]["counter"]["packets"], 1);
    assert_eq!(cli(&agent, &["show", "10.137.0.99"])?.0, 0);
    let socket = agent.socket();
    agent.kill()?;
    let output = Command::new(firewall_tests::agent::binary()?)
        .args(["status", "--socket"])
        .arg(socket)
        .arg("--pins")
        .arg(world.rig.bpffs().join("firewall"))
        .output()?;
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr)?;
    assert!(text.contains("1 vifs go on"), "{text}");
    Ok(())
}

#[test]
fn deleting_or_half_writing_a_file_never_opens_anything() -> Result<()> {
    let world = World::new("halffile")?;
    let agent = world.start()?;
    let denied = SocketAddr::new(SERVER4, 80);
    let rules = Ruleset {
        default_accept: true,
        rules: vec![Rule { ports: Some((80, 80)), proto: Some(Proto::Udp), ..Rule::all(false) }],
    };
    agent.put(world.v4, &rules)?;
    assert_eq!(Probe::udp(world.client.namespace(), denied).run(SILENCE)?, PROHIBITED4);
    let counter = EchoServer::start(world.rig.internet(), SocketAddr::new(SERVER4, 81))?;
    let never = SocketAddr::new(SERVER4, 82);
    let watched = EchoServer::start(world.rig.internet(), never)?;
    let done = AtomicBool::new(false);
    let text = {
        let mut rules = rules.clone();
        let udp = Rule { proto: Some(Proto::Udp), ..Rule::all(false) };
        rules.rules.push(Rule { ports: Some((82, 82)), ..udp });
        rules.file()
    };
    // The whole file denies port 82. The client knocks there all the time, while the file
    // is cut at every byte, emptied and deleted.
    agent.put(world.v4, &Ruleset { default_accept: false, rules: Vec::new() })?;
    std::thread::scope(|scope| -> Result<()> {
        let knocking = scope.spawn(|| {
            world.client.namespace().run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                let mut sent = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    // A reject of an earlier one comes back here; it is no failure.
                    let _ = socket.send_to(b"knock", never);
                    sent += 1;
                    if sent % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
                Ok(sent)
            })
        });
        let path = agent.rules_of(world.v4);
        let outcome = (0..text.len()).try_for_each(|length| -> Result<()> {
            fs::write(&path, &text[..length])?;
            if length % 16 == 0 {
                agent.wait_for_state(world.v4, State::Blocked)?;
                fs::remove_file(&path)?;
                agent.wait_for_state(world.v4, State::Waiting)?;
            }
            Ok(())
        });
        let outcome = outcome.and_then(|()| {
            write_rules(world.rig.directory(), world.v4, &text)?;
            agent.wait_for_state(world.v4, State::Live)
        });
        done.store(true, Ordering::Relaxed);
        let sent = knocking.join().expect("no panic")?;
        ensure!(sent > 1000, "only {sent} knocks");
        outcome
    })?;
    assert_eq!(watched.received().udp_packets, 0);
    let open = Probe::udp(world.client.namespace(), SocketAddr::new(SERVER4, 81));
    assert_eq!(open.run(SILENCE)?, Outcome::Accepted);
    assert!(counter.received().udp_packets > 0);
    Ok(())
}

#[test]
fn odd_frames_from_a_vif_are_dropped_and_counted() -> Result<()> {
    let world = World::new("frames")?;
    let agent = world.start()?;
    world.put(&agent, &[Rule::all(true)])?;
    let IpAddr::V4(source) = world.v4 else { panic!("IPv4") };
    let IpAddr::V4(server) = SERVER4 else { panic!("IPv4") };
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
                    std::thread::sleep(Duration::from_micros(200));
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
fn clsact_filters_as_tcx_does_and_is_replaced_by_the_next_agent() -> Result<()> {
    let world = World::new("clsact")?;
    use Outcome::Accepted;
    let v4 = [Accepted, PROHIBITED4, PROHIBITED4, Accepted];
    let v6 = [Accepted, PROHIBITED6, PROHIBITED6, Accepted];
    for round in 0..2 {
        let agent = Agent::start(&world.rig, &["--attach", "clsact"])?;
        agent.wait_for_vif(world.client.vif())?;
        let status = agent.status()?;
        assert_eq!(status.vifs[0].attached.as_deref(), Some("clsact"));
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
    for (rules, expected) in [
        (vec![dns], Outcome::Accepted),
        (vec![Rule { network: Some((real, 24)), ..Rule::all(true) }], Outcome::Accepted),
        (vec![Rule { network: Some((real, 24)), ..Rule::all(false) }, Rule::all(true)], {
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
