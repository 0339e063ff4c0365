//! The gate of mode whonix, in front of what leads to Tor: what has no permit comes no further, what
//! rules deny is answered, and what others take away is back.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::added::Warning;
use firewall_core::tor;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{self, Agent, PATIENCE, write_rules};
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{ClientSpec, GATEWAY_V4, GATEWAY_V6, Rig};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::files::cli;
use super::world::*;

const WHONIX: &[&str] = &["--mode", "whonix"];
/// What lets packets of vifs into the gateway.
const STRICT: &str = "inet qubes-firewall-strict";
const ANSWERS: &str = "netdev qubes-firewall-answers";

/// The tables of a gateway, as far as these tests need them: TCP goes to one port, SOCKS to its own,
/// and the gateway sends nothing but answers, no ICMP error among them.
const TABLES: &str = "
    table inet nat {
        chain prerouting {
            type nat hook prerouting priority -100;
            iifname vif* ip daddr 10.137.0.0/16 tcp dport 9050 redirect to :9050
            iifname vif* udp dport 53 redirect to :5300
            iifname vif* tcp flags & (fin|syn|rst|ack) == syn redirect to :9040
        }
    }
    table inet filter {
        chain input {
            type filter hook input priority 0; policy drop;
            iifname lo accept
            ct state established accept
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
            iifname vif* udp dport 5300 accept
            iifname vif* tcp dport { 9040, 9050 } accept
        }
        chain forward { type filter hook forward priority 0; policy drop; reject; }
        chain output {
            type filter hook output priority 0; policy drop;
            oifname lo accept
            ct state established accept
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        }
    }
";
const RELOAD: &str = "delete table inet nat; delete table inet filter;";

/// A gateway with a stand-in for Tor, and one client.
struct Gateway {
    world: World,
    _tor: Vec<EchoServer>,
}

