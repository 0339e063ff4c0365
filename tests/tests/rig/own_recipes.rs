//! The recipes of docs/own-rules.md, run as they stand there, and real packets.
//! Never has a rule of nftables that a recipe should have.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use firewall_core::told::status::ClientStatus;
use firewall_tests::oracle::{Proto, Rule, Ruleset};
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{Client, ClientSpec, INTERNET_V4, UPLINK_V4};
use firewall_tests::stock::{Netvm, VIF_GROUP, VIRTUAL_RESOLVERS};
use firewall_tests::traffic::probe::{OpenFlow, Outcome, Probe, SILENCE};
use nix::libc;

use super::marks::{LONG, add_second_link};
use super::monitor::Monitor;
use super::world::*;

const ABOUT: &str = "docs/own-rules.md";
const DNS: u16 = 53;

/// What the recipes call a qube's own firewall.
const QUBE: &str = "table ip qubes {
    chain custom-input {}
    chain input {
        type filter hook input priority filter; policy drop;
        jump custom-input
        ct state invalid drop
        ct state established,related accept
        iif lo accept
    }
}";

fn page() -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(ABOUT);
    fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
}

/// What is to be typed for a recipe, block by block.
pub fn recipe<const N: usize>(heading: &str) -> Result<[String; N]> {
    let page = page()?;
    let mut sections = page.split("\n### ").flat_map(|it| it.split("\n## "));
    let section = sections.find(|it| it.lines().next() == Some(heading));
    let section = section.with_context(|| format!("{ABOUT} has no `{heading}`"))?;
    let blocks = section.split("\n```sh\n").skip(1);
    let blocks: Vec<String> =
        blocks.map(|it| it.split("\n```").next().unwrap_or_default().to_owned()).collect();
    let count = blocks.len();
    <[String; N]>::try_from(blocks).map_err(|_| anyhow::anyhow!("`{heading}` has {count} blocks"))
}

/// Types what a recipe says.
pub fn run(at: &Namespace, commands: &str) -> Result<()> {
    let mut shell = Command::new("sh");
    let status = at.spawn(shell.args(["-euc", commands]))?.wait()?;
    ensure!(status.success(), "{status}: {commands}");
    Ok(())
}

/// Two clients, of which the second may do nothing, with an agent.
pub struct Scene {
    pub world: World,
    pub agent: Agent,
    other: Client,
    other_v4: IpAddr,
}

/// What differs between the modes: in `qubes`, Qubes' own tables are there as well, in the netvm and
/// in the qubes.
pub const MODES: [&str; 2] = ["qubes", "standalone"];

impl Scene {
    pub fn new(label: &str, mode: &str, rules: &[Rule]) -> Result<Self> {
        let world = World::new(&format!("{label}_{mode}"))?;
        let other = world.rig.add_client(&ClientSpec::numbered(13))?;
        let other_v4 = other.spec().v4.context("no IPv4 address")?.into();
        fs::write(world.rig.directory().join("resolv.conf"), "nameserver 198.51.100.7\n")?;
        if mode == "qubes" {
            let vif = |client: &Client| (client.vif().to_owned(), client.spec().addresses());
            let vifs = vec![vif(&world.client), vif(&other)];
            let netvm = Netvm { vifs, absent: Vec::new(), resolvers: vec![SERVER4] };
            world.rig.netvm().nft(&netvm.base())?;
            for client in [&world.client, &other] {
                world.rig.netvm().ip(&["link", "set", client.vif(), "group", VIF_GROUP])?;
                client.namespace().nft(QUBE)?;
            }
        }
        let agent = world.start_with(&["--mode", mode])?;
        agent.wait_for_vif(other.vif())?;
        world.put(&agent, rules)?;
        agent.put(other_v4, &Ruleset { default_accept: false, rules: Vec::new() })?;
        Ok(Self { world, agent, other, other_v4 })
    }

    pub fn netvm(&self) -> &Namespace {
        self.world.rig.netvm()
    }

    /// Types what a recipe says in the netvm, and waits until the agent has seen that it is so.
    pub fn run(&self, commands: &str) -> Result<()> {
        let rules = commands.matches("qubes-firewall").count();
        let before = self.agent.status()?.agent.added_rules.len();
        run(self.netvm(), commands)?;
        self.agent.wait_for("listed", |status| status.agent.added_rules.len() == before + rules)
    }

