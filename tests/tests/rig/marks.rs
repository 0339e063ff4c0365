//! Other people's rules and routes, of the kind that people run beside a firewall: whatever they do
//! to marks, connections and ways, what is accepted passes, and what is denied does not.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use firewall_common::abi::PERMIT;
use firewall_tests::oracle::{Proto, Rule};
use firewall_tests::rig::agent::Agent;
use firewall_tests::rig::namespace::Namespace;
use firewall_tests::rig::server::{EchoServer, Received};
use firewall_tests::rig::{CLIENT_INTERFACE, GATEWAY_V4, GATEWAY_V6, UPLINK_V4, UPLINK_V6};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::world::*;

/// No rule accepts it.
pub const DENIED: u16 = 81;
/// How long an answer is waited for.
pub const LONG: Duration = Duration::from_secs(5);

/// What people write, in a chain that is hooked anywhere before routing or in forwarding.
const WRITERS: [&str; 9] = [
    "meta mark set 0x1234",
    "meta mark set 0xca6c",
    "meta mark set meta mark or 0x2",
    "meta mark set meta mark and 0x00ffffff",
    "meta mark set ct mark",
    "meta mark set ct mark and 0xff",
    "ct mark set meta mark; meta mark set ct mark",
    "ct mark set meta mark and 0xff; meta mark set ct mark and 0xff",
    "meta mark set 0xffffffff; ct mark set 0xffffffff",
];

const PLACES: [(&str, &str); 9] = [
    ("prerouting", "-300"),
    ("prerouting", "-150"),
    ("prerouting", "-100"),
    ("prerouting", "-199"),
    ("prerouting", "0"),
    ("forward", "-150"),
    ("forward", "-1"),
    ("forward", "0"),
    ("forward", "10"),
];

/// As wg-quick loads it for an interface with a default route.
const WG_QUICK: &str = "table inet others {
    chain preraw {
        type filter hook prerouting priority -300
        iifname != \"wg0\" ip daddr 10.2.0.2 fib saddr type != local drop
    }
    chain premangle {
        type filter hook prerouting priority -150
        meta l4proto udp meta mark set ct mark
    }
    chain postmangle {
        type filter hook postrouting priority -150
        meta l4proto udp meta mark 0xca6c ct mark set meta mark
    }
}";

/// The same for a host that marks what it sends itself, and gives connections the mark.
const SPLIT_TUNNEL: &str = "table inet others {
    chain pre {
        type filter hook prerouting priority mangle
        ct mark 0x6d6f6c65 meta mark set ct mark
        iifname \"vif*\" meta mark set meta mark or 0x2 ct mark set meta mark
    }
    chain post {
        type filter hook postrouting priority mangle
        ct mark set meta mark
    }
}";

/// A chain at a place with what people write there; several rules are told apart by a semicolon.
fn writer(what: &str, (hook, priority): (&str, &str)) -> String {
    let rules = what.split("; ").map(|rule| format!("add rule inet others c {rule}\n"));
    format!(
        "add table inet others\n\
         add chain inet others c {{ type filter hook {hook} priority {priority}; }}\n{}",
        rules.collect::<String>()
    )
}

fn rules() -> Vec<Rule> {
    let port =
        |proto, port| Rule { proto: Some(proto), ports: Some((port, port)), ..Rule::all(true) };
    vec![port(Proto::Tcp, 443), port(Proto::Udp, 443), port(Proto::Udp, 53), ping()]
}

pub struct Scene {
    pub world: World,
    pub agent: Agent,
    pub denied: Vec<EchoServer>,
    _dns: Vec<EchoServer>,
}

impl Scene {
    pub fn new(label: &str, arguments: &[&str]) -> Result<Self> {
        let world = World::new(label)?;
        let agent = world.start_with(arguments)?;
        world.put(&agent, &rules())?;
        let servers = |port| -> Result<Vec<EchoServer>> {
            let servers = [SERVER4, SERVER6].map(|server| SocketAddr::new(server, port));
            servers.iter().map(|it| EchoServer::start(world.rig.internet(), *it)).collect()
        };
        let (denied, dns) = (servers(DENIED)?, servers(53)?);
        Ok(Self { world, agent, denied, _dns: dns })
    }

    pub fn netvm(&self) -> &Namespace {
        self.world.rig.netvm()
    }

    /// Whether anything that no rule accepts has ever come out.
    #[track_caller]
    pub fn nothing_leaked(&self, name: &str) {
        for server in &self.denied {
            assert_eq!(server.received(), Received::default(), "{name}: {}", server.address());
        }
    }

    /// What is accepted passes, and its answers.
    #[track_caller]
    pub fn accepted_passes(&self, name: &str) {
        let from = self.world.client.namespace();
        for server in [SERVER4, SERVER6] {
            for probe in [
                Probe::tcp(from, SocketAddr::new(server, 443)),
                Probe::udp(from, SocketAddr::new(server, 443)),
                Probe::udp(from, SocketAddr::new(server, 53)),
                Probe::ping(from, server),
            ] {
                let outcome = probe.run(LONG).expect("a probe");
                assert_eq!(outcome, Outcome::Accepted, "{name}: {probe:?}\n{}", self.agent.log());
            }
        }
    }