impl Gateway {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let netvm = world.rig.netvm();
        netvm.sysctl("net/ipv4/ip_forward", "0")?;
        netvm.sysctl("net/ipv6/conf/all/forwarding", "0")?;
        netvm.nft(TABLES)?;
        let own = [GATEWAY_V4.into(), GATEWAY_V6.into()];
        let ports = own.into_iter().flat_map(|own: IpAddr| [(own, 9040), (own, 9050), (own, 5300)]);
        let tor = ports.map(|address| EchoServer::start(netvm, address.into()));
        let tor = tor.collect::<Result<_>>()?;
        Ok(Self { world, _tor: tor })
    }

    fn start(&self) -> Result<Agent> {
        self.world.start_with(WHONIX)
    }

    fn tcp(&self, to: impl Into<IpAddr>, port: u16) -> Result<Outcome> {
        let to = SocketAddr::new(to.into(), port);
        Probe::tcp(self.world.client.namespace(), to).run(SILENCE)
    }

    /// That TCP to port 443 gets to Tor, and nothing else.
    #[track_caller]
    fn check_web(&self, name: &str) {
        let (v4, v6) = WEB;
        self.world.check(name, v4, v6);
        assert_eq!(self.tcp(GATEWAY_V4, 9050).expect("a probe"), PROHIBITED4, "{name}");
        assert_eq!(self.tcp(GATEWAY_V4, 80).expect("a probe"), PROHIBITED4, "{name}");
        assert_eq!(self.tcp(GATEWAY_V6, 80).expect("a probe"), PROHIBITED6, "{name}");
    }

    /// A table as it is in force; nothing if there is none.
    fn table(&self, name: &str) -> Result<String> {
        self.list(&["list", "table"], name)
    }

    /// The same with the numbers of all that is in it: what is loaded again has others.
    fn numbered(&self, name: &str) -> Result<String> {
        self.list(&["-a", "list", "table"], name)
    }

    fn list(&self, arguments: &[&str], name: &str) -> Result<String> {
        let mut nft = Command::new("nft");
        nft.args(arguments).args(name.split(' '));
        let nft = nft.stdout(Stdio::piped()).stderr(Stdio::null());
        let output = self.world.rig.netvm().spawn(nft)?.wait_with_output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits until a table is as it was.
    fn wait_for_table(&self, name: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.table(name)? != wanted {
            ensure!(Instant::now() < deadline, "{name} is not {wanted}:\n{}", self.table(name)?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

#[test]
fn a_gateway_lets_to_tor_what_rules_accept_and_answers_what_they_deny() -> Result<()> {
    let gateway = Gateway::new("strict")?;
    let agent = gateway.start()?;
    let world = &gateway.world;
    gateway.world.put(&agent, &[tcp_443()])?;
    gateway.check_web("tcp to 443");
    let all = Ruleset { default_accept: true, rules: Vec::new() };
    agent.put(world.v4, &all)?;
    agent.put(world.v6, &all)?;
    for (to, port) in [(SERVER4, 443), (SERVER4, 80), (GATEWAY_V4.into(), 9050), (SERVER6, 25)] {
        assert_eq!(gateway.tcp(to, port)?, Outcome::Accepted, "{to} {port}");
    }
    let dns = Probe::udp(world.client.namespace(), (SERVER4, 53).into());
    assert_eq!(dns.run(SILENCE)?, Outcome::Accepted);
    // The gateway takes nothing else, and says nothing of it: that is as without rules.
    let ntp = Probe::udp(world.client.namespace(), (SERVER4, 123).into());
    assert_eq!(ntp.run(SILENCE)?, Outcome::Silent);
    assert_eq!(Probe::ping(world.client.namespace(), SERVER4).run(SILENCE)?, Outcome::Silent);
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("mode whonix") && text.contains("tor-socks deny"), "{text}");
    assert!(!text.contains("PROBLEM") && !text.contains("WARNING"), "{text}");
    Ok(())
}

#[test]
fn what_comes_from_a_vif_without_a_permit_does_not_get_to_tor() -> Result<()> {
    let gateway = Gateway::new("permitless")?;
    assert_eq!(gateway.tcp(SERVER4, 443)?, Outcome::Accepted, "without a gate");
    let mut prepare = agent::command(&gateway.world.rig, "prepare", WHONIX)?;
    ensure!(gateway.world.rig.netvm().spawn(&mut prepare)?.wait()?.success(), "prepare fails");
    gateway.world.check("without a program", SILENT, SILENT);
    assert_eq!(gateway.tcp(GATEWAY_V4, 9050)?, Outcome::Silent);
    // Nor by a hardware address that looks like a permit: such a frame is for another machine.
    let mac = ["link", "set", gateway.world.client.vif(), "address", "0e:51:45:46:00:01"];
    gateway.world.rig.netvm().ip(&mac)?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[tcp_443()])?;
    let inside = gateway.world.client.namespace();
    for (own, to) in [(GATEWAY_V4.to_string(), SERVER4), (GATEWAY_V6.to_string(), SERVER6)] {
        let neighbour = ["neighbour", "replace", &own, "lladdr", "0e:51:45:46:00:01"];
        inside.ip(&[&neighbour[..], &["dev", "eth0", "nud", "permanent"]].concat())?;
        assert_eq!(gateway.tcp(to, 443)?, Outcome::Accepted, "{to}");
        let denied = gateway.tcp(to, 80)?;
        assert!([PROHIBITED4, PROHIBITED6].contains(&denied), "{to}: {denied:?}");
    }
    Ok(())
}

#[test]
fn what_others_take_away_of_a_gateways_tables_is_back_at_once() -> Result<()> {
    let gateway = Gateway::new("strict_back")?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[tcp_443()])?;
    gateway.check_web("at first");
    for table in [STRICT, ANSWERS, "ip qubes-firewall", "ip6 qubes-firewall"] {
        let wanted = gateway.table(table)?;
        ensure!(!wanted.is_empty(), "no {table}");
        for change in ["delete table", "flush table"] {
            gateway.world.rig.netvm().nft(&format!("{change} {table}"))?;
            gateway.wait_for_table(table, &wanted)?;
        }
    }
    gateway.check_web("again");
    // What others append is not asked.
    gateway.world.rig.netvm().nft(&format!("add rule {STRICT} prerouting accept"))?;
    agent.wait_for("told", |status| {
        let mut added = status.agent.added_rules.iter();
        added.any(|rule| rule.table == STRICT && rule.warning == Some(Warning::NeverReached))
    })?;
    let answers = gateway.table(ANSWERS)?;
    gateway.world.rig.netvm().nft(&format!("delete table {ANSWERS}"))?;
    assert_ne!(gateway.tcp(SERVER4, 80)?, Outcome::Accepted);
    gateway.wait_for_table(ANSWERS, &answers)?;
    // What Whonix loads anew takes nothing away.
    gateway.world.rig.netvm().nft(&format!("{RELOAD}{TABLES}"))?;
    ensure!(gateway.table(ANSWERS)? == answers, "a reload takes answers away");
    gateway.check_web("with Whonix' tables loaded anew");
    Ok(())
}

#[test]
fn answers_of_a_gateway_are_not_loaded_again_when_others_change_something() -> Result<()> {
    let gateway = Gateway::new("strict_once")?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[tcp_443()])?;
    let mut found = Vec::new();
    // What is told of one change was seen when all was done about the one before.
    for changes in 1..=4 {
        gateway.world.rig.netvm().nft(&format!("add rule {STRICT} prerouting accept"))?;
        agent.wait_for("told", |status| status.agent.added_rules.len() == changes)?;
        found.push(gateway.numbered(ANSWERS)?);
    }
    ensure!(found[1].contains(gateway.world.client.vif()), "{}", found[1]);
    assert_eq!(found[1], found[3]);
    Ok(())
}