    /// Whether it has a TCP connection, and the echo of a UDP packet.
    #[track_caller]
    fn reaches(&self, name: &str, from: &Namespace, to: SocketAddr) {
        for probe in [Probe::tcp(from, to), Probe::udp(from, to)] {
            let outcome = probe.run(LONG).expect("a probe");
            assert_eq!(outcome, Outcome::Accepted, "{name}: {probe:?}\n{}", self.agent.log());
        }
    }

    /// Whether a TCP connection and a UDP packet come to this.
    #[track_caller]
    fn fails(&self, name: &str, from: &Namespace, to: SocketAddr, expected: Outcome) {
        for probe in [Probe::tcp(from, to), Probe::udp(from, to)] {
            let outcome = probe.run(SILENCE).expect("a probe");
            assert_eq!(outcome, expected, "{name}: {probe:?}\n{}", self.agent.log());
        }
    }
}

/// Packets that a client's policy denied, and that passed as answers.
fn denied_and_answers(client: &ClientStatus) -> [u64; 2] {
    let counted = |reason| client.counters.get(reason).map_or(0, |it| it.packets);
    [client.default_counter.packets, counted("answer")]
}

/// Makes room for many packets that are not read yet.
fn make_room(socket: &UdpSocket) -> Result<()> {
    let size: libc::c_int = 64 << 20;
    // SAFETY: the kernel reads one number, of the size that it is told.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            u32::try_from(size_of_val(&size))?,
        )
    };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}

/// Has a qube that may send nothing answer one packet with thousands, much faster than denied packets
/// are answered; returns how many came.
fn flood_of_answers(
    qube: &Namespace,
    at: SocketAddr,
    internet: &Namespace,
    to: SocketAddr,
) -> Result<u64> {
    const AT_ONCE: usize = 4_000;
    let server = qube.run(|| Ok(UdpSocket::bind(at)?))?;
    let outside = internet.run(|| Ok(UdpSocket::bind((INTERNET_V4, 0))?))?;
    make_room(&outside)?;
    for socket in [&server, &outside] {
        socket.set_read_timeout(Some(LONG))?;
    }
    outside.send_to(b"question", to)?;
    let (_, peer) = server.recv_from(&mut [0; 16])?;
    let mut came = 0;
    for _ in 0..5 {
        for _ in 0..AT_ONCE {
            server.send_to(b"answer", peer)?;
        }
        for _ in 0..AT_ONCE {
            let (_, from) = outside.recv_from(&mut [0; 16]).with_context(|| format!("{came}"))?;
            assert_eq!(from, to, "not translated");
            came += 1;
        }
    }
    Ok(came)
}

#[test]
fn a_port_leads_to_a_qube_that_may_send_nothing_and_its_answers_are_told_as_answers() -> Result<()>
{
    for mode in MODES {
        let scene = Scene::new("port", mode, &[])?;
        let (internet, qube) = (scene.world.rig.internet(), scene.world.client.namespace());
        let (outside, inside) =
            (SocketAddr::new(UPLINK_V4.into(), 8080), SocketAddr::new(scene.world.v4, 8000));
        let (mut monitor, _) = Monitor::start(&scene.agent, &["--json"])?;
        if mode == "qubes" {
            let [netvm, own] = recipe("A port leads to a qube, on Qubes OS")?;
            scene.run(&netvm)?;
            run(qube, &own)?;
        } else {
            let [netvm] = recipe("A port leads to a client, in mode standalone")?;
            scene.run(&netvm)?;
        }
        let server = EchoServer::start(qube, inside)?;
        scene.reaches(mode, internet, outside);
        let mut flow = OpenFlow::open(internet, outside, LONG)?;
        ensure!(flow.exchange(LONG)?, "{mode}: a connection");
        drop(server);
        let came = flood_of_answers(qube, inside, internet, outside)?;
        let [denied, answers] = denied_and_answers(&scene.agent.client(scene.world.v4)?);
        assert_eq!(denied, 0, "{mode}: answers that were counted as denied");
        ensure!(answers >= came, "{mode}: {answers} of {came} were counted");
        // The first that is told is the first that is denied.
        scene.fails(mode, qube, SocketAddr::new(SERVER4, 443), PROHIBITED4);
        let mut told = monitor.denied()?;
        // The kernel of a client has things to say for itself, by IPv6.
        while told.source != Some(scene.world.v4) {
            told = monitor.denied()?;
        }
        assert_eq!((told.destination, told.port), (Some(SERVER4), 443), "{mode}");
        // Nothing else leads there, and not to the other qube.
        // In mode qubes, the netvm's own input rules say nothing.
        let netvms = if mode == "qubes" { Outcome::Silent } else { Outcome::Refused };
        scene.fails(mode, internet, SocketAddr::new(UPLINK_V4.into(), 8081), netvms);
    }
    Ok(())
}

