//! The only links by which clients' packets may leave: whatever becomes of a tunnel, nothing of a
//! client is seen beside it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use firewall_core::told::explanation::Explained;
use firewall_core::told::status::{AgentStatus, State, UplinksFrom};
use firewall_core::uplinks::KEY;
use firewall_tests::oracle::{Rule, Ruleset};
use firewall_tests::rig::agent::{self, Agent, PATIENCE};
use firewall_tests::rig::dns::{DnsServer, Reply};
use firewall_tests::rig::qubesdb::FakeQubesDb;
use firewall_tests::rig::server::EchoServer;
use firewall_tests::rig::{ClientSpec, UPLINK, UPLINK_V4, UPLINK_V6};
use firewall_tests::traffic::frames;
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::tunnel::{TUNNEL, Tunnel};
use super::world::*;

/// The second of the virtual resolvers, and the server behind it.
const VIRTUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 139, 1, 2));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 53));

fn accept_all(tunnel: &Tunnel, arguments: &[&str]) -> Result<Agent> {
    let agent = tunnel.world.start_with(arguments)?;
    tunnel.world.put(&agent, &[Rule::all(true)])?;
    Ok(agent)
}

/// What the chain of the gate says, in a family; nothing if there is none.
pub fn chain(tunnel: &Tunnel, family: &str) -> Result<String> {
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", tunnel.netvm().name(), "nft", "list", "chain", family]);
    let output = nft.args(["qubes-firewall", "uplinks"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The names and who says so, as `status` tells them.
fn told(agent: &AgentStatus) -> Option<(String, Vec<UplinksFrom>)> {
    let uplinks = agent.uplinks.as_ref()?;
    let link = |(name, there): (&str, bool)| {
        if there { name.to_owned() } else { format!("{name} (not there)") }
    };
    let links = uplinks.links.iter().map(|it| link((&it.name, it.there)));
    Some((links.collect::<Vec<_>>().join(" "), uplinks.from.clone()))
}

#[test]
fn whatever_becomes_of_the_tunnel_nothing_of_a_client_leaves_beside_it() -> Result<()> {
    let mut tunnel = Tunnel::new("uplinks")?;
    let agent = accept_all(&tunnel, &["--uplinks", TUNNEL])?;
    let status = || agent.status().map(|status| told(&status.agent));
    let here = Some((TUNNEL.to_owned(), vec![UplinksFrom::Options]));
    assert_eq!(status()?, here);
    tunnel.check("by the tunnel", ACCEPTED, ACCEPTED);
    tunnel.lead(UPLINK)?;
    tunnel.check("led by the uplink", ALL_PROHIBITED4, ALL_PROHIBITED6);
    // What users put in front of all other rules leads not around it.
    for (family, at) in [("ip", "insert"), ("ip6", "insert"), ("ip", "add"), ("ip6", "add")] {
        let chain = if at == "insert" { "forward" } else { "qubes-forward" };
        tunnel.netvm().nft(&format!("{at} rule {family} qubes-firewall {chain} accept"))?;
    }
    tunnel.check("with users' rules", ALL_PROHIBITED4, ALL_PROHIBITED6);
    tunnel.lead(TUNNEL)?;
    tunnel.check("by the tunnel again", ACCEPTED, ACCEPTED);
    tunnel.set(TUNNEL, "down")?;
    tunnel.lead(UPLINK)?;
    tunnel.check("down", ALL_PROHIBITED4, ALL_PROHIBITED6);
    tunnel.rename(TUNNEL, "elsewhere")?;
    tunnel.lead("elsewhere")?;
    tunnel.check("by another name", ALL_PROHIBITED4, ALL_PROHIBITED6);
    let gone = Some((format!("{TUNNEL} (not there)"), vec![UplinksFrom::Options]));
    agent.wait_for("not there", |status| told(&status.agent) == gone)?;
    tunnel.rename("elsewhere", TUNNEL)?;
    tunnel.lead(TUNNEL)?;
    tunnel.check("by its name", ACCEPTED, ACCEPTED);
    tunnel.netvm().ip(&["link", "delete", TUNNEL])?;
    tunnel.lead(UPLINK)?;
    tunnel.check("removed", ALL_PROHIBITED4, ALL_PROHIBITED6);
    agent.kill()?;
    tunnel.check("without an agent", ALL_PROHIBITED4, ALL_PROHIBITED6);
    tunnel.add()?;
    tunnel.lead(TUNNEL)?;
    tunnel.check("anew, without an agent", ACCEPTED, ACCEPTED);
    // Without the option, the packets leave as the routes say.
    let _agent = tunnel.world.start()?;
    assert_eq!(chain(&tunnel, "ip")? + &chain(&tunnel, "ip6")?, "");
    tunnel.lead(UPLINK)?;
    tunnel.check_clear("without the option");
    Ok(())
}

#[test]
fn a_link_may_have_any_name_that_is_taken_and_there_may_be_several() -> Result<()> {
    let mut tunnel = Tunnel::new("linknames")?;
    let accepting = Ruleset { default_accept: true, rules: vec![] };
    for client in [tunnel.world.v4, tunnel.world.v6] {
        agent::write_rules(tunnel.world.rig.directory(), client, &accepting.file())?;
    }
    for (name, option) in [
        ("5", vec!["--uplinks", "5"]),
        ("drop", vec!["--uplinks", "tun0,drop"]),
        ("a+b=c@d.e_f-15x", vec!["--uplinks", "tun0", "--uplinks", "a+b=c@d.e_f-15x,0x1"]),
    ] {
        let agent = tunnel.world.start_with(&option)?;
        for client in [tunnel.world.v4, tunnel.world.v6] {
            agent.wait_for_state(client, State::Live)?;
        }
        tunnel.check("another name", ALL_PROHIBITED4, ALL_PROHIBITED6);
        tunnel.rename(TUNNEL, name)?;
        tunnel.lead(name)?;
        tunnel.check(name, ACCEPTED, ACCEPTED);
        tunnel.lead(UPLINK)?;
        tunnel.check(name, ALL_PROHIBITED4, ALL_PROHIBITED6);
        tunnel.rename(name, TUNNEL)?;
        tunnel.lead(TUNNEL)?;
        ensure!(agent.terminate()?, "not a clean end");
    }
    for bad in ["", "a,,b", "a b", "a/b", "sixteen-letters-", "vif*", "a\"b", "."] {
        let mut command = agent::command(&tunnel.world.rig, "prepare", &["--uplinks", bad])?;
        let ended = tunnel.netvm().spawn(&mut command)?.wait_with_output()?;
        assert_eq!(ended.status.code(), Some(2), "{bad}");
    }
    Ok(())
}

#[test]
fn other_clients_are_reached_and_answers_leave_by_the_tunnel_alone() -> Result<()> {
    let mut tunnel = Tunnel::new("uplinkways")?;
    let other = tunnel.world.rig.add_client(&ClientSpec::numbered(13))?;
    let agent = accept_all(&tunnel, &["--mode", "qubes", "--uplinks", TUNNEL])?;
    let accepting = Ruleset { default_accept: true, rules: vec![] };
    let from = tunnel.world.client.namespace().clone();
    let servers = [tunnel.world.v4, tunnel.world.v6].map(|client| SocketAddr::new(client, 7));
    let echo = servers.map(|at| EchoServer::start(&from, at));
    let _echo: Vec<EchoServer> = echo.into_iter().collect::<Result<_>>()?;
    for address in other.spec().addresses() {
        agent.wait_for("the other client", |status| {
            status.clients.iter().any(|it| it.address == address && it.vif.is_some())
        })?;
        agent.put(address, &accepting)?;
    }
    let internet = tunnel.world.rig.internet().clone();
    for (link, via, answers) in [
        (TUNNEL, ["192.0.3.2".to_owned(), "2001:db8:fffe::2".to_owned()], Outcome::Accepted),
        (UPLINK, [UPLINK_V4.to_string(), UPLINK_V6.to_string()], Outcome::Silent),
    ] {
        tunnel.lead(link)?;
        for address in other.spec().addresses() {
            let outcome = Probe::ping(&from, address).run(PATIENCE)?;
            assert_eq!(outcome, Outcome::Accepted, "to {address}, led by {link}");
        }
        for (server, via) in servers.iter().zip(via) {
            let to = server.ip().to_string();
            let family = if server.is_ipv4() { "-4" } else { "-6" };
            internet.ip(&[family, "route", "replace", &to, "via", &via])?;
            for probe in [Probe::udp(&internet, *server), Probe::tcp(&internet, *server)] {
                assert_eq!(probe.run(SILENCE)?, answers, "to {server}, led by {link}");
            }
        }
    }
    ensure!(tunnel.strays()?.is_empty(), "left in the clear");
    Ok(())
}

#[test]
fn dom0_names_the_uplinks_while_the_agent_runs_and_nothing_wrong_gives_any() -> Result<()> {
    let mut tunnel = Tunnel::new("uplinkkey")?;
    let db = tunnel.qubesdb()?;
    let agent = tunnel.world.start()?;
    tunnel.world.check("at first", ACCEPTED, ACCEPTED);
    tunnel.lead(UPLINK)?;
    tunnel.strays()?;
    tunnel.check_clear("without a key");
    tunnel.netvm().nft("add rule ip qubes-firewall qubes-forward counter comment \"mine\"")?;
    let is = |agent: &Agent, links: Option<&str>, from: UplinksFrom, problem: &str| {
        let wanted = links.map(|links| (links.to_owned(), vec![from]));
        agent.wait_for(&format!("{links:?}, {problem}"), |status| {
            let found = status.agent.uplinks_problem.as_deref().unwrap_or_default();
            told(&status.agent) == wanted
                && found.contains(problem)
                && problem.is_empty() == found.is_empty()
        })
    };
    let of_key = UplinksFrom::Qubesdb;
    let bad = |value: &str| format!("{KEY}: `{value}` is no list of links");
    for (value, links, problem) in [
        // Nothing is in force that could stay: what is clear of it is.
        ("wg0 no/name", Some("wg0"), bad("wg0 no/name")),
        ("", None, String::new()),
        ("wg0", Some("wg0"), String::new()),
        ("a,,b", Some("wg0"), bad("a,,b")),
        ("a-name-that-is-too-long", Some("wg0"), bad("a-name-that-is-too-long")),
        ("eth0\";", Some("wg0"), bad("eth0\";")),
        (" ", Some("wg0"), bad(" ")),
        ("tun0, wg0", Some("tun0 (not there) wg0"), String::new()),
    ] {
        db.write(KEY, value.as_bytes());
        is(&agent, links, of_key, &problem)?;
        // What ends a connection may have left before.
        tunnel.strays()?;
        if links.is_some() {
            tunnel.check(value, ALL_PROHIBITED4, ALL_PROHIBITED6);
        } else {
            tunnel.check_clear("an empty key");
        }
    }
    let mut list = Command::new("ip");
    list.args(["netns", "exec", tunnel.netvm().name(), "nft", "list", "table", "ip"]);
    let listed = String::from_utf8(list.arg("qubes-firewall").output()?.stdout)?;
    ensure!(listed.contains("comment \"mine\""), "a user's rule is gone:\n{listed}");
    tunnel.lead(TUNNEL)?;
    tunnel.check("by the tunnel", ACCEPTED, ACCEPTED);
    tunnel.lead(UPLINK)?;
    // An agent that cannot read the key leaves in force what is.
    agent.kill()?;
    drop(db);
    let agent = Agent::start(&tunnel.world.rig, &["--uplinks", "wg0,other"])?;
    agent.wait_for("QubesDB is gone", |status| status.agent.source_problem.is_some())?;
    let both = Some(("wg0".to_owned(), vec![UplinksFrom::Options, UplinksFrom::Before]));
    assert_eq!(told(&agent.status()?.agent), both);
    tunnel.check("without QubesDB", ALL_PROHIBITED4, ALL_PROHIBITED6);
    agent.kill()?;
    std::fs::remove_file(tunnel.socket())?;
    let db = FakeQubesDb::start(&tunnel.socket())?;
    for client in [tunnel.world.v4, tunnel.world.v6] {
        db.reload(&client.to_string(), "drop", &[("0000", b"action=accept")]);
    }
    db.write(KEY, b"wg0");
    let agent = tunnel.world.start()?;
    is(&agent, Some("wg0"), of_key, "")?;
    tunnel.check("after it came back", ALL_PROHIBITED4, ALL_PROHIBITED6);
    db.remove(KEY);
    is(&agent, None, of_key, "")?;
    tunnel.check_clear("without the key");
    assert_eq!(chain(&tunnel, "ip")? + &chain(&tunnel, "ip6")?, "");
    Ok(())
}

#[test]
fn what_comes_before_the_service_closes_the_other_links_already() -> Result<()> {
    let tunnel = Tunnel::new("uplinkprepare")?;
    let prepare = |arguments: &[&str]| -> Result<()> {
        let mut command = agent::command(&tunnel.world.rig, "prepare", arguments)?;
        let ended = tunnel.netvm().spawn(&mut command)?.wait_with_output()?;
        ensure!(ended.status.success(), "{ended:?}");
        Ok(())
    };
    let is = |name: &str, words: Option<&str>| -> Result<()> {
        for family in ["ip", "ip6"] {
            let chain = chain(&tunnel, family)?;
            let is_it = words.map_or(chain.is_empty(), |words| chain.contains(words));
            assert!(is_it, "{name}: {chain}");
        }
        Ok(())
    };
    prepare(&[])?;
    is("without the option", None)?;
    prepare(&["--uplinks", TUNNEL])?;
    is("with the option", Some("oifname != \"wg0\" iifname \"vif*\""))?;
    prepare(&[])?;
    is("without it again", None)?;
    let socket = tunnel.socket();
    let db = FakeQubesDb::start(&socket)?;
    db.write(KEY, b"wg0");
    prepare(&[])?;
    is("with the key", Some("oifname != \"wg0\" iifname \"vif*\""))?;
    prepare(&["--uplinks", "tun0"])?;
    is("with both", Some("iifname \"vif*\" oifname != \"vif*\" reject"))?;
    db.write(KEY, b"wg0 tun0");
    prepare(&[])?;
    is("with two", Some("oifname != {"))?;
    db.write(KEY, b"?");
    prepare(&[])?;
    is("with something wrong", Some("oifname != {"))?;
    drop(db);
    prepare(&[])?;
    is("without QubesDB", Some("oifname != {"))?;
    Ok(())
}

#[test]
fn dom0_names_the_uplinks_of_a_qube_whose_rules_come_from_files_as_well() -> Result<()> {
    let mut tunnel = Tunnel::new("uplinkfiles")?;
    let socket = tunnel.socket();
    let db = FakeQubesDb::start(&socket)?;
    db.write(KEY, b"wg0");
    let from_files = ["--source", "files"];
    let agent = accept_all(&tunnel, &from_files)?;
    let is = |agent: &Agent, links: Option<&str>, from: UplinksFrom| {
        let expected = links.map(|links| (links.to_owned(), vec![from]));
        agent.wait_for("the list", |status| told(&status.agent) == expected)
    };
    is(&agent, Some(TUNNEL), UplinksFrom::Qubesdb)?;
    tunnel.lead(UPLINK)?;
    tunnel.check("by the key", ALL_PROHIBITED4, ALL_PROHIBITED6);
    db.remove(KEY);
    is(&agent, None, UplinksFrom::Qubesdb)?;
    tunnel.check_clear("without the key");
    db.write(KEY, b"wg0");
    is(&agent, Some(TUNNEL), UplinksFrom::Qubesdb)?;
    // The end of a connection may have left until then.
    tunnel.strays()?;
    agent.kill()?;
    drop(db);
    let agent = tunnel.world.start_with(&from_files)?;
    is(&agent, Some(TUNNEL), UplinksFrom::Before)?;
    tunnel.check("without QubesDB", ALL_PROHIBITED4, ALL_PROHIBITED6);
    std::fs::remove_file(&socket)?;
    let db = FakeQubesDb::start(&socket)?;
    is(&agent, None, UplinksFrom::Qubesdb)?;
    db.write(KEY, b"wg0");
    is(&agent, Some(TUNNEL), UplinksFrom::Qubesdb)
}

#[test]
fn names_are_asked_by_the_tunnel_and_so_is_dns_of_clients() -> Result<()> {
    let mut tunnel = Tunnel::new("uplinknames")?;
    let dns = DnsServer::start(tunnel.world.rig.internet(), SERVER4)?;
    tunnel.world.rig.add_internet_address(SECOND)?;
    let second = SocketAddr::new(SECOND, 53);
    let _second = EchoServer::start(tunnel.world.rig.internet(), second)?;
    dns.say("a.example", Reply::addresses("a.example", 1, &["198.51.100.9"]));
    std::fs::write(
        tunnel.world.rig.directory().join("resolv.conf"),
        format!("nameserver {SERVER4}\nnameserver {SECOND}\n"),
    )?;
    tunnel.lead(UPLINK)?;
    let mut inside = frames::capture(tunnel.world.rig.internet(), TUNNEL)?;
    let agent = tunnel.world.start_with(&["--uplinks", TUNNEL])?;
    let rules = "policy = drop\n0000 = action=accept dsthost=a.example\n0001 = action=accept \
                 specialtarget=dns\ncommit\n";
    agent::write_rules(tunnel.world.rig.directory(), tunnel.world.v4, rules)?;
    agent.wait_for("resolved", |status| {
        status.names.iter().any(|name| name.addresses.iter().any(|it| it.in_answer))
    })?;
    let is_dns = |frame: &[u8]| frame.get(36..38) == Some(&53_u16.to_be_bytes());
    ensure!(inside.wait_for(is_dns, PATIENCE)?.is_some(), "not by the tunnel");
    ensure!(tunnel.strays()?.is_empty(), "asked in the clear");
    assert_eq!(tunnel.asks(VIRTUAL)?, PROHIBITED4, "led by the uplink");
    tunnel.lead(TUNNEL)?;
    assert_eq!(tunnel.asks(VIRTUAL)?, Outcome::Accepted, "led by the tunnel");
    for (what, words) in [("down", "Network is unreachable"), ("gone", "No such device")] {
        match what {
            "down" => tunnel.set(TUNNEL, "down")?,
            _ => drop(tunnel.netvm().ip(&["link", "delete", TUNNEL])?),
        }
        tunnel.lead(UPLINK)?;
        let problem = format!("{SERVER4} by {TUNNEL} cannot be asked: {words}");
        agent.wait_for(&problem, |status| {
            let mut problems = status.names.iter().filter_map(|name| name.problem.as_deref());
            problems.any(|it| it.starts_with(&problem))
        })?;
        assert_eq!(tunnel.asks(VIRTUAL)?, PROHIBITED4, "{what}");
    }
    ensure!(tunnel.strays()?.is_empty(), "asked in the clear");
    Ok(())
}

#[test]
fn explain_tells_by_which_links_a_packet_may_leave() -> Result<()> {
    let tunnel = Tunnel::new("uplinktold")?;
    let agent = accept_all(&tunnel, &["--uplinks", "wg0,tun0"])?;
    let explain = |form: &[&str]| -> Result<String> {
        let mut command = Command::new(agent::binary()?);
        command.arg("explain").arg("--from").arg(tunnel.world.v4.to_string());
        command.arg("--pins").arg(tunnel.world.rig.bpffs().join("firewall"));
        command
            .arg("--socket")
            .arg(agent.socket())
            .arg("--to")
            .arg(format!("{SERVER4}:443/tcp"))
            .args(form);
        let output = tunnel.netvm().spawn(command.stdout(std::process::Stdio::piped()))?;
        Ok(String::from_utf8(output.wait_with_output()?.stdout)?)
    };
    let text = explain(&[])?.split_whitespace().collect::<Vec<_>>().join(" ");
    let sentence = "forwards it, because of the permit, if it leaves by tun0, wg0 or to a qube; what \
                    would leave by another link is answered";
    ensure!(text.contains(sentence), "{text}");
    let all: Vec<Explained> = serde_json::from_str(&explain(&["--json"])?)?;
    let explained = all.into_iter().next().and_then(|it| it.agent).context("no agent")?;
    assert_eq!(explained.uplinks, Some(vec!["tun0".to_owned(), "wg0".to_owned()]));
    Ok(())
}