    /// What is denied does not leave, and who sent it is told.
    #[track_caller]
    pub fn denied_does_not(&self, name: &str) {
        let from = self.world.client.namespace();
        for (server, prohibited) in [(SERVER4, PROHIBITED4), (SERVER6, PROHIBITED6)] {
            let to = SocketAddr::new(server, DENIED);
            for probe in [Probe::tcp(from, to), Probe::udp(from, to)] {
                let outcome = probe.run(LONG).expect("a probe");
                assert_eq!(outcome, prohibited, "{name}: {probe:?}");
            }
        }
        self.nothing_leaked(name);
    }

    /// Checks what passes while a text of others is in force.
    #[track_caller]
    fn check(&self, name: &str, text: &str) {
        self.netvm().nft(text).expect("others' rules");
        self.accepted_passes(name);
        self.denied_does_not(name);
        self.without_others().expect("others' rules, removed");
    }

    fn without_others(&self) -> Result<()> {
        self.netvm().nft("delete table inet others")
    }
}

/// Zones by what a packet came in by, as hosts with overlapping networks have them.
const ZONES: &str = "table inet others {
    chain pre {
        type filter hook prerouting priority raw
        iifname \"vif*\" ct original zone set 7
    }
}";

/// As mwan3 does it: a connection gets a link by its mark, under a mask, before routing; and what
/// is marked already keeps it.
const MWAN3: &str = "table inet others {
    chain pick {
        numgen inc mod 2 0 meta mark set meta mark or 0x100 return
        meta mark set meta mark or 0x200
    }
    chain pre {
        type filter hook prerouting priority mangle
        meta mark and 0x3f00 == 0 meta mark set ct mark and 0x3f00
        meta mark and 0x3f00 == 0 ct state new jump pick
        ct mark set meta mark and 0x3f00
    }
}";

#[test]
fn whatever_others_do_to_marks_accepted_passes_and_denied_does_not() -> Result<()> {
    let scene = Scene::new("marks", &[])?;
    for what in WRITERS {
        for place in PLACES {
            scene.check(&format!("{what} at {place:?}"), &writer(what, place));
        }
    }
    for (name, text) in
        [("wg-quick", WG_QUICK), ("split tunnel", SPLIT_TUNNEL), ("zones", ZONES), ("mwan3", MWAN3)]
    {
        scene.check(name, text);
    }
    Ok(())
}

#[test]
fn nobody_sees_that_a_packet_was_accepted_in_its_mark() -> Result<()> {
    let scene = Scene::new("unseen", &[])?;
    scene.netvm().nft(
        "table inet others {
            chain pre { type filter hook prerouting priority raw; meta mark != 0 drop; }
            chain forward { type filter hook forward priority 10; meta mark != 0 drop; }
            chain post { type filter hook postrouting priority 300; meta mark != 0 drop; }
        }",
    )?;
    scene.accepted_passes("where marks are dropped");
    Ok(())
}

#[test]
fn a_permit_that_a_packet_brings_along_is_worth_nothing() -> Result<()> {
    let scene = Scene::new("permit", &[])?;
    let vif = scene.world.client.vif();
    // Nobody else can have the kernel take such a frame for its own.
    let octets = PERMIT.map(|octet| format!("{octet:02x}")).join(":");
    let address = format!("{octets}:00:01");
    scene.netvm().ip(&["link", "set", vif, "address", &address])?;
    let inside = scene.world.client.namespace();
    for gateway in [GATEWAY_V4.to_string(), GATEWAY_V6.to_string()] {
        let to = ["lladdr", &address, "dev", CLIENT_INTERFACE];
        inside.ip(&[&["neighbour", "replace", &gateway][..], &to].concat())?;
    }
    scene.accepted_passes("to an address like a permit");
    scene.denied_does_not("to an address like a permit");
    Ok(())
}

#[test]
fn after_a_tightening_nothing_passes_whatever_others_do_to_marks() -> Result<()> {
    let scene = Scene::new("tighter", &[])?;
    let world = &scene.world;
    let accepting: Vec<Rule> = [
        rules(),
        vec![Rule { proto: Some(Proto::Udp), ports: Some((DENIED, DENIED)), ..Rule::all(true) }],
    ]
    .concat();
    let mut received = 0;
    let all = || scene.denied.iter().map(|it| it.received().udp_packets).sum::<u64>();
    for what in WRITERS {
        scene.netvm().nft(&writer(what, ("prerouting", "-150")))?;
        world.put(&scene.agent, &accepting)?;
        let sockets: Vec<_> = [SERVER4, SERVER6]
            .map(|server| {
                world.client.namespace().run(|| {
                    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = std::net::UdpSocket::bind(any)?;
                    socket.connect(SocketAddr::new(server, DENIED))?;
                    socket.set_read_timeout(Some(LONG))?;
                    socket.send(b"yes")?;
                    ensure!(socket.recv(&mut [0; 8])? == 3, "no echo");
                    Ok(socket)
                })
            })
            .into_iter()
            .collect::<Result<_>>()?;
        received += 2;
        assert_eq!(all(), received, "{what}");
        world.put(&scene.agent, &rules())?;
        for socket in &sockets {
            for _ in 0..5 {
                // The answer to the one before can make this call fail.
                let _ = socket.send(b"no");
            }
        }
        // Whatever passed would have arrived before these.
        scene.accepted_passes(what);
        assert_eq!(all(), received, "{what}: after it was denied");
        scene.without_others()?;
    }
    Ok(())
}