#[test]
fn what_is_in_force_in_a_gateway_outlives_the_agent_and_comes_with_the_next() -> Result<()> {
    let gateway = Gateway::new("strict_life")?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[tcp_443()])?;
    let socket = agent.socket();
    ensure!(agent.terminate()?, "it does not end well");
    gateway.check_web("without an agent");
    let pins = gateway.world.rig.bpffs().join("firewall");
    let mut explain = Command::new(agent::binary()?);
    explain.args(["explain", "--from", "10.137.0.12", "--to", "198.51.100.7:443/tcp", "--json"]);
    explain.arg("--socket").arg(socket).arg("--pins").arg(pins).stdout(Stdio::piped());
    let output = gateway.world.rig.netvm().spawn(&mut explain)?.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("\"outcome\": \"tor\"") && text.contains("trans-port"), "{text}");
    let agent = gateway.start()?;
    agent.wait_for_settled()?;
    gateway.check_web("with the next");
    // Another mode takes the tables of this one away.
    ensure!(agent.terminate()?, "it does not end well");
    let agent = gateway.world.start_with(&["--mode", "qubes"])?;
    ensure!(gateway.table(STRICT)?.is_empty() && gateway.table(ANSWERS)?.is_empty(), "strays");
    drop(agent);
    Ok(())
}

#[test]
fn denied_packets_are_answered_at_vifs_that_come_later() -> Result<()> {
    let gateway = Gateway::new("strict_vifs")?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[tcp_443()])?;
    for number in [13, 14] {
        let spec = ClientSpec::numbered(number);
        let client = gateway.world.rig.add_client(&spec)?;
        let rules = Ruleset { default_accept: false, rules: vec![tcp_443()] };
        let address: IpAddr = spec.v4.context("no address")?.into();
        agent.wait_for_vif(client.vif())?;
        agent.put(address, &rules)?;
        let probe = |port| Probe::tcp(client.namespace(), (SERVER4, port).into()).run(SILENCE);
        assert_eq!(probe(80)?, PROHIBITED4, "{number}");
        assert_eq!(probe(443)?, Outcome::Accepted, "{number}");
        gateway.world.rig.remove_client(&client)?;
        agent.wait_for("one vif", |status| status.vifs.len() == 1)?;
    }
    gateway.check_web("the first");
    Ok(())
}

/// Marks a rig as a Whonix gateway.
fn mark(rig: &Rig) -> Result<()> {
    let marker = rig.directory().join("root").join(tor::MARKER);
    fs::create_dir_all(marker.parent().context("a root")?)?;
    Ok(fs::write(marker, "")?)
}