#[test]
fn two_qubes_talk_where_rules_and_a_recipe_let_them() -> Result<()> {
    let ssh = Rule { proto: Some(Proto::Tcp), ports: Some((22, 22)), ..Rule::all(true) };
    for mode in MODES {
        let scene = Scene::new("talk", mode, std::slice::from_ref(&ssh))?;
        let (qube, other) = (scene.world.client.namespace(), scene.other.namespace());
        let [on_qubes, standalone, own] = recipe("Two qubes talk")?;
        let to = SocketAddr::new(scene.other_v4, 22);
        let servers = [(other, scene.other_v4), (qube, scene.world.v4)];
        let servers =
            servers.map(|(at, address)| EchoServer::start(at, SocketAddr::new(address, 22)));
        let _servers: Vec<EchoServer> = servers.into_iter().collect::<Result<_>>()?;
        assert_eq!(Probe::tcp(qube, to).run(SILENCE)?, Outcome::Silent, "{mode}: before");
        if mode == "qubes" {
            scene.run(&on_qubes)?;
            run(other, &own)?;
        } else {
            scene.run(&standalone)?;
        }
        assert_eq!(Probe::tcp(qube, to).run(LONG)?, Outcome::Accepted, "{mode}");
        let mut flow = OpenFlow::open(qube, to, LONG)?;
        ensure!(flow.exchange(LONG)?, "{mode}: a connection");
        let [denied, answers] = denied_and_answers(&scene.agent.client(scene.other_v4)?);
        ensure!(denied == 0 && answers > 0, "{mode}: {denied} denied, {answers} answers");
        // The other way, and by another protocol. Which of two tables comes first, and whether it
        // answers, is not said.
        for probe in [
            Probe::tcp(other, SocketAddr::new(scene.world.v4, 22)),
            Probe::udp(other, SocketAddr::new(scene.world.v4, 22)),
            Probe::udp(qube, to),
        ] {
            let outcome = probe.run(SILENCE)?;
            ensure!(
                [PROHIBITED4, Outcome::Silent].contains(&outcome),
                "{mode}: {probe:?} {outcome}"
            );
        }
    }
    Ok(())
}

#[test]
fn nothing_leaves_beside_a_tunnel_that_is_gone() -> Result<()> {
    for mode in MODES {
        let scene = Scene::new("kill", mode, &[Rule::all(true)])?;
        let (netvm, qube) = (scene.netvm(), scene.world.client.namespace());
        add_second_link(netvm, scene.world.rig.internet())?;
        let [commands] = recipe("Nothing leaves beside the tunnel")?;
        scene.run(&commands)?;
        let servers = [SERVER4, SERVER6].map(|it| SocketAddr::new(it, 443));
        let lead = |v4: &str, v6: &str| -> Result<()> {
            netvm.ip(&["route", "replace", "default", "via", v4])?;
            netvm.ip(&["-6", "route", "replace", "default", "via", v6])?;
            Ok(())
        };
        let check = |name: &str, expected: Outcome| {
            for server in servers {
                let probe = Probe::tcp(qube, server);
                let patience = if expected == Outcome::Silent { SILENCE } else { LONG };
                assert_eq!(
                    probe.run(patience).expect("a probe"),
                    expected,
                    "{mode}: {name}, {server}"
                );
            }
        };
        lead("192.0.3.1", "2001:db8:fffe::1")?;
        check("by the tunnel", Outcome::Accepted);
        netvm.ip(&["link", "set", "wg0", "down"])?;
        lead("192.0.2.1", "2001:db8:ffff::1")?;
        check("the tunnel is down", Outcome::Silent);
        netvm.nft("delete table inet kill-switch")?;
        check("without the recipe", Outcome::Accepted);
    }
    Ok(())
}