#[test]
fn answers_and_errors_of_a_denied_client_pass_whatever_others_do_to_marks() -> Result<()> {
    let scene = Scene::new("answers", &["--mode", "qubes"])?;
    let world = &scene.world;
    world.put(&scene.agent, &[])?;
    let internet = world.rig.internet();
    internet.ip(&["route", "add", &world.v4.to_string(), "via", &UPLINK_V4.to_string()])?;
    internet.ip(&["-6", "route", "add", &world.v6.to_string(), "via", &UPLINK_V6.to_string()])?;
    let servers = [world.v4, world.v6].map(|client| SocketAddr::new(client, 7));
    let servers = servers.map(|at| EchoServer::start(world.client.namespace(), at));
    let servers: Vec<EchoServer> = servers.into_iter().collect::<Result<_>>()?;
    for place in PLACES {
        for what in WRITERS {
            scene.netvm().nft(&writer(what, place))?;
            for server in &servers {
                let (to, name) = (server.address(), format!("{what} at {place:?}"));
                for probe in [
                    Probe::tcp(internet, to),
                    Probe::udp(internet, to),
                    Probe::ping(internet, to.ip()),
                ] {
                    assert_eq!(probe.run(LONG)?, Outcome::Accepted, "{name}: {probe:?}");
                }
                let closed = Probe::udp(internet, SocketAddr::new(to.ip(), 9));
                assert_eq!(closed.run(LONG)?, Outcome::Refused, "{name}: an error");
            }
            scene.without_others()?;
        }
    }
    scene.denied_does_not("at the end");
    Ok(())
}

/// Another link to the internet, which nothing is sent by yet.
pub fn add_second_link(netvm: &Namespace, internet: &Namespace) -> Result<()> {
    netvm.ip(&[
        "link",
        "add",
        "wg0",
        "type",
        "veth",
        "peer",
        "name",
        "wg0",
        "netns",
        internet.name(),
    ])?;
    for (on, v4, v6) in [
        (netvm, "192.0.3.2/24", "2001:db8:fffe::2/64"),
        (internet, "192.0.3.1/24", "2001:db8:fffe::1/64"),
    ] {
        on.ip(&["address", "add", v4, "dev", "wg0"])?;
        on.ip(&["address", "add", v6, "dev", "wg0", "nodad"])?;
        on.ip(&["link", "set", "wg0", "up"])?;
    }
    // Answers have no mark, by which there would be a way back.
    for link in ["all", "wg0"] {
        netvm.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0")?;
    }
    Ok(())
}

/// Another way to the internet, which only packets with this mark go.
fn add_second_uplink(scene: &Scene) -> Result<()> {
    let netvm = scene.netvm();
    add_second_link(netvm, scene.world.rig.internet())?;
    netvm.ip(&["route", "add", "default", "via", "192.0.3.1", "table", "200"])?;
    netvm.ip(&["-6", "route", "add", "default", "via", "2001:db8:fffe::1", "table", "200"])?;
    // Without a mask: all 32 bits are compared.
    netvm.ip(&["rule", "add", "fwmark", "0x2", "table", "200"])?;
    netvm.ip(&["-6", "rule", "add", "fwmark", "0x2", "table", "200"])?;
    Ok(())
}

#[test]
fn a_mark_of_others_routes_as_without_a_firewall() -> Result<()> {
    let scene = Scene::new("fwmark", &[])?;
    add_second_uplink(&scene)?;
    let from = scene.world.client.namespace();
    let is_clients = |frame: &[u8]| {
        let ports = [443_u16.to_be_bytes(), 53_u16.to_be_bytes()];
        frame.get(36..38).is_some_and(|port| ports.iter().any(|it| it == port))
    };
    for mark in ["meta mark or 0x2", "0x2"] {
        let text = format!("iifname \"vif*\" meta mark set {mark}");
        scene.netvm().nft(&writer(&text, ("prerouting", "-150")))?;
        let mut first = frames::capture(scene.world.rig.internet(), "eth0")?;
        scene.accepted_passes("by the second uplink");
        scene.denied_does_not("by the second uplink");
        // The last packet by the first uplink is one that nothing has marked.
        scene.without_others()?;
        Probe::udp(from, SocketAddr::new(SERVER4, 53)).run(LONG)?;
        let strayed = first.wait_for(is_clients, LONG)?;
        ensure!(strayed.is_some(), "nothing came by the first uplink");
        ensure!(first.wait_for(is_clients, SILENCE)?.is_none(), "left in the clear: {strayed:?}");
    }
    Ok(())
}