#[test]
fn in_a_gateway_the_mode_is_whonix_by_itself_and_another_is_told_loudly() -> Result<()> {
    let gateway = Gateway::new("strict_marker")?;
    let rig = &gateway.world.rig;
    mark(rig)?;
    let mut prepare = Command::new(agent::binary()?);
    prepare.arg("prepare").arg("--root").arg(rig.directory().join("root"));
    prepare.arg("--pins").arg(rig.bpffs().join("firewall"));
    ensure!(rig.netvm().spawn(&mut prepare)?.wait()?.success(), "prepare fails");
    ensure!(!gateway.table(STRICT)?.is_empty(), "the mode is another");
    let agent = gateway.world.start_with(&["--mode", "qubes"])?;
    agent.wait_for_log("rules of qubes are NOT ENFORCED")?;
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("PROBLEM: THIS IS A WHONIX GATEWAY"), "{text}");
    Ok(())
}

#[test]
fn keys_of_the_gateway_open_tors_services_at_once_and_close_them() -> Result<()> {
    let gateway = Gateway::new("strict_keys")?;
    let root = gateway.world.rig.directory().join("root/var/run/qubes");
    fs::create_dir_all(&root)?;
    let db = FakeQubesDb::start(&root.join("qubesdb.sock"))?;
    db.reload("10.137.0.12", "drop", &[("0000", b"action=accept proto=tcp dstports=443")]);
    let agent = gateway.start()?;
    let socks = |expected: Outcome| -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while gateway.tcp(GATEWAY_V4, 9050)? != expected {
            ensure!(Instant::now() < deadline, "never {expected:?}:\n{}", agent.log());
        }
        Ok(())
    };
    socks(PROHIBITED4)?;
    let key = tor::Service::Socks.key();
    db.write(key, b"allow");
    socks(Outcome::Accepted)?;
    assert_eq!(gateway.tcp(SERVER4, 80)?, PROHIBITED4);
    db.write(key, b"perhaps");
    socks(PROHIBITED4)?;
    let (code, text) = cli(&agent, &["status"])?;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("`perhaps` is neither `deny` nor `allow`"), "{text}");
    db.remove(key);
    agent.wait_for("well", |status| {
        status.agent.gateway.as_ref().is_some_and(|gateway| gateway.problems.is_empty())
    })?;
    socks(PROHIBITED4)
}

#[test]
fn names_in_a_gateway_are_asked_of_tor_on_loopback() -> Result<()> {
    let gateway = Gateway::new("strict_names")?;
    let rig = &gateway.world.rig;
    let clear = DnsServer::start(rig.internet(), SERVER4)?;
    fs::write(rig.directory().join("resolv.conf"), format!("nameserver {SERVER4}\n"))?;
    let agent = gateway.start()?;
    let text = "policy = drop\n0000 = action=accept dsthost=web.example\ncommit\n";
    write_rules(rig.directory(), gateway.world.v4, text)?;
    agent.wait_for("unresolved, with the reason", |status| {
        let problem = status.names.iter().find_map(|name| name.problem.clone());
        problem.is_some_and(|why| why.contains("127.0.0.1:5400") && why.contains("is Tor up?"))
    })?;
    assert_eq!(gateway.tcp(SERVER4, 443)?, PROHIBITED4);
    let tor = DnsServer::start_at(rig.netvm(), tor::DNS_SERVER)?;
    let address = SERVER4.to_string();
    tor.say("web.example", Reply::addresses("web.example", 60, &[&address]));
    agent.wait_for("resolved", |status| {
        status.names.iter().any(|name| !name.addresses.is_empty())
    })?;
    agent.wait_for_settled()?;
    assert_eq!(gateway.tcp(SERVER4, 443)?, Outcome::Accepted);
    assert_eq!(clear.count(), 0, "somebody else was asked");
    Ok(())
}

#[test]
fn connections_that_rules_deny_now_end_in_a_gateway() -> Result<()> {
    let gateway = Gateway::new("strict_cut")?;
    let agent = gateway.start()?;
    gateway.world.put(&agent, &[Rule::all(true)])?;
    let client = gateway.world.client.namespace();
    let mut connection =
        firewall_tests::traffic::probe::OpenFlow::open(client, (SERVER4, 443).into(), SILENCE)?;
    ensure!(connection.exchange(SILENCE)?, "it is not open");
    gateway.world.put(&agent, &[])?;
    ensure!(!connection.exchange(SILENCE)?, "it is open still");
    Ok(())
}