#[test]
fn only_one_qube_takes_the_tunnel() -> Result<()> {
    for mode in MODES {
        let scene = Scene::new("split", mode, &[Rule::all(true)])?;
        let netvm = scene.netvm();
        for address in scene.other.spec().addresses() {
            let all = Ruleset { default_accept: true, rules: Vec::new() };
            scene.agent.put(address, &all)?;
        }
        let internet = scene.world.rig.internet();
        add_second_link(netvm, internet)?;
        let [commands] = recipe("Only one qube takes the tunnel")?;
        scene.run(&commands)?;
        // Where packets come from says by which link.
        let peer_of = |qube: &Namespace| -> Result<IpAddr> {
            let to = SocketAddr::new(SERVER4, 7);
            let server = internet.run(|| Ok(UdpSocket::bind(to)?))?;
            let client = qube.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
            client.set_read_timeout(Some(LONG))?;
            server.set_read_timeout(Some(LONG))?;
            client.send_to(b"by which way", to)?;
            let (_, peer) = server.recv_from(&mut [0; 16])?;
            server.send_to(b"that", peer)?;
            client.recv_from(&mut [0; 16]).context("no answer")?;
            Ok(peer.ip())
        };
        let (one, other) = (scene.world.client.namespace(), scene.other.namespace());
        assert_eq!(peer_of(one)?, IpAddr::from(Ipv4Addr::new(192, 0, 3, 2)), "{mode}");
        assert_eq!(peer_of(other)?, IpAddr::from(UPLINK_V4), "{mode}");
        let server = SocketAddr::new(SERVER6, 443);
        let no_route = Outcome::Rejected { icmp_type: 1, icmp_code: 0 };
        assert_eq!(Probe::tcp(one, server).run(LONG)?, no_route, "{mode}");
        assert_eq!(Probe::tcp(other, server).run(LONG)?, Outcome::Accepted, "{mode}");
    }
    Ok(())
}

#[test]
fn another_qube_answers_dns_of_all_but_itself() -> Result<()> {
    let dns = |proto| Rule { proto: Some(proto), ports: Some((DNS, DNS)), ..Rule::all(true) };
    for mode in MODES {
        let scene = Scene::new("dns", mode, &[dns(Proto::Udp), dns(Proto::Tcp)])?;
        let (qube, other) = (scene.world.client.namespace(), scene.other.namespace());
        let real = EchoServer::start(scene.world.rig.internet(), SocketAddr::new(SERVER4, DNS))?;
        let own = EchoServer::start(other, SocketAddr::new(scene.other_v4, DNS))?;
        let virtual_ones = VIRTUAL_RESOLVERS.map(|it| SocketAddr::new(it.into(), DNS));
        scene.reaches(mode, qube, virtual_ones[0]);
        ensure!(real.received().udp_packets == 1, "{mode}: {:?}", real.received());
        let [common, on_qubes, standalone, input] = recipe("Another qube answers DNS")?;
        scene.run(&common)?;
        if mode == "qubes" {
            scene.run(&on_qubes)?;
            run(other, &input)?;
        } else {
            scene.run(&standalone)?;
        }
        for to in virtual_ones {
            scene.reaches(mode, qube, to);
        }
        assert_eq!(own.received().udp_packets, 2, "{mode}: {:?}", own.received());
        assert_eq!(real.received().udp_packets, 1, "{mode}: {:?}", real.received());
        let [denied, answers] = denied_and_answers(&scene.agent.client(scene.other_v4)?);
        ensure!(denied == 0 && answers > 0, "{mode}: {denied} denied, {answers} answers");
        // What answers asks the real one.
        scene.agent.put(scene.other_v4, &Ruleset { default_accept: true, rules: Vec::new() })?;
        scene.reaches(mode, other, virtual_ones[0]);
        assert_eq!(real.received().udp_packets, 2, "{mode}: {:?}", real.received());
    }
    Ok(())
}

#[test]
fn each_recipe_is_tried() -> Result<()> {
    let page = page()?;
    let Some((_, recipes)) = page.split_once("\n## Recipes") else { bail!("no recipes") };
    let tests = [include_str!("own_recipes.rs"), include_str!("own_rules.rs")].concat();
    let headings: Vec<&str> = recipes.lines().filter_map(|it| it.strip_prefix("### ")).collect();
    ensure!(headings.len() > 5, "{headings:?}");
    for heading in headings {
        ensure!(tests.contains(&format!("recipe(\"{heading}\")")), "nobody tries `{heading}`");
    }
    Ok(())
}
